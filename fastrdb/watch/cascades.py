"""The images of changed rows, and of the rows that foreign keys change: MariaDB's triggers and log omit these."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

from fastrdb.inference import Catalog, Change, Spread
from fastrdb.keys import Image

from .source import ROWS_NAMED, texts

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from fastrdb.inference import Verb

_NO_TABLES: Final[frozenset[str]] = frozenset()
_TOGETHER: Final = 8
"""The most rows in one image. With more values, an invalidation would name the whole table."""


@dataclass(frozen=True, slots=True)
class Row:
    """One changed row: the values of its reported columns before and after. None stands for any rows of the table."""

    kind: Verb
    table: str
    before: Mapping[str, Any] | None
    after: Mapping[str, Any] | None


class Cascades:
    """The foreign keys of one database, read table by table, and kept until `forget`."""

    def __init__(self) -> None:
        self._catalog: Catalog | None = None

    def forget(self) -> None:
        """Drop the foreign keys that were read, since any may have changed."""
        self._catalog = None

    def images(self, connection: Connection, rows: Iterable[Row]) -> list[Image]:
        """Return the images of changed rows, and of the rows that the database changes because of these."""
        groups: dict[tuple[str, Verb], list[Row]] = {}
        for row in rows:
            groups.setdefault((row.table, row.kind), []).append(row)
        found: list[Image] = []
        for (table, kind), members in groups.items():
            parents = self._parents(connection, table)
            size = _TOGETHER if len(members) <= ROWS_NAMED else len(members)
            for start in range(0, len(members), size):
                change = _change(kind, table, members[start : start + size], parents)
                found += Spread(lambda name: self._facts(connection, name), {}).of(change)
        return [Image(each.table, each.columns or None) for each in found]

    def _facts(self, connection: Connection, table: str) -> Any:
        if self._catalog is None:  # only now: a dialect has its default schema after the first connection
            self._catalog = Catalog(connection.dialect)
        facts = self._catalog.facts(connection, table)
        if facts.reads is None:  # the database has not answered
            return facts
        # Rows that triggers write are recorded as changes of their own, and values are those that the table has got.
        return replace(facts, writes=_NO_TABLES, changes=_NO_TABLES)

    def _parents(self, connection: Connection, table: str) -> set[str]:
        links = self._facts(connection, table).links
        return {link.parent_column for link in links if link.parent_column is not None}


def _change(kind: Verb, table: str, rows: Sequence[Row], parents: Iterable[str]) -> Change:
    """Return one change for all rows.

    More rows than `ROWS_NAMED` count as any rows. A column of `parents` that is not reported counts as changed.
    """
    change = Change(kind, table)
    sides = [side for row in rows for side in _sides(row)]
    whole = len(rows) > ROWS_NAMED or any(side is None for side in sides)
    known = [side for side in sides if side is not None]
    reported = set.intersection(*map(set, known)) if len(known) == len(sides) else set[str]()
    for column in reported:
        if kind == "update" and any(
            row.before[column] != row.after[column] for row in rows if row.before and row.after
        ):
            change.new[column] = None if whole else texts(row.after[column] for row in rows if row.after)
        if whole:
            continue
        if kind == "insert":
            change.new[column] = texts(side[column] for side in known)
        elif (before := texts(row.before[column] for row in rows if row.before)) is not None:
            change.old[column] = before
    if kind == "update":
        change.new.update(dict.fromkeys(set(parents) - reported))
    return change


def _sides(row: Row) -> tuple[Mapping[str, Any] | None, ...]:
    if row.kind == "update":
        return row.before, row.after
    return (row.before,) if row.kind == "delete" else (row.after,)
