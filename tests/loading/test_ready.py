"""`Cache.ready`: a record that a readiness probe turns into 200 or 503, and that says what is wrong."""

from __future__ import annotations

from importlib.metadata import version

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

import fastrdb
from fastrdb import Cache, OptionError, Readiness
from fastrdb.testing.server import EmbeddedServer


async def test_cache_that_works_is_ready(client: Redis) -> None:
    """The probe leaves nothing behind, and counts as no call."""
    async with Cache(client) as cache:
        assert await cache.ready() == Readiness(reachable=True, refused="", pending="", policy="noeviction")
        assert await cache.ready()
        assert cache.stats() == fastrdb.Stats()
    assert [*await client.keys("*ready*"), *await client.keys("*lease*")] == []


async def test_cluster_that_works_is_ready(cluster_client: RedisCluster) -> None:
    """The key of the probe lies in some slot."""
    async with Cache(cluster_client) as cache:
        assert await cache.ready()


async def test_server_that_is_down_is_not_ready() -> None:
    """The record says why; nothing is raised."""
    async with Redis(port=1, retry=Retry(NoBackoff(), 0)) as client, Cache(client) as cache:
        found = await cache.ready()
    assert not found
    assert not found.reachable
    assert found.unreachable


async def test_server_that_has_been_down_for_long_is_named() -> None:
    """Calls do not wait for it any more, and the record still says why: where it is, and what it did."""
    async with Redis(port=1, retry=Retry(NoBackoff(), 0)) as client, Cache(client) as cache:
        found = [await cache.ready() for _ in range(5)][-1]
    assert "has not answered lately" in found.unreachable
    assert "localhost:1" in found.unreachable


async def test_missing_right_is_named(client: Redis) -> None:
    """An ACL that forbids a command of the scripts is not ready, although the server answers."""
    await client.execute_command("ACL", "SETUSER", "poor", "on", ">poor", "~*", "+@all", "-unlink")
    port = client.connection_pool.connection_kwargs["port"]
    async with Redis(port=port, username="poor", password="poor") as poor, Cache(poor) as cache:
        found = await cache.ready()
    assert (bool(found), found.reachable) == (False, True)
    assert found.refused.startswith("the cache is unavailable: begin: ")


async def test_evicting_policy_is_said() -> None:
    """The cache works with it: it is ready, and the record has the policy."""
    with EmbeddedServer(args=("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")) as server:
        async with Redis(port=server.port) as client, Cache(client) as cache:
            found = await cache.ready()
    assert found
    assert (found.policy, found.evicts) == ("allkeys-lru", True)
    with EmbeddedServer(args=("--maxmemory-policy", "allkeys-lru")) as server:
        async with Redis(port=server.port) as client, Cache(client) as cache:
            found = await cache.ready()
    assert (found.policy, found.evicts) == ("allkeys-lru", False)


async def test_pending_invalidation_is_said(client: Redis) -> None:
    """Entries are not read until it is repaired, so the process is not ready."""
    async with Cache(client) as cache:
        store = cache.runtime.store(client)
        store.obstacles.block(cache, "owed", "")
        store.repairs._pending[store.keyspace.everything] = False
        found = await cache.ready()
        assert not found
        assert found.pending == "a commit that Redis has missed is being repaired"


async def test_cache_without_a_client_says_so() -> None:
    """A client may be given in the call."""
    with pytest.raises(OptionError, match=r"^Cache\.ready: no Redis"):
        await Cache().ready()


def test_version_is_that_of_the_package() -> None:
    """`fastrdb.__version__` is what is installed."""
    assert fastrdb.__version__ == version("fastrdb")
