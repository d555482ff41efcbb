"""Metrics of Prometheus, made of the events of a cache.

With `PROMETHEUS_MULTIPROC_DIR` set, the metrics of all processes add up, as all of prometheus_client's own do.
"""

from __future__ import annotations

from collections.abc import Callable
from weakref import WeakKeyDictionary

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Histogram

from fastrdb import Cache, Event

from .recording import METRICS, record

_NAMES = {
    "requests": ("fastrdb_requests", "type"),
    "events": ("fastrdb_events", "type"),
    "deleted": ("fastrdb_deleted_entries", ""),
    "load": ("fastrdb_load_seconds", "error"),
    "wait": ("fastrdb_wait_seconds", ""),
    "redis": ("fastrdb_redis_seconds", "type"),
    "size": ("fastrdb_entry_bytes", ""),
}
"""Names of metrics, and of the label that sets values apart."""


class CacheMetrics:
    """The metrics of all caches of one registry, as a hook.

    Args:
        registry: where the metrics are collected. One registry takes one object of this class.
    """

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        self._metrics: dict[str, Counter | Histogram] = {}
        self._children: dict[tuple[str, str, str], Callable[[float], None]] = {}
        for name, (text, _, buckets) in METRICS.items():
            called, label = _NAMES[name]
            labels = ["function", *([label] if label else [])]
            self._metrics[name] = (
                Histogram(called, text, labels, registry=registry, buckets=buckets)
                if buckets
                else Counter(called, text, labels, registry=registry)
            )

    def __call__(self, event: Event) -> None:
        """Take note of `event`."""
        record(event, self._into)

    def _into(self, name: str, function: str, kind: str, value: float) -> None:
        child = self._children.get((name, function, kind))
        if child is None:
            metric, labels = self._metrics[name], [function, *([kind] if _NAMES[name][1] else [])]
            found = metric.labels(*labels)
            child = self._children[name, function, kind] = found.inc if isinstance(found, Counter) else found.observe
        child(value)


_known: WeakKeyDictionary[CollectorRegistry, CacheMetrics] = WeakKeyDictionary()


def instrument(cache: Cache, *, registry: CollectorRegistry = REGISTRY) -> Callable[[], None]:
    """Report what `cache` does in `registry`, together with other caches of it. Return a function that ends this."""
    hook = _known.get(registry)
    if hook is None:
        hook = _known[registry] = CacheMetrics(registry)
    if hook not in cache.hooks:
        cache.hooks.append(hook)

    def end() -> None:
        if hook in cache.hooks:
            cache.hooks.remove(hook)

    return end
