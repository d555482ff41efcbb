"""What a watcher reports: events for hooks and metrics, and records of the log with fields."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.exc import OperationalError

from fastrdb import Cache, CacheUnavailableError, Event
from fastrdb.integrations import opentelemetry, prometheus
from fastrdb.testing import FaultyClient
from fastrdb.watch import Poll, Watcher, source_of
from tests.support.waiting import until
from tests.watch.conftest import Watched

with_watchable = pytest.mark.parametrize("watchable", ["sqlite", "postgresql"], indirect=True)
GOES_ON = "Changes wait, and the watcher tries again each second"


def of_watcher(events: list[Event]) -> list[tuple[str, str, str, int]]:
    """Return the events of a watcher."""
    assert {each.function for each in events if each.kind in ("lead", "change", "lost")} <= {"Watcher"}
    return [(each.kind, each.key, each.reason, each.count) for each in events if each.function == "Watcher"]


@with_watchable
async def test_a_watcher_reports_its_life_as_events(watched: Watched, client: Redis) -> None:
    """The lead, a loss, changes with their delay, an outage of Redis, and the end; each outage once."""
    await watched.install()
    events, name = list[Event](), watched.source.name
    faulty = FaultyClient(client)
    async with Cache(faulty, on_error="raise", hook=events.append) as cache:
        watcher = Watcher(watched.source, cache, every=0.005)

        async def happened(kind: str, times: int = 1) -> bool:
            return len([each for each in events if each.function == "Watcher" and each.kind == kind]) >= times

        async with watcher:
            await until(partial(happened, "lost"))
            await watched.write("UPDATE users SET bio = 'x' WHERE id = 1", "UPDATE orgs SET name = 'x' WHERE id = 1")
            await until(partial(happened, "change"))
            faulty.fail_with()
            await watched.write("UPDATE users SET bio = 'y' WHERE id = 1")
            await until(partial(happened, "outage"))
            tries = len(faulty.log)

            async def tried_again() -> bool:
                return len(faulty.log) >= tries + 2

            await until(tried_again)
            faulty.heal()
            await until(partial(happened, "change", 2))
        outage = next(each.reason for each in events if each.function == "Watcher" and each.kind == "outage")
        assert of_watcher(events) == [
            ("lead", name, "", 1),
            ("lost", name, "there is no position of an earlier poll", 1),
            ("change", name, "", 2),
            ("outage", name, outage, 1),
            ("lead_end", name, outage, 1),
            ("lead", name, "", 1),
            ("change", name, "", 1),
            ("recovery", name, "", 1),
            ("lead_end", name, "the watcher ends", 1),
        ]
        delays = [each.seconds for each in events if each.kind == "change"]
        assert all(each is not None and each >= 0 for each in delays)
        stats = cache.stats()
        assert (stats.leads, stats.lead_ends, stats.changes, stats.losses) == (2, 2, 3, 1)


@with_watchable
async def test_a_record_has_its_facts_as_fields(
    watched: Watched, client: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """So a formatter can write them, and no text has to be parsed."""
    caplog.set_level(logging.DEBUG, "fastrdb")
    await watched.install()
    async with Cache(client, namespace="shop") as cache:
        watcher = Watcher(watched.source, cache)
        await watcher.poll()
        await watched.write("UPDATE users SET bio = 'x' WHERE id = 1", "UPDATE orgs SET name = 'x' WHERE id = 1")
        poll = await watcher.poll()
        assert poll is not None
        await watcher.poll()
        position = await watcher.journal.position()
    found: list[dict[str, Any]] = [vars(each)["fastrdb"] for each in caplog.records if "fastrdb" in vars(each)]
    common = {"source": watched.source.name, "namespace": "shop"}
    lag = found[-1].pop("lag")
    assert lag >= 0
    assert found == [
        {"event": "lead"} | common,
        {"event": "lost", "reason": "there is no position of an earlier poll"} | common,
        {"event": "change", "tables": ["orgs", "users"], "changes": 2, "position": poll.position} | common,
    ]
    assert position is not None


@with_watchable
async def test_metrics_count_changes_and_measure_their_delay(watched: Watched, client: Redis) -> None:
    """In Prometheus and in OpenTelemetry, together with the other events of the cache."""
    await watched.install()
    registry, reader = CollectorRegistry(), InMemoryMetricReader()
    async with Cache(client) as cache:
        prometheus.instrument(cache, registry=registry)
        opentelemetry.instrument(cache, meter_provider=MeterProvider([reader]))
        watcher = Watcher(watched.source, cache)
        await watcher.poll()
        await watched.write("UPDATE users SET bio = 'x' WHERE id = 1", "UPDATE users SET bio = 'x' WHERE id = 2")
        await watcher.poll()

    def sample(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(name, {"function": "Watcher", **labels})

    assert sample("fastrdb_events_total", type="lead") == 1
    assert sample("fastrdb_events_total", type="change") == 2
    assert sample("fastrdb_watch_delay_seconds_count") == 1
    assert sample("fastrdb_redis_seconds_count", type="change") is None
    data = reader.get_metrics_data()
    assert data is not None
    counts = {
        metric.name: [getattr(point, "count", None) for point in metric.data.data_points]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }
    assert counts["fastrdb.cache.watch.delay"] == [1]


@with_watchable
async def test_the_delay_after_a_takeover_counts_from_the_heartbeat_before(watched: Watched, client: Redis) -> None:
    """The changes may have waited since then; a watcher that has just begun cannot have them sooner."""
    await watched.install()
    events = list[Event]()
    async with Cache(client, hook=events.append) as cache:
        first = Watcher(watched.source, cache)
        await first.poll()
        now = await first.journal.clock()
        await first.journal.save(str(await first.journal.position()), now - 3_600_000)
        await watched.source.close()
        await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
        await Watcher(watched.source, cache).poll()
    delay = next(each.seconds for each in events if each.kind == "change")
    assert delay is not None
    assert delay >= 3_600


@with_watchable
async def test_an_outage_says_its_side_and_its_reason_once_and_that_the_watcher_goes_on(
    watched: Watched, client: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one line, without statement, parameters, values and password; a fault of this package has a traceback."""
    await watched.install()
    name, original = watched.source.name, watched.source.poll
    driver = Exception("disk I/O error\nDETAIL: Key (email)=(secret@x) already exists.")
    errors: list[Exception] = [
        OperationalError("SELECT secret", {"value": "secret"}, driver),
        ConnectionRefusedError(111, "Connect call failed"),
        RedisConnectionError("Connection closed by server."),
        CacheUnavailableError("GET", "no answer within 5 s"),
        ValueError("invalid literal: 'secret'"),
    ]
    events = list[Event]()
    async with Cache(client, hook=events.append) as cache:
        watcher = Watcher(watched.source, cache)
        for error in errors:

            async def fails(*_: object, error: Exception = error) -> Poll:
                raise error

            monkeypatch.setattr(watched.source, "poll", fails)
            assert [await watcher._step(), await watcher._step()] == [1.0, 1.0]
        monkeypatch.setattr(watched.source, "poll", original)
        await until(partial(leads, watcher))
        assert not watcher._telemetry.is_troubled
    assert [each.kind for each in events if each.function == "Watcher"] == [
        "lead",
        "outage",
        "lead_end",
        "lost",
        "lead",
        "recovery",
    ]
    records = [each for each in caplog.records if vars(each).get("fastrdb", {}).get("event") == "outage"]
    found = [(vars(each)["fastrdb"]["side"], vars(each)["fastrdb"]["reason"]) for each in records]
    assert found == [
        ("database", "Exception: disk I/O error"),
        ("database", "ConnectionRefusedError: [Errno 111] Connect call failed"),
        ("Redis", "ConnectionError: Connection closed by server"),
        ("Redis", "GET: no answer within 5 s"),
        (None, "ValueError"),
    ]
    address = f"127.0.0.1:{client.connection_pool.connection_kwargs['port']}"
    assert [each.getMessage() for each in records[1:3]] == [
        f"fastrdb watch: {name}: the database: ConnectionRefusedError: [Errno 111] Connect call failed. {GOES_ON}",
        f"fastrdb watch: {name}: Redis at {address}: ConnectionError: Connection closed by server. {GOES_ON}",
    ]
    assert [each.exc_info is not None for each in records] == [False, False, False, False, True]
    assert "in _step" in caplog.text
    assert "secret" not in caplog.text.replace("raise error", "")


async def leads(watcher: Watcher) -> bool:
    """Take a step, and return whether the watcher leads."""
    await watcher._step()
    return watcher.leads


@pytest.mark.parametrize("watchable", ["postgresql", "mariadb", "binlog", "mysql", "mysql_binlog"], indirect=True)
async def test_a_watcher_that_waits_says_for_which_other_one(
    watched: Watched, client: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, and no more; but again and as a warning if that one leaves no heartbeat in this Redis."""
    caplog.set_level(logging.INFO, "fastrdb")
    await watched.install()
    leader = (await watched.source.status(None)).leader
    other = source_of(watched.database.engine)
    now = asyncio.get_running_loop().time()
    async with Cache(client) as cache:
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: now)
        watcher = Watcher(other, cache)
        for seconds in (0.0, 1.0, 9.0, 2.0, 1.0, 287.0, 14.0):
            now += seconds
            assert await watcher._step() == 1.0
        await watcher.journal.save("1", await watcher.journal.clock())
        now += 301.0
        await watcher._step()
        await other.close()
    found = [vars(each)["fastrdb"] | {"level": each.levelname} for each in caplog.records]
    assert leader is not None
    assert [(each["event"], each["level"], each["leader"]) for each in found] == [
        ("wait", "INFO", leader),
        ("wait", "WARNING", leader),
        ("wait", "WARNING", leader),
    ]
    assert caplog.messages[0] == f"fastrdb watch: {other.name}: waits: {leader} leads"
    assert "leaves no heartbeat at 127.0.0.1:" in caplog.messages[1]
    assert "for the namespace '': it serves another Redis" in caplog.messages[1]
