"""What may come between two steps on a cluster, where each slot is a step of its own; at the store, step by step.

Each fails with an AssertionError when the mechanism that it is about is taken out: `test_cluster_steps` takes it out.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Barred, Granted, Store
from fastrdb.protocol.intent import Intent
from fastrdb.protocol.keyspace import ClusterKeyspace
from tests.races.seams import Change
from tests.support.world.gates import GatedCluster
from tests.support.world.stores import acquire, fill, lapse_barriers, lose, members, put, store_on
from tests.support.world.world import spawn

KEY, OLD, NEW = "user:1", b"old", b"new"
USERS = Prefix("user:")


class Slots:
    """Two processes on one cluster: a reader and a writer. The first command of each script is its call."""

    def __init__(self, client: RedisCluster) -> None:
        self.client = client
        self.reader, self.writer = GatedCluster(client), GatedCluster(client)
        self.reads, self.writes = store_on(client), store_on(client)
        self.names = ClusterKeyspace("")

    async def stored(self, raw: bytes = OLD) -> None:
        """Store an entry."""
        assert await acquire(self.reads, self.reader, KEY, "stored") == Granted()
        assert await fill(self.reads, self.reader, KEY, "stored", raw, 60_000)

    async def begun(self, store: Store | None = None, client: Any = None) -> Intent:
        """Begin a writer of a prefix."""
        intent = (store or self.writes).intent(client or self.writer)
        intent.add([USERS])
        await intent.begin()
        return intent

    async def empty(self) -> None:
        """Check that no caller is answered from the cache."""
        assert await self.reads.get(self.reader, KEY) is None

    def change(self, change: Change, monkeypatch: pytest.MonkeyPatch) -> None:
        """Take a mechanism out of both processes, and let gates find the scripts that were changed."""
        for script in change.apply(monkeypatch.setattr):
            for client in (self.reader, self.writer):
                client.name_script(script.sha, script.name)

    async def end(self) -> None:
        """Open all gates, and wait until nothing runs any more."""
        for client in (self.reader, self.writer):
            client.gates.open_all()
        for store in (self.reads, self.writes):
            await store.aclose(5)


Scenario = Callable[[Slots], Coroutine[Any, Any, None]]


async def begun_between_lease_and_shard(w: Slots) -> None:
    """Begin a writer when a reader has its lease and is not in the index yet: the reader is barred in its shard."""
    gate = w.reader.after("acquire")
    reader = spawn(acquire(w.reads, w.reader, KEY, "reader"))
    await gate.reached()
    intent = await w.begun()
    gate.open()
    assert await reader == Barred()
    assert not (await w.reads.inspect(w.reader, KEY)).leased
    await intent.end(committed=True)
    assert not await fill(w.reads, w.reader, KEY, "reader", OLD, 60_000)
    await w.empty()


async def committed_between_lease_and_shard(w: Slots) -> None:
    """Begin and end a writer meanwhile: the reader loads what the writer has committed, and may store it."""
    gate = w.reader.after("acquire")
    reader = spawn(acquire(w.reads, w.reader, KEY, "reader"))
    await gate.reached()
    await (await w.begun()).end(committed=True)
    gate.open()
    assert await reader == Granted()
    assert await fill(w.reads, w.reader, KEY, "reader", NEW, 60_000)
    assert await w.writes.invalidate(w.writer, [USERS]) == 1
    await w.empty()


async def lease_before_the_writer(w: Slots) -> None:
    """Load before a writer begins: the reader's lease is gone, and what was loaded is not stored."""
    assert await acquire(w.reads, w.reader, KEY, "reader") == Granted()
    intent = await w.begun()
    assert not (await w.reads.inspect(w.reader, KEY)).leased
    await intent.end(committed=True)
    assert not await fill(w.reads, w.reader, KEY, "reader", OLD, 60_000)
    await w.empty()


async def reader_behind_the_sweep(w: Slots) -> None:
    """Check that from begin on no reader is granted a lease, and that the old entry is gone."""
    await w.stored()
    intent = await w.begun()
    await w.empty()
    assert await acquire(w.reads, w.reader, KEY, "reader") == Barred()
    await intent.end(committed=True)
    assert await acquire(w.reads, w.reader, KEY, "reader") == Granted()


async def second_writer_between_range_and_deletion(w: Slots) -> None:
    """R12: a second writer commits when the first has looked into the index and not deleted yet."""
    await w.stored()
    gate = w.writer.before("DEL")
    first = spawn(w.begun())
    await gate.reached()
    other = store_on(w.client)
    await (await w.begun(other, w.reader)).end(committed=True)
    await other.aclose()
    await w.empty()
    gate.open()
    await (await first).end(committed=True)


async def lease_goes_first(w: Slots) -> None:
    """R13: of an entry and its lease the lease goes first; else a fill might come in between."""
    await w.stored()
    w.writer.log.clear()
    await w.writes.invalidate(w.writer, [USERS], ["page:1"])
    sent = [args for _, args in w.writer.log if args[0] in {"DEL", "UNLINK"}]
    assert sent, "this looks at the command that is sent first for each name"
    assert sent[0] == ("DEL", w.names.lease(sent[1][1]))
    assert sent[1][0] == "UNLINK"


async def entered_again_while_it_is_buried(w: Slots) -> None:
    """Find a member of the index dead that comes to life before the index is changed."""
    await put(w.client, "index", {KEY: 0})
    await put(w.client, "expiry", {KEY: 1})
    gate = w.writer.before("remove_dead")
    shard = w.names.shard(KEY.encode())
    near = next(f"near:{n}" for n in range(1000) if w.names.shard(f"near:{n}".encode()) == shard)
    assert await acquire(w.writes, w.writer, near, "t") == Granted()
    assert await fill(w.writes, w.writer, near, "t", b"1", 60_000)
    await gate.reached()
    assert await acquire(w.reads, w.reader, KEY, "reader") == Granted()
    gate.open()
    await w.writes.aclose(5)
    assert await fill(w.reads, w.reader, KEY, "reader", OLD, 60_000)
    assert KEY.encode() in await members(w.client, "index")
    assert await w.writes.invalidate(w.writer, [USERS]) == 1
    await w.empty()


async def found_by_its_prefix(w: Slots) -> None:
    """Check that an entry that a reader has stored is found by every writer of a prefix."""
    await w.stored()
    assert await w.writes.invalidate(w.writer, [USERS]) == 1
    await w.empty()


async def written_through_and_found(w: Slots) -> None:
    """Check that an entry that a writer has stored is found by every later writer of a prefix."""
    intent = w.writes.intent(w.writer)
    intent.put(KEY, NEW, 60_000)
    await intent.begin()
    await intent.end(committed=True)
    assert await w.reads.get(w.reader, KEY) == NEW
    assert await w.reads.invalidate(w.reader, [USERS]) == 1
    await w.empty()


async def written_through_against_another(w: Slots) -> None:
    """Between its begin and its end a writer loses its lease to another: it stores nothing."""
    intent = w.writes.intent(w.writer)
    intent.put(KEY, OLD, 60_000)
    await intent.begin()
    await (await w.begun(w.reads, w.reader)).end(committed=True)
    await intent.end(committed=True)
    await w.empty()


async def written_through_and_evicted(w: Slots) -> None:
    """Evict the index before a writer takes its lease, and let another make it whole: a third one finds the lease."""
    w.writes._backend.trust._policies[b"another"] = (True, b"allkeys-lru")
    w.writes._backend.trust._policy = (True, b"allkeys-lru")
    intent = w.writes.intent(w.writer)
    intent.put(KEY, OLD, 60_000)
    gate = w.writer.before("take")
    beginning = spawn(intent.begin())
    await gate.reached()
    await lose(w.client, "index")
    await (await w.begun(w.reads, w.reader)).end(committed=True)
    gate.open()
    await beginning
    await (await w.begun(w.reads, w.reader)).end(committed=True)
    await intent.end(committed=True)
    await w.empty()


async def barrier_that_lapsed(w: Slots) -> None:
    """End a writer's barrier before its COMMIT: an entry that a reader has stored since goes at the end."""
    intent = await w.begun()
    await lapse_barriers(w.client)
    await w.stored()
    await intent.end(committed=True)
    await w.empty()
