"""Deadlines by one timer do what `asyncio.timeout` does. One of no seconds passes as soon as the loop turns."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress

import pytest

import fastrdb.transport.deadlines
from fastrdb.transport.deadlines import Deadlines


async def forever() -> None:
    """Wait for what never comes."""
    await asyncio.get_running_loop().create_future()


async def turn() -> None:
    """Let every task that can go on do so."""
    for _ in range(5):
        await asyncio.sleep(0)


async def under(deadlines: Deadlines) -> None:
    """Wait under a deadline."""
    with deadlines.start():
        await forever()


async def test_what_lasts_too_long_is_ended() -> None:
    """By a TimeoutError; the task itself is not cancelled and goes on."""
    with pytest.raises(TimeoutError):
        await under(Deadlines(0))
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await asyncio.sleep(0)


async def test_what_ends_in_time_is_left_alone() -> None:
    """Results and errors pass, and no cancellation comes later."""
    deadlines = Deadlines(0)
    with deadlines.start():
        pass
    with pytest.raises(ValueError, match="own"), deadlines.start():
        raise ValueError("own")
    await turn()


@pytest.mark.parametrize("times", [1, 3])
async def test_a_cancellation_that_is_swallowed_is_repeated(times: int) -> None:
    """What goes on all the same is ended later; the task is left as it was found."""

    async def stubborn() -> None:
        for _ in range(times):
            with suppress(asyncio.CancelledError):
                await forever()
        await forever()

    with pytest.raises(TimeoutError), Deadlines(0).start():
        await stubborn()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0
    await turn()


async def test_each_task_has_its_own() -> None:
    """One timer serves many, those that begin while it runs too."""
    deadlines = Deadlines(0)
    tasks = [asyncio.create_task(under(deadlines)) for _ in range(3)]
    late = asyncio.create_task(forever())
    done = await asyncio.gather(*tasks, return_exceptions=True)
    assert [type(error) for error in done] == [TimeoutError] * 3
    with pytest.raises(TimeoutError):
        await under(deadlines)
    assert not late.done()
    late.cancel()


async def test_a_later_deadline_outlives_an_earlier_one() -> None:
    """The timer goes on to the next that runs."""
    deadlines = Deadlines(0)
    first = asyncio.create_task(under(deadlines))
    await asyncio.sleep(0)
    deadlines.seconds = 60
    second = asyncio.create_task(under(deadlines))
    with pytest.raises(TimeoutError):
        await first
    await turn()
    assert not second.done()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second


async def test_a_cancellation_from_outside_is_no_timeout() -> None:
    """It passes through as it is, in time or together with the deadline."""
    calm = asyncio.create_task(under(Deadlines(60)))
    both = asyncio.create_task(under(Deadlines(0)))
    await asyncio.sleep(0)
    calm.cancel()
    both.cancel()
    for task in (calm, both):
        with pytest.raises(asyncio.CancelledError):
            await task


async def test_deadlines_nest() -> None:
    """The inner one ends the inner block only."""
    outer, inner = Deadlines(60), Deadlines(0)
    with outer.start():
        with pytest.raises(TimeoutError), inner.start():
            await forever()
        await turn()


async def test_what_has_ended_is_forgotten() -> None:
    """A caller after the other leaves nothing behind."""
    deadlines = Deadlines(60)
    for _ in range(1000):
        with deadlines.start():
            pass
    assert len(deadlines._running) == 1


def test_a_loop_that_has_ended_is_let_go() -> None:
    """The next loop has a timer of its own, and the last one can be collected."""
    deadlines = Deadlines(0)
    loops = []
    for _ in range(2):

        async def main() -> None:
            loops.append(weakref.ref(asyncio.get_running_loop()))
            with deadlines.start():
                pass
            with pytest.raises(TimeoutError):
                await under(deadlines)

        asyncio.run(main())
    gc.collect()
    assert [found() for found in loops] == [None, None]


async def test_outside_of_a_task_there_is_nothing_to_cancel() -> None:
    """A callback of the loop gets a clear error."""
    raised: list[BaseException] = []

    def callback() -> None:
        with pytest.raises(RuntimeError, match="needs a task") as caught:
            Deadlines(1).start()
        raised.append(caught.value)

    asyncio.get_running_loop().call_soon(callback)
    await turn()
    assert raised


Starts = Callable[[Deadlines], AbstractContextManager[object]]
STARTS: list[Starts] = [
    lambda deadlines: deadlines.start(),
    lambda deadlines: deadlines.since(asyncio.get_running_loop().time(), asyncio.get_running_loop()),
]


class Clock:
    """The event loop's own clock, which can be put forward: that much time the loop stood still."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        time, self.passed = loop.time, 0.0
        monkeypatch.setattr(loop, "time", lambda: time() + self.passed)


@pytest.mark.parametrize("start", STARTS, ids=["start", "since"])
async def test_the_time_that_the_loop_stood_still_is_not_the_servers(
    start: Starts, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reply that has come meanwhile is read; without this, it loses to the timer."""
    clock = Clock(monkeypatch)

    async def held_up() -> str:
        task_reply: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def ask() -> str:
            with start(Deadlines(5)):
                return await task_reply

        task = asyncio.ensure_future(ask())
        await turn()
        clock.passed += 8.0
        await turn()
        if not task.done():
            task_reply.set_result("here")
        return await task

    assert await held_up() == "here"
    monkeypatch.setattr(fastrdb.transport.deadlines, "_PUT_OFF", 0)
    with pytest.raises(TimeoutError):
        await held_up()


@pytest.mark.parametrize("start", STARTS, ids=["start", "since"])
async def test_what_is_here_when_the_time_has_come_is_read(start: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """It came while the loop was busy: the timer that goes off in the same turn does not end who is about to read."""
    clock, loop = Clock(monkeypatch), asyncio.get_running_loop()
    reply: asyncio.Future[str] = loop.create_future()

    async def ask() -> str:
        with start(Deadlines(5)):
            return await reply

    task = asyncio.ensure_future(ask())
    await turn()
    clock.passed += 5.001
    loop.call_soon(reply.set_result, "here")
    assert await task == "here"


@pytest.mark.parametrize("start", STARTS, ids=["start", "since"])
async def test_silence_is_noticed_though_the_loop_stands_still(start: Starts, monkeypatch: pytest.MonkeyPatch) -> None:
    """However often it does."""
    clock = Clock(monkeypatch)

    async def ask() -> None:
        with start(Deadlines(5)):
            await forever()

    task = asyncio.ensure_future(ask())
    for _ in range(5):
        await turn()
        clock.passed += 8.0
    await turn()
    with pytest.raises(TimeoutError):
        await task
