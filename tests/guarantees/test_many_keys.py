"""A write that reaches many keys, or a call with many ids, goes in portions of 128, and each portion has `timeout`."""

from __future__ import annotations

from tests.transport import test_timeouts
from tests.transport.test_timeouts import MOST, Slow

PORTIONS = 8
slow = test_timeouts.slow  # a fixture


async def test_many_keys_are_stored_and_deleted_while_redis_answers(slow: Slow) -> None:
    """Each answer takes 0.4 of the timeout, and a portion needs up to three: all is done, long after one timeout."""
    numbers = list(range(PORTIONS * 128))

    @slow.cache.cached_many("many:{numbers}")
    async def squares(numbers: list[int]) -> dict[int, int]:
        return {number: number**2 for number in numbers}

    found, waited = await slow.waits(lambda: squares(numbers), 0.4)
    assert found == {number: number**2 for number in numbers}
    assert waited > MOST
    assert squares.stats.fills == len(numbers)
    _, waited = await slow.waits(lambda: slow.cache.invalidate("many:*", redis=slow.client), 0.4)
    assert waited > MOST
    assert slow.cache.stats().owed == 0
    await squares(numbers)
    assert squares.stats.hits == 0
