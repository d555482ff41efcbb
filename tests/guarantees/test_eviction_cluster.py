"""One master of a cluster has no room: whatever it evicts, no answer is older than what was committed before."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Store
from fastrdb.protocol.interface import Barred, Granted
from fastrdb.protocol.keyspace import COMPLETE, ClusterKeyspace
from fastrdb.transport.commands import slot_of
from tests.guarantees.test_eviction import KEYS, PADDING, Crowd
from tests.guarantees.test_lost_index_cluster import USERS, left, put_entries
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.servers.cluster import Cluster, Node
from tests.support.waiting import until
from tests.support.world.stores import acquire, fill, lose, names_in, open_store

NAMES = ClusterKeyspace("")
OWN = ("index", "expiry", "barriers", "trusted")
ROOM = 2**30


@contextmanager
def evicting(node: Node, policy: str, room: int = ROOM) -> Iterator[None]:
    """Leave a master so many bytes, and make it evict by this policy."""
    node.ask("CONFIG", "SET", "maxmemory-policy", policy)
    node.ask("CONFIG", "SET", "maxmemory", node.info("memory")["used_memory"] + room)
    try:
        yield
    finally:
        node.ask("CONFIG", "SET", "maxmemory", 0)
        node.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")


@pytest.fixture
async def crowd(cluster: Cluster) -> AsyncIterator[Crowd]:
    """Provide two processes on an empty cluster."""
    cluster.flush()
    async with cluster.client() as first, cluster.client() as second:
        made = Crowd([first, second])
        yield made
        await made.aclose()


@pytest.mark.parametrize("policy", ["allkeys-lru", "volatile-lru"])
async def test_entries_under_pressure_are_never_stale(cluster: Cluster, crowd: Crowd, policy: str) -> None:
    """Calls are answered, and rightly, whatever goes: entries, leases, shards of the index, barriers, rosters.

    With room again the index is whole after the next write, and everything is stored.
    """
    master = cluster.masters[0]
    evicted = master.info("stats")["evicted_keys"]
    await crowd.bustle(90)
    with evicting(master, policy, KEYS * len(PADDING) // 9):
        await crowd.bustle(1_350)
        while master.info("stats")["evicted_keys"] - evicted < 50:  # how many it is, is up to the server
            await crowd.bustle(450)
        assert crowd.stale == []
        await crowd.look()
    assert sum(cache.stats().unavailable for cache in crowd.caches) == 0
    await crowd.caches[0].invalidate("item:*")
    assert await left(crowd.caches[0].redis) == set()
    for shard in NAMES.shards:
        assert cluster.owner(slot_of(shard.index)).ask("ZSCORE", shard.index, COMPLETE) is not None


async def test_one_evicting_master_is_logged_once(
    cluster: Cluster, cluster_client: RedisCluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Each master reports its own policy: one that evicts counts, and is logged once, whatever the others report."""
    with evicting(cluster.masters[1], "allkeys-lru"):
        async with open_store(cluster_client) as store:
            for _ in range(3):
                await store.get_many(cluster_client, USERS)
                assert store._backend.trust.evicts
                await store._link.aclose()  # as after a second without use: the next reader asks again
    assert len([record for record in caplog.records if "maxmemory-policy" in record.message]) == 1


async def test_new_process_when_only_entries_are_left_deletes_them(
    cluster: Cluster, cluster_client: RedisCluster
) -> None:
    """Hits do not touch the index: it is evicted first. A process that finds no keys of fastrdb's own still deletes."""
    with evicting(cluster.masters[1], "allkeys-lru"):
        async with two_stores(cluster_client) as (old, new):
            await put_entries(cluster_client, old, *USERS)
            await lose(cluster_client, *OWN)
            assert await new.get(cluster_client, USERS[0]) == b"1"
            await new.invalidate(cluster_client, [Prefix("user:")])
            assert await left(cluster_client) == set()


async def test_barriers_evicted_with_their_shard_still_bar(cluster: Cluster, cluster_client: RedisCluster) -> None:
    """Between a writer's begin and its COMMIT nothing is stored, though the shard is as if it had never been used."""
    with evicting(cluster.owner(slot_of(NAMES.shard(b"user:1").index)), "allkeys-lru"):
        async with open_store(cluster_client) as store:
            await put_entries(cluster_client, store, "user:1")
            intent = store.intent(cluster_client)
            intent.add([Prefix("user:")])
            await intent.begin()
            await lose(cluster_client, *OWN)
            assert await acquire(store, cluster_client, "user:1", "t") == Barred()
            await intent.end(committed=True)


async def test_other_data_without_rosters_is_deleted(cluster: Cluster, cluster_client: RedisCluster) -> None:
    """A replica has taken over with old data, of a master that had evicted rosters: all that came back is deleted."""
    with evicting(cluster.masters[1], "allkeys-lru"):
        async with two_stores(cluster_client) as (old, new):
            await put_entries(cluster_client, old, *USERS)
            assert await acquire(old, cluster_client, "user:slow", "slow") == Granted()
            await unknown(cluster, cluster.masters[0])
            for roster in await names_in(cluster_client, "fastrdb:*:roster"):
                await cluster_client.delete(roster)
            await healed(cluster_client, new)
            assert await left(cluster_client) == set()
            assert not await fill(old, cluster_client, "user:slow", "slow", b"old", 60_000)


@asynccontextmanager
async def two_stores(client: RedisCluster) -> AsyncIterator[tuple[Store, Store]]:
    """Provide a process that has been there for long, and one that comes later."""
    async with open_store(client, owned={"user:"}) as old, open_store(client, owned={"user:"}) as new:
        yield old, new


async def unknown(cluster: Cluster, node: Node) -> None:
    """Drop what is known of a server's history, as when a replica has taken over."""
    history = node.info("replication")["master_replid"]
    for shard in NAMES.shards:
        assert cluster.owner(slot_of(shard.trusted)).ask("ZREM", shard.trusted, history) == 1


async def healed(client: RedisCluster, store: Store) -> None:
    """Wait until what it finds may be read."""
    with suppress(CacheUnavailableError):
        await store.get(client, USERS[0])
    assert store.obstacles

    async def may_be_read() -> bool:
        return store.bypass_reason(client) is None

    await until(may_be_read)


MUTANTS = [
    (without("one-master-evicts"), test_one_evicting_master_is_logged_once),
    (without("evicted-is-not-whole"), test_new_process_when_only_entries_are_left_deletes_them),
    (without("look-where-evicted"), test_other_data_without_rosters_is_deleted),
]


@pytest.mark.parametrize(("change", "fact"), MUTANTS, ids=label)
async def test_race_is_lost(
    cluster: Cluster,
    cluster_client: RedisCluster,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    fact: Any,
) -> None:
    """Each mechanism is needed."""
    change.apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await fact(cluster, cluster_client, *([caplog] if fact is test_one_evicting_master_is_logged_once else []))


async def test_race_is_lost_when_the_policy_is_not_read(
    cluster: Cluster, cluster_client: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that takes an empty shard for a new one stores what it saw before the COMMIT."""
    without("evicted-shard").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await test_barriers_evicted_with_their_shard_still_bar(cluster, cluster_client)
