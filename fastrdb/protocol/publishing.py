"""Counts of one process, as a sampler, and the task that publishes them to Redis for other processes to read."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from time import time
from typing import TYPE_CHECKING, Any

from redis.exceptions import RedisError, ResponseError

from fastrdb.events import Counters

from .inspector import Inspector

if TYPE_CHECKING:
    from fastrdb.events import Event
    from fastrdb.registry import Registry

logger = logging.getLogger("fastrdb")

_EVERY_S = 5.0
_MOST_DROPS = 50
_LONGEST_KEY = 500
_TIMED = {"hit": "redis", "stale": "redis", "fill": "redis", "loaded": "load", "join": "wait"}


class Tally:
    """The times of each function's loads, waits and round trips, and the latest invalidations of this process."""

    def __init__(self) -> None:
        self._times: dict[str, dict[str, list[float]]] = {}
        self._drops: deque[dict[str, Any]] = deque(maxlen=_MOST_DROPS)

    def __call__(self, event: Event) -> None:
        """Take note of `event`, as a sampler: of hits one of 64."""
        if event.kind == "deleted":
            drop = {"at": time(), "function": event.function, "key": event.key[:_LONGEST_KEY], "count": event.count}
            self._drops.append(drop)
        if event.seconds is not None and (name := _TIMED.get(event.kind)) is not None:
            times = self._times.setdefault(event.function, {}).setdefault(name, [0, 0.0])
            times[0] += 1
            times[1] += event.seconds

    def record(self, counted: Iterable[Counters], registry: Registry, *, pending: bool) -> dict[str, Any]:
        """Return the counts of this process as JSON has them: of each function, and of the cache itself.

        Functions of one name are one. Times are [how often, seconds in all].
        """
        patterns = {each.function: "" if each.pattern is None else each.pattern.text for each in registry}
        functions = [
            {
                "function": name,
                "pattern": patterns.get(name, ""),
                "stats": {kind: count for kind, count in stats.counts().items() if count},
                "times": self._times.get(name, {}),
                "dropped": dict(stats.dropped),
            }
            for name, stats in Counters.by_function(counted).items()
            if name in patterns or any(stats.counts().values())
        ]
        return {
            "host": socket.gethostname(),
            "pid": os.getpid(),
            "at": time(),
            "pending": pending,
            "functions": functions,
            "drops": list(self._drops),
        }


class Publisher:
    """The publishing of one cache in one process."""

    def __init__(self, counted: Iterable[Counters], registry: Registry) -> None:
        self.tally = Tally()
        self._counted, self._registry = counted, registry
        self._process = 0, ""
        self._logged = False

    async def run(self, client: Any, namespace: str, pending: Any) -> None:
        """Publish until cancelled. A Redis that does not answer is tried again at the next turn."""
        inspector = Inspector(client, namespace)
        if self._process[0] != os.getpid():  # a child of fork() is another process; two event loops are one
            self._process = os.getpid(), secrets.token_hex(8)
        while True:
            with suppress(RedisError, OSError, asyncio.TimeoutError):
                try:
                    record = self.tally.record(self._counted, self._registry, pending=pending())
                    await inspector.publish(self._process[1], record)
                except ResponseError as error:  # Redis answers, and refuses: an ACL, say, or no memory
                    self._log_refusal(error)
            await asyncio.sleep(_EVERY_S)

    def _log_refusal(self, error: ResponseError) -> None:
        if not self._logged:
            self._logged = True
            logger.warning("publish=True: Redis refuses the counts (%s); allow +hset +expire +sadd", error)
