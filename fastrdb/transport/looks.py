"""Looks at the map of a cluster. The client takes them and keeps what it sees; here they are begun, and waited for.

Each in a task of its own, which goes on whatever becomes of who waits for it: it may take longer than they can wait.
"""

from __future__ import annotations

import asyncio
import logging
from contextvars import Context
from typing import Any

from .deadlines import Deadlines, ended
from .pipeline import Boundary

logger = logging.getLogger("fastrdb")

_BETWEEN = 0.2
"""Seconds between two looks that nobody waits for, at least."""


class Looks:
    """One look at a time. `known_by` is what has the map: the client's `nodes_manager`, or the client at first."""

    def __init__(self, deadlines: Deadlines, boundary: Boundary) -> None:
        self._deadlines, self._boundary = deadlines, boundary
        self.going_on: asyncio.Task[None] | None = None
        self._latest = 0.0

    def soon(self, known_by: Any) -> None:
        """Have it looked at, if it has not been just now."""
        if asyncio.get_running_loop().time() - self._latest > _BETWEEN:
            self._begin(known_by)

    async def wait(self, known_by: Any) -> None:
        """Have it looked at, and wait for that. Raises CacheUnavailableError if it takes too long."""
        try:
            with self._deadlines.start():
                await asyncio.wait({self._begin(known_by)})
        except TimeoutError as error:
            raise self._boundary.failed("connect", error) from error

    async def aclose(self) -> None:
        """Have none go on: what it connects to, nobody would close."""
        if self.going_on is not None:
            await ended((self.going_on,))

    def _begin(self, known_by: Any) -> asyncio.Task[None]:
        if self.going_on is None:
            self.going_on = asyncio.get_running_loop().create_task(self._look(known_by), context=Context())
            self.going_on.add_done_callback(self._over)
        return self.going_on

    async def _look(self, known_by: Any) -> None:
        try:
            await known_by.initialize()
        except Exception as error:  # noqa: BLE001  # whatever it is, it is tried again
            logger.debug("the map of the cluster: %s", error)

    def _over(self, task: asyncio.Task[None]) -> None:
        self.going_on, self._latest = None, task.get_loop().time()
