"""Whether a server can be used: a circuit breaker per node, and the reasons not to read from the cache.

While a breaker is open no call waits for its node. Every so often one caller has the node tried in the background. The
result closes the breaker, or leaves it open for a longer pause. A breaker that was closed so is on trial: the next
failure opens it at once, because a node that answers a PING may still be too slow for work.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from contextvars import Context
from time import monotonic

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, MaxConnectionsError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fastrdb.errors import CacheUnavailableError
from fastrdb.events import Counted

logger = logging.getLogger("fastrdb")

OTHER_DATA = "Redis came back with other data"
FAILURES = 3
"""Failures in a row that open a breaker: one is an accident, and each costs its caller up to the timeout."""
_PAUSES_S = (0.1, 0.2)
"""Pauses between two tries; the last one repeats. Each is short, so that a server that is back is soon used again."""
_SILENT = (TimeoutError, OSError, RedisConnectionError, RedisTimeoutError)
"""Errors that mean no answer. A server that answers with an error is there, and costs no time."""
_LONGEST_REASON = 200  # characters; a longer text quotes keys or values
_PIPELINE = re.compile(r"Command # \d+ \(.*\) of pipeline caused error: ", re.DOTALL)
_ARGUMENTS = re.compile(r",? *with args beginning with:.*", re.DOTALL)

Listener = Callable[[Counted, str], None]


class Health(set[object]):
    """Reasons why entries must not be read. Almost always empty, so that a hit needs one truth test.

    Attributes:
        listeners: functions that are called with each change: the kind of event and a detail.
        refusals: first words of the server's errors that were logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.listeners: list[Listener] = []
        self.refusals: set[str] = set()

    def block(self, reason: object, kind: Counted, detail: str = "") -> bool:
        """Add a reason. Return False if it was set already."""
        if reason in self:
            return False
        self.add(reason)
        self._notify(kind, detail)
        return True

    def unblock(self, reason: object, kind: Counted, detail: str = "") -> bool:
        """Remove a reason. Return False if it was not set."""
        if reason not in self:
            return False
        self.discard(reason)
        self._notify(kind, detail)
        return True

    def _notify(self, kind: Counted, detail: str) -> None:
        for listener in self.listeners:
            listener(kind, detail)


class Breaker:
    """The circuit breaker of one node: closed while the node answers.

    Args:
        health: blocked while this breaker is open, unless it is that of one node of several.
        node: the name of that node in logs; "" where it is the whole server or cluster.
        on_silence: is called each time that the node does not answer.
        clock: gives the time in seconds.
        timeout: seconds after which an answer is late, for messages.

    Attributes:
        address: of the server in logs, where there is no node.
        opened: whether the node is left alone.
        node: as given.
        failures: failures in a row; 0 means that an answer changes nothing.
        latest: the reason of the latest failure.
        opens: how often the breaker has opened.
    """

    __slots__ = (
        *("_clock", "_due", "_health", "_on_silence", "_logged", "_task", "_tries"),
        *("address", "failures", "latest", "node", "opened", "opens", "timeout", "trying"),
    )

    def __init__(
        self,
        health: Health,
        node: str = "",
        *,
        on_silence: Callable[[], None] = lambda: None,
        clock: Callable[[], float] = monotonic,
        timeout: float = 0.0,
    ) -> None:
        self.address, self.latest, self.timeout = "", "", timeout
        self._health, self.node, self._on_silence, self._clock = health, node, on_silence, clock
        self.opened = self.trying = self._logged = False
        self.failures = self.opens = self._tries = 0
        self._due = 0.0
        self._task: asyncio.Task[None] | None = None

    def on_reply(self) -> None:
        """Count an answer."""
        if not self.opened:
            self.failures = self._tries = 0
            return
        self.opened, self.failures = False, FAILURES - 1
        if not self.node:
            self._health.unblock(self, "recovery")
        logger.info("Redis%s answers again", self._place)

    @property
    def _place(self) -> str:
        place = self.node or self.address
        return f" at {place}" if place else ""

    def on_error(self, operation: str, error: Exception) -> CacheUnavailableError:
        """Count a failure, and return the error that its caller is to be given."""
        reason = redacted(error)
        if isinstance(error, _SILENT) and not isinstance(error, MaxConnectionsError):
            if isinstance(error, TimeoutError | RedisTimeoutError) and reason == type(error).__name__ and self.timeout:
                reason = f"no answer within {self.timeout:g} s"
            reason = f"{self.node}: {reason}" if self.node else reason
            self._on_silence()
            self._failed(operation, reason)
        elif isinstance(error, ResponseError) and (kind := reason.partition(" ")[0]) not in self._health.refusals:
            self._health.refusals.add(kind)
            logger.warning("Redis refuses %s (%s): calls go on without; this is logged once", operation, reason)
        return CacheUnavailableError(operation, reason)

    def refusal(self, operation: str, ping: Callable[[], Awaitable[object]]) -> CacheUnavailableError:
        """Return the error of a call that does not wait for the node, because the breaker is open. See `probe`."""
        self.probe(ping)
        return CacheUnavailableError(
            operation, f"{self.node or 'Redis'} has not answered lately ({self.latest.rstrip('.')})"
        )

    def probe(self, ping: Callable[[], Awaitable[object]]) -> None:
        """Try the node in the background, if it is time: by `ping`, which counts its result here."""
        if self.due():
            self._task = asyncio.get_running_loop().create_task(_pinged(ping), context=Context())
            self._task.add_done_callback(self._probed)

    async def aclose(self) -> None:
        """End a try that is under way."""
        if self._task is not None:
            await ended((self._task,))

    def due(self) -> bool:
        """Return True if it is time to try the node again. The caller has to try it, and to call `tried`."""
        if self.trying or not self.opened or self._clock() < self._due:
            return False
        self.trying = True
        return True

    def tried(self) -> None:
        """End a try, whatever its result."""
        self.trying = False
        self._pause()

    def _probed(self, _: object) -> None:
        self._task = None
        self.tried()

    def _failed(self, operation: str, reason: str) -> None:
        self.failures, self.latest = self.failures + 1, reason
        if not self._logged:  # a program may end before its third failure
            self._logged = True
            logger.warning(
                "Redis%s did not answer (%s: %s): the call goes on without it; a single failure is logged once",
                *(self._place, operation, reason),
            )
        if self.opened or self.failures < FAILURES:
            return
        self.opened = True
        self.opens += 1
        self._pause()
        if not self.node:
            self._health.block(self, "outage", f"{operation}: {reason}")
        logger.warning("Redis%s does not answer (%s: %s): calls go on without it", self._place, operation, reason)

    def _pause(self) -> None:
        self._due = self._clock() + _PAUSES_S[min(self._tries, len(_PAUSES_S) - 1)]
        self._tries += 1


async def _pinged(ping: Callable[[], Awaitable[object]]) -> None:
    with suppress(CacheUnavailableError):
        await ping()


def redacted(error: Exception) -> str:
    """Return the error's message without quoted keys or values, or the name of its class if there is none.

    Overwrite `error.args` too: the error is the cause of another one, and stands in its traceback.
    """
    if isinstance(error, InvalidResponse):  # quotes what came instead of a reply, perhaps a value
        text = type(error).__name__
    else:
        text = _ARGUMENTS.sub("", _PIPELINE.sub("", str(error)))[:_LONGEST_REASON] or type(error).__name__
    if str(error) not in ("", text):
        error.args = (text,)
    return text


async def ended(tasks: Iterable[asyncio.Task[None]]) -> None:
    """Cancel tasks and wait until all have ended.

    Cancel them again and again: before Python 3.12 `asyncio.wait_for`, which redis-py uses, swallows a cancellation
    that comes in the moment in which what it waits for is done.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=0.05)
