"""What it costs a hit to be seen: the same function in a cache with an integration and in one without any hook.

The figure is CPU time of the process: metrics wait for nothing, and the server works in a process of its own.

`service` puts the question to two processes under load at once, as two workers of a service are. There the cache
follows writes and verifies hits, too, and keys have a version: all of that without a hook, and with all metrics.
A share of hits has its entry loaded in the background, which is a query and two `GET`. So the path of a hit and the
same with these loads have a row each.
"""

from __future__ import annotations

import asyncio
import multiprocessing
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from multiprocessing.synchronize import Barrier
from time import process_time
from typing import NamedTuple

from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.catalogue import Database, UserOut, database
from benchmarks.comparison import Case, table
from benchmarks.harness import Call, Known, Round, Sizes, Timings, at_once, interleaved, one_by_one
from benchmarks.report import Limit, Row
from fastrdb import Cache
from fastrdb.integrations import opentelemetry, prometheus
from fastrdb.testing.server import EmbeddedServer

KEYS = CALLERS = 64
CALLS = 256
WORKERS = 2
SHARE, NONE = 0.001, 1e-9
"""Of the hits that `verify=` compares with the database. With `NONE` each hit is counted, and none is compared."""
WAIT_S = 300
"""Seconds after which a worker that does not begin is given up."""
PATTERN, WITHOUT = "hit:{number}", "without hooks"


def _prometheus(cache: Cache) -> None:
    prometheus.instrument(cache, registry=CollectorRegistry())


def _opentelemetry(cache: Cache) -> None:
    meters = MeterProvider([InMemoryMetricReader()])
    opentelemetry.instrument(cache, meter_provider=meters, tracer_provider=TracerProvider())


def _both(cache: Cache) -> None:
    _prometheus(cache)
    _opentelemetry(cache)


def _nothing(_: Cache) -> None:
    pass


class Side(NamedTuple):
    """What a cache has."""

    instrument: Callable[[Cache], None] = _nothing
    publish: bool = False
    verify: float = 0
    """More than 0: this share of hits is verified, the cache follows writes, and keys have a version."""


class Kind(NamedTuple):
    """One cache against another, which has less."""

    name: str
    ours: Side
    theirs: Side = Side()
    bar: float | None = 1.10


KINDS = (
    Kind("Prometheus", Side(_prometheus)),
    Kind("OpenTelemetry", Side(_opentelemetry)),
    Kind("both, and publish=True", Side(_both, publish=True)),
)
SERVICES = (
    Kind("two workers, all but hooks; against a plain Cache()", Side(verify=NONE), bar=1.03),
    Kind("two workers, the same with the loads of verify=", Side(verify=SHARE), bar=None),
    Kind("two workers, all and all metrics", Side(_both, publish=True, verify=SHARE), Side(verify=SHARE)),
)


async def rows(sizes: Sizes) -> list[Row]:
    """One caller after the other, and 64 at once; then two processes at once."""
    with EmbeddedServer() as server:
        timings = await _timed(KINDS, server.port, sizes)
        timings |= await asyncio.to_thread(_in_workers, server.port, sizes)
    return [
        row
        for (kind, callers), found in timings.items()
        for row in table(
            Case("metrics", f"{kind.name}, {callers} caller{'s' if callers > 1 else ''}", _limits(kind)), {}, found, {}
        )
    ]


def _limits(kind: Kind) -> Mapping[str, Limit]:
    return {WITHOUT: Limit("ratio", bar=kind.bar)}


Read = Callable[[AsyncSession, int], Awaitable[UserOut]]
Measured = dict[tuple[Kind, int], Timings]


async def _timed(kinds: Sequence[Kind], port: int, sizes: Sizes, ready: Callable[[], object] = tuple) -> Measured:
    found: Measured = {}
    async with Redis(port=port) as client, database() as tables:
        for kind in kinds:
            async with _sides(kind, client, tables) as queries, tables.sessions() as db:
                for callers in (1, CALLERS):
                    await asyncio.to_thread(ready)
                    calls: dict[str, Call] = {name: partial(query, db) for name, query in queries.items()}
                    found[kind, callers] = await _measured(sizes, calls, callers)
    return found


@asynccontextmanager
async def _sides(kind: Kind, client: Redis, tables: Database) -> AsyncIterator[Mapping[str, Read]]:
    """Decorate one `SELECT` by key for both."""
    query = tables.selected_user().query
    found: dict[str, Read] = {}

    async def get_user(db: AsyncSession, number: int) -> UserOut:  # each cache has its own client
        return await query(db, client, number)  # type: ignore[no-any-return]

    async with AsyncExitStack() as caches:
        for name, side in (("fastrdb", kind.ours), (WITHOUT, kind.theirs)):
            if side.verify:
                cache = Cache(client, publish=side.publish, auto=True, verify=side.verify)
                found[name] = cache.cached(PATTERN, version="auto", session_factory=tables.sessions)(get_user)
            else:
                cache = Cache(client, publish=side.publish)
                found[name] = cache.cached(PATTERN)(get_user)
            await caches.enter_async_context(cache)
            side.instrument(cache)
        yield found


async def _rounds(calls: Round, numbers: Sequence[int]) -> None:
    """Make as many calls at once as there are callers, until all are made."""
    for first in range(0, len(numbers), CALLERS):
        await calls(numbers[first : first + CALLERS])


async def _measured(sizes: Sizes, calls: Mapping[str, Call], callers: int) -> Timings:
    together, draw = one_by_one if callers == 1 else at_once, Known(KEYS).take
    for call in calls.values():
        await one_by_one(call)(draw(KEYS))  # a session has one statement at a time
    sides: dict[str, Round] = {name: partial(_rounds, together(call)) for name, call in calls.items()}
    return await interleaved(sides, rounds=10 * sizes.rounds, calls=CALLS, draw=draw, clock=process_time)


def _in_workers(port: int, sizes: Sizes) -> Measured:
    """Measure in both processes, which begin each case together, and put their rounds into one."""
    context = multiprocessing.get_context("spawn")  # a fork would share sockets and locks with its parent
    barrier = context.Barrier(WORKERS)
    with ProcessPoolExecutor(WORKERS, context, initializer=_begin, initargs=(barrier,)) as pool:
        first, *others = [each.result() for each in [pool.submit(_work, port, sizes) for _ in range(WORKERS)]]
    for other in others:
        for case, timings in other.items():
            first[case].add(timings)
    return first


def _begin(barrier: Barrier) -> None:
    global _barrier  # noqa: PLW0603 - a barrier can only be handed to a worker at its start
    _barrier = barrier


def _work(port: int, sizes: Sizes) -> Measured:
    return asyncio.run(_timed(SERVICES, port, sizes, partial(_barrier.wait, WAIT_S)))


_barrier: Barrier
