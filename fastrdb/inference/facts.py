"""The facts that a database's catalog has of a table, what reads these, and the images that follow."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final, Protocol

from sqlalchemy import Connection

from fastrdb.keys import Image, value_text

from .bodies import NO_TABLES, Function, Tables
from .names import Names, names_in
from .writes import Change, Verb

_NULL: Final = frozenset({value_text(None) or ""})
_ACTS: Final[Mapping[Verb, tuple[Verb, ...]]] = {
    "insert": (),
    "upsert": ("update",),
    "update": ("update",),
    "delete": ("delete",),
    "any": ("update", "delete"),
}
"""The actions of a foreign key (ON UPDATE, ON DELETE) that a write of each kind may trigger."""


@dataclass(frozen=True, slots=True)
class Link:
    """A foreign key with an action: a column of another table that points to this one."""

    child: str
    child_column: str | None  # None for a key of several columns
    parent_column: str | None
    on_delete: str
    on_update: str

    @classmethod
    def of(cls, name: str, columns: tuple[str, str | None], size: int, actions: tuple[str, str]) -> Link:
        """Return the link of a key of `size` columns, the first of which are given."""
        child, parent = columns if size == 1 else (None, None)
        return cls(name, child, parent, *actions)


@dataclass(frozen=True, slots=True)
class Facts:
    """The facts about one table.

    Attributes:
        reads: the other tables that a query of this one reads: those under a view, or of row-level security.
        writes: the other tables that a write to this one writes: those of its triggers, or under a view.
        relatives: the tables that hold the same rows: its partitions, and the table that it is a partition of.
        changes: generated columns, and those that triggers set before a row is written; None if unknown.
        links: the foreign keys that point to it.
        may_lock: a SELECT ... FOR UPDATE of the table is allowed (see `look`).
    """

    reads: Tables = NO_TABLES
    writes: Tables = NO_TABLES
    relatives: frozenset[str] = NO_TABLES
    changes: Tables = NO_TABLES
    links: tuple[Link, ...] = ()
    may_lock: bool = True


def merged(found: Iterable[Facts]) -> Facts:
    """Return the facts of tables that have one name."""
    every = list(found)
    return Facts(
        reads=joined(each.reads for each in every),
        writes=joined(each.writes for each in every),
        relatives=NO_TABLES.union(*(each.relatives for each in every)),
        changes=joined(each.changes for each in every),
        links=tuple(link for each in every for link in each.links),
        may_lock=all(each.may_lock for each in every),
    )


UNKNOWN_TABLE: Final = Facts(reads=None, writes=None, changes=None, may_lock=False)


def joined(parts: Iterable[Tables]) -> Tables:
    """Return the union of these sets of tables; None if one is unknown."""
    found = set[str]()
    for part in parts:
        if part is None:
            return None
        found |= part
    return frozenset(found)


class Asker(Protocol):
    """The catalog, from which a source reads further facts."""

    @property
    def known_names(self) -> Names:
        """The rules for names."""
        ...

    def facts(self, connection: Connection, table: str) -> Facts:
        """Return the facts of a table."""
        ...

    def function(self, connection: Connection, name: str) -> Function:
        """Return the facts of a function."""
        ...

    def of_text(
        self, connection: Connection, body: str, homes: Collection[str | None] | None = None, modes: str = ""
    ) -> Function:
        """Return the facts of the text of a view, trigger or function."""
        ...

    def named_in(
        self, connection: Connection, body: str, homes: Collection[str | None] | None = None, modes: str = ""
    ) -> Tables:
        """Return the tables that the text of a view, trigger or function may touch."""
        ...


class Source(ABC):
    """The queries of one kind of database."""

    def __init__(self, catalog: Asker) -> None:
        self.catalog = catalog
        self.attributes = frozenset[str]()  # functions that a statement may call as if these were columns
        self.unnamed = frozenset[str]()  # functions that a statement may call without their names

    def names(self, connection: Connection) -> Names | None:
        """Read the rules for names; None if the connection has others. Errors of the database are raised."""
        return names_in(connection.dialect)

    @abstractmethod
    def facts(self, connection: Connection, table: str) -> Facts:
        """Read the facts of a table. Errors of the database are raised."""

    @abstractmethod
    def function(self, connection: Connection, name: str) -> Function:
        """Read the facts of a function. Errors of the database are raised."""

    @abstractmethod
    def tables(self, connection: Connection) -> Iterable[tuple[str, str]]:
        """Read the schemas and names of all tables and views. Errors of the database are raised."""

    def name(self, schema: str | None, table: str) -> str:
        """Return the name as tags have it."""
        return self.catalog.known_names.joined(schema, table)

    def through(self, connection: Connection, tables: Tables) -> Tables:
        """Return these tables, and the tables that the views among them read."""
        if tables is None:
            return None
        return joined([tables, *(self.catalog.facts(connection, each).reads for each in sorted(tables))])


def links_of(table: Any, name_of: Callable[[Any], str]) -> tuple[Link, ...]:
    """Return the foreign keys with an action that the table's metadata declares."""
    found = []
    for child in table.metadata.tables.values():
        for key in child.foreign_key_constraints:
            if key.referred_table is table and (key.ondelete or key.onupdate):
                single = key.elements[0] if len(key.elements) == 1 else None
                one, other = (single.parent.name, single.column.name) if single is not None else (None, None)
                found.append(Link(name_of(child), one, other, key.ondelete or "", key.onupdate or ""))
    return tuple(found)


# --- from a change to everything that it reaches


class Spread:
    """The images of one change: its own, and those of all that the database writes because of it.

    Args:
        facts: returns what the catalog has of a table.
        effects: by table, the other tables that a write to it writes, as the user has declared.
    """

    def __init__(self, facts: Callable[[str], Facts], effects: Mapping[str, frozenset[str]]) -> None:
        self._facts, self._effects = facts, effects
        self._seen: set[tuple[str, Verb]] = set()
        self._whole: set[tuple[str, Verb, frozenset[str]]] = set()  # carried on, as writes to any rows

    def of(self, change: Change) -> Iterator[Image]:
        """Yield the images; one without a table means that anything may have changed."""
        facts = self._facts(change.table)
        if change.empty and facts.writes == NO_TABLES and change.table.lower() not in self._effects:
            return
        _distrust(change, facts.changes)
        yield from self._of(change.image(), change.kind, frozenset(change.new), facts)

    def _of(self, image: Image, kind: Verb, changed: frozenset[str], facts: Facts) -> Iterator[Image]:
        table = image.table or ""
        yield image
        self._seen.add((table, kind))
        for relative in facts.relatives:
            yield Image(relative, image.columns)
        besides, declared = facts.writes, self._effects.get(table.lower())
        if declared is not None:
            besides = declared | (besides or NO_TABLES)  # it stands for what cannot be read, and for no more
        if besides is None:
            yield Image(None)
            return
        for name in sorted(besides):
            if (name, "any") not in self._seen:  # the table itself included, whose trigger may write other rows
                yield from self._of(Image(name), "any", NO_TABLES, self._facts(name))
        for link in facts.links:
            for verb in _ACTS[kind]:
                yield from self._linked(link, image, verb, changed)

    def _linked(self, link: Link, image: Image, kind: Verb, changed: frozenset[str]) -> Iterator[Image]:
        """Yield the images of what a foreign key does to the child table after an update or a delete."""
        action = (link.on_delete if kind == "delete" else link.on_update).upper()
        parent = link.parent_column
        follows = kind == "delete" or image.columns is None or parent is None or parent in changed
        if action not in ("CASCADE", "SET NULL", "SET DEFAULT") or not follows:
            return
        deleted = kind == "delete" and action == "CASCADE"
        below: Verb = "delete" if deleted else "update"
        changes = NO_TABLES if deleted or link.child_column is None else frozenset({link.child_column})
        texts = (image.columns or {}).get(parent or "")
        child = Image(link.child)
        # In a circle, or by a second way, foreign keys reach other rows of the child: from there on, any row.
        if (link.child, below) not in self._seen and texts and link.child_column and action != "SET DEFAULT":
            child = Image(link.child, {link.child_column: texts if action == "CASCADE" else texts | _NULL})
        elif (link.child, below, changes) in self._whole:
            return
        else:
            self._whole.add((link.child, below, changes))
        yield from self._of(child, below, changes, self._facts(link.child))


def _distrust(change: Change, columns: Tables) -> None:
    """Forget the new values of columns that a trigger may have set to others."""
    if change.kind == "delete":
        return
    if columns is None:
        change.whole = True
        return
    change.new.update(dict.fromkeys(columns))
    names = {column.lower() for column in columns}  # a trigger may write them in another case of letters
    for column in {*change.new, *change.old, *change.looked}:
        if column.lower() in names:
            change.new[column] = None
