"""Whether invalidating 100 keys by their prefix gets slower with the number of other keys in the server.

Those who look through all keys are given few repetitions: at a million keys each takes seconds.
"""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from dataclasses import replace
from time import perf_counter

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.catalogue import one_user
from benchmarks.comparison import Case, Entrant, enter, idle_sessions, table
from benchmarks.contestants.field import opened
from benchmarks.copies import copies, entry_key
from benchmarks.harness import Sizes, Timings
from benchmarks.report import Limit, Row
from fastrdb.testing.server import EmbeddedServer

KEYS = 100
WARM = 2
LIMIT = 60
"""Seconds after which a cache that stores nothing is given up."""


async def rows(sizes: Sizes) -> list[Row]:
    """fastrdb in all keyspaces, interleaved; then everybody in each of them."""
    found: list[Row] = []
    async with AsyncExitStack() as stack:
        [db] = await stack.enter_async_context(idle_sessions(1))
        ports: dict[int, int] = {}
        for size in sizes.keyspaces:
            ports[size] = stack.enter_context(EmbeddedServer()).port
            await _crowd(ports[size], size, db)
        across = await _across(ports, sizes.rounds, db)
        for size, port in ports.items():
            found += [
                replace(row, at=size) for row in await _together(f"{KEYS} keys among {size:,}", port, sizes.scans, db)
            ]
    smallest, largest = sizes.keyspaces[0], sizes.keyspaces[-1]
    for size in sizes.keyspaces[1:]:
        limit = Limit("ratio", bar=1.5, aim=1.1) if size == largest else None
        case, name = f"{KEYS} keys, by how many others", f"fastrdb, {size:,}"
        value, ratio = across.median(f"{size}"), across.ratio(f"{size}", f"{smallest}")
        found.append(Row("invalidation", case, name, value, ratio=ratio, limit=limit, note=f"than among {smallest:,}"))
    return found


async def _crowd(port: int, size: int, db: AsyncSession) -> None:
    """Fill a server with so many entries of fastrdb. A few that are made alike must be known to it for its own."""
    async with opened(port, ["fastrdb"]) as field:
        for topic, count in (("trial", 3), ("crowd", size)):
            [entrant] = enter(field, topic, one_user)
            await entrant.call(db, field.client, 0)
            last = await copies(field.client, await entry_key(field.client, entrant.head, 0), count)
            if topic == "trial":
                await entrant.contestant.forget(entrant.head)
                assert not await field.client.exists(last), "a copied entry is not what fastrdb makes"


async def _across(ports: dict[int, int], rounds: int, db: AsyncSession) -> Timings:
    """Time fastrdb alone in each keyspace, round by round."""
    async with AsyncExitStack() as stack:
        sides: dict[str, tuple[Entrant, Redis]] = {}
        for size, port in ports.items():
            field = await stack.enter_async_context(opened(port, ["fastrdb"]))
            sides[f"{size}"] = (enter(field, "growth", one_user)[0], field.client)
        timings, names = Timings(list(sides)), list(sides)
        for number in range(-WARM, rounds):
            for name in names if number % 2 else reversed(names):
                seconds = await _forget(*sides[name], db)
                if number >= 0:
                    timings.times[name].append(seconds)
    return timings


async def _together(case: str, port: int, rounds: int, db: AsyncSession) -> list[Row]:
    """Time those who can invalidate by prefix on one server, round by round."""
    async with opened(port) as field:
        entrants = [entrant for entrant in enter(field, "victims", one_user) if entrant.contestant.forgets]
        timings = Timings([entrant.name for entrant in entrants])
        for number in range(-1, rounds):
            for entrant in entrants if number % 2 else reversed(entrants):
                seconds = await _forget(entrant, field.client, db)
                if number >= 0:
                    timings.times[entrant.name].append(seconds)
                    timings.calls[entrant.name] += 1
        unable = [name for name, contestant in field.contestants.items() if not contestant.forgets]
    found = table(Case("invalidation", case), field.absent, timings, {})
    return found + [Row("invalidation", case, name, note="has no invalidation by prefix") for name in unable]


async def _forget(entrant: Entrant, client: Redis, db: AsyncSession) -> float:
    """Make the entries, and time how long it takes to invalidate them. That none is left shows in the next round."""
    loads = await _pass(entrant, client, db)
    assert loads == KEYS, f"{entrant.name} has left entries"
    async with asyncio.timeout(LIMIT):
        # A cache that has missed a deadline stores nothing for a while, and tells nobody when that is over.
        while await _pass(entrant, client, db):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    start = perf_counter()
    await entrant.contestant.forget(entrant.head)
    return perf_counter() - start


async def _pass(entrant: Entrant, client: Redis, db: AsyncSession) -> int:
    """Ask for all keys; give how many of them were loaded."""
    before = entrant.loads.count
    await asyncio.gather(*(entrant.call(db, client, number) for number in range(KEYS)))
    return entrant.loads.count - before
