"""The races around commits that are hidden, joined, repeated or that nobody sees: see `scenarios`."""

from __future__ import annotations

import time
from collections.abc import Coroutine
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from fastrdb.protocol import intent
from tests.races.scenarios.fills import LEASE
from tests.support.world.world import Item, ItemOut, World, in_a_new_context, spawn

NEW = update(Item).where(Item.id == 1).values(name="new")


async def carried(w: World, commit: Coroutine[Any, Any, None], *, put: bool = False) -> None:
    """The commit is told to Redis before it is sent; with `put`, the writer has taken the lease."""
    gate = w.at_commit()
    committing = spawn(commit)
    await gate.reached()
    try:
        assert await w.one.read() == "old"
        assert not await w.client.exists("item:1", *([] if put else [LEASE]))
    finally:
        gate.open()
        await committing


async def result_prefix(w: World) -> None:
    """What only the result names is invalidated when the function is done, although it has committed before."""

    @w.two.cache.invalidates(keys=["item:{result.id}"])
    async def update_first(db: AsyncSession, redis: object) -> ItemOut:
        await db.execute(NEW)
        await db.commit()
        return ItemOut(id=1, name="new")

    gate = w.one.gates.after("load")
    reader = spawn(w.one.read())
    await gate.reached()
    async with w.two.database.sessions() as db:
        await update_first(db, w.two.client)
    gate.open()
    assert await reader == "old"
    await w.fair()


async def closed_without_commit(w: World) -> None:
    """A session that is closed without a commit has changed nothing: the entry stays."""
    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db:
        await w.two.rename(db, w.two.client, 1, "never")
    assert await w.client.exists("item:1")
    assert "begin" not in w.two.client.names()
    await w.fair()


async def joined(w: World) -> None:
    """A session is joined to an outer transaction: its commit commits nothing, the outer one does."""
    async with w.two.database.engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, expire_on_commit=False) as db:
            await w.two.rename(db, w.two.client, 1, "new")
            await db.commit()
        assert await w.one.read() == "old"
        await carried(w, outer.commit())
    await w.fair()


async def joined_and_open(w: World) -> None:
    """The same with two sessions on one connection, none of them ended when the outer transaction commits."""
    async with w.two.database.engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection) as first, AsyncSession(connection) as second:
            await first.execute(select(Item.id))
            await w.two.rename(first, w.two.client, 1, "new")
            await second.execute(select(Item.id))
            assert await w.one.read() == "old"
            await outer.commit()
            assert await w.one.read() == "new"
    await w.fair()


async def joined_and_rolled_back(w: World) -> None:
    """The outer transaction is rolled back: nothing has changed, no barrier is left, and the session can go on."""
    assert await w.one.read() == "old"
    async with w.two.database.engine.connect() as connection:
        outer = await connection.begin()
        db = AsyncSession(connection)
        await w.two.rename(db, w.two.client, 1, "never")
        await db.commit()
        await outer.rollback()
        await db.close()
    assert await w.client.exists("item:1")
    await w.fair()
    await w.quiet()


async def text_dml(w: World) -> None:
    """A statement given as text counts as a write; a SELECT given as text does not."""
    assert await w.one.read() == "old"
    async with w.one.database.sessions() as db:
        await db.execute(text("SELECT 1"))
        assert (await w.one.get(db, w.one.client, 1)).name == "old"
        assert w.one.get.stats.hits == 1
        await w.one.by_text(db, "never")
        assert (await w.one.get(db, w.one.client, 1)).name == "never"
    assert w.one.get.stats.bypasses == 1
    await w.fair()


async def hidden_session(w: World) -> None:
    """A function that opens a session of its own: its commit carries the prefixes, although nobody hands it in."""
    two = w.two

    @two.cache.invalidates("item:{item_id}")
    async def hidden(redis: object, item_id: int) -> None:
        async with two.database.sessions() as db:
            await db.execute(NEW)
            await db.commit()

    assert await w.one.read() == "old"
    await carried(w, hidden(two.client, 1))
    assert two.client.names().count("begin") == 1, "what a commit carried is not invalidated a second time"
    await w.fair()


async def older_hidden_session(w: World) -> None:
    """The hidden session is in a transaction already, and is committed when the function is over."""
    two = w.two

    async with two.database.sessions() as db:

        @two.cache.invalidates("item:{item_id}")
        async def hidden(redis: object, item_id: int) -> None:
            await db.execute(NEW)

        await db.execute(select(Item.id))
        await hidden(two.client, 1)
        assert await w.one.read() == "old"
        await carried(w, db.commit())
    await w.fair()


async def connection_inside(w: World) -> None:
    """A function that writes through a connection without any session."""
    two = w.two

    @two.cache.invalidates("item:{item_id}")
    async def write(redis: object, item_id: int) -> None:
        async with two.database.engine.begin() as connection:
            await connection.execute(NEW)

    assert await w.one.read() == "old"
    await carried(w, write(two.client, 1))
    await w.fair()


async def connection_outside(w: World) -> None:
    """A function that writes through its caller's connection: the caller's commit carries the prefixes."""

    @w.two.cache.invalidates("item:{item_id}")
    async def write(connection: AsyncConnection, redis: object, item_id: int) -> None:
        await connection.execute(NEW)

    async with w.two.database.engine.connect() as connection:
        await connection.begin()
        await write(connection, w.two.client, 1)
        assert await w.one.read() == "old"
        await carried(w, connection.commit())
    await w.fair()


async def raises_before_its_result(w: World) -> None:
    """A function commits and then raises, and only its result would have named the row: nothing stale is left."""

    @w.two.cache.invalidates("item:{result}")
    async def commit_and_raise(db: AsyncSession, redis: object) -> int:
        await db.execute(NEW)
        await db.commit()
        raise LookupError

    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db:
        with pytest.raises(LookupError):
            await commit_and_raise(db, w.two.client)
    await w.fair()


async def raises_after_its_commit(w: World) -> None:
    """A function commits and then raises: what it has committed is not in the cache."""

    @w.two.cache.invalidates("item:{item_id}")
    async def commit_and_raise(db: AsyncSession, redis: object, item_id: int) -> None:
        await db.execute(NEW)
        await db.commit()
        raise LookupError

    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db:
        with pytest.raises(LookupError):
            await commit_and_raise(db, w.two.client, 1)
    await w.fair()


async def raises_before_the_commit(w: World) -> None:
    """A function writes and raises, and its caller commits what it did all the same."""

    @w.two.cache.invalidates("item:{item_id}")
    async def write_and_raise(db: AsyncSession, redis: object, item_id: int) -> None:
        await db.execute(NEW)
        raise LookupError

    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db:
        with pytest.raises(LookupError):
            await write_and_raise(db, w.two.client, 1)
        await db.commit()
    await w.fair()


async def autocommit(w: World) -> None:
    """Each statement commits by itself: a reader who loaded before it stores nothing."""
    gate = w.one.gates.after("load")
    reader = spawn(w.one.read())
    await gate.reached()
    async with w.two.database.sessions() as db:
        await w.two.rename(db, w.two.client, 1, "new")
        gate.open()
        assert await reader == "old"
        assert await w.one.read() == "new"
    await w.fair()
    await w.quiet()


async def autocommit_again(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second statement commits when the barrier of the first has run out: it is told of like the first."""
    later = time.monotonic() + 1000
    two = w.two

    @two.cache.invalidates("item:{item_id}")
    async def write_twice(db: AsyncSession, redis: object, item_id: int) -> None:
        await db.execute(NEW)
        monkeypatch.setattr(intent, "monotonic", lambda: later)
        await w.lapse_barriers()
        gate = w.one.gates.after("load")
        reader = spawn(w.one.read())
        await gate.reached()
        await db.execute(update(Item).where(Item.id == item_id).values(name="newer"))
        gate.open()
        assert await reader == "new"

    async with two.database.sessions() as db:
        await write_twice(db, two.client, 1)
        assert await w.one.read() == "newer"
    await w.fair()


async def autocommit_put(w: World) -> None:
    """Where no lock lasts until the commit, what a writer read may be old by then: it is not stored."""
    async with w.one.database.sessions() as db:
        await db.execute(update(Item).where(Item.id == 1).values(name="first"))
        await w.two.write("second")
        await w.one.get.put(ItemOut(id=1, name="first"), db=db, redis=w.one.client, item_id=1)
        await db.commit()
    await w.fair()


async def autocommit_by_hand(w: World) -> None:
    """A key is invalidated after a statement that has committed itself, and the session is closed without commit."""
    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db:
        await db.execute(NEW)
        await w.two.get.invalidate(db=db, redis=w.two.client, item_id=1)
    await w.fair()


async def read_only_commit(w: World) -> None:
    """A hidden session commits what it has read, before the function writes some way that nobody sees."""
    two = w.two
    other = two.database.sessions

    async def write_elsewhere() -> None:
        async with other() as db:
            await db.execute(NEW)
            await db.commit()

    @two.cache.invalidates("item:{item_id}")
    async def read_and_write(redis: object, item_id: int) -> None:
        async with other() as db:
            await db.execute(select(Item.id))
            await db.commit()
        assert await w.one.read() == "old"
        await in_a_new_context(write_elsewhere())

    await read_and_write(two.client, 1)
    await w.fair()
