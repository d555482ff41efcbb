"""Metrics and spans of OpenTelemetry, made of the events of a cache.

Times are in seconds and sizes in bytes. `code.function.name`, `error.type` and `db.client.operation.duration` are
OpenTelemetry's own names; all others begin with `fastrdb.cache`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any
from weakref import WeakKeyDictionary

from opentelemetry import metrics
from opentelemetry.metrics import CallbackOptions, MeterProvider, Observation
from opentelemetry.trace import TracerProvider

from fastrdb import Cache, OptionError

from .recording import METRICS, Recorder
from .spans import NAME, Spans

_OPERATIONS = {"hit": "GET", "stale": "GET"}


def instrument(
    cache: Cache,
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    keys: bool = False,
) -> Callable[[], None]:
    """Report the events of `cache` to the given providers, or the global ones. Return a function that ends this.

    May be repeated.

    Args:
        cache: the cache.
        meter_provider: for metrics.
        tracer_provider: for a span around each load, each wait for another caller's load, and each invalidation.
        keys: whether spans have the key, which may hold personal data.

    Raises:
        OptionError: the cache has spans of another provider already: a load can be inside of one span alone.
    """
    measured, traced = _metrics_of(meter_provider), Spans(tracer_provider, keys)
    before = [each for each in cache.samplers if isinstance(each, Spans)]
    if any((each.provider, each.keys) != (traced.provider, keys) for each in before):
        raise OptionError("opentelemetry.instrument: the cache has spans of another tracer_provider=, or other keys=")
    measured.attach(cache)
    if before:
        (traced,) = before
    else:
        cache.samplers.append(traced)

    def end() -> None:
        measured.detach(cache)
        if traced in cache.samplers:
            cache.samplers.remove(traced)

    return end


_NAMES = {
    "requests": ("fastrdb.cache.requests", "fastrdb.cache.request.type"),
    "events": ("fastrdb.cache.events", "fastrdb.cache.event.type"),
    "deleted": ("fastrdb.cache.entry.deletions", ""),
    "load": ("fastrdb.cache.load.duration", "error.type"),
    "wait": ("fastrdb.cache.wait.duration", ""),
    "redis": ("db.client.operation.duration", "fastrdb.cache.event.type"),
    "delay": ("fastrdb.cache.watch.delay", ""),
    "size": ("fastrdb.cache.entry.size", ""),
}
"""The name of each metric, and of its attribute."""
_BOUNDS = {"redis": (0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0)}
"""The bounds, in seconds, that the conventions require for `db.client.operation.duration`."""


class _Metrics(Recorder):
    """The sampler that records the metrics of all caches of one provider."""

    def __init__(self, provider: MeterProvider | None) -> None:
        super().__init__()
        meter = metrics.get_meter(NAME, meter_provider=provider)
        self._record: dict[str, Callable[[float, dict[str, str]], None]] = {}
        self._attributes: dict[tuple[str, str, str], dict[str, str]] = {}
        for name, (text, unit, buckets) in METRICS.items():
            called = _NAMES[name][0]
            if name == "requests":
                meter.create_observable_counter(called, [self._observed], unit, text)
            elif buckets:
                bounds = _BOUNDS.get(name, buckets)
                histogram = meter.create_histogram(called, unit, text, explicit_bucket_boundaries_advisory=bounds)
                self._record[name] = histogram.record
            else:
                self._record[name] = meter.create_counter(called, unit, text).add

    def put(self, name: str, function: str, kind: str, value: float) -> None:
        """Record a value."""
        self._record[name](value, self._attributes_of(name, function, kind))

    def _observed(self, options: CallbackOptions) -> Iterator[Observation]:
        self.note_requests()
        for (function, kind), count in list(self.requests.items()):
            yield Observation(count, self._attributes_of("requests", function, kind))

    def _attributes_of(self, name: str, function: str, kind: str) -> dict[str, str]:
        found = self._attributes.get((name, function, kind))
        if found is None:
            found = {"code.function.name": function} | ({_NAMES[name][1]: kind} if kind else {})
            if name == "redis":
                found |= {"db.system.name": "redis", "db.operation.name": _OPERATIONS.get(kind, "EVALSHA")}
            self._attributes[name, function, kind] = found
        return found


_known: WeakKeyDictionary[Any, _Metrics] = WeakKeyDictionary()


def _metrics_of(provider: MeterProvider | None) -> _Metrics:
    """Return those of a provider. The global one may be set later than the first cache asks for it, as `metrics`."""
    current = metrics.get_meter_provider()
    key: Any = provider or current
    if key is current and key not in _known:
        key = metrics
    if key not in _known:
        _known[key] = _Metrics(None if key is metrics else key)
    return _known[key]
