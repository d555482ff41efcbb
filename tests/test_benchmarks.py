"""The benchmarks run, and answer every question. How fast it is depends on the machine, and is no test."""

from __future__ import annotations

import asyncio

import pytest

from benchmarks.harness import SIZES, Numbers, Row, Sizes, Timings, interleaved, micro
from tests.support.checkers import run

QUESTIONS = [
    "hit, one caller",
    "hits, 64 callers at once",
    "miss, load: session and SELECT by key (SQLite)",
    "miss, load: nothing (a model made in memory)",
    "invalidation of 100 keys among 2,000",
    "memory of index and expiry, 1,000 keys",
]


@pytest.mark.timeout(120)
def test_a_tiny_run_reports_every_row() -> None:
    """`python -m benchmarks --smoke` measures all questions, and says on what."""
    done = run("benchmarks", "--smoke")
    assert done.returncode == 0, done.stderr
    for text in (*QUESTIONS, "smoke run", "Python", "redis-py", "pydantic", "CPUs", "<= 1.15", "<= 1.6", "<= 2"):
        assert text in done.stdout


def test_sizes_grow() -> None:
    """The full run has the million keys that are promised."""
    assert SIZES["full"].many == 1_000_000
    assert SIZES["quick"].many == 100_000
    assert SIZES["smoke"].rounds < SIZES["quick"].rounds < SIZES["full"].rounds


async def test_rounds_are_interleaved() -> None:
    """Both sides run in every round, the beginner alternates, and no number comes twice."""
    seen: list[tuple[str, int]] = []

    async def subject(number: int) -> None:
        seen.append(("subject", number))

    async def bare(number: int) -> None:
        seen.append(("bare", number))
        await asyncio.sleep(0)

    timings = await interleaved(Sizes(rounds=4, calls=1, many=0), subject, bare)
    assert [side for side, _ in seen[10:]] == ["bare", "subject", "subject", "bare"] * 2
    assert len({number for _, number in seen}) == len(seen)
    assert len(timings.subject) == len(timings.bare) == 4


def test_a_ratio_is_the_median_over_rounds() -> None:
    """One bad round does not matter."""
    timings = Timings(subject=[2.0, 2.0, 90.0], bare=[1.0, 1.0, 1.0])
    assert timings.ratio == 2.0
    assert timings.row("q", "bare", aim=2.0).cells() == ("q", "2000.00 ms", "bare: 1000.00 ms", "2.00", "<= 2 met")
    assert timings.row("q", "bare", aim=1.5).verdict == "<= 1.5 MISSED"
    assert Row("q", "a", "b").cells() == ("q", "a", "b", "", "")


def test_numbers_come_once() -> None:
    """Keys of a miss must be new."""
    numbers = Numbers()
    assert [*numbers.take(2), *numbers.take(3)] == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(("seconds", "text"), [(0.0000015, "1.5 µs"), (0.0015, "1.50 ms")])
def test_times_are_readable(seconds: float, text: str) -> None:
    """Micro- or milliseconds."""
    assert micro(seconds) == text
