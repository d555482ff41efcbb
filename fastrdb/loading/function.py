"""Get or load: the calls of a cached function, and what the function carries.

A hit is one read and a decode; `load` has the rest. Which session may read and fill, `transactions` decides.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import partial
from inspect import Parameter, signature
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from fastrdb.errors import CacheUnavailableError, OptionError
from fastrdb.invalidation import Put, enlist
from fastrdb.keys import MISSING, UNSAID, BoundCall, BoundMany, CallPlan, Inspected, Prefix, add_pairs, without_variant
from fastrdb.orm import Declared, readable
from fastrdb.protocol import Heartbeat
from fastrdb.runtime import Runtime, as_coroutine_of, disabled
from fastrdb.transactions import (
    has_transaction,
    is_expired,
    is_followed,
    is_loading,
    next_order,
    one_schema_map,
    plain_session,
    read_under,
    running,
    schema_map,
    session_of,
    why_not_stored,
    wrote,
)
from fastrdb.values import Codec, DecodeError

from .entry import MISS, CallContext, Entries
from .load import BARRED, Loading
from .policy import Decision, Policy
from .stored import Peeks, Stored
from .tagging import declared_tags
from .verifying import Verifying

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


@dataclass(frozen=True, slots=True)
class Explanation:
    """The entry that a call would find: its key and state, the TTL left (seconds), and why it may not be a hit.

    `depends_on` names the rows whose writes delete the entry, such as `users where id = 5`. `coarse` says of the latest
    load in this process why it depends on more rows than it needs. `watched` is the heartbeat of the watcher of writes
    from outside, and says whether the call goes past the cache because of it. None without `Cache(watched=)`.
    """

    key: str
    state: Literal["hit", "stale", "miss", "bypass"]
    ttl: float | None
    reasons: tuple[str, ...]
    depends_on: tuple[str, ...] = ()
    coarse: tuple[str, ...] = ()
    watched: Heartbeat | None = None


class CachedFunction(Entries):
    """One cached function: its calls, and what it carries.

    `returns` is the type of its results where that is not what the function declares, else MISSING.
    """

    __slots__ = ("returns", "_no_session_for_reloads", "_peeks", "_verifying", "_named_get", "_named_uncached")

    def __init__(self, cache: Runtime, plan: CallPlan, codec: Codec, policy: Policy, *, near: bool = False) -> None:
        """Raise OptionError for reloads in the background that would have no session."""
        super().__init__(cache, plan, codec, policy, near=near)
        self.returns: Any = codec.type if codec.converts else MISSING
        if (why := self._background) and plan.session_name is not None and policy.session_factory is None:
            raise OptionError(
                f"{plan.function}: {why}: the load runs in the background, when the caller's session, parameter "
                f"'{plan.session_name}', may be closed: give session_factory="
            )
        if policy.session_factory is not None and plan.session_name is None:
            raise OptionError(f"{plan.function}: session_factory= is of no use: it has no parameter for a session")
        self._no_session_for_reloads = bool(why) and plan.session_name is None
        self._peeks = Peeks(self)
        self._named_get = as_coroutine_of(self.get_near if near else self.get, plan.function)
        self._verifying = Verifying(self, self._named_get, with_argument) if policy.verify else None
        if self._verifying is not None:
            self._named_get = self._verifying.answering()
        self._named_uncached = as_coroutine_of(self._uncached, plan.function)

    def declare(self, given: Any, found: Inspected, decorator: str) -> None:
        """Take what a function says that it depends on, if it says so."""
        if given is not None:
            names = ["self", *(each.name for each in found.parameters)]
            self.depends_on = Declared(given, owner=f"@{decorator} on {found.name}: depends_on", parameters=names)
            self.tagged = True

    # --- what the decorated function does

    def answer(self, function: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Return the coroutine of one call. Raises at once what is wrong with its arguments."""
        client, session, key = self.located(instance, args, kwargs)
        if client is None:
            return self._named_uncached(function, args, kwargs)
        return self._named_get(client, session, key, function, args, kwargs)

    def located(self, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Session | None, str]:
        """Return client, session and key of one call. Raises at once what is wrong with its arguments."""
        client, session, key = self.plan.locate(instance, args, kwargs)
        read_under(session := session_of(session))
        key, bind = with_variant(key, session), partial(self.plan.bind, instance, args, kwargs)
        if not one_schema_map(session, self.plan.other_sessions(kwargs), lambda: bind().arguments):
            return None, session, key
        return self.cache.own(self.plan) if client is MISSING else client, session, key

    def answering(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """Return what stands for the function where no instance is bound to it: `answer` by the shortest way."""
        target, quick, cache, get = getattr(function, "__self__", None), self.plan.quick, self.cache, self._named_get
        more_sessions = self.plan.may_have_more_sessions
        if target is not None or self.plan.other_sessions(()):
            return lambda *args, **kwargs: self.answer(function, target, args, kwargs)

        def answer(*args: Any, **kwargs: Any) -> Any:
            try:
                client, session, key = quick(*args, **kwargs)
            except UNSAID:
                return self.answer(function, None, args, kwargs)  # says what is wrong
            client = cache.redis if client is MISSING else client
            if client is None or (session is not None and (session := plain_session(session)) is None):
                return self.answer(function, None, args, kwargs)
            if more_sessions and self.plan.other_sessions(kwargs):
                return self.answer(function, None, args, kwargs)
            return get(client, session, key, function, args, kwargs)

        return answer

    async def get(
        self, client: Any, session: Session | None, key: str, function: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Return the value of one call. A hit does nothing that it need not."""
        store, counters = self.cache.store(client, self.plan), self.counters
        free = not store.obstacles and not disabled.get() and (session is None or not wrote(session))
        raw, failure = None, None
        followed = running.get() is not None and is_followed()  # then an entry is read together with its tags
        if free and not self.aged and not followed:
            sampled = counters.samplers and counters.is_sample()
            begun = monotonic() if sampled or counters.hooks else 0.0
            try:
                raw = await store.get(client, key)
                if raw is not None:
                    value = self.codec.decode(raw)
                    if begun:
                        counters.hit(key, monotonic() - begun, len(raw), sampled=bool(sampled))
                    else:  # here, since the call would be felt
                        counters.counts["hit"] += 1
                    return value
            except (CacheUnavailableError, DecodeError) as error:
                failure = error
            if sampled:
                counters.unsampled = 0
        read = free and not self.aged and not followed
        run, budget = partial(function, *args, **kwargs), store.budget(client, (key,), read=read)
        call = CallContext(client, store, session, budget, run, self.keys_now)
        if self.depends_on is not None:
            call.tags_now = partial(self._tags_now, run)
        return await self._missed(call, key, run, read=read, raw=raw, failure=failure)

    async def get_near(
        self, client: Any, session: Session | None, key: str, function: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        """Return the value of one call of a function whose entries this process keeps as well."""
        store = self.cache.store(client, self.plan)
        if (
            not store.obstacles
            and (kept := store.near.lookup(key)) is not None
            and (session is None or not wrote(session))
            and not disabled.get()
            and (running.get() is None or not is_loading())
        ):
            try:  # here what nearly all entries need, since a call would be felt
                value = self.codec.decode(kept.value) if kept.owner is None else self.own_value(kept)
            except DecodeError:
                value = MISS
            if value is not MISS:
                if (counters := self.counters).hooks:
                    counters.count("near", key)
                else:
                    counters.counts["near"] += 1
                return value
        return await self.get(client, session, key, function, args, kwargs)

    async def _missed(
        self, call: CallContext, key: str, run: Any, *, read: bool, raw: bytes | None, failure: Exception | None
    ) -> Any:
        """Return the value that `get` has not found. If it has `read`, there was nothing, `raw`, or a `failure`."""
        if self._no_session_for_reloads:
            self.refuse_session(call.session)
        loading = Loading(self, call, (key,), partial(self._run, run), many=False)
        if not read:
            reason = self.bypass_reason(call.store, call.client, call.session)
            return (await loading.resolve(reason))[0]
        if isinstance(failure, CacheUnavailableError):
            await loading.alone("unavailable", {key: str(failure)})
        else:
            if isinstance(failure, DecodeError) and raw is not None:
                await self.unreadable(call, key, raw, failure)
            self.counters.count("miss", key)
        return (await loading.resolve(look=False))[0]

    async def _run(self, run: Any, _: list[int], session: Any = None, /) -> Sequence[Any]:
        if session is not None:
            run = with_argument(run, str(self.plan.session_name), session)
        begun = monotonic()
        result = await run()
        self.pace.took((monotonic() - begun) * 1000)
        return (result,)

    async def _uncached(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return self.codec.convert(await function(*args, **kwargs))

    @property
    def _background(self) -> str:
        """The option because of which loads run in the background; "" for none."""
        if self.policy.stale_ms:
            return f"stale={self.policy.stale_ms / 1000:g}"
        return f"verify={self.policy.verify:g}" if self.policy.verify else ""

    def refuse_session(self, session: Session | None) -> None:
        """Raise OptionError for a session that is no parameter: a load in the background needs another one."""
        if session is not None and self._no_session_for_reloads:
            raise OptionError(
                f"{self.plan.function}: {self._background}: the load runs in the background, when the session that it "
                "finds in its instance or among its keyword arguments may be closed: take it as a parameter, and give "
                "session_factory="
            )

    # --- what it carries

    def bind(self, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, several: bool) -> Any:
        """Return a call of which only what the key is made of must be given; with *several*, of many ids."""
        return self.plan.bind(instance, args, kwargs, partial=True)

    async def refresh(self, run: partial[Any], values: Any) -> Any:
        """Load now, whatever is in Redis, and store; return the value."""
        call = self.call(values)
        if call is None or not self._has_one_map(call, values):
            return self.codec.convert(await run())
        key = self.key(values, call.session)
        call.run, call.keys_now = run, self.keys_now
        if self.depends_on is not None:
            call.tags_now = partial(self._tags_now, run)
        loading = Loading(self, call, (key,), partial(self._run, run), many=False, refresh=True)
        reason = self.bypass_reason(call.store, call.client, call.session)
        (value,) = await loading.resolve(reason, look=False)
        await self._refreshed(call, [key])
        return value

    async def _refreshed(self, call: CallContext, keys: Sequence[str]) -> None:
        """Delete what a refresh could not replace when the transaction commits that has written what was loaded."""
        if call.session is not None and wrote(call.session):
            await self._drop(call, keys)

    def call(self, values: BoundCall | BoundMany, keys: Collection[Any] = ()) -> CallContext | None:
        """Return what the arguments come to; None where Redis is given as None."""
        client = self.cache.client(self.plan, values)
        if client is None:
            return None
        store, session = self.cache.store(client, self.plan), session_of(values.session)
        read_under(session)
        return CallContext(client, store, session, store.budget(client, keys))

    def _has_one_map(self, call: CallContext, values: BoundCall) -> bool:
        others = self.plan.other_sessions(values.arguments)
        return one_schema_map(call.session, others, lambda: values.arguments)

    def key(self, values: BoundCall, session: Session | None = None) -> str:
        """Return the key without the namespace."""
        return with_variant(values.key, session)

    def keys_now(self, run: partial[Any], session: Session | None) -> Sequence[str] | None:
        """Return the keys of a call, made from its present arguments; None if a look at one would send a statement."""
        if any(map(is_expired, (*run.args, *run.keywords.values()))):
            return None
        _, given, key = self.plan.locate(getattr(run.func, "__self__", None), run.args, run.keywords)
        return (with_variant(key, session or session_of(given)),)

    def _tags_now(self, run: partial[Any], session: Session | None) -> Sequence[Sequence[str]]:
        """Return the tags that the function declares, made from the present arguments of a call."""
        bound = self.plan.bind(getattr(run.func, "__self__", None), run.args, run.keywords)
        return (declared_tags(self.depends_on, bound.arguments, session),)

    def keys(self, values: Any, session: Session | None) -> list[str]:
        """Return the keys of all entries that the arguments name."""
        return [self.key(values, session)]

    def full_key(self, values: BoundCall) -> str:
        """Return the key as it is in Redis."""
        key = self.key(values, session_of(values.session))
        return f"{self.cache.namespace}:{key}" if self.cache.namespace else key

    async def invalidate(self, values: BoundCall | BoundMany) -> int | None:
        """Delete the entries at the commit of the open transaction, or now. Return their number; None if to come."""
        call = self.call(values)
        return 0 if call is None else await self._drop(call, self.keys(values, call.session))

    async def _drop(self, call: CallContext, keys: Sequence[str]) -> int | None:
        keys = [without_variant(key) for key in keys]  # other versions, classes and schemas, too
        for key in keys:
            self.counters.count("invalidation", key)
        prefixes = map(Prefix.variants, keys)
        return await enlist(self.cache, call.client, call.session, prefixes, keys, counters=self.counters)

    async def put(self, value: Any, values: BoundCall) -> None:
        """Store `value` when the session's open transaction commits; without one, delete the entry."""
        call = self.call(values)
        if call is None:
            return
        key = self.key(values, call.session)
        can = call.session is not None and has_transaction(call.session) and self._has_one_map(call, values)
        raw, reason = self.encoded(value) if can and not self.follows else (None, None)  # its rows only a load shows
        if raw is None or reason is not None:
            await self._drop(call, [key])
        else:
            tags = declared_tags(self.depends_on, values.arguments, call.session)
            puts, plain = [Put(key, raw, self.ttl_ms(value), tags)], without_variant(key)
            await enlist(self.cache, call.client, call.session, [Prefix.variants(plain)], {plain} - {key}, puts)

    async def peek(self, instance: Any, args: Any, kwargs: Any, function: Any = None) -> Stored | None:
        """Return the entry that answers this call now, None without one. With `function`, a share is verified."""
        client, session, key = self.located(instance, args, kwargs)
        found = None if client is None else await self._peeks.peek(client, session, key)
        if found is not None and function is not None and self._verifying is not None:
            self._verifying.choose(client, key, partial(function, *args, **kwargs))
        return found

    async def explain(self, values: BoundCall) -> Explanation:
        """Look without loading, storing or changing anything. Once `exp` is over, `ttl` is below 0."""
        call = self.call(values)
        if call is None:
            return Explanation(self.key(values), "bypass", None, ("redis is None",))
        key = self.key(values, call.session)
        watched = None if call.store.watched is None else await call.store.watched.check(call.client)
        found = Explanation(call.store.name(key), "bypass", None, (), watched=watched)
        reason = self.bypass_reason(call.store, call.client, call.session)
        if reason is not None or not self._has_one_map(call, values):
            return replace(found, reasons=(reason or "its sessions have several schema maps",))
        try:
            entry = await call.store.inspect(call.client, key)
            if entry.leased and (ending := self.cache.here().tasks):  # such as a load that gives its lease back
                await asyncio.wait(set(ending), timeout=self.cache.timeout)
                entry = await call.store.inspect(call.client, key)
            tags = await call.store.tags_of(call.client, key) if self.tagged else []
            (timed,) = await call.store.get_many(call.client, (key,), timed=True) if self.policy.timed else (None,)
        except CacheUnavailableError as error:
            return replace(found, reasons=(str(error),))
        found, reasons = replace(found, depends_on=tuple(map(readable, tags)), coarse=self.coarse), []
        if call.session is not None and (old := await why_not_stored(call.session, next_order())) is not None:
            reasons.append(old)
        reasons += ["another caller is loading or writing it"] * entry.leased + [BARRED] * entry.barred
        if (latest := self.counters.latest) is not None and entry.ttl_ms is None:
            reasons.append(f"the latest result was not stored: {latest} ({self.counters.causes[latest]} in all)")
        found = replace(found, state="miss" if entry.ttl_ms is None else "hit", reasons=tuple(reasons))
        if entry.ttl_ms is None:
            return found
        found = replace(found, ttl=entry.ttl_ms / 1000)
        return found if timed is None else self._aged(found, timed.raw, timed.ttl_ms)

    def _aged(self, found: Explanation, raw: bytes, ttl_ms: int) -> Explanation:
        """Return the explanation of an entry whose age matters."""
        try:
            left_ms = self.policy.left_ms(ttl_ms, negative=self.codec.decode(raw) is None)
        except DecodeError:
            return found
        found, decision = replace(found, ttl=left_ms / 1000), self.policy.decide(left_ms, load_ms=0, random=1)
        if decision is Decision.STALE:
            return replace(found, state="stale", reasons=(*found.reasons, "its exp is over"))
        if decision is Decision.OVER:
            over = "its exp is over, and it is kept for fail_safe"
            return replace(found, state="miss", reasons=(*found.reasons, over))
        return found


def with_variant(key: str, session: Session | None) -> str:
    """Return the key with what a session adds to the keys of its calls: it may read other tables than another one."""
    schemas = schema_map(session) if session is not None else None
    return key if schemas is None else add_pairs(key, {"%schema": schemas})


def with_argument(call: partial[Any], name: str, value: object) -> partial[Any]:
    """Return the call with another value for one of its parameters."""
    declared = signature(call.func)
    bound = declared.bind(*call.args, **call.keywords)
    if declared.parameters[name].kind is Parameter.POSITIONAL_ONLY:
        bound.apply_defaults()  # what stands before it cannot be left out
    bound.arguments[name] = value
    return partial(call.func, *bound.args, **bound.kwargs)
