"""The bound on what writes from outside may leave stale: without a watcher's heartbeat, entries are bypassed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from dataclasses import dataclass
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


class WatchedBound:
    """A check, several times in each `bound`, that watchers are alive; a reason to bypass entries while one is not.

    Until the first check, and while Redis does not answer the check, entries are bypassed too. A timer bypasses them at
    the moment at which the heartbeat of the last check is as old as the bound.

    Args:
        bound: seconds.
        sleep: for tests.
    """

    def __init__(
        self,
        backend: Backend,
        health: Health,
        *,
        bound: float,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._backend, self._health, self._bound, self._sleep = backend, health, bound, sleep
        self._pause = bound / _CHECKS
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._logged = False
        health.add(self)

    def start(self, client: Client) -> str:
        """Check from now on, with this client in place of an earlier one. Return why entries are bypassed."""
        self._client = client
        if self._task is None or self._task.done():
            self._task = asyncio.get_running_loop().create_task(self._run(), context=Context())
        return SILENT

    async def check(self, client: Client) -> Heartbeat:
        """Check once, and bypass entries or allow reading them."""
        loop = asyncio.get_running_loop()
        asked, age_ms = loop.time(), -1
        with suppress(CacheUnavailableError):
            call = WATCHED.call((self._backend.keyspace.watch,), ())
            (age_ms,) = await self._backend.link.many(client, (call,))
        found = Heartbeat(None if age_ms < 0 else age_ms / 1000, self._bound)
        self._stop_timer()
        if found.age is not None and not found.late:
            self._timer = loop.call_at(asked + self._bound - found.age, self._health.add, self)
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

    def _stop_timer(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()

    async def aclose(self) -> None:
        """End the checks."""
        self._stop_timer()
        task, self._task, self._client = self._task, None, None
        if task is not None:
            await ended([task])
