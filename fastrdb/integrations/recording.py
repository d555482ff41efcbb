"""The metrics, for any library: their descriptions, and which event or count goes into which metric."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple
from weakref import finalize

from fastrdb import Cache, Event, Stats
from fastrdb.events import Counters

LOOKUPS = {"near": "near", "hit": "hits", "stale": "stale", "miss": "misses"}
"""The kinds of events that end a lookup, with their counts: all but a miss are answers."""
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
BYTES = (64.0, 256.0, 1024.0, 4096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0, 8_388_608.0)


class Metric(NamedTuple):
    """A metric: its description, its unit by UCUM, and the bounds of its buckets if it is a histogram."""

    text: str
    unit: str
    buckets: tuple[float, ...] = ()


METRICS = {
    "requests": Metric("Lookups of an entry, by what was found", "{request}"),
    "events": Metric("All other events, by their kind", "{event}"),
    "deleted": Metric("Entries that invalidations have deleted", "{deletion}"),
    "load": Metric("Calls of the cached function itself, by the error if there was one", "s", SECONDS),
    "wait": Metric("Waits for another caller's load", "s", SECONDS),
    "redis": Metric("Round trips to Redis, by the event: of hits one of 64", "s", SECONDS),
    "delay": Metric("Time from a commit outside to its invalidation, at most", "s", SECONDS),
    "size": Metric("Entries when stored", "By", BYTES),
}


@dataclass(slots=True)
class Seen:
    """The counters of one cache, their counts as of the latest collection, and what runs when the cache is dropped."""

    counted: Sequence[Counters]
    counts: dict[str, Stats]
    end: finalize[..., Any]


class Recorder(ABC):
    """A sampler that puts events into metrics. Lookups come from the counters of caches, which cost less than events.

    Attributes:
        requests: how many lookups of each function and kind there were, as of the latest `note_requests`.
    """

    def __init__(self) -> None:
        self.requests: dict[tuple[str, str], int] = {}
        self._seen: dict[int, Seen] = {}  # by the id of `counted`
        self._gone: list[int] = []

    @abstractmethod
    def put(self, name: str, function: str, kind: str, value: float) -> None:
        """Record a value in a metric but `requests`; `kind` sets the values of a function apart."""

    def add_requests(self, function: str, kind: str, count: int) -> None:  # noqa: B027  # OpenTelemetry asks by itself
        """Record lookups that are new."""

    def attach(self, cache: Cache) -> None:
        """Add a cache. May be repeated."""
        if self not in cache.samplers:
            counted = cache.runtime.counted
            # The counts of a dropped cache are left to the next collection of metrics: garbage may be collected at any
            # moment, such as under a lock of the metrics library.
            end = finalize(cache.runtime, self._gone.append, id(counted))
            self._seen[id(counted)] = Seen(counted, cache.counts(), end)
            cache.samplers.append(self)

    def detach(self, cache: Cache) -> None:
        """Remove a cache, after recording its lookups."""
        if self in cache.samplers:
            self.note_requests()
            cache.samplers.remove(self)
            self._seen.pop(id(cache.runtime.counted)).end.detach()

    def note_requests(self) -> None:
        """Record the lookups since the last call."""
        gone = list(self._gone)
        for seen in list(self._seen.values()):
            before, seen.counts = seen.counts, Counters.by_function(seen.counted)
            for function, stats in seen.counts.items():
                old = before.get(function)
                for kind, name in LOOKUPS.items():
                    new = getattr(stats, name) - (0 if old is None else getattr(old, name))
                    if new:
                        self.requests[function, kind] = self.requests.get((function, kind), 0) + new
                        self.add_requests(function, kind, new)
        for place in gone:
            self._gone.remove(place)
            self._seen.pop(place, None)

    def __call__(self, event: Event) -> None:
        """Record `event`."""
        kind, function, seconds = event.kind, event.function, event.seconds
        if kind in LOOKUPS:
            if seconds is not None:
                self.put("redis", function, kind, seconds)
        elif kind == "loaded":
            self.put("load", function, event.reason, seconds or 0.0)
        elif kind == "deleted":
            self.put("deleted", function, "", event.count)
        elif kind == "change":
            self.put("events", function, kind, event.count)
            if seconds is not None:
                self.put("delay", function, "", seconds)
        else:
            self.put("events", function, kind, event.count)
            if seconds is not None:
                self.put("wait" if kind == "join" else "redis", function, "" if kind == "join" else kind, seconds)
            if kind == "fill" and event.size is not None:
                self.put("size", function, "", event.size)
