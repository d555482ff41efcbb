"""The effect of a statement on a transaction, by its text alone. Pure; wrong only on the careful side.

Hand-written SQL can hide a write anywhere. So what does not surely read counts as a write, and a query that calls a
function of unknown name may have written.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import IntEnum
from functools import lru_cache
from typing import Any

from fastrdb.inference import blanked, harmless


class Effect(IntEnum):
    """The effect of a statement besides reading; of several, the greatest counts."""

    NOTHING = 0
    CALLS = 1  # functions that may write
    WRITES = 2
    CONTROLS = 3  # the transaction: it writes, may undo, may commit, and each later statement may commit by itself


_QUOTES = re.compile(r"'|/\*|--|#")  # without these, nothing in a statement is a string or comment
_CALLED = re.compile(r'((?:\.\s*)?[\w$."`\]]+)\s*\(')  # the name before each opening parenthesis
_IGNORED = re.compile(r"(?:[\s(]|--[^\n]*|/\*.*?\*/)*", re.DOTALL)
_QUERIES = ("SELECT", "VALUES", "SHOW", "WITH", "EXPLAIN", "DESC", "TABLE")
_SAVEPOINTS = ("SAVEPOINT", "RELEASE")
_BEGINS = ("BEGIN", "START TRANSACTION")  # what drivers send, and SQLAlchemy's recipe for SQLite
_ENDS = ("COMMIT", "END", "ROLLBACK", "ABORT", "PREPARE TRANSACTION", "XA COMMIT", "XA ROLLBACK")
_CHANGES = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE)\b(?!\s*\()")
_LOCKS = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b")
_INTO = re.compile(r"\bINTO\b")
# Settings that change neither rows nor what a query finds. A search_path, a role or a time zone does.
_SETTINGS = re.compile(
    r"(?:(?:SET|RESET)\s+(?:(?:LOCAL|SESSION)\s+)?|SET\s+@@(?:SESSION\.)?|PRAGMA\s+)"
    r"(?:\w*_TIMEOUT|MAX_EXECUTION_TIME|MAX_STATEMENT_TIME|APPLICATION_NAME|CLIENT_MIN_MESSAGES|SYNCHRONOUS(?:_COMMIT)?"
    r"|\w*WORK_MEM|\w+_BUFFER_SIZE|TEMP_BUFFERS|CACHE_SIZE|MMAP_SIZE|JIT|PLAN_CACHE_MODE|ENABLE_\w+|\w+_COST"
    r"|OPTIMIZER_\w+|MAX_PARALLEL_WORKERS_PER_GATHER)"
    r"(?:\s*(?::?=|\bTO\b)\s*[\w.'\- ]*)?\s*"
)
# What MariaDB and MySQL keep in the transaction. All other statements commit what was before them, or may.
_STAYS = (
    *("INSERT", "UPDATE", "DELETE", "REPLACE", "LOAD DATA", "LOAD XML", "SET", "DO", "HANDLER", "USE"),
    *("PREPARE", "DEALLOCATE", "KILL", "SIGNAL", "RESIGNAL", "GET DIAGNOSTICS"),
)
_SET_COMMITS = re.compile(r"\b(?:AUTOCOMMIT|PASSWORD|STATEMENT)\b")
_ROWLESS = (
    *("SET", "RESET", "SHOW", "USE", "PRAGMA", "LOCK", "UNLOCK", "ANALYZE", "VACUUM", "OPTIMIZE", "EXPLAIN", "DISCARD"),
    *("BEGIN", "START", "COMMIT", "END", "ROLLBACK", "ABORT", "PREPARE", "XA", "SAVEPOINT", "RELEASE", "DEALLOCATE"),
    *("CREATE", "DECLARE", "FETCH", "CLOSE", "LISTEN", "UNLISTEN", "NOTIFY", "COMMENT", "GRANT", "REVOKE", "KILL"),
)
"""Statements that change no row of a table."""
_RUNS = re.compile(
    r"(?:EXPLAIN|ANALYZE)\b.*\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE)\b|CREATE\s+(?:OR|ROLE|USER|GROUP|SCHEMA|POLICY|CAST|OPERATOR)\b"
    r"|COMMIT\s+PREPARED\b|XA\s+COMMIT\b",
    re.DOTALL,
)
"""An EXPLAIN ANALYZE of a write, which writes. The replacement of a view or a function, or a policy, which changes
answers. A role or a schema, after which other tables are found. The second phase of a commit, which publishes the
writes of others."""
CHOOSES = re.compile(
    r"SET\s+(?:SESSION\s+|LOCAL\s+)?SCHEMA\b|USE\s"
    r"|CREATE\s+(?:OR\s+REPLACE\s+)?(?:(?:LOCAL|GLOBAL)\s+)?TEMP(?:ORARY)?\s+(?:RECURSIVE\s+)?(?:VIEW|TRIGGER)\b"
)
"""Another form of SET search_path; and what one session alone has, while the facts of tables are those of all."""
_MAY_RUN = ("SET", "BEGIN", "CREATE", "DECLARE", "ANALYZE")
"""Those of them that may hold a query or a block, which runs."""
_RUNS_LATER = re.compile(
    r"CREATE\s+(?:(?:OR\s+REPLACE|(?:DEFINER|ALGORITHM)\s*=\s*\S+|SQL\s+SECURITY\s+\w+|TEMP(?:ORARY)?|CONSTRAINT"
    r"|RECURSIVE)\s+)*(?:TRIGGER|FUNCTION|PROCEDURE|EVENT|RULE|VIEW)\b"
)
_OF_STATEMENT = re.compile(r"SET\s+STATEMENT\b.*?\bFOR\s+(.*)", re.DOTALL)  # of MariaDB: settings for what follows
_NO_VERB = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b|\bON\s+(?:UPDATE|DELETE)\b")
_QUERY = re.compile(r"\b(?:SELECT|EXECUTE|AS\s+VALUES)\b.*", re.DOTALL)


@lru_cache(maxsize=512)
def effect(statement: str, dialect: str) -> Effect:
    """Return the effect of one or several statements on a database of this SQLAlchemy name."""
    return max((_effect(part, dialect) for part in statements_in(statement, dialect)), default=Effect.NOTHING)


@lru_cache(maxsize=512)
def statements_in(statement: str, dialect: str) -> tuple[str, ...]:
    """Return the single statements of a text, without the texts in quotes, and each as `plain` returns it."""
    if _QUOTES.search(statement) and "\\" not in statement:  # databases differ in what that means inside of quotes
        statement = blanked(statement, dialect) or statement
    return tuple(plain(part) for part in statement.split(";") if part.strip())


@lru_cache(maxsize=512)
def sets_isolation(statement: str) -> bool:
    """Return True if the isolation level may be another one after it, in this transaction or in all that follow."""
    text = plain(statement)
    return text.startswith(("SET", *_BEGINS)) and "ISOLATION" in text


@lru_cache(maxsize=512)
def releases(statement: str, dialect: str) -> bool:
    """Return True if a text releases a savepoint of SQLite, which commits if that was made outside of a transaction."""
    return dialect == "sqlite" and any(part.startswith("RELEASE") for part in statements_in(statement, dialect))


@lru_cache(maxsize=512)
def is_rowless(statement: str, dialect: str) -> bool:
    """Return True if none of the statements in a text changes a row."""
    parts = statements_in(statement, dialect)
    if dialect != "postgresql" and parts and parts[0].startswith("CREATE"):
        parts = parts[:1]  # what follows is the body of a trigger or procedure, without quotes
    return all(part.startswith(_ROWLESS) and not _RUNS.match(part) and not _runs(part, dialect) for part in parts)


def _runs(part: str, dialect: str) -> bool:
    """Return True if a statement runs a query or a block that may write."""
    if not part.startswith(_MAY_RUN) or _RUNS_LATER.match(part):
        return False
    if (inner := _OF_STATEMENT.match(part)) is not None:
        return _effect(inner[1], dialect) is not Effect.NOTHING
    if _CHANGES.search(_NO_VERB.sub("", part)):
        return True
    query = _QUERY.search(part) if part.startswith(("CREATE", "DECLARE", "ANALYZE")) else part
    run = query[0] if isinstance(query, re.Match) else query or ""
    return not harmless(dialect).issuperset(_CALLED.findall(run)) or "EXECUTE" in run


def plain(statement: str) -> str:
    """Return the statement in upper case, without the comments and parentheses in front."""
    start = _IGNORED.match(statement)
    return statement[start.end() if start is not None else 0 :].upper()


def _effect(text: str, dialect: str) -> Effect:
    if text.count("/*") != text.count("*/"):  # a comment inside a comment may have ended anywhere
        return Effect.WRITES
    if text.startswith(_QUERIES):
        return _effect_of_query(text, dialect)
    if text.startswith(_SAVEPOINTS):
        return Effect.NOTHING
    if " ".join(text.split()).startswith(_ENDS):
        return Effect.CONTROLS
    if text.startswith("XA "):
        return Effect.NOTHING
    if _SETTINGS.fullmatch(text):
        return Effect.NOTHING
    if dialect in ("mysql", "mariadb"):
        stays = text.startswith(_STAYS) and not (text.startswith("SET") and _SET_COMMITS.search(text))
        return Effect.WRITES if stays else Effect.CONTROLS
    if text.startswith(_BEGINS) and not sets_isolation(text):
        return Effect.NOTHING
    return Effect.WRITES


def _effect_of_query(text: str, dialect: str) -> Effect:
    selects = text.startswith("SELECT")
    if _INTO.search(text) or (not selects and _CHANGES.search(_LOCKS.sub("", text))):
        return Effect.WRITES
    return Effect.NOTHING if harmless(dialect).issuperset(_CALLED.findall(text)) else Effect.CALLS


def settings_in(statement: str, parts: Iterable[str], context: Any) -> str:
    """Return all that a statement says that may set a parameter of the connection, in lower case; else nothing."""
    text = statement.lower()
    if "set_config" in text:
        return f"{text} {context.compiled_parameters if context.compiled is not None else ()}"
    return text if any(part.startswith(("SET", "RESET", "DO")) for part in parts) else ""
