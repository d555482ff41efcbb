"""The peers, each as its own documentation would have it.

They come without types, or may be missing, so they are imported by name when they take part.
"""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any, ClassVar

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.catalogue import Query, Task
from benchmarks.contestants import HOST, LIFE, POOL, Contestant


class Cashews(Contestant):
    """https://github.com/Krukov/cashews."""

    package = "cashews"
    about = "pickle; setup(url) as it comes"
    options: ClassVar[dict[str, Any]] = {}

    def __init__(self, port: int, client: Redis) -> None:
        self._cache: Any = import_module("cashews").Cache()
        self._cache.setup(f"redis://{HOST}:{port}/0", **self.options)

    def cached(self, head: str, task: Task, **protection: Any) -> Query:
        decorated: Query = self._cache(ttl=LIFE, key=f"{head}:{{number}}", **protection)(task.query)
        return decorated

    async def forget(self, head: str) -> None:
        await self._cache.delete_match(f"{head}:*")

    async def aclose(self) -> None:
        await self._cache.close()


class CashewsLocked(Cashews):
    """With the lock that its documentation gives against a stampede."""

    about = "pickle; lock=True"

    def cached(self, head: str, task: Task, **protection: Any) -> Query:
        return super().cached(head, task, lock=True, **protection)


class CashewsNear(Cashews):
    """With its copy in the process."""

    about = "pickle in Redis, in the process the object itself, which all callers share; client_side=True"
    options: ClassVar[dict[str, Any]] = {"client_side": True}


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


class FastapiCache(Contestant):
    """https://github.com/long2ice/fastapi-cache."""

    package = "fastapi-cache2"
    about = "pickle (its JsonCoder gives a dict for a model), except on the endpoint: JSON"

    def __init__(self, port: int, client: Redis) -> None:
        self._library: Any = import_module("fastapi_cache").FastAPICache
        self._decorate: Any = import_module("fastapi_cache.decorator").cache
        self._pickle: Any = import_module("fastapi_cache.coder").PickleCoder
        backend = import_module("fastapi_cache.backends.redis").RedisBackend(client)
        self._library.init(backend, prefix="fastapi", expire=LIFE)

    def cached(self, head: str, task: Task) -> Query:
        def key(function: Any, namespace: str, *, args: Any, **_: Any) -> str:
            return f"{namespace}:{args[2]}"

        decorated: Query = self._decorate(namespace=head, coder=self._pickle, key_builder=key)(task.query)
        return decorated

    def endpoint(self, function: Any, head: str) -> Any:
        """Put it on a FastAPI endpoint with the parameter `number`, as its documentation has it."""

        def key(function: Any, namespace: str, *, kwargs: Any, **_: Any) -> str:
            return f"{namespace}:{kwargs['number']}"

        return self._decorate(namespace=head, key_builder=key)(function)

    async def forget(self, head: str) -> None:
        await self._library.clear(namespace=head)

    async def aclose(self) -> None:
        self._library.reset()


class Dogpile(Contestant):
    """https://github.com/sqlalchemy/dogpile.cache: synchronous, so each call goes to a thread."""

    package = "dogpile.cache"
    about = "pickle; distributed_lock=True; synchronous: asyncio.to_thread around each call, a session of its own"
    forgets = False

    def __init__(self, port: int, client: Redis) -> None:
        arguments = {"host": HOST, "port": port, "redis_expiration_time": LIFE, "distributed_lock": True}
        region = import_module("dogpile.cache").make_region()
        self._region: Any = region.configure("dogpile.cache.redis", arguments=arguments | {"thread_local_lock": False})

    def cached(self, head: str, task: Task) -> Query:
        decorate = self._region.cache_on_arguments(function_key_generator=lambda *_: lambda number: f"{head}:{number}")
        decorated = decorate(task.blocking)

        async def get(db: AsyncSession, redis: Redis, number: int) -> Any:
            return await asyncio.to_thread(decorated, number)

        return get

    async def aclose(self) -> None:
        self._region.backend.writer_client.close()
