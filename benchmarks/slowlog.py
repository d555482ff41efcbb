"""How long an invalidation of very many entries keeps the server from others: its longest command, by SLOWLOG."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from redis.asyncio import Redis

from benchmarks.catalogue import one_user
from benchmarks.comparison import enter, idle_sessions
from benchmarks.copies import copies, entry_key
from benchmarks.field import USUAL, opened
from benchmarks.harness import Sizes
from benchmarks.rows import Limit, Row, absent, duration
from fastrdb.embedded import EmbeddedServer

ASKED = Limit("value", bar=0.005)


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
                longest: list[tuple[float, str, float]] = []
                for _ in range(sizes.scans):
                    await entrant.call(db, field.client, 0)
                    key = await entry_key(field.client, entrant.head, 0)
                    last = await copies(field.client, key, sizes.entries - 1)
                    start = await _watch(field.client)
                    await entrant.contestant.forget(entrant.head)
                    seconds = perf_counter() - start
                    assert await field.client.exists(key, last) == 0, f"{name} has left entries"
                    longest.append((*await _longest(field.client), seconds))
        slowest, command, _ = max(longest)
        note = f"{command}, worst of {sizes.scans}; all of it took {duration(max(seconds for *_, seconds in longest))}"
        limit = ASKED if name == "fastrdb" else None
        found.append(Row("slowlog", case, name, slowest, limit=limit, note=note))
    return found


async def _watch(client: Redis) -> float:
    """Log every command from now on."""
    await client.config_set("slowlog-max-len", 1_000_000)
    await client.config_set("slowlog-log-slower-than", 0)
    await client.slowlog_reset()
    return perf_counter()


async def _longest(client: Redis) -> tuple[float, str]:
    """The longest command since then: its seconds, and its name."""
    await client.config_set("slowlog-log-slower-than", -1)
    logged: list[dict[str, Any]] = await client.slowlog_get(1_000_000)
    worst = max(logged, key=lambda entry: int(entry["duration"]))
    return worst["duration"] / 1e6, worst["command"].split(b" ", 1)[0].decode().upper()
