"""The breaker, by a clock of the test's own."""

from __future__ import annotations

import pytest

from fastrdb.transport.breaker import FAILURES, Breaker


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Give the clock."""
    return Clock()


def opened(clock: Clock) -> Breaker:
    """Give a breaker that has just opened."""
    breaker = Breaker(clock)
    assert [breaker.failed() for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    return breaker


def test_it_takes_failures_in_a_row(clock: Clock) -> None:
    """One answer in between, and they are counted anew."""
    breaker = Breaker(clock)
    for _ in range(10):
        for _ in range(FAILURES - 1):
            assert not breaker.failed()
        assert not breaker.succeeded()
    assert not breaker.opened
    assert breaker.opens == 0


def test_it_says_once_that_it_has_opened(clock: Clock) -> None:
    """However many fail after that: what was on its way."""
    breaker = opened(clock)
    assert not any(breaker.failed() for _ in range(100))
    assert breaker.opened
    assert breaker.opens == 1


def test_it_says_once_that_it_has_closed(clock: Clock) -> None:
    """However many are answered after that."""
    breaker = opened(clock)
    assert breaker.succeeded()
    assert not any(breaker.succeeded() for _ in range(100))
    assert not breaker.opened


def test_one_at_a_time_tries_when_it_is_time(clock: Clock) -> None:
    """Not at once, and nobody else until the try is over."""
    breaker = opened(clock)
    assert not breaker.due()
    clock.now += 0.1
    assert [breaker.due() for _ in range(5)] == [True, False, False, False, False]
    clock.now += 100
    assert not breaker.due()
    breaker.tried()
    assert not breaker.due()
    clock.now += 0.21
    assert breaker.due()


def test_pauses_grow_and_stay_short(clock: Clock) -> None:
    """A server that is back is found within that time, however long it was away."""
    breaker, pauses = opened(clock), []
    for _ in range(6):
        since = clock.now
        while not breaker.due():
            clock.now += 0.01
        pauses.append(round(clock.now - since, 1))
        breaker.tried()
    assert pauses == [0.1, 0.2, 0.2, 0.2, 0.2, 0.2]


def test_closed_by_a_try_it_is_on_trial(clock: Clock) -> None:
    """The next failure opens it at once, and the pauses go on growing: a try is answered, work is not."""
    breaker, pauses = opened(clock), []
    for _ in range(5):
        since = clock.now
        while not breaker.due():
            clock.now += 0.01
        pauses.append(round(clock.now - since, 1))
        breaker.succeeded()
        breaker.tried()
        assert breaker.failed()
    assert breaker.opens == 6
    assert pauses[-1] == 0.2


def test_an_answer_ends_the_trial(clock: Clock) -> None:
    """Then it takes as many failures as ever, and the pauses are short again."""
    breaker = opened(clock)
    breaker.succeeded()
    breaker.succeeded()
    assert [breaker.failed() for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    clock.now += 0.1
    assert breaker.due()


def test_closed_it_is_never_tried(clock: Clock) -> None:
    """There is nothing to find out."""
    breaker = Breaker(clock)
    clock.now += 100
    assert not breaker.due()
