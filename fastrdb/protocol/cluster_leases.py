"""A reader's steps on a cluster, where each slot is a step of its own.

Lease first, in the key's slot; then, in its shard and in one script, look for barriers and enter the index. Who has got
through both is in the index, with a lease, before anybody could have barred the key unseen: every writer that begins
later finds the lease, and the load that begins now sees what every earlier one has committed. The model check refutes
the other order.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextvars import Context
from typing import TYPE_CHECKING, Any

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import Call, Client, Link, Script, Shard, SlotNames

from .leases import DEAD_PER_FILL, Grants
from .outcomes import GONE, Asked, Barred, Busy, Entry, Fill, Granted, Hit, Outcome

if TYPE_CHECKING:
    from fastrdb.transport import Histories

_LEASE = Script.load("slot_lease")
_ENTER = Script.load("shard_enter")
_FILL = Script.load("slot_fill")
_RELEASE = Script.load("slot_release")
_BARRED = Script.load("shard_barred")
_RIPE = Script.load("shard_ripe")
_BURY = Script.load("shard_bury")

_MOST_DUE = 4096
"""So many members of the index wait to be looked at, whether they are dead; what is more is found again."""
_AT_ONCE = 256


class ClusterLeases:
    """The steps on a cluster."""

    def __init__(
        self, link: Link, names: SlotNames, histories: Histories, *, lease_ms: int, barrier_ms: int, chunk: int
    ) -> None:
        self._link, self._names, self._histories = link, names, histories
        self._lease_ms, self._barrier_ms, self._chunk = lease_ms, barrier_ms, chunk
        self._undertaker, self._grants = Undertaker(link, names), Grants()

    async def get_many(self, client: Client, entries: Sequence[bytes]) -> list[bytes | None]:
        """Give entries: a GET each, but all in one round trip."""
        with self._link.patience(client):  # redirections are more
            return await self._link.read(client, [("GET", entry) for entry in entries])

    async def get_timed(self, client: Client, entries: Sequence[bytes]) -> list[tuple[bytes | None, int]]:
        """Give entries, each with its PTTL."""
        with self._link.patience(client):
            replies = await self._link.read(
                client, [(command, entry) for entry in entries for command in ("GET", "PTTL")]
            )
        return list(zip(replies[::2], replies[1::2], strict=True))

    async def acquire(self, client: Client, asked: Sequence[Asked]) -> list[Outcome]:
        """Ask for leases, and enter the index with those that are granted."""
        leases = await self._link.many(client, [self._lease(ask) for ask in asked])
        outcomes = [self._outcome(ask, reply) for ask, reply in zip(asked, leases, strict=True)]
        granted = [ask for ask, outcome in zip(asked, outcomes, strict=True) if isinstance(outcome, Granted)]
        refused = await self._enter(client, granted) if granted else set()
        if self._histories.other_data:  # found out meanwhile: what is in the shards may be anything
            refused = {ask.entry for ask in granted}
        if not refused:
            return outcomes
        barred = [ask for ask in granted if ask.entry in refused]
        self._grants.forget((ask.entry, ask.token) for ask in barred)
        await self._link.many(client, [self._release(ask.entry, ask.token) for ask in barred])
        return [Barred() if ask in barred else outcome for ask, outcome in zip(asked, outcomes, strict=True)]

    async def fill(self, client: Client, fills: Sequence[Fill]) -> list[bool]:
        """Store under leases; and in the same round trip look for what is dead in the shards."""
        shards: defaultdict[Shard, list[bytes | int]] = defaultdict(list)
        for fill in fills:
            shards[self._names.shard(fill.entry)] += (fill.entry, fill.ttl_ms)
        calls = fill_calls(self._names, self._grants.use(fills))
        replies = await self._and_look(client, calls, shards)
        self._grants.forget((fill.entry, fill.token) for fill in fills)
        return [bool(reply) for reply in replies]

    async def release(self, client: Client, leases: Sequence[tuple[bytes, str]]) -> None:
        """Give leases back; and in the same round trip look for what is dead in the shards."""
        self._grants.forget(leases)
        for at in range(0, len(leases), self._chunk):
            portion = leases[at : at + self._chunk]
            lives: dict[Shard, list[bytes | int]] = {self._names.shard(entry): [] for entry, _ in portion}
            await self._and_look(client, [self._release(entry, token) for entry, token in portion], lives)

    async def inspect(self, client: Client, entry: bytes) -> Entry:
        """Tell what there is."""
        barred = Call(_BARRED, (self._names.shard(entry).barriers,), (entry,))
        lease = self._names.lease(entry)
        ttl_ms, size, leased, closed = await self._link.many(
            client, (("PTTL", entry), ("STRLEN", entry), ("EXISTS", lease), barred)
        )
        return Entry(None if ttl_ms == GONE else ttl_ms, size, bool(leased), bool(closed))

    async def aclose(self) -> None:
        """Stop looking for what is dead."""
        await self._undertaker.aclose()

    async def _and_look(
        self, client: Client, calls: Sequence[Call], shards: Mapping[Shard, Sequence[bytes | int]]
    ) -> list[Any]:
        """Run scripts, tell shards until when entries live, and have looked at what is dead there."""
        ripe = [Call(_RIPE, (shard.expiry,), (DEAD_PER_FILL, *lives)) for shard, lives in shards.items()]
        replies = await self._link.run(client, [*calls, *ripe])
        for found in replies[len(calls) :]:
            if not isinstance(found, Exception):  # it is for tidiness only
                self._undertaker.look_at(client, found)
        return self._link.raised(calls, replies[: len(calls)])

    async def _enter(self, client: Client, asked: Iterable[Asked]) -> set[bytes]:
        """Enter the index; gives what is barred."""
        shards: defaultdict[Shard, list[bytes]] = defaultdict(list)
        for ask in asked:
            shards[self._names.shard(ask.entry)].append(ask.entry)
        calls = [
            Call(_ENTER, (*shard.work, shard.histories), (self._lease_ms, self._barrier_ms, *entries))
            for shard, entries in shards.items()
        ]
        replies = await self._link.many(client, calls)
        pairs = zip(shards.values(), replies, strict=True)
        return {entry for entries, flags in pairs for entry, barred in zip(entries, flags, strict=True) if barred}

    def _outcome(self, ask: Asked, reply: list[bytes]) -> Outcome:
        """Read the result of slot_lease.lua."""
        match reply:
            case [b"hit", raw]:
                return Hit(raw)
            case [b"busy", token]:
                return Busy(token.decode())
            case [b"granted", history, held]:
                self._histories.seen(history)
                return self._grants.note(ask, held)
            case _:
                return Barred()

    def _lease(self, ask: Asked) -> Call:
        return Call(_LEASE, self._names.in_slot(ask.entry), (ask.token, self._lease_ms, ask.old))

    def _release(self, entry: bytes, token: str) -> Call:
        return Call(_RELEASE, (self._names.lease(entry),), (token,))


def fill_calls(names: SlotNames, fills: Iterable[Fill]) -> list[Call]:
    """Give the calls that store under leases."""
    return [Call(_FILL, names.in_slot(entry), (token, raw, ttl_ms)) for entry, token, raw, ttl_ms in fills]


class Undertaker:
    """Takes out of the index what is dead: looks in the keys' slots, the lease first, and then tells the shards.

    Who was granted a lease after that look has entered the index after it, too, which the shard sees by the score.
    """

    def __init__(self, link: Link, names: SlotNames) -> None:
        self._link, self._names = link, names
        self._due: dict[bytes, bytes] = {}
        self._task: asyncio.Task[None] | None = None

    def look_at(self, client: Client, found: Sequence[bytes]) -> None:
        """See to it that members are looked at; `found` has each with its score behind it."""
        for member, score in zip(found[::2], found[1::2], strict=True):
            if len(self._due) < _MOST_DUE:
                self._due[member] = score
        if self._due and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(client), context=Context())

    async def aclose(self) -> None:
        """Let what is being done come to its end."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _work(self, client: Client) -> None:
        try:
            while self._due:
                members = list(self._due)[:_AT_ONCE]
                await self._bury(client, [(member, self._due.pop(member)) for member in members])
        except CacheUnavailableError:
            self._due.clear()  # found again by the next fills
        finally:
            self._task = None

    async def _bury(self, client: Client, due: Sequence[tuple[bytes, bytes]]) -> None:
        looks = [("PTTL", name) for member, _ in due for name in (self._names.lease(member), member)]
        lives = await self._link.many(client, looks)
        shards: defaultdict[Shard, list[Any]] = defaultdict(list)
        for (member, score), lease, entry in zip(due, lives[::2], lives[1::2], strict=True):
            life = "" if lease == entry == GONE else max(lease, entry)
            shards[self._names.shard(member)] += (member, score, life)
        await self._link.many(
            client, [Call(_BURY, (shard.index, shard.expiry), each) for shard, each in shards.items()]
        )
