"""The races around commits that are hidden, joined, repeated or not seen by any session: see `scenarios`."""

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
    """Check that Redis has the commit before it is sent; with `put`, that the writer has taken the lease."""
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
    """Commit inside of a function: what only the result names is invalidated when the function is done."""

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
    """Close a session without a commit: nothing has changed, and the entry stays."""
    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db:
        await w.two.rename(db, w.two.client, 1, "never")
    assert await w.client.exists("item:1")
    assert "begin" not in w.two.client.names()
    await w.fair()


async def joined(w: World) -> None:
    """Join a session to an outer transaction: the session's commit commits nothing, the outer one does."""
    async with w.two.database.engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, expire_on_commit=False) as db:
            await w.two.rename(db, w.two.client, 1, "new")
            await db.commit()
        assert await w.one.read() == "old"
        await carried(w, outer.commit())
    await w.fair()


async def joined_and_open(w: World) -> None:
    """Join two sessions to one connection: neither has ended when the outer transaction commits."""
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
    """Roll the outer transaction back: nothing has changed, no barrier is left, and the session can go on."""
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
    """Count a statement given as text as a write, but not a SELECT given as text."""
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
    """Open a session inside of a function: its commit carries the prefixes, although no caller hands it in."""
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
    """Hide a session that is in a transaction already, and commit it when the function is over."""
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


async def changed_in_another_task(w: World) -> None:
    """Change an object in a task that has not used its session: no statement runs before the caller's commit."""
    two = w.two

    @two.cache.invalidates("item:{item.id}")
    async def rename(redis: object, item: Item) -> None:
        item.name = "new"

    async with two.database.sessions() as db:
        await spawn(rename(two.client, await db.get_one(Item, 1)))
        assert await w.one.read() == "old"
        await carried(w, db.commit())
    await w.fair()


async def connection_inside(w: World) -> None:
    """Write through a connection without any session."""
    two = w.two

    @two.cache.invalidates("item:{item_id}")
    async def write(redis: object, item_id: int) -> None:
        async with two.database.engine.begin() as connection:
            await connection.execute(NEW)

    assert await w.one.read() == "old"
    await carried(w, write(two.client, 1))
    await w.fair()


async def connection_outside(w: World) -> None:
    """Write through the caller's connection: the caller's commit carries the prefixes."""

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
    """Commit and then raise where only the result would have named the row: nothing stale is left."""

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
    """Commit and then raise: the cache has no row from before that commit."""

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
    """Write and raise: the caller commits what the function did all the same."""

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
    """Commit with each statement: a reader that loaded before the statement stores nothing."""
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
    """Commit a second statement when the barrier of the first has run out: it is invalidated like the first."""
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
    """Put where no lock lasts until the commit: what a writer read may be old by then, and is not stored."""
    async with w.one.database.sessions() as db:
        await db.execute(update(Item).where(Item.id == 1).values(name="first"))
        await w.two.write("second")
        await w.one.get.put(ItemOut(id=1, name="first"), db=db, redis=w.one.client, item_id=1)
        await db.commit()
    await w.fair()


async def autocommit_by_hand(w: World) -> None:
    """Invalidate a key after a statement that has committed itself, and close the session without commit."""
    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db:
        await db.execute(NEW)
        await w.two.get.invalidate(db=db, redis=w.two.client, item_id=1)
    await w.fair()


async def read_only_commit(w: World) -> None:
    """Commit what a hidden session has read, before the function writes some way that no session sees."""
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
