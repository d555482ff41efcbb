"""dogpile.cache, as its documentation has it, in threads."""

from __future__ import annotations

import asyncio
from importlib import import_module
from typing import Any

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.catalogue import Query, Task
from benchmarks.contestants.base import HOST, LIFE, Contestant


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
