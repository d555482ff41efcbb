"""The entries of one cached function: which value an entry holds, and which values may become one."""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastrdb.errors import CacheUnavailableError
from fastrdb.events import Counters
from fastrdb.keys import ANYTHING, END, UNSAID, CallPlan, is_fixed
from fastrdb.orm import Declared, NotPlainError, plain_copy
from fastrdb.protocol import Budget, Store, Timed
from fastrdb.registry import Registered
from fastrdb.runtime import Runtime
from fastrdb.singleflight import Absent, Alone, Failed, FlightOutcome, Landed
from fastrdb.transactions import (
    NO_ROW,
    WROTE,
    RunningLoad,
    is_followed,
    is_loading,
    loads_around,
    missing_row,
    no_store,
    running,
    session_s_own,
    wrote,
)
from fastrdb.values import ABSENT, Codec, DecodeError, decode_missing, encode_missing, is_mapped, is_missing, own_copy

from .policy import Decision, Pace, Policy, whole_ms

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from fastrdb.near import Kept, Token

OTHER_KEYS = "the arguments, or the session's schema_translate_map, have changed since its key was made"
_FOREVER_MS = -1  # what PTTL says of an entry that never expires
_NONE_SEEN, _NO_KEYS = dict[str, Timed](), list[str]()  # shared, and stay empty: a crowd makes no containers


@dataclass(slots=True)
class CallContext:
    """One call of a cached function: where its entries are, its session, and how long to wait for Redis.

    `run` runs the function. `keys_now` returns the keys of `run`, made from its present arguments or a session; None
    if these cannot be looked at. `copied`: the load has a copy of so many arguments. `tags_now` returns the tags that
    the function declares, for each key.
    """

    client: Any
    store: Store
    session: Session | None
    budget: Budget
    run: partial[Any] | None = None
    keys_now: Callable[[partial[Any], Session | None], Sequence[str] | None] | None = None
    copied: int = 0
    tags_now: Callable[[Session | None], Sequence[Sequence[str]]] | None = None

    def declared(self, asked: Sequence[str]) -> dict[str, tuple[str, ...]]:
        """Return the tags that the function declares, by key."""
        tags = () if self.tags_now is None else self.tags_now(self.session)
        return {key: tuple(each) for key, each in zip(asked, tags, strict=False)}

    def may_change(self, *, background: bool) -> bool:
        """Return whether a load may be that of other keys by now: see `other_keys`."""
        return self.run is not None and (background or not is_fixed(self.run, self.copied))

    def other_keys(self, asked: Sequence[str], session: Session | None) -> str | None:
        """Return why a load with the present arguments and session is not that of the keys; else None.

        The keys are made when the function is called. The caller may change a list before its load begins, or the
        tenant of its session. A reload in the background has a `session` of its own, which may be another tenant's.
        """
        if self.run is None or self.keys_now is None:
            return None
        try:
            keys = self.keys_now(self.run, session)
        except UNSAID:
            return OTHER_KEYS
        except Exception:  # noqa: BLE001  # of an object that was loaded when the key was made
            return None
        return None if keys is None or list(keys) == list(asked) else OTHER_KEYS


logger = logging.getLogger("fastrdb")
OTHER_CLIENT = "its client is not the one of the cache, which auto=True needs"
OLD = "a value whose exp is over is a part of it"
CACHE_IF, NOT_THERE = "cache_if", "it is not there"
MISS: Any = object()
"""The mark of a key without a value: None is a value."""


class Entries:
    """The entries of one cached function in one cache: codec, policy, counters.

    Attributes:
        near: whether this process keeps entries as well.
        aged: whether an entry is read together with the rest of its life, for `policy.decide` or to keep it.
        registered: its place in the registry, which lasts as long as this object.
        stores_absent: whether a load of many keys stores what it did not find, for as long as `negative_exp` says.
        depends_on: the rows that the function declares to read, or None.
        follows: whether the statements of its loads show which rows these read.
        tagged: whether either holds: then entries have tags.
        coarse: of the latest load, why tags are wide.
        logged_anything: the log has it that a load may have read anything.
        unstorable: why the latest result has no entry; None if it had one.
    """

    __slots__ = (
        *("cache", "plan", "codec", "policy", "counters", "pace"),
        *("near", "aged", "registered", "unstorable"),
        *("depends_on", "follows", "logged_anything", "tagged", "coarse"),
    )
    stores_absent = False

    def __init__(self, cache: Runtime, plan: CallPlan, codec: Codec, policy: Policy, *, near: bool = False) -> None:
        self.cache = cache
        cache.owned.add(plan.head)
        if near:
            cache.near_heads.add(plan.head)
        self.plan = plan
        self.codec = codec
        self.policy = policy
        self.counters: Counters = cache.counters(plan.function)
        self.pace = Pace()
        self.registered: Registered | None = None
        self.near = near
        self.aged = near or policy.timed
        self.unstorable: str | None = None
        self.depends_on: Declared | None = None
        self.follows = self.tagged = self.logged_anything = False
        self.coarse: tuple[str, ...] = ()

    def note_reads(self, client: Any, load: RunningLoad) -> None:
        """Note which tables a followed load has read, and log once if that may be any.

        What a function declares stands for all that cannot be read from its statements.
        """
        if not self.follows:
            return
        if client is not self.cache.redis:  # no commit reaches the server of another client
            load.notes.append(OTHER_CLIENT)
        if self.depends_on is not None:
            load.tags.discard(ANYTHING)
        elif not load.reads:
            load.add([ANYTHING], ["anything: no query of the load was seen"])
        if self.registered is not None:
            self.registered.reads.update(tag.removesuffix(END).partition(":")[0] for tag in load.tags)
        if ANYTHING in load.tags and not self.logged_anything:
            self.logged_anything = True
            why = next((each for each in load.coarse if each.startswith("anything")), "a statement cannot be read")
            logger.warning(
                "%s: each followed commit drops its entries, because it may read %s; depends_on= says what it reads",
                self.plan.function,
                why,
            )

    def encoded(self, value: Any) -> tuple[bytes | None, str | None]:
        """Return the entry of a value, and why the entry must not be stored."""
        raw = b""
        try:
            raw = self.codec.encode(value)
            self.unstorable = self.codec.verify(raw, value)
        except Exception as error:  # noqa: BLE001  # whatever a user's serializer raises: the value is right, its entry is not
            self.unstorable = f"the value cannot be written as JSON: {type(error.__cause__ or error).__name__}"
        if self.unstorable is not None:
            row = next(iter(value), None) if isinstance(value, list) else value
            if is_mapped(type(row)):
                self.unstorable = self.codec.refusal_of_row(row)
            return None, self.unstorable
        if len(raw) > self.cache.max_bytes:
            return raw, f"the entry is larger than max_bytes, {self.cache.max_bytes:,} bytes"
        if self.policy.cache_if is not None:
            verdict = self.policy.cache_if(value)
            if isinstance(verdict, Coroutine):
                verdict.close()
                return raw, "cache_if is async: it gives a coroutine, and must give True or False"
            if not verdict:
                return raw, CACHE_IF
        return raw, None

    def ttl_ms(self, value: Any) -> int:
        """Return for how many milliseconds the entry of `value` is kept."""
        return self.policy.ttl_ms(negative=value is None, random=random.random())

    async def unreadable(self, call: CallContext, key: str, raw: bytes, error: DecodeError) -> Any:
        """Delete an entry that holds no value, unless another one has replaced it; return MISS.

        Raises:
            NoResultFound: the entry says that there is no such row.
        """
        missing = decode_missing(raw, NO_ROW)
        if missing is not None:
            self.counters.count("hit", key)
            raise missing from None
        if raw != ABSENT:  # else `cached_many` has stored that there is no such row
            self.counters.count("corrupt", key, str(error))
        with suppress(CacheUnavailableError):
            await call.store.discard(call.client, key, raw, call.budget)
        return MISS

    def own_value(self, kept: Kept) -> Any:
        """Return the value of an entry that this process keeps; MISS if it is another function's object."""
        if kept.owner is not None:
            return own_copy(kept.value) if kept.owner is self.codec else MISS
        try:
            return self.codec.decode(kept.value)
        except DecodeError:
            return MISS

    def keep(self, store: Store, ticket: Token | None, entry: Timed, value: Any, left_ms: float) -> None:
        """Keep an entry in this process for as long as its `exp` lasts, if `ticket` says that it may be kept."""
        if ticket is not None:
            shared = self.codec.shared and self.codec.shares(value)
            kept = (own_copy(value), self.codec) if shared else (entry.raw, None)
            store.near.keep(ticket, *kept, size=len(entry.raw), ttl_ms=whole_ms(left_ms))

    async def read(
        self, call: CallContext, keys: Sequence[str], budget: Budget | None = None
    ) -> Sequence[Timed | None]:
        """Return what Redis has under `keys`, in one round trip. Raises CacheUnavailableError."""
        store, client = call.store, call.client
        if running.get() is not None and is_followed():
            return await self._read_followed(call, keys)
        if self.aged:
            return await store.get_many(client, keys, timed=True, budget=budget)
        found = await store.get_many(client, keys, budget=budget)
        return [None if raw is None else Timed(raw, _FOREVER_MS) for raw in found]

    async def _read_followed(self, call: CallContext, keys: Sequence[str]) -> Sequence[Timed | None]:
        """Return entries for a load that is followed, which depends on what each of them depends on.

        An entry without tags does not say what it depends on: then the function runs, and its statements say so.
        """
        found = await call.store.get_tagged(call.client, keys)
        entries = list[Timed | None]()
        for each in found:
            tags = each.tags if each is not None and each.raw is not None else None
            entries.append(None if each is None or each.raw is None or not tags else Timed(each.raw, each.ttl_ms))
            if tags:
                for load in loads_around():
                    load.add(tags.decode().split("\n"))
        return entries

    async def value(self, call: CallContext, key: str, raw: bytes, *, many: bool) -> Any:
        """Return the value of an entry; MISS if it has none, after deleting the entry.

        Of an id that is known to be missing, a call for `many` gets None, and a call for one gets NoResultFound.
        """
        try:
            return self.codec.decode(raw)
        except DecodeError as error:
            if many and (raw == ABSENT or is_missing(raw)):
                return None
            return await self.unreadable(call, key, raw, error)

    def made(self, value: Any, why: str | None, *, many: bool) -> tuple[bytes | None, str | None, FlightOutcome]:
        """Return the entry of what was loaded, why it must not be stored, and what followers get."""
        if why is not None:
            return None, why, Alone()
        if value is None and many:
            stores = self.policy.negative_ms is not None and self.stores_absent
            return ABSENT, None if stores else NOT_THERE, Absent()
        raw, reason = self.encoded(value)
        if raw is None:
            try:
                kept = plain_copy(value)  # the leader's caller may change its own
            except NotPlainError:
                return raw, reason, Alone()
            return raw, reason, Landed(b"", partial(plain_copy, kept))
        shared = self.codec.shared and self.codec.shares(value)
        return raw, reason, Landed(raw, partial(own_copy, own_copy(value)) if shared else None)

    def failed(
        self, error: Exception, why: str | None, *, many: bool, of_several: bool
    ) -> tuple[bytes | None, str | None, FlightOutcome]:
        """Return the same for a load that raised `error`: of several keys, it does not say which one it is about."""
        stored = self.policy.negative_ms is not None and not many and missing_row(error)
        outcome = Alone() if of_several or why is not None or session_s_own(error) else Failed(error)
        if not stored:
            return None, None, outcome
        raw = encode_missing(error, NO_ROW)
        return raw, why or (f"{type(error).__name__} would not come back as it is" if raw is None else None), outcome

    def bypass_reason(self, store: Store, client: Any, session: Session | None) -> str | None:
        """Return why the cache must not be read, None if it may be."""
        if session is not None and wrote(session):
            return WROTE
        return self.cache.bypass_reason(store, client)


class Reading:
    """One call's look at what there is under its keys.

    Args:
        entries: of the function.
        call: where the entries are.
        asked: the keys, without the namespace; a key may stand there twice.
        many: the call asks for several ids, and None stands for one that is not there. A call for one raises
            NoResultFound, or has None as a value.

    Attributes:
        values: by key; MISS where there is none yet.
        seen: entries whose place a load may take.
        stale, early: the keys of those that have a value and are to be reloaded.
        seconds: the time that the read from Redis took.
    """

    __slots__ = ("entries", "call", "asked", "many", "values", "seen", "stale", "early", "seconds")

    def __init__(self, entries: Entries, call: CallContext, asked: Sequence[str], *, many: bool) -> None:
        self.entries, self.call, self.asked, self.many = entries, call, asked, many
        self.values: dict[str, Any] = dict.fromkeys(asked, MISS)
        self.seen, self.stale, self.early = _NONE_SEEN, _NO_KEYS, _NO_KEYS
        self.seconds = 0.0

    def missing(self) -> list[str]:
        """Return the keys without a value."""
        return [key for key, value in self.values.items() if value is MISS]

    async def look(self) -> None:
        """Take what this process keeps and what Redis has, as old as the policy allows.

        Raises CacheUnavailableError.
        """
        self.seen, self.stale, self.early = {}, [], []
        entries, call, store = self.entries, self.call, self.call.store
        if entries.near and not is_loading():
            for key in self.missing():
                if (kept := store.near.lookup(key)) is not None:
                    self.values[key] = entries.own_value(kept)
                    if self.values[key] is not MISS:
                        entries.counters.count("near", key)
        keys, head, begun = self.missing(), entries.plan.head, monotonic()
        tickets = {key: store.near_token(call.client, key, head) for key in keys} if entries.near else {}
        found = await entries.read(call, keys)
        self.seconds = monotonic() - begun
        call.budget = store.budget(call.client, keys, read=True)
        for key, entry in zip(keys, found, strict=True):
            if entry is not None:
                value = await entries.value(call, key, entry.raw, many=self.many)
                if value is not MISS:
                    self._take(key, entry, value, tickets.get(key))
            if self.values[key] is MISS:
                entries.counters.count("miss", key)

    def _take(self, key: str, entry: Timed, value: Any, ticket: Token | None) -> None:
        entries, policy, count = self.entries, self.entries.policy, self.entries.counters.count
        left_ms = policy.left_ms(entry.ttl_ms, negative=value is None)
        load_ms = 0 if self.many else entries.pace.ms  # of many keys none is chosen: one load would be all of them
        decision = policy.decide(left_ms, load_ms=load_ms, random=1 - random.random())
        if decision is not Decision.OVER:
            self.values[key] = value
        if decision is Decision.FRESH:
            count("hit", key, seconds=self.seconds, size=len(entry.raw))
            if value is not None or not self.many:
                entries.keep(self.call.store, ticket, entry, value, left_ms)
            return
        self.seen[key] = entry
        if decision is Decision.STALE:
            count("stale", key, "it is being reloaded", seconds=self.seconds, size=len(entry.raw))
            self.stale.append(key)
            if running.get() is not None:
                no_store(OLD)
        elif decision is Decision.EARLY:
            self.early.append(key)

    async def fall_back(self, reason: str) -> bool:
        """Take what is missing as it is in Redis now, and never store it again; return False if that is not all."""
        call, entries, missing = self.call, self.entries, self.missing()
        if entries.bypass_reason(call.store, call.client, call.session) is not None:
            return False
        try:
            found = await entries.read(call, missing, call.budget)
        except CacheUnavailableError:
            return False
        fresh = dict[str, bool]()
        for key, entry in zip(missing, found, strict=True):
            value = MISS if entry is None else await entries.value(call, key, entry.raw, many=self.many)
            if entry is None or value is MISS:
                return False
            left_ms = entries.policy.left_ms(entry.ttl_ms, negative=value is None)
            if not entries.policy.falls_back(left_ms):
                return False
            self.values[key], fresh[key] = value, left_ms > 0
        for key in fresh:  # only now: none is answered but with all the others
            if fresh[key]:
                entries.counters.count("hit", key)
            else:
                entries.counters.count("stale", key, reason)
                no_store(OLD)
        return True
