"""The same work by hand, with redis-py and pydantic."""

from __future__ import annotations

from typing import Any

from pydantic import TypeAdapter
from redis.asyncio import BlockingConnectionPool, Redis
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.catalogue import Query, Task
from benchmarks.contestants.base import HOST, LIFE, Contestant


class Bare(Contestant):
    """What one would write by hand with redis-py and pydantic."""

    package = "redis"
    about = "JSON; GET and validate_json, or load, dump_json and SET PX; SCAN and UNLINK for a prefix"

    def __init__(self, port: int, client: Redis) -> None:
        self._client = client

    def cached(self, head: str, task: Task) -> Query:
        client, query, adapter = self._client, task.query, TypeAdapter(task.shape)

        async def get(db: AsyncSession, redis: Redis, number: int) -> Any:
            key = f"{head}:{number}"
            if (raw := await client.get(key)) is not None:
                return adapter.validate_json(raw)
            value = await query(db, redis, number)
            await client.set(key, adapter.dump_json(value), px=LIFE * 1000)
            return value

        return get

    async def forget(self, head: str) -> None:
        cursor = 0
        while True:
            cursor, keys = await self._client.scan(cursor, match=f"{head}:*", count=1_000)
            if keys:
                await self._client.unlink(*keys)
            if not cursor:
                return


class Pooled(Bare):
    """The same on 64 connections that callers wait for: the better choice where callers are many."""

    about = "the same on a BlockingConnectionPool of 64"

    def __init__(self, port: int, client: Redis) -> None:
        pool = BlockingConnectionPool(host=HOST, port=port, max_connections=64, timeout=None)
        super().__init__(port, Redis.from_pool(pool))

    async def aclose(self) -> None:
        await self._client.aclose()
