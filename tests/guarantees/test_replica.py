"""A server that is a replica is not used, and a client that reads from replicas is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel

from fastrdb import Cache, OptionError
from fastrdb.protocol import Barred
from fastrdb.testing import EmbeddedServer
from tests.guarantees import test_restart
from tests.guarantees.test_restart import demoted, instrumented, plain, started
from tests.races.mechanisms import label, without
from tests.support.network.lines import Passing
from tests.support.waiting import until
from tests.support.world.stores import acquire

own, admin, pair = test_restart.own, test_restart.admin, test_restart.pair  # fixtures


@pytest.mark.parametrize("client", [plain, instrumented], ids=label)
async def test_replica_is_not_used_until_it_is_a_master(
    own: EmbeddedServer,
    pair: EmbeddedServer,
    admin: Redis,
    client: Callable[[int], Redis],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """As long as the server is one calls go on without it; that is said once. Then everything is healed."""
    time = Passing(monkeypatch)
    async with started(own, client) as (app,):
        await demoted(own, pair, admin, app)
        time.passes(1.1)
        for _ in range(10):
            assert await app.read() == "new"
        assert app.cache.stats().outages == 1
        assert app.cache.stats().hits == 0
        said = [record.message for record in caplog.records if "replica" in record.message]
        assert ["did not answer" in each for each in said] == [True, False], "a single failure, and the outage"
        await admin.replicaof("NO", "ONE")

        async def recovered() -> bool:
            assert await app.read() == "new"
            return app.cache.stats().recoveries > 0

        await until(recovered)
        await app.healed()
        assert await app.read() == "new"
        assert await admin.get("item:1") == b'"new"'


async def test_master_demoted_since_its_greeting_answers_no_acquire(
    own: EmbeddedServer, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The connection is still taken for one to a master, and the server has the entry."""
    time = Passing(monkeypatch)
    async with started(own, plain) as (app,):
        assert await app.read() == "old"
        time.passes(-60)  # no greeting is due in this test
        await admin.replicaof("127.0.0.1", "1")
        assert await acquire(app.store, app.client, "item:1", "t" * 32) == Barred()


async def test_race_is_lost_when_a_replica_is_trusted(
    own: EmbeddedServer, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reader gets an entry that the new master may have deleted."""
    without("replica-refused").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await test_master_demoted_since_its_greeting_answers_no_acquire(own, admin, monkeypatch)


def test_replica_reading_client_is_refused() -> None:
    """When the cache is made, naming what it is about: replicas may be behind the last write."""
    sentinel = Sentinel([("127.0.0.1", 1)])
    assert Cache(sentinel.master_for("main")).redis is not None
    with pytest.raises(OptionError, match="Cache: redis reads from replicas"):
        Cache(sentinel.slave_for("main"))
    for option in ("read_from_replicas", "load_balancing_strategy"):
        client: Any = type("RedisCluster", (), {option: True})()
        with pytest.raises(OptionError, match=f"Cache: redis has {option}=True"):
            Cache(client)
