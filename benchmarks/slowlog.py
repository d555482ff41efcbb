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
OWN = ("CONFIG", "SLOWLOG")
"""Commands of the measurement itself."""


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
                runs: list[tuple[float, str, float]] = []
                for _ in range(sizes.repeats):
                    await entrant.call(db, field.client, 0)
                    key = await entry_key(field.client, entrant.head, 0)
                    last = await copies(field.client, key, sizes.entries - 1)
                    start = await _watch(field.client)
                    await entrant.contestant.forget(entrant.head)
                    seconds = perf_counter() - start
                    assert await field.client.exists(key, last) == 0, f"{name} has left entries"
                    runs.append((*await _longest(field.client), seconds))
        # The same work in each run: a script that is long is long in all of them; what is not, the machine did.
        longest, command, _ = sorted(runs)[len(runs) // 2]
        note = f"{command}; the worst of {len(runs)} runs {duration(max(runs)[0])}; {duration(runs[0][2])} in all"
        limit = ASKED if name == "fastrdb" else None
        found.append(Row("slowlog", case, name, longest, limit=limit, note=note))
    return found


async def _watch(client: Redis) -> float:
    """Log every command from now on."""
    await client.config_set("slowlog-max-len", 1_000_000)
    await client.slowlog_reset()
    await client.config_set("slowlog-log-slower-than", 0)
    return perf_counter()


async def _longest(client: Redis) -> tuple[float, str]:
    """The longest command since then: its seconds, and its name."""
    await client.config_set("slowlog-log-slower-than", -1)
    logged: list[dict[str, Any]] = await client.slowlog_get(1_000_000)
    names = [entry["command"].split(b" ", 1)[0].decode().upper() for entry in logged]
    times = [int(entry["duration"]) / 1e6 for entry in logged]
    return max(each for each in zip(times, names, strict=True) if each[1] not in OWN)
