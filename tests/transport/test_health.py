"""The breaker by a clock of the test's own, reasons not to read, and what errors may say."""

from __future__ import annotations

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse, MaxConnectionsError, ResponseError

from fastrdb.testing import Gate
from fastrdb.transport.health import FAILURES, Breaker, Health, redacted


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return the clock."""
    return Clock()


def fails(breaker: Breaker) -> bool:
    """Count a failure, and return True if it opened the breaker."""
    before = breaker.opens
    breaker.on_error("GET", ConnectionError("gone"))
    return breaker.opens > before


def answers(breaker: Breaker) -> bool:
    """Count an answer, and return True if it closed the breaker."""
    before = breaker.opened
    breaker.on_reply()
    return before and not breaker.opened


def opened(clock: Clock) -> Breaker:
    """Return a breaker that has just opened."""
    breaker = Breaker(Health(), clock=clock)
    assert [fails(breaker) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    return breaker


def test_it_takes_failures_in_a_row(clock: Clock) -> None:
    """One answer in between, and failures are counted anew."""
    breaker = Breaker(Health(), clock=clock)
    for _ in range(10):
        for _ in range(FAILURES - 1):
            assert not fails(breaker)
        assert not answers(breaker)
    assert not breaker.opened
    assert breaker.opens == 0


def test_it_says_once_that_it_has_opened(clock: Clock) -> None:
    """However many fail after that: what was on its way."""
    breaker = opened(clock)
    assert not any(fails(breaker) for _ in range(100))
    assert breaker.opened
    assert breaker.opens == 1


def test_it_says_once_that_it_has_closed(clock: Clock) -> None:
    """However many are answered after that."""
    breaker = opened(clock)
    assert answers(breaker)
    assert not any(answers(breaker) for _ in range(100))
    assert not breaker.opened


def test_one_at_a_time_tries_when_it_is_time(clock: Clock) -> None:
    """One caller tries, not at once, and no other until the try is over."""
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
        answers(breaker)
        breaker.tried()
        assert fails(breaker)
    assert breaker.opens == 6
    assert pauses[-1] == 0.2


def test_an_answer_ends_the_trial(clock: Clock) -> None:
    """Then it takes as many failures as ever, and the pauses are short again."""
    breaker = opened(clock)
    answers(breaker)
    answers(breaker)
    assert [fails(breaker) for _ in range(FAILURES)] == [False] * (FAILURES - 1) + [True]
    clock.now += 0.1
    assert breaker.due()


def test_closed_it_is_never_tried(clock: Clock) -> None:
    """There is nothing to find out."""
    breaker = Breaker(Health(), clock=clock)
    clock.now += 100
    assert not breaker.due()


@pytest.mark.parametrize("node", ["", "10.0.0.1:6379"])
def test_a_breaker_blocks_reading_unless_it_is_one_nodes(
    clock: Clock, node: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Each change is logged once, as is the first failure, and reported to each listener."""
    caplog.set_level("INFO", "fastrdb")
    health, events = Health(), list[str]()
    health.listeners.append(lambda kind, detail: events.append(kind))
    breaker = Breaker(health, node, clock=clock)
    for _ in range(2 * FAILURES):
        fails(breaker)
    assert bool(health) is (node == "")
    for _ in range(2):
        answers(breaker)
    assert not health
    assert events == ([] if node else ["outage", "recovery"])
    said = [record.getMessage().removeprefix("Redis").removeprefix(f" at {node}") for record in caplog.records]
    assert [text.split(" (")[0] for text in said] == [" did not answer", " does not answer", " answers again"]
    assert all(node in record.getMessage() for record in caplog.records)


def test_an_answer_that_is_an_error_is_no_silence(clock: Clock, caplog: pytest.LogCaptureFixture) -> None:
    """The server is there. Each kind of refusal is logged once."""
    breaker = Breaker(Health(), clock=clock)
    for _ in range(2 * FAILURES):
        breaker.on_error("acquire", ResponseError("OOM command not allowed"))
        breaker.on_error("acquire", MaxConnectionsError("Too many connections"))
    assert breaker.failures == 0
    assert len(caplog.records) == 1


def test_silence_is_told(clock: Clock) -> None:
    """Each time, whatever the breaker makes of it."""
    told: list[int] = []
    breaker = Breaker(Health(), "node", clock=clock, on_silence=lambda: told.append(1))
    for _ in range(2 * FAILURES):
        breaker.on_error("GET", TimeoutError())
    assert len(told) == 2 * FAILURES


async def test_one_try_at_a_time(clock: Clock) -> None:
    """It is made in the background; one that is cancelled before it begins is over, too."""
    breaker, gate, pings = opened(clock), Gate(), 0

    async def ping() -> None:
        nonlocal pings
        pings += 1
        await gate.hold()
        breaker.on_reply()

    clock.now += 1
    breaker.probe(ping)
    await breaker.aclose()
    assert pings == 0
    clock.now += 1
    for _ in range(3):
        breaker.probe(ping)
    await gate.reached()
    breaker.probe(ping)
    gate.open()
    for _ in range(5):
        await asyncio.sleep(0)
    assert not breaker.opened
    assert pings == 1


def test_reasons_not_to_read() -> None:
    """Each reason is reported once when it is added and once when it is removed."""
    health, events, one, two = Health(), list[tuple[str, str]](), object(), object()
    health.listeners.append(lambda kind, detail: events.append((kind, detail)))
    assert not health
    assert [health.block(each, "owed", "why") for each in (one, one, two)] == [True, False, True]
    assert health
    assert [health.unblock(each, "repair") for each in (one, one, two)] == [True, False, True]
    assert not health
    assert events == [("owed", "why"), ("owed", "why"), ("repair", ""), ("repair", "")]


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ResponseError("OOM command not allowed"), "OOM command not allowed"),
        (RedisConnectionError("Error 111 connecting to host:1."), "Error 111 connecting to host:1."),
        (ResponseError("unknown command 'GET', with args beginning with: 'a@b.c' "), "unknown command 'GET'"),
        (ResponseError("Command # 1 (GET a\n@b.c) of pipeline caused error: WRONGTYPE x"), "WRONGTYPE x"),
        (InvalidResponse("Protocol Error: b'a@b.c'"), "InvalidResponse"),
        (TimeoutError(), "TimeoutError"),
        (OSError(32, "Broken pipe"), "[Errno 32] Broken pipe"),
        (ResponseError("x" * 1000), "x" * 200),
    ],
)
def test_an_error_says_what_is_its_own(error: Exception, said: str) -> None:
    """From then on, too, wherever it is printed."""
    assert redacted(error) == said
    assert str(error) in ("", said)
