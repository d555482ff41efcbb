"""What is under test: how a protocol reads a row or a block, and how it writes. fastrdb is here, the rest in `peers`.

A subject says where its latest answer came from by what it notes on the way.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from typing import Any

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from benchmarks.consistency import database
from benchmarks.consistency.address import Address
from benchmarks.consistency.database import Row, RowOut, Table
from benchmarks.consistency.logs import SOURCES
from benchmarks.consistency.settings import Settings
from benchmarks.consistency.workload import Style, block_of
from fastrdb import Cache, Event

LIFE = 3600
"""Seconds that an entry lives: longer than any run, so that what is not invalidated stays."""
Fields = tuple[int, int, int]
"""A row of an answer, as the log wants it: row, version or place, attempt."""
_notes: ContextVar[set[str] | None] = ContextVar("notes", default=None)


def note(what: str) -> None:
    """Say that the call which is going on came by here."""
    notes = _notes.get()
    if notes is not None:
        notes.add(what)


@contextmanager
def noting() -> Iterator[set[str]]:
    """Inside, what is noted ends up in the set."""
    notes: set[str] = set()
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def source_of(notes: set[str]) -> str:
    """Tell where an answer came from: the farthest that its call went."""
    return max(notes & set(SOURCES), key=SOURCES.index, default="hit")


class Attempt:
    """One write: its number, and whom to tell that its COMMIT is about to be sent."""

    def __init__(self, number: int, begun: Callable[[], None]) -> None:
        self.number = number
        self._begun = begun

    async def commit(self, db: AsyncSession) -> None:
        """Commit, and say so before."""
        self._begun()
        await db.commit()


class Subject(ABC):
    """A cache in front of the rows, in one process."""

    model: type[Any] = Row
    """The class of the objects that a user may hold."""
    kinds: Mapping[str, int] = {"row": 3, "block": 1}
    """What can be asked for, and how often it is."""

    @abstractmethod
    async def ask(self, db: AsyncSession, kind: str, row: int) -> list[Fields]:
        """Read something of a row through the cache."""

    @asynccontextmanager
    async def session(self, engine: AsyncEngine, style: Style) -> AsyncIterator[AsyncSession]:
        """Give a session to write in, as a request has one."""
        async with AsyncSession(engine, expire_on_commit=False) as db:
            yield db

    async def ready(self) -> None:  # noqa: B027  # not each has something to connect
        """Connect to what is needed, as a process does before it takes requests."""

    @abstractmethod
    async def write(self, db: AsyncSession, attempt: Attempt, rows: Sequence[int], style: Style) -> None:
        """Make a new version of each row, and commit; with the style `undone`, roll back."""

    def stats(self) -> dict[str, int]:
        """Give what the cache itself counted."""
        return {}

    @abstractmethod
    async def aclose(self, limit: float) -> None:
        """Let what is under way come to its end within `limit` seconds, and close the client."""


class RowSubject(Subject):
    """A cache in front of rows and of blocks of rows."""

    async def ask(self, db: AsyncSession, kind: str, row: int) -> list[Fields]:
        """Read the row, or its block."""
        if kind == "block":
            return [each.fields for each in await self.block(db, block_of(row))]
        return [(await self.row(db, row)).fields]

    @abstractmethod
    async def row(self, db: AsyncSession, row: int) -> RowOut:
        """Read one row through the cache."""

    @abstractmethod
    async def block(self, db: AsyncSession, block: int) -> list[RowOut]:
        """Read all rows of a block through the cache."""


class FastRDBSubject(Subject):
    """fastrdb, with further `options` of its cache."""

    def __init__(self, settings: Settings, address: Address, **options: Any) -> None:
        self.client = address.connect()
        self.cache = cache_of(settings, self.client, hook=hook, **options)

    async def ready(self) -> None:
        """As a readiness probe asks for it."""
        await self.cache.ready()

    def stats(self) -> dict[str, int]:
        """As `cache.stats()` has them."""
        return self.cache.stats().counts()

    async def aclose(self, limit: float) -> None:
        """Repairs come to their end."""
        await self.cache.aclose(limit)
        await self.client.aclose()


class DecoratedSubject(FastRDBSubject, RowSubject):
    """fastrdb, by its decorators."""

    def __init__(self, settings: Settings, address: Address) -> None:
        super().__init__(settings, address)
        self._table = Table(settings.faults)
        self._row, self._block = _reads(self.cache, self._table)
        self._inside, self._outside, self._lists = _writes(self.cache, self._table)

    async def row(self, db: AsyncSession, row: int) -> RowOut:
        """By `cached`."""
        found: RowOut = await self._row(db, self.client, row)
        return found

    async def block(self, db: AsyncSession, block: int) -> list[RowOut]:
        """By `cached_list`."""
        found: list[RowOut] = await self._block(db, self.client, block)
        return found

    async def write(self, db: AsyncSession, attempt: Attempt, rows: Sequence[int], style: Style) -> None:
        """By `invalidates`, with the commit inside the function or after it, or by `put`."""
        if style == "inside":
            for row in rows:
                await self._inside(db, self.client, row, block_of(row), attempt)
        elif style == "through":
            await self._through(db, attempt, rows)
        else:
            for row in sorted(rows):
                await self._outside(db, self.client, row, block_of(row), attempt)
            if style == "undone":
                for row in rows:  # what it has not committed is its own, and nobody else's
                    await self.row(db, row)
                await db.rollback()
            else:
                await attempt.commit(db)

    async def _through(self, db: AsyncSession, attempt: Attempt, rows: Sequence[int]) -> None:
        """Write through: the new values are stored at the commit."""
        await self._table.change(db, rows, attempt.number)
        for row in rows:
            await self._lists(db, self.client, block_of(row))
            value = RowOut.model_validate(await database.load(db, row))
            await self._row.put(value, db=db, redis=self.client, row=row)
        await attempt.commit(db)


def cache_of(settings: Settings, client: Any, **options: Any) -> Cache:
    """Give the cache that the settings ask for; OptionError if this fastrdb has no such thing."""
    return Cache(
        client,
        near=settings.near or None,
        on_error=settings.on_error,
        timeout=settings.timeout,
        lease=settings.lease,
        barrier=settings.barrier,
        watched=settings.watched,
        **options,
    )


def hook(event: Event) -> None:
    """Note what a cache says of a call."""
    note(event.kind)


def _reads(cache: Cache, table: Table) -> Any:
    @cache.cached("row:{row}", schema=RowOut, exp=LIFE)
    async def read(db: AsyncSession, redis: Redis, row: int) -> Row:
        return await table.row(db, row)

    @cache.cached_list("block:{block}:page:{page}", exp=LIFE)
    async def read_block(db: AsyncSession, redis: Redis, block: int, page: int = 1) -> list[RowOut]:
        return await table.block(db, block)

    return read, read_block


def _writes(cache: Cache, table: Table) -> Any:
    @cache.invalidates(["row:{row}", "block:{block}:*"])
    async def inside(db: AsyncSession, redis: Redis, row: int, block: int, attempt: Attempt) -> None:
        await table.change(db, [row], attempt.number)
        await attempt.commit(db)

    @cache.invalidates(["row:{row}", "block:{block}:*"])
    async def outside(db: AsyncSession, redis: Redis, row: int, block: int, attempt: Attempt) -> None:
        await table.change(db, [row], attempt.number)

    @cache.invalidates("block:{block}:*")
    async def lists(db: AsyncSession, redis: Redis, block: int) -> None:
        """Nothing but what the decorator does."""

    return inside, outside, lists
