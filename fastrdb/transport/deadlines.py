"""The deadline of one wait, which its task is cancelled by."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from types import TracebackType
from typing import Any, Self

_AGAIN = 0.05
"""The least of seconds that a cancelled block is given to clean up before it is cancelled once more."""
HELD_UP = 0.02
"""Seconds. A timer that comes so late tells of this event loop, which has been busy with something else, and not of the
server: its reply may be here, unread. So the time that was lost is given once more."""


class Deadline:
    """A block that raises TimeoutError when it has expired. For one task, once."""

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
