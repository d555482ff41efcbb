"""The protocol on a cluster: each slot is a step of its own.

Readers: the lease first, in the key's slot; then, in the key's shard and in one script, look for barriers and enter
the index. A caller that has done both is in the index, with a lease, before a writer could have barred the key unseen:
every writer that begins later finds the lease, and the load sees what every earlier writer has committed.

Writers: in each shard that is reached, in one script, set barriers, see what the index has, and enter what will be
written through. Then for each key delete (or take) its lease, then delete its entry: by commands of one key each.
A slot that is being moved does not refuse these. After the COMMIT: fills, and then the barriers go. The model check
refutes other orders.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from fastrdb.transport import Budget, Client, Command, Health, Met, RedisClient

from .cluster_index import ClusterScan, IndexSweeper
from .cluster_writers import ClusterWriters
from .interface import DEAD_PER_FILL, Ask, Barred, Busy, Entry, Granted, Hit, Limits, Outcome, Tagged, Write
from .keyspace import GONE, ClusterKeyspace, Keyspace, Shard, portions
from .lua import load_script
from .trust import Trust

logger = logging.getLogger("fastrdb")

LEASE, ENTER, BARRED, EXPIRED, TAG_ENTRY, RETAG = (
    load_script("cluster", name) for name in ("lease", "enter", "barred", "expired", "tag", "retag")
)


class ClusterBackend(ClusterWriters):
    """The steps on a cluster. Arguments are those of a ServerBackend; `met` is called with each master."""

    def __init__(
        self, namespace: str, health: Health, limits: Limits, heads: Collection[str], met: Met | None = None
    ) -> None:
        self._names = ClusterKeyspace(namespace)
        self.keyspace: Keyspace = self._names
        self.trust = Trust(self.keyspace, health)
        self.link = RedisClient(limits.timeout, self.trust, health, met)
        self.limits = limits
        self._scan = ClusterScan(self.link, self._names, heads)
        self._sweeper = IndexSweeper(self.link, self._names)

    def heal(self, client: Client) -> None:
        """Start deleting untrusted data in the background."""
        delete_all = partial(self._scan.delete_all, client, self.trust.evicts)
        self.trust.heal(partial(self.link.many, client, errors=True), delete_all)

    async def aclose(self) -> None:
        """Stop what runs in the background."""
        await self._sweeper.aclose()
        await super().aclose()

    # --- readers

    async def get_many(
        self, client: Client, entries: Sequence[bytes], budget: Budget | None = None
    ) -> list[bytes | None]:
        """Return entries: a GET each, but all in one round trip."""
        return await self.link.read(client, [("GET", entry) for entry in entries], budget)

    async def get_timed(
        self, client: Client, entries: Sequence[bytes], budget: Budget | None = None
    ) -> list[tuple[bytes | None, int]]:
        """Return entries, each with its PTTL."""
        commands = [(command, entry) for entry in entries for command in ("GET", "PTTL")]
        replies = await self.link.read(client, commands, budget)
        return list(zip(replies[::2], replies[1::2], strict=True))

    async def acquire(self, client: Client, asks: Sequence[Ask], budget: Budget | None = None) -> list[Outcome]:
        """Ask for leases, and enter the index with those that are granted."""
        times = self.limits.lease_ms, self.limits.fresh_ms
        calls = [
            LEASE.call(self._names.in_slot(entry), (token, times[0], old, times[1])) for entry, token, old, _ in asks
        ]
        outcomes = [self._outcome(reply) for reply in await self.link.many(client, calls, budget=budget)]
        granted = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, Granted)]
        entered = await self._enter(client, [asks[at] for at in granted], budget) if granted else {}
        if self.trust.other_data:  # found out meanwhile: what is in the shards may be anything
            entered = {}
        refused = [at for at in granted if asks[at].entry not in entered]
        for at in granted:
            if (outcome := outcomes[at]) == Granted() and isinstance(outcome, Granted):
                outcomes[at] = replace(outcome, since=entered.get(asks[at].entry, b""))
        if refused:
            given = [self._release(asks[at].entry, asks[at].token) for at in refused]
            await self.link.many(client, given, budget=budget)
            for at in refused:
                outcomes[at] = Barred()
        return outcomes

    def _outcome(self, reply: list[bytes]) -> Outcome:
        match reply:
            case [b"hit", raw]:
                return Hit(raw)
            case [b"busy", token]:
                return Busy(token.decode("ascii", "replace"))
            case [b"granted", held]:
                self.trust.saw(held.split(b"\n", 2)[1])
                return Granted(held)
        return Barred()

    async def _enter(self, client: Client, asks: Iterable[Ask], budget: Budget | None) -> dict[bytes, bytes]:
        """Enter the index. Return the entries that are not barred, each with the moment of its grant if it has tags."""
        shards: defaultdict[tuple[Shard, bool], list[bytes]] = defaultdict(list)
        for ask in asks:
            shards[self.keyspace.shard(ask.entry), ask.tagged].append(ask.entry)
        calls = [
            ENTER.call(
                (*shard.all, *(shard.of_tags if tagged else ())),
                (self.limits.lease_ms, self.limits.barrier_ms, *each),
            )
            for (shard, tagged), each in shards.items()
        ]
        pairs = zip(shards.values(), await self.link.many(client, calls, budget=budget), strict=True)
        flags = {entry: flag for each, flags in pairs for entry, flag in zip(each, flags, strict=True)}
        return {entry: flag if isinstance(flag, bytes) else b"" for entry, flag in flags.items() if flag != 1}

    async def get_tagged(self, client: Client, entries: Sequence[bytes]) -> list[Tagged | None]:
        """Return None for each: an entry and its tags lie in two slots."""
        return [None] * len(entries)

    async def fill(self, client: Client, writes: Sequence[Write], budget: Budget | None = None) -> list[bool | bytes]:
        """Store under leases, and list in the same round trip what is dead in their shards.

        Entries with tags are entered under these before.
        """
        entered = await self._tag(client, [write for write in writes if write.tags], budget)
        writes, asked = [write for write in writes if not entered.get(write.entry, ("", b""))[0]], writes
        lives: defaultdict[Shard, list[bytes | int]] = defaultdict(list)
        for write in writes:
            lives[self.keyspace.shard(write.entry)] += (write.entry, write.ttl_ms)
        stored = await self._and_list_dead(client, self._fills(writes), lives, budget)
        done = {write.entry: bool(reply) for write, reply in zip(writes, stored, strict=True)}
        again = [
            RETAG.call(self.keyspace.shard(entry).of_tags[:2], (entry, entered[entry][1], tags))
            for entry, _, _, _, tags, _ in writes
            if done[entry] and tags and entered[entry][1] != tags
        ]
        if again:
            await self.link.many(client, again, budget=budget, errors=True)  # tidiness only
        return [done[write.entry] if write.entry in done else bytes(entered[write.entry][0]) for write in asked]

    async def _tag(
        self, client: Client, writes: Sequence[Write], budget: Budget | None
    ) -> dict[bytes, tuple[bytes, bytes]]:
        """Enter entries under their tags. Return of each the tag that was reached since its grant, and all its tags."""
        if not writes:
            return {}
        calls = []
        for write in writes:
            shard = self.keyspace.shard(write.entry)
            arguments = (self.keyspace.before, write.entry, write.since or 0, write.tags)
            keys = (shard.barriers, *shard.of_tags, shard.index, shard.expiry)
            calls.append(TAG_ENTRY.call(keys, arguments))
        replies = await self.link.many(client, calls, budget=budget)
        entered = {write.entry: (why, tags) for write, (why, tags) in zip(writes, replies, strict=True)}
        refused = [write for write in writes if entered[write.entry][0]]
        if refused:
            given = [self._release(write.entry, _token_in(write.lease)) for write in refused]
            await self.link.many(client, given, budget=budget)
        return entered

    async def release(self, client: Client, leases: Sequence[tuple[bytes, str]]) -> None:
        """Release leases, and list in the same round trip what is dead in their shards."""
        for portion in portions(leases, self.limits.chunk):
            lives: dict[Shard, Sequence[bytes | int]] = {self.keyspace.shard(entry): () for entry, _ in portion}
            await self._and_list_dead(client, [self._release(entry, token) for entry, token in portion], lives, None)

    async def inspect(self, client: Client, entry: bytes) -> Entry:
        """Return what Redis holds."""
        barred = BARRED.call((self.keyspace.shard(entry).barriers,), (entry,))
        commands = (("PTTL", entry), ("STRLEN", entry), ("EXISTS", self.keyspace.lease(entry)), barred)
        ttl_ms, size, leased, is_barred = await self.link.many(client, commands)
        return Entry(None if ttl_ms == GONE else ttl_ms, size, bool(leased), bool(is_barred))

    async def _and_list_dead(
        self,
        client: Client,
        calls: Sequence[Command],
        lives: Mapping[Shard, Sequence[bytes | int]],
        budget: Budget | None,
    ) -> list[Any]:
        """Run scripts, note in shards until when entries live, and have members checked that may be dead."""
        expired = [EXPIRED.call((shard.expiry,), (DEAD_PER_FILL, *each)) for shard, each in lives.items()]
        replies = await self.link.many(client, [*calls, *expired], budget=budget, errors=True)
        for found in replies[len(calls) :]:
            if not isinstance(found, Exception):  # tidiness only
                self._sweeper.check(client, found)
        return self.link.raised(calls, replies[: len(calls)])


def _token_in(lease: bytes) -> str:
    return lease.partition(b"\n")[0].decode("ascii", "replace")
