"""What an entry weighs in the server: all that a contestant keeps for it, and the value itself."""

from __future__ import annotations

from redis.asyncio import Redis

from benchmarks.catalogue import one_user
from benchmarks.comparison import enter, idle_sessions
from benchmarks.contestants.field import USUAL, opened
from benchmarks.copies import copies, entry_key
from benchmarks.harness import Sizes
from benchmarks.report import Row, absent
from fastrdb.testing.server import EmbeddedServer


async def rows(sizes: Sizes) -> list[Row]:
    """Weigh a server of its own for each contestant, before and after its entries are there."""
    case, found = f"memory of an entry ({sizes.entries:,})", []
    for name in USUAL:
        with EmbeddedServer() as server:
            async with opened(server.port, [name]) as field, idle_sessions(1) as [db]:
                if field.absent:
                    found.append(absent("memory", case, name, field.absent[name]))
                    continue
                [entrant] = enter(field, "user", one_user)
                await entrant.call(db, field.client, 0)
                key = await entry_key(field.client, entrant.head, 0)
                await copies(field.client, key, 1)  # the script that copies has its own weight
                before = await _used(field.client)
                await copies(field.client, key, sizes.entries)
                weight = (await _used(field.client) - before) / sizes.entries
                plain = await field.client.memory_usage(key) or 0
                value = await field.client.strlen(key)
        note = f"{value} B of value under a key of {len(key)}: {plain} B by MEMORY USAGE"
        found.append(Row("memory", case, name, weight, "B", note=note))
    return found


async def _used(client: Redis) -> int:
    info = await client.info("memory")
    return int(info["used_memory"])
