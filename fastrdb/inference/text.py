"""The tables and functions that hand-written SQL names. Pure.

Without the package sqlglot, a text is not taken apart: a query may read anything, and of a write only a plain target
(`UPDATE orders SET ...`) is found.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Final

from .lexer import blanked, calls, tokens

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
HARMLESS: Final = frozenset(_WORDS.split())
"""Words and functions, in upper case, that neither read nor write a table."""
_LACKS: Final = {
    "postgresql": frozenset({"CHAR", "GROUP_CONCAT", "IFNULL", "JSON_EXTRACT", "STRFTIME", "TOTAL"}),
    "mysql": frozenset(
        {
            *("ARRAY_AGG", "BOOL_AND", "BOOL_OR", "DATE_PART", "DATE_TRUNC", "JSONB_AGG", "JSONB_BUILD_OBJECT"),
            *("JSON_AGG", "JSON_BUILD_OBJECT", "RANDOM", "ROW_TO_JSON", "STRFTIME", "STRING_AGG", "TOTAL", "TO_CHAR"),
            *("TO_TSQUERY", "TO_TSVECTOR", "TXID_CURRENT_IF_ASSIGNED", "UNNEST"),
        }
    ),
}
"""Functions that a database lacks. There a user may have a function of that name, so it is not harmless."""
OF_THE_MOMENT: Final = frozenset({"NOW", "CURRENT_TIMESTAMP", "RANDOM", "CURRENT_USER", "CURRENT_DATE", "RAND"})
"""Functions whose result may change although nothing was written."""
_READS: Final = frozenset({"select", "from", "join", "table", "with", "using"})
_NAME = r'((?:[\w$]+|"[^"]+"|`[^`]+`)(?:\.(?:[\w$]+|"[^"]+"|`[^`]+`))?)'
_TARGET = re.compile(
    rf"\s*(?:INSERT\s+(?:OR\s+\w+\s+|IGNORE\s+)?INTO\s+{_NAME}|REPLACE\s+INTO\s+{_NAME}"
    rf"|UPDATE\s+(?:ONLY\s+)?{_NAME}\s+(?:(?:AS\s+)?(?!SET\b)\w+\s+)?SET\b|DELETE\s+FROM\s+(?:ONLY\s+)?{_NAME})",
    re.IGNORECASE,
)
_DIALECTS = {"postgresql": "postgres", "mariadb": "mysql"}


@dataclass(frozen=True, slots=True)
class Named:
    """The tables that a text names, as `schema.table` or `table`, and the functions that it calls.

    `sure` is False where the text may touch other tables than these.
    """

    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    sure: bool = True


UNREADABLE: Final = Named(sure=False)


@lru_cache(maxsize=16)
def harmless(dialect: str) -> frozenset[str]:
    """Return the words and functions that neither read nor write a table in a database of this SQLAlchemy name."""
    return HARMLESS - _LACKS.get("mysql" if dialect == "mariadb" else dialect, frozenset())


def functions_in(text: str, dialect: str) -> frozenset[str] | None:
    """Return the functions, in lower case, that a text calls besides the harmless ones; None if it cannot be read."""
    found, known = tokens(text, dialect), harmless(dialect)
    if found is None:
        return None
    return frozenset(each.name for each in calls(found) if not each.is_word or each.name.upper() not in known)


def reads_nothing(fragment: str, dialect: str) -> bool:
    """Return True for a fragment of an expression in which no table can be read, save by a function."""
    found = tokens(fragment, dialect)
    return found is not None and not any(token.kind == "word" and token.text in _READS for token in found)


@lru_cache(maxsize=512)
def named_in(text: str, dialect: str) -> Named:
    """Return what a whole statement of hand-written SQL names."""
    parse = _parser()
    if parse is not None:
        try:
            return _named_by(parse(text, _DIALECTS.get(dialect, dialect)))
        except Exception:  # noqa: BLE001  # sqlglot's own, of many kinds: the text is then read as without it
            return _plain_target(text, dialect)
    return _plain_target(text, dialect)


def _plain_target(text: str, dialect: str) -> Named:
    plain = (blanked(text, dialect) or "").strip().rstrip(";")
    match = _TARGET.match(plain)
    if match is None or ";" in plain:
        return UNREADABLE
    target = next(name for name in match.groups() if name)
    # Names before a parenthesis: the target itself, with its columns, is none of them.
    called = functions_in(
        plain[: match.start(match.lastindex or 0)] + plain[match.end() :].lstrip().lstrip("("), dialect
    )
    return UNREADABLE if called is None else Named(writes=frozenset({_unquoted(target)}), functions=called)


def _unquoted(name: str) -> str:
    return re.sub(r'["`]', "", name)


@lru_cache(maxsize=1)
def _parser() -> Callable[[str, str], list[Any]] | None:
    """Return sqlglot's parser, if it is installed: the extra `sql`."""
    try:
        import sqlglot  # noqa: PLC0415  # its import takes 0.3 s, and most programs need none of it
    except ImportError:
        return None
    return lambda text, dialect: [tree for tree in sqlglot.parse(text, read=dialect) if tree is not None]


def _named_by(trees: list[Any]) -> Named:
    from sqlglot import exp  # noqa: PLC0415

    reads, writes, functions, sure = set[str](), set[str](), set[str](), True
    for tree in trees:
        several = {id(table) for each in tree.find_all(exp.Update, exp.Delete) for table in _joined_targets(each, exp)}
        for table in tree.find_all(exp.Table):  # the name of a CTE may be that of a table, which the CTE itself reads
            if table.name:
                name = f"{table.db}.{table.name}" if table.db else table.name
                (writes if id(table) in several or _is_target(table, exp) else reads).add(name)
        functions |= {each.name.lower() for each in tree.find_all(exp.Anonymous)}
        known = isinstance(tree, exp.Query | exp.Insert | exp.Update | exp.Delete | exp.Merge)
        sure = sure and known and not any(True for _ in tree.find_all(exp.Command))
    return Named(frozenset(reads), frozenset(writes), frozenset(functions), sure)


def _joined_targets(statement: Any, exp: Any) -> list[Any]:
    """Return the tables of MySQL's UPDATE or DELETE of several tables: each may be the one that is written."""
    first = statement.args.get("this")
    joined = first is None or first.args.get("joins") or statement.args.get("tables")
    return list(statement.find_all(exp.Table)) if joined else []


def _is_target(table: Any, exp: Any) -> bool:
    parent = table.parent
    if isinstance(parent, exp.Schema):
        table, parent = parent, parent.parent
    return isinstance(parent, exp.Insert | exp.Update | exp.Delete | exp.Merge) and parent.this is table
