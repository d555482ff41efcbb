"""Tags: the rows that an entry depends on, and the names by which a write reaches tags. Pure.

A tag is `table\\0` (any row of the table) or `table:column=value\\0` (the rows that have this value). A write reaches
tags by names: each name is a literal prefix of the tags that it reaches, and names nest. `""` reaches everything,
`table:` all rows of a table that are named by a value, `table:column=` all values of a column. Tables, columns and
values are percent-encoded, so none of them contains `\\0`, `:` or `=`, and no two of them share a tag.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import date, datetime
from enum import Enum
from hashlib import blake2b
from typing import Any, Final
from uuid import UUID

from .encoding import forms_of, quote
from .pattern import DIGEST_MARK, SEALED, Seal

END: Final = "\0"
"""The last character of each tag: `users` is no prefix of `users_old`, nor is the value 1 one of 10."""
ANYTHING: Final = f"*{END}"
"""The tag of an entry that depends on any row of any table. Each write reaches it; no table's name has a `*`."""
EVERYTHING: Final = ""
"""The name of a write to unknown tables: the empty prefix of every tag."""
_WIDE: Final = 10**60
_MOST_BYTES: Final = 64
"""A longer text of a value is replaced by its digest, so that members of the sorted sets stay small."""
_DIGEST_BYTES: Final = 16
_MARK_DIGITS: Final = 8
_TAGGABLE: Final = (str, bool, int, UUID, date, Enum, type(None))
"""Types whose values are equal in the database when their texts are: no fractions, and no times, which are rounded."""

_ASKED = re.compile(r"(?s)([^:=]+?)(?: \(any row\)|(?: where |:)([^=]+?)(?: = |=)(.*))?")
_ENDS = re.compile("[\0:]")  # of a table's name

_Columns = Mapping[str, frozenset[str] | None]


def value_text(value: Any) -> str | None:
    """Return the text of a value inside of a tag; None if values of its type have no tag.

    Values that are equal have one text, whatever their types: `5`, `True` for `1`, and the text `"5"`.
    """
    if type(value) is int and -_WIDE < value < _WIDE:  # a miss that is followed pays for this
        return f"{value}"
    if type(value) is str and len(text := quote(value)) <= _MOST_BYTES // 4:
        return text
    if not isinstance(value, _TAGGABLE) or isinstance(value, datetime):
        return None
    texts = (quote(value),) if type(value) is str else forms_of(value)
    if not texts:  # a member of an enum whose value is a container
        return None
    if len(texts[0]) <= _MOST_BYTES // 4 or len(raw := texts[0].encode()) <= _MOST_BYTES:
        return texts[0]
    return f"{DIGEST_MARK}{blake2b(raw, digest_size=_DIGEST_BYTES).hexdigest()}"


def table_tag(table: str) -> str:
    """Return the tag of any row of a table; `table` is its name or `schema.name`, in any case of letters."""
    return f"{_name(table)}{END}"


def row_tag(table: str, column: str, value: Any) -> str | None:
    """Return the tag of the rows with this value in a column; None if values of its type have no tag."""
    text = value_text(value)
    return None if text is None else f"{_name(table)}:{_name(column)}={text}{END}"


def hiding(seal: Seal | None) -> Callable[[str], str]:
    """Return what writes a tag or a name for Redis: with a secret, values are replaced by their hashes.

    The column gets a mark of the secret. A writer without the secret does not name such a column, and so reaches all of
    its values. What is hidden already stays as it is.
    """
    if seal is None:
        return str
    mark = seal("")[: len(SEALED) + _MARK_DIGITS]

    def hide(name: str) -> str:
        column, is_row, text = name.partition("=")
        if not is_row or SEALED in column:
            return name
        return f"{column}{mark}={seal(text.removesuffix(END))}{END}" if text else f"{column}{mark}="

    return hide


def asked(text: str) -> tuple[str, ...]:
    """Return what the tags begin with that a person means: `users`, `users:id=5`, or `users where id = 5`.

    Names and values may be plain, and in the form of tags: a secret's hash has no other form.
    """
    found = _ASKED.fullmatch(text)
    if found is None:
        return (f"{text}{END}",)
    table, column, value = found.groups()
    if column is None:
        return tuple(f"{each}{end}" for each in dict.fromkeys((table, _name(table))) for end in (END, ":"))
    rows = dict.fromkeys((f"{table}:{column}", f"{_name(table)}:{_name(column)}"))
    return tuple(f"{row}={each}{END}" for row in rows for each in dict.fromkeys((value, value_text(value))))


def shown(name: str) -> str:
    """Return a name of a table or column in a tag without the mark of a secret."""
    return name.partition(SEALED)[0]


@dataclass(frozen=True, slots=True)
class Image:
    """The rows that a write has changed, and what is known of their values.

    Attributes:
        table: its name or `schema.name`; None if the tables are unknown.
        columns: for each column the texts of its values before and after the write, as `value_text` returns them; None
            for a column whose values are unknown. A column that is missing here is unknown, too. Instead of the
            mapping, None: any rows of the table.
    """

    table: str | None
    columns: _Columns | None = None

    def names(self, in_use: Iterable[str] | None = None) -> list[str]:
        """Return the names of what the write reaches, each once.

        Args:
            in_use: the columns of this table that some entry is tagged by, where the caller has them. Without them,
                the columns of the image: the scripts in Redis add those that are in use and not named.
        """
        if self.table is None:
            return [EVERYTHING]
        table = _name(self.table)
        if self.columns is None:
            return [ANYTHING, f"{table}{END}", f"{table}:"]
        known = {_name(column): texts for column, texts in self.columns.items()}
        found = [ANYTHING, f"{table}{END}"]
        for column in known if in_use is None else dict.fromkeys(map(_name, in_use)):
            texts = known.get(column)
            head = f"{table}:{column}="
            found += [head] if not texts else [f"{head}{text}{END}" for text in sorted(texts)]
        return found

    def hits(self, tag: str) -> bool:
        """Return True if the write may have changed what an entry with this tag holds."""
        if self.table is None or tag == ANYTHING:
            return True
        table, _, row = tag.removesuffix(END).partition(":")
        if table != _name(self.table):
            return False
        if self.columns is None or not row:
            return True
        column, _, text = row.partition("=")
        texts = next((texts for each, texts in self.columns.items() if _name(each) == column), None)
        return not texts or text in texts


class Reach:
    """The names of all that the writes of one transaction reach. Many of them become names of whole tables.

    A column is named as a whole if its values are known of one write of a table and unknown of another.
    """

    __slots__ = ("names", "_columns", "_hide", "_most")

    def __init__(self, images: Iterable[Image] = (), *, most: int = 64, hide: Callable[[str], str] = str) -> None:
        self.names: dict[str, None] = {}
        self._hide = hide
        self._columns: dict[str, set[str]] = {}
        self._most = most
        for image in images:
            self.add(image)

    def add(self, image: Image) -> None:
        """Add what one write reaches."""
        if EVERYTHING in self.names:
            return
        table = "" if image.table is None else _name(image.table)
        if f"{table}:" in self.names:
            return
        self.names.update(dict.fromkeys(map(self._hide, image.names())))
        if image.columns is not None and table:
            columns = {_name(column) for column in image.columns}
            known = self._columns.setdefault(table, columns)
            unknown = (f"{table}:{column}=" for column in sorted(known ^ columns))
            self.names.update(dict.fromkeys(map(self._hide, unknown)))
            known |= columns
        if len(self.names) > self._most:
            self.names = dict.fromkeys(bounded(self.names, self._most))

    def add_names(self, names: Iterable[str]) -> None:
        """Add names that are known already: of columns that are in use, as Redis has them."""
        self.names.update(dict.fromkeys(names))

    def rows(self) -> dict[str, list[str]]:
        """Return `table:` for each table that is reached by rows and not as a whole, with `table:column` of each name.

        Columns of these tables that are in use and not among them are unknown.
        """
        found: dict[str, list[str]] = {}
        if EVERYTHING not in self.names:
            found = {f"{table}:": [] for table in self._columns if f"{table}:" not in self.names}
        for column in dict.fromkeys(name.partition("=")[0] for name in self.names if "=" in name):
            found.get(f"{column.partition(':')[0]}:", []).append(column)
        return found

    def coarse(self) -> list[str]:
        """Return names that reach all tables of `names` as a whole: what needs no look at the columns in use."""
        return list(dict.fromkeys([*self.names, *self.rows()]))


def bounded(names: Collection[str], most: int) -> list[str]:
    """Return at most `most` names that reach all that `names` reach, and more where there are too many names.

    The table with the most names is named as a whole first; where even the tables are too many, everything is named.
    """
    found = dict.fromkeys(names)
    while len(found) > most:
        tables: dict[str, list[str]] = {}
        for name in found:
            tables.setdefault(_ENDS.split(name)[0], []).append(name)
        table, widest = max(tables.items(), key=lambda each: len(each[1]))
        if len(widest) <= 2:
            return [EVERYTHING]
        for name in widest:
            del found[name]
        found |= dict.fromkeys((f"{table}{END}", f"{table}:"))
    return list(found)


def _name(text: str) -> str:
    return quote(text.lower())
