"""One load per token: joining, outcomes and cancellation. No Redis here."""

from __future__ import annotations

import asyncio

import pytest

from fastrdb.singleflight import Again, Alone, Failed, Flight, Flights, Landed, Late, Watch


def joining(flight: Flight, wait: float = 5.0) -> asyncio.Task[object]:
    """Wait for a flight in a task of its own."""
    return asyncio.get_running_loop().create_task(flight.join(wait))


async def turn() -> None:
    """Run every task that can go on."""
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_flight_is_found_by_its_token_while_it_lasts() -> None:
    """A caller with another token must not get this result."""
    flights = Flights()
    with flights.open("t") as flight:
        assert flights.get("t") is flight
        assert flights.get("other") is None
    assert flights.get("t") is None
    assert flights.by_token == {}


@pytest.mark.parametrize("outcome", [Landed(b"1"), Landed(b"1", int), Failed(ValueError()), Alone()])
async def test_an_outcome_reaches_all_followers(outcome: Landed | Failed | Alone) -> None:
    """A caller that joins after the outcome, before the end, gets it too."""
    flights = Flights()
    with flights.open("t") as flight:
        waiting = [joining(flight) for _ in range(3)]
        await turn()
        flight.settle(outcome)
        assert await asyncio.gather(*waiting) == [outcome] * 3
        assert await flight.join(1) == outcome


async def test_only_the_first_outcome_counts() -> None:
    """A follower's answer is never taken back."""
    with Flights().open("t") as flight:
        flight.settle(Landed(b"1"))
        flight.settle(Alone())
        assert await flight.join(1) == Landed(b"1")


async def test_a_follower_of_a_flight_without_an_outcome_starts_over() -> None:
    """The leader was cancelled."""
    with Flights().open("t") as flight:
        waiting = joining(flight)
        await turn()
    assert await waiting == Again()


async def test_a_cancelled_follower_leaves_the_others_alone() -> None:
    """The others and the leader go on."""
    with Flights().open("t") as flight:
        first, second = joining(flight), joining(flight)
        await turn()
        first.cancel()
        await turn()
        assert first.cancelled()
        assert not second.done()
        flight.settle(Landed(b"1"))
        assert await second == Landed(b"1")


async def test_a_follower_waits_no_longer_than_its_limit() -> None:
    """Late is no outcome: the flight goes on for the others."""
    with Flights().open("t") as flight:
        assert await flight.join(0) == Late()
        flight.settle(Landed(b"1"))
        assert await flight.join(0) == Landed(b"1")


def test_a_flight_without_followers_costs_no_future() -> None:
    """Not even a loop is needed."""
    with Flights().open("t"):
        pass


async def test_one_caller_watches_for_all() -> None:
    """The first caller that finds another process's lease polls, and the others join it."""
    flights = Flights()
    first, second = Watch(flights), Watch(flights)
    assert first.other("t") is None
    flight = second.other("t")
    assert flight is not None
    waiting = joining(flight)
    await turn()
    first.saw(b"1")
    assert await waiting == Landed(b"1")
    first.close()
    assert flights.by_token == {}


async def test_a_watch_follows_the_lease_from_token_to_token() -> None:
    """The watch stays the same under a new holder; callers that find either token join it."""
    flights = Flights()
    first, second, third = Watch(flights), Watch(flights), Watch(flights)
    assert first.other("t1") is None
    assert first.other("t1") is None
    assert first.other("t2") is None
    assert second.other("t1") is third.other("t2") is not None
    first.close()
    assert flights.by_token == {}


async def test_a_watch_that_ends_without_seeing_anything_starts_the_others_over() -> None:
    """The polling caller was cancelled: another one has to poll."""
    flights = Flights()
    first, second = Watch(flights), Watch(flights)
    first.other("t")
    flight = second.other("t")
    assert flight is not None
    waiting = joining(flight)
    await turn()
    first.close()
    assert await waiting == Again()
    assert second.other("t") is None
    second.close()


def test_a_flight_of_this_process_comes_before_watching() -> None:
    """Its result is here sooner than in Redis."""
    flights = Flights()
    watch = Watch(flights)
    with flights.open("t") as flight:
        assert watch.other("t") is flight
    watch.close()


def test_closing_a_flight_leaves_a_newer_one_of_the_same_token() -> None:
    """It takes away only itself."""
    flights = Flights()
    old = Flight(flights, "t")
    with flights.open("t") as new:
        old.close()
        assert flights.get("t") is new


async def test_pauses_grow_and_stay_within_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """From milliseconds to a tenth of a second, and never longer than the caller has left."""
    slept: list[float] = []

    async def sleep(seconds: float) -> None:
        slept.append(seconds)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    watch = Watch(Flights())
    for _ in range(10):
        await watch.pause(5)
    assert slept == sorted(slept)
    assert slept[0] <= 0.01
    assert slept[-1] == slept[-2] == 0.1
    await watch.pause(0.003)
    assert slept[-1] == 0.003


def test_nothing_to_close_is_fine() -> None:
    """A watch that never watched, and one that saw nothing."""
    watch = Watch(Flights())
    watch.saw(b"1")
    watch.close()
