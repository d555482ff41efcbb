"""The store room's door: every operation of the protocol on one Redis, one method each.

It knows Redis and bytes; not sessions, not values, not functions. What keeps a stale entry out is in the scripts
(`lua/`), in the order of steps of `intent.py`, and in what the methods here say they need from their caller.
"""

from __future__ import annotations

import asyncio
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal

from fastrdb.errors import CacheUnavailableError
from fastrdb.near import Near, NearCache, Token, Tracking
from fastrdb.transport import OTHER_DATA, Call, Client, Names, Obstacles, Reach, Script, Target
from fastrdb.transport import Patience as Patience
from fastrdb.transport import is_cluster as is_cluster

from . import layouts
from .intent import Intent, Room
from .layouts import Settings
from .outcomes import GONE, Asked, Fill
from .outcomes import Barred as Barred
from .outcomes import Busy as Busy
from .outcomes import Entry as Entry
from .outcomes import Granted as Granted
from .outcomes import Hit as Hit
from .outcomes import Outcome as Outcome
from .outcomes import Timed as Timed
from .repairs import Repairs

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence


_COMPARE_DELETE = Script.load("compare_delete")


class Store:
    """The protocol on one Redis, for one event loop; holds no client but while a repair is under way.

    Durations are seconds: `timeout` is the deadline of each round trip, and of all that one call waits (`patience`);
    `lease` the longest load that is stored, `barrier` the longest COMMIT. `chunk` is how many index members one script
    looks at, and how many scripts go at once. `cluster`: its clients are those of a cluster. `sleep` is for tests.
    `near` bounds what is kept in this process, `heads` is what the keys begin with that may be, `owned` what all of the
    cache's do: both may grow.

    All methods but those that say otherwise raise CacheUnavailableError when Redis does not do it.
    """

    def __init__(
        self,
        *,
        namespace: str = "",
        timeout: float = 0.25,
        lease: float = 10.0,
        barrier: float = 10.0,
        chunk: int = 128,
        on_error: Literal["bypass", "raise"] = "bypass",
        near: Near | None = None,
        heads: Collection[str] = (),
        owned: Collection[str] = (),
        cluster: bool = False,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self.near = NearCache(near or Near(), before=Names(namespace).before)
        self._tracking = Tracking(self.near, heads, cluster=cluster)
        met = self._tracking.met if cluster else None
        # All that entries may not be read for, in one place: on a hit one look has to do.
        self.obstacles = Obstacles()
        lease_ms, barrier_ms = (max(1, round(seconds * 1000)) for seconds in (lease, barrier))
        self._chunk = chunk
        settings = Settings(namespace, timeout, lease_ms, barrier_ms, chunk, self.obstacles, self.near, met, owned)
        self._layout = layout = layouts.cluster(settings) if cluster else layouts.one_server(settings)
        self._names, self._link, self._leases = layout.names, layout.link, layout.leases
        # A commit that may not go on without Redis tries it in any case; the others do not wait for it any more.
        self._sweeper = layout.insistent if on_error == "raise" else layout.sweeper
        self._repairs = Repairs(layout.insistent, self.obstacles, sleep)
        self._room = Room(
            layout.names,
            self._sweeper,
            self._repairs,
            on_error,
            renew=barrier / 2,
            loop=asyncio.get_running_loop(),
            patience=self.patience,
        )

    @property
    def owes(self) -> bool:
        """Whether Redis has yet to be told of an invalidation."""
        return self._repairs.owed

    def closed(self, client: Client) -> str | None:
        """Why entries may not be read for the time being; None if they may. Sees to it that this comes to its end."""
        if not self.obstacles:
            return None
        if self._link.closed_for(client):
            return "Redis has not answered lately"
        if self._layout.trust.other_data:  # before any repair: it cannot succeed without
            self._tracking.stop()  # who knows which server it was that told of changes
            self._layout.heal(client)
            return OTHER_DATA
        if self._repairs.owed:
            self._repairs.start()
            return "a commit that Redis has not heard of is being repaired"
        return None

    def name(self, key: str) -> str:
        """Give the name in Redis of the entry of `key`."""
        return self._names.entry(key).decode()

    def get(self, client: Client, key: str) -> Awaitable[bytes | None]:
        """Give the entry, by one GET and nothing else."""
        # Handed on rather than awaited: on a hit each level of coroutines is felt.
        return self._link.get(client, self._names.entry(key))

    async def get_many(self, client: Client, keys: Sequence[str]) -> list[bytes | None]:
        """Give the entries in the order of `keys`, by one MGET."""
        return await self._leases.get_many(client, [self._names.entry(key) for key in keys]) if keys else []

    def near_token(self, client: Client, key: str, head: str) -> Token | None:
        """Give the token to keep an entry in this process with, before it is asked for; None if it cannot be kept.

        If not, it is seen to that the server tells of changes, so that it can be some time later. `head` is what the
        key's pattern begins with.
        """
        token = self.near.begin(key, head) if self._tracking.covers(client) else None
        if token is None:
            self._tracking.follow(client)
        return token

    async def get_timed(self, client: Client, key: str) -> Timed | None:
        """Give the entry with what is left of its life, in one round trip; None too if it went in between."""
        (found,) = await self.get_many_timed(client, (key,))
        return found

    async def get_many_timed(self, client: Client, keys: Sequence[str]) -> list[Timed | None]:
        """Give the entries in the order of `keys`, each with what is left of its life, in one round trip."""
        found = await self._leases.get_timed(client, [self._names.entry(key) for key in keys]) if keys else []
        return [None if raw is None or ttl_ms == GONE else Timed(raw, ttl_ms) for raw, ttl_ms in found]

    def patience(self, client: Client, keys: Collection[str] = (), *, read: bool = False) -> Patience:
        """How long a call for these keys may wait for Redis in all; what the `read` that just returned took counts."""
        names = [self._names.entry(key) for key in keys] if read else ()
        return self._link.patience(client, names, portions=max(1, -(-len(keys) // self._chunk)))

    async def acquire(
        self, client: Client, key: str, token: str, *, refresh: bool = False, seen_ms: int | None = None
    ) -> Outcome:
        """Ask for the right to load `key` and store it; with `refresh`, although there is an entry.

        With `seen_ms`, although there is one that has at most so long to live: the caller has seen it, and wants what
        has been stored since, or to load.

        The load must begin after this has returned. Who is cancelled in here, or gets an error, may have been granted
        the lease all the same: release it with the same token, or it keeps others from storing until it runs out.
        """
        (outcome,) = await self._leases.acquire(client, (self._asked(key, token, refresh, seen_ms),))
        return outcome

    async def acquire_many(
        self,
        client: Client,
        tokens: Mapping[str, str],
        *,
        refresh: bool = False,
        seen_ms: Mapping[str, int] = MappingProxyType({}),
    ) -> dict[str, Outcome]:
        """Ask for many keys, each with its token, in one round trip; what `acquire` says holds for each of them."""
        asked = [self._asked(key, token, refresh, seen_ms.get(key)) for key, token in tokens.items()]
        return dict(zip(tokens, await self._leases.acquire(client, asked), strict=True))

    async def fill(self, client: Client, key: str, token: str, raw: bytes, ttl_ms: int) -> bool:
        """Store what was loaded for `ttl_ms` (at least 1) and give the lease back; False if the lease was lost."""
        (stored,) = await self.fill_many(client, ((key, token, raw, ttl_ms),))
        return stored

    async def fill_many(self, client: Client, fills: Iterable[tuple[str, str, bytes, int]]) -> list[bool]:
        """Store many (key, token, raw, ttl_ms) in one round trip, and tell of each whether it was stored."""
        each = [Fill(self._names.entry(key), token, raw, ttl_ms) for key, token, raw, ttl_ms in fills]
        with self.near.shut(names=[fill.entry for fill in each]):  # a refresh: there may be an entry
            return await self._leases.fill(client, each)

    async def release(self, client: Client, key: str, token: str) -> None:
        """Give the lease back, if it is held by this token."""
        await self.release_many(client, {key: token})

    async def release_many(self, client: Client, tokens: Mapping[str, str]) -> None:
        """Give many leases back, in one round trip, each if it is held by its token."""
        await self._leases.release(client, [(self._names.entry(key), token) for key, token in tokens.items()])

    async def discard(self, client: Client, key: str, raw: bytes) -> bool:
        """Delete an entry that nobody can read, if it is this one still."""
        return bool(await self._link.script(client, Call(_COMPARE_DELETE, (self._names.entry(key),), (raw,))))

    async def invalidate(self, client: Client, prefixes: Iterable[Reach] = (), keys: Iterable[str] = ()) -> int:
        """Delete by hand what the prefixes and keys reach, with the leases; give the number of entries deleted.

        What it is for must be committed already. Cancelled or failed, it may have deleted a part.
        """
        with self.patience(client) as patience:
            return await self._sweeper.delete(client, self._targets(prefixes, keys), patience.renew)

    async def invalidate_soon(self, client: Client, prefixes: Iterable[Reach] = (), keys: Iterable[str] = ()) -> None:
        """Do as `invalidate`, but never fail: what Redis does not do now, or a cancellation cuts short, is owed."""
        targets = self._targets(prefixes, keys)
        try:
            with self.patience(client) as patience:
                await self._sweeper.delete(client, targets, patience.renew)
        except CacheUnavailableError as error:
            self._repairs.add(client, targets, barred=False, reason=error)
        except asyncio.CancelledError:
            self._repairs.add(client, targets, barred=False, reason="cancelled")
            raise

    async def inspect(self, client: Client, key: str) -> Entry:
        """Tell what Redis holds for `key`."""
        return await self._leases.inspect(client, self._names.entry(key))

    def intent(self, client: Client) -> Intent:
        """Give a new record of what one transaction will do to the cache."""
        return Intent(self._room, client)

    def owe(self, client: Client, targets: Mapping[Target, bool]) -> None:
        """Owe Redis what another store of the same server owed."""
        for barred in (False, True):
            if owed := [target for target, bars in targets.items() if bars is barred]:
                self._repairs.add(client, owed, barred=barred, reason="the event loop of the commit has ended")

    def lose(self) -> dict[Target, bool]:
        """Forget all connections, for the event loop has ended, and give what is still owed to Redis."""
        self._link.lose()
        return self._repairs.left()

    async def aclose(self, limit: float = 1.0, *, closing: bool = False) -> None:
        """Let repairs finish within `limit` seconds, then stop them; give connections back, or close them before."""
        await self._repairs.aclose(limit)
        await self._leases.aclose()
        await self._layout.trust.aclose()
        await self._tracking.aclose()
        await self._link.aclose(closing=closing)

    def _asked(self, key: str, token: str, refresh: bool, seen_ms: int | None) -> Asked:
        return Asked(self._names.entry(key), token, "*" if refresh else "" if seen_ms is None else seen_ms)

    def _targets(self, prefixes: Iterable[Reach], keys: Iterable[str]) -> list[Target]:
        names = self._names
        return [*dict.fromkeys([*map(names.under, prefixes), *map(names.exactly, keys)])]
