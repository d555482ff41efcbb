"""What one transaction will do to the cache, done around its COMMIT.

The order is the protocol's, and the model check refutes every other one: barriers over all that is reached; then the
sweep, which deletes entries with their leases; then the writer's own leases; COMMIT; fills under those leases; barriers
down. If a writer dies anywhere, its barriers and leases lapse, and nothing stale stays behind.
"""

from __future__ import annotations

import asyncio
import math
import secrets
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from time import monotonic
from typing import TYPE_CHECKING, Literal

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys import Reach, shown
from fastrdb.near import NearCache
from fastrdb.transport import Client, Health

from .interface import Backend, NamedRows, Sweep, Swept, Write
from .keyspace import EXACTLY, TAG, Target, common, divide, named, portions
from .repairs import Repairs

if TYPE_CHECKING:
    from fastrdb.events import Counters
    from fastrdb.keys import Image, Prefix

OnError = Literal["bypass", "raise"]

_MOST_BARRIERS = 64
"""A miss reads all barriers. A transaction that would set more than this (a bulk write, with prefixes of its own for
each row) bars their common head instead: this blocks more keys during the COMMIT, never fewer."""


class Writer:
    """The parts that all writers of a store share: backend, repairs, and the near cache, which a sweep clears.

    Args:
        on_error: whether a commit fails that Redis misses. Such a commit tries Redis in any case; the others
            do not wait for it while the circuit breaker is open.
        hide: writes a tag or a name for Redis.
        renewal_s: seconds after which a second `begin` sets all barriers again.
        sleep: for tests.
    """

    def __init__(
        self,
        backend: Backend,
        near: NearCache,
        health: Health,
        hide: Callable[[str], str] = str,
        *,
        on_error: OnError,
        renewal_s: float,
        sleep: Callable[[float], Awaitable[object]],
    ) -> None:
        self.hide = hide
        insisting = backend.insisting()
        self.backend = insisting if on_error == "raise" else backend
        self.keyspace, self.on_error, self.renewal_s = backend.keyspace, on_error, renewal_s
        self.loop = asyncio.get_running_loop()
        self._insisting, self._near, self._health = insisting, near, health
        self.columns: dict[str, set[str]] = {}
        self.repairs = Repairs(
            self._repair, self._unbar, backend.keyspace.everything, health, barrier_s=2 * renewal_s, sleep=sleep
        )

    async def sweep(
        self, client: Client, work: Sweep, *, insist: bool = False, counters: Counters | None = None
    ) -> Swept:
        """Do a backend's `begin` while the near cache keeps nothing that it reaches. Count what was deleted.

        What lies under a tag is known to Redis only. So nothing is kept that is on its way, and what was found goes.
        """
        wide, keys = divide(work.targets)
        backend, begun = self._insisting if insist else self.backend, monotonic()
        if work.names:
            self._near.cancel()
        with self._near.shut([target.head for target in wide], [*keys, *work.leases]):
            swept = await backend.begin(client, work, backend.link.budget(client))
            if swept.found:
                self._near.pushed(swept.found)
        if backend.trust in self._health and backend.link.may_have_left(client):  # mechanism: unhealed-master-refused
            backend.heal(client)
            raise CacheUnavailableError("begin", "other processes may still read from the former master")
        if work.names:
            self.note_columns(target.name.decode() for target in swept.added)
        if swept.deleted and counters is not None:
            self._count(counters, swept, [*work.targets, *work.names], monotonic() - begun)
        return swept

    def _count(self, counters: Counters, swept: Swept, targets: Sequence[Target], seconds: float | None) -> None:
        """Count what was deleted, for each prefix and table. The first one has the time of the whole sweep."""
        shown, by_target = self.keyspace.shown, Counter[str]()
        for reached, count in swept.dropped.items():
            by_target[shown(reached)] += count
        if (rest := swept.deleted - sum(by_target.values())) > 0:  # by their keys, or found without their range
            left = [target for target in targets if target.filter == EXACTLY] or targets
            by_target[", ".join(dict.fromkeys(map(shown, left)))] += rest
        for key, count in by_target.items():
            counters.deleted(key, count, seconds)
            seconds = None

    def note_columns(self, names: Iterable[str]) -> None:
        """Note which columns entries are tagged by."""
        for name in names:
            column, is_row, _ = name.partition("=")
            if is_row:
                table, _, column = column.partition(":")
                self.columns.setdefault(table, set()).add(shown(column))

    async def _repair(self, client: Client, token: str, fence: Sequence[Target], targets: Sequence[Target]) -> None:
        names = [target for target in targets if target.filter == TAG]
        others = [target for target in targets if target.filter != TAG]
        await self.sweep(client, Sweep(token, fence, others, names=names), insist=True)

    async def _unbar(self, client: Client, barred: Iterable[tuple[str, Sequence[Target]]]) -> None:
        barriers = defaultdict[bytes, list[bytes]](list)
        for token, targets in barred:
            for target in targets:
                # Of tags, fills read barriers that have lapsed, too.
                for shard in self.keyspace.places(target) if target.filter != TAG else ():
                    barriers[shard.barriers].append(target.barrier(token))
        for name, members in barriers.items():
            for portion in portions(members, 128):
                await self._insisting.link.many(client, [("ZREM", name, *portion)])


class Intent:
    """The changes of one transaction to the cache. Call `begin` before COMMIT, then `end` or `abandon`, once.

    `counters` are those of the function that first joined the transaction: all that is deleted is counted there.
    `loop` is the event loop in which `begin` and `end` can run.

    If `begin` is cancelled, do not commit: `end(False)` takes back what reached Redis, or it lapses.
    """

    def __init__(self, writer: Writer, client: Client, counters: Counters | None = None) -> None:
        self._writer, self._client, self._counters, self.loop = writer, client, counters, writer.loop
        self.token = secrets.token_hex(16)
        self._targets: dict[Target, None] = {}
        self._puts: dict[str, tuple[bytes, int]] = {}
        self._new: dict[Target, None] = {}
        self._new_puts: dict[str, None] = {}
        self._barred: dict[Target, None] = {}
        self._reach: Reach | None = None  # of tags: most transactions reach none
        self._names: dict[Target, None] = {}
        self._new_names: dict[Target, None] = {}
        self._tags: dict[str, Collection[str]] = {}  # of what was put
        self._leases: dict[bytes, bytes] = {}  # b"" as long as the lease is not known
        self._begun = -math.inf
        self._failed = False
        self._over = False

    @property
    def pending(self) -> bool:
        """Return whether something was added that `begin` has not covered yet."""
        return bool(self._new or self._new_puts or self._new_names)

    def add(self, prefixes: Iterable[Prefix] = (), keys: Iterable[str] = (), images: Sequence[Image] = ()) -> None:
        """Invalidate these too. A value that was put under one of them before is dropped: it may be out of date."""
        names = self._writer.keyspace
        if images:
            self._add_images(images)
        for prefix in prefixes:
            self._add(names.under(prefix))
            for key in [key for key in self._puts if prefix.matches(key)]:
                self._drop(key)
        for key in keys:
            self._add(names.exactly(key))
            self._drop(key)

    def put(self, key: str, raw: bytes, ttl_ms: int, tags: Collection[str] = ()) -> None:
        """Store `raw` under `key` for `ttl_ms` (at least 1) once committed; replaces an earlier put of the key.

        `tags` are those of the rows that it depends on: a writer that has only a tag finds it from `begin` on.

        The value must follow from rows that this transaction has written and so has locked: no other transaction can
        have changed them since this one read the rows.
        """
        self._puts[key] = (raw, ttl_ms)
        if tags:
            self._tags[key] = tags
        if self._writer.keyspace.entry(key) not in self._leases:
            self._new_puts[key] = None

    def distrust(self) -> None:
        """Store nothing of what was put so far, only invalidate it: a part of the transaction has been undone."""
        for key in list(self._puts):
            self._drop(key)

    async def begin(self) -> None:
        """Bar and delete what was added since the last time, and take the leases of what will be stored.

        Raises CacheUnavailableError if the store's `on_error` is "raise". Else what Redis did not do is repaired: with
        barriers at once, since COMMIT comes next, and once more after the COMMIT.
        """
        writer, now = self._writer, monotonic()
        late = now - self._begun > writer.renewal_s
        if late:  # what was barred before may lapse before this COMMIT is done
            leased = (writer.keyspace.exactly(key) for key in self._puts if key not in self._new_puts)
            self._new.update(dict.fromkeys([*self._targets, *leased]))
            self._new_names.update(self._names)
        targets, puts, again = list(self._new), list(self._new_puts), bool(self._leases)
        leases = dict.fromkeys((writer.keyspace.entry(key) for key in puts), b"")
        names = list(self._new_names)
        fence = [*self._fence(targets, leases), *names]
        # Noted before the commands are sent: whatever reaches the server, end() takes it back.
        self._barred.update(dict.fromkeys(fence))
        self._leases.update(leases)
        work = Sweep(self.token, fence, targets, leases, names, again=again)
        if self._reach is not None:
            work.rows = columns_named(self._reach)
        if self._tags:
            work.tags = self._tags_put()
        try:
            swept = await writer.sweep(self._client, work, counters=self._counters)
            if swept.added and self._reach is not None:
                self._barred.update(dict.fromkeys(swept.added))
                self._names.update(dict.fromkeys(swept.added))
                self._reach.add_names(target.name.decode() for target in swept.added)
        except CacheUnavailableError as error:
            if writer.on_error == "raise":
                raise
            self._failed = True
            writer.repairs.add(self._client, self._pending(), barred=True, reason=error)
        self._leases.update(leases)
        self._begun = now if late else self._begun
        for target in targets:
            self._new.pop(target, None)
        for target in names:
            self._new_names.pop(target, None)
        for key in puts:
            self._new_puts.pop(key, None)

    async def end(self, committed: bool) -> None:
        """Take the outcome: fill what was put if the transaction committed, and remove the barriers. Never fails.

        A barrier that Redis does not remove now lapses by itself. Whether it stood for as long as it had to is unknown
        then, so what it covered is repaired. So is a commit that `begin` did not cover: a repair before the COMMIT does
        not count, for its barrier may lapse before the COMMIT is done.
        """
        if self._over:
            return
        self._over = True
        writer = self._writer
        if committed and (self._failed or self.pending):
            writer.repairs.add(self._client, self._pending(), barred=False, reason="at a commit")
            return
        entries = {writer.keyspace.entry(key): put for key, put in self._puts.items()} if committed else {}
        writes = [Write(entry, self._leases.get(entry, b""), *put) for entry, put in entries.items()]
        released = [entry for entry in self._leases if entry not in entries]
        budget = writer.backend.link.budget(self._client)
        try:
            stamps = [target.name for target in self._names] if committed and self._names else []
            stood = await writer.backend.end(
                self._client, self.token, writes, released, list(self._barred), budget, stamps
            )
            # The server came back without the barriers, or these lapsed before the COMMIT: a reader may have stored
            # what it loaded before.
            if not stood and committed:  # mechanism: second-sweep
                await self._sweep_again()
        except CacheUnavailableError as error:
            if committed:
                writer.repairs.add(self._client, self._pending(), barred=False, reason=error)

    def abandon(self) -> None:
        """Take an unknown outcome: the barriers stay until each lapses, for the COMMIT may still be under way.

        A repair sets the same barriers again and deletes what has been stored since: a server that was started again
        has lost the barriers, and no `end` will check whether the barriers stood.
        """
        if self._over:
            return
        self._over = True
        if reached := self._pending():
            repairs, reason = self._writer.repairs, "the outcome of a COMMIT is unknown"
            repairs.add(self._client, reached, barred=True, reason=reason, instead_of=(self.token, [*self._barred]))

    def _add(self, target: Target) -> None:
        if target not in self._targets:
            self._targets[target] = self._new[target] = None

    def _drop(self, key: str) -> None:
        self._tags.pop(key, None)
        if self._puts.pop(key, None) is not None and self._new_puts.pop(key, self) is None:
            self._add(self._writer.keyspace.exactly(key))

    def _fence(self, targets: Iterable[Target], leases: Iterable[bytes]) -> list[Target]:
        """Return the targets to bar: single keys only where no prefix of this transaction bars them already."""
        wide, keys = divide(targets)
        heads = tuple(target.head for target in self._targets if not target.filter)
        single = {*keys, *leases}
        fence = [*wide, *(Target(key, EXACTLY) for key in single if not key.startswith(heads))]
        if len(fence) <= _MOST_BARRIERS:
            return fence
        return [common(fence)]

    def _reached(self) -> list[Target]:
        return [*self._targets, *map(self._writer.keyspace.exactly, self._puts)]

    def _pending(self) -> list[Target]:
        """Return the same for a repair, with whole tables: a repair has no list of the columns that were named."""
        return [*self._reached(), *(named(self._reach.coarse()) if self._reach is not None else ())]

    def _add_images(self, images: Sequence[Image]) -> None:
        self._reach = self._reach or Reach(hide=self._writer.hide)
        for image in images:
            self._reach.add(image)
            for key in [key for key, tags in self._tags.items() if any(map(image.hits, tags))]:
                self._drop(key)
        for target in named(self._reach.names):
            if target not in self._names:
                self._names[target] = self._new_names[target] = None

    def _tags_put(self) -> dict[bytes, bytes]:
        """Return the tags of what was put, as the scripts take them."""
        entry, hide = self._writer.keyspace.entry, self._writer.hide
        return {entry(key): "\n".join(map(hide, tags)).encode() for key, tags in self._tags.items()}

    async def _sweep_again(self) -> None:
        """Delete once more what was reached, now that it is committed."""
        rows = () if self._reach is None else columns_named(self._reach)
        await self._writer.sweep(self._client, Sweep(targets=self._reached(), names=list(self._names), rows=rows))


def columns_named(reach: Reach) -> NamedRows:
    """Return what the scripts need to find the columns in use that are not named."""
    return [(table.encode(), "\n".join(columns).encode()) for table, columns in reach.rows().items()]
