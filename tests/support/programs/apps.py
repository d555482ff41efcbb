"""Programs that read and write one thing through the cache, without a database: the truth is a dictionary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis

from fastrdb import Cache
from fastrdb.protocol import Store
from fastrdb.testing import Gate


class App:
    """One process: a client, a cache, and functions that read and write the truth that all share."""

    def __init__(self, truth: dict[int, str], client: Redis, **settings: Any) -> None:
        self.truth, self.client = truth, client
        self.loads = 0
        self.loading: Callable[[], Any] | None = None  # awaited in the middle of a load
        self.cache = Cache(client, **settings)
        self.read, self.write = self._functions()
        self.sweeps = 0

    def _functions(self) -> Any:
        @self.cache.cached("item:{item}")
        async def read(item: int = 1) -> str:
            self.loads += 1
            found = self.truth[item]
            if self.loading is not None:
                await self.loading()
            return found

        @self.cache.invalidates("item:{item}")
        async def write(value: str, item: int = 1) -> None:
            self.truth[item] = value

        return read, write

    @property
    def store(self) -> Store:
        """The store behind the client."""
        return self.cache.runtime.store(self.client)

    def spy(self, before: list[Gate], after: list[Gate]) -> None:
        """Hold each sweep of this process at a gate, before it and after it, as many as there are gates."""
        backend: Any = self.store._backend
        delete = backend.delete

        async def spied(*args: Any) -> Any:
            self.sweeps += 1
            if before:
                await before.pop(0).hold()
            count = await delete(*args)
            if after:
                await after.pop(0).hold()
            return count

        backend.delete = spied

    async def healed(self) -> None:
        """Wait until entries may be read again."""
        while self.store.bypass_reason(self.client) is not None:
            heal = self.store._backend.trust._task
            if heal is not None:
                await heal
