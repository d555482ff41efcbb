"""Invalidations that Redis missed: owed to it, and tried again until it has taken them."""

from __future__ import annotations

import asyncio
import logging
import secrets
from contextlib import suppress
from contextvars import Context
from typing import TYPE_CHECKING

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import Client, Obstacles, Target, ended

from .sweep import Writing

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable

logger = logging.getLogger("fastrdb")

_OWED = 1024
"""So many targets are remembered one by one. More, and everything is invalidated: memory has a bound."""
_PAUSES = (0.05, 0.2)


class Repairs:
    """Invalidations owed to Redis, tried again until it takes them. Entries must not be read meanwhile.

    A target is owed with barriers (`barred`) as long as the COMMIT may still be to come: deleting alone would leave the
    time until then open. Once the COMMIT is known to be done, deleting is enough, as by hand.
    """

    def __init__(
        self,
        sweeper: Writing,
        obstacles: Obstacles,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._sweeper, self._obstacles, self._sleep = sweeper, obstacles, sleep
        self._owed: dict[Target, bool] = {}
        self._trying: dict[Target, bool] = {}
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None

    @property
    def owed(self) -> bool:
        """Whether there is something to repair."""
        return bool(self._owed or self._trying)

    def add(self, client: Client, targets: Iterable[Target], *, barred: bool, reason: object) -> None:
        """Owe these from now on, also those that are being repaired right now: that may have been too early."""
        if not self.owed:
            logger.warning("Redis missed an invalidation (%s): reading past the cache until it is made up for", reason)
        self._cover([*targets], barred)
        if self.owed:
            self._obstacles.put_up(self, "owed", str(reason))
        self._client = client
        self.start()

    def start(self) -> None:
        """See to it that somebody works on what is owed."""
        if self._task is None and self._client is not None and self._owed:
            with suppress(RuntimeError):  # no loop is running here; who asks next whether anything is owed starts it
                loop = asyncio.get_running_loop()
                # In a context of its own: that of a request must not live as long as an outage.
                self._task = loop.create_task(self._repair(), context=Context())
                self._task.add_done_callback(self._stopped)

    def left(self) -> dict[Target, bool]:
        """What is owed, and whether with barriers."""
        both = self._trying | self._owed
        return {target: barred or self._trying.get(target, False) for target, barred in both.items()}

    async def aclose(self, limit: float) -> None:
        """Wait at most `limit` seconds for what is owed, then stop."""
        self.start()  # it may have been cancelled, with all that ran in the loop
        task = self._task
        if task is None:
            return
        _, late = await asyncio.wait({task}, timeout=limit)
        if late:
            logger.warning("closed with invalidations that Redis has not taken: %d targets", len(self._owed) or 1)
            await ended((task,))

    def _cover(self, targets: list[Target], barred: bool) -> None:
        """Owe targets, each unless a wider one is owed, and none that is narrower any more."""
        known = tuple(each.head for each, bars in self._owed.items() if not each.filter and (bars or not barred))
        new = [target for target in targets if not target.head.startswith(known)]
        wide = tuple(target.head for target in new if not target.filter)
        for each in [each for each, bars in self._owed.items() if each.head.startswith(wide) and (barred or not bars)]:
            del self._owed[each]
        for target in new:
            self._owe(target, barred)

    def _owe(self, target: Target, barred: bool) -> None:
        if len(self._owed) >= _OWED and target not in self._owed:
            barred = barred or any(self._owed.values())
            target = self._sweeper.names.everything
            self._owed.clear()
        self._owed[target] = barred or self._owed.get(target, False)

    async def _repair(self) -> None:
        pause, longest = _PAUSES
        while self._owed and self._client is not None:
            if await self._attempt(self._client):
                pause = _PAUSES[0]
            else:
                await self._sleep(pause)
                pause = min(pause * 2, longest)
        self._client = None
        self._obstacles.take_down(self, "repair")
        logger.info("Redis has taken the invalidations that it missed: the cache is used again")

    def _stopped(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is None:
            self.start()  # what was owed since it has ended

    async def _attempt(self, client: Client) -> bool:
        """Try what is owed by now; what comes meanwhile is another attempt's."""
        self._trying, self._owed = self._owed, {}
        done = False
        try:
            token = secrets.token_hex(16)
            fence = [target for target, barred in self._trying.items() if barred]
            await self._sweeper.begin(client, token, fence, self._trying)
            done = True
        except CacheUnavailableError as error:
            logger.debug("repair: %s", error)
        finally:
            tried, self._trying = self._trying, {}
            if not done:
                for barred in (False, True):
                    self._cover([target for target, bars in tried.items() if bars is barred], barred)
        return done
