"""Get or load: the path of one cached call, from its key to its value.

A hit is `GET` and decode. A miss acquires the lease, joins whoever holds it, or goes past the cache; the protocol of
these outcomes is the store's, which session may read and fill is decided in `session`.
"""

from __future__ import annotations

import asyncio
import json
import random
import secrets
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy.orm import Session

from .cache import BaseCache, LoopState
from .calls import CallPlan
from .codec import Codec, DecodeError, encode_missing, missing_message
from .errors import CacheUnavailableError, OptionError
from .events import Counters
from .policy import Policy
from .session import fresh_reads, has_transaction, missing_row, no_result, schema_map, sync_session, unfit, wrote
from .singleflight import Again, Alone, Failed, Flight, Landed, Late, Watch
from .store import Barred, Busy, Granted, Hit, Store
from .transactions import mark, state_of, work_on

@dataclass(slots=True)
class Call:
    """One call of a cached function: where its entry is, and how to load it."""

    key: str
    client: Any
    store: Store
    session: Session | None
    run: Callable[[], Awaitable[Any]]


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a call would find: its key, whether it would be a hit, the TTL left (seconds), and why it may not be."""

    key: str
    state: Literal["hit", "miss", "bypass"]
    ttl: float | None
    reasons: tuple[str, ...]


MISS: Any = object()
"""No value: None is one."""
_notes: ContextVar[list[str] | None] = ContextVar("fastrdb_notes", default=None)


def no_store(reason: str) -> None:
    """Called inside a cached function: this result is right for this caller, but must not be stored."""
    notes = _notes.get()
    if notes is not None:
        notes.append(reason)


@contextmanager
def taking_notes() -> Iterator[list[str]]:
    """Inside, what `no_store` is told ends up in the list."""
    notes: list[str] = []
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


class CachedQuery:
    """One cached function: its plan, codec, policy and counters, in one cache."""

    __slots__ = ("cache", "plan", "codec", "policy", "counters")

    def __init__(self, cache: BaseCache, plan: CallPlan, codec: Codec, policy: Policy) -> None:
        self.cache = cache
        self.plan = plan
        self.codec = codec
        self.policy = policy
        self.counters: Counters = cache.counters(plan.function)

    # --- what the decorated function does

    async def get(self, run: Callable[[], Awaitable[Any]], values: dict[str, Any], *, refresh: bool = False) -> Any:
        """The value of the call with these arguments: from Redis, from another caller's load, or from `run()`."""
        call = self.call(run, values)
        if call is None:
            return self.codec.convert(await run())
        if (reason := self.closed(call)) is not None:
            return await self.alone(call, reason)
        if not refresh:
            try:
                raw = await call.store.get(call.client, call.key)
            except CacheUnavailableError as error:
                return await self.without_redis(call, error)
            if raw is not None and (value := await self.read(call, raw)) is not MISS:
                self.counters.tell("hit", call.key)
                return value
            self.counters.tell("miss", call.key)
        return await _Miss(self, call, refresh).resolve()

    def call(self, run: Callable[[], Awaitable[Any]], values: dict[str, Any]) -> Call | None:
        """What the arguments come to; None where Redis is given as None."""
        client = self.cache.client(self.plan, values)
        if client is None:
            return None
        session = sync_session(self.plan.session(values))
        return Call(self.key(values, session), client, self.cache.store(client), session, run)

    def key(self, values: dict[str, Any], session: Session | None = None) -> str:
        """The key without the namespace."""
        schemas = schema_map(session) if session is not None else None
        if schemas is None:
            return self.plan.key(values)
        return self.plan.key(values, {"%schema": json.dumps(schemas, sort_keys=True)})

    def full_key(self, values: dict[str, Any]) -> str:
        """The key as it is in Redis."""
        key = self.key(values, sync_session(self.plan.session(values)))
        return f"{self.cache.namespace}:{key}" if self.cache.namespace else key

    # --- what it carries

    async def invalidate(self, values: dict[str, Any]) -> None:
        """Delete the entry: when the session's open transaction commits, or now where there is none."""
        call = self.call(nothing, values)
        if call is None:
            return
        self.counters.tell("invalidation", call.key)
        if call.session is not None and has_transaction(call.session):
            work_on(state_of(call.session), call.store, lambda: call.store.intent(call.client)).add(keys=[call.key])
        else:
            await self.cache.delete(call.client, (), [call.key])

    async def put(self, value: Any, values: dict[str, Any]) -> None:
        """Have `value` stored when the session's open transaction commits; without one, delete the entry."""
        call = self.call(nothing, values)
        if call is None:
            return
        if call.session is None or not has_transaction(call.session):
            return await self.invalidate(values)
        work = work_on(state_of(call.session), call.store, lambda: call.store.intent(call.client))
        raw, reason = self.encoded(value, [])
        if raw is None or reason is not None:
            work.add(keys=[call.key])
        else:
            work.put(call.key, raw, self.ttl_ms(value))

    async def explain(self, values: dict[str, Any]) -> Explanation:
        """Look without loading, storing or changing anything."""
        call = self.call(nothing, values)
        if call is None:
            return Explanation(self.key(values), "bypass", None, ("redis is None",))
        key = call.store.name(call.key)
        if (reason := self.closed(call)) is not None:
            return Explanation(key, "bypass", None, (reason,))
        try:
            entry = await call.store.inspect(call.client, call.key)
        except CacheUnavailableError as error:
            return Explanation(key, "bypass", None, (str(error),))
        reasons = []
        if call.session is not None and (old := await unfit(call.session, mark())) is not None:
            reasons.append(old)
        if entry.leased:
            reasons.append("another caller is loading or writing it")
        if entry.barred:
            reasons.append("a write to it is being committed")
        ttl = None if entry.ttl_ms is None else entry.ttl_ms / 1000
        return Explanation(key, "miss" if ttl is None else "hit", ttl, tuple(reasons))

    # --- entries

    def encoded(self, value: Any, notes: list[str]) -> tuple[bytes | None, str | None]:
        """The entry of a value, and why it must not be stored."""
        try:
            raw = self.codec.encode(value)
            broken = self.codec.verify(raw, value)
        except Exception as error:  # whatever a user's serializer raises: the value is right, its entry is not
            return None, f"the value cannot be written as JSON: {error}"
        if broken is not None:
            return None, broken
        if notes:
            return raw, notes[0]
        if self.policy.cache_if is not None and not self.policy.cache_if(value):
            return raw, "cache_if"
        return raw, None

    def ttl_ms(self, value: Any) -> int:
        """Milliseconds that this value's entry lives."""
        return self.policy.ttl_ms(negative=value is None, random=random.random())

    async def read(self, call: Call, raw: bytes) -> Any:
        """The value of an entry. One that cannot be read is deleted (unless replaced meanwhile), and is a miss."""
        message = missing_message(raw) if raw[:1] == b" " else None
        if message is not None:
            raise no_result(message)
        try:
            return self.codec.decode(raw)
        except DecodeError as error:
            self.counters.tell("corrupt", call.key, str(error))
        try:
            await call.store.discard(call.client, call.key, raw)
        except CacheUnavailableError:
            pass
        return MISS

    async def read_or_none(self, call: Call, raw: bytes) -> Any:
        """As `read`, where a row that is known to be missing is None."""
        if missing_message(raw) is not None:
            return None
        return await self.read(call, raw)

    # --- past the cache

    def closed(self, call: Call) -> str | None:
        """Why the cache must not even be read."""
        if not call.store.ready:
            return "a commit that Redis has not heard of is being repaired"
        if call.session is not None and wrote(call.session):
            return "the session has written in its open transaction"
        return None

    async def alone(self, call: Call, reason: str) -> Any:
        self.counters.tell("bypass", call.key, reason)
        return await self.load(call)

    async def without_redis(self, call: Call, error: CacheUnavailableError) -> Any:
        self.counters.tell("unavailable", call.key, str(error))
        return await self.load(call)

    async def load(self, call: Call) -> Any:
        self.counters.tell("load", call.key)
        return self.codec.convert(await call.run())


class _Miss:
    """One caller's way from a miss to a value."""

    __slots__ = ("query", "call", "refresh", "token", "state", "deadline")

    def __init__(self, query: CachedQuery, call: Call, refresh: bool) -> None:
        self.query = query
        self.call = call
        self.refresh = refresh
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
                        return await query.alone(call, "a write to it is being committed")
                    case Busy(holder):
                        value = await self._wait(holder, watch)
                if value is not MISS:
                    return value

    async def _wait(self, holder: str, watch: Watch) -> Any:
        """What the holder of the lease loads, or MISS: look again."""
        flight = watch.other(holder)
        if flight is not None:
            return await self._follow(flight)
        if self._left() <= 0:
            return await self.query.alone(self.call, "another caller's load took longer than `wait`")
        await watch.pause(self._left())
        return MISS

    def _left(self) -> float:
        return self.deadline - asyncio.get_running_loop().time()

    async def _acquire(self) -> Hit | Granted | Busy | Barred:
        try:
            return await self.call.store.acquire(self.call.client, self.call.key, self.token, refresh=self.refresh)
        except (asyncio.CancelledError, CacheUnavailableError):
            self._release()  # the server may have granted it all the same
            raise

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
            case Alone():
                return await query.alone(call, "the load that it waited for was the leader's only")
            case Late():
                return await query.alone(call, "another caller's load took longer than `wait`")
            case Again():
                return MISS

    async def _lead(self, flight: Flight) -> Any:
        """Load under the lease, tell those who wait, store."""
        query, call = self.query, self.call
        since = mark()  # what began before the lease may look at an older snapshot
        stored = False
        try:
            with fresh_reads(call.session), taking_notes() as notes:
                value = await query.load(call)
            raw, reason = query.encoded(value, notes)
            old = await self._old(since)
            shared = (value,) if query.codec.shared else None
            flight.settle(Alone() if raw is None or old is not None else Landed(raw, shared))
            stored = await self._fill(raw, query.ttl_ms(value), old or reason)
            return value
        except Exception as error:
            negative = query.policy.negative_ms is not None and missing_row(error)
            old = await self._old(since) if negative else None
            flight.settle(Alone() if old is not None else Failed(error))
            if negative:
                reason = old or (notes[0] if notes else None)
                stored = await self._fill(encode_missing(str(error)), query.ttl_ms(None), reason)
            raise
        finally:
            if not stored:
                self._release()

    async def _old(self, since: int) -> str | None:
        """Why what was loaded is this caller's only: its session may have looked at something older or unpublished."""
        return None if self.call.session is None else await unfit(self.call.session, since)

    async def _fill(self, raw: bytes | None, ttl_ms: int, reason: str | None) -> bool:
        query, call = self.query, self.call
        if raw is None or reason is not None:
            query.counters.tell("unstored", call.key, reason or "")
            return False
        try:
            stored = await call.store.fill(call.client, call.key, self.token, raw, ttl_ms)
        except CacheUnavailableError as error:
            query.counters.tell("unavailable", call.key, str(error))
            return False
        if stored:
            query.counters.tell("fill", call.key)
        else:
            query.counters.tell("unstored", call.key, "the lease was lost: a write came between, or the load was slow")
        return stored


async def nothing() -> None:
    return None


def check_unused(options: Mapping[str, Any], owner: str) -> None:
    """Refuse options that this version does not have."""
    for name, value in options.items():
        if value:
            raise OptionError(f"{owner}: {name}={value!r}: not in this version")
