"""Metrics and spans, read by OpenTelemetry's in-memory exporters and from Prometheus' text."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import pytest
from opentelemetry import trace
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from redis.asyncio import Redis

import fastrdb.integrations
from fastrdb import Cache, OptionError
from fastrdb.integrations import opentelemetry, prometheus
from fastrdb.integrations.recording import SECONDS
from fastrdb.testing import EmbeddedServer, GatedClient
from tests.support import ROOT


async def use(cache: Cache, gated: GatedClient, inside: Any = None) -> None:
    """Make two misses, of which one raises, a hit, a wait for another load, a load of many keys and an invalidation."""

    @cache.cached("double:{number}")
    async def double(number: int, redis: Redis) -> int:
        if number < 0:
            raise LookupError
        if inside is not None:
            inside()
        return 2 * number

    @cache.cached_many("many:{numbers}")
    async def many(numbers: list[int], redis: Redis) -> dict[int, int]:
        return {number: number for number in numbers}

    client: Any = cache.redis
    assert [await double(1, client), await double(1, client)] == [2, 2]
    gate = gated.gates.before("fill")
    leader = asyncio.create_task(double(2, gated))
    await gate.reached()
    assert await double(2, client) == 4
    gate.open()
    await leader
    with pytest.raises(LookupError):
        await double(-1, client)
    assert await many([1, 2, 3], client) == {1: 1, 2: 2, 3: 3}
    assert await double.invalidate(2, client) == 1


# --- OpenTelemetry


def points(reader: InMemoryMetricReader) -> dict[str, list[tuple[dict[str, Any], Any, str]]]:
    """Return the points of each metric: attributes, point, unit."""
    data = reader.get_metrics_data()
    assert data is not None
    return {
        metric.name: [(dict(point.attributes or {}), point, metric.unit or "") for point in metric.data.data_points]
        for resource in data.resource_metrics
        for scope in resource.scope_metrics
        for metric in scope.metrics
    }


async def test_opentelemetry_has_metrics_by_its_conventions(client: Redis, gated: GatedClient) -> None:
    """Names have no unit and no plural of a unit, times are seconds, and errors are `error.type`."""
    reader = InMemoryMetricReader()
    async with Cache(client) as cache:
        opentelemetry.instrument(cache, meter_provider=MeterProvider([reader]))
        await use(cache, gated)
    found = points(reader)
    requests = {
        (at["code.function.name"].rpartition(".")[2], at["fastrdb.cache.request.type"]): point.value
        for at, point, _ in found["fastrdb.cache.requests"]
    }
    assert requests == {("double", "miss"): 4, ("double", "hit"): 1, ("many", "miss"): 3}
    units = {name: each[0][2] for name, each in found.items()}
    assert units == {
        "fastrdb.cache.requests": "{request}",
        "fastrdb.cache.events": "{event}",
        "fastrdb.cache.entry.deletions": "{deletion}",
        "fastrdb.cache.load.duration": "s",
        "fastrdb.cache.wait.duration": "s",
        "db.client.operation.duration": "s",
        "fastrdb.cache.entry.size": "By",
    }
    bounds = {name: {point.explicit_bounds for _, point, _ in found[name]} for name in units if "duration" in name}
    conventional = (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1, 5, 10)
    assert bounds.pop("db.client.operation.duration") == {conventional}
    assert set().union(*bounds.values()) == {SECONDS}
    errors = [point.count for at, point, _ in found["fastrdb.cache.load.duration"] if at.get("error.type")]
    assert errors == [1]
    operations = {at["db.operation.name"] for at, _, _ in found["db.client.operation.duration"]}
    assert operations == {"GET", "EVALSHA"}
    assert {at["db.system.name"] for at, _, _ in found["db.client.operation.duration"]} == {"redis"}


async def test_opentelemetry_has_spans_around_loads_and_waits(client: Redis, gated: GatedClient) -> None:
    """A span that the function makes is inside of the load's; a load of three keys has one span."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracer = provider.get_tracer("test")
    async with Cache(client) as cache:
        end = opentelemetry.instrument(cache, tracer_provider=provider)
        with tracer.start_as_current_span("request") as request:
            await use(cache, gated, inside=lambda: tracer.start_span("query").end())
        assert trace.get_current_span() is trace.INVALID_SPAN
        end()
        await client.flushall()
        await use(cache, gated)
    spans = exporter.get_finished_spans()
    short = [(span.name.rpartition(".")[2].rpartition(" ")[2], span.name.split()[0]) for span in spans]
    assert sorted(short) == sorted(
        [("query", "query")] * 2
        + [("double", "load")] * 3
        + [("double", "wait"), ("double", "invalidate"), ("many", "load"), ("request", "request")]
    )
    loads = {span.context.span_id: span for span in spans if span.name.startswith("load") and span.context}
    assert all(span.parent and span.parent.span_id == request.get_span_context().span_id for span in loads.values())
    assert all(span.parent and span.parent.span_id in loads for span in spans if span.name == "query")
    assert [span.status.description for span in loads.values() if not span.status.is_unset] == ["LookupError"]
    many = next(span for span in loads.values() if "many" in span.name)
    assert many.attributes is not None
    assert many.attributes["fastrdb.cache.entries"] == 3
    assert not any("key" in name for span in spans for name in span.attributes or ())


async def test_a_recursive_load_has_a_span_inside_of_a_span(client: Redis) -> None:
    """The spans nest as the calls do, and carry the key where that is asked for."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with Cache(client) as cache:
        opentelemetry.instrument(cache, tracer_provider=provider, keys=True)

        @cache.cached("sum:{number}")
        async def total(number: int) -> int:
            return number + (await total(number - 1) if number else 0)

        assert await total(2) == 3
    spans = {str((span.attributes or {})["fastrdb.cache.key"]): span for span in exporter.get_finished_spans()}
    parents = {key: span.parent.span_id if span.parent else None for key, span in spans.items()}
    ids = {key: span.context.span_id for key, span in spans.items() if span.context}
    assert parents == {"sum:2": None, "sum:1": ids["sum:2"], "sum:0": ids["sum:1"]}


async def test_a_cache_has_the_spans_of_one_provider(client: Redis) -> None:
    """Repeated, `instrument` adds none: two spans around a load would not end in order. Others are refused."""
    exporter, provider = InMemorySpanExporter(), TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with Cache(client) as cache:
        ends = [opentelemetry.instrument(cache, tracer_provider=provider) for _ in range(2)]
        with pytest.raises(OptionError, match="the cache has spans of another tracer_provider="):
            opentelemetry.instrument(cache, tracer_provider=TracerProvider())

        @cache.cached("number:{number}")
        async def load(number: int) -> int:
            return number

        assert await load(1) == 1
        assert trace.get_current_span() is trace.INVALID_SPAN
        for end in ends:
            end()
        assert await load(2) == 2
    (span,) = exporter.get_finished_spans()
    assert span.parent is None


LATE = """
import asyncio, sys
from opentelemetry.metrics import set_meter_provider
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from redis.asyncio import Redis
from fastrdb import Cache
from fastrdb.integrations.opentelemetry import instrument

async def main():
    async with Redis(port=int(sys.argv[1])) as client:
        caches = [Cache(client, namespace=name) for name in ("first", "second")]
        instrument(caches[0])
        reader = InMemoryMetricReader()
        provider = MeterProvider([reader])
        set_meter_provider(provider)
        instrument(caches[1], **({"meter_provider": provider} if sys.argv[2] == "given" else {}))
        instrument(caches[0])
        for cache in caches:

            @cache.cached("one:{number}")
            async def one(number: int) -> int:
                return number

            assert [await one(1), await one(1)] == [1, 1]
    (found,) = reader.get_metrics_data().resource_metrics[0].scope_metrics
    for metric in found.metrics:
        for point in metric.data.data_points:
            value = point.value if hasattr(point, "value") else point.count
            print(metric.name, point.attributes.get("fastrdb.cache.request.type", ""), value)

asyncio.run(main())
"""


@pytest.mark.parametrize("way", ["global", "given"])
def test_a_provider_that_is_set_late_has_the_metrics_of_all_caches_once(
    server: EmbeddedServer, client: Redis, way: str
) -> None:
    """An application makes its caches when it is imported, and sets the global provider when it starts."""
    command = [sys.executable, "-c", LATE, str(server.port), way]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert "fastrdb.cache.requests hit 2" in lines
    assert "fastrdb.cache.requests miss 2" in lines
    assert "fastrdb.cache.load.duration  2" in lines
    assert done.stderr == ""  # the SDK warns of a second instrument of one name


# --- Prometheus


def samples(text: str) -> dict[tuple[str, str, str], float]:
    """Return samples by name, function (its last part) and type, as Prometheus itself would read them."""
    return {
        (each.name, each.labels.get("function", "").rpartition(".")[2], each.labels.get("type", "")): each.value
        for family in text_string_to_metric_families(text)
        for each in family.samples
        if "le" not in each.labels
    }


async def test_prometheus_has_the_same_in_its_text(client: Redis, gated: GatedClient) -> None:
    """Two caches of one registry add up, and one that is not instrumented any more adds nothing."""
    registry = CollectorRegistry()
    async with Cache(client) as cache:
        end = prometheus.instrument(cache, registry=registry)
        prometheus.instrument(cache, registry=registry)
        await use(cache, gated)
        end()
        await client.flushall()
        await use(cache, gated)
    found = samples(generate_latest(registry).decode())
    assert found["fastrdb_requests_total", "double", "miss"] == 4
    assert found["fastrdb_requests_total", "double", "hit"] == 1
    assert found["fastrdb_load_seconds_count", "many", ""] == 1
    assert found["fastrdb_events_total", "double", "fill"] == 2
    assert found["fastrdb_entry_bytes_count", "double", ""] == 2
    assert found["fastrdb_wait_seconds_count", "double", ""] == 1
    assert found["fastrdb_deleted_entries_total", "double", ""] == 1
    assert found["fastrdb_redis_seconds_count", "double", "hit"] == 1


PROGRAM = """
import asyncio, sys
from redis.asyncio import Redis
from fastrdb import Cache
from fastrdb.integrations.prometheus import instrument

async def main():
    async with Redis(port=int(sys.argv[1])) as client, Cache(client) as cache:
        instrument(cache)

        @cache.cached("one:{number}")
        async def one(number: int) -> int:
            return number

        for number in (1, 1, 2):
            await one(number)

asyncio.run(main())
"""
SCRAPE = """
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector
registry = CollectorRegistry()
MultiProcessCollector(registry)
print(generate_latest(registry).decode())
"""


def test_prometheus_adds_up_processes(server: EmbeddedServer, client: Redis, tmp_path: Path) -> None:
    """In the multiprocess mode of prometheus_client: two workers that have ended, and a scrape by a third process."""
    environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path), "PYTHONPATH": str(ROOT)}

    def run(code: str, *args: str) -> str:
        command = [sys.executable, "-c", code, *args]
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout

    for _ in range(2):
        run(PROGRAM, str(server.port))
    found = samples(run(SCRAPE))
    hits = found["fastrdb_requests_total", "one", "hit"], found["fastrdb_requests_total", "one", "miss"]
    assert hits == (4, 2)


async def test_a_cache_that_is_dropped_leaves_its_counts(client: Redis) -> None:
    """Its answers since the latest look are counted by the next one, and once."""
    registry = CollectorRegistry()

    async def use() -> weakref.ref[Any]:
        async with Cache(client) as cache:
            prometheus.instrument(cache, registry=registry)

            @cache.cached("one:{number}")
            async def one(number: int) -> int:
                return number

            await one(1)
            await one(1)
            return weakref.ref(cache.runtime)

    dropped = await use()
    gc.collect()
    assert dropped() is None
    for _ in range(2):
        found = samples(generate_latest(registry).decode())
        assert found["fastrdb_requests_total", "one", "hit"] == 1


async def test_the_dashboard_of_grafana_asks_for_metrics_that_there_are() -> None:
    """Each query names a metric of `prometheus`; the file is in the package."""
    file = Path(fastrdb.integrations.__file__).with_name("grafana.json")
    board = json.loads(file.read_text("utf-8"))
    registry = CollectorRegistry()
    prometheus.CacheMetrics(registry)
    known = {family.name for family in registry.collect()}
    queries = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(queries) >= 10
    named = {name for query in queries for name in re.findall(r"fastrdb_\w+", query)}
    assert {re.sub(r"_(total|count|bucket|sum)$", "", name) for name in named} <= known
    places = [(panel["gridPos"]["x"], panel["gridPos"]["y"]) for panel in board["panels"]]
    assert len(set(places)) == len(places)
