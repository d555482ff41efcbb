"""Metrics and spans of OpenTelemetry, made of the events of a cache.

Times are in seconds and sizes in bytes. `code.function.name`, `error.type` and `db.client.operation.duration` are
OpenTelemetry's own names; all others begin with `fastrdb.cache`.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextvars import Token
from time import time_ns
from typing import Any

from opentelemetry import context, metrics, trace
from opentelemetry.metrics import MeterProvider
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider

from fastrdb import Cache, Event

from .recording import METRICS, record

_NAME = "fastrdb"
_OPERATIONS = {"hit": "GET", "stale": "GET"}
_WAITS = {"join": "wait", "deleted": "invalidate"}
"""What a span is called that is made at its end, by an event that has its time."""


def instrument(
    cache: Cache,
    *,
    meter_provider: MeterProvider | None = None,
    tracer_provider: TracerProvider | None = None,
    keys: bool = False,
) -> Callable[[], None]:
    """Report what `cache` does, by the given providers or the global ones. Return a function that ends this.

    Args:
        cache: the cache. Call this once for each.
        meter_provider: for metrics.
        tracer_provider: for a span around each load, each wait for another caller's load, and each invalidation.
        keys: whether spans have the key, which may hold personal data.
    """
    hooks = (_Metrics(meter_provider), _Spans(tracer_provider, keys))
    cache.hooks.extend(hooks)

    def end() -> None:
        for hook in hooks:
            if hook in cache.hooks:
                cache.hooks.remove(hook)

    return end


_NAMES = {
    "requests": ("fastrdb.cache.requests", "fastrdb.cache.request.type"),
    "events": ("fastrdb.cache.events", "fastrdb.cache.event.type"),
    "deleted": ("fastrdb.cache.entries.deleted", ""),
    "load": ("fastrdb.cache.load.duration", "error.type"),
    "wait": ("fastrdb.cache.wait.duration", ""),
    "redis": ("db.client.operation.duration", "fastrdb.cache.event.type"),
    "size": ("fastrdb.cache.entry.size", ""),
}
"""Names of metrics, and of the attribute that sets values apart."""


class _Metrics:
    """The hook that counts and measures."""

    def __init__(self, provider: MeterProvider | None) -> None:
        meter = metrics.get_meter(_NAME, meter_provider=provider)
        self._record: dict[str, Callable[[float, dict[str, str]], None]] = {}
        self._attributes: dict[tuple[str, str, str], dict[str, str]] = {}
        for name, (text, unit, buckets) in METRICS.items():
            if buckets:
                advice: dict[str, Any] = {"explicit_bucket_boundaries_advisory": buckets}
                self._record[name] = meter.create_histogram(_NAMES[name][0], unit, text, **advice).record
            else:
                self._record[name] = meter.create_counter(_NAMES[name][0], unit, text).add

    def __call__(self, event: Event) -> None:
        """Take note of `event`."""
        record(event, self._into)

    def _into(self, name: str, function: str, kind: str, value: float) -> None:
        attributes = self._attributes.get((name, function, kind))
        if attributes is None:
            attributes = {"code.function.name": function} | ({_NAMES[name][1]: kind} if kind else {})
            if name == "redis":
                attributes["db.system.name"] = "redis"
                attributes["db.operation.name"] = _OPERATIONS.get(kind, "EVALSHA")
            self._attributes[name, function, kind] = attributes
        self._record[name](value, attributes)


class _Spans(threading.local):
    """The hook that makes spans. What a load does in its task is inside of the load's span.

    A load of many keys has an event for each key. These follow each other at once, and have one span.
    """

    def __init__(self, provider: TracerProvider | None, keys: bool) -> None:
        self._tracer, self._keys = trace.get_tracer(_NAME, tracer_provider=provider), keys
        self._open: dict[Span, Token[Any]] = {}  # how to go back to the context before
        self._latest: Span | None = None

    def __call__(self, event: Event) -> None:
        """Take note of `event`."""
        if event.kind == "load":
            if self._latest is None or self._latest is not trace.get_current_span():
                self._latest = self._begin(event)
            return
        self._latest = None
        if event.kind == "loaded":
            self._end(event)
        elif event.seconds is not None and event.kind in _WAITS:
            now = time_ns()
            attributes = self._attributes(event)
            start = now - round(event.seconds * 1e9)
            self._tracer.start_span(
                f"{_WAITS[event.kind]} {event.function}", start_time=start, attributes=attributes
            ).end(now)

    def _begin(self, event: Event) -> Span:
        attributes = self._attributes(event)
        span = self._tracer.start_span(f"load {event.function}", kind=SpanKind.INTERNAL, attributes=attributes)
        self._open[span] = context.attach(trace.set_span_in_context(span))
        return span

    def _end(self, event: Event) -> None:
        span = trace.get_current_span()
        token = self._open.pop(span, None)
        if token is None:  # begun before the cache was instrumented
            return
        context.detach(token)
        span.set_attribute("fastrdb.cache.entries", event.count)
        if event.reason:
            span.set_attribute("error.type", event.reason)
            span.set_status(StatusCode.ERROR, event.reason)
        span.end()

    def _attributes(self, event: Event) -> dict[str, Any]:
        return {"code.function.name": event.function} | ({"fastrdb.cache.key": event.key} if self._keys else {})
