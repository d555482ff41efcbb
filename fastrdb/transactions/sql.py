"""What a statement does to a transaction, told from its text alone. Pure; wrong only on the careful side.

Whoever writes SQL by hand can hide a write anywhere. So what does not surely read counts as a write, and a query that
calls a function of unknown name may have written.
"""

from __future__ import annotations

import re
from enum import Flag, auto
from functools import lru_cache


class Does(Flag):
    """What a statement does besides reading."""

    NOTHING = 0
    CALLS = auto()  # functions that may do anything
    WRITES = auto()
    UNDOES = auto()  # a part of the transaction, or all of it
    COMMITS = auto()  # all that was written so far, and itself
    LEAVES = auto()  # the transaction: from here on, each statement may commit by itself


_LEFT = Does.WRITES | Does.UNDOES | Does.LEAVES
_LITERALS = re.compile(r"'(?:[^']|'')*'")
_IGNORED = re.compile(r"(?:[\s(]|--[^\n]*|/\*.*?\*/)*", re.DOTALL)
_QUERIES = ("SELECT", "VALUES", "SHOW", "WITH", "EXPLAIN", "DESC", "TABLE")
_SAVEPOINTS = ("SAVEPOINT", "RELEASE")
_TO_SAVEPOINT = re.compile(r"ROLLBACK\s+(?:WORK\s+|TRANSACTION\s+)?TO\b")
_BEGINS = ("BEGIN", "START TRANSACTION")  # what drivers send, and SQLAlchemy's recipe for SQLite
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
_XA = {"XA COMMIT": Does.COMMITS | Does.WRITES, "XA ROLLBACK": Does.UNDOES}
# What MariaDB and MySQL keep in the transaction. All other statements commit what was before them, or may.
_STAYS = (
    *("INSERT", "UPDATE", "DELETE", "REPLACE", "LOAD DATA", "LOAD XML", "SET", "DO", "HANDLER", "USE"),
    *("PREPARE", "DEALLOCATE", "KILL", "SIGNAL", "RESIGNAL", "GET DIAGNOSTICS"),
)
_SET_COMMITS = re.compile(r"\b(?:AUTOCOMMIT|PASSWORD|STATEMENT)\b")


@lru_cache(maxsize=512)
def effect(statement: str, dialect: str) -> Does:
    """What `statement`, or several with semicolons between, does in a database of this SQLAlchemy name."""
    if "\\" not in statement:  # databases differ in what that means inside of quotes
        statement = _LITERALS.sub("''", statement)
    done = Does.NOTHING
    for part in filter(str.strip, statement.split(";")):
        done |= _effect(_plain(part), dialect)
    return done


@lru_cache(maxsize=512)
def sets_isolation(statement: str) -> bool:
    """True if the isolation level may be another one after it, in this transaction or in all that follow."""
    text = _plain(statement)
    return text.startswith(("SET", *_BEGINS)) and "ISOLATION" in text


def _plain(statement: str) -> str:
    start = _IGNORED.match(statement)
    return statement[start.end() if start is not None else 0 :].upper()


def _effect(text: str, dialect: str) -> Does:
    if text.count("/*") != text.count("*/"):  # a comment inside a comment: who knows where it ended
        return Does.WRITES
    if text.startswith(_QUERIES):
        return _effect_of_query(text)
    if text.startswith(_SAVEPOINTS):
        return Does.NOTHING
    if text.startswith("ROLLBACK"):
        return Does.UNDOES if _TO_SAVEPOINT.match(text) else _LEFT
    if text.startswith(("COMMIT", "END")):
        return _LEFT | Does.COMMITS
    if text.startswith("XA "):
        return _XA.get(" ".join(text.split()[:2]), Does.NOTHING)
    if dialect in ("mysql", "mariadb"):
        stays = text.startswith(_STAYS) and not (text.startswith("SET") and _SET_COMMITS.search(text))
        return Does.WRITES if stays else Does.WRITES | Does.COMMITS
    if text.startswith(_BEGINS) and not sets_isolation(text):
        return Does.NOTHING
    return Does.WRITES


def _effect_of_query(text: str) -> Does:
    selects = text.startswith("SELECT")
    if _INTO.search(text) or (not selects and _CHANGES.search(_LOCKS.sub("", text))):
        return Does.WRITES
    return Does.NOTHING if _HARMLESS.issuperset(_CALLED.findall(text)) else Does.CALLS
