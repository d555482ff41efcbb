"""The races that the state of a session decides: its snapshot, its identity map, its own writes, its savepoints."""

from __future__ import annotations

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from tests.races.scenarios.fills import LEASE
from tests.support.world.world import Item, ItemOut, World, spawn


async def old_snapshot(w: World) -> None:
    """R4: the reader's transaction began before the write: its answer is its own, and is not stored."""
    async with w.one.database.sessions() as db:
        await db.execute(select(Item.id))
        await w.two.write("new")
        assert (await w.one.get(db, w.one.client, 1)).name == "old"
    assert w.one.get.stats.unstored == 1
    await w.fair()


async def old_snapshot_ended_inside(w: World) -> None:
    """R4: the same, where the cached function itself ends that transaction: it has loaded from it all the same."""
    async with w.one.database.sessions() as db:
        await db.execute(select(Item.id))
        await w.two.write("new")
        assert (await w.one.get_and_commit(db, w.one.client, 1)).name == "old"
    async with w.two.database.sessions() as db:
        assert (await w.two.get_and_commit(db, w.two.client, 1)).name == "new"


async def old_snapshot_of_a_leader(w: World) -> None:
    """R4: a caller that waited for a load with an old snapshot loads for itself."""
    gate = w.one.gates.after("load")
    async with w.one.database.sessions() as db:
        await db.execute(select(Item.id))
        await w.two.write("new")
        leader = spawn(w.one.get(db, w.one.client, 1))
        await gate.reached()
        asked = w.one.client.after("acquire")
        follower = spawn(w.one.read())
        await asked.reached()
        asked.open()
        gate.open()
        assert (await leader).name == "old"
    assert await follower == "new"
    await w.fair()


async def identity_map(w: World) -> None:
    """R5: the session has loaded the object long ago, and keeps it across commits."""
    async with w.one.database.sessions() as db:
        kept = await db.get_one(Item, 1)
        await db.commit()
        await w.two.write("new")
        assert kept.name == "old"
        assert (await w.one.get(db, w.one.client, 1)).name == "new"
    await w.fair()


async def identity_map_by_get(w: World) -> None:
    """R5: likewise where the function asks for `session.get()`, which looks there before anything else."""
    async with w.one.database.sessions() as db:
        kept = await db.get_one(Item, 1)
        await db.commit()
        await w.two.write("new")
        assert kept.name == "old"
        assert (await w.one.get_by_identity(db, w.one.client, 1)).name == "new"
    async with w.two.database.sessions() as db:
        assert (await w.two.get_by_identity(db, w.two.client, 1)).name == "new"


async def identity_map_by_relationship(w: World) -> None:
    """R5: likewise for what a many-to-one relationship leads to."""
    async with w.one.database.sessions() as db:
        kept = await db.get_one(Item, 1)
        owner = await kept.awaitable_attrs.owner
        await db.commit()
        async with w.two.database.sessions() as other:
            await w.two.rename_owner(other, w.two.client, "new")
        assert owner.name == "old"
        assert await w.one.get_owner(db, w.one.client, 1) == "new"
    async with w.two.database.sessions() as db:
        assert await w.two.get_owner(db, w.two.client, 1) == "new"


async def own_writes(w: World, how: str = "update") -> None:
    """R6: a session reads what it has written and not committed, and then rolls it back."""
    async with w.one.database.sessions() as db:
        if how == "attribute":  # not flushed when the cached function is called
            (await db.get_one(Item, 1)).name = "never"
        elif how == "text":
            await w.one.by_text(db, "never")
        else:
            await db.execute(update(Item).where(Item.id == 1).values(name="never"))
        assert (await w.one.get(db, w.one.client, 1)).name == "never"
        assert w.one.get.stats.bypasses == 1
        assert not await w.client.exists("item:1", LEASE)
        await db.rollback()
    assert await w.one.read() == "old"
    await w.fair()


async def savepoint_released(w: World) -> None:
    """R7: releasing a savepoint commits nothing, and does not begin in Redis; the outer COMMIT does."""
    async with w.two.database.sessions() as db, db.begin():
        async with db.begin_nested():
            await w.two.rename(db, w.two.client, 1, "new")
        assert not {"begin", "end"} & set(w.two.client.names())
        assert await w.one.read() == "old"
        assert await w.client.exists("item:1")
    assert [name for name in w.two.client.names() if name in {"begin", "end"}] == ["begin", "end"]
    await w.fair()


async def savepoint_that_commits(w: World) -> None:
    """R7 on SQLite, whose driver sends no BEGIN before a savepoint: then releasing it is the commit."""
    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db:
        async with db.begin_nested():
            await w.two.rename(db, w.two.client, 1, "new")
        assert await w.one.read() == await w.truth() == "new"
    await w.fair()


async def savepoint_rolled_back(w: World) -> None:
    """R8: what was invalidated or put in a savepoint that is rolled back: invalidated at the commit, never stored."""
    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db, db.begin():
        nested = await db.begin_nested()
        await w.two.rename(db, w.two.client, 1, "never")
        await w.two.get.put(ItemOut(id=1, name="never"), db=db, redis=w.two.client, item_id=1)
        await nested.rollback()
    assert "begin" in w.two.client.names()
    assert not await w.client.exists("item:1")
    await w.fair()


async def put_against_a_writer(w: World) -> None:
    """R3: a writer that stores what it wrote is overtaken, between COMMIT and end, by another: nothing is stored."""
    gate = w.one.client.before("end")
    slow = spawn(w.one.save("first"))
    await gate.reached()
    await w.two.write("second")
    gate.open()
    await slow
    await w.fair()


async def put_before_a_writer(w: World) -> None:
    """R3: the other order, where what was stored at a commit goes at the next one, and never comes back."""
    await w.one.save("first")
    assert await w.client.exists("item:1")
    gate = w.at_commit()
    writer = spawn(w.two.save("second"))
    await gate.reached()
    assert not await w.client.exists("item:1")
    assert await w.one.read() == "first"
    gate.open()
    await writer
    assert await w.client.get("item:1") == b'{"id":1,"name":"second"}'
    await w.fair()


async def put_against_a_reader(w: World) -> None:
    """R3: a writer that stores what it wrote takes the lease from a reader that loaded the row before."""
    gate = w.one.gates.after("load")
    reader = spawn(w.one.read())
    await gate.reached()
    await w.two.save("new")
    gate.open()
    assert await reader == "old"
    assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'
    await w.fair()


async def put_rolled_back(w: World) -> None:
    """R8: a value that is put in a transaction that is rolled back is never stored."""
    async with w.one.database.sessions() as db:
        await db.execute(update(Item).where(Item.id == 1).values(name="never"))
        await w.one.get.put(ItemOut(id=1, name="never"), db=db, redis=w.one.client, item_id=1)
        await db.rollback()
    assert not await w.client.exists("item:1")
    await w.fair()


async def undone_in_the_load(w: World, how: str) -> None:
    """R6: a cached function writes, reads what it wrote, and rolls it back before it returns."""

    @w.one.cache.cached("item:{item_id}", shared=True, schema=ItemOut)
    async def get(db: AsyncSession, redis: object, item_id: int) -> ItemOut:
        nested = await db.begin_nested() if how == "savepoint" else None
        await db.execute(update(Item).where(Item.id == item_id).values(name="never"))
        name = (await db.scalars(select(Item.name).where(Item.id == item_id))).one()
        await (nested.rollback() if nested is not None else db.rollback())
        await db.commit()
        return ItemOut(id=item_id, name=name)

    async with w.one.database.sessions() as db:
        await db.execute(select(Item.id))
        assert (await get(db, w.one.client, 1)).name == "never"
    assert not await w.client.exists("item:1")
    await w.fair()
