"""Thousands of misses at once share one connection: each is stored as long as Redis answers."""

from __future__ import annotations

import asyncio

import pytest

from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.transport import test_timeouts
from tests.transport.test_timeouts import MOST, TIMEOUT, Slow

CALLERS = 1000
"""At each master, in several batches. The callers of one batch do not wait for each other."""
slow = test_timeouts.slow  # a fixture


async def crowd(slow: Slow, takes: float) -> tuple[float, float]:
    """Miss many keys at once, while each answer takes so many timeouts. Return the fills for each, and the seconds."""
    callers = CALLERS * slow.masters

    @slow.cache.cached(f"{next(slow.names)}:{{number}}")
    async def load(number: int) -> int:
        return number

    async def everyone() -> list[int]:
        return list(await asyncio.gather(*(load(number) for number in range(callers))))

    found, waited = await slow.waits(everyone, takes)
    assert found == list(range(callers))
    return load.stats.fills / callers, waited


async def is_stored(slow: Slow) -> None:
    """Expect each of the crowd to be stored, although its turn comes after two timeouts."""
    fills, waited = await crowd(slow, 0.3)
    assert fills == 1
    assert waited > 2 * TIMEOUT
    assert slow.cache.stats().outages == 0


async def test_crowd_is_stored_when_redis_answers(slow: Slow) -> None:
    """The time in the queue counts for no caller."""
    await is_stored(slow)


async def test_crowd_goes_on_when_redis_is_silent(slow: Slow) -> None:
    """All callers give up Redis after one timeout, and run the function."""
    fills, waited = await crowd(slow, 30)
    assert fills == 0
    assert waited <= MOST
    await slow.quiet()


@pytest.mark.parametrize("slow", ["server"], indirect=True)
@pytest.mark.parametrize("change", [without("crowd-waits-its-turn"), without("crowd-in-flight")], ids=label)
async def test_crowd_race_is_lost(slow: Slow, monkeypatch: pytest.MonkeyPatch, change: Change) -> None:
    """With the mechanism taken out, callers give up although Redis answers."""
    change.apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await is_stored(slow)
