"""Fills a server with entries as fastrdb leaves them, quickly."""

from __future__ import annotations

from redis.asyncio import Redis

CHUNK = 5_000
LIFE_MS = 3_600_000


async def entries(client: Redis, head: str, count: int) -> None:
    """Store `count` values that expire, under `head:<number>`."""
    for start in range(0, count, CHUNK):
        pipeline = client.pipeline(transaction=False)
        for number in range(start, min(start + CHUNK, count)):
            pipeline.set(f"{head}:{number}", b'{"id":1,"name":"a"}', px=LIFE_MS)
        await pipeline.execute()


async def index(client: Redis, head: str, count: int) -> None:
    """Put their keys into the index and its companion, which knows when they die."""
    death = (await client.time())[0] * 1000 + LIFE_MS
    for start in range(0, count, CHUNK):
        names = [f"{head}:{number}" for number in range(start, min(start + CHUNK, count))]
        await client.zadd("fastrdb:index", dict.fromkeys(names, 0))
        await client.zadd("fastrdb:expiry", dict.fromkeys(names, death))


async def fill(client: Redis, head: str, count: int) -> None:
    """Do both."""
    await entries(client, head, count)
    await index(client, head, count)
