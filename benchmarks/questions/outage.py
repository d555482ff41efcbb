"""What callers notice when Redis goes away under them: failed calls, and the slowest of a hundred.

Each caller asks the cached function, then the function itself, and pauses: what the machine does hits both alike. The
figure is how much the slowest hundredth of the one is above that of the other, while it is being found out that Redis
is away, and afterwards.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from random import Random
from statistics import median
from time import perf_counter
from typing import NamedTuple

from redis.asyncio import Redis

from benchmarks.catalogue import UserOut, user
from benchmarks.harness import Sizes
from benchmarks.report import Limit, Row, duration
from fastrdb import Cache, Event
from fastrdb.testing.server import EmbeddedServer

OWN = 0.02
"""Seconds that the function takes."""
PAUSE = 0.1
DEADLINE = 0.25
"""Of one operation on Redis, as it is by default."""
NOTICING = Limit("value", bar=1.1 * DEADLINE)
"""No timer is early: the bar is the deadline and a tenth for the loop to come to it."""
AWAY = Limit("value", bar=0.001)
KEYS = 20
CALLS = 20
"""Of each caller at most, after Redis has been found away."""
LIMIT = 60
WAYS: dict[str, Callable[[EmbeddedServer], None]] = {
    "killed": EmbeddedServer.kill,
    "stopped, its connections stand": lambda server: os.kill(server.pid, signal.SIGSTOP),
}


@dataclass
class Phase:
    """Seconds of each call of the cached function and of the function itself, and how many calls failed."""

    ours: list[float] = field(default_factory=list)
    bare: list[float] = field(default_factory=list)
    failed: int = 0

    @property
    def above(self) -> float:
        """The slowest hundredth of the one above that of the other, not below 0."""
        return max(0.0, slowest_hundredth(self.ours) - slowest_hundredth(self.bare))


class Outage(NamedTuple):
    """The calls of one outage: those that began before it was known, and those after."""

    noticing: Phase
    away: Phase

    @property
    def failed(self) -> int:
        """How many raised."""
        return self.noticing.failed + self.away.failed

    @property
    def calls(self) -> int:
        """How many there were."""
        return len(self.noticing.ours) + len(self.away.ours)


async def rows(sizes: Sizes) -> list[Row]:
    """For each way to go away: until it is known, after that, and what failed in both."""
    found: list[Row] = []
    for way, go_away in WAYS.items():
        runs = [await _run(sizes, go_away) for _ in range(sizes.repeats)]
        case = f"Redis {way}, {sizes.callers} callers"
        failed, count = (sum(getattr(run, name) for run in runs) for name in ("failed", "calls"))
        found += [
            Row("outage", f"{case}: failed", "fastrdb", failed, "calls", limit=Limit("value", 0), note=f"of {count:,}"),
            _row(f"{case}: 99 % until it is known", [run.noticing for run in runs], NOTICING),
            _row(f"{case}: 99 % after that", [run.away for run in runs], AWAY),
        ]
    return found


def _row(case: str, phases: Sequence[Phase], limit: Limit) -> Row:
    own, calls = median(slowest_hundredth(phase.bare) for phase in phases), sum(len(phase.ours) for phase in phases)
    note = f"above the function's own {duration(own)}; median of {len(phases)} runs, {calls:,} calls"
    return Row("outage", case, "fastrdb", median(phase.above for phase in phases), limit=limit, note=note)


async def _run(sizes: Sizes, go_away: Callable[[EmbeddedServer], None]) -> Outage:
    """One outage, of a server of its own."""
    with EmbeddedServer() as server:
        try:
            return await _outage(server, sizes, go_away)
        finally:
            if server.running:
                os.kill(server.pid, signal.SIGCONT)


async def _outage(server: EmbeddedServer, sizes: Sizes, go_away: Callable[[EmbeddedServer], None]) -> Outage:
    """Let callers call, take Redis away under them, and measure from then on."""
    known = asyncio.Event()

    def listen(event: Event) -> None:
        if event.kind == "outage":
            known.set()

    async with Redis(port=server.port) as client, Cache(client, hook=listen, timeout=DEADLINE) as cache:

        async def load(number: int) -> UserOut:
            await asyncio.sleep(OWN)
            return user(number)

        cached = cache.cached("user:{number}")(load)
        before, noticing, away = Phase(), Phase(), Phase()
        gone = asyncio.Event()

        async def caller(number: int) -> None:
            chance, left = Random(number), min(CALLS, sizes.calls)
            await asyncio.sleep(chance.uniform(0, PAUSE))
            while left:
                left -= known.is_set()
                phase = away if known.is_set() else noticing if gone.is_set() else before
                start = perf_counter()
                try:
                    assert await cached(number % KEYS) == user(number % KEYS)
                except Exception:  # noqa: BLE001  # that is what is counted
                    phase.failed += 1
                phase.ours.append(perf_counter() - start)
                start = perf_counter()
                await load(number % KEYS)
                phase.bare.append(perf_counter() - start)
                await asyncio.sleep(chance.uniform(0, 2 * PAUSE))  # else they would all come at once, ever after

        async with asyncio.timeout(LIMIT):
            work = asyncio.gather(*map(caller, range(sizes.callers)))
            await asyncio.sleep(3 * PAUSE)
            gone.set()
            await asyncio.to_thread(go_away, server)
            await work
        return Outage(noticing, away)


def slowest_hundredth(seconds: list[float]) -> float:
    """How long 99 of 100 took at most."""
    return sorted(seconds)[-1 - len(seconds) // 100] if seconds else 0.0
