"""The races at every isolation level: what happens depends on the place, but no caller is answered wrongly anywhere."""

from __future__ import annotations

import pytest
from sqlalchemy import delete, select, update
from sqlalchemy.exc import DBAPIError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession

from tests.races.scenarios import fills as scenarios
from tests.races.scenarios import sessions as scenarios_sessions
from tests.support.world.levels import Place
from tests.support.world.world import Item, ItemOut, World, spawn

SEEN = {"statement": "new", "transaction": "old", "locks": "old"}


async def write(w: World, place: Place) -> None:
    """Another session commits "new"; where a reader's open transaction locks it out, that fails and changes nothing."""
    if place.sees == "locks":
        with pytest.raises(DBAPIError, match="locked"):
            await w.two.write("new")
        assert await w.truth() == "old"
    else:
        await w.two.write("new")
        assert await w.truth() == "new"


async def stale_fill(w: World, place: Place) -> None:
    """R1: a reader has loaded the old row, another one writes and commits, the reader's fill arrives last."""
    gate = w.one.gates.after("load")
    reader = spawn(w.one.read())
    await gate.reached()
    await write(w, place)
    gate.open()
    assert await reader == "old"
    assert w.one.get.stats.fills == 0
    await w.fair()


async def old_snapshot(w: World, place: Place) -> None:
    """R4: the reader's transaction is older than the write. Its answer is stored only if it is what is committed."""
    async with w.one.database.sessions() as db:
        await db.execute(select(Item.id))
        await write(w, place)
        assert (await w.one.get(db, w.one.client, 1)).name == SEEN[place.sees]
    stats = w.one.get.stats
    current = place.sees == "statement"
    assert (stats.fills, stats.unstored) == ((1, 0) if current else (0, 1))
    await w.fair()


async def own_writes(w: World, place: Place) -> None:
    """R6: a session reads what it has written and not committed, and rolls it back: no other session has seen it."""
    for how in ("update", "attribute", "text"):
        before = w.one.get.stats.bypasses
        async with w.one.database.sessions() as db:
            if how == "attribute":
                (await db.get_one(Item, 1)).name = "never"
            elif how == "text":
                await w.one.by_text(db, "never")
            else:
                await db.execute(update(Item).where(Item.id == 1).values(name="never"))
            assert (await w.one.get(db, w.one.client, 1)).name == "never"
            await db.rollback()
        assert w.one.get.stats.bypasses == before + 1
        assert not await w.client.exists("item:1", scenarios.LEASE)
        await w.fair()
        await w.client.delete("item:1")


async def savepoint(w: World, place: Place) -> None:
    """R7: what is released in a savepoint waits for COMMIT, or is committed: the cache follows the database."""
    if place.savepoints == "kept":
        await scenarios_sessions.savepoint_released(w)
    else:
        await scenarios_sessions.savepoint_that_commits(w)


async def savepoint_then_rollback(w: World, place: Place) -> None:
    """R7: a savepoint is released, and the transaction around it rolled back: the entry is what is committed."""
    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db:
        async with db.begin_nested():
            await w.two.rename(db, w.two.client, 1, "new")
        await db.rollback()
    assert await w.truth() == ("old" if place.savepoints == "kept" else "new")
    await w.fair()
    await w.quiet()


async def missing_row(w: World, place: Place) -> None:
    """C22: that a row is missing is cached, and an insert invalidates it; that it is deleted, too."""
    two = w.two

    @w.one.cache.cached("item:{item_id}", shared=True, schema=ItemOut, negative_exp=60)
    async def get(db: AsyncSession, redis: object, item_id: int) -> Item:
        return (await db.execute(select(Item).where(Item.id == item_id))).scalar_one()

    @two.cache.invalidates("item:{item_id}")
    async def insert(db: AsyncSession, redis: object, item_id: int) -> None:
        db.add(Item(id=item_id, name="new", owner_id=1))
        await db.commit()

    @two.cache.invalidates("item:{item_id}")
    async def remove(db: AsyncSession, redis: object, item_id: int) -> None:
        await db.execute(delete(Item).where(Item.id == item_id))
        await db.commit()

    async def read() -> str | None:
        async with w.one.database.sessions() as db:
            try:
                found: ItemOut = await get(db, w.one.client, 3)
            except NoResultFound:
                return None
            return found.name

    assert [await read(), await read()] == [None, None]
    assert get.stats.loads == 1
    async with two.database.sessions() as db:
        await insert(db, two.client, 3)
    assert [await read(), await read()] == ["new", "new"]
    async with two.database.sessions() as db:
        await remove(db, two.client, 3)
    assert [await read(), await read()] == [None, None]
    assert get.stats.loads == 3


async def error_not_cached(w: World, place: Place) -> None:
    """C22: an error of the database is handed on and not cached; the next caller asks again."""

    @w.one.cache.cached("item:{item_id}", shared=True, schema=ItemOut)
    async def get(db: AsyncSession, redis: object, item_id: int) -> Item:
        if get.stats.loads == 1:
            await w.one.by_text(db, "x" * 1000 if place.server != "sqlite" else "never")
            raise LookupError
        return (await db.execute(select(Item).where(Item.id == item_id))).scalar_one()

    async with w.one.database.sessions() as db:
        with pytest.raises((LookupError, DBAPIError)):
            await get(db, w.one.client, 1)
    assert not await w.client.exists("item:1", scenarios.LEASE)
    async with w.one.database.sessions() as db:
        assert (await get(db, w.one.client, 1)).name == await w.truth()
    await w.fair()
