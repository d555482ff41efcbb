"""How long one call waits for Redis in all: several round trips share one timeout.

A budget is shortened by each wait, stands still while the function runs, and goes on with the next wait. What Redis is
still doing when it is used up is left to Redis, and the call goes on without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import TracebackType
from typing import Protocol, Self

from fastrdb.errors import CacheUnavailableError

from .connection import HELD_UP_S

_AGAIN_S = 0.05
"""The least time until a task that is still there is cancelled once more."""
_LOOK = 0.05
"""The fraction of the timeout between two looks at all waits. A budget that is used up has one look more: for a reply
that is there to be read, and for the watchdog of a connection to notice first that the server is silent."""


class Answers(Protocol):
    """Where answers come from."""

    def due(self, names: Collection[bytes], /) -> float:
        """Return when the time of the callers that were answered for these keys is over, by the event loop's clock."""
        ...

    def crowded(self) -> bool:
        """Return True while callers wait for each other."""
        ...


class Waits:
    """All waits of one event loop, for `seconds` in all. One timer serves all: a crowd has thousands of waits."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._waiting: set[Budget] = set()
        self._loop: asyncio.AbstractEventLoop | None = None  # whose timer is set

    def add(self, budget: Budget, loop: asyncio.AbstractEventLoop) -> None:
        """Look at a budget from now on."""
        if self._loop is not loop:
            self._waiting.clear()
            self._loop = loop
            self._look_soon(loop)
        self._waiting.add(budget)

    def remove(self, budget: Budget) -> None:
        """Look at a budget no more."""
        self._waiting.discard(budget)

    def _look_soon(self, loop: asyncio.AbstractEventLoop) -> None:
        when = loop.time() + _LOOK * self.seconds
        loop.call_at(when, self._look, loop, when)

    def _look(self, loop: asyncio.AbstractEventLoop, when: float) -> None:
        now = loop.time()
        late = now - when
        for budget in list(self._waiting):
            if late > HELD_UP_S:
                budget.until += late
            elif budget.until <= now:
                budget.is_over(now, loop)
        if self._waiting:
            self._look_soon(loop)
        else:
            self._loop = None


class Budget:
    """The time that one call may still wait: `with budget:` around each wait, one at a time, in one task.

    A wait that lasts too long is cancelled, and raises CacheUnavailableError. Time in which this process held the call
    up is not counted: its event loop was blocked, or its callers are a crowd that wait for each other.

    Attributes:
        until: when the present wait is over, by the event loop's clock.
    """

    __slots__ = (
        "_answers",
        "_before",
        "_cancelling",
        "_cancels",
        "_last",
        "_left",
        "_spared",
        "_task",
        "_waits",
        "until",
    )

    def __init__(self, waits: Waits, answers: Answers, read: Collection[bytes] = (), portions: int = 1) -> None:
        """Allow `portions` round trips the timeout each. The time that it took to `read` these keys is counted."""
        self._waits, self._answers = waits, answers
        left = answers.due(read) - asyncio.get_running_loop().time() if read else 0.0  # mechanism: budget-counts-read
        self._left = (left if left > 0 else waits.seconds) + (portions - 1) * waits.seconds
        self._before, self.until = self._left, 0.0
        self._task: asyncio.Task[object] | None = None  # that waits
        self._cancelling = self._cancels = 0
        self._last = self._spared = False

    def __enter__(self) -> Self:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("a timeout needs a task to cancel")
        self._before, self.until = self._left, loop.time() + self._left  # mechanism: budget-goes-on
        self._task, self._cancelling, self._cancels = task, task.cancelling(), 0
        self._last = self._spared = False
        self._waits.add(self, loop)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._waits.remove(self)
        task, self._task = self._task, None
        until = 0.0 if self._cancels else self.until
        if not self._spared:
            self._left = max(0.0, until - asyncio.get_running_loop().time())  # mechanism: budget-is-used-up
        if not self._cancels or task is None:
            return
        # Another caller may have cancelled the task as well: then the cancellation is theirs.
        left = min([task.uncancel() for _ in range(self._cancels)])
        if left <= self._cancelling and kind is asyncio.CancelledError:
            raise CacheUnavailableError("wait", "the call has waited for Redis for as long as it may") from error

    def is_over(self, now: float, loop: asyncio.AbstractEventLoop) -> None:
        """End the wait, if this is not the first time that it is over."""
        if self._answers.crowded():
            self._spared, self.until = True, now + self._waits.seconds
        elif not self._last:
            self._last = True
        elif self._task is not None:
            self._cancels += 1
            self._task.cancel()
            self.until = loop.time() + max(self._waits.seconds, _AGAIN_S)  # a swallowed cancellation is repeated then

    def renew(self) -> None:
        """Begin anew: a portion of much work is done, and the next one has the whole timeout."""
        self._left, self._last = self._waits.seconds, False
        self.until = asyncio.get_running_loop().time() + self._left  # mechanism: budget-renewed

    def give_back(self) -> None:
        """Do not count the latest wait, which was for something else than Redis."""
        self._left = self._before
