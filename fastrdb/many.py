"""Get or load many keys of one cached function: one round trip for all hits, one load of the rest."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from .errors import CacheUnavailableError
from .loads import MISS, CachedQuery, Call, nothing, taking_notes
from .session import fresh_reads, unfit
from .store import Granted, Hit
from .works import mark

Loader = Callable[[list[int]], Awaitable[Sequence[Any]]]


async def get_many(query: CachedQuery, arguments: Sequence[dict[str, Any]], load: Loader) -> list[Any]:
    """The values of many calls of one function, in their order; what has none is None.

    Args:
        query: the cached function.
        arguments: of each call, as bound by its plan; all with the same Redis and session.
        load: is given the positions of the calls that are not in Redis, and gives their values in that order.
    """
    calls = [query.call(nothing, values) for values in arguments]
    known = [call for call in calls if call is not None]
    if (
        len(known) < len(calls)
        or not known
        or query.closed(known[0].store, known[0].client, known[0].session) is not None
    ):
        return list(await load(list(range(len(calls)))))
    return await _Many(query, known, load).resolve()


class _Many:
    """One call for many keys. Nobody joins its loads and it joins nobody's: who finds one of its leases waits for the
    entry, as for a load of another process."""

    __slots__ = ("query", "calls", "load", "first", "values")

    def __init__(self, query: CachedQuery, calls: list[Call], load: Loader) -> None:
        self.query = query
        self.calls = calls
        self.load = load
        self.first = calls[0]
        self.values: list[Any] = [MISS] * len(calls)

    async def resolve(self) -> list[Any]:
        try:
            raws = await self.first.store.get_many(self.first.client, [call.key for call in self.calls])
        except CacheUnavailableError as error:
            self.query.counters.tell("unavailable", self.first.key, str(error))
        else:
            for at, raw in enumerate(raws):
                await self._read(at, raw)
        if missing := self._missing():
            tokens = {self.calls[at].key: secrets.token_hex(16) for at in missing}
            try:
                await self._load(tokens)
            finally:
                self.query.cache.background(self._release(tokens))
        return self.values

    def _missing(self) -> list[int]:
        return [at for at, value in enumerate(self.values) if value is MISS]

    async def _read(self, at: int, raw: bytes | None) -> None:
        call = self.calls[at]
        if raw is not None:
            self.values[at] = await self.query.read_or_none(call, raw)
        self.query.counters.tell("miss" if self.values[at] is MISS else "hit", call.key)

    async def _load(self, tokens: dict[str, str]) -> None:
        """One call of the loader for what is missing; what is ours to store is stored."""
        leased = await self._acquire(tokens)
        missing = self._missing()
        if not missing:
            return
        since, session = mark(), self.first.session
        old = None if session is None else await unfit(session, since)
        with fresh_reads(session), taking_notes() as notes:
            loaded = await self.load(missing)
        for at, value in zip(missing, loaded, strict=True):
            self.query.counters.tell("load", self.calls[at].key)
            self.values[at] = self.query.codec.convert(value) if value is not None else None
        if not notes and old is None and (session is None or await unfit(session, since) is None):
            await self._fill([at for at in missing if self.calls[at].key in leased], tokens)

    async def _acquire(self, tokens: dict[str, str]) -> set[str]:
        """The keys that are ours to load and store; of others the entry may have come meanwhile."""
        try:
            outcomes = await self.first.store.acquire_many(self.first.client, tokens)
        except CacheUnavailableError as error:
            self.query.counters.tell("unavailable", self.first.key, str(error))
            return set()
        for at in self._missing():
            outcome = outcomes[self.calls[at].key]
            if isinstance(outcome, Hit):
                self.values[at] = await self.query.read_or_none(self.calls[at], outcome.raw)
        return {key for key, outcome in outcomes.items() if isinstance(outcome, Granted)}

    async def _fill(self, positions: list[int], tokens: dict[str, str]) -> None:
        query, fills = self.query, []
        for at in positions:
            key, value = self.calls[at].key, self.values[at]
            raw, reason = query.encoded(value, []) if value is not None else (None, "there is no such row")
            if raw is None or reason is not None:
                query.counters.tell("unstored", key, reason or "")
            else:
                fills.append((key, tokens[key], raw, query.ttl_ms(value)))
                query.counters.tell("fill", key)
        try:
            await self.first.store.fill_many(self.first.client, fills)
        except CacheUnavailableError as error:
            query.counters.tell("unavailable", self.first.key, str(error))

    async def _release(self, tokens: dict[str, str]) -> None:
        for key, token in tokens.items():
            await self.first.store.release(self.first.client, key, token)
