"""From many keys to their values: one round trip for all hits, one load of the rest.

Each key goes the way of a miss of its own: its lease, its flight, its fill. What is its own to load a caller loads
first, and only then waits for what others load: nobody waits for somebody who waits.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any, Protocol

from fastrdb.errors import CacheUnavailableError, SessionInUseError
from fastrdb.events import Kind
from fastrdb.protocol import Barred, Busy, Granted, Hit
from fastrdb.protocol import Outcome as Answer
from fastrdb.singleflight import Absent, Again, Alone, Failed, Flight, Landed, Late, Outcome, Watch
from fastrdb.transactions import leads, missing_row, session_s_own
from fastrdb.values import ABSENT, DecodeError, missing_message

from .entry import MISS, Call, Entries
from .misses import LOST


class Loader(Protocol):
    """Loads what is not in Redis."""

    async def __call__(self, positions: list[int], session: Any = None, /) -> Sequence[Any]:
        """Give the values for these positions, in their order; None for what is not there.

        A `session` takes the place of the caller's: then the load is nobody's call.
        """
        ...


@dataclass(frozen=True, slots=True)
class Lease:
    """A key that is the caller's to load and store."""

    token: str
    flight: Flight


class Batch:
    """One caller's way from many keys to their values.

    `call` says where they are, whatever its own key is. With `refresh`, what is in Redis does not count.
    """

    def __init__(self, query: Entries, call: Call, keys: Sequence[str], load: Loader, *, refresh: bool = False) -> None:
        self.query = query
        self.call = call
        self.keys = keys
        self.load = load
        self.refresh = refresh
        self.values: dict[str, Any] = dict.fromkeys(keys, MISS)
        self.seen_ms: dict[str, int] = {}  # see Store.acquire
        self.own_session: Any = None  # for the load, in place of the caller's
        self._at = {key: at for at, key in enumerate(keys)}
        self._watches: dict[str, Watch] = {}
        self._flights = query.cache.here().flights
        self._deadline = asyncio.get_running_loop().time() + query.policy.wait

    async def resolve(self) -> list[Any]:
        """The values in the order of the keys, None for what is not there. Raises what the load raises."""
        call = self.call
        reason = self.query.closed(call.store, call.client, call.session)
        try:
            if reason is not None:
                await self.alone("bypass", reason)
            elif not self.refresh:
                await self._read()
            while missing := self.missing():
                await self._round(missing)
        finally:
            for watch in self._watches.values():
                watch.close()
        return [self.values[key] for key in self.keys]

    def missing(self) -> list[str]:
        """The keys without a value."""
        return [key for key, value in self.values.items() if value is MISS]

    # --- what is in Redis

    async def _read(self) -> None:
        try:
            await self.look()
        except CacheUnavailableError as error:
            await self.alone("unavailable", str(error))
        for key in self.missing():
            self.tell("miss", key)

    async def look(self) -> None:
        """Take what is there. Raises CacheUnavailableError."""
        keys, decode, call = list(self.values), self.query.codec.decode, self.call
        raws = await call.store.get_many(call.client, keys)
        call.patience = call.store.patience(call.client, keys, read=True)
        for key, raw in zip(keys, raws, strict=True):
            if raw is not None:
                try:
                    self.values[key] = decode(raw)
                except DecodeError:
                    await self._take(key, raw)
                else:
                    self.tell("hit", key)

    async def _take(self, key: str, raw: bytes) -> None:
        value = await self.value(key, raw)
        if value is not MISS:
            self.values[key] = value
            self.tell("hit", key)

    async def value(self, key: str, raw: bytes) -> Any:
        """The value of an entry; None for what is known not to be there, MISS if it cannot be read."""
        try:
            return self.query.codec.decode(raw)
        except DecodeError as error:
            if raw == ABSENT or missing_message(raw) is not None:
                return None
            return await self.query.unreadable(replace(self.call, key=key), raw, error)

    # --- what is not

    async def _round(self, missing: list[str]) -> None:
        """Load what is this caller's to load, then wait for others; what is missing then is asked for once more."""
        async with self.leases(missing) as (answers, leases):
            for key, answer in answers.items():
                watch = self._watch(key)
                if isinstance(answer, Hit):
                    watch.saw(answer.raw)
                    await self._take(key, answer.raw)
                elif not isinstance(answer, Busy):
                    watch.close()
            if mine := [key for key, answer in answers.items() if isinstance(answer, Granted | Barred)]:
                await self.lead(mine, leases)
        await self._wait({key: answer.token for key, answer in answers.items() if isinstance(answer, Busy)})
        if not answers:
            await self.alone("unavailable", "Redis gives no lease")

    @asynccontextmanager
    async def leases(self, keys: Sequence[str]) -> AsyncIterator[tuple[Mapping[str, Answer], dict[str, Lease]]]:
        """Ask for leases: the answers, none if Redis gives none, and the leases. What is left of them is given back."""
        store, client = self.call.store, self.call.client
        with ExitStack() as stack:  # before `acquire`: who finds our lease finds our flight
            tokens = {key: secrets.token_hex(16) for key in keys}
            opened = {key: stack.enter_context(self._flights.open(token)) for key, token in tokens.items()}
            leases = {key: Lease(token, opened[key]) for key, token in tokens.items()}
            try:
                try:
                    with self.call.patience:
                        answers = await store.acquire_many(client, tokens, refresh=self.refresh, seen_ms=self.seen_ms)
                except CacheUnavailableError:
                    yield {}, {}
                    return
                for key, answer in answers.items():
                    if not isinstance(answer, Granted):
                        del leases[key]
                if any(isinstance(answer, Busy) for answer in answers.values()):  # see Miss
                    self.call.patience.give_back()
                yield answers, leases
            finally:  # without an answer, too: the server may have granted them all the same
                if leases:
                    left = {key: lease.token for key, lease in leases.items()}
                    self.query.cache.background(store.release_many(client, left))

    async def lead(self, keys: list[str], leases: dict[str, Lease]) -> None:
        """Load, and store what there is a lease for, which is then taken out of `leases`."""
        async with self.query.loading(self.call.session, [lease.token for lease in leases.values()]) as load:
            try:
                await self._load(keys)
            except SessionInUseError:
                raise  # who waits has a session of its own
            except Exception as error:
                # Which of several keys it is about it does not say.
                everyones = len(keys) == 1 and not load.why_not_stored and not session_s_own(error)
                outcome = Failed(error) if everyones else Alone()
                for lease in leases.values():
                    lease.flight.settle(outcome)
                raise
        fills = []
        for key in keys:
            if key in leases:
                fills += self._fill(key, leases[key], load.why_not_stored)
            else:
                self.tell("bypass", key, "a write to it is being committed")
        await self._store(fills, leases)
        if self.refresh and leases:
            await self.query.forget(self.call, list(leases))

    async def _load(self, keys: Sequence[str]) -> None:
        for key in keys:
            self.tell("load", key)
        loaded = await self.load([self._at[key] for key in keys], self.own_session)
        for key, value in zip(keys, loaded, strict=True):
            self.values[key] = None if value is None else self.query.codec.convert(value)

    def _fill(self, key: str, lease: Lease, why: str | None) -> list[tuple[str, str, bytes, int]]:
        """Tell those who wait for this key, and give what is to be stored; nothing if it must not be."""
        query, value = self.query, self.values[key]
        raw: bytes | None = ABSENT
        reason = None if query.policy.negative_ms is not None and query.stores_absent else "it is not there"
        outcome: Outcome = Absent()
        if value is not None:
            raw, reason = query.encoded(value, [])
            outcome = Alone() if raw is None else Landed(raw, (value,) if query.codec.shared else None)
        lease.flight.settle(outcome if why is None else Alone())
        if raw is None or why is not None or reason is not None:
            self.tell("unstored", key, why or reason or "")
            return []
        return [(key, lease.token, raw, query.ttl_ms(value))]

    async def _store(self, fills: list[tuple[str, str, bytes, int]], leases: dict[str, Lease]) -> None:
        try:
            with self.call.patience:
                stored = await self.call.store.fill_many(self.call.client, fills)
        except CacheUnavailableError as error:
            for key, *_ in fills:
                self.tell("unavailable", key, str(error))
            return
        for (key, *_), done in zip(fills, stored, strict=True):
            if done:
                del leases[key]
                self.tell("fill", key)
            else:
                self.tell("unstored", key, LOST)

    async def alone(self, kind: Kind, why: str, keys: Sequence[str] | None = None) -> None:
        """Load for this caller only: these keys, or all that are missing."""
        keys = self.missing() if keys is None else keys
        for key in keys:
            self.tell(kind, key, why)
        if keys:
            with self.query.using(self.call.session):
                await self._load(keys)

    # --- what others load

    async def _wait(self, busy: Mapping[str, str]) -> None:
        """Wait for the holders of these leases, as long as `wait` says; then load."""
        looked_at, late = list[str](), list[str]()
        for key, holder in busy.items():
            if leads(holder):
                late.append(key)
                continue
            flight = self._watch(key).other(holder)
            if flight is None:
                looked_at.append(key)
            elif not await self._follow(key, flight):
                late.append(key)
        if looked_at and self._left() > 0:
            await self._watch(looked_at[0]).pause(self._left())
        else:
            late += looked_at
        for key in late:
            self._watch(key).close()
        await self.alone("bypass", "another caller's load is not for this one, or took longer than `wait`", late)

    async def _follow(self, key: str, flight: Flight) -> bool:
        """Take another caller's result; False if there is none for this one. Raises the other's error."""
        match await flight.join(max(0.0, self._left())):
            case Landed(raw, shared):
                self.tell("join", key)
                self.values[key] = shared[0] if shared is not None else await self.value(key, raw)
            case Failed(error):
                self.tell("join", key)
                if not missing_row(error):
                    raise error
                self.values[key] = None
            case Absent():
                self.tell("join", key)
                self.values[key] = None
            case Alone() | Late():
                return False
            case Again():
                pass
        return True

    def _watch(self, key: str) -> Watch:
        if key not in self._watches:
            self._watches[key] = Watch(self._flights)
        return self._watches[key]

    def _left(self) -> float:
        return self._deadline - asyncio.get_running_loop().time()

    def tell(self, kind: Kind, key: str, detail: str = "") -> None:
        """Count an event."""
        self.query.counters.tell(kind, key, detail)
