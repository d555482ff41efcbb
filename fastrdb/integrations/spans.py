"""Spans of OpenTelemetry around loads, waits and invalidations, made of events."""

from __future__ import annotations

import threading
from contextvars import Token
from time import time_ns
from typing import Any

from opentelemetry import context, trace
from opentelemetry.trace import Span, SpanKind, StatusCode, TracerProvider

from fastrdb import Event

NAME = "fastrdb"
"""The name of the instrumentation."""
_WAITS = {"join": "wait", "deleted": "invalidate"}
"""The names of spans that are made after their end, from an event with the duration."""


class Spans(threading.local):
    """The hook that makes spans. Spans that a load makes in its task are children of the load's span.

    A load of many keys has an event for each key. These come one right after another, and share one span.
    """

    def __init__(self, provider: TracerProvider | None, keys: bool) -> None:
        self.provider, self.keys = provider, keys
        self._tracer = trace.get_tracer(NAME, tracer_provider=provider)
        self._open: dict[Span, Token[Any]] = {}  # how to go back to the context before
        self._latest: Span | None = None

    def __call__(self, event: Event) -> None:
        """Record `event`."""
        if event.kind == "load":
            if self._latest is None or self._latest is not trace.get_current_span():
                self._latest = self._begin(event)
            return
        if event.kind == "hit":
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
        return {"code.function.name": event.function} | ({"fastrdb.cache.key": event.key} if self.keys else {})
