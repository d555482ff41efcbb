"""Reads that are cancelled at random, checked against what was committed when each began."""

from __future__ import annotations

import asyncio
import random
from typing import Any

from fastrdb import Cache
from tests.support.world.world import PATIENT


class Versions:
    """A database in memory: versions that were written, and those whose writer has been answered."""

    def __init__(self, client: Any, chance: random.Random, **settings: Any) -> None:
        self.client, self.chance = client, chance
        self.written = dict.fromkeys(range(5), 0)
        self.answered = dict.fromkeys(range(5), 0)
        self.caches = [Cache(**{"timeout": PATIENT, "barrier": PATIENT, **settings}) for _ in range(2)]
        self.functions = [self._functions(cache) for cache in self.caches]

    def _functions(self, cache: Cache) -> Any:
        @cache.cached("version:{key}", wait=PATIENT)
        async def read(redis: object, key: int) -> int:
            await self.steps(2)
            found = self.written[key]
            await self.steps(4)
            return found

        @cache.invalidates("version:{key}")
        async def write(redis: object, key: int) -> int:
            await self.steps(2)
            self.written[key] += 1
            return self.written[key]

        return read, write

    async def steps(self, most: int) -> None:
        """Yield to other tasks, a few times."""
        for _ in range(self.chance.randrange(most)):
            await asyncio.sleep(0)

    async def read_and_cancel(self) -> str:
        """Read once, cancel after some steps or not at all, and check the outcome.

        How many steps an answer takes depends on the machine. So a quarter of the reads is left alone.
        """
        (read, _), key = self.chance.choice(self.functions), self.chance.randrange(5)
        known = self.answered[key]
        task = asyncio.create_task(read(self.client, key))
        if steps := self.chance.choice((6, 20, 60, 0)):
            await self.steps(steps)
            task.cancel()
        try:
            found = await task
        except asyncio.CancelledError:
            return "cancelled"
        return "right" if known <= found <= self.written[key] else f"wrong: {found}, {known} was answered"

    async def read(self) -> str:
        """Read once, and check the answer."""
        (read, _), key = self.chance.choice(self.functions), self.chance.randrange(5)
        known = self.answered[key]
        found = await read(self.client, key)
        return "right" if known <= found <= self.written[key] else f"wrong: {found}, {known} was answered"

    async def write(self, key: int | None = None) -> None:
        """Write once, and note the answer."""
        _, write = self.chance.choice(self.functions)
        key = self.chance.randrange(5) if key is None else key
        self.answered[key] = max(self.answered[key], await write(self.client, key))
