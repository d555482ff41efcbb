"""The protocol on one server: each step is one script.

Where the index is not complete, entries are found by a scan of all keys, once. An index is one key: a
server that must make room may evict it, and people delete keys by hand. The note of where the index is complete
lies in the index itself: so each sweep sees in its own script whether to rely on the index. The search deletes all
leases first, and then the entries: in one go over both, a lease still to come could become an entry where the search
has been already. The model check refutes that order.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from fastrdb.transport import Argument, Budget, Client, Command, Health, RedisClient

from .interface import (
    DEAD_PER_FILL,
    Ask,
    Backend,
    Barred,
    Busy,
    Entry,
    Granted,
    Hit,
    Limits,
    Outcome,
    Sweep,
    Swept,
    Tagged,
    Write,
)
from .keyspace import GONE, TAG, Keyspace, Range, Target, batches, divide, lists
from .lua import load_script
from .trust import Trust

logger = logging.getLogger("fastrdb")

ACQUIRE, FILL, RELEASE, INSPECT, BEGIN, END, SEARCH, COMPLETE_TAGS, NESTED = (
    load_script("server", name)
    for name in ("acquire", "fill", "release", "inspect", "begin", "end", "search", "complete_tags", "nested")
)
_INDEX_LOST, _TAGS_LOST = 1, 2
_SEARCH_COUNTS = {"leases": 1024, "entries": 256}
"""How many keys one script scans, so that it takes about a millisecond: the server itself picks the leases. A script
compares each key with each target, so it scans fewer keys where there are more targets than 16."""


class ServerBackend(Backend):
    """The steps on one server.

    Args:
        namespace: of the keys.
        health: holds the reasons not to read.
        limits: times and portions.
        heads: what keys of this process's functions begin with, without the namespace; may grow.
    """

    def __init__(self, namespace: str, health: Health, limits: Limits, heads: Collection[str]) -> None:
        self.keyspace = Keyspace(namespace)
        self.trust = Trust(self.keyspace, health)
        self.link = RedisClient(limits.timeout, self.trust, health)
        self.limits, self._heads = limits, heads
        self._shard = self.keyspace.shards[0]
        self._for_readers, self._for_writers = self._shard.all, self._shard.work
        self._logged_loss = False

    def heal(self, client: Client) -> None:
        """Start deleting untrusted data in the background."""
        self.trust.heal(partial(self.link.many, client, errors=True), partial(self._delete_all, client))

    async def _delete_all(self, client: Client) -> None:
        await self.link.left_by_all(client)  # mechanism: former-master-left
        await self.delete(client, [self.keyspace.everything])

    # --- readers

    async def get_many(
        self, client: Client, entries: Sequence[bytes], budget: Budget | None = None
    ) -> list[bytes | None]:
        """Return entries, read by one MGET."""
        (raws,) = await self.link.read(client, (("MGET", *entries),), budget)
        found: list[bytes | None] = raws
        return found

    async def get_timed(
        self, client: Client, entries: Sequence[bytes], budget: Budget | None = None
    ) -> list[tuple[bytes | None, int]]:
        """Return entries, each with its PTTL."""
        # An entry that is replaced between the two gets its successor's life. It was there when it was read.
        alone = len(entries) == 1
        values, *lives = await self.link.read(
            client, (("GET" if alone else "MGET", *entries), *(("PTTL", entry) for entry in entries)), budget
        )
        return list(zip([values] if alone else values, lives, strict=True))

    async def get_tagged(self, client: Client, entries: Sequence[bytes]) -> list[Tagged | None]:
        """Return entries, each with its tags, by a script each."""
        calls = [NESTED.call((entry, self._shard.index), ()) for entry in entries]
        return [Tagged(*reply) for reply in await self.link.many(client, calls, portion=self.limits.chunk)]

    async def acquire(self, client: Client, asks: Sequence[Ask], budget: Budget | None = None) -> list[Outcome]:
        """Ask for leases, by a script each."""
        replies = await self.link.many(client, self._acquires(asks), budget=budget, portion=self.limits.chunk)
        return [*map(self._outcome, replies)]

    def _acquires(self, asks: Sequence[Ask]) -> list[Command]:
        # Apart from `acquire`, where the cells of a comprehension would last for as long as Redis takes.
        lease, shared, before = self.keyspace.lease, self._for_readers, self.keyspace.before
        return [
            ACQUIRE.call(
                (entry, lease(entry), *shared),
                (token, self.limits.lease_ms, self.limits.barrier_ms, before, old, self.limits.fresh_ms, int(tagged)),
            )
            for entry, token, old, tagged in asks
        ]

    def _outcome(self, reply: list[bytes]) -> Outcome:
        match reply:
            case [b"hit", raw]:
                return Hit(raw)
            case [b"granted", held]:
                return Granted(held)
            case [b"busy", token]:
                return Busy(token.decode("ascii", "replace"))  # a token of no caller is that of no flight
            case [b"restarted"]:
                self.trust.distrust()
        return Barred()

    async def fill(self, client: Client, writes: Sequence[Write], budget: Budget | None = None) -> list[bool | bytes]:
        """Store under leases, by a script each."""
        lease, shared = self.keyspace.lease, self._for_readers
        more = (self.keyspace.leases, DEAD_PER_FILL, self.keyspace.before)
        calls = [
            FILL.call((entry, lease(entry), *shared), (held, raw, ttl_ms, *more, tags))
            for entry, held, raw, ttl_ms, tags, _ in writes
        ]
        replies = await self.link.many(client, calls, budget=budget, portion=self.limits.chunk)
        return [reply if isinstance(reply, bytes) else bool(reply) for reply in replies]

    async def release(self, client: Client, leases: Sequence[tuple[bytes, str]]) -> None:
        """Release leases, by a script each."""
        names, shard = self.keyspace, self._shard
        calls = [
            RELEASE.call(
                (entry, names.lease(entry), shard.index, shard.expiry),
                (token, names.leases, DEAD_PER_FILL),
            )
            for entry, token in leases
        ]
        await self.link.many(client, calls, portion=self.limits.chunk)

    async def inspect(self, client: Client, entry: bytes) -> Entry:
        """Return what Redis holds."""
        call = INSPECT.call((entry, self.keyspace.lease(entry), self._shard.barriers), ())
        ((ttl_ms, size, leased, barred),) = await self.link.many(client, (call,))
        return Entry(None if ttl_ms == GONE else ttl_ms, size, bool(leased), bool(barred))

    # --- writers

    async def begin(self, client: Client, work: Sweep, budget: Budget) -> Swept:
        """Bar, delete, take leases."""
        wide, keys = divide(work.targets)
        barriers = [target.barrier(work.token) for target in work.fence]
        ranges = [target.range() for target in (*wide, *work.names)]
        stamps = [target.name for target in work.names if target not in work.fence]
        own = [(entry, work.tags.get(entry, b"")) for entry in work.leases]
        # By hand, a token is only for the mark of tags that are begun anew.
        token = work.token or secrets.token_hex(16)
        limits, swept, bars = self.limits, Swept(), len(stamps) < len(work.names)
        settings = (token, limits.barrier_ms, limits.chunk, self.keyspace.leases, int(work.again), limits.lease_ms)
        for call in batches(limits.chunk, barriers, stamps, work.rows, ranges, keys, own, budget=budget):
            held = await self._begin(client, settings, swept, bars, *call, budget=budget)
            work.leases.update(dict.fromkeys((entry for entry, _ in call[-1]), held))
        return swept

    async def _begin(
        self,
        client: Client,
        settings: Sequence[Any],
        swept: Swept,
        bars: bool,
        barriers: list[bytes],
        stamps: list[bytes],
        rows: list[tuple[bytes, bytes]],
        ranges: list[Range],
        *rest: list[Any],
        budget: Budget,
    ) -> bytes:
        """Run begin.lua until it has done all ranges, and note in `swept` what it did. Return the lease.

        With `bars`, names that are added get barriers; without, the write is committed, and these names are stamped.
        """
        token, *_, spare, _lease = settings
        while True:
            call = BEGIN.call(self._for_writers, (*settings, *lists(barriers, stamps, rows, ranges, *rest)))
            (reply,) = await self.link.many(client, (call,), budget=budget)
            done, last, count, lost, held, names, counts, found = reply
            swept.deleted += int(count)
            swept.found += found
            for at, number in zip(counts[::2], counts[1::2], strict=True):
                swept.dropped[ranges[at][2:]] += number
            if not names and done == len(ranges):
                return bytes(held)
            budget.renew()
            added = [Target(TAG + name, TAG) for name in names] if names else []
            swept.added += added
            barriers = [target.barrier(token) for target in added] if bars else []
            stamps, rows = [] if bars else names, []
            ranges = [*ranges[done:], *(target.range() for target in added)]
            if lost == _INDEX_LOST:
                keys = [each for each in ranges if each.filter != TAG]
                swept.deleted += await self._search(client, keys, token if spare else "", budget)
                ranges = [each for each in ranges if each.filter == TAG]
            elif lost == _TAGS_LOST:
                await self._begin_tags(client, settings, swept, budget)
            elif last:
                ranges[0] = ranges[0].behind(last)

    async def _begin_tags(self, client: Client, settings: Sequence[Any], swept: Swept, budget: Budget) -> None:
        """Delete all entries, for some of which the tags were lost; then the sets of tags are whole."""
        logger.warning("the tags in Redis were lost, or are new: everything is invalidated once")
        everything = [self.keyspace.everything.range()]
        await self._begin(client, settings, swept, False, [], [], [], everything, [], [], budget=budget)
        await self.link.many(client, (COMPLETE_TAGS.call((self._shard.index,), (settings[0],)),), budget=budget)

    async def end(
        self,
        client: Client,
        token: str,
        writes: Sequence[Write],
        released: Sequence[bytes],
        fence: Sequence[Target],
        budget: Budget,
        stamps: Sequence[bytes] = (),
    ) -> bool:
        """Fill, give back, stamp, remove barriers."""
        barriers = [target.barrier(token) for target in fence]
        stood = True
        fills = [(entry, lease, raw, b"%d" % ttl_ms) for entry, lease, raw, ttl_ms, *_ in writes]
        for call in batches(self.limits.chunk, fills, released, stamps, barriers, budget=budget):
            arguments = (token, self.keyspace.leases, self.keyspace.before, self.limits.lease_ms, *lists(*call))
            (stands,) = await self.link.many(client, (END.call(self._for_readers, arguments),), budget=budget)
            stood = stood and bool(stands)
        return stood

    # --- where the index is not complete

    async def _search(self, client: Client, ranges: Sequence[Range], spared: str, budget: Budget) -> int:
        """Delete what the ranges reach among all keys, but for leases of the token `spared` and their entries.

        Of each range everything under the widest known head above it goes, so that this head is searched once.
        """
        if not self._logged_loss:
            self._logged_loss = True
            logger.warning("the index in Redis does not have all keys (it was lost, or is new): all keys are scanned")
        known = self.keyspace.known(self._heads)
        targets = dict[tuple[bytes, bytes], None]()
        everything = False
        for each in ranges:
            head = min((head for head in known if each.head.startswith(head)), key=len, default=each.head)
            if head:
                targets[head, b""] = None
            elif each.filter:
                targets[b"", each.filter] = None
            else:  # other programs' keys are none of ours
                targets.update(dict.fromkeys((head, b"") for head in known))
                everything = True
        token, deleted, longest_ms = secrets.token_hex(16), 0, 0
        for part, most in _SEARCH_COUNTS.items():  # mechanism: leases-before-entries
            cursor: bytes | int = 0
            count = max(8, most * 16 // max(16, len(targets)))
            while cursor != b"0":
                names = (self.keyspace.leases, self.keyspace.before, spared, int(everything), longest_ms)
                arguments = (token, part, cursor, count, *names, *lists(list(targets)))
                cursor, longest_ms, gone = await self._look(client, arguments, budget)
                deleted += gone
                budget.renew()
        return deleted

    async def _look(self, client: Client, arguments: Sequence[Argument], budget: Budget) -> tuple[bytes, int, int]:
        """Look at some keys. Return the next cursor, the longest life of an unknown key in ms, the entries deleted."""
        call = SEARCH.call((self._shard.index, self._shard.expiry), arguments)
        ((cursor, longest_ms, deleted),) = await self.link.many(client, (call,), budget=budget)
        return cursor, longest_ms, deleted
