"""Redis came back with other data: found out before the cache is used, and everything invalidated once, by one process.

A server that was restarted from a snapshot, or a replica that took over and lacked the last deletes, holds entries that
had been invalidated. Its `run_id` is another than the one noted beside the data. That is looked at for each new
connection, by acquire.lua and by fill.lua.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import Any

from .errors import CacheUnavailableError
from .scripts import Call, Command, Names, Script

logger = logging.getLogger("fastrdb")

OTHER_DATA = "Redis came back with other data"

_ADOPT = Script.load("adopt")
_HEALING_MS = 10_000
"""A process that has not deleted everything by then is taken for dead."""
_PAUSE = 0.05

Run = Callable[[Call], Awaitable[Any]]


class Restarts:
    """What one event loop knows of it; among the `obstacles` to reading from when it is found until it is healed."""

    def __init__(self, names: Names, obstacles: set[object]) -> None:
        self._names, self._obstacles = names, obstacles
        self._task: asyncio.Task[None] | None = None
        self._untold = False

    @property
    def other_data(self) -> bool:
        """Whether what is there may be anything."""
        return self in self._obstacles

    async def greet(self, ask: Callable[[Command], Awaitable[Any]]) -> None:
        """Look at a server before a connection to it is first used; raises only what a lost connection raises."""
        reply = await ask(self._call("", done=False).whole())
        if not isinstance(reply, Exception):  # an error (an ACL, say) will be the answer to every other script, too
            self._judge(reply)

    def found(self) -> None:
        """A script says so."""
        if not self.other_data:
            logger.warning("%s: everything is invalidated before it is used again", OTHER_DATA)
        self._obstacles.add(self)

    def heal(self, run: Run, delete_all: Callable[[], Awaitable[object]]) -> None:
        """See to it that somebody deletes what is there; `run` runs a script."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._heal(run, delete_all), context=Context())

    async def aclose(self) -> None:
        """Stop; another process, or the next who comes, does it."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait({self._task})

    async def _heal(self, run: Run, delete_all: Callable[[], Awaitable[object]]) -> None:
        token = secrets.token_hex(16)
        try:
            with suppress(CacheUnavailableError):  # who asks next tries again
                while self.other_data:
                    match await self._adopt(run, token, done=False):
                        case b"mine":
                            await delete_all()
                            await self._adopt(run, token, done=True)
                        case b"busy":
                            await asyncio.sleep(_PAUSE)
        finally:
            self._task = None

    async def _adopt(self, run: Run, token: str, *, done: bool) -> bytes:
        reply = await run(self._call(token, done=done))
        self._judge(reply)
        state: bytes = reply[0]
        return state

    def _judge(self, reply: list[bytes]) -> None:
        if reply[0] == b"other":
            self.found()
        elif reply[0] == b"same" and self.other_data:
            self._obstacles.discard(self)
            logger.info("everything has been invalidated: the cache is used again")
        elif reply[0] == b"unknown":
            self._obstacles.discard(self)
            if not self._untold:
                logger.warning("Redis does not tell its run_id (%s): a restart with old data is not noticed", reply[1])
            self._untold = True

    def _call(self, token: str, *, done: bool) -> Call:
        names = self._names
        return Call(_ADOPT, (names.index, names.server, names.healing), (token, int(done), _HEALING_MS))
