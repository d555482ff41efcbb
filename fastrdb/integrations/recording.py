"""From events to metrics, whatever library takes them: which ones there are, and which event goes into which."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import NamedTuple

from fastrdb import Event

LOOKUPS = frozenset({"near", "hit", "stale", "miss"})
"""The kinds of events that say what a look for an entry has found: all but a miss are answers from the cache."""
SAMPLED = 16
"""One of so many lookups of a function is measured: to measure each would be felt on a hit."""
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BYTES = (64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 8_388_608.0)


class Metric(NamedTuple):
    """A metric: its description, its unit by UCUM, and the bounds of its buckets if it is a histogram."""

    text: str
    unit: str
    buckets: tuple[float, ...] = ()


METRICS = {
    "requests": Metric("Looks for an entry, by what was found", "{request}"),
    "events": Metric("All other events, by their kind", "{event}"),
    "deleted": Metric("Entries that invalidations have deleted", "{entry}"),
    "load": Metric("Calls of the cached function itself, by the error if there was one", "s", SECONDS),
    "wait": Metric("Waits for another caller's load", "s", SECONDS),
    "redis": Metric("Round trips to Redis, by the event: of hits one of 16", "s", SECONDS),
    "size": Metric("Entries when stored", "By", BYTES),
}


class Recorder(ABC):
    """A hook that puts events into metrics.

    Attributes:
        requests: how many lookups of each function and kind there were.
    """

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], int] = {}

    @abstractmethod
    def put(self, name: str, function: str, kind: str, value: float) -> None:
        """Record a value in a metric but `requests`; `kind` sets the values of a function apart."""

    def note_requests(self) -> None:  # noqa: B027  # a library that asks for `requests` needs no note
        """Take note of `requests`, of which some are new: called now and then."""

    def __call__(self, event: Event) -> None:
        """Take note of `event`."""
        kind, function, seconds = event.kind, event.function, event.seconds
        if kind in LOOKUPS:
            count = self.requests.get((function, kind), 0)
            self.requests[function, kind] = count + event.count
            if count % SAMPLED == 0:
                self.note_requests()
                if seconds is not None:
                    self.put("redis", function, kind, seconds)
        elif kind == "loaded":
            self.put("load", function, event.reason, seconds or 0.0)
        elif kind == "deleted":
            self.put("deleted", function, "", event.count)
        else:
            self.put("events", function, kind, event.count)
            if seconds is not None:
                self.put("wait" if kind == "join" else "redis", function, "" if kind == "join" else kind, seconds)
            if kind == "fill" and event.size is not None:
                self.put("size", function, "", event.size)
