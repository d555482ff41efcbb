"""The tables and functions that hand-written SQL names. Pure.

Without the package sqlglot, a text is not taken apart: a query may read anything, and of a write only a plain target
(`UPDATE orders SET ...`) is found.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any, Final

from .lexer import Lexeme, attributes, calls, tokens

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
_MORE_WORDS = (
    "AGAINST CHECK CONFLICT CUBE DO FETCH INCLUDE INDEX MATCH ORDINALITY PRIMARY REFERENCES RETURNING ROLLUP SET TIME "
    "TIMESTAMP UNIQUE VARYING"
)
SYNTAX: Final = HARMLESS.union(_MORE_WORDS.split())
"""These, and words that are nothing else where the database has no function of that name."""
_KEYWORDS = (
    "all and as between case char cross decimal distinct else exists from group having in interval is join lateral "
    "like limit not numeric on or order select then union using values varchar when where with"
)
_RESERVED: Final = frozenset(_KEYWORDS.split())
"""Words that no function of any database has for a name, unless in quotes."""
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
_READS: Final = frozenset({"select", "from", "join", "table", "using"})
_DML: Final = frozenset({"insert", "update", "delete", "replace", "merge"})
_INSIDE: Final = frozenset({"or", "do", "key", "for"})
"""Words before one of these that is a part of a statement, or a lock."""
_BEFORE_NAME: Final = frozenset({"into", "as", "with", "recursive"})
"""Words before the name of a table, an alias or a CTE, and its columns."""
_MODIFIERS: Final = frozenset({"low_priority", "high_priority", "delayed", "ignore"})
"""Words of MariaDB and MySQL behind the verb of a write, which sqlglot takes for the name of the table."""
_EXECUTED: Final = ("/*!", "/*M!")
"""The beginnings of comments that MariaDB and MySQL execute."""
_NAME = r'((?:[\w$]+|"[^"]+")(?:\.(?:[\w$]+|"[^"]+"))?)'
_TARGET = re.compile(
    rf"\s*(?:INSERT\s+(?:OR\s+\w+\s+|IGNORE\s+)?INTO\s+{_NAME}|REPLACE\s+INTO\s+{_NAME}"
    rf"|UPDATE\s+(?:ONLY\s+)?{_NAME}\s+(?:(?:AS\s+)?(?!SET\b)\w+\s+)?SET\b|DELETE\s+FROM\s+(?:ONLY\s+)?{_NAME})",
    re.IGNORECASE,
)
_PLACES: Final = re.compile(r"__\[SCHEMA_[^\]]*\]\.?|%\(\w+\)s")
"""The places of schemas and of parameters in a compiled statement."""
_DIALECTS = {"postgresql": "postgres", "mariadb": "mysql"}


@dataclass(frozen=True, slots=True)
class Named:
    """The tables that a text names, as `schema.table` or `table`, and the functions that it calls.

    `sure` is False where the text may touch other tables than these. `attributes` are the names behind a dot.
    """

    reads: frozenset[str] = frozenset()
    writes: frozenset[str] = frozenset()
    functions: frozenset[str] = frozenset()
    sure: bool = True
    attributes: frozenset[str] = frozenset()


UNREADABLE: Final = Named(sure=False)


@lru_cache(maxsize=16)
def harmless(dialect: str) -> frozenset[str]:
    """Return the words and functions that neither read nor write a table in a database of this SQLAlchemy name."""
    return HARMLESS - _LACKS.get("mysql" if dialect == "mariadb" else dialect, frozenset())


def functions_in(text: str, dialect: str) -> frozenset[str] | None:
    """Return the functions, in lower case, that a text may call; None if it cannot be read."""
    found = tokens(text, dialect)
    return None if found is None else called_in(found)


def called_in(found: Sequence[Lexeme], names: Iterable[str] = ()) -> frozenset[str]:
    """Return the functions, in lower case, that a text may call.

    `names` are those of CTEs, aliases and tables that stand in front of a parenthesis, each as often as it does.
    """
    called, placed, others = Counter[str](), Counter[str](), Counter(name.lower() for name in names)
    for name, before, is_word in calls(found):
        if not (is_word and name in _RESERVED):
            called[name] += 1
            placed[name] += before in _BEFORE_NAME
    return frozenset(name for name, count in called.items() if count > max(placed[name], others[name]))


def sent(compiled: Any) -> tuple[list[Lexeme], frozenset[str]] | None:
    """Return the tokens of a compiled statement, and the functions that it may call; None if it cannot be read.

    What is sent has all that its elements do not show: the functions of types, prefixes, hints, and operators.
    """
    dialect, ctes = compiled.dialect.name, getattr(compiled, "ctes", None) or {}
    found = tokens(_PLACES.sub(" ", compiled.string), dialect)
    if found is None:
        return None
    return found, called_in(found, [each[0].text for text in ctes.values() if (each := tokens(text, dialect))])


def reads_nothing(fragment: str, dialect: str) -> bool:
    """Return True for a fragment of an expression in which no table can be read, save by a function."""
    found = tokens(fragment, dialect)
    if found is None or _hides_table(found, dialect):
        return False
    return not any(token.kind == "word" and token.text in _READS for token in found)


def _hides_table(found: Sequence[Lexeme], dialect: str) -> bool:
    """Return True if a table stands behind IN, as SQLite permits."""
    pairs = pairwise(found) if dialect == "sqlite" else ()
    return any(one[:2] == ("word", "in") and other.kind != "mark" for one, other in pairs)


@lru_cache(maxsize=512)
def named_in(text: str, dialect: str) -> Named:
    """Return what a whole statement of hand-written SQL names."""
    found = tokens(text, dialect)
    if found is None or _hides_table(found, dialect):
        return UNREADABLE
    if dialect in ("mysql", "mariadb"):
        if any(begin in text for begin in _EXECUTED):
            return UNREADABLE
        text, found = _without_modifiers(text, found)
    parse = _parser()
    if parse is not None:
        with suppress(Exception):  # sqlglot's own, of many kinds: the text is then read as without it
            named = _named_by(parse(text, _DIALECTS.get(dialect, dialect)), found)
            if named.sure:
                return named
    return _plain_target(found)


def _without_modifiers(text: str, found: Sequence[Lexeme]) -> tuple[str, list[Lexeme]]:
    kept, is_behind = list[Lexeme](), False
    for token in found:
        if is_behind and token.kind == "word" and token.text in _MODIFIERS:
            start = token.end - len(token.text)
            text = f"{text[:start]}{' ' * len(token.text)}{text[token.end :]}"
        else:
            kept.append(token)
            is_behind = token.kind == "word" and token.text in (*_DML, "quick")
    return text, kept


def _plain_target(found: Sequence[Lexeme]) -> Named:
    """Return the target of a plain INSERT, REPLACE, UPDATE or DELETE."""
    plain = " ".join(map(_written, found)).replace(" . ", ".").strip(" ;")
    match = _TARGET.match(plain)
    if match is None or ";" in plain or _writes_more(found):
        return UNREADABLE
    target = next(name for name in match.groups() if name)
    return Named(writes=frozenset({target.replace('"', "")}), functions=called_in(found))


def _written(token: Lexeme) -> str:
    return f'"{token.text}"' if token.kind == "name" else token.text or "''"


def _writes_more(found: Sequence[Lexeme]) -> bool:
    """Return True if another statement that writes is a part of this one."""
    for at, token in enumerate(found[1:], 1):
        called = at + 1 < len(found) and found[at + 1].text == "("
        if token.kind == "word" and token.text in _DML and not called and found[at - 1].text not in _INSIDE:
            return True
    return False


@lru_cache(maxsize=1)
def _parser() -> Callable[[str, str], list[Any]] | None:
    """Return sqlglot's parser, if it is installed: the extra `sql`."""
    try:
        import sqlglot  # noqa: PLC0415  # its import takes 0.3 s, and most programs need none of it
    except ImportError:
        return None
    return lambda text, dialect: [tree for tree in sqlglot.parse(text, read=dialect) if tree is not None]


def _named_by(trees: list[Any], found: Sequence[Lexeme]) -> Named:
    from sqlglot import exp  # noqa: PLC0415

    reads, writes, placed, sure = set[str](), set[str](), list[str](), True
    for tree in trees:
        several = {id(table) for each in tree.find_all(exp.Update, exp.Delete) for table in _joined_targets(each, exp)}
        for table in tree.find_all(exp.Table):  # the name of a CTE may be that of a table, which the CTE itself reads
            if table.name:
                name = f"{table.db}.{table.name}" if table.db else table.name
                (writes if id(table) in several or _is_target(table, exp) else reads).add(name)
                placed += [name] if isinstance(table.parent, exp.Schema) else []
        placed += [each.name for each in tree.find_all(exp.TableAlias) if each.columns]
        known = isinstance(tree, exp.Query | exp.Insert | exp.Update | exp.Delete | exp.Merge)
        sure = sure and known and not any(True for _ in tree.find_all(exp.Command))
    return Named(frozenset(reads), frozenset(writes), called_in(found, placed), sure, attributes(found))


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
