"""When Redis does not answer: how many failures in a row it takes to leave it alone, and how it is tried again. Pure.

While the breaker is open nobody waits for Redis. Every so often one caller is told to have it tried in the background;
what comes of that closes the breaker, or leaves it open for a longer pause. Closed so, it is on trial: the next failure
opens it at once, for what answers a try may still be too slow for work.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic

FAILURES = 3
"""In a row: one is an accident, and each costs its caller up to the deadline."""
_PAUSES = (0.1, 0.2)
"""Seconds between two tries; the last one again and again. Short, so that a server that is back is used again soon."""


class Breaker:
    """Closed while Redis answers. `clock` gives seconds."""

    __slots__ = ("_clock", "_due", "_tries", "failures", "opened", "opens", "trying")

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.opened = False
        self.failures = 0
        self.opens = 0
        self.trying = False
        self._due = 0.0
        self._tries = 0

    def failed(self) -> bool:
        """Redis did not answer. True if the breaker has opened for it."""
        self.failures += 1
        if self.opened or self.failures < FAILURES:
            return False
        self.opened = True
        self.opens += 1
        self._pause()
        return True

    def succeeded(self) -> bool:
        """Redis answered. True if the breaker has closed for it."""
        if not self.opened:
            self.failures = self._tries = 0
            return False
        self.opened, self.failures = False, FAILURES - 1
        return True

    def due(self) -> bool:
        """Whether it is time to try Redis again; whoever is told so has to do it, and to say how it went."""
        if self.trying or not self.opened or self._clock() < self._due:
            return False
        self.trying = True
        return True

    def tried(self) -> None:
        """The try is over, whatever came of it."""
        self.trying = False
        self._pause()

    def _pause(self) -> None:
        self._due = self._clock() + _PAUSES[min(self._tries, len(_PAUSES) - 1)]
        self._tries += 1
