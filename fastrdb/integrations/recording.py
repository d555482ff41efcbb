"""From events to metrics, whatever library takes them: which ones there are, and which event goes into which."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from fastrdb import Event

LOOKUPS = frozenset({"near", "hit", "stale", "miss"})
"""The kinds of events that say what a look for an entry has found: all but a miss are answers from the cache."""
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
    "redis": Metric("Round trips to Redis, by the event", "s", SECONDS),
    "size": Metric("Entries when stored", "By", BYTES),
}
Record = Callable[[str, str, str, float], None]
"""Records a value in a metric: takes the metric's name, the function, what sets the value apart, and the value."""


def record(event: Event, into: Record) -> None:
    """Record `event` in each metric that it is a part of."""
    kind, function = event.kind, event.function
    if kind == "loaded":
        into("load", function, event.reason, event.seconds or 0.0)
        return
    if kind in LOOKUPS:
        into("requests", function, kind, event.count)
    elif kind == "deleted":
        into("deleted", function, "", event.count)
    else:
        into("events", function, kind, event.count)
    if event.seconds is not None:
        into("wait" if kind == "join" else "redis", function, "" if kind == "join" else kind, event.seconds)
    if kind == "fill" and event.size is not None:
        into("size", function, "", event.size)
