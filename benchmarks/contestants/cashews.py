"""cashews, as its documentation has it: plain, with its lock, and with its copy in the process."""

from __future__ import annotations

from asyncio import CancelledError
from contextlib import suppress
from importlib import import_module
from typing import Any, ClassVar

from redis.asyncio import Redis

from benchmarks.catalogue import Query, Task
from benchmarks.contestants.base import HOST, LIFE, Contestant


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
        with suppress(CancelledError):  # on a busy machine `client_side` awaits its own task that it has cancelled
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
