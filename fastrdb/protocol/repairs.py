"""Invalidations that Redis missed: pending, and tried again until Redis has taken them."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from time import monotonic
from weakref import WeakValueDictionary

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import Client, Health, ended

from .keyspace import TAG, Target, common

logger = logging.getLogger("fastrdb")

_Sweep = Callable[[Client, str, Sequence[Target], Sequence[Target]], Awaitable[None]]
Unbar = Callable[[Client, Sequence[tuple[str, Sequence[Target]]]], Awaitable[None]]

_ELSEWHERE = "at a commit in another event loop"
_MOST_PENDING = 1024
"""So many targets are remembered one by one. More are replaced by all under their common head: memory has a bound."""
_MOST_BARRIERS = 256
"""So many barriers of repairs stand at once. One over their common head replaces more: each miss reads all."""
_PAUSES_S = (0.05, 0.2)
"""Pause after the first failed attempt, and the longest pause."""


class Repairs:
    """Invalidations that are pending. Entries must not be read meanwhile.

    A target is repaired with barriers (`barred`) as long as its COMMIT may still be to come: deleting alone would leave
    the time until then open. Once the COMMIT is known to be done, deleting is enough.

    Args:
        sweep: sets barriers under a token, and deletes what targets reach, whatever the circuit breaker says.
        unbar: removes barriers, each of a token and its targets.
        everything: the target that is all of the namespace.
        barrier_s: seconds for which barriers stand.
    """

    def __init__(
        self,
        sweep: _Sweep,
        unbar: Unbar,
        everything: Target,
        health: Health,
        *,
        barrier_s: float = 10.0,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._sweep, self._unbar, self._everything, self._health, self._sleep = sweep, unbar, everything, health, sleep
        self._barrier_s = barrier_s
        self._loop: asyncio.AbstractEventLoop | None = None
        self._siblings = WeakValueDictionary[int, Repairs]()
        self._pending: dict[Target, bool] = {}
        self._trying: dict[Target, bool] = {}
        self._standing: dict[Target, float] = {}  # the barriers of repairs, each with the time at which it lapses
        self._replaced: list[tuple[str, Sequence[Target]]] = []
        self._client: Client | None = None
        self._task: asyncio.Task[None] | None = None
        # The same for all attempts of this process: a barrier that is set again replaces the earlier one.
        self._token = secrets.token_hex(16)

    @property
    def has_pending(self) -> bool:
        """Return whether there is something to repair."""
        return bool(self._pending or self._trying)

    def add(
        self,
        client: Client,
        targets: Iterable[Target],
        *,
        barred: bool,
        reason: object,
        instead_of: tuple[str, Sequence[Target]] | None = None,
    ) -> None:
        """Add pending targets, including ones being repaired now: that repair may have run before the COMMIT.

        `instead_of` are barriers, by token, that the repair's own replace: else each abandoned COMMIT would leave some.
        """
        if instead_of is not None and len(self._replaced) < _MOST_PENDING:
            self._replaced.append(instead_of)
        found = dict.fromkeys(targets, barred)
        for other in filter(None, (known() for known in self._siblings.valuerefs())):
            if other is not self and other._loop is not None:
                with suppress(RuntimeError):  # it is closed
                    other._loop.call_soon_threadsafe(partial(other.take, client, found, reason=_ELSEWHERE))
        self.take(client, found, reason=reason)

    def join(self, siblings: WeakValueDictionary[int, Repairs]) -> None:
        """Become one of those of a process for one server: what one event loop has missed, all have to go past."""
        self._loop, self._siblings = asyncio.get_running_loop(), siblings
        siblings[id(self)] = self

    def take(self, client: Client, targets: Mapping[Target, bool], *, reason: object) -> None:
        """Take over what another event loop has missed: targets, and whether with barriers."""
        if not self.has_pending:
            logger.warning("Redis missed an invalidation (%s): reads bypass the cache until it is repaired", reason)
        for bars in set(targets.values()):
            self._cover([target for target, barred in targets.items() if barred is bars], bars)
        if self.has_pending:
            self._health.block(self, "owed", str(reason))
        self._client = client
        self.start()

    def start(self) -> None:
        """Start working on what is pending, unless this runs already."""
        if self._task is None and self._client is not None and self._pending:
            with suppress(RuntimeError):  # no loop is running here; the next call that finds it pending starts it
                loop = asyncio.get_running_loop()
                # In a context of its own: that of a request must not live as long as an outage.
                self._task = loop.create_task(self._repair(), context=Context())
                self._task.add_done_callback(self._stopped)

    def left(self) -> dict[Target, bool]:
        """Return what is pending, and whether with barriers."""
        both = self._trying | self._pending
        return {target: barred or self._trying.get(target, False) for target, barred in both.items()}

    async def aclose(self, limit: float) -> None:
        """Wait at most `limit` seconds for what is pending, or the `close_limit` of its client, then stop."""
        self.start()  # it may have been cancelled, with all that ran in the loop
        task = self._task
        if task is None:
            return
        limit = min(limit, getattr(self._client, "close_limit", limit))
        _, late = await asyncio.wait({task}, timeout=limit)
        if late:
            logger.warning(
                "closed with %d invalidations that Redis has not taken: their entries may be out of date until "
                "each expires",
                len(self.left()),
            )
            await ended((task,))

    def _cover(self, targets: list[Target], barred: bool) -> None:
        """Add targets, each unless a wider one is pending, and drop narrower ones."""
        pending = self._pending
        known = tuple(each.head for each, bars in pending.items() if not each.filter and (bars or not barred))
        new = [target for target in targets if not target.head.startswith(known)]
        wide = tuple(target.head for target in new if not target.filter)
        for each in [each for each, bars in pending.items() if each.head.startswith(wide) and (barred or not bars)]:
            del pending[each]
        for target in new:
            self._add(target, barred)

    def _add(self, target: Target, barred: bool) -> None:
        pending = self._pending
        if len(pending) >= _MOST_PENDING and target not in pending:
            barred = barred or any(pending.values())
            target = self._over([*pending, target])
            pending.clear()
        pending[target] = barred or pending.get(target, False)

    async def _repair(self) -> None:
        pause, longest = _PAUSES_S
        while self._pending and self._client is not None:
            if await self._attempt(self._client):
                pause = _PAUSES_S[0]
            else:
                await self._sleep(pause)
                pause = min(pause * 2, longest)
        self._client = None
        self._health.unblock(self, "repair")
        logger.info("Redis has taken the invalidations that it missed: the cache is used again")

    def _stopped(self, task: asyncio.Task[None]) -> None:
        self._task = None
        if not task.cancelled() and task.exception() is None:
            self.start()  # what was added since it has ended

    async def _attempt(self, client: Client) -> bool:
        """Try what is pending by now; what comes meanwhile is left to another attempt."""
        self._trying, self._pending = self._pending, {}
        replaced, self._replaced = self._replaced, []
        done = False
        try:
            fence = self._fence(replaced)
            await self._sweep(client, self._token, fence, list(self._trying))
            done = True
            self._standing |= dict.fromkeys(fence, monotonic() + self._barrier_s)
            await self._unbar(client, replaced)  # mechanism: barriers-replaced
        except CacheUnavailableError as error:
            logger.debug("repair: %s", error)
        finally:
            tried, self._trying = self._trying, {}
            if not done:
                self._replaced += replaced
                for barred in (False, True):
                    self._cover([target for target, bars in tried.items() if bars is barred], barred)
        return done

    def _fence(self, replaced: list[tuple[str, Sequence[Target]]]) -> list[Target]:
        """Return what to bar now. Add to `replaced` the barriers that stand and are covered by that."""
        now = monotonic()
        self._standing = {target: until for target, until in self._standing.items() if until > now}
        fence = [target for target, barred in self._trying.items() if barred]
        if not fence or len({*fence, *self._standing}) <= _MOST_BARRIERS:
            return fence
        wide = self._over([*fence, *self._standing])
        replaced.append((self._token, [target for target in self._standing if target != wide]))
        self._standing.clear()
        return [wide]

    def _over(self, targets: list[Target]) -> Target:
        """Return one target for many. What lies under tags may be anywhere."""
        return self._everything if any(target.filter == TAG for target in targets) else common(targets)
