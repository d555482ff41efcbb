"""Get or load by way of what this process keeps itself: key, lookup, decode. Past that, all is as in `loads`."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from .codec import DecodeError
from .entries import MISS, Call
from .errors import CacheUnavailableError
from .loads import CachedQuery
from .session import wrote

if TYPE_CHECKING:
    from sqlalchemy.orm import Session


class NearQuery(CachedQuery):
    """A cached function whose entries are kept in this process as well."""

    __slots__ = ()

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.cache.near_heads.add(self.plan.head)

    async def _get(
        self, client: Any, session: Session | None, key: str, function: Any, args: tuple[Any, ...], kwargs: Any
    ) -> Any:
        store = self.cache.store(client)
        kept = None if store.obstacles else store.near.lookup(key)
        if kept is not None and (session is None or not wrote(session)):
            owner, value = kept.owner, kept.value
            if owner is None:
                value = self._decoded(value)
            elif owner is not self.codec:  # another function's object
                value = MISS
            if value is not MISS:
                self.counters.tell("near", key)
                return value
        if (
            self.closed(store, client, session) is None
            and (token := store.near_token(client, key, self.plan.head)) is not None
        ):
            raw, obstacle = None, None
            try:
                found = await store.get_timed(client, key)
                if found is not None:
                    raw = found.raw
                    value = self.codec.decode(raw)
                    kind = (value, self.codec) if self.codec.shared else (raw, None)
                    store.near.keep(token, *kind, size=len(raw), ttl_ms=found.ttl_ms)
                    self.counters.tell("hit", key)
                    return value
            except (CacheUnavailableError, DecodeError) as error:
                obstacle = error
            call = Call(key, client, store, session, partial(function, *args, **kwargs))
            return await self._missed(call, raw, obstacle)
        return await super()._get(client, session, key, function, args, kwargs)

    def _decoded(self, raw: bytes) -> Any:
        """The value of JSON that is kept; MISS where it is another function's and no value of this one: ask Redis."""
        try:
            return self.codec.decode(raw)
        except DecodeError:
            return MISS
