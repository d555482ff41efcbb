"""The interface between the watcher and a database that any program may write to."""

from __future__ import annotations

import asyncio
import random
import re
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy.exc import DBAPIError

from fastrdb.errors import OptionError
from fastrdb.keys import Image, value_text

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

Images = Callable[[Sequence[Image]], Awaitable[None]]
ROWS_NAMED: Final = 64
"""More rows of one statement are reported as any row of the table."""
COLUMNS_NAMED: Final = 40
_PLAIN_UUID: Final = re.compile(r"[0-9a-f]{32}", re.IGNORECASE)
_ENDLESS: Final = {"infinity": str(date.max), "-infinity": str(date.min)}
_LOCKED: Final = frozenset({"55P03", "40P01", 1205, 1213})
"""Errors of PostgreSQL and MariaDB: a lock is not free, or two transactions wait for each other."""
_TRIES: Final = 40
_LONGEST_PAUSE_S: Final = 1.0


class NotInstalledError(OptionError):
    """Error of a database that records no changes, or no longer: `install` mends that, also under a running watcher."""


@dataclass(frozen=True, slots=True)
class Poll:
    """The result of one poll.

    Attributes:
        position: where the next poll begins.
        found: the number of changes.
        lost: why changes may be missing, so that everything is invalidated; empty if none is missing.
    """

    position: str
    found: int = 0
    lost: str = ""


@dataclass(slots=True)
class Status:
    """The state of watching: the tables, and how far the watcher is behind.

    Attributes:
        installed: whether the tables of the watcher are there.
        watched: the tables that have triggers.
        unwatched: the tables that have none, or whose triggers do not fire, each with the reason.
        missing_columns: columns that entries are tagged by and triggers do not report; a change of one counts as a
            change of any value.
        way: how changes are read.
        waiting: the number of changes that no poll has read yet; None where that is unknown.
        leader: a description of the watcher that leads, None if there is none.
        notes: other findings, each with what to do.
    """

    installed: bool = False
    watched: list[str] = field(default_factory=list)
    unwatched: dict[str, str] = field(default_factory=dict)
    missing_columns: list[str] = field(default_factory=list)
    way: str = ""
    waiting: int | None = None
    leader: str | None = None
    notes: list[str] = field(default_factory=list)


class ChangeSource(ABC):
    """A database whose changes are read by position. One watcher leads; others wait.

    All methods may be repeated, and raise the database's errors. After one, or a cancellation: `close`, then `lead`.
    """

    name: str
    """The database, as the watcher's keys in Redis name it: see `named`."""

    @abstractmethod
    async def install_sql(self, tables: Collection[str] = (), columns: Iterable[str] = ()) -> list[str]:
        """Return the statements that make the database record its changes. All may be run again.

        Args:
            tables: `name` or `schema.name`; all tables of the default schema if empty.
            columns: `table:column` for the columns that entries are tagged by, besides keys and indexed columns.

        Raises:
            OptionError: a table that does not exist, or a setting of the database that permits no watching.
        """

    @abstractmethod
    async def uninstall_sql(self) -> list[str]:
        """Return the statements that remove what `install_sql` made. All may be run again."""

    @abstractmethod
    async def run(self, statements: Sequence[str]) -> None:
        """Execute statements of `install_sql` or `uninstall_sql`, in one transaction if the database can."""

    @abstractmethod
    async def lead(self, namespace: str = "") -> bool:
        """Take the lead if it is free, and return whether this watcher leads: until `close`, or a lost connection.

        Args:
            namespace: of the cache. Only watchers of the same namespace wait for the lead.

        Raises:
            NotInstalledError: nothing is installed, and a setting permits no watching without.
            OptionError: the outbox is read for another namespace.
        """

    @abstractmethod
    async def poll(self, position: str | None, images: Images) -> Poll:
        """Pass all changes that were committed since `position` to `images`, and return the position behind them.

        Each change is passed at least once: after an error or a cancellation, poll again from the same position.

        Args:
            position: what the last poll returned; None to begin now, which reports a loss.
            images: called with some changes at a time.
        """

    async def mark(self, position: str) -> None:  # noqa: B027  # only an outbox has a mark
        """Mark the record of changes as whole from `position` on, after everything was invalidated."""

    @abstractmethod
    async def clean(self, position: str) -> None:
        """Delete recorded changes before the position that no poll needs any more."""

    @abstractmethod
    async def status(self, position: str | None, columns: Iterable[str] = (), namespace: str = "") -> Status:
        """Return what is watched. The arguments are those of `poll`, `install_sql` and `lead`."""

    @abstractmethod
    async def close(self) -> None:
        """Close the connection, which ends the lead."""


def loss(expected: str | None, found: str | None) -> str:
    """Return why changes since a position may be missing; empty if all are in the outbox.

    A mark is `name/turn`, the identity of an outbox at a position. The name is random, or has facts that no copy
    shares. The turn grows as changes are read: a backup has an earlier one.

    Args:
        expected: the mark of the position; None without one. One without a slash is of an earlier version.
        found: the mark that the outbox has there now; None if it has none.
    """
    if expected is None or "/" not in expected:
        return "there is no position of an earlier poll"
    if found is None:
        return "the outbox was emptied, or is older than the last poll (a crash, a failover, TRUNCATE, a backup)"
    if expected.rpartition("/")[0] != found.rpartition("/")[0]:
        return "the outbox is another one than at the last poll (a restore, a copy), or was read for another namespace"
    return "the database is older than at the last poll" if turn_of(found) < turn_of(expected) else ""


async def execute(connection: AsyncConnection, statement: str) -> None:
    """Execute a statement of an installation, and again while a lock is not free. Raises the last error of many.

    Each try waits for a short time only: meanwhile, writers of the table wait behind.
    """
    if connection.dialect.paramstyle.endswith("format"):  # such drivers look for parameters, also where there are none
        statement = statement.replace("%", "%%")
    for left in reversed(range(_TRIES)):
        try:
            await connection.exec_driver_sql(statement)
        except DBAPIError as error:
            codes = {getattr(error.orig, "sqlstate", None), *getattr(error.orig, "args", ())[:1]}
            if not left or codes.isdisjoint(_LOCKED):
                raise
            await asyncio.sleep(random.uniform(0, _LONGEST_PAUSE_S))
        else:
            return


def turn_of(mark: str) -> int:
    """Return the turn of a mark: see `loss`."""
    turn = mark.rpartition("/")[2]
    return int(turn) if turn.isdigit() else 0


def require_tables(names: Iterable[str], known: Collection[str]) -> None:
    """Raise OptionError for names of tables that do not exist, and say which ones are like these."""
    for name in names:
        if name not in known:
            like = get_close_matches(name, known, n=3) or sorted(known)[:10]
            raise OptionError(f"watch: there is no table {name}; there are: {', '.join(like) or 'none'}")


def image(table: str, values: Mapping[str, Iterable[Any]] | None) -> Image:
    """Return the image of a change, with `values` before and after the change by column; None: any row."""
    if not values:
        return Image(table)
    return Image(table, {column: texts(each) for column, each in values.items()})


def texts(values: Iterable[Any]) -> frozenset[str] | None:
    """Return the texts of values as tags have them; None if a value has no text.

    A UUID may be stored as 32 digits, where a reader has the text with dashes: both are returned. A driver may give a
    date without end as the first or the last date of Python.
    """
    found = set[str]()
    for value in values:
        text = value_text(value)
        if text is None:
            return None
        found.add(text)
        if isinstance(value, str) and _PLAIN_UUID.fullmatch(value):
            found.add(str(UUID(value)))
        elif value in _ENDLESS:
            found.add(_ENDLESS[value])
    return frozenset(found)
