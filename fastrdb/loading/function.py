"""Get or load: the calls of a cached function, and what the function carries.

A hit is `GET` and decode; `misses` has the rest. The protocol of these outcomes is the store's, which session may read
and fill is decided in `session`.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys import MISSING, UNSAID
from fastrdb.transactions import (
    WROTE,
    has_transaction,
    next_order,
    plain_session,
    schema_map,
    state_of,
    sync_session,
    why_not_stored,
    work_on,
    wrote,
)
from fastrdb.values import DecodeError

from .entry import MISS as MISS
from .entry import Call as Call
from .entry import Entries
from .entry import no_store as no_store
from .misses import Miss
from .reloads import Refresh

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Explanation:
    """What a call would find: its key, what it would be, the TTL left (seconds), and why it may not be a hit."""

    key: str
    state: Literal["hit", "stale", "miss", "bypass"]
    ttl: float | None
    reasons: tuple[str, ...]


class CachedQuery(Entries):
    """One cached function: how its calls go, and what it carries."""

    __slots__ = ()

    # --- what the decorated function does

    def answer(self, function: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The coroutine of one call. Raises at once what is wrong with its arguments; all else waits for the await."""
        client, session, key = self.plan.locate(instance, args, kwargs)
        if session is not None:
            session = sync_session(session)
            if session is not None and schema_map(session) is not None:
                key = self.key(self.plan.bind(instance, args, kwargs), session)
        if client is MISSING:
            client = self.cache.own(self.plan)
        if client is None:
            return self._uncached(function, args, kwargs)
        return self._get(client, session, key, function, args, kwargs)

    def answering(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """What stands for the function itself, where no instance is bound to it: `answer` by the shortest way."""
        target, quick, cache, get = getattr(function, "__self__", None), self.plan.quick, self.cache, self._get
        if target is not None or quick is None:
            return lambda *args, **kwargs: self.answer(function, target, args, kwargs)

        def answer(*args: Any, **kwargs: Any) -> Any:
            try:
                client, session, key = quick(*args, **kwargs)
            except UNSAID:
                return self.answer(function, None, args, kwargs)  # says what is wrong
            if client is MISSING:
                client = cache.redis
            if client is None or (session is not None and (session := plain_session(session)) is None):
                return self.answer(function, None, args, kwargs)
            return get(client, session, key, function, args, kwargs)

        return answer

    async def _get(
        self, client: Any, session: Session | None, key: str, function: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        store = self.cache.store(client)
        reason = store.closed(client) if store.obstacles else None
        if session is not None and reason is None and wrote(session):
            reason = WROTE
        raw, obstacle = None, None
        if reason is None:
            try:
                raw = await store.get(client, key)
                if raw is not None:
                    value = self.codec.decode(raw)
                    self.counters.tell("hit", key)
                    return value
            except (CacheUnavailableError, DecodeError) as error:
                obstacle = error
        # Only now: a hit needs none of this.
        patience = store.patience(client, (key,), read=True)
        call = Call(key, client, store, session, partial(function, *args, **kwargs), patience)
        if reason is not None:
            return await self.alone(call, reason)
        return await self._missed(call, raw, obstacle)

    async def _missed(self, call: Call, raw: bytes | None, obstacle: Exception | None) -> Any:
        if isinstance(obstacle, CacheUnavailableError):
            return await self.without_redis(call, obstacle)
        if isinstance(obstacle, DecodeError) and raw is not None:
            await self.unreadable(call, raw, obstacle)
        self.counters.tell("miss", call.key)
        return await Miss(self, call).resolve()

    async def _uncached(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.codec.convert(await function(*args, **kwargs))

    async def refresh(self, run: Callable[[], Awaitable[Any]], values: dict[str, Any]) -> Any:
        """Load now, whatever is in Redis, and store."""
        call = self.call(run, values)
        if call is None:
            return self.codec.convert(await run())
        if (reason := self.closed(call.store, call.client, call.session)) is not None:
            return await self.alone(call, reason)
        return await Refresh(self, call).resolve()

    def call(self, run: Callable[[], Awaitable[Any]], values: dict[str, Any]) -> Call | None:
        """What the arguments come to; None where Redis is given as None."""
        client = self.cache.client(self.plan, values)
        if client is None:
            return None
        session = sync_session(self.plan.session(values))
        store = self.cache.store(client)
        return Call(self.key(values, session), client, store, session, run, store.patience(client))

    def key(self, values: dict[str, Any], session: Session | None = None) -> str:
        """The key without the namespace."""
        return self.plan.key(values, variant(session))

    def full_key(self, values: dict[str, Any]) -> str:
        """The key as it is in Redis."""
        key = self.key(values, sync_session(self.plan.session(values)))
        return f"{self.cache.namespace}:{key}" if self.cache.namespace else key

    # --- what it carries

    async def invalidate(self, values: dict[str, Any]) -> None:
        """Delete the entry: when the session's open transaction commits, or now where there is none."""
        call = self.call(nothing, values)
        if call is not None:
            await self.drop(call, [call.key])

    async def drop(self, call: Call, keys: Sequence[str]) -> None:
        """Delete entries where `call` says, as `invalidate` does."""
        for key in keys:
            self.counters.tell("invalidation", key)
        if call.session is not None and has_transaction(call.session):
            work_on(call.session, call.store, lambda: call.store.intent(call.client)).add(keys=keys)
        else:
            await self.cache.delete(call.client, (), keys)

    async def put(self, value: Any, values: dict[str, Any]) -> None:
        """Have `value` stored when the session's open transaction commits; without one, delete the entry."""
        call = self.call(nothing, values)
        if call is None:
            return
        if call.session is None or not has_transaction(call.session):
            await self.invalidate(values)
            return
        work = work_on(call.session, call.store, lambda: call.store.intent(call.client))
        raw, reason = self.encoded(value, [])
        # Only what the transaction has written is locked until COMMIT: else another writer may have come since.
        locked = wrote(call.session) and not state_of(call.session).autocommitted
        if raw is None or reason is not None or self.cache.switch.is_off() or not locked:
            work.add(keys=[call.key])
        else:
            work.put(call.key, raw, self.ttl_ms(value))

    async def explain(self, values: dict[str, Any]) -> Explanation:
        """Look without loading, storing or changing anything."""
        call = self.call(nothing, values)
        if call is None:
            return Explanation(self.key(values), "bypass", None, ("redis is None",))
        key = call.store.name(call.key)
        if (reason := self.closed(call.store, call.client, call.session)) is not None:
            return Explanation(key, "bypass", None, (reason,))
        try:
            entry = await call.store.inspect(call.client, call.key)
        except CacheUnavailableError as error:
            return Explanation(key, "bypass", None, (str(error),))
        reasons = []
        if call.session is not None and (old := await why_not_stored(call.session, next_order())) is not None:
            reasons.append(old)
        if entry.leased:
            reasons.append("another caller is loading or writing it")
        if entry.barred:
            reasons.append("a write to it is being committed")
        ttl = None if entry.ttl_ms is None else entry.ttl_ms / 1000
        return Explanation(key, "miss" if ttl is None else "hit", ttl, tuple(reasons))


def variant(session: Session | None) -> dict[str, str] | None:
    """What a session adds to the keys of its calls: it may read other tables than another."""
    schemas = schema_map(session) if session is not None else None
    return None if schemas is None else {"%schema": json.dumps(schemas, sort_keys=True)}


async def nothing(*_: object) -> None:
    """The function of a call that is only asked for its key, or what it invalidates."""
