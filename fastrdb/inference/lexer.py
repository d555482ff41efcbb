"""Splits SQL, and the languages of triggers and functions around SQL, into tokens. Pure.

Each database has rules of its own for quotes and comments. A text that breaks these rules is not read at all: a guess
could take the name of a table for a part of a string.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import Final, Literal, NamedTuple

BACKSLASHES: Final = "BACKSLASH_ESCAPES"
"""The mode of PostgreSQL without `standard_conforming_strings`."""
_LONGEST_NAME: Final = 63  # bytes, of PostgreSQL
_NESTED: Final = re.compile(r"/\*|\*/")

_L: Final = r"A-Za-z_\u0080-\U0010ffff"  # the letters of names
_SPACE: Final = r"[ \t\n\r\f\v]+"
_NUMBER: Final = r"\d+(?:\.(?!\.)\d*)?(?:[eE][+-]?\d+)?"
_TEXT, _ESCAPED = r"'(?:[^']|'')*+'", r"'(?:[^'\\]|''|\\.)*+'"
_DOUBLE, _DOUBLE_ESCAPED = r'"(?:[^"]|"")*+"', r'"(?:[^"\\]|""|\\.)*+"'
_BACK: Final = r"`(?:[^`]|``)*+`"
_DOLLAR: Final = rf"\$(?:[{_L}][{_L}0-9]*)?\$"
_FAMILIES: Final = {
    "postgresql": {
        "space": rf"{_SPACE}|--[^\n\r]*",
        "nested": r"/\*",
        "literal": rf"[eE]{_ESCAPED}|(?:[uU]&|[bBnNxX])?%(text)s|(?P<quote>{_DOLLAR}).*?(?P=quote)|\$\d+|{_NUMBER}",
        "name": _DOUBLE,
        "unread": rf"[uU]&\"|[eEbBnNxX]?'|\"|{_DOLLAR}",
        "word": rf"[{_L}][{_L}0-9$]*",
    },
    "mysql": {
        # What stands in /*! and */ runs; with a version, on some servers. Two dashes need a space behind.
        "space": rf"{_SPACE}|\#[^\n]*|--(?=[\x00-\x20]|\Z)[^\n]*|/\*!(?!\d)|/\*(?!M?!).*?\*/",
        "literal": "%(text)s",
        "name": f"{_BACK}|%(double)s",  # in double quotes stands a name or a text, by the mode
        "unread": r"['\"`]|/\*",
        "word": rf"[{_L}0-9$]+",
    },
    "sqlite": {
        "space": rf"{_SPACE}|--[^\n]*|/\*.*?(?:\*/|\Z)",
        "literal": rf"{_TEXT}|{_NUMBER}",
        "name": rf"{_DOUBLE}|{_BACK}|\[[^\]]*\]",
        "unread": r"['\"`]",
        "word": rf"[{_L}][{_L}0-9$]*",
    },
}


class Lexeme(NamedTuple):
    """A part of a text.

    Attributes:
        kind: a `word` without quotes, in lower case; a quoted `name`, without the quotes; a `literal`, which is not
            kept; or a `mark` of one character, or `:=`.
        text: the text itself.
        end: the place behind it.
    """

    kind: Literal["word", "name", "literal", "mark"]
    text: str
    end: int

    @property
    def is_name(self) -> bool:
        """Return True if it may be the name of something."""
        return self.kind in ("word", "name")


@lru_cache(maxsize=16)
def _pattern(family: str, escapes: bool, ansi: bool) -> re.Pattern[str]:
    double = _DOUBLE_ESCAPED if escapes and not ansi else _DOUBLE
    kinds = {"text": _ESCAPED if escapes else _TEXT, "double": double}
    groups = [f"(?P<{kind}>{pattern % kinds})" for kind, pattern in _FAMILIES[family].items()]
    return re.compile("|".join([*groups, "(?P<mark>:=|.)"]), re.DOTALL)


def tokens(text: str, dialect: str, modes: str = "") -> list[Lexeme] | None:
    """Return the tokens of a text; None if it cannot be read.

    Args:
        text: the text.
        dialect: the SQLAlchemy name of the database. Another one than its own is read as PostgreSQL.
        modes: the `sql_mode` of MariaDB and MySQL, or `BACKSLASHES`.
    """
    parts = _parts(text, dialect, modes)
    return None if parts is None else [_lexeme(kind, part, end) for kind, part, end in parts if kind != "space"]


def blanked(text: str, dialect: str) -> str | None:
    """Return a text with empty quotes for its strings and a space for each comment; None if it cannot be read."""
    parts = _parts(text, dialect, "")
    if parts is None:
        return None
    return "".join(
        " " if kind == "space" else "''" if kind == "literal" and part[-1] in "'\"$" else part
        for kind, part, _ in parts
    )


def _parts(text: str, dialect: str, modes: str) -> list[tuple[str, str, int]] | None:
    """Return the kind, the text and the end of each part; None if the text cannot be read."""
    family = "mysql" if dialect == "mariadb" else dialect if dialect in _FAMILIES else "postgresql"
    escapes = "NO_BACKSLASH_ESCAPES" not in modes if family == "mysql" else BACKSLASHES in modes
    pattern, found, at = _pattern(family, escapes, "ANSI_QUOTES" in modes), list[tuple[str, str, int]](), 0
    cuts = family == "postgresql"
    while at < len(text):
        for match in pattern.finditer(text, at):
            kind, part, at = match.lastgroup or "", match.group(), match.end()
            if kind == "unread" or (cuts and len(part) > _LONGEST_NAME // 4 and _is_cut(kind, part)):
                return None
            if kind == "nested":
                break
            found.append((kind, part, at))
        else:
            return found
        if (at := _behind(text, at)) < 0:
            return None
        found.append(("space", " ", at))
    return found


def _is_cut(kind: str, part: str) -> bool:
    """Return True for a name that PostgreSQL cuts: the text has another name than the table."""
    return kind in ("word", "name") and len(part.encode()) - 2 * (kind == "name") > _LONGEST_NAME


def _behind(text: str, at: int) -> int:
    """Return the place behind a comment that has begun before `at`, with the comments in it; -1 without an end."""
    depth = 1
    while depth and (match := _NESTED.search(text, at)) is not None:
        depth, at = depth + (1 if match.group() == "/*" else -1), match.end()
    return -1 if depth else at


def _lexeme(kind: str, part: str, end: int) -> Lexeme:
    if kind == "word":
        return Lexeme("word", part.lower(), end)
    if kind == "name":
        return Lexeme("name", part[1:-1].replace(part[-1] * 2, part[-1]), end)
    return Lexeme("literal", "", end) if kind == "literal" else Lexeme("mark", part, end)


class Call(NamedTuple):
    """A name in front of a parenthesis, or behind CALL.

    Attributes:
        name: `schema.name` or `name`, in lower case.
        before: the word in front of it.
        is_word: whether the name has neither a schema nor quotes.
    """

    name: str
    before: str
    is_word: bool


def calls(found: Sequence[Lexeme]) -> Iterator[Call]:
    """Yield all that may be a call of a function or procedure."""
    for at, token in enumerate(found):
        following = found[at + 1].text if at + 1 < len(found) else ""
        if not token.is_name or following == ".":
            continue
        first, name = at, token.text
        while first > 1 and found[first - 1].text == "." and found[first - 2].is_name:
            first -= 2
            name = f"{found[first].text}.{name}"
        before = found[first - 1].text if first and found[first - 1].kind == "word" else ""
        if following == "(" or before == "call":
            yield Call(name.lower(), before, first == at and token.kind == "word")


def attributes(found: Sequence[Lexeme]) -> frozenset[str]:
    """Return the names behind a dot, in lower case, that are no calls: columns, or functions as PostgreSQL allows."""
    return frozenset(
        token.text.lower()
        for before, token, behind in zip(found, found[1:], [*found[2:], None], strict=False)
        if before.text == "." and token.is_name and (behind is None or behind.text not in ("(", "."))
    )
