"""One load per key and process: who loads, who waits for it, and what those who wait are told. asyncio only.

A flight carries the token of a lease. Whoever finds that token on a key may join its flight, and nobody else may: a
load that began before a commit has lost its lease, and who calls after that commit must not be handed its result.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any


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
class Again:
    """There will be no result, the leader was cancelled: start over."""


@dataclass(frozen=True, slots=True)
class Alone:
    """There is a result, but it is the leader's only (its snapshot is too old for others): load for yourself."""


@dataclass(frozen=True, slots=True)
class Late:
    """Nothing within the time that the caller waits."""


Outcome = Landed | Failed | Again | Alone


class Flight:
    """A load that is going on, or the watch for one in another process. Opened by a `Flights`."""

    __slots__ = ("_flights", "_future", "_tokens")

    def __init__(self, flights: Flights, token: str) -> None:
        self._flights = flights
        self._future: asyncio.Future[Outcome] | None = None  # made by the first who joins
        self._tokens = [token]

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
        """A flight that can be joined from now on; to be closed by who opens it."""
        flight = self.by_token[token] = Flight(self, token)
        return flight

    def get(self, token: str) -> Flight | None:
        """The flight to join for who found `token` on its key."""
        return self.by_token.get(token)
