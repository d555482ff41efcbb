"""Reads the bodies of triggers, functions and views: tables that a text names, columns that a trigger sets. Pure."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from .lexer import Call, Lexeme, attributes, calls, tokens
from .text import harmless

Tables = frozenset[str] | None
"""Names of tables; None where these cannot be known."""
NO_TABLES: Final[frozenset[str]] = frozenset()
_DYNAMIC: Final = ("execute", "prepare")
CONTROL: Final = frozenset({"if", "elseif", "elsif", "while", "until", "return", "raise", "returning", "set", "do"})
"""Words of the databases' languages that may stand before a parenthesis."""
_STARTS: Final = frozenset({"", ";", ">", ".", ",", "begin", "then", "else", "loop", "set"})
"""What stands before an assignment. Elsewhere, `=` compares."""
_BEFORE, _BEHIND = frozenset({"(", ",", "from", "=", ">", ":=", "return"}), frozenset({"is", "<", "!", "="})
"""What stands beside a row that is read."""
_TARGETS: Final = ("into", "for", "foreach")
"""Words in front of a list of variables that are set."""
_RETURNED: Final = frozenset({"new", "old", "null", "coalesce", "(", ")", ","})


@dataclass(frozen=True, slots=True)
class Function:
    """The tables that a function of the database reads, and those that it writes."""

    reads: Tables = NO_TABLES
    writes: Tables = NO_TABLES


UNKNOWN_FUNCTION: Final = Function(None, None)
NO_FUNCTION: Final = Function(None, None)
"""There is no function of that name."""


def facts_in(
    body: str,
    tables: Mapping[str, Iterable[tuple[str | None, str]]],
    function: Callable[[str], Function],
    dialect: str,
    homes: Collection[str | None] | None = None,
    modes: str = "",
    of_rows: Collection[str] = (),
) -> Function:
    """Return the facts of the text of a view, trigger or function: perhaps too many tables, never too few.

    It reads each table that it may touch, since no verb is looked for. It writes what the functions write that it
    calls.

    Args:
        body: SQL, or a language around SQL.
        tables: for each name in lower case, without its schema, the schemas and names of the tables.
        function: returns the facts of a function that the text calls.
        dialect: the SQLAlchemy name of the database.
        homes: the schemas that a name without one may be in; None for any.
        modes: the modes of `tokens`.
        of_rows: functions that may be called as attributes.
    """
    found = tokens(body, dialect, modes)
    if found is None or _is_dynamic(found):
        return UNKNOWN_FUNCTION
    named, written = _tables_named(found, tables, homes), set[str]()
    of_attributes = (Call(name, "", False) for name in sorted(attributes(found).intersection(of_rows)))
    for name, before, is_word in (*calls(found), *of_attributes):
        is_table = name.rpartition(".")[2] in tables
        is_harmless = is_word and (name in CONTROL or name.upper() in harmless(dialect))
        if is_harmless or (is_table and before == "into"):
            continue
        called = function(name)
        if called is NO_FUNCTION and is_table:  # a table before its columns
            continue
        if called.reads is None or called.writes is None:
            return UNKNOWN_FUNCTION
        written |= called.writes
        named |= called.reads
    return Function(frozenset(named | written), frozenset(written))


def _tables_named(
    found: Iterable[Lexeme],
    tables: Mapping[str, Iterable[tuple[str | None, str]]],
    homes: Collection[str | None] | None,
) -> set[str]:
    words = {token.text.lower() for token in found if token.is_name}
    return {
        name
        for word in words & tables.keys()
        for schema, name in tables[word]
        if homes is None or schema in homes or (schema or "").lower() in words
    }


def columns_set_in(body: str, dialect: str, modes: str = "") -> Tables:
    """Return the columns that a trigger may set in the row that is about to be written; None for any.

    Each NEW in the text must be read, or a column of it must be set, in a way that is known here.
    """
    found = tokens(body, dialect, modes)
    if found is None or _is_dynamic(found):
        return None
    columns, targets = set[str](), _targets(found)
    loose = any(token.text == "diagnostics" for token in found)
    for at, token in enumerate(found):
        if token[:2] == ("word", "return") and not _returns_row(found, at):
            return None
        if not token.is_name or token.text.lower() != "new":
            continue
        before, behind = _text(found, at - 1), _text(found, at + 1)
        if behind == "." and _text(found, at + 2) == "*":
            continue
        end = at + 3 if behind == "." else at + 1
        assigned = _text(found, end)
        is_set = at in targets or assigned in (":=", "[", ".") or (assigned == "=" and (loose or before in _STARTS))
        if behind == ".":
            if is_set:
                columns.add(_text(found, at + 2))
        elif is_set or not (before in _BEFORE or assigned in _BEHIND):
            return None
    return frozenset(columns)


def _is_dynamic(found: Sequence[Lexeme]) -> bool:
    """Return True if a statement may be made of a literal: by EXECUTE, or by DO."""
    return any(
        token.kind == "word" and (token.text in _DYNAMIC or (token.text == "do" and _begins_block(found, at + 1)))
        for at, token in enumerate(found)
    )


def _begins_block(found: Sequence[Lexeme], at: int) -> bool:
    return at < len(found) and (found[at].kind == "literal" or found[at].text == "language")


def _text(found: Sequence[Lexeme], at: int) -> str:
    return found[at].text if 0 <= at < len(found) else ""


def _targets(found: Sequence[Lexeme]) -> set[int]:
    """Return the places of what INTO and FOR set, and of all that CALL is given, which may set it."""
    places = set[int]()
    for at, token in enumerate(found):
        if token.kind == "word" and token.text in _TARGETS:
            places.update(_listed(found, at + 1))
        elif token[:2] == ("word", "call"):
            places.update(_rest(found, at))
    return places


def _rest(found: Sequence[Lexeme], at: int) -> range:
    """Return the places from `at` to the end of the statement."""
    return range(at, next((end for end in range(at, len(found)) if found[end].text == ";"), len(found)))


def _listed(found: Sequence[Lexeme], at: int) -> Iterator[int]:
    """Yield the places of the variables in a list that begins at this place."""
    more = True
    while more:
        while _text(found, at) in ("strict", "@", ":"):
            at += 1
        yield at
        at += 1
        while _text(found, at) == ".":
            yield at + 1
            at += 2
        if _text(found, at) == "[":  # an element of an array, and whatever follows
            yield from _rest(found, at)
        more, at = _text(found, at) == ",", at + 1


def _returns_row(found: Sequence[Lexeme], at: int) -> bool:
    """Return True if RETURN at this place gives the row, the row before, or none."""
    return all(found[place].text in _RETURNED for place in _rest(found, at + 1))
