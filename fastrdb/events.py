"""Events of cached calls, for a hook, and the counters of each function.

Nothing here knows Redis or a session. Metrics and traces hang on the `Hook`; none is required.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Literal, Protocol, get_args

logger = logging.getLogger("fastrdb")

Kind = Literal[
    "near",  # answered from this process
    "hit",  # answered from Redis, within `exp`
    "miss",  # no entry
    "load",  # the function ran
    "join",  # answered by another caller's load
    "fill",  # the result was stored
    "unstored",  # the result was not stored; `detail` says why
    "bypass",  # the call went past the cache; `detail` says why
    "corrupt",  # an entry that cannot be read as the declared type
    "unavailable",  # Redis did not answer
    "invalidation",  # prefixes and keys were invalidated, or put on a transaction
    "outage",  # Redis does not answer: calls go on without it
    "recovery",  # Redis answers again
    "owed",  # an invalidation is pending: reads bypass the cache
    "repair",  # the pending invalidation is done
    "restart",  # Redis came back with other data: reads bypass the cache
    "healing",  # all of that data has been invalidated
    "stale",  # answered from Redis although `exp` is over; `detail` says why
    "early",  # a load began although `exp` is not over
    "failed",  # a load in the background raised; `detail` says what
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a call of `function` (its qualified name) under `key`.

    An event of the whole cache has the cache's class as its function, and no key.
    """

    function: str
    kind: Kind
    key: str
    detail: str = ""


class Hook(Protocol):
    """A function that a `Cache` calls with each event. It must not block the event loop; an error is logged once."""

    def __call__(self, event: Event, /) -> None:
        """Take note of `event`."""


@dataclass(frozen=True, slots=True)
class Stats:
    """The number of events of each kind in this process, in the order of `Kind`; `+` adds two of them up."""

    near: int = 0
    hits: int = 0
    misses: int = 0
    loads: int = 0
    joins: int = 0
    fills: int = 0
    unstored: int = 0
    bypasses: int = 0
    corrupt: int = 0
    unavailable: int = 0
    invalidations: int = 0
    outages: int = 0
    recoveries: int = 0
    owed: int = 0
    repairs: int = 0
    restarts: int = 0
    healings: int = 0
    stale: int = 0
    early: int = 0
    failed: int = 0

    def __add__(self, other: Stats) -> Stats:
        return Stats(**{name: getattr(self, name) + getattr(other, name) for name in _FIELDS.values()})


_FIELDS: dict[Kind, str] = dict(zip(get_args(Kind), (each.name for each in fields(Stats)), strict=True))


class Counters:
    """The running counts of one decorated function, and the hook that is called with each event."""

    __slots__ = ("function", "hook", "counts", "_complained")

    def __init__(self, function: str, hook: Hook | None = None) -> None:
        self.function = function
        self.hook = hook
        self.counts: dict[Kind, int] = dict.fromkeys(_FIELDS, 0)
        self._complained = False

    def tell(self, kind: Kind, key: str, detail: str = "") -> None:
        """Count an event, and call the hook with it, if there is one."""
        self.counts[kind] += 1
        if self.hook is not None:
            try:
                self.hook(Event(self.function, kind, key, detail))
            except Exception as error:  # noqa: BLE001  # no call and no invalidation may fail for a hook
                if not self._complained:
                    self._complained = True
                    logger.warning("the hook raises %s: this is said once", type(error).__name__)

    @staticmethod
    def total(each: Iterable[Counters]) -> Stats:
        """Return the sum of many."""
        return sum((counters.snapshot() for counters in each), Stats())

    def snapshot(self) -> Stats:
        """Return a copy of the counts."""
        return Stats(**{_FIELDS[kind]: count for kind, count in self.counts.items()})
