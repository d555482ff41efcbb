"""Many keys of a function for which the age of an entry matters: what `timed` does for one.

Nobody is chosen to reload early here: that is for single calls, which load one key and not all.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, assert_never

from fastrdb.errors import CacheUnavailableError
from fastrdb.transactions import sync_session, unreachable

from .batch import Batch, Loader
from .entry import MISS, Call, Entries
from .policy import Early, Fresh, Over, Stale, whole_ms
from .reloads import in_background, own_session


class TimedBatch(Batch):
    """A batch whose entries outlive their `exp`."""

    async def resolve(self) -> list[Any]:
        """As for every batch; past `exp`, and with the database away, what `fail_safe` lets pass."""
        try:
            return await super().resolve()
        except Exception as error:
            if self.refresh or not unreachable(error) or not await self._fall_back(error):
                raise
        return [self.values[key] for key in self.keys]

    async def look(self) -> None:
        """Take what is young enough, and have reloaded what is past its `exp`."""
        call, query, stale = self.call, self.query, dict[str, bytes]()
        for key in self.missing():
            self.values[key] = query.kept(call.store, key)
            if self.values[key] is not MISS:
                self.tell("near", key)
        keys = self.missing()
        tokens = {key: query.token(call.store, call.client, key) for key in keys}
        entries = await call.store.get_many_timed(call.client, keys)
        call.patience = call.store.patience(call.client, keys, read=True)
        for key, entry in zip(keys, entries, strict=True):
            value = MISS if entry is None else await self.value(key, entry.raw)
            if entry is None or value is MISS:
                continue
            self.seen_ms[key] = entry.ttl_ms
            left_ms = query.policy.left_ms(entry.ttl_ms, negative=value is None)
            decision = query.policy.decide(left_ms, load_ms=0, random=1)
            match decision:
                case Fresh() | Early():
                    self.tell("hit", key)
                    token = tokens[key]
                    if token is not None and value is not None:  # of what is not there, nothing is kept
                        query.keep(call.store, token, entry.raw, value, whole_ms(left_ms))
                case Stale():
                    self.tell("stale", key, "it is being reloaded")
                    stale[key] = entry.raw
                case Over():
                    continue
                case _:
                    assert_never(decision)
            self.values[key] = value
        if stale:
            reload = BatchReload(self.query, call, self.keys, self.load, stale, self.seen_ms)
            self.query.cache.reload(call.store, stale, reload.run)

    async def _fall_back(self, error: Exception) -> bool:
        """Take what is missing as it is in Redis now, which is never stored again; False if that is not all."""
        call, policy, missing = self.call, self.query.policy, self.missing()
        if self.query.closed(call.store, call.client, call.session) is not None:
            return False
        try:
            with call.patience:
                found = await call.store.get_many_timed(call.client, missing)
        except CacheUnavailableError:
            return False
        lefts = dict[str, float]()
        for key, entry in zip(missing, found, strict=True):
            value = MISS if entry is None else await self.value(key, entry.raw)
            if entry is None or value is MISS:
                return False
            lefts[key] = policy.left_ms(entry.ttl_ms, negative=value is None)
            if not policy.falls_back(lefts[key]):
                return False
            self.values[key] = value
        for key, left_ms in lefts.items():  # only now: none is answered but with all the others
            if left_ms > 0:
                self.tell("hit", key)
            else:
                self.tell("stale", key, f"{type(error).__name__}: {error}")
        return True


class BatchReload(Batch):
    """A reload of several keys that is nobody's call: one load, with a session of its own if it takes one."""

    def __init__(
        self,
        query: Entries,
        call: Call,
        keys: Sequence[str],
        load: Loader,
        seen: dict[str, bytes],
        seen_ms: dict[str, int],
    ) -> None:
        patience = call.store.patience(call.client, keys)
        super().__init__(query, replace(call, session=None, patience=patience), keys, load)
        self.seen = seen
        self.seen_ms = seen_ms

    async def run(self, keys: list[str]) -> None:
        """Load and store; raises nothing. It waits for nobody: who holds a lease does the same."""
        with in_background(self.query, *keys):
            async with self.leases(keys) as (_, leases):
                if leases:
                    async with own_session(self.query) as self.own_session:
                        self.call = replace(self.call, session=sync_session(self.own_session))
                        await self.lead(list(leases), leases)
                for key in leases:  # answered and not stored: no more of the old value then
                    with suppress(CacheUnavailableError):
                        await self.call.store.discard(self.call.client, key, self.seen[key])
