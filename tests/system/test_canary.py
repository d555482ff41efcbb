"""No argument and no stored value gets into a log, a metric, a span or the text of a hook, whatever goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
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
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, Event
from fastrdb.integrations import opentelemetry, prometheus
from tests.support.servers.databases import Database

CANARY = "c4n4ry"


class Card(BaseModel):
    """A model whose validator quotes what it is given."""

    number: str

    @field_validator("number")
    @classmethod
    def _check(cls, number: str) -> str:
        if number.endswith("?"):
            raise ValueError(f"{number} is no number")
        return number


class Row:
    """Row that a database returns for a card."""

    def __init__(self, number: str) -> None:
        self.number = number


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
            repr(self._cache.stats().counts()),  # `dropped` has what was invalidated by hand, as it was given
        ]

    def kinds(self) -> list[str]:
        """Return the kind of each event."""
        return [event.kind for event in self._events]

    def clean(self) -> bool:
        """Return True if no text has the canary."""
        return not [text for text in self.texts() if CANARY in text]


class World:
    """A cache, its client and database, and all that leaves the process."""

    def __init__(self, client: Redis, database: Database, log: pytest.LogCaptureFixture) -> None:
        self.client, self.database = client, database
        self.cache = Cache(client)
        self.seen = Seen(self.cache, log)

    def count(self, kind: str) -> int:
        """Return the number of events of one kind."""
        return self.seen.kinds().count(kind)

    async def fail(self, number: str) -> str:
        """Send a statement that fails, and whose error quotes its parameter."""
        async with AsyncSession(self.database.engine) as db:
            await db.execute(text("SELECT no_such_function(:number)"), {"number": number})
        return number


async def aged(client: Redis, key: str) -> None:
    """Take the rest of its `exp` from an entry that is kept for another minute."""
    assert await client.pexpire(key, 50_000)


async def reload_that_fails(world: World) -> None:
    """Refuse the statement of a reload in the background."""
    loads = 0

    @world.cache.cached("reload:{number}", stale=60)
    async def load(number: str) -> str:
        nonlocal loads
        loads += 1
        return await world.fail(number) if loads > 1 else number

    await load(CANARY)
    await aged(world.client, load.key(CANARY))
    assert await load(CANARY) == CANARY
    await world.cache.aclose()
    assert world.count("failed") == 1


async def reload_that_does_not_fit(world: World) -> None:
    """Return from a reload in the background what its schema refuses, and quotes."""
    rows = iter([Row(CANARY), Row(f"{CANARY}?")])

    @world.cache.cached("schema:{number}", stale=60, schema=Card)
    async def load(number: str) -> Row:
        return next(rows)

    await load(CANARY)
    await aged(world.client, load.key(CANARY))
    assert (await load(CANARY)).number == CANARY
    await world.cache.aclose()
    assert world.count("failed") == 1


async def database_that_is_away(world: World) -> None:
    """Serve the old value for an error that quotes the address and the value."""
    loads = 0

    @world.cache.cached("away:{number}", fail_safe=60)
    async def load(number: str) -> str:
        nonlocal loads
        loads += 1
        if loads > 1:
            raise ConnectionRefusedError(f"no connection for {number}")
        return number

    await load(CANARY)
    await aged(world.client, load.key(CANARY))
    assert await load(CANARY) == CANARY
    assert world.count("stale") == 1


async def entry_that_is_corrupt(world: World) -> None:
    """Read what another program has put there, of a value's and of a negative entry's form."""

    @world.cache.cached("corrupt:{number}", negative_exp=5)
    async def load(number: str) -> Card:
        return Card(number=number)

    for entry in (f'{{"number":"{CANARY}?"}}', f'"{CANARY}"', f' {{"error":"{CANARY}:{CANARY}","message":"{CANARY}"}}'):
        await world.client.set(load.key(CANARY), entry, ex=60)
        assert (await load(CANARY)).number == CANARY
    assert world.count("corrupt") == 3


async def value_that_is_not_stored(world: World) -> None:
    """Return values of other types than declared, with the canary as key, as value, and in a validator's text."""

    @world.cache.cached("unstored:{number}:{at}")
    async def load(number: str, at: int) -> dict[str, Card]:
        found: list[Any] = [{number: number}, {number: Card.model_construct(number=f"{number}?")}, number, {number: {}}]
        return found[at]  # type: ignore[no-any-return]

    for at in range(4):
        await load(CANARY, at)
    assert world.count("unstored") == 4


async def many_of_which_one_fails(world: World) -> None:
    """Raise an error that quotes the ids."""

    @world.cache.cached_many("many:{numbers}")
    async def load(numbers: list[str]) -> dict[str, str]:
        raise LookupError(numbers)

    with pytest.raises(LookupError):
        await load([CANARY])


async def hook_that_fails(world: World) -> None:
    """Raise an error from a hook that quotes the key."""

    def quote(event: Event) -> None:
        raise ValueError(event.key)

    world.cache.hooks.append(quote)

    @world.cache.cached("hook:{number}")
    async def load(number: str) -> str:
        return number

    await load(CANARY)
    world.cache.hooks.remove(quote)


FAILURES: list[Callable[[World], Awaitable[None]]] = [
    reload_that_fails,
    reload_that_does_not_fit,
    database_that_is_away,
    entry_that_is_corrupt,
    value_that_is_not_stored,
    many_of_which_one_fails,
    hook_that_fails,
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
async def test_no_failure_of_a_load_shows_its_value(
    client: Redis, sqlite: Database, caplog: pytest.LogCaptureFixture, failure: Callable[[World], Awaitable[None]]
) -> None:
    """Records of every level, metrics, spans and all fields of events but the key: functions, types and fields only."""
    caplog.set_level(logging.DEBUG, "fastrdb")
    world = World(client, sqlite, caplog)
    await failure(world)
    await world.cache.aclose()
    assert world.seen.kinds()
    assert world.seen.clean()


async def test_no_canary_leaves_the_process(client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Hits, misses, waits, errors of the function and of Redis, entries of another type, results not stored."""
    caplog.set_level(logging.DEBUG, "fastrdb")
    async with Cache(client, max_bytes=200, timeout=5) as cache:
        seen = Seen(cache, caplog)

        @cache.cached("card:{number}", negative_exp=5)
        async def card(number: str, mode: str = "") -> Card:
            if mode == "raise":
                raise LookupError(f"no {number}")
            return Card.model_construct(number=number * (100 if mode == "large" else 1))

        @cache.cached("loose:{name}")
        async def loose(name: str) -> int:
            return name  # type: ignore[return-value]

        @cache.cached_many("several:{numbers}")
        async def several(numbers: list[str]) -> dict[str, Card]:
            return {number: Card(number=number) for number in numbers}

        @cache.invalidates(["card:{number}*", "several:{number}"])
        async def write(number: str) -> None:
            pass

        for _ in range(2):
            await card(CANARY)
            await several([CANARY, f"{CANARY}2"])
        await card(CANARY, mode="large")
        await card(f"{CANARY}?")
        await loose(CANARY)
        with pytest.raises(LookupError):
            await card(CANARY, mode="raise")
        await client.set(card.key(number=CANARY), f'{{"number":"{CANARY}?"}}', ex=60)
        await card(CANARY)
        await client.delete(card.key(number=CANARY))
        await client.lpush(card.key(number=CANARY), CANARY)
        await card(CANARY)
        await write(CANARY)
        await client.set(card.key(number=CANARY), f"{CANARY} is no JSON", ex=60)
        await card(CANARY)
        await card.refresh(number=CANARY)
        await card.explain(number=CANARY)
        await cache.invalidate(f"card:{CANARY}*")
        assert {"hit", "miss", "load", "fill", "unstored", "corrupt", "unavailable", "deleted"} <= {*seen.kinds()}
        assert seen.clean()


async def test_no_canary_leaves_a_process_without_redis(caplog: pytest.LogCaptureFixture) -> None:
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
            assert await person(CANARY) == CANARY
        await write(CANARY)
        await cache.invalidate(f"person:{CANARY}")
        assert {"unavailable", "outage", "owed"} <= {*seen.kinds()}
        assert seen.clean()


def test_seen_sees(caplog: pytest.LogCaptureFixture) -> None:
    """A canary in a log is found: the check can fail."""
    cache: Any = Cache()
    seen = Seen(cache, caplog)
    logging.getLogger("fastrdb").warning("the value %s", CANARY)
    assert not seen.clean()
