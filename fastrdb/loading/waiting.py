"""A caller's wait for the loads of others: in this process by joining their flights, else by looking at the leases."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from time import monotonic
from typing import Any, Protocol

from fastrdb.protocol import Busy
from fastrdb.singleflight import Absent, Again, Alone, Failed, Flight, FlightOutcome, Flights, Landed, Late, Watch
from fastrdb.transactions import holds_last_connection, is_followed, leads, missing_row, running, used_here

_LAST_CONNECTION = "another caller's load may be waiting for a connection of the pool, and this caller has the last"
NESTED = "it is a part of a load that is followed, which needs the tags of what it reads"
_LATE = "another caller's load took longer than `wait`"


class Reads(Protocol):
    """A `Reading`, as far as it is needed here."""

    entries: Any
    call: Any
    many: bool
    values: dict[str, Any]
    refresh: bool
    asked_at: int


class Waiting:
    """One reading that waits for others until `deadline`. Its `watches` are closed by its owner."""

    __slots__ = ("_reading", "_flights", "_watches", "_deadline")

    def __init__(self, reading: Reads, flights: Flights, watches: dict[str, Watch], deadline: float) -> None:
        self._reading, self._flights, self._watches, self._deadline = reading, flights, watches, deadline

    async def wait_for(self, busy: Mapping[str, Busy]) -> dict[str, str]:
        """Wait for the holders of these leases. Return the keys to load now, each with why.

        A key that has no value then, and is not returned, needs another look at its lease.
        """
        late, looked_at, inside = dict[str, str](), list[str](), running.get() is not None
        for key, holder in busy.items():
            if inside and leads(holder.token):
                late[key] = "it is a part of the load that holds the lease"
            elif inside and is_followed():
                late[key] = NESTED
            elif self._reading.entries.unstorable is not None:  # mechanism: unstorable-alone
                late[key] = self._reading.entries.unstorable
            elif (flight := self._watch(key).other(holder.token)) is None:
                looked_at.append(key)
            elif (why := await self._follow(key, flight)) is not None:
                late[key] = why
        if looked_at and self._left() > 0:
            await self._watch(looked_at[0]).pause(self._left())
        else:
            late.update(dict.fromkeys(looked_at, _LATE))
        for key in late.keys() & self._watches.keys():
            self._watches[key].close()
        return late

    async def _follow(self, key: str, flight: Flight) -> str | None:
        """Take another caller's result; return why there is none for this one. Raises the other's error."""
        begun = monotonic()
        outcome = await self._join(flight)
        match outcome:
            case None:
                return _LAST_CONNECTION
            case Landed(raw, value):
                self._joined(key, begun)
                decoded = self._reading.entries.value
                self._reading.values[key] = (
                    await decoded(self._reading.call, key, raw, many=self._reading.many) if value is None else value()
                )
            case Failed(error):
                self._joined(key, begun)
                if not (self._reading.many and missing_row(error)):
                    raise error
                self._reading.values[key] = None
            case Absent() if self._reading.many or self._reading.entries.codec.optional:
                self._joined(key, begun)
                self._reading.values[key] = None
            case Absent():
                return "the load that it waited for found nothing"
            case Alone():
                return "the load that it waited for was the leader's only"
            case Late():
                return _LATE
            case Again():  # the leader is gone: another round
                pass
        return None

    def _joined(self, key: str, begun: float) -> None:
        self._reading.entries.counters.count("join", key, seconds=monotonic() - begun)

    async def _join(self, flight: Flight) -> FlightOutcome | Late | None:
        """Return the outcome; None if the load seems to wait for a connection that this caller holds."""
        timeout, asked, fresh = self._reading.entries.cache.timeout, self._reading.asked_at, self._reading.refresh
        while True:
            left = max(0.0, self._left())
            outcome = await flight.join(min(left, timeout), asked, fresh=fresh)
            if not isinstance(outcome, Late) or left <= timeout:
                return outcome
            own = self._reading.call.session
            if not flight.is_connected() and holds_last_connection({*used_here(), *([] if own is None else [own])}):
                return None

    def _watch(self, key: str) -> Watch:
        if key not in self._watches:
            self._watches[key] = Watch(self._flights)
        return self._watches[key]

    def _left(self) -> float:
        return self._deadline - asyncio.get_running_loop().time()
