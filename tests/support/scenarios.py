"""The races, step by step: each holds somebody at a gate, acts, lets go, and looks at what callers are answered.

Each fails with an AssertionError when the mechanism that it is about is taken out: `test_mutants` takes it out.
"""

from __future__ import annotations

import asyncio

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb.prefixes import Prefix
from fastrdb.store import Busy, Granted
from tests.support.world import Item, ItemOut, World, spawn

LEASE = "fastrdb:lease:{item:1}"


async def stale_fill(w: World) -> None:
    """R1: a reader has loaded the old row; a writer commits; the reader's fill arrives last."""
    gate = w.one.gates.after("load")
    reader = spawn(w.one.read())
    await gate.reached()
    await w.two.write("new")
    gate.open()
    assert await reader in {"old", "new"}
    await w.fair()


async def refill_before_commit(w: World) -> None:
    """R2: the writer has emptied the cache, and its COMMIT is still to come: a reader loads the old row then."""
    assert await w.one.read() == "old"
    gate = w.at_commit()
    writer = spawn(w.two.write("new"))
    await gate.reached()
    assert not await w.client.exists("item:1")
    assert await w.one.read() == "old"
    assert not await w.client.exists("item:1", LEASE)
    gate.open()
    await writer
    await w.fair()


async def window_after_commit(w: World) -> None:
    """R3: between COMMIT and its end readers see the new row, and store nothing."""
    assert await w.one.read() == "old"
    gate = w.two.client.before("end")
    writer = spawn(w.two.write("new"))
    await gate.reached()
    hits = w.one.cache.stats().hits
    assert await w.one.read() == "new"
    assert w.one.cache.stats().hits == hits
    assert not await w.client.exists("item:1")
    gate.open()
    await writer
    await w.fair()
    assert await w.client.exists("item:1")


async def deleted_before_commit(w: World) -> None:
    """As long as the writer has not told Redis, it has not committed either."""
    assert await w.one.read() == "old"
    gate = w.two.client.before("begin")
    writer = spawn(w.two.write("new"))
    await gate.reached()
    assert await w.one.read() == await w.truth()
    gate.open()
    await writer
    await w.fair()


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
    """R4: who waited for a load that turns out to look at an old snapshot loads for itself."""
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
    """R7: releasing a savepoint commits nothing, and is not told to Redis; the outer COMMIT is."""
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


async def lease_expired(w: World) -> None:
    """R9: a load takes longer than its lease; who came after it has stored something newer by then."""
    gate = w.one.gates.after("load")
    slow = spawn(w.one.read())
    await gate.reached()
    await w.lapse(LEASE)
    await w.two.write("new")
    assert await w.two.read() == "new"
    gate.open()
    assert await slow == "old"
    assert w.one.get.stats.unstored == 1
    await w.fair()


async def release_spares_others(w: World) -> None:
    """R9: a load that outlived its lease and then fails does not take the lease of who came after it."""
    failing, gate = w.one.gates.after("load"), w.two.gates.after("load")
    first = spawn(w.one.read())
    await failing.reached()
    await w.lapse(LEASE)
    second = spawn(w.two.read())
    await gate.reached()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    await w.one.cache.aclose()
    gate.open()
    assert await second == "old"
    assert w.two.get.stats.fills == 1


async def zombie_fill(w: World) -> None:
    """R11: a fill that its caller has given up on reaches the server after a write: it changes nothing."""
    gate = w.one.gates.after("load")
    reader = spawn(w.one.read())
    await gate.reached()
    token = (await w.client.get(LEASE)).decode()
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await w.two.write("new")
    assert not await w.one.store.fill(w.one.client, "item:1", token, b'{"id":1,"name":"old"}', 60_000)
    await w.fair()


async def zombie_acquire(w: World) -> None:
    """R11: an acquire that arrives when its caller is gone, a writer has begun, and its own lease was swept."""
    token = "f" * 32
    gate = w.at_commit()
    writer = spawn(w.two.write("new"))
    await gate.reached()
    await w.one.store.acquire(w.one.client, "item:1", token)
    gate.open()
    await writer
    assert not await w.one.store.fill(w.one.client, "item:1", token, b'{"id":1,"name":"old"}', 60_000)
    await w.fair()


async def joiner(w: World) -> None:
    """R14: a load began before a write; who calls when the write is acknowledged is not handed its result."""
    gate = w.one.gates.after("load")
    first = spawn(w.one.read())
    await gate.reached()
    await w.two.write("new")
    asked = w.one.client.after("GET")
    second = spawn(w.one.read())
    await asked.reached()
    asked.open()
    gate.open()
    assert await second == "new"
    assert await first == "old"
    await w.fair()


async def followers(w: World) -> None:
    """Who calls while a load goes on, and no writer has come, is answered by it: one load for all."""
    gate = w.one.gates.after("load")
    calls = [spawn(w.one.read()) for _ in range(20)]
    await gate.reached()
    gate.open()
    assert set(await asyncio.gather(*calls)) == {"old"}
    assert w.one.get.stats.loads == 1


async def two_writers(w: World) -> None:
    """R15: two writers reach one prefix: the end of the first does not take the barrier of the second down."""
    first, second = w.at_commit(), w.at_commit()

    async def write(name: str, item_id: int) -> None:
        async with w.two.database.sessions() as db:
            await w.two.change(db, w.two.client, item_id, name)

    writers = [spawn(write("new", 1))]
    await first.reached()
    writers.append(spawn(write("new", 2)))
    await second.reached()
    first.open()
    await writers[0]
    assert await w.one.read(2) == "old"
    assert not await w.client.exists("item:2")
    second.open()
    await writers[1]
    await w.fair(1)
    await w.fair(2)


async def put_against_a_writer(w: World) -> None:
    """A writer that stores what it wrote is overtaken, between its COMMIT and its end, by another: nothing is stored."""
    gate = w.one.client.before("end")
    slow = spawn(w.one.save("first"))
    await gate.reached()
    await w.two.write("second")
    gate.open()
    await slow
    await w.fair()


async def put_before_a_writer(w: World) -> None:
    """The other order: what was stored at a commit goes at the next one, and never comes back."""
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
    """A writer that stores what it wrote takes the lease from a reader who loaded the row before."""
    gate = w.one.gates.after("load")
    reader = spawn(w.one.read())
    await gate.reached()
    await w.two.save("new")
    gate.open()
    assert await reader == "old"
    assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'
    await w.fair()


async def put_rolled_back(w: World) -> None:
    """What is put in a transaction that is rolled back is never stored."""
    async with w.one.database.sessions() as db:
        await db.execute(update(Item).where(Item.id == 1).values(name="never"))
        await w.one.get.put(ItemOut(id=1, name="never"), db=db, redis=w.one.client, item_id=1)
        await db.rollback()
    assert not await w.client.exists("item:1")
    await w.fair()


async def lost_reply(w: World) -> None:
    """R10: an acquire was executed, its reply lost, and it is sent again: the lease is the caller's own."""
    store, token = w.one.store, "a" * 32
    assert await store.acquire(w.one.client, "item:1", token) == Granted()
    assert await store.acquire(w.one.client, "item:1", token) == Granted()
    assert await store.acquire(w.one.client, "item:1", "b" * 32) == Busy(token)
    await store.invalidate(w.one.client, [Prefix("item")])


async def cached_again(w: World, db: AsyncSession) -> None:
    """A session without writes reads and fills as anyone."""
    assert (await w.one.get(db, w.one.client, 1)).name == "old"
    assert await w.client.exists("item:1")
