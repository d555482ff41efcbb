"""The bound on what writes from outside may leave stale: without a watcher's heartbeat, entries are bypassed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Final

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import Client, Health, ended

from .lua import load_script

if TYPE_CHECKING:
    from .interface import Backend

logger = logging.getLogger("fastrdb")
WATCHED: Final = load_script("", "watched")
SILENT: Final = "the watcher of writes from outside is silent"
_CHECKS: Final = 4  # in each `bound`


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """The last sign of life of the watcher of writes from outside.

    Attributes:
        age: seconds since then, of the slowest watcher if there are several. None: no watcher has ever left one, or
            Redis did not answer.
        bound: seconds; the `watched` of the cache.
    """

    age: float | None
    bound: float

    @property
    def late(self) -> bool:
        """Return whether entries are bypassed because of it."""
        return self.age is None or self.age >= self.bound


class BoundedHealth(Health):
    """Reasons not to read entries, with one more from a moment on.

    Each look compares the clock. A timer would fire too late in a process that was stopped, or busy for long.

    Attributes:
        last: that reason.
        until: the moment, by `monotonic`.
    """

    last: object = None
    until = inf

    def __bool__(self) -> bool:
        if monotonic() >= self.until:
            self.until = inf
            self.add(self.last)
        return len(self) > 0


class WatchedBound:
    """A check, several times in each `bound`, that watchers are alive; a reason to bypass entries while one is not.

    Entries are bypassed, too, until the first check, and while Redis does not answer the check. So are entries from
    the moment on at which the heartbeat of the last check is as old as the bound.

    Args:
        bound: seconds.
        sleep: for tests.
    """

    def __init__(
        self,
        backend: Backend,
        health: BoundedHealth,
        *,
        bound: float,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._backend, self._health, self._bound, self._sleep = backend, health, bound, sleep
        self._pause = bound / _CHECKS
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._logged = False
        health.last = self
        health.add(self)

    def start(self, client: Client) -> str:
        """Check from now on, with this client in place of an earlier one. Return why entries are bypassed."""
        self._client = client
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        return SILENT

    async def check(self, client: Client) -> Heartbeat:
        """Check once, and bypass entries or allow reading them."""
        asked, age_ms = monotonic(), -1
        with suppress(CacheUnavailableError):
            call = WATCHED.call((self._backend.keyspace.watch,), ())
            (age_ms,) = await self._backend.link.many(client, (call,))
        found = Heartbeat(None if age_ms < 0 else age_ms / 1000, self._bound)
        if found.age is not None and not found.late:
            self._health.until = asked + self._bound - found.age
            self._health.discard(self)
            if self._logged:
                logger.info("The watcher of writes from outside is back: entries are read again")
            self._logged = False
        else:
            self._health.add(self)
            if not self._logged:
                self._logged = True
                logger.warning("%s: entries are bypassed until it is back", SILENT)
        return found

    async def _run(self) -> None:
        while self._client is not None:
            await self.check(self._client)
            await self._sleep(self._pause)

    async def aclose(self) -> None:
        """End the checks."""
        task, self._task, self._client = self._task, None, None
        if task is not None:
            await ended([task])
