"""One load per key and process: one caller loads, and the others wait for its result. asyncio only.

A flight carries the token of a lease. A caller joins a flight only if it has found that token on its key: a load that
began before a commit has lost its lease, and a call made after that commit must not get its result.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Landed:
    """The load has a result. Each follower decodes a value of its own from `raw`, or gets one from `value`."""

    raw: bytes
    value: Callable[[], Any] | None = None  # of an immutable result, or of one that has no entry


@dataclass(frozen=True, slots=True)
class Failed:
    """The load raised `error`, which is raised in all followers and never cached."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Absent:
    """There is nothing under this key. Each function has its own answer to that."""


@dataclass(frozen=True, slots=True)
class Again:
    """There will be no result, since the leader was cancelled: start over."""


@dataclass(frozen=True, slots=True)
class Alone:
    """There is a result, but only for the leader (its snapshot is too old for others): load."""


@dataclass(frozen=True, slots=True)
class Late:
    """There is no result within the time that the caller waits."""


FlightOutcome = Landed | Failed | Absent | Again | Alone
_LATE, _AGAIN = Late(), Again()  # made once: a stampede waits for the garbage collector as well
_POLL_PAUSES_S = (0.005, 0.01, 0.02, 0.04, 0.08, 0.1)  # the last one again and again


def _true() -> bool:
    return True


class Flight:
    """A load that is going on, or the watch for one in another process. Opened by a `Flights`.

    `is_connected` returns False if the load may be waiting for a connection to the database. `begun` is the point at
    which the load began, if the lease does not show a writer that has come since; else None. Callers that asked later
    than that point are late: only what was stored is theirs. `started` is that of any load.
    """

    __slots__ = ("token", "is_connected", "begun", "started", "_flights", "_followers", "_late", "_outcome", "_tokens")

    def __init__(self, flights: Flights, token: str) -> None:
        self.token = token
        self.is_connected: Callable[[], bool] = _true
        self.begun: int | None = None
        self.started: int | None = None
        self._late: Flight | None = None
        self._flights = flights
        self._followers: set[asyncio.Future[FlightOutcome | Late]] | None = None
        self._outcome: FlightOutcome | None = None
        self._tokens: tuple[str, ...] = (token,)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def answers_to(self, token: str) -> None:
        """Open this flight for callers that find `token`, too."""
        self._tokens = (*self._tokens, token)
        self._flights.by_token[token] = self

    async def join(self, wait: float, asked: int = 0, *, fresh: bool = False) -> FlightOutcome | Late:
        """Return the outcome, after at most `wait` seconds. A cancelled follower changes nothing for the others.

        `asked` is the point at which the caller asked: see `begun`. With `fresh`, a load that began before that point
        is not enough: when it has ended, start over.
        """
        if fresh and self.started is not None and self.started < asked:
            outcome = await self._for_late().join(wait)
            return outcome if isinstance(outcome, Late) else _AGAIN
        late = self.begun is not None and asked > self.begun  # mechanism: late-followers
        if late:
            return await self._for_late().join(wait)
        if self._outcome is not None:
            return self._outcome
        loop = asyncio.get_running_loop()
        follower: asyncio.Future[FlightOutcome | Late] = loop.create_future()
        over = loop.call_later(wait, _answer, follower, _LATE)
        self._followers = self._followers or set()
        self._followers.add(follower)
        try:
            return await follower
        finally:
            over.cancel()
            self._followers.discard(follower)

    def settle(self, outcome: FlightOutcome) -> None:
        """Answer all followers, later ones too until the flight is closed. Only the first outcome counts."""
        if self._outcome is None:
            self._outcome = outcome
            for follower in self._followers or ():
                _answer(follower, outcome)

    def stored(self) -> None:
        """Answer the followers that are late, too: the result was stored."""
        self.begun = None
        if self._late is not None and self._outcome is not None:
            self._late.settle(self._outcome)

    def close(self) -> None:
        """End the flight: no caller can join any more, and followers without an outcome start over."""
        for token in self._tokens:
            if self._flights.by_token.get(token) is self:
                del self._flights.by_token[token]
        if self._outcome is None:
            self.settle(_AGAIN)
        if self._late is not None:
            self._late.settle(_AGAIN)

    def _for_late(self) -> Flight:
        if self._late is None:
            self._late = Flight(self._flights, self.token)
        return self._late


def _answer(follower: asyncio.Future[FlightOutcome | Late], outcome: FlightOutcome | Late) -> None:
    if not follower.done():
        follower.set_result(outcome)


class Flights:
    """The flights of one event loop, by the token of their lease."""

    __slots__ = ("by_token",)

    def __init__(self) -> None:
        self.by_token: dict[str, Flight] = {}

    def open(self, token: str) -> Flight:
        """Return a new flight, which can be joined until it is closed; `with` closes it."""
        flight = self.by_token[token] = Flight(self, token)
        return flight

    def get(self, token: str) -> Flight | None:
        """Return the flight for callers that have found `token` on their key."""
        return self.by_token.get(token)


class Watch:
    """One caller that polls a lease of another process; all others in this process join its flight.

    Tokens of leases are given in the order in which the caller finds them on the key.
    """

    __slots__ = ("_flight", "_flights", "_pauses")

    def __init__(self, flights: Flights) -> None:
        self._flights = flights
        self._flight: Flight | None = None
        self._pauses: Iterator[float] | None = None

    def other(self, token: str) -> Flight | None:
        """Return the flight of another caller in this process for `token`; None if this caller has to poll."""
        found = self._flights.get(token)
        if found is not None and found is not self._flight:
            return found
        if self._flight is None:
            self._flight = self._flights.open(token)
            self._flight.started = 0
        elif found is None:
            self._flight.answers_to(token)
        return None

    async def pause(self, longest: float) -> None:
        """Wait for the next look at the lease, at most `longest` seconds."""
        if self._pauses is None:
            self._pauses = chain(_POLL_PAUSES_S, repeat(_POLL_PAUSES_S[-1]))
        await asyncio.sleep(min(next(self._pauses), longest))

    def saw(self, raw: bytes) -> None:
        """Answer followers with what the holder of the lease has stored."""
        if self._flight is not None:
            self._flight.settle(Landed(raw))

    def close(self) -> None:
        """Stop polling: followers without an outcome start over."""
        if self._flight is not None:
            self._flight.close()
            self._flight = None
