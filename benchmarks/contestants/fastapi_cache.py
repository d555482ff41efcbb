"""fastapi-cache2, as its documentation has it."""

from __future__ import annotations

from importlib import import_module
from typing import Any

from redis.asyncio import Redis

from benchmarks.catalogue import Query, Task
from benchmarks.contestants.base import LIFE, Contestant


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
