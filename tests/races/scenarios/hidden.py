"""The races of functions that do not say which session is used: see `scenarios_sessions`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any

from sqlalchemy import create_engine, select, text, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from tests.support.world.world import Item, ItemOut, Owner, Scenario, World, spawn

NAME = select(Item.name).where(Item.id == 1)
NEVER = update(Item).where(Item.id == 1).values(name="never")


def cached(w: World, load: Callable[[], Coroutine[Any, Any, str]]) -> Any:
    """Cache a function of the first process that names no session; it shares the key of `get`."""

    @w.one.cache.cached("item:{item_id}", shared=True, schema=ItemOut)
    async def get(redis: object, item_id: int) -> ItemOut:
        return ItemOut(id=item_id, name=await load())

    return get


async def kept_out(w: World, get: Any, answer: str) -> None:
    """Check that the caller gets the answer, and no other caller does."""
    assert (await get(w.one.client, 1)).name == answer
    assert not await w.client.exists("item:1")
    assert get.stats.unstored == 1
    await w.fair()


async def old_snapshot(w: World) -> None:
    """R4: a session of the module, in a transaction that began before a write."""
    async with w.one.database.sessions() as db:

        async def load() -> str:
            return (await db.scalars(NAME)).one()

        await db.execute(select(Item.id))
        await w.two.write("new")
        await kept_out(w, cached(w, load), "old")


async def old_snapshot_ended_inside(w: World) -> None:
    """R4: the same, which the load ends: its connection is given back by the time that one could ask."""
    async with w.one.database.sessions() as db:

        async def load() -> str:
            found = (await db.scalars(NAME)).one()
            await db.close()
            return found

        await db.execute(select(Item.id))
        await w.two.write("new")
        await kept_out(w, cached(w, load), "old")


async def old_snapshot_in_a_task(w: World) -> None:
    """R4: the load has another task ask."""
    async with w.one.database.sessions() as db:

        async def ask() -> str:
            return (await db.scalars(NAME)).one()

        async def load() -> str:
            return await asyncio.get_running_loop().create_task(ask())

        await db.execute(select(Item.id))
        await w.two.write("new")
        await kept_out(w, cached(w, load), "old")


async def old_snapshot_of_a_connection(w: World) -> None:
    """R4: the argument is a connection."""

    @w.one.cache.cached("item:{item_id}", shared=True, schema=ItemOut)
    async def get(db: AsyncConnection, redis: object, item_id: int) -> ItemOut:
        return ItemOut(id=item_id, name=(await db.execute(NAME)).scalar_one())

    async with w.one.database.engine.connect() as connection:
        await connection.execute(select(Item.id))
        await w.two.write("new")
        assert (await get(connection, w.one.client, 1)).name == "old"
    assert not await w.client.exists("item:1")
    await w.fair()


async def old_snapshot_of_a_call_inside(w: World) -> None:
    """R4: the load calls another cached function, and it is that one's session: neither is stored."""
    async with w.one.database.sessions() as db:

        @w.one.cache.cached("inner")
        async def inner(redis: object) -> str:
            return (await db.scalars(NAME)).one()

        async def load() -> str:
            return await inner(w.one.client)

        await db.execute(select(Item.id))
        await w.two.write("new")
        await kept_out(w, cached(w, load), "old")
    assert inner.stats.unstored == 1


async def old_snapshot_of_many(w: World) -> None:
    """R4: for a function that takes many ids."""
    async with w.one.database.sessions() as db:

        @w.one.cache.cached_many("item:{ids}", schema=ItemOut, shared=True)
        async def get_many(redis: object, ids: list[int]) -> list[Item | None]:
            return [await db.get(Item, one) for one in ids]

        await db.execute(select(Item.id))
        await w.two.write("new")
        assert [item.name for item in await get_many(w.one.client, [1, 2]) if item is not None] == ["old", "old"]
    assert not await w.client.exists("item:1", "item:2")
    await w.fair()


async def rolled_back(w: World) -> None:
    """R6: it writes, reads what it wrote, and rolls it back."""

    async def load() -> str:
        async with w.one.database.sessions() as db:
            await db.execute(NEVER)
            found = (await db.scalars(NAME)).one()
            await db.rollback()
            return found

    await kept_out(w, cached(w, load), "never")


async def never_committed(w: World) -> None:
    """R6: it forgets to commit: closing the session rolls back."""

    async def load() -> str:
        async with w.one.database.sessions() as db:
            await db.execute(NEVER)
            return (await db.scalars(NAME)).one()

    await kept_out(w, cached(w, load), "never")


async def never_committed_by_a_connection(w: World) -> None:
    """R6: the same without a session."""

    async def load() -> str:
        async with w.one.database.engine.connect() as connection:
            await connection.execute(NEVER)
            return str((await connection.execute(NAME)).scalar_one())

    await kept_out(w, cached(w, load), "never")


async def savepoint_rolled_back(w: World) -> None:
    """R6: it rolls back a savepoint only, and commits the rest."""

    async def load() -> str:
        async with w.one.database.sessions() as db:
            nested = await db.begin_nested()
            await db.execute(NEVER)
            found = (await db.scalars(NAME)).one()
            await nested.rollback()
            await db.commit()
            return found

    await kept_out(w, cached(w, load), "never")


async def still_open(w: World) -> None:
    """R6: a session of the module has written before, and may commit yet or not."""
    async with w.one.database.sessions() as db:

        async def load() -> str:
            return (await db.scalars(NAME)).one()

        await db.execute(NEVER)
        get = cached(w, load)
        assert (await get(w.one.client, 1)).name == "never"
        assert not await w.client.exists("item:1")
        await db.rollback()
    await w.fair()


async def not_flushed(w: World) -> None:
    """R6: it changes an object, and gives what it made of it."""
    async with w.one.database.sessions() as db:

        async def load() -> str:
            item = await db.get_one(Item, 1)
            item.name = "never"
            return item.name

        get = cached(w, load)
        assert (await get(w.one.client, 1)).name == "never"
        assert not await w.client.exists("item:1")
    await w.fair()


async def in_a_thread(w: World) -> None:
    """R6: all that in a thread, with a synchronous engine."""
    engine = create_engine(w.one.database.engine.url.set(drivername="sqlite"))

    def ask() -> str:
        with Session(engine) as db:
            db.execute(NEVER)
            return db.scalars(NAME).one()

    async def load() -> str:
        return await asyncio.to_thread(ask)

    try:
        await kept_out(w, cached(w, load), "never")
    finally:
        engine.dispose()


async def identity_map(w: World) -> None:
    """R5: a session that this task has used before has the object, and `get()` looks there first."""
    async with w.one.database.sessions() as db:

        async def load() -> str:
            return (await db.get_one(Item, 1)).name

        kept = await db.get_one(Item, 1)
        await db.commit()
        await w.two.write("new")
        assert kept.name == "old"
        assert (await cached(w, load)(w.one.client, 1)).name == "new"
    await w.fair()


async def identity_map_of_a_task(w: World) -> None:
    """R5: another task has used the session."""
    async with w.one.database.sessions() as db:

        async def load() -> str:
            return (await db.get_one(Item, 1)).name

        kept = await spawn(db.get_one(Item, 1))
        await db.commit()
        await w.two.write("new")
        assert kept.name == "old"
        assert (await cached(w, load)(w.one.client, 1)).name == "new"
    await w.fair()


async def own_identity_map(w: World) -> None:
    """Find what the load itself has loaded, as without a cache: an attribute that is not awaited sends nothing."""
    async with w.one.database.sessions() as db:

        async def load() -> str:
            item, owners = await db.get_one(Item, 1), (await db.scalars(select(Owner))).all()
            return item.name if item.owner is owners[0] else "another"

        assert (await cached(w, load)(w.one.client, 1)).name == "old"
    await w.fair()


async def stored(w: World) -> None:
    """Load in a session of its own that only reads, ended in any way: that is what a cache is for."""
    database = w.one.database

    async def closes() -> str:
        async with database.sessions() as db:
            return (await db.scalars(NAME)).one()

    async def commits() -> str:
        async with database.sessions() as db, db.begin():
            return (await db.scalars(NAME)).one()

    async def connects() -> str:
        async with database.engine.connect() as connection:
            return str((await connection.execute(NAME)).scalar_one())

    async def writes_before() -> str:
        async with database.sessions() as db:
            await db.execute(update(Item).where(Item.id == 2).values(name="new"))
            await db.commit()
            return (await db.scalars(NAME)).one()

    async def calls_a_function() -> str:
        async with database.sessions() as db:
            await db.execute(text("SELECT sign(1)"))
            return (await db.scalars(NAME)).one()

    for load in (closes, commits, connects, writes_before, calls_a_function):
        get = cached(w, load)
        assert (await get(w.one.client, 1)).name == "old"
        assert (await get(w.one.client, 1)).name == "old"
        assert (get.stats.fills, get.stats.hits) == (1, 1), load.__name__
        await w.one.cache.invalidate("item:*", redis=w.one.client)


async def two_sessions(w: World) -> None:
    """R4: the session that it names is young; the one that it has of its own is not."""
    async with w.one.database.sessions() as old, w.one.database.sessions() as young:

        @w.one.cache.cached("item:{item_id}", shared=True, schema=ItemOut)
        async def get(db: AsyncSession, redis: object, item_id: int) -> ItemOut:
            await db.execute(select(Item.id))
            return ItemOut(id=item_id, name=(await old.scalars(NAME)).one())

        await old.execute(select(Item.id))
        await w.two.write("new")
        assert (await get(young, w.one.client, 1)).name == "old"
    assert not await w.client.exists("item:1")
    await w.fair()


SNAPSHOTS: list[Scenario] = [
    old_snapshot,
    old_snapshot_ended_inside,
    old_snapshot_in_a_task,
    old_snapshot_of_a_connection,
    old_snapshot_of_a_call_inside,
    old_snapshot_of_many,
    two_sessions,
]
UNDONE: list[Scenario] = [
    rolled_back,
    never_committed,
    never_committed_by_a_connection,
    savepoint_rolled_back,
    still_open,
    not_flushed,
]
