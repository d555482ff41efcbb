"""Who takes part, and how: this library, and the same work by hand. The peers are in `peers`.

All get the same function and the same server; those who take a client get the same one.
"""

from __future__ import annotations

from typing import Any, ClassVar

from pydantic import TypeAdapter
from redis.asyncio import BlockingConnectionPool, Redis
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.catalogue import Query, Task
from fastrdb import Cache

HOST = "127.0.0.1"
LIFE = 3600
POOL = 4_096
"""Connections a client may open: more than there are callers, so that none is refused one."""


class Contestant:
    """A cache, as its users use it. `head` is put before a key, with a colon."""

    package: ClassVar[str]
    about: ClassVar[str]
    """What it stores, and how it is set."""
    forgets: ClassVar[bool] = True
    """Whether it can invalidate by prefix."""

    def __init__(self, port: int, client: Redis) -> None:
        """Use the server at `port`, through `client` if it takes one."""

    def cached(self, head: str, task: Task) -> Query:
        """Put the cache on a function."""
        raise NotImplementedError

    async def forget(self, head: str) -> None:
        """Invalidate everything under `head`."""
        raise NotImplementedError

    async def aclose(self) -> None:
        """Close what it has opened."""


class Ours(Contestant):
    """This library."""

    package = "fastrdb"
    about = "JSON; Cache() as it comes"
    settings: ClassVar[dict[str, Any]] = {}

    def __init__(self, port: int, client: Redis) -> None:
        self._client = client
        self._cache = Cache(**self.settings)

    def cached(self, head: str, task: Task) -> Query:
        return self._cache.cached(f"{head}:{{number}}", exp=LIFE)(task.query)

    async def forget(self, head: str) -> None:
        await self._cache.invalidate(f"{head}:*", redis=self._client)

    async def aclose(self) -> None:
        await self._cache.aclose()


class OursNear(Ours):
    """With its copy in the process. Versions without one refuse the option."""

    about = "JSON, in the process too; Cache(near=True)"
    settings: ClassVar[dict[str, Any]] = {"near": True}


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
