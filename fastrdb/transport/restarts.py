"""Redis came back with other data: found out before the cache is used, and everything invalidated once, by one process.

A server that was restarted from a snapshot, or a replica that took over and lacked the last deletes, holds entries that
had been invalidated. It lives another life than the one noted beside the data (see `life` in common.lua). That is
looked at on each new connection and once a second, by acquire.lua and by fill.lua. A replica is not used at all.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import Context
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from fastrdb.errors import CacheUnavailableError

from .health import OTHER_DATA, Health
from .scripts import Call, Command, Names, Script
from .timeouts import ended

logger = logging.getLogger("fastrdb")

_ADOPT = Script.load("adopt")
_HEALING_MS = 10_000
"""A process that has not deleted everything by then is taken for dead."""
_PAUSE = 0.05

Run = Callable[[Call], Awaitable[Any]]


class Evicts:
    """By which policy a server evicts keys that have no TTL: said when it changes."""

    def __init__(self) -> None:
        self.policy = b""

    def heard(self, policy: bytes) -> None:
        """It does so by this policy; b"" where it does not."""
        if policy != self.policy:
            self.policy = policy
            if policy:
                logger.warning(
                    "Redis has maxmemory-policy %s and may evict the index: each time it does, the next write has to "
                    "look at all keys. Set noeviction or volatile-*",
                    policy.decode(),
                )


class Restarts:
    """What one event loop knows of it; among the `obstacles` to reading from when it is found until it is healed.

    It is a `Greeting`: what each connection begins with.
    """

    def __init__(self, names: Names, obstacles: Health) -> None:
        self._names, self._obstacles = names, obstacles
        self._task: asyncio.Task[None] | None = None
        self._token = secrets.token_hex(16)  # one for all tries: who could not go on need not wait for itself
        self._untold = False
        self._evicts = Evicts()
        self._question = self._call("")

    @property
    def other_data(self) -> bool:
        """Whether what is there may be anything."""
        return self in self._obstacles

    def question(self) -> Command:
        """Give what a server is asked before what it gives is used."""
        return self._question.known()

    def heard(self, reply: Any) -> Command | None:
        """Take the reply, and give what to ask where it did not know the script."""
        if isinstance(reply, NoScriptError):
            return self._question.whole()
        if not isinstance(reply, Exception):  # an error (an ACL, say) will be the answer to every other script, too
            self._judge(reply)  # mechanism: greeting-judged
        return None

    def found(self) -> None:
        """A script says so."""
        if self._obstacles.put_up(self, "restart"):
            logger.warning("%s: everything is invalidated before it is used again", OTHER_DATA)

    def heal(self, run: Run, delete_all: Callable[[], Awaitable[object]]) -> None:
        """See to it that somebody deletes what is there; `run` runs a script."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._heal(run, delete_all), context=Context())
            self._task.add_done_callback(self._healed)

    async def settle(self, send: object) -> bool:
        """Return whether the data is trusted: one server judges itself."""
        return not self.other_data

    async def aclose(self) -> None:
        """Stop; another process, or the next who comes, does it."""
        if self._task is not None:
            await ended((self._task,))

    async def _heal(self, run: Run, delete_all: Callable[[], Awaitable[object]]) -> None:
        done = ""
        # A lost connection, or a replica: who asks next tries again.
        with suppress(CacheUnavailableError, RedisConnectionError):
            while self.other_data:
                reply = await run(self._call(self._token, done))
                self._judge(reply)
                match reply:
                    case [b"mine", life]:
                        await delete_all()
                        done = life.decode()
                    case [b"busy"]:
                        await asyncio.sleep(_PAUSE)

    def _healed(self, task: asyncio.Task[None]) -> None:
        self._task = None

    def _judge(self, reply: list[bytes]) -> None:
        match reply:
            case [b"other"]:
                self.found()
            case [b"same", policy]:
                self._evicts.heard(policy)
                if self._obstacles.take_down(self, "healing"):
                    logger.info("everything has been invalidated: the cache is used again")
            case [b"replica"]:
                raise RedisConnectionError("the server is a replica, which may be behind: it is not used")
            case [b"unknown", why]:
                self._obstacles.take_down(self, "healing")
                if not self._untold:
                    logger.warning("Redis tells no replication id (%s): a restart with old data is not noticed", why)
                self._untold = True

    def _call(self, token: str, done: str = "") -> Call:
        names = self._names
        return Call(_ADOPT, (*names.shared, names.server, names.healing), (token, done, _HEALING_MS))
