"""What all questions share: sizes, interleaved rounds, medians, and how a result is shown.

A ratio is the median over rounds, in each of which both sides ran one after the other: what else the machine does
meanwhile hits both alike. Which side begins alternates.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from time import perf_counter

from redis.asyncio import Redis

Action = Callable[[int], Awaitable[object]]
"""One call; its argument is a number that no other call of the run gets."""


@dataclass(frozen=True, slots=True)
class Sizes:
    """How much is measured."""

    rounds: int
    calls: int
    many: int
    """Keys among which an invalidation has to find its own."""
    few: int = 1_000
    indexed: int = 100_000
    """Keys of which the index is weighed."""


SIZES = {
    "smoke": Sizes(rounds=3, calls=5, many=2_000, indexed=1_000),
    "quick": Sizes(rounds=25, calls=60, many=100_000, indexed=20_000),
    "full": Sizes(rounds=60, calls=200, many=1_000_000),
}


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    question: str
    fastrdb: str
    bare: str
    ratio: float | None = None
    aim: float | None = None
    """The ratio should not be above this; None: for information."""

    @property
    def verdict(self) -> str:
        """Whether the aim is met."""
        if self.aim is None or self.ratio is None:
            return ""
        return f"<= {self.aim:g} {'met' if self.ratio <= self.aim else 'MISSED'}"

    def cells(self) -> tuple[str, ...]:
        """The line as text."""
        return (self.question, self.fastrdb, self.bare, "" if self.ratio is None else f"{self.ratio:.2f}", self.verdict)


HEADS = ("question", "fastrdb", "compared with", "ratio", "aim")


class Numbers:
    """Hands out numbers, each once."""

    def __init__(self) -> None:
        self._next = 0

    def take(self, count: int) -> range:
        """Give the next `count` numbers."""
        self._next += count
        return range(self._next - count, self._next)


@dataclass(frozen=True, slots=True)
class Timings:
    """Seconds per call, for each round: of what is measured, and of what it is compared with."""

    subject: list[float]
    bare: list[float]

    @property
    def ratio(self) -> float:
        """The median over rounds."""
        return median(one / other for one, other in zip(self.subject, self.bare, strict=True))

    def row(self, question: str, bare: str, aim: float | None = None) -> Row:
        """Show it."""
        return Row(question, micro(median(self.subject)), f"{bare}: {micro(median(self.bare))}", self.ratio, aim)


async def interleaved(sizes: Sizes, subject: Action, bare: Action) -> Timings:
    """Time both, round by round, one call after the other."""
    numbers, found = Numbers(), Timings([], [])
    for action in (subject, bare):  # connections, statements and scripts are there before the clock runs
        await _timed(action, numbers.take(5))
    for round_number in range(sizes.rounds):
        sides = [(subject, found.subject), (bare, found.bare)]
        for action, times in sides if round_number % 2 else reversed(sides):
            times.append(await _timed(action, numbers.take(sizes.calls)) / sizes.calls)
    return found


async def _timed(action: Action, numbers: Sequence[int]) -> float:
    start = perf_counter()
    for number in numbers:
        await action(number)
    return perf_counter() - start


def micro(seconds: float) -> str:
    """Seconds as text."""
    return f"{seconds * 1e3:.2f} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.1f} µs"


async def surroundings(client: Redis) -> str:
    """Tell what it was measured on."""
    info = await client.info("server")
    kind = f"Valkey {info['valkey_version']}" if "valkey_version" in info else f"Redis {info['redis_version']}"
    parts = [f"Python {platform.python_version()}", kind]
    for name, package in (("redis-py", "redis"), *((each, each) for each in ("hiredis", "pydantic", "sqlalchemy"))):
        try:
            parts.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            parts.append(f"{name} none")
    return ", ".join([*parts, f"{os.cpu_count()} CPUs ({platform.machine()}, {platform.system()})"])
