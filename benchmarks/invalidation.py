"""Whether an invalidation gets slower with the number of other keys: 100 keys among few and among many."""

from __future__ import annotations

from time import perf_counter

from redis.asyncio import Redis

from benchmarks.filling import fill
from benchmarks.harness import Row, Sizes, Timings, micro
from fastrdb import Cache
from fastrdb.embedded import EmbeddedServer

KEYS = 100


async def rows(sizes: Sizes, client: Redis) -> list[Row]:
    """Measure on two servers of its own, with few and with many keys."""
    with EmbeddedServer() as small, EmbeddedServer() as large:
        async with Redis(host="127.0.0.1", port=small.port) as few, Redis(host="127.0.0.1", port=large.port) as many:
            await fill(few, "other", sizes.few)
            await fill(many, "other", sizes.many)
            timings = await _measured(sizes, few, many)
    question = f"invalidation of {KEYS} keys among {sizes.many:,}"
    return [timings.row(question, f"the same among {sizes.few:,}", aim=2.0), _by_key(timings)]


async def _measured(sizes: Sizes, few: Redis, many: Redis) -> Timings:
    found = Timings([], [])
    cache = Cache(timeout=5)
    for number in range(sizes.rounds + 2):  # the first two bring the scripts along
        sides = [(few, found.bare), (many, found.subject)]
        for client, times in sides if number % 2 else reversed(sides):
            await fill(client, "victim", KEYS)
            start = perf_counter()
            await cache.invalidate("victim:*", redis=client)
            seconds = perf_counter() - start
            assert await client.exists("victim:0", f"victim:{KEYS - 1}") == 0
            if number >= 2:
                times.append(seconds)
    await cache.aclose()
    return found


def _by_key(timings: Timings) -> Row:
    best = min(timings.subject)
    return Row(f"the fastest of {len(timings.subject)} such invalidations", micro(best), f"{micro(best / KEYS)} a key")
