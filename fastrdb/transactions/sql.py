"""The effect of a statement on a transaction, by its text alone. Pure; wrong only on the careful side.

Hand-written SQL can hide a write anywhere. So what does not surely read counts as a write, and a query that calls a
function of unknown name may have written.
"""

from __future__ import annotations

import re
from enum import IntEnum
from functools import lru_cache


class Effect(IntEnum):
    """The effect of a statement besides reading; of several, the greatest counts."""

    NOTHING = 0
    CALLS = 1  # functions that may write
    WRITES = 2
    CONTROLS = 3  # the transaction: it writes, may undo, may commit, and each later statement may commit by itself


_LITERALS = re.compile(r"'(?:[^']|'')*'")
_IGNORED = re.compile(r"(?:[\s(]|--[^\n]*|/\*.*?\*/)*", re.DOTALL)
_QUERIES = ("SELECT", "VALUES", "SHOW", "WITH", "EXPLAIN", "DESC", "TABLE")
_SAVEPOINTS = ("SAVEPOINT", "RELEASE")
_BEGINS = ("BEGIN", "START TRANSACTION")  # what drivers send, and SQLAlchemy's recipe for SQLite
_ENDS = ("COMMIT", "END", "ROLLBACK", "ABORT", "PREPARE TRANSACTION", "XA COMMIT", "XA ROLLBACK")
_CHANGES = re.compile(r"\b(?:INSERT|UPDATE|DELETE|MERGE|REPLACE)\b(?!\s*\()")
_LOCKS = re.compile(r"\bFOR\s+(?:NO\s+KEY\s+)?UPDATE\b")
_INTO = re.compile(r"\bINTO\b")
_CALLED = re.compile(r'([\w$."`\]]+)\s*\(')
_WORDS = (
    # words that stand before a parenthesis
    "ALL AND ANY ARRAY AS BETWEEN BY CASE CAST CHAR CROSS DECIMAL DISTINCT ELSE EXCEPT EXISTS FILTER FROM GROUPING "
    "HAVING IN INTERSECT INTERVAL IS JOIN KEY LATERAL LIKE LIMIT MATERIALIZED NOT NULLS NUMERIC OF OFFSET ON OR OVER "
    "PARTITION RECURSIVE ROW SELECT SETS SOME THEN UNION USING VALUES VARCHAR WHEN WHERE WITH WITHIN WINDOW "
    # functions
    "ABS ARRAY_AGG AVG BOOL_AND BOOL_OR CEIL CEILING COALESCE CONCAT COUNT CUME_DIST CURRENT_TIMESTAMP DATE DATE_PART "
    "DATE_TRUNC DENSE_RANK EXTRACT FIRST_VALUE FLOOR GREATEST GROUP_CONCAT IFNULL JSON_AGG JSON_BUILD_OBJECT "
    "JSON_EXTRACT JSONB_AGG JSONB_BUILD_OBJECT LAG LAST_VALUE LEAD LEAST LENGTH LOWER LTRIM MAX MD5 MIN MOD NOW NTILE "
    "NULLIF PERCENT_RANK POSITION POWER RANDOM RANK REPLACE ROUND ROW_NUMBER ROW_TO_JSON RTRIM STDDEV STRFTIME "
    "STRING_AGG SUBSTR SUBSTRING SUM TO_CHAR TO_TSQUERY TO_TSVECTOR TOTAL TRIM TXID_CURRENT_IF_ASSIGNED "
    "UNNEST UPPER VARIANCE"
)
_HARMLESS = frozenset(_WORDS.split())
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


@lru_cache(maxsize=512)
def effect(statement: str, dialect: str) -> Effect:
    """Return the effect of one or several statements on a database of this SQLAlchemy name."""
    if "\\" not in statement:  # databases differ in what that means inside of quotes
        statement = _LITERALS.sub("''", statement)
    parts = [_effect(_plain(part), dialect) for part in statement.split(";") if part.strip()]
    return max(parts, default=Effect.NOTHING)


@lru_cache(maxsize=512)
def sets_isolation(statement: str) -> bool:
    """Return True if the isolation level may be another one after it, in this transaction or in all that follow."""
    text = _plain(statement)
    return text.startswith(("SET", *_BEGINS)) and "ISOLATION" in text


def _plain(statement: str) -> str:
    start = _IGNORED.match(statement)
    return statement[start.end() if start is not None else 0 :].upper()


def _effect(text: str, dialect: str) -> Effect:
    if text.count("/*") != text.count("*/"):  # a comment inside a comment may have ended anywhere
        return Effect.WRITES
    if text.startswith(_QUERIES):
        return _effect_of_query(text)
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


def _effect_of_query(text: str) -> Effect:
    selects = text.startswith("SELECT")
    if _INTO.search(text) or (not selects and _CHANGES.search(_LOCKS.sub("", text))):
        return Effect.WRITES
    return Effect.NOTHING if _HARMLESS.issuperset(_CALLED.findall(text)) else Effect.CALLS
