"""The way from a miss to a value: acquire the lease and load, join who holds it, or go past the cache."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from fastrdb.errors import CacheUnavailableError, SessionInUseError
from fastrdb.protocol import Barred, Busy, Granted, Hit
from fastrdb.runtime import LoopState
from fastrdb.singleflight import Absent, Again, Alone, Failed, Flight, Landed, Late, Outcome, Watch
from fastrdb.transactions import leads, missing_row, session_s_own
from fastrdb.values import encode_missing

from .entry import MISS, Call, Entries

LOST = "the lease was lost: a write came between, or the load was slow"


@dataclass(frozen=True, slots=True)
class Loaded:
    """What a load gave: a value or an error, its entry, why that must not be stored, and what those who wait get."""

    value: Any
    error: Exception | None
    raw: bytes | None
    reason: str | None
    outcome: Outcome


class Miss:
    """One caller's way from a miss to a value.

    With `refresh`, whatever entry there is; with `seen_ms`, although there is one with at most that life left (see
    `Store.acquire`): the caller has seen it, and its `exp` is over.
    """

    __slots__ = ("query", "call", "refresh", "seen_ms", "token", "state", "deadline")

    def __init__(self, query: Entries, call: Call, *, refresh: bool = False, seen_ms: int | None = None) -> None:
        self.query = query
        self.call = call
        self.refresh = refresh
        self.seen_ms = seen_ms
        self.token = secrets.token_hex(16)
        self.state: LoopState = query.cache.here()
        self.deadline = asyncio.get_running_loop().time() + query.policy.wait

    async def resolve(self) -> Any:
        """Acquire until the outcome is a value, or a right to load."""
        query, call, flights = self.query, self.call, self.state.flights
        watch = Watch(flights)
        with flights.open(self.token) as mine, closing(watch):  # before `acquire`: who finds our lease finds our flight
            while True:
                try:
                    outcome = await self._acquire()
                except CacheUnavailableError as error:
                    watch.close()
                    return await query.without_redis(call, error)
                match outcome:
                    case Hit(raw):
                        value = await query.read(call, raw)
                        if value is not MISS:
                            watch.saw(raw)
                            query.counters.tell("hit", call.key)
                    case Granted():
                        watch.close()
                        return await self._lead(mine)
                    case Barred():
                        watch.close()
                        return await query.alone(call, "a write to it is being committed")
                    case Busy(holder):
                        value = await self._wait(holder, watch)
                if value is not MISS:
                    return value

    async def _wait(self, holder: str, watch: Watch) -> Any:
        """What the holder of the lease loads, or MISS: look again."""
        if leads(holder):
            watch.close()
            return await self.query.alone(self.call, "it is a part of the load that holds the lease")
        flight = watch.other(holder)
        if flight is not None:
            return await self._follow(flight)
        if self._left() <= 0:
            watch.close()
            return await self.query.alone(self.call, "another caller's load took longer than `wait`")
        await watch.pause(self._left())
        return MISS

    def _left(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    async def _acquire(self) -> Hit | Granted | Busy | Barred:
        call = self.call
        try:
            with call.patience:
                outcome = await call.store.acquire(
                    call.client, call.key, self.token, refresh=self.refresh, seen_ms=self.seen_ms
                )
        except (asyncio.CancelledError, CacheUnavailableError):
            self._release()  # the server may have granted it all the same
            raise
        if isinstance(outcome, Busy):  # it waits for the holder: for as long as `wait` says
            call.patience.give_back()
        return outcome

    def _release(self) -> asyncio.Task[Any]:
        return self.query.cache.background(self.call.store.release(self.call.client, self.call.key, self.token))

    async def _follow(self, flight: Flight) -> Any:
        """Another caller's result, or MISS: start over."""
        query, call = self.query, self.call
        match await flight.join(max(0.0, self._left())):
            case Landed(raw, shared):
                query.counters.tell("join", call.key)
                return shared[0] if shared is not None else await query.read(call, raw)
            case Failed(error):
                query.counters.tell("join", call.key)
                raise error
            case Absent() if query.codec.optional:
                query.counters.tell("join", call.key)
                return None
            case Absent():
                return await query.alone(call, "the load that it waited for found nothing")
            case Alone():
                return await query.alone(call, "the load that it waited for was the leader's only")
            case Late():
                return await query.alone(call, "another caller's load took longer than `wait`")
            case Again():
                return MISS

    async def _lead(self, flight: Flight) -> Any:
        """Load under the lease, tell those who wait, store."""
        stored = False
        try:
            loaded = await self._load()
            flight.settle(loaded.outcome)
            stored = await self._fill(loaded)
        finally:
            if not stored:
                self._release()
        if loaded.error is not None:
            raise loaded.error
        return loaded.value

    async def _load(self) -> Loaded:
        query, call = self.query, self.call
        value, error = None, None
        async with query.loading(call.session, (self.token,)) as load:
            try:
                value = await query.load(call)
            except SessionInUseError:
                raise  # who waits has a session of its own
            except Exception as raised:  # noqa: BLE001  # raised again when those who wait know of it
                error = raised
        old, notes = load.unfit, load.notes
        outcome: Outcome = Alone()
        if error is None:
            raw, reason = query.encoded(value, notes)
            if raw is not None and not old and not notes:
                outcome = Landed(raw, (value,) if query.codec.shared else None)
        else:
            negative = query.policy.negative_ms is not None and missing_row(error)
            raw, reason = encode_missing(str(error)) if negative else None, notes[0] if notes else None
            if not old and not notes and not session_s_own(error):
                outcome = Failed(error)
        return Loaded(value, error, raw, old or reason, outcome)

    async def _fill(self, loaded: Loaded) -> bool:
        query, call = self.query, self.call
        if loaded.raw is None or loaded.reason is not None:
            if loaded.error is None or loaded.raw is not None:
                query.counters.tell("unstored", call.key, loaded.reason or "")
            return False
        ttl_ms = query.ttl_ms(loaded.value)
        try:
            with call.patience:
                stored = await call.store.fill(call.client, call.key, self.token, loaded.raw, ttl_ms)
        except CacheUnavailableError as error:
            query.counters.tell("unavailable", call.key, str(error))
            return False
        if stored:
            query.counters.tell("fill", call.key)
        else:
            query.counters.tell("unstored", call.key, LOST)
        return stored
