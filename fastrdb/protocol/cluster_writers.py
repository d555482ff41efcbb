"""Writers on a cluster. In each shard, by one script: set barriers, and see what the index has. Then leases and entries
are deleted in the slots of the keys. See `cluster` for the order.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict, deque
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple

from redis.exceptions import TryAgainError

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import OTHER_DATA, Budget, Client, Command

from .cluster_index import ClusterScan
from .interface import Backend, NamedRows, Sweep, Swept, Write
from .keyspace import (
    EXACTLY,
    INCOMPLETE,
    TAG,
    ClusterKeyspace,
    Range,
    Shard,
    Target,
    batches,
    divide,
    lists,
    portions,
)
from .lua import load_script

logger = logging.getLogger("fastrdb")

FILL, RELEASE, TAKE, FENCE, UNBAR, COMPLETE_TAGS = (
    load_script("cluster", name) for name in ("fill", "release", "take", "fence", "unbar", "complete_tags")
)
_TRIES, _PAUSE_S = 10, 0.01
_INCOMPLETE, _TAGS_LOST = -1, -2


class _Job(NamedTuple):
    """A portion of what a writer does in one shard: the lists of fence.lua."""

    barriers: Sequence[bytes] = ()
    stamps: Sequence[bytes] = ()
    rows: NamedRows = ()
    ranges: Sequence[Range] = ()
    indexed: Sequence[tuple[bytes, bytes]] = ()

    @property
    def with_tags(self) -> bool:
        """Return whether the keys of tags are needed."""
        tagged = self.stamps or self.rows or any(tags for _, tags in self.indexed)
        return bool(tagged) or any(each.filter == TAG for each in self.ranges)

    def rest(self, done: int, last: bytes) -> _Job:
        """Return what is left when so many ranges are done, and another up to `last`: the barriers stand."""
        ranges = [*self.ranges[done:]]
        if last:
            ranges[0] = ranges[0].behind(last)
        return _Job(ranges=ranges, indexed=self.indexed)


class ClusterWriters(Backend):
    """The steps of writers on a cluster."""

    _names: ClusterKeyspace
    _scan: ClusterScan

    async def begin(self, client: Client, work: Sweep, budget: Budget) -> Swept:
        """Bar, delete, take leases. Barriers, deletions and leases of one portion are one piece of work."""
        wide, exact = divide(work.targets)
        barriers, indexed = self._by_shard(work.fence), self._by_shard(_exactly(work.leases))
        ranges = [target.range() for target in (*wide, *work.names)]
        stamps = [target.name for target in work.names if target not in work.fence]
        jobs = dict[Shard, deque[_Job]]()
        for shard in self.keyspace.shards:
            bar = [target.barrier(work.token) for target in barriers[shard]]
            entered = self._indexed(work, indexed[shard])
            jobs[shard] = deque(
                _Job(*job) for job in batches(self.limits.chunk, bar, stamps, work.rows, ranges, entered)
            )
        own, spared, swept = set(work.leases), work.token if work.again else None, Swept()
        bars = len(stamps) < len(work.names)
        keys = set(exact)
        while any(jobs.values()):
            keys |= await self._fence(client, jobs, swept, work.token, bars, budget)
            _count(swept, await self._delete(client, keys - own, spared, budget), wide)
            keys = set()
            budget.renew()
        _count(swept, await self._delete(client, keys - own, spared, budget), wide)
        swept.deleted += await self._take(client, work, budget)
        return swept

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
        back = [*released]
        for portion in portions(writes, self.limits.chunk, budget):
            calls = self._fills(portion)
            replies = await self.link.many(client, calls, budget=budget, errors=True)
            # A slot that is being moved refuses a fill: the value is not stored then, and the rest goes on.
            refused = [isinstance(reply, TryAgainError) for reply in replies]
            back += [write.entry for write, is_refused in zip(portion, refused, strict=True) if is_refused]
            self.link.raised(calls, [0 if each else reply for each, reply in zip(refused, replies, strict=True)])
        for entries in portions(back, self.limits.chunk, budget):
            await self.link.many(client, [self._release(entry, token) for entry in entries], budget=budget)
        barred = self._by_shard(fence)
        down = [
            UNBAR.call(
                (shard.barriers, *(shard.of_tags if stamps else ())),
                (self.limits.lease_ms, *lists(stamps, [target.barrier(token) for target in barred[shard]])),
            )
            for shard in (self.keyspace.shards if stamps else list(barred))
        ]
        stood = await self._patiently(client, down, budget) if down else []
        return all(stood) and not self.trust.other_data

    def _by_shard(self, targets: Iterable[Target]) -> defaultdict[Shard, list[Target]]:
        """Return which targets concern which shard."""
        shards: defaultdict[Shard, list[Target]] = defaultdict(list)
        for target in targets:
            for shard in self.keyspace.places(target):
                shards[shard].append(target)
        return shards

    async def _fence(
        self,
        client: Client,
        jobs: dict[Shard, deque[_Job]],
        swept: Swept,
        token: str,
        bars: bool,
        budget: Budget,
    ) -> set[bytes]:
        """Do the next job of each shard. Return the keys reached. A job that is not done yet stays.

        If an index is not complete, nothing is done yet, but all keys that it lacks are deleted. If the tags of a
        shard were lost, all of its entries are reached first.
        """
        working = [(shard, shard_jobs) for shard, shard_jobs in jobs.items() if shard_jobs]
        mark = token or secrets.token_hex(16)
        calls = [self._fence_call(shard, shard_jobs[0], mark) for shard, shard_jobs in working]
        replies = await self._patiently(client, calls, budget)
        # Found out meanwhile: the indexes of the shards may lack keys, unless that server was only new to this process.
        if self.trust.other_data and not await self.trust.settle(partial(self.link.many, client, errors=True)):
            self.heal(client)
            raise CacheUnavailableError(FENCE.name, OTHER_DATA)
        if any(reply[0] == _INCOMPLETE for reply in replies):
            await self._scan.make_complete(client, self.link, budget)
            return set()
        if lost := [shard for (shard, _), reply in zip(working, replies, strict=True) if reply[0] == _TAGS_LOST]:
            await self._begin_tags(client, lost, mark, budget)
            return set()
        reached, added = set[bytes](), list[Target]()
        for (_, shard_jobs), (done, last, keys, found, names) in zip(working, replies, strict=True):
            reached.update(keys, found)
            swept.found += found
            job = shard_jobs.popleft()
            if names or done < len(job.ranges):
                shard_jobs.appendleft(job.rest(done, last))
            added += [target for name in names if (target := Target(TAG + name, TAG)) not in added]
        if added:  # in all shards: the end removes the barriers in all
            swept.added += added
            barriers = [target.barrier(token) for target in added] if bars else []
            stamps = [] if bars else [target.name for target in added]
            for shard_jobs in jobs.values():
                shard_jobs.appendleft(_Job(barriers, stamps, (), [target.range() for target in added]))
        return reached

    async def _begin_tags(self, client: Client, shards: Sequence[Shard], mark: str, budget: Budget) -> None:
        """Delete all entries of shards whose tags were lost; then their sets of tags are whole."""
        logger.warning("the tags in Redis were lost, or are new: everything is invalidated once")
        jobs = {shard: deque([_Job(ranges=[self.keyspace.everything.range()])]) for shard in shards}
        while any(jobs.values()):
            await self._delete(client, await self._fence(client, jobs, Swept(), mark, False, budget), mark, budget)
            budget.renew()
        member = INCOMPLETE + mark.encode()
        await self._patiently(client, [COMPLETE_TAGS.call(shard.of_tags, (member,)) for shard in shards], budget)

    def _fence_call(self, shard: Shard, job: _Job, mark: str) -> Command:
        keys = (*shard.work, *(shard.of_tags if job.with_tags else ()))
        return FENCE.call(keys, (self.limits.barrier_ms, self.limits.chunk, self.limits.lease_ms, mark, *lists(*job)))

    async def _patiently(self, client: Client, calls: Sequence[Command], budget: Budget) -> list[Any]:
        """Run scripts, and again where the keys of a shard are being moved, one after the other."""
        replies: list[Any] = []
        for _ in range(_TRIES):
            replies = await self.link.many(client, calls, budget=budget, errors=True)
            if not any(isinstance(reply, TryAgainError) for reply in replies):
                break
            await asyncio.sleep(_PAUSE_S)
        return self.link.raised(calls, replies)

    async def _delete(self, client: Client, keys: Iterable[bytes], spared: str | None, budget: Budget) -> list[bytes]:
        """Delete keys with their leases, but those whose lease has the spared token. Return which there were."""
        deleted = list[bytes]()
        for portion in portions(list(keys), self.limits.chunk, budget):
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

    async def _take(self, client: Client, work: Sweep, budget: Budget) -> int:
        """Take leases, and delete the entries. Return how many there were."""
        deleted = 0
        for portion in portions(list(work.leases), self.limits.chunk, budget):
            takes = [
                TAKE.call((self.keyspace.lease(entry),), (work.token, self.limits.barrier_ms)) for entry in portion
            ]
            held, gone = await self._away(client, takes, portion, budget)
            work.leases.update(zip(portion, held, strict=True))
            deleted += len(gone)
        # The index may have been lost since the keys were entered, and be whole again without these.
        if self.trust.evicts:  # mechanism: write-indexed-again
            again = [
                self._fence_call(shard, _Job(indexed=self._indexed(work, targets)), work.token)
                for shard, targets in self._by_shard(_exactly(work.leases)).items()
            ]
            await self._patiently(client, again, budget)
        return deleted

    @staticmethod
    def _indexed(work: Sweep, targets: Iterable[Target]) -> list[tuple[bytes, bytes]]:
        """Return the entries to put into the index of a shard, with their tags."""
        return [(target.head, work.tags.get(target.head, b"")) for target in targets]

    async def _away(
        self, client: Client, first: Sequence[Command], entries: Sequence[bytes], budget: Budget
    ) -> tuple[list[Any], list[bytes]]:
        """Send for each entry a command for its lease, then delete the entry: a holder cannot store it any more.

        Return the replies of the first, and which entries there were.
        """
        commands = [
            command for lease, entry in zip(first, entries, strict=True) for command in (lease, ("UNLINK", entry))
        ]
        replies: list[Any] = await self.link.many(client, commands, budget=budget) if commands else []
        return replies[::2], [entry for entry, gone in zip(entries, replies[1::2], strict=True) if gone]

    def _fills(self, writes: Iterable[Write]) -> list[Command]:
        in_slot = self._names.in_slot
        return [FILL.call(in_slot(entry), (held, raw, ttl_ms)) for entry, held, raw, ttl_ms, *_ in writes]

    def _release(self, entry: bytes, token: str) -> Command:
        return RELEASE.call((self.keyspace.lease(entry),), (token,))


def _count(swept: Swept, gone: Collection[bytes], wide: Iterable[Target]) -> None:
    """Count deleted entries, each for the target with the longest head that it lies under."""
    swept.deleted += len(gone)
    heads = {target.head: target for target in wide}
    lengths = sorted(set(map(len, heads)), reverse=True)
    for entry in gone:
        target = next((heads[entry[:each]] for each in lengths if entry[:each] in heads), None)
        if target is not None:
            swept.dropped[target] += 1


def _exactly(entries: Iterable[bytes]) -> list[Target]:
    return [Target(entry, EXACTLY) for entry in entries]
