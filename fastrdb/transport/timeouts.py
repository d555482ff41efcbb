"""How long one call waits for Redis in all: several round trips share one timeout.

A budget is shortened by each wait, stands still while the function runs, and goes on with the next wait. What Redis is
still doing when it is used up is left to Redis, and the call goes on without. The watchdog of a connection checks
the budgets of its callers, so no task is cancelled.
"""

from __future__ import annotations

from fastrdb.errors import CacheUnavailableError


class Budget:
    """The time that one call may still wait for Redis. One wait at a time uses it up.

    Time in which this process held the call up is not counted: its event loop was blocked, or its callers are a crowd
    that wait for each other.

    Attributes:
        left: seconds.
        until: when the present wait is over, by the event loop's clock.
    """

    __slots__ = ("_whole", "left", "until")

    def __init__(self, whole: float, left: float | None = None) -> None:
        """Allow `left` seconds, or the `whole` timeout."""
        self._whole, self.left, self.until = whole, whole if left is None else left, 0.0

    def start(self, now: float) -> None:
        """Begin a wait."""
        self.until = now + self.left  # mechanism: budget-goes-on

    def stop(self, now: float) -> None:
        """End the wait, and count it."""
        self.left = max(0.0, self.until - now)  # mechanism: budget-is-used-up

    def renew(self) -> None:
        """Begin anew: a portion of much work is done, and the next one has the whole timeout."""
        self.left = self._whole  # mechanism: budget-renewed


def used_up() -> CacheUnavailableError:
    """Return the error of a call whose budget is used up."""
    return CacheUnavailableError("wait", "the call has waited for Redis for as long as it may")
