"""Functions for which the age of an entry matters: `stale`, `early`, `fail_safe`.

They read the entry together with what is left of its life, and `policy` says what that means. Only what ran out by time
is ever served: what was invalidated is not in Redis any more.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, assert_never

from fastrdb.errors import CacheUnavailableError, OptionError
from fastrdb.keys import CallPlan
from fastrdb.protocol import Timed
from fastrdb.transactions import unreachable
from fastrdb.values import DecodeError

from .entry import MISS, Call
from .function import CachedQuery, Explanation, nothing
from .misses import Miss
from .policy import Early, Fresh, Over, Policy, Stale, whole_ms
from .reloads import Background, Reload

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from fastrdb.near import Token


def check_session(plan: CallPlan, policy: Policy) -> None:
    """Refuse a reload in the background that would have no session of its own. Raises OptionError."""
    if policy.stale_ms and plan.session_name is not None and policy.session_factory is None:
        raise OptionError(
            f"{plan.function}: stale={policy.stale_ms / 1000:g}: the reload runs in the background, when the caller's "
            f"session, parameter '{plan.session_name}', may be closed: give session_factory="
        )
    if policy.session_factory is not None and plan.session_name is None:
        raise OptionError(f"{plan.function}: session_factory= is of no use to it: it has no parameter for a session")


class TimedQuery(CachedQuery):
    """A cached function whose entries outlive their `exp`, or are replaced before it ends."""

    __slots__ = ()

    async def _get(
        self, client: Any, session: Session | None, key: str, function: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        self.check_session_of_call(session)
        store = self.cache.store(client)
        run = partial(function, *args, **kwargs)
        call = Call(key, client, store, session, run, store.patience(client))
        if (reason := self.closed(store, client, session)) is not None:
            return await self.alone(call, reason)
        token = self.token(store, client, key)
        try:
            seen = await store.get_timed(client, key)
        except CacheUnavailableError as error:
            return await self.without_redis(call, error)
        call.patience = store.patience(client, (key,), read=True)
        value = MISS if seen is None else await self._seen(call, run, seen, token)
        return await self._reached(call, seen) if value is MISS else value

    def check_session_of_call(self, session: Session | None) -> None:
        """Refuse a session that the function does not take as a parameter: there is no other way to give it another."""
        if session is not None and self.policy.stale_ms and self.plan.session_name is None:
            raise OptionError(
                f"{self.plan.function}: stale={self.policy.stale_ms / 1000:g}: the reload runs in the background, when "
                "the session that it finds in its instance or among its keyword arguments may be closed: take it as a "
                "parameter, and give session_factory="
            )

    async def _seen(self, call: Call, run: partial[Any], seen: Timed, token: Token | None) -> Any:
        """The value of an entry, or of what has replaced it; MISS if it must be loaded first."""
        try:
            value = self.codec.decode(seen.raw)
        except DecodeError as error:
            return await self.unreadable(call, seen.raw, error)
        left_ms = self._left_ms(seen, value)
        decision = self.policy.decide(left_ms, load_ms=self.pace.ms, random=1 - random.random())
        match decision:
            case Fresh():
                self.counters.tell("hit", call.key)
                if token is not None:
                    self.keep(call.store, token, seen.raw, value, whole_ms(left_ms))
            case Stale():
                self.counters.tell("stale", call.key, "it is being reloaded")
                self._reload(call, run, seen, early=False)
            case Early() if self.policy.background:
                self.counters.tell("hit", call.key)
                self._reload(call, run, seen, early=True)
            case Early():
                return await self._early(call, seen, value)
            case Over():
                return MISS
            case _:
                assert_never(decision)
        return value

    def _reload(self, call: Call, run: partial[Any], seen: Timed, *, early: bool) -> None:
        self.cache.reload(call.store, [call.key], Background(self, call, seen, run, early=early).reload)

    async def _early(self, call: Call, seen: Timed, value: Any) -> Any:
        """What the caller loads if the lease is its own; else what it has seen."""
        loaded = await self._or_instead(call, Reload(self, call, seen, early=True).attempt())
        if loaded is not MISS:
            return loaded
        self.counters.tell("hit", call.key)
        return value

    async def _reached(self, call: Call, seen: Timed | None) -> Any:
        """What is loaded, by this caller or another."""
        self.counters.tell("miss", call.key)
        miss = Miss(self, call, seen_ms=None if seen is None else seen.ttl_ms)
        return await self._or_instead(call, miss.resolve())

    async def _or_instead(self, call: Call, loading: Awaitable[Any]) -> Any:
        """What is loaded; or the entry, if the database cannot be reached and nobody has invalidated it meanwhile."""
        try:
            return await loading
        except Exception as error:
            value = await self._fall_back(call, error) if unreachable(error) else MISS
            if value is MISS:
                raise
            return value

    async def _fall_back(self, call: Call, error: Exception) -> Any:
        """The entry that is there now, which is never stored again; MISS if there is none that may be served."""
        if self.closed(call.store, call.client, call.session) is not None:
            return MISS
        try:
            with call.patience:
                found = await call.store.get_timed(call.client, call.key)
        except CacheUnavailableError:
            return MISS
        value = MISS if found is None else await self.read(call, found.raw)
        if found is None or value is MISS:
            return MISS
        left_ms = self._left_ms(found, value)
        if not self.policy.falls_back(left_ms):
            return MISS
        if left_ms > 0:
            self.counters.tell("hit", call.key)
        else:
            self.counters.tell("stale", call.key, f"{type(error).__name__}: {error}")
        return value

    def _left_ms(self, entry: Timed, value: Any) -> float:
        return self.policy.left_ms(entry.ttl_ms, negative=value is None)

    async def explain(self, values: dict[str, Any]) -> Explanation:
        """As for every function; but `ttl` is what is left of `exp`: below 0 when that is over."""
        found = await super().explain(values)
        call = self.call(nothing, values)
        if found.state != "hit" or call is None:
            return found
        try:
            entry = await call.store.get_timed(call.client, call.key)
            if entry is None:
                return replace(found, state="miss", ttl=None)
            left_ms = self._left_ms(entry, self.codec.decode(entry.raw))
        except (CacheUnavailableError, DecodeError):
            return found
        ttl = left_ms / 1000
        match self.policy.decide(left_ms, load_ms=0, random=1):
            case Fresh() | Early():
                return replace(found, ttl=ttl)
            case Stale():
                return replace(found, state="stale", ttl=ttl, reasons=(*found.reasons, "its exp is over"))
            case Over():
                reason = "its exp is over, and it is kept for fail_safe"
                return replace(found, state="miss", ttl=ttl, reasons=(*found.reasons, reason))
