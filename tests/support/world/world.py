"""A small world for races: one database, one Redis, two processes with a cache each, and gates that can hold each.

The two processes are two `Cache` objects in one event loop. As processes do, the two share nothing but the server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context
from typing import Any, TypeVar

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import Connection, ForeignKey, event, select, text, update
from sqlalchemy.ext.asyncio import AsyncAttrs, AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship
from sqlalchemy.util import await_only

from fastrdb import Cache
from fastrdb.protocol import Store
from fastrdb.testing import Gate, Gates
from tests.races.seams import Change
from tests.support.servers.databases import Database
from tests.support.world.gates import gated
from tests.support.world.stores import load_scripts, members, names_in, put

T = TypeVar("T")
_spawned: set[asyncio.Task[Any]] = set()
PATIENT = 30.0  # seconds: gates stand inside the cache's deadline


class Base(AsyncAttrs, DeclarativeBase):
    pass


class Owner(Base):
    __tablename__ = "owner"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    owner_id: Mapped[int] = mapped_column(ForeignKey("owner.id"))
    owner: Mapped[Owner] = relationship()


for _column in (Owner.__table__.c.name, Item.__table__.c.name):
    _column.type.length = 100  # type: ignore[attr-defined]  # MariaDB wants one


class ItemOut(BaseModel):
    id: int
    name: str


def spawn(work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
    """Start a caller of its own."""
    task = asyncio.get_running_loop().create_task(work)
    _spawned.add(task)
    task.add_done_callback(_spawned.discard)
    return task


def _reads(cache: Cache, gates: Gates) -> Any:
    """Make the cached functions of a process."""

    @cache.cached("item:{item_id}", schema=ItemOut, wait=PATIENT, shared=True)
    async def get(db: AsyncSession, redis: Redis, item_id: int) -> Item:
        await gates.arrive("load")
        found = (await db.execute(select(Item).where(Item.id == item_id))).scalar_one()
        await gates.leave("load")
        return found

    @cache.cached("item-by-get:{item_id}", schema=ItemOut)
    async def get_by_identity(db: AsyncSession, redis: Redis, item_id: int) -> Item:
        return await db.get_one(Item, item_id)

    @cache.cached("item-owner:{item_id}")
    async def get_owner(db: AsyncSession, redis: Redis, item_id: int) -> str:
        found = (await db.execute(select(Item).where(Item.id == item_id))).scalar_one()
        owner: Owner = await found.awaitable_attrs.owner
        return owner.name

    @cache.cached("item:{item_id}:committed", schema=ItemOut)
    async def get_and_commit(db: AsyncSession, redis: Redis, item_id: int) -> Item:
        found = (await db.execute(select(Item).where(Item.id == item_id))).scalar_one()
        await db.commit()
        return found

    return get, get_by_identity, get_owner, get_and_commit


def _writes(cache: Cache) -> Any:
    """Make the functions of a process that write."""

    @cache.invalidates(["item*:{item_id}", "item:{item_id}:*"])
    async def rename(db: AsyncSession, redis: Redis, item_id: int, name: str) -> None:
        await db.execute(update(Item).where(Item.id == item_id).values(name=name))

    @cache.invalidates("item*")
    async def rename_owner(db: AsyncSession, redis: Redis, name: str) -> None:
        await db.execute(update(Owner).values(name=name))
        await db.commit()

    @cache.invalidates("item*")
    async def change(db: AsyncSession, redis: Redis, item_id: int, name: str) -> None:
        await db.execute(update(Item).where(Item.id == item_id).values(name=name))
        await db.commit()

    return rename, rename_owner, change


class Process:
    """One process: its client, its cache, its functions."""

    def __init__(self, database: Database, client: Any, **settings: Any) -> None:
        self.database = database
        self.client = gated(client)
        self.cache = Cache(**{"timeout": PATIENT, **settings})
        self.gates = Gates()  # "load": before and after the query of `get`
        self.get, self.get_by_identity, self.get_owner, self.get_and_commit = _reads(self.cache, self.gates)
        self.rename, self.rename_owner, self.change = _writes(self.cache)

    @property
    def store(self) -> Store:
        """The store behind the client."""
        return self.cache.runtime.store(self.client)

    async def read(self, item_id: int = 1) -> str:
        """Return the answer to a caller with a session of its own."""
        async with self.database.sessions() as db:
            found: ItemOut = await self.get(db, self.client, item_id)
            return found.name

    async def write(self, name: str, item_id: int = 1) -> None:
        """Write with a session of its own, and commit."""
        async with self.database.sessions() as db:
            await self.rename(db, self.client, item_id, name)
            await db.commit()

    async def save(self, name: str, item_id: int = 1) -> None:
        """Write a row whose value is stored at its commit."""
        async with self.database.sessions() as db:
            await db.execute(update(Item).where(Item.id == item_id).values(name=name))
            await self.get.put(ItemOut(id=item_id, name=name), db=db, redis=self.client, item_id=item_id)
            await db.commit()

    async def by_text(self, db: AsyncSession | AsyncConnection, name: str) -> None:
        """Write by text that SQLAlchemy takes for nothing in particular."""
        await db.execute(text("UPDATE item SET name = :name WHERE id = 1"), {"name": name})


class World:
    """The database with item 1 and 2 named "old", two processes, and gates between `begin` and COMMIT."""

    def __init__(self, database: Database, client: Any, **settings: Any) -> None:
        self.database, self.client = database, client
        self.one = Process(database, client, **settings)
        self.two = Process(database, client, **settings)
        self._commits = Gates()

    def at_commit(self) -> Gate:
        """Hold the next COMMIT: the cache has its barrier, the database has nothing yet."""
        return self._commits.before("COMMIT")

    async def end(self) -> None:
        """Release every caller; one that waits for something that did not come is cancelled."""
        for gates in (self._commits, *(each for p in (self.one, self.two) for each in (p.gates, p.client.gates))):
            gates.open_all()
        left = [task for task in _spawned if task.get_loop() is asyncio.get_running_loop()]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)

    async def truth(self, item_id: int = 1) -> str:
        """Return the committed row."""
        async with self.database.sessions() as db:
            return (await db.scalars(select(Item.name).where(Item.id == item_id))).one()

    async def keys(self, pattern: str = "*") -> set[str]:
        """Return the keys in Redis."""
        return {_text(key) for key in await names_in(self.client, pattern)}

    async def value(self, key: str) -> str:
        """Return the value of a key in Redis."""
        return _text(await self.client.get(key))

    async def lapse(self, name: str) -> None:
        """End the life of one key in Redis."""
        assert await self.client.pexpire(name, 0)

    async def lapse_barriers(self) -> None:
        """End the time of all barriers."""
        await put(self.client, "barriers", dict.fromkeys(await members(self.client, "barriers"), 1))

    def change(self, change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take a mechanism out of both processes, and let gates find the scripts that were changed."""
        for script in change.apply(monkeypatch.setattr):
            for process in (self.one, self.two):
                process.client.name_script(script.sha, script.name)

    async def fair(self, item_id: int = 1) -> None:
        """Check that every answer is what is committed."""
        truth = await self.truth(item_id)
        assert await self.one.read(item_id) == truth
        assert await self.two.read(item_id) == truth

    async def quiet(self) -> None:
        """Everything has ended, and nothing was left behind but entries and their index."""
        for process in (self.one, self.two):
            await process.cache.aclose()
            assert not process.cache.runtime.here().flights.by_token
        assert await self.keys("fastrdb:lease:*") == set()
        assert await members(self.client, "barriers") == set()


@asynccontextmanager
async def world(database: Database, client: Any, **settings: Any) -> AsyncIterator[World]:
    """Run the world; what still runs at its end is waited for."""
    await database.create(Base)
    async with database.sessions() as db:
        db.add_all([Owner(id=1, name="old"), *(Item(id=n, name="old", owner_id=1) for n in (1, 2))])
        await db.commit()
    await load_scripts(client)
    made = World(database, client, **settings)

    def hold(connection: Connection) -> None:
        await_only(made._commits.arrive("COMMIT"))

    def hold_prepared(connection: Connection, xid: object, is_prepared: bool) -> None:
        hold(connection)

    listeners: list[tuple[str, Callable[..., Any]]] = [("commit", hold), ("commit_twophase", hold_prepared)]
    for name, listener in listeners:
        event.listen(database.engine.sync_engine, name, listener)
    try:
        yield made
    finally:
        for name, listener in listeners:
            event.remove(database.engine.sync_engine, name, listener)
        await made.end()
        await made.one.cache.aclose()
        await made.two.cache.aclose()


Scenario = Callable[[World], Coroutine[Any, Any, None]]


@asynccontextmanager
async def pooled(database: Database) -> AsyncIterator[Database]:
    """Run the database with one connection for all, which shows what is left on it."""
    engine = create_async_engine(database.engine.url, pool_size=1, max_overflow=0)
    try:
        yield Database(engine, async_sessionmaker(engine, expire_on_commit=False))
    finally:
        await engine.dispose()


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)


async def in_a_new_context(work: Coroutine[Any, Any, T]) -> T:
    """Do it where nothing is known of the calls around it, as another program would."""
    return await asyncio.get_running_loop().create_task(work, context=Context())
