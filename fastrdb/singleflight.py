"""One load per key and process: who loads, who waits for it, and what those who wait are told. asyncio only.

A flight carries the token of a lease. Whoever finds that token on a key may join its flight, and nobody else may: a
load that began before a commit has lost its lease, and who calls after that commit must not be handed its result.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from itertools import chain, repeat
from typing import Any, Self


@dataclass(frozen=True, slots=True)
class Landed:
    """The load has a result. Each who waited decodes a value of its own from `raw`, or takes the one in `shared`."""

    raw: bytes
    shared: tuple[Any] | None = None  # a value that nobody can change


@dataclass(frozen=True, slots=True)
class Failed:
    """The load raised `error`, which reaches all who waited. It is never cached."""

    error: Exception


@dataclass(frozen=True, slots=True)
class Absent:
    """There is nothing under this key. How that is said, each function says for itself."""


@dataclass(frozen=True, slots=True)
class Again:
    """There will be no result, the leader was cancelled: start over."""


@dataclass(frozen=True, slots=True)
class Alone:
    """There is a result, but it is the leader's only (its snapshot is too old for others): load for yourself."""


@dataclass(frozen=True, slots=True)
class Late:
    """Nothing within the time that the caller waits."""


Outcome = Landed | Failed | Absent | Again | Alone


_PAUSES = (0.005, 0.01, 0.02, 0.04, 0.08, 0.1)  # seconds; the last one again and again


class Flight:
    """A load that is going on, or the watch for one in another process. Opened by a `Flights`."""

    __slots__ = ("token", "_flights", "_future", "_tokens")

    def __init__(self, flights: Flights, token: str) -> None:
        self.token = token
        self._flights = flights
        self._future: asyncio.Future[Outcome] | None = None  # made by the first who joins
        self._tokens = [token]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def answers_to(self, token: str) -> None:
        """From now on who finds `token` joins this flight too."""
        self._tokens.append(token)
        self._flights.by_token[token] = self

    async def join(self, wait: float) -> Outcome | Late:
        """Wait at most `wait` seconds. The cancellation of one who waits touches nobody else."""
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        try:
            async with asyncio.timeout(wait):
                return await asyncio.shield(self._future)
        except TimeoutError:
            return Late()

    def settle(self, outcome: Outcome) -> None:
        """Tell all who wait, and those who come until the flight is closed. Only the first outcome counts."""
        if self._future is None:
            self._future = asyncio.get_running_loop().create_future()
        if not self._future.done():
            self._future.set_result(outcome)

    def close(self) -> None:
        """It is over: nobody can join any more, and who still waits starts over."""
        for token in self._tokens:
            if self._flights.by_token.get(token) is self:
                del self._flights.by_token[token]
        if self._future is not None:
            self.settle(Again())


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
        """The flight to join for who found `token` on its key."""
        return self.by_token.get(token)


class Watch:
    """One caller looks, with growing pauses, at a lease of another process; all others here join its flight.

    Tokens of leases are given as they are found on the key, one after the other.
    """

    __slots__ = ("_flight", "_flights", "_pauses")

    def __init__(self, flights: Flights) -> None:
        self._flights = flights
        self._flight: Flight | None = None
        self._pauses = chain(_PAUSES, repeat(_PAUSES[-1]))

    def other(self, token: str) -> Flight | None:
        """The flight of another caller of this process that knows `token`; None: then this caller looks, for all."""
        found = self._flights.get(token)
        if found is not None and found is not self._flight:
            return found
        if self._flight is None:
            self._flight = self._flights.by_token[token] = Flight(self._flights, token)
        elif found is None:
            self._flight.answers_to(token)
        return None

    async def pause(self, longest: float) -> None:
        """Wait until it is time to look again, at most `longest` seconds."""
        await asyncio.sleep(min(next(self._pauses), longest))

    def saw(self, raw: bytes) -> None:
        """The holder has stored its result: here it is."""
        if self._flight is not None:
            self._flight.settle(Landed(raw))

    def close(self) -> None:
        """Stop looking: who still waits starts over."""
        if self._flight is not None:
            self._flight.close()
            self._flight = None
