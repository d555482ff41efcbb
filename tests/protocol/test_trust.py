"""What a cluster has been found to have, and the healing of it, step by step."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import trust as trust_module
from fastrdb.protocol.keyspace import ClusterKeyspace
from fastrdb.transport.scripts import Call, Command
from tests.support.world.stores import store_on


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

    async def run(commands: Sequence[Call | Command]) -> list[Any]:
        return await store._link.run(cluster_client, commands)

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
    """What others have noted as good is good: the writer that meets it first tells Redis of its commit."""
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
