"""The races, step by step: each holds a caller at a gate, acts, opens the gate, and checks what callers get.

Each fails with an AssertionError when the mechanism that it is about is taken out: `test_mutants` takes it out.
"""

from __future__ import annotations

import asyncio

import pytest

from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Busy, Fill, Granted
from fastrdb.testing import Gate
from tests.support.waiting import until
from tests.support.world.stores import acquire, fill, lapse_barriers
from tests.support.world.world import World, spawn

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
    """R2: a writer that has not begun in Redis has not committed either."""
    assert await w.one.read() == "old"
    gate = w.two.client.before("begin")
    writer = spawn(w.two.write("new"))
    await gate.reached()
    assert await w.one.read() == await w.truth()
    gate.open()
    await writer
    await w.fair()


async def lapsed_barriers(w: World) -> None:
    """R3: a writer's barriers lapse: a reader stores the old row before COMMIT, and the writer's end deletes it."""
    gate = w.at_commit()
    writer = spawn(w.two.write("new"))
    await gate.reached()
    await lapse_barriers(w.client)
    assert await w.one.read() == "old"
    assert await w.client.exists("item:1")
    gate.open()
    await writer
    await w.fair()


async def lapsed_barriers_during_a_load(w: World) -> None:
    """R3: the same, with a reader that has loaded the old row before COMMIT, and would store it behind the end."""
    at_commit, after_load = w.at_commit(), w.one.gates.after("load")
    writer = spawn(w.two.write("new"))
    await at_commit.reached()
    await lapse_barriers(w.client)
    reader = spawn(w.one.read())
    await after_load.reached()
    at_commit.open()
    await writer
    after_load.open()
    assert await reader == "old"
    await w.fair()


async def missed_commit(w: World) -> None:
    """Commit while Redis is out of the writer's reach: when it is back, no process is answered with the old entry."""
    assert await w.one.read() == "old"
    w.two.client.fail_with(ConnectionError)
    await w.two.write("new")
    w.two.client.heal()

    async def is_repaired() -> bool:
        return not w.two.store.has_pending

    await until(is_repaired)
    await w.fair()


async def lease_expired(w: World) -> None:
    """R9: a load takes longer than its lease, and a later caller has stored a newer entry by then."""
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
    """R9: a load that outlived its lease and then fails does not give back the lease of a later caller."""
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
    token = await w.value(LEASE)
    reader.cancel()
    with pytest.raises(asyncio.CancelledError):
        await reader
    await w.two.write("new")
    assert not await fill(w.one.store, w.one.client, "item:1", token, b'{"id":1,"name":"old"}', 60_000)
    await w.fair()


async def zombie_acquire(w: World) -> None:
    """R11: an acquire that arrives when its caller is gone, a writer has begun, and its own lease was swept."""
    token = "f" * 32
    gate = w.at_commit()
    writer = spawn(w.two.write("new"))
    await gate.reached()
    await acquire(w.one.store, w.one.client, "item:1", token)
    gate.open()
    await writer
    assert not await fill(w.one.store, w.one.client, "item:1", token, b'{"id":1,"name":"old"}', 60_000)
    await w.fair()


async def late_copy(w: World) -> None:
    """R11: a copy of an acquire arrives when a writer has come and gone: what the first grant loaded is not stored."""
    token = "f" * 32
    first = (await w.one.store.acquire(w.one.client, {"item:1": token}))["item:1"]
    await w.two.write("new")
    second = (await w.one.store.acquire(w.one.client, {"item:1": token}))["item:1"]
    assert isinstance(first, Granted)
    assert isinstance(second, Granted)
    (stored,) = await w.one.store.fill(w.one.client, [Fill("item:1", first.lease, b'{"id":1,"name":"old"}', 60_000)])
    assert not stored
    await w.one.store.release(w.one.client, {"item:1": token})
    await w.fair()


async def joiner(w: World) -> None:
    """R14: a load began before a write: a caller that comes after the write does not get its result."""
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
    """R14: callers that come during a load, without a writer in between, share that load."""
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


async def cancelled_before_commit(w: World, gate: Gate) -> None:
    """Cancel a writer at a gate before its COMMIT. The next user of its connection commits something else."""
    writer = spawn(w.two.write("never"))
    await gate.reached()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    await w.two.write("other", item_id=2)
    assert await w.truth() == "old"
    await w.fair()
    await w.quiet()


async def lost_reply(w: World) -> None:
    """R10: an acquire was executed, its reply lost, and it is sent again: the lease is the caller's own."""
    store, token = w.one.store, "a" * 32
    assert await acquire(store, w.one.client, "item:1", token) == Granted()
    assert await acquire(store, w.one.client, "item:1", token) == Granted()
    assert await acquire(store, w.one.client, "item:1", "b" * 32) == Busy(token)
    await store.invalidate(w.one.client, [Prefix("item")])
