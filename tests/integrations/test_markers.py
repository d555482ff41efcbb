"""No argument and no stored value appears in a log, a metric, a span or the text of a hook, whatever goes wrong."""

from __future__ import annotations

import logging
from dataclasses import astuple
from typing import Any

import pytest
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import BaseModel, field_validator
from redis.asyncio import Redis

from fastrdb import Cache, Event
from fastrdb.integrations import opentelemetry, prometheus

MARKER = "m4rk3r"


class Person(BaseModel):
    """A value that holds the marker, and whose validator quotes it."""

    name: str

    @field_validator("name")
    @classmethod
    def _checked(cls, name: str) -> str:
        if "wrong" in name:
            raise ValueError(f"no such name: {name}")
        return name


class Seen:
    """All that leaves the process: records of the log, metrics, spans, and events without their keys."""

    def __init__(self, cache: Cache, log: pytest.LogCaptureFixture) -> None:
        self._log, self._reader, self._spans = log, InMemoryMetricReader(), InMemorySpanExporter()
        self._registry, self._events = CollectorRegistry(), list[Event]()
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(self._spans))
        opentelemetry.instrument(cache, meter_provider=MeterProvider([self._reader]), tracer_provider=provider)
        prometheus.instrument(cache, registry=self._registry)
        cache.hooks.append(self._events.append)
        self._cache = cache

    def texts(self) -> list[str]:
        """Return all of it as texts."""
        formatter = logging.Formatter()
        data = self._reader.get_metrics_data()
        return [
            *(formatter.format(record) for record in self._log.records if record.name.startswith("fastrdb")),
            "" if data is None else data.to_json(),
            *(span.to_json() for span in self._spans.get_finished_spans()),
            generate_latest(self._registry).decode(),
            *(str([part for part in astuple(event) if part != event.key]) for event in self._events),
            repr(self._cache.stats()),
        ]

    def kinds(self) -> set[str]:
        """Return the kinds of events that there were."""
        return {event.kind for event in self._events}


async def test_no_marker_leaves_the_process(client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Hits, misses, waits, errors of the function and of Redis, entries of another type, results not stored."""
    caplog.set_level(logging.DEBUG, "fastrdb")
    async with Cache(client, max_bytes=200, timeout=5) as cache:
        seen = Seen(cache, caplog)

        @cache.cached("person:{name}", negative_exp=5)
        async def person(name: str, mode: str = "") -> Person:
            if mode == "raise":
                raise LookupError(f"no {name}")
            return Person.model_construct(name=name * (100 if mode == "large" else 1))

        @cache.cached("loose:{name}")
        async def loose(name: str) -> int:
            return name  # type: ignore[return-value]

        @cache.cached_many("several:{names}")
        async def several(names: list[str]) -> dict[str, Person]:
            return {name: Person(name=name) for name in names}

        @cache.invalidates(["person:{name}*", "several:{name}"])
        async def write(name: str) -> None:
            pass

        for _ in range(2):
            await person(MARKER)
            await several([MARKER, f"{MARKER}2"])
        await person(MARKER, mode="large")
        await person(f"wrong {MARKER}")
        await loose(MARKER)
        with pytest.raises(LookupError):
            await person(MARKER, mode="raise")
        await client.set(person.key(name=MARKER), f'{{"name": "wrong {MARKER}"}}', ex=60)
        await person(MARKER)
        await client.delete(person.key(name=MARKER))
        await client.lpush(person.key(name=MARKER), MARKER)
        await person(MARKER)
        await write(MARKER)
        await client.set(person.key(name=MARKER), f"{MARKER} is no JSON", ex=60)
        await person(MARKER)
        await person.refresh(name=MARKER)
        await person.explain(name=MARKER)
        await cache.invalidate(f"person:{MARKER}*")
        assert {"hit", "miss", "load", "fill", "unstored", "corrupt", "unavailable", "deleted"} <= seen.kinds()
        assert not [text for text in seen.texts() if MARKER in text]


async def test_no_marker_leaves_a_process_without_redis(caplog: pytest.LogCaptureFixture) -> None:
    """Redis cannot be reached: neither address errors nor pending invalidations quote a key."""
    caplog.set_level(logging.DEBUG, "fastrdb")
    async with Redis(port=1) as gone, Cache(gone, timeout=0.05) as cache:
        seen = Seen(cache, caplog)

        @cache.cached("person:{name}")
        async def person(name: str) -> str:
            return name

        @cache.invalidates("person:{name}")
        async def write(name: str) -> None:
            pass

        for _ in range(5):
            assert await person(MARKER) == MARKER
        await write(MARKER)
        await cache.invalidate(f"person:{MARKER}")
        assert {"unavailable", "outage", "owed"} <= seen.kinds()
        assert not [text for text in seen.texts() if MARKER in text]


def test_seen_sees(caplog: pytest.LogCaptureFixture) -> None:
    """A marker in a log is found: the check can fail."""
    cache: Any = Cache()
    seen = Seen(cache, caplog)
    logging.getLogger("fastrdb").warning("the value %s", MARKER)
    assert [text for text in seen.texts() if MARKER in text]
