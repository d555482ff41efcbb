"""Puts a question to the field: the same function under every cache, timed together, its loads counted."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Collection, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import partial

from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

from benchmarks.catalogue import Database, Loads, Query, Task
from benchmarks.contestants.base import Contestant
from benchmarks.contestants.field import Field
from benchmarks.harness import Known, Round, Timings, Unused, interleaved
from benchmarks.report import Limit, Row, Unit, absent

WARM = 2
"""Misses before the clock runs."""
FILLERS = 50
"""Callers that make the entries of hits, if there are as many."""


@dataclass(frozen=True, slots=True)
class Case:
    """A question in one of its sizes."""

    question: str
    name: str
    limits: Mapping[str, Limit] = field(default_factory=dict)
    """What is asked of fastrdb against this contestant."""
    unit: Unit = "s"


@dataclass(frozen=True, slots=True)
class Entrant:
    """A contestant with a function that it has decorated."""

    name: str
    head: str
    contestant: Contestant
    call: Query
    loads: Loads


def enter(field: Field, topic: str, task: Callable[[], Task]) -> list[Entrant]:
    """Give each contestant a function of its own to decorate, and keys of its own."""
    found = []
    for name, contestant in field.contestants.items():
        own, head = task(), f"{topic}-{name.replace(', ', '-').replace('.', '-').replace('_', '-')}"
        found.append(Entrant(name, head, contestant, contestant.cached(head, own), own.loads))
    return found


@asynccontextmanager
async def idle_sessions(count: int) -> AsyncIterator[list[AsyncSession]]:
    """Give a session for each of so many callers; hits never use them, so they never connect."""
    engine = create_async_engine("sqlite+aiosqlite://")
    yield [AsyncSession(engine) for _ in range(count)]
    await engine.dispose()


async def hits(
    case: Case, field: Field, task: Callable[[], Task], *, rounds: int, calls: int, keys: int, together: bool = False
) -> list[Row]:
    """Time hits on `keys` keys: `calls` in a round, one after the other or all of them at once."""
    entrants = enter(field, f"{case.question}-{case.name.replace(' ', '-')}", task)
    async with idle_sessions(calls if together else 1) as sessions:
        for entrant in entrants:
            await _fill(entrant, sessions[:FILLERS], field.client, task().blocking, keys)
        sides: dict[str, Round] = {
            entrant.name: partial(_at_once if together else _alone, entrant.call, sessions, field.client)
            for entrant in entrants
        }
        draw = Known(keys).take
        for calls_of in sides.values():  # connections and scripts are there before the clock runs
            await calls_of(draw(calls))
        before = {entrant.name: entrant.loads.count for entrant in entrants}
        timings = await interleaved(sides, rounds=rounds, calls=calls, draw=draw)
    loads = {entrant.name: entrant.loads.count - before[entrant.name] for entrant in entrants}
    early = {name: f"{count - keys} loads while it opened its connections" for name, count in before.items()}
    notes = {name: text for name, text in early.items() if before[name] > keys}
    return table(case, field.absent, timings, loads, {name for name in loads if loads[name]}, notes)


async def misses(
    case: Case, field: Field, task: Callable[[], Task], database: Database, *, rounds: int, calls: int
) -> list[Row]:
    """Time misses, each with a session of its own, as a request has."""
    entrants = enter(field, f"{case.question}-{case.name.replace(' ', '-')}", task)

    async def each(call: Query, numbers: Sequence[int]) -> None:
        for number in numbers:
            async with database.sessions() as db:
                await call(db, field.client, number)

    sides: dict[str, Round] = {entrant.name: partial(each, entrant.call) for entrant in entrants}
    draw = Unused().take
    for calls_of in sides.values():
        await calls_of(draw(WARM))
    timings = await interleaved(sides, rounds=rounds, calls=calls, draw=draw)
    loads = {entrant.name: entrant.loads.count - WARM for entrant in entrants}
    void = {name for name in loads if loads[name] != timings.calls[name]}
    for entrant in entrants:  # what was loaded must be stored too, or the miss was cheap
        await each(entrant.call, [*draw(1)] * 2)
        if entrant.loads.count != loads[entrant.name] + WARM + 1:
            void.add(entrant.name)
    return table(case, field.absent, timings, loads, void)


def table(
    case: Case,
    missing: Mapping[str, str],
    timings: Timings,
    loads: Mapping[str, int],
    void: Collection[str] = (),
    notes: Mapping[str, str] | None = None,
) -> list[Row]:
    """Give a row for each side: its median, and how fastrdb compares with it. Those in `void` did something else."""
    first, rows = "fastrdb", []
    for name in timings.times:
        seconds = timings.median(name)
        rows.append(
            Row(
                case.question,
                case.name,
                name,
                1 / seconds if case.unit == "/s" else seconds,
                case.unit,
                ratio=timings.ratio(first, name) if first in timings.times and name != first else None,
                limit=case.limits.get(name),
                loads=f"{loads[name]:,} of {timings.calls[name]:,}" if name in loads else "",
                void=name in void or first in void,
                note=(notes or {}).get(name, ""),
            )
        )
    return [*rows, *(absent(case.question, case.name, name, why) for name, why in missing.items())]


async def _fill(
    entrant: Entrant, sessions: Sequence[AsyncSession], client: Redis, answer: Callable[[int], object], keys: int
) -> None:
    """Make the entries, and see that a hit gives what a miss gives, of the same type."""
    for first in range(0, keys, len(sessions)):
        numbers = range(first, min(first + len(sessions), keys))
        await _at_once(entrant.call, sessions[: len(numbers)], client, numbers)
    for number in (0, keys - 1):
        found, right = await entrant.call(sessions[0], client, number), answer(number)
        assert (found, type(found)) == (right, type(right)), f"{entrant.name}: {found!r} instead of {right!r}"


async def _alone(call: Query, sessions: Sequence[AsyncSession], client: Redis, numbers: Sequence[int]) -> None:
    db = sessions[0]
    for number in numbers:
        await call(db, client, number)


async def _at_once(call: Query, sessions: Sequence[AsyncSession], client: Redis, numbers: Sequence[int]) -> None:
    await asyncio.gather(*(call(db, client, number) for db, number in zip(sessions, numbers, strict=True)))
