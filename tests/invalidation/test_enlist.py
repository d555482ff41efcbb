"""`enlist` binds an invalidation to the commit that makes it due, or invalidates at once."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from fastrdb.invalidation import Put, enlist
from fastrdb.keys import Prefix
from tests.support.servers.databases import Database
from tests.support.world.world import Item, World, world

ITEMS = Prefix("item:", "*", False)
NEW = Put("item:1", b'{"id":1,"name":"new"}', 60_000)


@pytest.fixture
async def w(sqlite: Database, client: Redis) -> AsyncIterator[World]:
    """Return a world on SQLite in which item 1 is cached."""
    async with world(sqlite, client) as made:
        await made.one.read()
        yield made


async def do(w: World, db: AsyncSession | None, *args: Any, **options: Any) -> None:
    """Enlist from the second process."""
    await enlist(w.two.cache.runtime, w.two.client, None if db is None else db.sync_session, *args, **options)


async def write(db: AsyncSession | AsyncConnection) -> None:
    """Change the row by a statement of which no decorator knows."""
    await db.execute(update(Item).where(Item.id == 1).values(name="new"))


@pytest.mark.parametrize("what", [{"prefixes": [ITEMS]}, {"keys": ["item:1"]}, {"puts": [NEW]}])
async def test_enlist_without_session_invalidates_now(w: World, what: Any) -> None:
    """Prefixes, keys and the keys of puts are deleted before it returns."""
    await do(w, None, **what)
    assert not await w.client.exists("item:1")
    await w.quiet()


@pytest.mark.parametrize("what", [{"prefixes": [ITEMS]}, {"keys": ["item:1"]}, {"puts": [NEW]}])
async def test_enlist_with_session_outside_of_a_transaction_invalidates_now(w: World, what: Any) -> None:
    """A session that has begun nothing has no commit to wait for."""
    async with w.database.sessions() as db:
        await do(w, db, **what)
        assert not await w.client.exists("item:1")
    await w.quiet()


@pytest.mark.parametrize("what", [{"prefixes": [ITEMS]}, {"keys": ["item:1"]}, {"puts": [NEW]}])
async def test_enlist_in_a_transaction_invalidates_at_the_commit(w: World, what: Any) -> None:
    """Until then others are answered from the cache; then by what was committed."""
    async with w.database.sessions() as db:
        await write(db)
        await do(w, db, **what)
        assert await w.one.read() == "old"
        assert await w.client.exists("item:1")
        await db.commit()
    assert await w.client.get("item:1") == (NEW.raw if "puts" in what else None)
    assert await w.one.read() == "new"
    await w.quiet()


async def test_enlist_in_a_transaction_that_is_rolled_back_does_nothing(w: World) -> None:
    """The entry stays, and what was put is not stored."""
    async with w.database.sessions() as db:
        await write(db)
        await do(w, db, [ITEMS], puts=[NEW])
        await db.rollback()
    assert await w.client.get("item:1") == b'{"id":1,"name":"old"}'
    await w.quiet()


async def test_enlist_on_an_outer_connection_waits_for_its_commit(w: World) -> None:
    """A session that was made to join a connection's transaction commits nothing by itself."""
    async with w.database.engine.connect() as connection:
        outer = await connection.begin()
        await write(connection)
        async with AsyncSession(connection) as db:
            await do(w, db, [ITEMS])
            await db.commit()
        assert await w.client.exists("item:1")
        await outer.commit()
    assert not await w.client.exists("item:1")
    await w.quiet()


async def test_put_of_a_session_that_has_not_written_only_invalidates(w: World) -> None:
    """No lock keeps another writer out until the commit."""
    async with w.database.sessions() as db:
        await db.execute(select(Item.id))
        await do(w, db, puts=[NEW])
        await db.commit()
    assert not await w.client.exists("item:1")
    await w.quiet()


async def test_put_after_a_part_is_committed_only_invalidates(w: World) -> None:
    """COMMIT by text has given up the locks."""
    async with w.database.sessions() as db:
        await write(db)
        await db.execute(text("COMMIT"))
        await do(w, db, puts=[NEW])
        await db.commit()
    assert not await w.client.exists("item:1")
    await w.quiet()


async def test_put_while_the_cache_is_disabled_only_invalidates(w: World) -> None:
    """Nothing is stored then, but what is stale goes all the same."""
    async with w.database.sessions() as db:
        await write(db)
        with w.two.cache.disabled():
            await do(w, db, puts=[NEW])
        await db.commit()
    assert not await w.client.exists("item:1")
    await w.quiet()


@pytest.mark.parametrize(("writes", "loads"), [(True, 1), (False, 0)])
async def test_session_reads_past_the_cache_after_enlist_with_writes(w: World, writes: bool, loads: int) -> None:
    """A driver may have written what no statement shows; without the flag the session may read on."""
    async with w.database.sessions() as db:
        await db.execute(select(Item.id))
        await do(w, db, [ITEMS], writes=writes)
        await w.two.get(db, w.two.client, 1)
        assert w.two.get.stats.loads == loads
        await db.rollback()
        await w.two.get(db, w.two.client, 1)
        assert w.two.get.stats.loads == loads
    await w.quiet()
