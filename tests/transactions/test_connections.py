"""The rules for sessions hold for a function that is given a connection."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import Connection, select
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from tests.races.scenarios.commits import NEW
from tests.support.servers.databases import Database
from tests.support.world.world import Item, World, world


@pytest.fixture
async def w(database: Database, client: Redis) -> AsyncIterator[World]:
    """Return a world on each database."""
    async with world(database, client) as made:
        yield made


def cached(w: World, *, called_otherwise: bool = False) -> Any:
    """Return a cached function of a connection."""
    if called_otherwise:

        @w.two.cache.cached("item:{item_id}:name")
        async def name_by(connection: AsyncConnection, redis: Redis, item_id: int) -> str:
            return (await connection.execute(select(Item.name).where(Item.id == item_id))).scalar_one()

        return name_by

    @w.two.cache.cached("item:{item_id}:name")
    async def name(db: AsyncConnection, redis: Redis, item_id: int) -> str:
        return (await db.execute(select(Item.name).where(Item.id == item_id))).scalar_one()

    return name


@pytest.mark.parametrize("called_otherwise", [False, True], ids=["db", "connection"])
async def test_connection_that_has_written_reads_past_the_cache(w: World, called_otherwise: bool) -> None:
    """A hit would be older than its own write, and what it loads is not committed yet."""
    name = cached(w, called_otherwise=called_otherwise)
    async with w.two.database.engine.connect() as db:
        assert await name(db, w.two.client, 1) == "old"
        assert await name(db, w.two.client, 1) == "old"
        assert name.stats.hits == 1
        await db.execute(NEW)
        assert await name(db, w.two.client, 1) == "new"
        await db.rollback()
    assert await w.client.get("item:1:name") == b'"old"'
    await w.quiet()


async def test_connection_that_has_not_written_hits_and_fills(w: World) -> None:
    """A transaction that only reads changes nothing."""
    name = cached(w)
    for _ in range(2):
        async with w.two.database.engine.connect() as db:
            assert await name(db, w.two.client, 1) == "old"
    assert (name.stats.hits, name.stats.fills) == (1, 1)


async def test_rolled_back_write_of_a_connection_is_not_stored(w: World) -> None:
    """The load has read what was never committed."""

    @w.two.cache.cached("item:{item_id}:name")
    async def name(db: AsyncConnection, redis: Redis, item_id: int) -> str:
        await db.execute(NEW)
        found = (await db.execute(select(Item.name).where(Item.id == item_id))).scalar_one()
        await db.rollback()
        return str(found)

    async with w.two.database.engine.connect() as db:
        assert await name(db, w.two.client, 1) == "new"
    assert not await w.client.exists("item:1:name")


async def test_invalidate_with_a_connection_waits_for_its_commit(w: World) -> None:
    """An entry that is loaded between the two would be the old one again."""
    name = cached(w)
    async with w.two.database.engine.connect() as db:
        await name(db, w.two.client, 1)
        await db.execute(NEW)
        await name.invalidate(db, w.two.client, 1)
        assert await w.client.exists("item:1:name")
        await db.commit()
    assert not await w.client.exists("item:1:name")
    async with w.two.database.engine.connect() as db:
        assert await name(db, w.two.client, 1) == "new"
    await w.quiet()


def by_driver(w: World, kind: Any, *, raises: bool) -> Any:
    """Return a function that writes through the driver: SQLAlchemy reports no statement."""

    def write(connection: Connection) -> None:
        connection.connection.cursor().execute("UPDATE item SET name = 'new' WHERE id = 1")

    async def change(db: Any, redis: Redis, item_id: int) -> None:
        connection = db if isinstance(db, AsyncConnection) else await db.connection()
        await connection.run_sync(write)
        if raises:
            raise LookupError

    change.__annotations__["db"] = kind
    return w.two.cache.invalidates("item:{item_id}:name")(change)


@pytest.mark.parametrize("kind", [AsyncConnection, AsyncSession])
@pytest.mark.parametrize("raises", [False, True], ids=["returns", "raises"])
@pytest.mark.parametrize("end", ["commit", "rollback"])
async def test_write_through_the_driver_counts_until_its_commit(w: World, kind: Any, raises: bool, end: str) -> None:
    """Others get what is committed, and nothing that was never committed is stored."""
    name, change = cached(w), by_driver(w, kind, raises=raises)
    engine = w.two.database.engine
    async with engine.connect() if kind is AsyncConnection else AsyncSession(engine) as db:
        await db.execute(select(Item.name).where(Item.id == 1))
        with suppress(LookupError):
            await change(db, w.two.client, 1)
        own = db if isinstance(db, AsyncConnection) else await db.connection()
        assert await name(own, w.two.client, 1) == "new"
        assert not await w.client.exists("item:1:name")
        await w.client.set("item:1:name", '"old"', 60)  # as a reader does in the meantime
        await (db.commit() if end == "commit" else db.rollback())
    async with engine.connect() as other:
        assert await name(other, w.two.client, 1) == ("new" if end == "commit" else "old")
    await w.quiet()


async def test_put_with_a_connection_in_autocommit_only_invalidates(w: World) -> None:
    """Its statements are committed one by one, so another writer may have come since."""
    name = cached(w)
    async with w.two.database.engine.connect() as plain:
        db = await plain.execution_options(isolation_level="AUTOCOMMIT")
        await name(db, w.two.client, 1)
        await db.execute(NEW)
        await name.put("older", db, w.two.client, 1)
        await db.commit()
        assert await name(db, w.two.client, 1) == "new"
    await w.quiet()
