"""How long one call waits for Redis in all: a miss makes several round trips, and their deadline is one.

It begins with the first of them, stands still while the function runs, and goes on with the next. What Redis is still
doing when it is over is left to it, and the call goes on without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import TracebackType
from typing import Protocol, Self

from fastrdb.errors import CacheUnavailableError

from .deadlines import HELD_UP, Deadline
from .deadlines import ended as ended

_LOOK = 0.05
"""Of a deadline: so often all who wait are looked at. Whose time is over has one look more: for a reply that is here to
be read, and for the wire to be the first to tell of a round trip that nobody answers. It knows what that means."""


class Answers(Protocol):
    """Where answers come from."""

    def due(self, names: Collection[bytes], /) -> float:
        """By when what has just been read of these keys was due, by the event loop's clock."""
        ...

    def crowded(self) -> bool:
        """Whether so many ask at once that they wait for each other."""
        ...


class Waits:
    """Who waits, for `seconds` in all, in one event loop. One timer serves all: a crowd has thousands of waits."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: set[Patience] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # whose timer is set

    def add(self, patience: Patience, loop: asyncio.AbstractEventLoop) -> None:
        """Look at it from now on."""
        if self._loop is not loop:
            self._waiting.clear()
            self._loop = loop
            self._soon(loop)
        self._waiting.add(patience)

    def remove(self, patience: Patience) -> None:
        """It does not wait any more."""
        self._waiting.discard(patience)

    def _soon(self, loop: asyncio.AbstractEventLoop) -> None:
        when = loop.time() + _LOOK * self.seconds
        loop.call_at(when, self._look, loop, when)

    def _look(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        now = loop.time()
        late = now - when
        for patience in list(self._waiting):
            if late > HELD_UP:  # by this event loop, which was busy with something else: nobody can be judged
                patience.put_off(late)
            elif patience.until <= now:
                patience.is_over(now, loop)
        if self._waiting:
            self._soon(loop)
        else:
            self._loop = None


class Patience:
    """What a call may still wait: `with patience:` around each wait, one at a time, in one task.

    What lasts too long is cancelled, with a CacheUnavailableError. The time in which this process held it up (its event
    loop stood still, or its callers are a crowd that wait for each other) costs nothing.
    """

    __slots__ = ("_answers", "_before", "_last", "_left", "_spared", "_wait", "_waits", "until")

    def __init__(self, waits: Waits, answers: Answers, read: Collection[bytes] = (), portions: int = 1) -> None:
        """For so much work as needs `portions` round trips. The time that it took to `read` these keys counts."""
        self._waits, self._answers = waits, answers
        left = answers.due(read) - asyncio.get_running_loop().time() if read else 0.0  # mechanism: budget-counts-read
        self._left = (left if left > 0 else waits.seconds) + (portions - 1) * waits.seconds
        self._before, self.until = self._left, 0.0
        self._wait: Deadline | None = None
        self._last = self._spared = False

    def __enter__(self) -> Self:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline needs a task to cancel")
        self._before, self.until = self._left, loop.time() + self._left  # mechanism: budget-goes-on
        self._wait = Deadline(task, self.until)
        self._last = self._spared = False
        self._waits.add(self, loop)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._waits.remove(self)
        wait, self._wait = self._wait, None
        if not self._spared:
            self._left = max(0.0, self.until - asyncio.get_running_loop().time())  # mechanism: budget-is-used-up
        try:
            if wait is not None:
                wait.__exit__(kind, error, trace)
        except TimeoutError as late:
            raise CacheUnavailableError("wait", "the call has waited for Redis for as long as it may") from late

    def put_off(self, seconds: float) -> None:
        """So much was lost."""
        self.until += seconds

    def is_over(self, now: float, loop: asyncio.AbstractEventLoop) -> None:
        """End the wait, if this is not the first time that it is over."""
        if self._answers.crowded():
            self._spared, self.until = True, now + self._waits.seconds
        elif not self._last:
            self._last = True
        elif self._wait is not None:
            self._waits.remove(self)
            self._wait.expire(loop, self._waits.seconds)

    def renew(self) -> None:
        """A portion of much work is done, which is no silence: the next one has all the time again."""
        self._left, self._last = self._waits.seconds, False
        self.until = asyncio.get_running_loop().time() + self._left  # mechanism: budget-renewed

    def give_back(self) -> None:
        """The last wait was one for something else than Redis."""
        self._left = self._before
