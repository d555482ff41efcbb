"""aiocache, as its documentation has it: plain, and with its lease against a stampede."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from redis.asyncio import Redis

from benchmarks.catalogue import Query, Task
from benchmarks.contestants.base import HOST, LIFE, POOL, Contestant


class Aiocache(Contestant):
    """https://github.com/aio-libs/aiocache."""

    package = "aiocache"
    about = "pickle (its JSON takes no models); pool_max_size as many as there are callers"
    decorator = "cached"

    def __init__(self, port: int, client: Redis) -> None:
        self._port = port
        self._library: Any = import_module("aiocache")
        self._serializer: Any = import_module("aiocache.serializers").PickleSerializer
        self._caches: list[Any] = []

    def cached(self, head: str, task: Task) -> Query:
        decorate = getattr(self._library, self.decorator)(
            ttl=LIFE,
            namespace=head,
            key_builder=lambda function, db, redis, number: str(number),
            cache=self._library.Cache.REDIS,
            serializer=self._serializer(),
            endpoint=HOST,
            port=self._port,
            pool_max_size=POOL,
        )
        decorated: Any = decorate(task.query)
        self._caches.append(decorated.cache)
        result: Query = decorated
        return result

    async def forget(self, head: str) -> None:
        await self._caches[-1].clear(namespace=head)

    async def aclose(self) -> None:
        for cache in self._caches:
            await cache.close()


class AiocacheLocked(Aiocache):
    """With the decorator that its documentation gives against a stampede."""

    about = "pickle; cached_stampede, lease=2"
    decorator = "cached_stampede"
