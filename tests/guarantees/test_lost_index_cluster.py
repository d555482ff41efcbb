"""A shard of a cluster's index is lost, or its barriers are: a write finds what it reaches all the same."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from fastrdb.errors import CacheUnavailableError
from fastrdb.protocol import Store
from fastrdb.protocol.cluster_index import one_of_each_master
from fastrdb.protocol.interface import Barred, Granted
from tests.guarantees.test_lost_index import TTL, under
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.servers.cluster import Cluster
from tests.support.world.stores import (
    acquire,
    acquire_many,
    fill,
    fill_many,
    lapse_barriers,
    lose,
    names_in,
    open_store,
    store_on,
)
from tests.transport.test_cluster import Move

USERS = [f"user:{n}" for n in range(30)]


@pytest.fixture(params=["cluster", "valkey_cluster"])
async def client(request: pytest.FixtureRequest) -> Any:
    """Provide a client of a cluster of each kind of server, which is empty."""
    cluster: Cluster = request.getfixturevalue(request.param)
    async with cluster.client() as made:
        cluster.flush()
        yield made


async def put_entries(client: RedisCluster, store: Store, *keys: str) -> None:
    """Put an entry under each key, as readers do."""
    assert set((await acquire_many(store, client, dict.fromkeys(keys, "t"))).values()) == {Granted()}
    assert await fill_many(store, client, [(key, "t", b"1", TTL) for key in keys]) == [True] * len(keys)


async def left(client: RedisCluster) -> set[bytes]:
    """Return the keys that are not fastrdb's own."""
    return {key for key in await names_in(client) if not key.startswith(b"fastrdb:")}


async def test_write_after_a_loss_finds_all_entries(client: RedisCluster, caplog: pytest.LogCaptureFixture) -> None:
    """Entries, and loads that are under way; what others have stays. Then the index is whole again; it is said once."""
    store = store_on(client, owned={"user:", "post:"})
    for _ in range(2):
        await client.set("user", "mine")
        await client.hset("user:cart", "x", "y")
        await put_entries(client, store, *USERS, "post:1")
        assert await acquire(store, client, "post:2", "slow") == Granted()
        await lose(client, "index")
        await store.invalidate(client, [under("user:")])
        assert not await left(client) & {key.encode() for key in USERS}
        assert not await fill(store, client, "post:2", "slow", b"old", TTL)
        assert await left(client) >= {b"user", b"user:cart"}
        await put_entries(client, store, *USERS)
        assert await store.invalidate(client, [under("user:1")]) == 11
        await store.invalidate(client, [under("user:"), under("post:")])
    assert len([record for record in caplog.records if "index" in record.message]) == 1
    await store.aclose()


async def test_write_without_rosters_finds_all_entries(client: RedisCluster) -> None:
    """The rosters have been lost, too: then a look at all keys of each master finds what there is."""
    async with open_store(client, owned={"user:"}) as store:
        await put_entries(client, store, *USERS)
        assert await acquire(store, client, "user:slow", "slow") == Granted()
        await lose(client, "index")
        for roster in await names_in(client, "fastrdb:*:roster"):
            await client.delete(roster)
        await store.invalidate(client, [under("user:")])
        assert await left(client) == set()
        assert not await fill(store, client, "user:slow", "slow", b"old", TTL)


async def test_search_by_an_outdated_map_finds_all_entries(cluster: Cluster, cluster_client: RedisCluster) -> None:
    """The slot by which a master was known has gone to another since: all keys of each are looked at, all the same."""
    async with open_store(cluster_client, owned={"user:"}) as store:
        await put_entries(cluster_client, store, *USERS)
        slot = next(each for each in one_of_each_master(cluster_client) if cluster.owner(each) is cluster.masters[0])
        with Move(cluster, slot) as move:
            move.keys()
            cluster.end_move(slot, move.target)
            await lose(cluster_client, "index")
            for roster in await names_in(cluster_client, "fastrdb:*:roster"):
                await cluster_client.delete(roster)
            await store.invalidate(cluster_client, [under("user:")])
            assert await left(cluster_client) == set()


async def test_lost_barriers_bar_all_keys_of_their_shard(client: RedisCluster) -> None:
    """No reader stores anything between a writer's begin and its COMMIT, while the barriers would have stood."""
    store = store_on(client)
    await put_entries(client, store, "user:1")
    intent = store.intent(client)
    intent.add([under("user:")])
    await intent.begin()
    await lose(client, "barriers")
    assert await acquire(store, client, "user:1", "t") == Barred()
    await lapse_barriers(client)
    assert await acquire(store, client, "user:1", "t") == Granted()
    await intent.end(committed=True)
    await store.aclose()


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (without("shard-is-whole"), test_write_after_a_loss_finds_all_entries),
        (without("shard-lost-barriers-noticed"), test_lost_barriers_bar_all_keys_of_their_shard),
        (without("search-finds-names"), test_write_without_rosters_finds_all_entries),
    ],
    ids=label,
)
async def test_race_is_lost_when_a_script_lacks_the_mechanism(
    cluster_client: RedisCluster,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    fact: Any,
) -> None:
    """One line of Lua less, and something stale is left."""
    change.apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await fact(cluster_client, *([caplog] if fact is test_write_after_a_loss_finds_all_entries else []))


async def test_race_is_lost_when_a_search_spares_leases(
    cluster_client: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then a load that is under way stores what it saw."""
    without("look-for-leases").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await test_write_without_rosters_finds_all_entries(cluster_client)


async def test_race_is_lost_when_a_search_uses_an_old_map(
    cluster: Cluster, cluster_client: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then one master is looked at in another's place, which is noticed."""
    without("look-by-current-map").apply(monkeypatch.setattr)
    with pytest.raises(CacheUnavailableError, match="moved meanwhile"):
        await test_search_by_an_outdated_map_finds_all_entries(cluster, cluster_client)
