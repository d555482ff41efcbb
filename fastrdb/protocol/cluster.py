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

import asyncio
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, MutableMapping, Sequence
from contextvars import Context
from copy import copy
from functools import partial
from typing import Any

from redis.exceptions import TryAgainError

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import OTHER_DATA, Budget, Call, Client, Command, Health, Met, RedisClient

from .cluster_scan import ClusterScan
from .interface import DEAD_PER_FILL, GONE, Ask, Backend, Barred, Busy, Entry, Granted, Hit, Outcome, Write
from .keyspace import EXACTLY, ClusterKeyspace, Keyspace, Range, Shard, Target, batches, divide, lists, portions
from .lua import load_script
from .trust import Trust

LEASE, ENTER, FILL, RELEASE, TAKE, FENCE, UNBAR, BARRED, EXPIRED, REMOVE_DEAD = (
    load_script("cluster", name)
    for name in ("lease", "enter", "fill", "release", "take", "fence", "unbar", "barred", "expired", "remove_dead")
)
_TRIES, _PAUSE_S = 10, 0.01
_INCOMPLETE = -1
_MOST_DUE = 4096
"""So many members of the index wait to be checked for death; further ones are found again later."""
_DUE_AT_ONCE = 256

_Job = tuple[list[bytes], list[Range], list[bytes]]  # barriers, ranges, keys for the index


class ClusterBackend(Backend):
    """The steps on a cluster. Arguments are those of a ServerBackend; `met` is called with each master."""

    def __init__(
        self,
        namespace: str,
        health: Health,
        *,
        timeout: float,
        lease_ms: int,
        fresh_ms: int,
        barrier_ms: int,
        chunk: int,
        heads: Collection[str],
        met: Met | None = None,
    ) -> None:
        self._names = ClusterKeyspace(namespace)
        self.keyspace: Keyspace = self._names
        self.trust = Trust(self.keyspace, health)
        self.link = RedisClient(timeout, self.trust, health, met)
        self._lease_ms, self._fresh_ms, self._barrier_ms, self._chunk = lease_ms, fresh_ms, barrier_ms, chunk
        self._scan = ClusterScan(self.link, self._names, heads)
        self._sweeper = IndexSweeper(self.link, self._names)

    def insisting(self) -> ClusterBackend:
        """Return the same backend for work that is sent whatever the circuit breaker says."""
        other = copy(self)
        other.link = self.link.insisting()
        return other

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
        times = self._lease_ms, self._fresh_ms
        calls = [
            Call(LEASE, self._names.in_slot(entry), (token, times[0], old, times[1])) for entry, token, old in asks
        ]
        outcomes = [self._outcome(reply) for reply in await self.link.many(client, calls, budget=budget)]
        granted = [at for at, outcome in enumerate(outcomes) if isinstance(outcome, Granted)]
        barred = await self._enter(client, [asks[at].entry for at in granted], budget) if granted else set()
        if self.trust.other_data:  # found out meanwhile: what is in the shards may be anything
            barred = {asks[at].entry for at in granted}
        refused = [at for at in granted if asks[at].entry in barred]
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

    async def _enter(self, client: Client, entries: Iterable[bytes], budget: Budget | None) -> set[bytes]:
        """Enter the index. Return the entries that are barred."""
        shards: defaultdict[Shard, list[bytes]] = defaultdict(list)
        for entry in entries:
            shards[self.keyspace.shard(entry)].append(entry)
        calls = [Call(ENTER, shard.all, (self._lease_ms, self._barrier_ms, *each)) for shard, each in shards.items()]
        pairs = zip(shards.values(), await self.link.many(client, calls, budget=budget), strict=True)
        return {entry for each, flags in pairs for entry, barred in zip(each, flags, strict=True) if barred}

    async def fill(self, client: Client, writes: Sequence[Write], budget: Budget | None = None) -> list[bool]:
        """Store under leases, and list in the same round trip what is dead in their shards."""
        lives: defaultdict[Shard, list[bytes | int]] = defaultdict(list)
        for write in writes:
            lives[self.keyspace.shard(write.entry)] += (write.entry, write.ttl_ms)
        return [bool(reply) for reply in await self._and_list_dead(client, self._fills(writes), lives, budget)]

    async def release(self, client: Client, leases: Sequence[tuple[bytes, str]]) -> None:
        """Release leases, and list in the same round trip what is dead in their shards."""
        for portion in portions(leases, self._chunk):
            lives: dict[Shard, Sequence[bytes | int]] = {self.keyspace.shard(entry): () for entry, _ in portion}
            await self._and_list_dead(client, [self._release(entry, token) for entry, token in portion], lives, None)

    async def inspect(self, client: Client, entry: bytes) -> Entry:
        """Return what Redis holds."""
        barred = Call(BARRED, (self.keyspace.shard(entry).barriers,), (entry,))
        looks = (("PTTL", entry), ("STRLEN", entry), ("EXISTS", self.keyspace.lease(entry)), barred)
        ttl_ms, size, leased, is_barred = await self.link.many(client, looks)
        return Entry(None if ttl_ms == GONE else ttl_ms, size, bool(leased), bool(is_barred))

    async def _and_list_dead(
        self,
        client: Client,
        calls: Sequence[Call],
        lives: Mapping[Shard, Sequence[bytes | int]],
        budget: Budget | None,
    ) -> list[Any]:
        """Run scripts, note in shards until when entries live, and have members checked that may be dead."""
        expired = [Call(EXPIRED, (shard.expiry,), (DEAD_PER_FILL, *each)) for shard, each in lives.items()]
        replies = await self.link.many(client, [*calls, *expired], budget=budget, errors=True)
        for found in replies[len(calls) :]:
            if not isinstance(found, Exception):  # tidiness only
                self._sweeper.check(client, found)
        return self.link.raised(calls, replies[: len(calls)])

    def _fills(self, writes: Iterable[Write]) -> list[Call]:
        in_slot = self._names.in_slot
        return [Call(FILL, in_slot(entry), (held, raw, ttl_ms)) for entry, held, raw, ttl_ms in writes]

    def _release(self, entry: bytes, token: str) -> Call:
        return Call(RELEASE, (self.keyspace.lease(entry),), (token,))

    # --- writers

    async def begin(
        self,
        client: Client,
        token: str,
        fence: Sequence[Target],
        targets: Iterable[Target],
        leases: MutableMapping[bytes, bytes] | None = None,
        *,
        budget: Budget,
        again: bool = False,
    ) -> int:
        """Bar, delete, take leases. Barriers, deletions and leases of one portion are one piece of work."""
        wide, exact = divide(targets)
        leases = {} if leases is None else leases
        barriers, indexed = self._by_shard(fence), self._by_shard(_exactly(leases))
        ranges = [target.range() for target in wide]
        jobs = {
            shard: deque(_jobs(self._chunk, token, barriers[shard], ranges, indexed[shard]))
            for shard in self.keyspace.shards
        }
        keys = set(exact)
        own, spared, deleted = set(leases), token if again else None, 0
        while any(jobs.values()):
            keys |= await self._fence(client, jobs, budget)
            deleted += await self._delete(client, keys - own, spared, budget)
            keys = set()
            budget.renew()
        deleted += await self._delete(client, keys - own, spared, budget)
        return deleted + await self._take(client, token, leases, budget)

    async def end(
        self,
        client: Client,
        token: str,
        writes: Sequence[Write],
        released: Sequence[bytes],
        fence: Sequence[Target],
        budget: Budget,
    ) -> bool:
        """Fill, give back, remove barriers."""
        back = [*released]
        for portion in portions(writes, self._chunk, budget):
            calls = self._fills(portion)
            replies = await self.link.many(client, calls, budget=budget, errors=True)
            # A slot that is being moved refuses a fill: the value is not stored then, and the rest goes on.
            refused = [isinstance(reply, TryAgainError) for reply in replies]
            back += [write.entry for write, is_refused in zip(portion, refused, strict=True) if is_refused]
            self.link.raised(calls, [0 if each else reply for each, reply in zip(refused, replies, strict=True)])
        for entries in portions(back, self._chunk, budget):
            await self.link.many(client, [self._release(entry, token) for entry in entries], budget=budget)
        down = [
            Call(UNBAR, (shard.barriers,), [target.barrier(token) for target in targets])
            for shard, targets in self._by_shard(fence).items()
        ]
        stood = await self._patiently(client, down, budget) if down else []
        return all(stood) and not self.trust.other_data

    def _by_shard(self, targets: Iterable[Target]) -> defaultdict[Shard, list[Target]]:
        """Return which targets concern which shard: a single key its own, a prefix all of them."""
        shards: defaultdict[Shard, list[Target]] = defaultdict(list)
        for target in targets:
            for shard in (self.keyspace.shard(target.head),) if target.exact else self.keyspace.shards:
                shards[shard].append(target)
        return shards

    async def _fence(self, client: Client, jobs: dict[Shard, deque[_Job]], budget: Budget) -> set[bytes]:
        """Do the next job of each shard. Return the keys reached. A job that is not done yet stays.

        If an index is not complete, nothing is done yet, but all that it does not know is deleted.
        """
        working = [(shard, shard_jobs) for shard, shard_jobs in jobs.items() if shard_jobs]
        calls = [self._fence_call(shard, shard_jobs[0]) for shard, shard_jobs in working]
        replies = await self._patiently(client, calls, budget)
        # Found out meanwhile: the shards may not know all keys. Unless that server was only new to this process.
        if self.trust.other_data and not await self.trust.settle(partial(self.link.many, client, errors=True)):
            self.heal(client)
            raise CacheUnavailableError(FENCE.name, OTHER_DATA)
        if any(done == _INCOMPLETE for done, *_ in replies):
            await self._scan.make_complete(client, self.link, budget)
            return set()
        reached: set[bytes] = set()
        for (_, shard_jobs), (done, last, keys) in zip(working, replies, strict=True):
            reached.update(keys)
            _, ranges, indexed = shard_jobs.popleft()
            if done < len(ranges):  # the barriers stand
                shard_jobs.appendleft(([], [ranges[done].behind(last), *ranges[done + 1 :]], indexed))
        return reached

    def _fence_call(self, shard: Shard, job: _Job) -> Call:
        return Call(FENCE, shard.work, (self._barrier_ms, self._chunk, *lists(*job)))

    async def _patiently(self, client: Client, calls: Sequence[Call], budget: Budget) -> list[Any]:
        """Run scripts, and again where the keys of a shard are being moved, one after the other."""
        replies: list[Any] = []
        for _ in range(_TRIES):
            replies = await self.link.many(client, calls, budget=budget, errors=True)
            if not any(isinstance(reply, TryAgainError) for reply in replies):
                break
            await asyncio.sleep(_PAUSE_S)
        return self.link.raised(calls, replies)

    async def _delete(self, client: Client, keys: Iterable[bytes], spared: str | None, budget: Budget) -> int:
        """Delete keys with their leases, but those whose lease has the spared token. Return how many."""
        deleted = 0
        for portion in portions(list(keys), self._chunk, budget):
            leases = [self.keyspace.lease(key) for key in portion]
            going = list(zip(portion, leases, strict=True))
            if spared is not None:
                held = await self.link.many(client, [("GET", lease) for lease in leases], budget=budget)
                own = spared.encode() + b"\n"
                going = [pair for pair, each in zip(going, held, strict=True) if not (each or b"").startswith(own)]
            _, gone = await self._away(
                client, [("DEL", lease) for _, lease in going], [key for key, _ in going], budget
            )
            deleted += gone
        return deleted

    async def _take(self, client: Client, token: str, leases: MutableMapping[bytes, bytes], budget: Budget) -> int:
        """Take leases, and delete the entries. Return how many there were."""
        deleted = 0
        for portion in portions(list(leases), self._chunk, budget):
            takes = [Call(TAKE, (self.keyspace.lease(entry),), (token, self._barrier_ms)) for entry in portion]
            held, gone = await self._away(client, takes, portion, budget)
            leases.update(zip(portion, held, strict=True))
            deleted += gone
        if self.trust.evicts:  # the index may have been lost since the keys were entered
            again = [
                self._fence_call(shard, ([], [], [target.head for target in targets]))
                for shard, targets in self._by_shard(_exactly(leases)).items()
            ]
            await self._patiently(client, again, budget)
        return deleted

    async def _away(
        self, client: Client, first: Sequence[Call | Command], entries: Sequence[bytes], budget: Budget
    ) -> tuple[list[Any], int]:
        """Send for each entry a command for its lease, then delete the entry: a holder cannot store it any more."""
        commands = [
            command for lease, entry in zip(first, entries, strict=True) for command in (lease, ("UNLINK", entry))
        ]
        replies: list[Any] = await self.link.many(client, commands, budget=budget) if commands else []
        return replies[::2], sum(replies[1::2])


class IndexSweeper:
    """Removes dead members from the index: checks in the keys' slots, the lease first, then reports to the shards.

    A caller that was granted a lease after that check has entered the index after it, too. The shard sees that by the
    score, and keeps the member.
    """

    def __init__(self, link: RedisClient, keyspace: ClusterKeyspace) -> None:
        self._link, self._keyspace = link, keyspace
        self._due: dict[bytes, bytes] = {}
        self._task: asyncio.Task[None] | None = None

    def check(self, client: Client, found: Sequence[bytes]) -> None:
        """Check members in the background; `found` has each with its score behind it."""
        for member, score in zip(found[::2], found[1::2], strict=True):
            if len(self._due) < _MOST_DUE:
                self._due[member] = score
        if self._due and self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._work(client), context=Context())

    async def aclose(self) -> None:
        """Wait for the check that is under way."""
        if self._task is not None:
            await asyncio.wait({self._task})

    async def _work(self, client: Client) -> None:
        try:
            while self._due:
                members = list(self._due)[:_DUE_AT_ONCE]
                await self._remove_dead(client, [(member, self._due.pop(member)) for member in members])
        except CacheUnavailableError:
            self._due.clear()  # the next fills find them again
        finally:
            self._task = None

    async def _remove_dead(self, client: Client, due: Sequence[tuple[bytes, bytes]]) -> None:
        looks = [("PTTL", name) for member, _ in due for name in (self._keyspace.lease(member), member)]
        lives = await self._link.many(client, looks)
        shards: defaultdict[Shard, list[Any]] = defaultdict(list)
        for (member, score), lease, entry in zip(due, lives[::2], lives[1::2], strict=True):
            life = "" if lease == entry == GONE else max(lease, entry)
            shards[self._keyspace.shard(member)] += (member, score, life)
        await self._link.many(
            client, [Call(REMOVE_DEAD, (shard.index, shard.expiry), each) for shard, each in shards.items()]
        )


def _exactly(entries: Iterable[bytes]) -> list[Target]:
    return [Target(entry, EXACTLY) for entry in entries]


def _jobs(size: int, token: str, fence: list[Target], ranges: list[Range], indexed: list[Target]) -> Iterator[_Job]:
    barriers = [target.barrier(token) for target in fence]
    for job in batches(size, barriers, ranges, [target.head for target in indexed]):
        yield job[0], job[1], job[2]
