"""What metrics cost a hit: the same function in a cache with an integration and in one without any hook.

The figure is CPU time of this process: metrics wait for nothing, and the server works in a process of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from time import process_time

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

from benchmarks.catalogue import Query, one_user
from benchmarks.comparison import Case, idle_sessions, table
from benchmarks.harness import Known, Round, Sizes, at_once, interleaved, one_by_one
from benchmarks.report import Limit, Row
from fastrdb import Cache
from fastrdb.integrations import opentelemetry, prometheus
from fastrdb.testing.server import EmbeddedServer

KEYS = CALLERS = 64
CALLS = 256
WITHOUT = "without hooks"
LIMIT = {WITHOUT: Limit("ratio", bar=1.10)}


def _prometheus(cache: Cache) -> None:
    prometheus.instrument(cache, registry=CollectorRegistry())


def _opentelemetry(cache: Cache) -> None:
    meters = MeterProvider([InMemoryMetricReader()])
    opentelemetry.instrument(cache, meter_provider=meters, tracer_provider=TracerProvider())


def _both(cache: Cache) -> None:
    _prometheus(cache)
    _opentelemetry(cache)


KINDS: dict[str, Callable[[Cache], None]] = {
    "Prometheus": _prometheus,
    "OpenTelemetry": _opentelemetry,
    "both, and publish=True": _both,
}


async def rows(sizes: Sizes) -> list[Row]:
    """One caller after the other, and 64 at once."""
    found: list[Row] = []
    with EmbeddedServer() as server:
        async with Redis(port=server.port) as client:
            for kind, instrument in KINDS.items():
                async with Cache(client) as plain, Cache(client, publish="publish" in kind) as measured:
                    instrument(measured)
                    queries = {"fastrdb": _query(measured), WITHOUT: _query(plain)}
                    for callers in (1, CALLERS):
                        found += await _measured(sizes, client, queries, kind, callers)
    return found


def _query(cache: Cache) -> Query:
    return cache.cached("hit:{number}", exp=3600)(one_user().query)


async def _rounds(calls: Round, numbers: Sequence[int]) -> None:
    """Make as many calls at once as there are callers, until all are made."""
    for first in range(0, len(numbers), CALLERS):
        await calls(numbers[first : first + CALLERS])


async def _measured(sizes: Sizes, client: Redis, queries: dict[str, Query], kind: str, callers: int) -> list[Row]:
    async with idle_sessions(1) as (session,):
        sides: dict[str, Round] = {
            name: partial(_rounds, (one_by_one if callers == 1 else at_once)(partial(query, session, client)))
            for name, query in queries.items()
        }
        draw = Known(KEYS).take
        for side in sides.values():
            await side(draw(KEYS))
        timings = await interleaved(sides, rounds=10 * sizes.rounds, calls=CALLS, draw=draw, clock=process_time)
    name = f"{kind}, {callers} caller{'s' if callers > 1 else ''}"
    return table(Case("metrics", name, LIMIT), {}, timings, {})
