"""The face of the protocol: every operation on one Redis, one method each.

It has to do with Redis and bytes; not with sessions, values or functions. Three things keep a stale entry out: the
scripts (`lua/`), the order of steps of a backend and of `intent.py`, and what each method requires of its caller.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence
from itertools import repeat
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple, overload

from fastrdb.errors import CacheUnavailableError
from fastrdb.events import REPAIRING, UNANSWERED
from fastrdb.keys import Reach, hiding
from fastrdb.near import Near, NearCache, Token, Tracking
from fastrdb.transport import OTHER_DATA, Budget, Client, Health

from .cluster import ClusterBackend
from .intent import Intent, OnError, Writer, columns_named
from .interface import Ask, Backend, Entry, Limits, Outcome, Sweep, Tagged, Timed, Write
from .keyspace import GONE, named
from .readiness import Readiness, readiness
from .server import ServerBackend
from .watched import BoundedHealth, WatchedBound

if TYPE_CHECKING:
    from fastrdb.events import Counters
    from fastrdb.keys import Image, Prefix, Seal

    from .keyspace import Target
from .lua import load_script

DISCARD, RENEW = load_script("", "discard"), load_script("", "renew")
_LEAST_FRESH_S = 0.05
"""A lease stays fresh for `timeout`, but at least for so long: a loop that is busy must not lose its leases."""
_PIECES, _PIECE_BYTES = 32, 128
"""Of an entry that is to be deleted if it is still the same, at most so many pieces are compared: a megabyte holds the
server up for milliseconds. An entry of up to 4 KiB is compared as a whole."""


class Fill(NamedTuple):
    """An entry to be stored under `key` for `ttl_ms` milliseconds (at least 1), with the lease that was granted.

    `tags` are those of the rows that it depends on. `since` is what was granted with the lease.
    """

    key: str
    lease: bytes
    raw: bytes
    ttl_ms: int
    tags: tuple[str, ...] = ()
    since: bytes = b""


class Store:
    """The protocol on one Redis, for one event loop. It holds no client, except while a repair is under way.

    All methods that send something raise CacheUnavailableError when Redis does not do it, unless documented otherwise.

    Args:
        timeout: seconds that a round trip may take, and all that one call waits for Redis (`budget`).
        lease: seconds that the longest load takes that is stored.
        barrier: seconds that the longest COMMIT takes.
        chunk: how many index members one script reads, and how many scripts go at once.
        on_error: whether a commit fails that Redis misses.
        near: bounds of what is kept in this process.
        heads: what keys begin with that may be kept in this process; may grow.
        owned: what all keys of the cache's functions begin with; may grow.
        cluster: whether clients are those of a cluster.
        watched: seconds; entries are bypassed while the heartbeat of a watcher is older. None: without a watcher.
        seal: what hides the values in tags, if something does.
        sleep: for tests.
    """

    def __init__(
        self,
        *,
        namespace: str = "",
        timeout: float = 0.25,
        lease: float = 10.0,
        barrier: float = 10.0,
        chunk: int = 128,
        on_error: OnError = "bypass",
        near: Near | None = None,
        heads: Collection[str] = (),
        owned: Collection[str] = (),
        cluster: bool = False,
        watched: float | None = None,
        seal: Seal | None = None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        # All reasons not to read entries, in one place: a hit has time for one check.
        bounded, hide = None if watched is None else BoundedHealth(), hiding(seal)
        self.obstacles = Health() if bounded is None else bounded
        self.near = NearCache(near or Near(), before=f"{namespace}:".encode() if namespace else b"")
        fresh = max(timeout, _LEAST_FRESH_S)
        self.renewal_s = fresh / 3
        self._limits = Limits(timeout, _whole_ms(lease), _whole_ms(fresh), _whole_ms(barrier), chunk)
        self._tracking = Tracking(self.near, heads, cluster=cluster)
        self._backend: Backend
        if cluster:
            self._backend = ClusterBackend(namespace, self.obstacles, self._limits, owned, self._tracking.met)
        else:
            self._backend = ServerBackend(namespace, self.obstacles, self._limits, owned)
        self.keyspace, self._link = self._backend.keyspace, self._backend.link
        self._writer = Writer(
            self._backend, self.near, self.obstacles, hide, on_error=on_error, renewal_s=barrier / 2, sleep=sleep
        )
        self.repairs = self._writer.repairs
        self.watched = (
            None
            if watched is None or bounded is None
            else WatchedBound(self._backend, bounded, bound=watched, sleep=sleep)
        )

    @property
    def has_pending(self) -> bool:
        """Return whether Redis has missed an invalidation that has not been made up for."""
        return self.repairs.has_pending

    def bypass_reason(self, client: Client) -> str | None:
        """Return why entries may not be read now; None if reading is allowed. Starts what ends the reason."""
        if not self.obstacles:
            return None
        if self._link.closed_for(client):
            return UNANSWERED
        if self._backend.trust.other_data:  # before any repair: it cannot succeed without
            self._tracking.stop()  # changes may have come from another server
            self._backend.heal(client)
            return OTHER_DATA
        if self.repairs.has_pending:
            self.repairs.start()
            return REPAIRING
        if self.watched is not None and self.watched in self.obstacles:
            return self.watched.start(client)
        return None

    def name(self, key: str) -> str:
        """Return the name in Redis of the entry of `key`."""
        return self.keyspace.entry(key).decode()

    def budget(self, client: Client, keys: Collection[str] = (), *, read: bool = False) -> Budget:
        """Return how long a call for these keys may wait in all; with `read`, less what the latest read took."""
        names = [self.keyspace.entry(key) for key in keys] if read else ()
        return self._link.budget(client, names, portions=max(1, -(-len(keys) // self._limits.chunk)))

    # --- readers

    def get(self, client: Client, key: str) -> Awaitable[bytes | None]:
        """Return the entry, by one GET and nothing else."""
        # Handed on, not awaited: on a hit each level of coroutines is felt.
        return self._link.get(client, self.keyspace.entry(key))

    @overload
    async def get_many(
        self, client: Client, keys: Sequence[str], *, budget: Budget | None = ...
    ) -> list[bytes | None]: ...
    @overload
    async def get_many(
        self, client: Client, keys: Sequence[str], *, timed: Literal[True], budget: Budget | None = ...
    ) -> list[Timed | None]: ...
    async def get_many(
        self, client: Client, keys: Sequence[str], *, timed: bool = False, budget: Budget | None = None
    ) -> list[bytes | None] | list[Timed | None]:
        """Return the entries in the order of `keys`, in one round trip; `timed` with what is left of their lives."""
        if not keys:
            return []
        entries = [self.keyspace.entry(key) for key in keys]
        budget = budget or self.budget(client, keys)
        if not timed:
            return await self._backend.get_many(client, entries, budget)
        found = await self._backend.get_timed(client, entries, budget)
        return [None if raw is None or ttl_ms == GONE else Timed(raw, ttl_ms) for raw, ttl_ms in found]

    def near_token(self, client: Client, key: str, head: str) -> Token | None:
        """Return the token to keep an entry in this process with, to be taken before the entry is read; None if not.

        If not, tracking of the server's changes is started. `head` is what the key's pattern begins with.
        """
        token = self.near.begin(key, head) if self._tracking.covers(client) else None
        if token is None:
            self._tracking.follow(client)
        return token

    async def acquire(
        self,
        client: Client,
        tokens: Mapping[str, str],
        *,
        budget: Budget | None = None,
        refresh: bool = False,
        seen: Mapping[str, Timed] = MappingProxyType({}),
        tagged: bool = False,
    ) -> dict[str, Outcome]:
        """Ask for the right to load keys and store them, each with a token of its own, in one round trip.

        Begin the loads after this has returned. A call that is cancelled or fails may have been granted leases all the
        same: release them with the same tokens, or these keep others from storing until each lapses.

        Args:
            refresh: also where there are entries.
            seen: also where there is an entry with at most as long to live as one of these: the caller has seen it, and
                wants a newer one, or to load.
            tagged: what is loaded may have tags.
        """
        # No comprehension: with one, a crowd that waits holds cells for its variables.
        olds: Iterable[int | str] = repeat("*" if refresh else "")
        if seen and not refresh:
            olds = map(_ms, map(seen.get, tokens))
        asks = [*map(Ask, map(self.keyspace.entry, tokens), tokens.values(), olds, repeat(tagged))]
        return dict(zip(tokens, await self._backend.acquire(client, asks, budget), strict=True))

    async def get_tagged(self, client: Client, keys: Sequence[str]) -> list[Tagged | None]:
        """Return the entries with their tags, in one round trip; None where entry and tags are not in one place."""
        return await self._backend.get_tagged(client, [self.keyspace.entry(key) for key in keys])

    async def tags_of(self, client: Client, key: str) -> list[str]:
        """Return the tags that Redis has of the entry of `key`."""
        entry = self.keyspace.entry(key)
        (known,) = await self._link.many(client, (("HGET", self.keyspace.shard(entry).tagged, entry),))
        return known.decode().split("\n") if known else []

    def columns(self, table: str) -> frozenset[str]:
        """Return the columns of a table by which entries are tagged, as far as this process has met them.

        `table` and the columns are written as in tags. Scripts add what is missing here.
        """
        return frozenset(self._writer.columns.get(table, ()))

    async def fill(self, client: Client, fills: Iterable[Fill], budget: Budget | None = None) -> list[bool | bytes]:
        """Store what was loaded and give the leases back, in one round trip.

        Return of each True if it was stored, and False if the lease was lost. Else the tag that a writer has reached
        since the lease was granted, or UNKNOWN.
        """
        fills = list(fills)
        writes = [
            Write(self.keyspace.entry(key), lease, raw, ttl_ms, "\n".join(map(self._writer.hide, tags)).encode(), since)
            for key, lease, raw, ttl_ms, tags, since in fills
        ]
        for tags in {fill.tags for fill in fills if fill.tags}:
            self._writer.note_columns(tags)
        with self.near.shut(names=[write.entry for write in writes]):  # after a refresh there may be entries
            return await self._backend.fill(client, writes, budget)

    async def release(self, client: Client, tokens: Mapping[str, str]) -> None:
        """Release leases, in one round trip, each if it holds its token. May be repeated."""
        await self._backend.release(client, [(self.keyspace.entry(key), token) for key, token in tokens.items()])

    async def renew(self, client: Client, tokens: Mapping[str, str]) -> None:
        """Keep leases fresh, each if it holds its token: others go on waiting for the loads. To be repeated.

        Call it each `renewal_s` seconds. Without it other callers take the leases over after `timeout`.
        """
        lease, fresh_ms = self.keyspace.lease, self._limits.fresh_ms
        entries = {self.keyspace.entry(key): token for key, token in tokens.items()}
        await self._link.many(
            client, [RENEW.call((lease(entry),), (token, fresh_ms)) for entry, token in entries.items()]
        )

    async def discard(self, client: Client, key: str, raw: bytes, budget: Budget | None = None) -> bool:
        """Delete an entry that cannot be read, if it still holds `raw`: of a large one, some pieces are compared."""
        places = range(0, len(raw), max(_PIECE_BYTES, -(-len(raw) // _PIECES)))
        pieces = [part for at in places for part in (at, raw[at : at + _PIECE_BYTES])]
        call = DISCARD.call((self.keyspace.entry(key),), (len(raw), *pieces))
        (done,) = await self._link.many(client, (call,), budget=budget)
        return bool(done)

    async def inspect(self, client: Client, key: str) -> Entry:
        """Return what Redis holds for `key`."""
        return await self._backend.inspect(client, self.keyspace.entry(key))

    # --- writers

    async def invalidate(
        self,
        client: Client,
        prefixes: Iterable[Prefix] = (),
        keys: Iterable[str] = (),
        counters: Counters | None = None,
        images: Sequence[Image] = (),
    ) -> int:
        """Delete what prefixes, keys and images reach, with the leases. Return the number of entries deleted.

        The write behind it must be committed. Cancelled or failed, a part may have been deleted.
        """
        work = Sweep(targets=self.keyspace.targets(prefixes, keys))
        if images:
            reach = Reach(images, hide=self._writer.hide)
            work.names, work.rows = named(reach.names), columns_named(reach)
        return (await self._writer.sweep(client, work, counters=counters)).deleted

    async def invalidate_soon(
        self,
        client: Client,
        prefixes: Iterable[Prefix] = (),
        keys: Iterable[str] = (),
        counters: Counters | None = None,
        images: Sequence[Image] = (),
    ) -> int | None:
        """Do the same, but never fail: what Redis does not do now, or a cancellation cuts short, is repaired.

        Return None then.
        """
        prefixes, keys = list(prefixes), list(keys)
        left = self.keyspace.targets(prefixes, keys)
        if images:
            left += named(Reach(images, hide=self._writer.hide).coarse())
        try:
            return await self.invalidate(client, prefixes, keys, counters, images)
        except CacheUnavailableError as error:
            self.repairs.add(client, left, barred=False, reason=error)
            return None
        except asyncio.CancelledError:
            self.repairs.add(client, left, barred=False, reason="cancelled")
            raise

    def miss(self, client: Client, keys: Iterable[str], reason: str) -> None:
        """Delete keys as soon as Redis answers, which it does not do now."""
        self.repairs.add(client, self.keyspace.targets((), keys), barred=False, reason=reason)

    def intent(self, client: Client, counters: Counters | None = None) -> Intent:
        """Return a new record of what one transaction will do to the cache; `counters` count what it deletes."""
        return Intent(self._writer, client, counters)

    async def readiness(self, client: Client) -> Readiness:
        """Return whether this store can do its work. Raises nothing that Redis causes."""
        return await readiness(self, client, self._backend.trust, Fill)

    # --- the end of an event loop

    def add_pending(self, client: Client, targets: Mapping[Target, bool]) -> None:
        """Take over what another store of the same server has not repaired: targets, and whether with barriers."""
        if targets:
            self.repairs.take(client, targets, reason="the event loop of the commit has ended")

    def detach(self) -> dict[Target, bool]:
        """Drop all connections, since the event loop has ended. Return what has not been repaired."""
        self._link.forget()
        return self.repairs.left()

    async def aclose(self, limit: float = 1.0) -> None:
        """Wait at most `limit` seconds for repairs, then stop them; close all connections."""
        await self.repairs.aclose(limit)
        if self.watched is not None:
            await self.watched.aclose()
        await self._backend.aclose()
        await self._tracking.aclose()
        await self._link.aclose()


def _whole_ms(seconds: float) -> int:
    return max(1, round(seconds * 1000))


def _ms(seen: Timed | None) -> int | str:
    return "" if seen is None else seen.ttl_ms
