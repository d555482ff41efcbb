"""Values and entries of one cached function: which value an entry holds, which values may become one, and loading.

`misses` finds its way from a miss to a value with these; `loads` ties both to the calls of the decorated function.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastrdb.errors import CacheUnavailableError
from fastrdb.events import Counters
from fastrdb.keys import CallPlan
from fastrdb.protocol import Patience, Store
from fastrdb.runtime import BaseCache
from fastrdb.transactions import WROTE, RunningCall, RunningLoad, no_result, wrote
from fastrdb.transactions import no_store as no_store
from fastrdb.values import ABSENT, Codec, DecodeError, missing_message

from .policy import Pace, Policy

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from fastrdb.near import Token


@dataclass(slots=True)
class Call:
    """One call of a cached function: where its entry is, how to load it, and how long to wait for Redis."""

    key: str
    client: Any
    store: Store
    session: Session | None
    run: Callable[[], Awaitable[Any]]
    patience: Patience


MISS: Any = object()
"""No value: None is one."""


class Entries:
    """What one cached function makes of values and entries, in one cache: its codec, policy and counters."""

    __slots__ = ("cache", "plan", "codec", "policy", "counters", "pace")
    near = False
    """Whether entries are kept in this process as well: see `near_loads.Keeping`."""
    stores_absent = False
    """Whether what a load of many keys does not find is stored for as long as `negative_exp` says."""

    def __init__(self, cache: BaseCache, plan: CallPlan, codec: Codec, policy: Policy) -> None:
        self.cache = cache
        cache.owned.add(plan.head)
        self.plan = plan
        self.codec = codec
        self.policy = policy
        self.counters: Counters = cache.counters(plan.function)
        self.pace = Pace()

    # --- entries

    def encoded(self, value: Any, notes: list[str]) -> tuple[bytes | None, str | None]:
        """The entry of a value, and why it must not be stored."""
        try:
            raw = self.codec.encode(value)
            broken = self.codec.verify(raw, value)
        except Exception as error:  # noqa: BLE001  # whatever a user's serializer raises: the value is right, its entry is not
            return None, f"the value cannot be written as JSON: {error}"
        if broken is not None:
            return None, broken
        if len(raw) > self.cache.max_bytes:
            return raw, f"the entry has {len(raw):,} bytes, and max_bytes is {self.cache.max_bytes:,}"
        if notes:
            return raw, notes[0]
        if self.policy.cache_if is not None and not self.policy.cache_if(value):
            return raw, "cache_if"
        return raw, None

    def ttl_ms(self, value: Any) -> int:
        """Milliseconds that this value's entry is kept."""
        return self.policy.ttl_ms(negative=value is None, random=random.random())

    async def read(self, call: Call, raw: bytes) -> Any:
        """The value of an entry. One that cannot be read is deleted (unless replaced meanwhile), and is a miss."""
        try:
            return self.codec.decode(raw)
        except DecodeError as error:
            return await self.unreadable(call, raw, error)

    async def unreadable(self, call: Call, raw: bytes, error: DecodeError) -> Any:
        """What follows from an entry that has no value: NoResultFound, or a miss."""
        message = missing_message(raw)
        if message is not None:
            self.counters.tell("hit", call.key)
            raise no_result(message)
        if raw != ABSENT:  # else `cached_many` says so: it is not there
            self.counters.tell("corrupt", call.key, str(error))
        with suppress(CacheUnavailableError), call.patience:
            await call.store.discard(call.client, call.key, raw)
        return MISS

    async def forget(self, call: Call, keys: Iterable[str]) -> None:
        """What was loaded in their place is not stored: no more of the old values then."""
        with suppress(CacheUnavailableError):
            await call.store.invalidate(call.client, keys=keys)

    # --- what is kept in this process

    def kept(self, store: Store, key: str) -> Any:
        """The value that is kept of `key`, MISS if there is none."""
        return MISS

    def token(self, store: Store, client: Any, key: str) -> Token | None:
        """The token to `keep` an entry with that is about to be read; None if it cannot be kept."""
        return None

    def keep(self, store: Store, token: Token, raw: bytes, value: Any, ttl_ms: int) -> None:
        """Keep an entry for at most `ttl_ms`, or without end if that is -1."""

    # --- past the cache

    def closed(self, store: Store, client: Any, session: Session | None) -> str | None:
        """Why the cache must not even be read."""
        if session is not None and wrote(session):
            return WROTE
        return store.closed(client)

    async def alone(self, call: Call, reason: str) -> Any:
        """Load for this caller only; `reason` says why."""
        self.counters.tell("bypass", call.key, reason)
        with self.using(call.session):
            return await self.load(call)

    async def without_redis(self, call: Call, error: CacheUnavailableError) -> Any:
        """Load for this caller only, because Redis does not answer."""
        self.counters.tell("unavailable", call.key, str(error))
        with self.using(call.session):
            return await self.load(call)

    def using(self, session: Session | None) -> RunningCall:
        """Return the block for a load for one caller only."""
        return RunningCall(self.plan.function, self.plan.session_name, session)

    def loading(self, session: Session | None, tokens: Collection[str]) -> RunningLoad:
        """Return the block for a load under leases, with these tokens, whose result may become an entry."""
        return RunningLoad(self.plan.function, self.plan.session_name, session, tokens)

    async def load(self, call: Call) -> Any:
        """Run the function."""
        self.counters.tell("load", call.key)
        begun = monotonic()
        result = await call.run()
        self.pace.took((monotonic() - begun) * 1000)
        return self.codec.convert(result)
