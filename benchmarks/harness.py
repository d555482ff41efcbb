"""How time is measured: rounds in which all sides run one after the other, on numbers that say which key is meant.

A comparison is the median over rounds of the ratio within the round: what else the machine does meanwhile hits all
alike. Who begins changes from round to round.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.report import Ratio

Round = Callable[[Sequence[int]], Awaitable[object]]
"""Makes a call for each of these numbers."""
Call = Callable[[int], Awaitable[Any]]
Draw = Callable[[int], Sequence[int]]
"""Gives so many numbers."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    rounds: int
    calls: int
    """Calls of one caller in a round."""
    crowds: tuple[int, int]
    """Callers at once."""
    keyspaces: tuple[int, ...]
    """How many other keys there are when some are invalidated."""
    scans: int
    """How often those who look through the whole keyspace are made to."""
    entries: int
    """Entries that are invalidated at once, or weighed."""
    processes: int
    callers: int
    """Callers in each process of a stampede."""
    repeats: int
    """How often a whole stampede, or the invalidation of all entries, is run."""
    bulk: int
    """Rows of a bulk write."""


SIZES = {
    "smoke": Sizes(
        rounds=3,
        calls=5,
        crowds=(4, 16),
        keyspaces=(100, 1_000),
        scans=1,
        entries=1_000,
        processes=2,
        callers=5,
        repeats=1,
        bulk=20,
    ),
    "quick": Sizes(
        rounds=10,
        calls=30,
        crowds=(64, 1_000),
        keyspaces=(1_000, 100_000),
        scans=2,
        entries=20_000,
        processes=4,
        callers=50,
        repeats=2,
        bulk=1_000,
    ),
    "full": Sizes(
        rounds=60,
        calls=100,
        crowds=(64, 1_000),
        keyspaces=(1_000, 10_000, 100_000, 1_000_000),
        scans=3,
        entries=100_000,
        processes=8,
        callers=200,
        repeats=5,
        bulk=1_000,
    ),
}


class Unused:
    """Hands out numbers, each once: the keys of misses."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> range:
        """Give the next `count` numbers."""
        self._next += count
        return range(self._next - count, self._next)


class Known:
    """Hands out the numbers below `count` over and over: the keys of hits. No number comes twice in `count` calls."""

    def __init__(self, count: int) -> None:
        self._all = range(count)
        self._next = 0

    def take(self, count: int) -> list[int]:
        """Give the next `count` numbers."""
        first, self._next = self._next, self._next + count
        return [self._all[number % len(self._all)] for number in range(first, first + count)]


class Timings:
    """Seconds per call of each side in each round."""

    def __init__(self, sides: Sequence[str]) -> None:
        self.times: dict[str, list[float]] = {side: [] for side in sides}
        self.calls = dict.fromkeys(sides, 0)
        """All calls that each side made."""

    def add(self, others: Timings) -> None:
        """Add the rounds of another process, which had the same sides."""
        for side, times in others.times.items():
            self.times[side] += times
            self.calls[side] += others.calls[side]

    def median(self, side: str) -> float:
        """The median over rounds."""
        return median(self.times[side])

    def ratio(self, side: str, other: str) -> Ratio:
        """The time of `side` divided by that of `other`."""
        return Ratio.of(self.times[side], self.times[other])


async def interleaved(
    sides: Mapping[str, Round], *, rounds: int, calls: int, draw: Draw, clock: Callable[[], float] = perf_counter
) -> Timings:
    """Time all sides, round by round, one after the other.

    Args:
        sides: what is timed, by name. It has run before: connections, statements and scripts are there.
        rounds: how often.
        calls: of each side in each round.
        draw: gives the numbers of these calls.
        clock: gives the time in seconds; `process_time` where the question is what this process itself works.
    """
    found, names = Timings(list(sides)), list(sides)
    for number in range(rounds):
        first = number % len(names)
        order = names[first:] + names[:first]
        for name in order if number // len(names) % 2 == 0 else reversed(order):
            numbers = draw(calls)
            start = clock()
            await sides[name](numbers)
            found.times[name].append((clock() - start) / calls)
            found.calls[name] += calls
    return found


def one_by_one(call: Call) -> Round:
    """Each call begins when the one before has ended."""

    async def calls(numbers: Sequence[int]) -> None:
        for number in numbers:
            await call(number)

    return calls


def at_once(call: Call) -> Round:
    """All calls of a round are under way together."""

    async def calls(numbers: Sequence[int]) -> None:
        await asyncio.gather(*map(call, numbers))

    return calls
