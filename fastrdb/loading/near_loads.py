"""Get or load by way of what this process keeps itself: key, lookup, decode. Past that, all is as in `loads`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys import CallPlan
from fastrdb.protocol import Store
from fastrdb.runtime import BaseCache
from fastrdb.transactions import wrote
from fastrdb.values import Codec, DecodeError

from .entry import MISS, Call, Entries
from .function import CachedQuery
from .policy import Policy
from .timed import TimedQuery, check_session

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from fastrdb.near import Kept, Token


def query_of(cache: BaseCache, plan: CallPlan, codec: Codec, policy: Policy, *, near: bool) -> CachedQuery:
    """The query of a function with this policy; `near`: its entries are kept here, too. Raises OptionError."""
    check_session(plan, policy)
    kinds: dict[tuple[bool, bool], type[CachedQuery]] = {
        (False, False): CachedQuery,
        (False, True): NearQuery,
        (True, False): TimedQuery,
        (True, True): NearTimedQuery,
    }
    return kinds[policy.timed, near](cache, plan, codec, policy)


class Keeping(Entries):
    """What keeps the entries of a function in this process."""

    __slots__ = ()
    near = True

    def __init__(self, cache: BaseCache, plan: CallPlan, *parts: Any) -> None:
        super().__init__(cache, plan, *parts)
        cache.near_heads.add(plan.head)

    def kept(self, store: Store, key: str) -> Any:
        """The value that is kept of `key`, MISS if there is none."""
        kept = store.near.lookup(key)
        if kept is None:
            return MISS
        return kept.value if kept.owner is self.codec else self._made_of(kept)

    def token(self, store: Store, client: Any, key: str) -> Token | None:
        """The token to `keep` an entry with that is about to be read; None if it cannot be kept."""
        return store.near_token(client, key, self.plan.head)

    def keep(self, store: Store, token: Token, raw: bytes, value: Any, ttl_ms: int) -> None:
        """Keep an entry for at most `ttl_ms`, or without end if that is -1."""
        kind = (value, self.codec) if self.codec.shared else (raw, None)
        store.near.keep(token, *kind, size=len(raw), ttl_ms=ttl_ms)

    def _made_of(self, kept: Kept) -> Any:
        """The value of JSON that is kept. MISS where it is none of this function's, but another's: ask Redis."""
        if kept.owner is not None:  # an object of that other's
            return MISS
        try:
            return self.codec.decode(kept.value)
        except DecodeError:
            return MISS


class NearQuery(Keeping, CachedQuery):
    """A cached function whose entries are kept in this process as well."""

    __slots__ = ()

    async def _get(
        self, client: Any, session: Session | None, key: str, function: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        store = self.cache.store(client)
        kept = None if store.obstacles else store.near.lookup(key)
        if kept is not None and (session is None or not wrote(session)):
            value = kept.value if kept.owner is self.codec else self._made_of(kept)
            if value is not MISS:
                if (counters := self.counters).hook is None:  # here, since the call would be felt
                    counters.counts["near"] += 1
                else:
                    counters.tell("near", key)
                return value
        if self.closed(store, client, session) is None and (token := self.token(store, client, key)) is not None:
            raw, obstacle = None, None
            try:
                found = await store.get_timed(client, key)
                if found is not None:
                    raw = found.raw
                    value = self.codec.decode(raw)
                    self.keep(store, token, raw, value, found.ttl_ms)
                    self.counters.tell("hit", key)
                    return value
            except (CacheUnavailableError, DecodeError) as error:
                obstacle = error
            patience = store.patience(client, (key,), read=True)
            call = Call(key, client, store, session, partial(function, *args, **kwargs), patience)
            return await self._missed(call, raw, obstacle)
        return await super()._get(client, session, key, function, args, kwargs)


class NearTimedQuery(Keeping, TimedQuery):
    """The same for a function for which the age of an entry matters: it is kept until its `exp` is over."""

    __slots__ = ()

    async def _get(
        self, client: Any, session: Session | None, key: str, function: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        store = self.cache.store(client)
        if not store.obstacles and (session is None or not wrote(session)):
            value = self.kept(store, key)
            if value is not MISS:
                self.counters.tell("near", key)
                return value
        return await super()._get(client, session, key, function, args, kwargs)
