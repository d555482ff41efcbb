"""Measures one piece of work: how long it took, the SQL statements it sent, and what the cache counted meanwhile."""

from __future__ import annotations

import statistics
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Generic, TypeVar

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from fastrdb import Cache, Stats

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Measured(Generic[T]):
    """Result and cost of some work: seconds, SQL statements, events of the cache."""

    value: T
    seconds: float
    statements: int
    stats: Stats

    @property
    def sources(self) -> str:
        """Where the answer came from, by what was counted."""
        counts = {"Redis": self.stats.hits, "database": self.statements, "joined": self.stats.joins}
        return " + ".join(name for name, count in counts.items() if count) or "neither"


class Meter:
    """Counts the statements of one engine and the events of one cache."""

    def __init__(self, engine: AsyncEngine, cache: Cache) -> None:
        self._engine = engine
        self._cache = cache
        self._statements = 0

    @contextmanager
    def listening(self) -> Iterator[Meter]:
        """Inside, statements are counted."""
        engine = self._engine.sync_engine
        event.listen(engine, "before_cursor_execute", self._count)
        try:
            yield self
        finally:
            event.remove(engine, "before_cursor_execute", self._count)

    async def measure(self, work: Callable[[], Awaitable[T]]) -> Measured[T]:
        """Do the work, once."""
        statements, stats, began = self._statements, self._cache.stats(), perf_counter()
        value = await work()
        seconds = perf_counter() - began
        return Measured(value, seconds, self._statements - statements, difference(self._cache.stats(), stats))

    async def compare(
        self, one: Callable[[], Awaitable[Any]], other: Callable[[], Awaitable[Any]], *, repeats: int
    ) -> tuple[float, float]:
        """Return the median seconds of each, measured in turns, so that both meet the same machine."""
        pairs = [((await self.measure(one)).seconds, (await self.measure(other)).seconds) for _ in range(repeats)]
        first, second = zip(*pairs, strict=True)
        return statistics.median(first), statistics.median(second)

    def _count(self, *_: Any) -> None:
        self._statements += 1


def difference(after: Stats, before: Stats) -> Stats:
    """Return the growth of each count from one reading to the next."""
    old = before.counts()
    return Stats(**{name: new - old[name] for name, new in after.counts().items()}, dropped={})
