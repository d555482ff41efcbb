"""How long one call waits for Redis in all: a miss makes several round trips, and their deadline is one.

It begins with the first of them, stands still while the function runs, and goes on with the next. What Redis is still
doing when it is over is left to it, and the call goes on without.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from types import TracebackType
from typing import Protocol, Self

from .deadlines import Deadlines, Until
from .errors import CacheUnavailableError

_MOMENT = 0.1
"""So much of a deadline a call waits longer than that, for the wire to be the first to tell of a single round trip that
nobody answers: it knows what follows from silence."""


class Answers(Protocol):
    """Where answers come from."""

    def due(self, names: Collection[bytes], /) -> float:
        """By when what has just been read of these keys was due, by the event loop's clock."""
        ...

    def crowded(self) -> bool:
        """Whether so many ask at once that they wait for each other."""
        ...


class Patience:
    """What a call may still wait: `with patience:` around each wait, one at a time, in one task.

    What lasts too long is cancelled, with a CacheUnavailableError. What outlasts its time because this process held it
    up (its event loop stood still, or its callers are a crowd that wait for each other) is not, and costs nothing.
    """

    __slots__ = ("_answers", "_before", "_left", "_moment", "_seconds", "_wait")

    def __init__(self, deadlines: Deadlines, answers: Answers, read: Collection[bytes] = (), portions: int = 1) -> None:
        """For so much work as needs `portions` round trips. The time that it took to `read` these keys counts."""
        self._answers, self._seconds, self._moment = answers, deadlines.seconds, _MOMENT * deadlines.seconds
        left = answers.due(read) - asyncio.get_running_loop().time() if read else 0.0
        self._left = (left if left > 0 else self._seconds) + (portions - 1) * self._seconds
        self._before = self._left
        self._wait: Until | None = None

    def __enter__(self) -> Self:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        if task is None:
            raise RuntimeError("a deadline needs a task to cancel")
        self._before = self._left
        when = loop.time() + self._left + self._moment
        self._wait = Until(task, when, loop, self._seconds, self._answers.crowded)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        wait, self._wait = self._wait, None
        if wait is None:
            return
        if not wait.held_up:
            self._left = max(0.0, wait.when - wait.loop.time() - self._moment)
        try:
            wait.__exit__(kind, error, trace)
        except TimeoutError as late:
            raise CacheUnavailableError("wait", "the call has waited for Redis for as long as it may") from late

    def renew(self) -> None:
        """A portion of much work is done, which is no silence: the next one has all the time again."""
        self._left = self._seconds
        if self._wait is not None:
            self._wait.start_over(self._left + self._moment)

    def give_back(self) -> None:
        """The last wait was one for something else than Redis."""
        self._left = self._before
