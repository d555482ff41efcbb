"""This library."""

from __future__ import annotations

from typing import Any, ClassVar

from redis.asyncio import Redis

from benchmarks.catalogue import Query, Task
from benchmarks.contestants.base import LIFE, Contestant
from fastrdb import Cache


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
