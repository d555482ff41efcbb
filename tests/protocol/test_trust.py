"""What a cluster has been found to have, and the healing of it, step by step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Busy, Store
from fastrdb.protocol import trust as trust_module
from fastrdb.protocol.keyspace import ClusterKeyspace, Keyspace
from fastrdb.testing import EmbeddedServer
from fastrdb.transport.commands import Command
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.servers.sentinels import AT_ONCE, follow, synced
from tests.support.waiting import until
from tests.support.world.stores import acquire, fill, release, store_on


async def test_who_could_not_go_on_need_not_wait_for_itself(
    cluster_client: RedisCluster, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Redis is away for a moment in the middle of the healing: the same process goes on at once; all is said once."""
    caplog.set_level(logging.INFO, "fastrdb")
    monkeypatch.setattr(trust_module, "_PAUSE_S", 3600.0)
    store = store_on(cluster_client)
    await store.get(cluster_client, "k")
    trust = store._backend.trust
    fails = iter([True, True])

    async def run(commands: Sequence[Command]) -> list[Any]:
        return await store._link.many(cluster_client, commands, errors=True)

    async def delete_all() -> None:
        if next(fails, False):
            raise CacheUnavailableError("EVALSHA", "gone")

    trust.saw(b"another")
    async with asyncio.timeout(20):
        for still_doubtful in (True, True, False):
            trust.heal(run, delete_all)
            assert trust._task is not None
            await trust._task
            assert trust.other_data is still_doubtful
    await store.aclose()
    told = [record.message for record in caplog.records if record.name == "fastrdb"]
    assert len(told) == 2, told


async def test_a_server_that_was_only_new_to_this_process(cluster_client: RedisCluster) -> None:
    """A server that others have noted as good is good: the writer that meets it first has Redis note its commit."""
    store = store_on(cluster_client, on_error="raise")
    await store.get(cluster_client, "k")
    trust = store._backend.trust
    for shard in ClusterKeyspace("").shards:
        await cluster_client.zadd(shard.trusted, {b"of another master": 0})
    trust.saw(b"of another master")
    intent = store.intent(cluster_client)
    intent.add([Prefix("k")])
    await intent.begin()
    await intent.end(committed=True)
    assert not store.has_pending
    assert not trust.other_data
    await store.aclose()


async def healed(store: Store, client: Redis) -> None:
    """Connect anew, as after a failover, and wait until the store may read from this server."""
    await store._link.aclose()
    with pytest.raises(CacheUnavailableError, match="other data"):
        await store.get(client, "user:1")

    async def may_read() -> bool:
        return store.bypass_reason(client) is None

    await until(may_read)


async def test_failover_and_back_to_a_master_that_was_not_restarted_is_noticed() -> None:
    """The former master has its old replication id, and an old note that says that its data is trusted."""
    with EmbeddedServer(args=AT_ONCE) as first, EmbeddedServer(args=AT_ONCE) as second:
        async with Redis(port=first.port) as one, Redis(port=second.port) as other:
            store = store_on(one)
            await acquire(store, one, "user:1", "t")
            assert await fill(store, one, "user:1", "t", b"old", 60_000)
            await follow(second, first.port)
            await synced(one)
            for _ in range(2):  # the second time, both servers have notes of both
                await other.replicaof("NO", "ONE")
                await healed(store, other)
                await store.invalidate(other, [Prefix("user:")])
                assert await store.get(other, "user:1") is None
                await healed(store, one)
                assert await store.get(one, "user:1") is None
                await acquire(store, one, "user:1", "t")
                assert await fill(store, one, "user:1", "t", b"again", 60_000)
            await store.aclose()


@pytest.mark.parametrize("mutant", [without("note-has-all-seen"), without("newest-mark-remembered")], ids=label)
async def test_failback_is_lost_without_the_comparison_of_notes(
    monkeypatch: pytest.MonkeyPatch, mutant: Change
) -> None:
    """A process that trusts each server's own note reads the old entry."""
    mutant.apply(monkeypatch.setattr)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await test_failover_and_back_to_a_master_that_was_not_restarted_is_noticed()


async def test_notes_of_restarts_are_pruned(monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest heals stay. A process that was away for more heals once, and the others still trust the note."""
    monkeypatch.setattr(trust_module, "_HEALINGS_KEPT", kept := 3)
    name = Keyspace("").shards[0].trusted
    with EmbeddedServer(args=("--enable-debug-command", "yes")) as server:
        async with Redis(port=server.port) as client:
            worker, sleeper, late = (store_on(client) for _ in range(3))
            for store in (worker, sleeper):
                assert await store.get(client, "user:1") is None
            for _ in range(4 * kept):
                await client.execute_command("DEBUG", "CHANGE-REPL-ID")  # as after a restart
                await healed(worker, client)
            assert await client.zcard(name) <= 3 * (kept + 1)
            before = await client.zrange(name, 0, -1)
            assert await late.get(client, "user:1") is None
            assert await client.zrange(name, 0, -1) == before
            await healed(sleeper, client)
            after = await client.zrange(name, 0, -1)
            assert after != before
            await worker._link.aclose()
            assert await worker.get(client, "user:1") is None
            assert await client.zrange(name, 0, -1) == after
            for store in (worker, sleeper, late):
                await store.aclose()


async def test_lease_that_is_no_text_is_another_callers(client: Redis) -> None:
    """A lease of bytes that are no UTF-8 neither fails a call nor keeps a caller from loading."""
    store = store_on(client)
    await client.set("fastrdb:lease:{user:1}", b"\xff\xfe", px=60_000)
    await acquire(store, client, "user:1", "t")
    await release(store, client, "user:1", "t")
    replication = await client.info("replication")
    planted = b"\xff\xfe\n%s\nr1.1" % replication["master_replid"].encode()
    await client.set("fastrdb:lease:{user:1}", planted, px=60_000)
    assert isinstance(await acquire(store, client, "user:1", "t"), Busy)
    await store.aclose()
