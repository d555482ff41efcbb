"""The deadline of every operation on Redis: all are equally long, so one timer serves them all.

`asyncio.timeout` sets a timer for each operation and cancels it again, which is a tenth of what a `GET` costs. Here an
operation costs a place in a queue; whoever is at its head when the time has come is cancelled, as `asyncio.timeout`
does it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Self
from weakref import ReferenceType, ref

_AGAIN = 0.05
"""The least of seconds that a cancelled block is given to clean up before it is cancelled once more."""
HELD_UP = 0.02
"""Seconds. A timer that comes so late tells of this event loop, which has been busy with something else, and not of the
server: its reply may be here, unread. So the time that was lost is given once more, and up to so often:"""
_PUT_OFF = 3


class Deadline:
    """`with deadlines.start():` raises TimeoutError when the block lasts too long. For one task, once."""

    __slots__ = ("cancelling", "cancels", "task", "when")

    def __init__(self, task: asyncio.Task[Any], when: float) -> None:
        self.task: asyncio.Task[Any] | None = task  # None: the block is left
        self.when = when
        self.cancelling = task.cancelling()
        self.cancels = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        task, self.task = self.task, None
        if not self.cancels or task is None:
            return
        left = min([task.uncancel() for _ in range(self.cancels)])
        # Somebody else may have cancelled the task as well: then it is theirs, and no TimeoutError.
        if left <= self.cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error

    def expire(self, loop: asyncio.AbstractEventLoop, again: float) -> None:
        """Cancel what still runs, and once more after `again` seconds: Python 3.11's `asyncio.wait_for`, by which
        redis-py writes, swallows a cancellation that comes as it is done."""
        if self.task is not None:
            self.cancels += 1
            self.task.cancel()
            loop.call_later(again, self.expire, loop, again)


class Until(Deadline):
    """The same with a timer of its own, for something that began before: it ends at `when`, by the loop's clock.

    If it is `excused` then, it is given so many `seconds` more.
    """

    __slots__ = ("_excused", "_seconds", "_timer", "loop")

    def __init__(
        self,
        task: asyncio.Task[Any],
        when: float,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        excused: Callable[[], bool] = bool,
    ) -> None:
        super().__init__(task, when)
        self.loop, self._seconds, self._excused = loop, seconds, excused
        self._timer = loop.call_at(when, self._due, when, 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._timer.cancel()
        super().__exit__(kind, error, trace)

    def _due(self, when: float, times: int) -> None:
        now = self.loop.time()
        later = put_off(now, when, times, self._seconds)
        if later is None and self._excused():
            later, times = now + self._seconds, -1
        if later is None:
            self.expire(self.loop, max(self._seconds, _AGAIN))
        else:
            self._timer = self.loop.call_at(later, self._due, later, times + 1)


def put_off(now: float, when: float, times: int, seconds: float) -> float | None:
    """When to look again, if what was due at `when` and has been put off so many `times` may not be judged `now`."""
    late = now - when
    if late > HELD_UP and times < _PUT_OFF:
        return now + min(late, seconds)
    return None if times else now  # what has come by now is read first


async def ended(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Cancel tasks and wait until they have ended.

    Again and again: before Python 3.12 `asyncio.wait_for`, which redis-py uses, takes a cancellation for nothing if it
    comes in the moment in which what it waits for is done. A task that tries until it succeeds would go on for ever.
    """
    left = set(tasks)
    while left:
        for task in left:
            task.cancel()
        _, left = await asyncio.wait(left, timeout=_AGAIN)


class Deadlines:
    """The deadlines of `seconds` that are running in one event loop, the next one first."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self._running: deque[Deadline] = deque()
        self._loop: ReferenceType[asyncio.AbstractEventLoop] | None = None  # whose timer is set

    def start(self, loop: asyncio.AbstractEventLoop | None = None) -> Deadline:
        """Give a deadline that begins now, in the running `loop`. RuntimeError outside of a task."""
        loop = asyncio.get_running_loop() if loop is None else loop
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline needs a task to cancel")
        deadline = Deadline(task, loop.time() + self.seconds)
        running = self._running
        while running and running[0].task is None:
            running.popleft()
        if self._loop is None or self._loop() is not loop:  # no timer, or that of a loop that has ended
            running.clear()
            self._loop = ref(loop)
            loop.call_at(deadline.when, self._next, loop, deadline.when, 0)
        running.append(deadline)
        return deadline

    def since(self, began: float, loop: asyncio.AbstractEventLoop, excused: Callable[[], bool] = bool) -> Until:
        """Give a deadline for what `began` earlier, by the clock of the running `loop`.

        When its time is over it begins anew, if it is `excused`.
        """
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("a deadline needs a task to cancel")
        return Until(task, began + self.seconds, loop, self.seconds, excused)

    def _next(self, loop: asyncio.AbstractEventLoop, when: float, times: int) -> None:
        """Cancel what is too late, and set the timer for the next that runs."""
        running, now = self._running, loop.time()
        if (later := put_off(now, when, times, self.seconds)) is not None:
            loop.call_at(later, self._next, loop, later, times + 1)
            return
        while running and (running[0].task is None or running[0].when <= now):
            running.popleft().expire(loop, max(self.seconds, _AGAIN))
        if running:
            loop.call_at(running[0].when, self._next, loop, running[0].when, 0)
        else:
            self._loop = None
