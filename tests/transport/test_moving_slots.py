"""A slot is being moved: whatever is done meanwhile is answered, and rightly; afterwards things are stored again.

Each operation has a key of its own, all in one slot, whose members of the index are all in one shard. It is prepared
before the move begins, done when some of the slot's keys have gone, and looked at when all of them have.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio.cluster import ClusterPipeline, RedisCluster

from fastrdb import Cache
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol.keyspace import ClusterKeyspace
from fastrdb.testing import Gates
from fastrdb.transport.commands import slot_of
from tests.support.network.recorder import tapped
from tests.support.servers.cluster import HOST, Cluster
from tests.support.waiting import until
from tests.support.world.stores import lapse_barriers
from tests.support.world.world import spawn
from tests.transport.test_cluster import Move

NAMES = ClusterKeyspace("")
SHARD = NAMES.shard(b"{t}:0")
KEYS = [n for n in range(2_000) if NAMES.shard(b"{t}:%d" % n) == SHARD]
SLOTS = {"entries": slot_of(b"{t}"), "shard": slot_of(SHARD.index)}


def own(name: str) -> bool:
    """Return leases and rosters; of a shard all but the index."""
    return name.startswith("fastrdb:") and not name.endswith(":index")


class OfItsOwn(RedisCluster):
    """A client that must see what is sent."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command as any other client does."""
        return await super().execute_command(*args, **options)


class InTurn(OfItsOwn):
    """A client that sends one command at a time, and so has one connection to each server.

    Over two, redis-py sends ASKING over one and the command over the other, until it gives up: "TTL exhausted".
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.turn = asyncio.Lock()

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command when the one before is answered."""
        async with self.turn:
            return await super().execute_command(*args, **options)

    def pipeline(self, *args: Any, **options: Any) -> ClusterPipeline:
        """Return a pipeline that waits for its turn, too."""
        return PipelineInTurn(self)  # type: ignore[abstract]  # only by redis-py's types


class PipelineInTurn(ClusterPipeline):
    """A pipeline that is sent when the command before is answered."""

    cluster_client: InTurn

    async def execute(self, *args: Any, **options: Any) -> Any:
        """Send the commands as any other pipeline does."""
        async with self.cluster_client.turn:
            return await super().execute(*args, **options)


GONE: dict[str, Callable[[str], bool]] = {
    "nothing": lambda name: False,
    "fastrdb's own": own,
    "all but fastrdb's own": lambda name: not own(name),
    "all": lambda name: True,
}
"""What has been moved already."""


class Process:
    """One process over a database in memory."""

    def __init__(self, client: RedisCluster, truth: defaultdict[int, str], **settings: Any) -> None:
        self.client, self.truth, self.gates = client, truth, Gates()
        self.cache = Cache(client, **{"timeout": 5, "near": True, **settings})
        self.broken: set[int] = set()

        async def load(n: int) -> str:
            await self.gates.arrive(f"load {n}")
            if n in self.broken:
                raise LookupError(n)
            return truth[n]

        self.read = self.cache.cached("{{t}}:{n}", shared=True, near=False)(load)
        self.near = self.cache.cached("{{t}}:{n}", shared=True, near=True)(load)
        self.timed = self.cache.cached("{{t}}:{n}", shared=True, near=False, exp=60, stale=60)(load)

        @self.cache.cached_many("{{t}}:{ns}", shared=True, near=False)
        async def many(ns: list[int]) -> dict[int, str]:
            return {n: truth[n] for n in ns}

        self.many = many

    @property
    def store(self) -> Any:
        """The store behind the client."""
        return self.cache.runtime.store(self.client)

    async def stored(self, *ns: int) -> None:
        """Store entries."""
        for n in ns:
            assert await self.read(n) == self.truth[n]
            hits = self.read.stats.hits
            assert await self.read(n) == self.truth[n]
            assert self.read.stats.hits == hits + 1

    def write(self, n: int) -> Any:
        """Change a row in a transaction."""
        intent = self.store.intent(self.client)
        intent.add([Prefix(f"{{t}}:{n}")])
        return intent

    def commit(self, n: int) -> str:
        """COMMIT."""
        self.truth[n] += "'"
        return self.truth[n]


Operation = Callable[[Process, Process, int], AsyncIterator[None]]


async def hit(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Read by a GET, which finds the entry wherever it is."""
    await one.stored(n)
    yield
    hits = one.read.stats.hits
    assert await one.read(n) == one.truth[n]
    assert one.read.stats.hits == hits + 1


async def timed_hit(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Read by GET and PTTL, which find the entry, too."""
    await one.stored(n)
    yield
    hits = one.timed.stats.hits
    assert await one.timed(n) == one.truth[n]
    assert one.timed.stats.hits == hits + 1


async def near_hit(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Read what is to be kept near; another client changes it afterwards."""
    await other.stored(n)
    yield
    for _ in range(3):
        assert await one.near(n) == one.truth[n]


async def several(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Read many at once, of which some are stored, and one lies in another slot."""
    await one.stored(n)
    yield
    assert await one.many([n, n + 100_000]) == {at: one.truth[at] for at in (n, n + 100_000)}


async def miss(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Load a key that is not there."""
    yield
    assert await one.read(n) == one.truth[n]


async def refresh(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Load a key although it is there."""
    await one.stored(n)
    yield
    assert await one.read.refresh(n) == one.truth[n]


async def fill(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Fill after a load that began before."""
    gate = one.gates.before(f"load {n}")
    task = spawn(one.read(n))
    await gate.reached()
    yield
    gate.open()
    assert await task == one.truth[n]


async def release(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Fail a load that began before: its lease is given back."""
    gate = one.gates.before(f"load {n}")
    task = spawn(one.read(n))
    await gate.reached()
    yield
    one.broken.add(n)
    gate.open()
    with pytest.raises(LookupError):
        await task
    one.broken.clear()


async def inspect(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Look at a key."""
    await one.stored(n)
    yield
    assert (await one.read.explain(n)).key == f"{{t}}:{n}"


async def discard(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Discard an entry that is no JSON."""
    await one.client.set(f"{{t}}:{n}", b"\x80", px=600_000)
    yield
    assert await one.read(n) == one.truth[n]


async def slow(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Load from before the COMMIT until the move is over: the result is not stored."""
    gate = one.gates.after(f"load {n}")
    task = spawn(one.read(n))
    await asyncio.sleep(0)
    yield
    intent = other.write(n)
    await intent.begin()
    other.commit(n)
    await intent.end(committed=True)
    yield
    gate.open()
    await task


async def write(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Run all of a commit."""
    await other.stored(n)
    yield
    intent = one.write(n)
    await intent.begin()
    one.commit(n)
    await intent.end(committed=True)


async def end(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Run the end of a commit."""
    await other.stored(n)
    intent = one.write(n)
    await intent.begin()
    yield
    one.commit(n)
    await intent.end(committed=True)


async def begin(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Run the beginning of a commit, whose end comes when the move is over."""
    await other.stored(n)
    yield
    intent = one.write(n)
    await intent.begin()
    one.commit(n)
    yield
    await intent.end(committed=True)


async def put(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Write through in a commit."""
    await other.stored(n)
    yield
    intent = one.write(n)
    intent.put(f"{{t}}:{n}", f'"{one.truth[n]}\'"'.encode(), 60_000)
    await intent.begin()
    one.commit(n)
    await intent.end(committed=True)


async def put_before(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Run its end."""
    await other.stored(n)
    intent = one.write(n)
    intent.put(f"{{t}}:{n}", f'"{one.truth[n]}\'"'.encode(), 60_000)
    await intent.begin()
    yield
    one.commit(n)
    await intent.end(committed=True)


async def rollback(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Roll a transaction back."""
    await other.stored(n)
    intent = one.write(n)
    intent.put(f"{{t}}:{n}", b'"never"', 60_000)
    await intent.begin()
    yield
    await intent.end(committed=False)


async def by_prefix(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Invalidate by hand, by prefix."""
    await other.stored(n)
    yield
    one.commit(n)
    await one.cache.invalidate(f"{{{{t}}}}:{n}*")


async def by_key(one: Process, other: Process, n: int) -> AsyncIterator[None]:
    """Invalidate one key by hand."""
    await other.stored(n)
    yield
    one.commit(n)
    await one.read.invalidate(n)


OPERATIONS: list[Operation] = [
    *(hit, timed_hit, near_hit, several, miss, refresh, fill, release, inspect, discard),
    *(slow, write, end, begin, put, put_before, rollback, by_prefix, by_key),
]


async def settled(process: Process) -> None:
    """Wait until Redis has all that it has missed."""

    async def open_again() -> bool:
        return process.store.bypass_reason(process.client) is None

    await until(open_again)


async def all_go_on(works: list[AsyncIterator[None]]) -> None:
    """Run the next part of each."""
    for work in works:
        with suppress(StopAsyncIteration):
            await anext(work)


def moved(move: Move, gone: Callable[[str], bool]) -> None:
    """Move a part of the slot's keys."""
    for name in move.source.ask("CLUSTER", "GETKEYSINSLOT", move.slot, 1_000):
        if gone(name):
            move.source.ask("MIGRATE", HOST, move.target.port, "", 0, 5000, "KEYS", name)


@pytest.mark.parametrize(
    ("kind", "moving", "gone"),
    [
        *((RedisCluster, moving, gone) for moving in SLOTS for gone in GONE),
        (InTurn, "entries", "fastrdb's own"),
        (InTurn, "entries", "all"),
        (InTurn, "shard", "fastrdb's own"),
    ],
)
async def test_while_a_slot_is_moved(cluster: Cluster, moving: str, gone: str, kind: type[RedisCluster]) -> None:
    """No caller sees an exception, or an old answer; and no key stays out of the cache."""
    cluster.flush()
    truth: defaultdict[int, str] = defaultdict(lambda: "v")
    async with cluster.client(kind, protocol=3) as first, cluster.client(protocol=3) as second:
        one, other = Process(first, truth), Process(second, truth)
        rows = KEYS[: len(OPERATIONS)]
        works = [work(one, other, n) for n, work in zip(rows, OPERATIONS, strict=True)]
        await all_go_on(works)
        with Move(cluster, SLOTS[moving]) as move:
            moved(move, GONE[gone])
            await all_go_on(works)
            assert [await one.read(n) for n in rows] == [truth[n] for n in rows]
            # A client with methods of its own is asked itself. While a slot moves, redis-py refuses some commands,
            # so a commit stays pending until the move is over, and the process bypasses its entries for so long.
            if moving == "entries" and kind is not InTurn:
                assert not one.store.has_pending
                assert [await other.read(n) for n in rows] == [truth[n] for n in rows]
        await all_go_on(works)
        for process in (one, other):
            await settled(process)
        for process in (one, other):
            assert [await process.read(n) for n in rows] == [truth[n] for n in rows]
            assert [await process.near(n) for n in rows] == [truth[n] for n in rows]
        if moving == "shard" or kind is InTurn:  # a late repair leaves barriers until these lapse
            await lapse_barriers(first)
        await one.stored(*rows)
        for process in (one, other):
            await process.cache.aclose()


async def test_what_is_refused_is_not_tried_again(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that is asked itself goes past the cache: redis-py would send it sixteen times, in half a second."""
    cluster.flush()
    async with tapped(cluster, monkeypatch) as tap, cluster.client(InTurn) as client:
        process = Process(client, defaultdict(lambda: "v"))
        await process.stored(0)
        with Move(cluster, SLOTS["entries"]) as move:
            moved(move, GONE["all"])
            assert await process.read(1) == "v"
        await process.cache.aclose()
    assert len([words for _, words in tap.sent if words[0] == b"EVALSHA" and b"{t}:1" in words]) == 1


async def test_redis_py_gives_up(cluster: Cluster) -> None:
    """Over two connections to a server, redis-py follows nothing: calls load by themselves, and a commit is pending."""
    cluster.flush()
    async with cluster.client(OfItsOwn) as client:
        process = Process(client, defaultdict(lambda: "v"))
        await process.stored(0, 1)
        with Move(cluster, SLOTS["entries"]) as move:
            moved(move, GONE["all"])
            for node in client.get_primaries():
                await asyncio.gather(client.ping(target_nodes=node), client.ping(target_nodes=node))
            assert await process.read(0) == "v"
            assert process.read.stats.unavailable == 1
            intent = process.write(1)
            await intent.begin()
            process.commit(1)
            await intent.end(committed=True)
            assert process.store.has_pending
            assert await process.read(1) == "v'"
        await settled(process)
        await lapse_barriers(client)
        assert await process.read(1) == "v'"
        await process.stored(0, 1)
        await process.cache.aclose()
