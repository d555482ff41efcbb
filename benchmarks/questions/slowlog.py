"""How long an invalidation of very many entries keeps the server from others: its longest command, by SLOWLOG."""

from __future__ import annotations

import asyncio
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

from redis.asyncio import Redis

from benchmarks.catalogue import one_user
from benchmarks.comparison import enter, idle_sessions
from benchmarks.contestants.field import USUAL, opened
from benchmarks.copies import copies, entry_key
from benchmarks.harness import Sizes
from benchmarks.report import Limit, Row, absent, duration
from fastrdb.testing.server import EmbeddedServer

ASKED = Limit("value", bar=0.005)
LOGGED = 1e-4
"""Seconds from which a command is logged."""
MANY = 1_000_000
LIMIT = 60
"""Seconds after which entries that are still there have been left."""


async def rows(sizes: Sizes) -> list[Row]:
    """`prefix:*` over all entries of a server, for each contestant on a server of its own."""
    case = f"prefix of {sizes.entries:,}: longest command"
    found = []
    for name in USUAL:
        with EmbeddedServer() as server:
            async with opened(server.port, [name]) as field, idle_sessions(1) as [db]:
                if field.absent:
                    found.append(absent("slowlog", case, name, field.absent[name]))
                    continue
                [entrant] = enter(field, "user", one_user)
                if not entrant.contestant.forgets:
                    found.append(absent("slowlog", case, name, "has no invalidation by prefix"))
                    continue
                runs: list[_Longest] = []
                for _ in range(sizes.repeats):
                    await entrant.call(db, field.client, 0)
                    key = await entry_key(field.client, entrant.head, 0)
                    last = await copies(field.client, key, sizes.entries - 1)
                    await _watch(field.client)
                    start = perf_counter()
                    await entrant.contestant.forget(entrant.head)
                    await _gone(field.client, key, last)
                    runs.append(await _longest(field.client, perf_counter() - start))
        # The same work in each run: a script that is long is long in all of them; what is not, the machine did.
        middle = sorted(runs)[len(runs) // 2]
        longest, note = (
            middle.seconds,
            f"{middle.command}, {middle.text}; worst of {len(runs)} runs {duration(max(runs)[0])}",
        )
        limit = ASKED if name == "fastrdb" else None
        found.append(Row("slowlog", case, name, longest, limit=limit, note=note))
    return found


class _Longest(NamedTuple):
    """The longest command of a run, the median of its like that were logged, and the whole run, in seconds."""

    seconds: float
    command: str
    median: float
    whole: float

    @property
    def text(self) -> str:
        return f"median {duration(self.median)}; all took {duration(self.whole)}"


async def _watch(client: Redis) -> None:
    """Log what is slow from now on. Not everything: the commands inside of scripts count, and logging them is slow."""
    await client.config_set("slowlog-max-len", MANY)
    await client.slowlog_reset()
    await client.config_set("slowlog-log-slower-than", round(LOGGED * 1e6))


async def _gone(client: Redis, *keys: str) -> None:
    """Wait until the last entries are gone: on a busy machine fastrdb may miss its deadline, and makes up for it."""
    async with asyncio.timeout(LIMIT):
        while await client.exists(*keys):  # noqa: ASYNC110 - the server tells nobody
            await asyncio.sleep(0.01)


async def _longest(client: Redis, whole: float) -> _Longest:
    """The longest command since then."""
    await client.config_set("slowlog-log-slower-than", -1)
    logged: list[dict[str, Any]] = await client.slowlog_get(MANY)
    if not logged:
        return _Longest(LOGGED, "nothing longer", LOGGED, whole)
    times: dict[str, list[float]] = {}
    for entry in logged:
        name = entry["command"].split(b" ", 1)[0].decode().upper()
        times.setdefault(name, []).append(int(entry["duration"]) / 1e6)
    worst = max(times, key=lambda name: max(times[name]))
    return _Longest(max(times[worst]), worst, median(times[worst]), whole)
