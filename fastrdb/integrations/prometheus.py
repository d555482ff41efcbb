"""Metrics of Prometheus, made of the events of a cache.

With `PROMETHEUS_MULTIPROC_DIR` set, the metrics of all processes add up, as all of prometheus_client's own do. Then
lookups of another process appear up to a second late, and the latest of a process without further events at its end.
"""

from __future__ import annotations

import atexit
from collections.abc import Callable, Iterable
from functools import partial
from time import monotonic
from weakref import WeakKeyDictionary, ref

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram, Metric

from fastrdb import Cache, Event

from .recording import METRICS, Recorder

_NAMES = {
    "requests": ("fastrdb_requests", "type"),
    "events": ("fastrdb_events", "type"),
    "deleted": ("fastrdb_deleted_entries", ""),
    "load": ("fastrdb_load_seconds", "error"),
    "wait": ("fastrdb_wait_seconds", ""),
    "redis": ("fastrdb_redis_seconds", "type"),
    "delay": ("fastrdb_watch_delay_seconds", ""),
    "size": ("fastrdb_entry_bytes", ""),
}
"""The name of each metric, and of its label."""
_EVERY_S = 1.0
"""In the multiprocess mode, the least seconds between two writes of lookups to the file of a process."""


class CacheMetrics(Recorder):
    """The metrics of all caches of one registry, as a sampler.

    Args:
        registry: where the metrics are collected. Each registry takes one object of this class.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        super().__init__()
        self._metrics: dict[str, Counter | Histogram] = {}
        self._children: dict[tuple[str, str, str], Callable[[float], None]] = {}
        self._due = 0.0
        registry.register(self)  # before the metrics, so that it is collected first
        for name, (text, _, buckets) in METRICS.items():
            called, label = _NAMES[name]
            labels = ["function", *([label] if label else [])]
            self._metrics[name] = (
                Histogram(called, text, labels, registry=registry, buckets=buckets)
                if buckets
                else Counter(called, text, labels, registry=registry)
            )
        atexit.register(_note, ref(self))  # for the files of the multiprocess mode

    def __call__(self, event: Event) -> None:
        """Record `event`, and at times the lookups: in multiprocess mode another process may collect the metrics."""
        super().__call__(event)
        if monotonic() >= self._due:
            self._due = monotonic() + _EVERY_S
            self.note_requests()

    def collect(self) -> Iterable[Metric]:
        """Bring the counts up to date, and return no metric: the metrics are collected by themselves."""
        self.note_requests()
        return ()

    def describe(self) -> Iterable[Metric]:
        """Return no metric."""
        return ()

    def add_requests(self, function: str, kind: str, count: int) -> None:
        """Record lookups that are new."""
        self.put("requests", function, kind, count)

    def put(self, name: str, function: str, kind: str, value: float) -> None:
        """Record a value."""
        child = self._children.get((name, function, kind))
        if child is None:
            metric, labels = self._metrics[name], [function, *([kind] if _NAMES[name][1] else [])]
            found = metric.labels(*labels)
            child = self._children[name, function, kind] = found.inc if isinstance(found, Counter) else found.observe
        child(value)


def _note(metrics: Callable[[], CacheMetrics | None]) -> None:
    if (found := metrics()) is not None:
        found.note_requests()


_known: WeakKeyDictionary[CollectorRegistry, CacheMetrics] = WeakKeyDictionary()


def instrument(cache: Cache, *, registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
    """Report the events of `cache` in `registry`, beside its other caches. Return a function that ends this."""
    metrics = _known.get(registry)
    if metrics is None:
        metrics = _known[registry] = CacheMetrics(registry)
    metrics.attach(cache)
    return partial(metrics.detach, cache)
