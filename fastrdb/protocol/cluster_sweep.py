"""A writer's steps on a cluster, where each slot is a step of its own.

In each shard that is reached, in one script: barriers up, see what the index has, put into it what will be written
through. Then, for each key: its lease away (or taken), its entry away; in this order, and by commands of one key each,
which a slot that is being moved does not refuse. After the COMMIT: fills, and then the barriers down.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict, deque
from collections.abc import Iterable, Iterator, MutableMapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import TryAgainError

from fastrdb.errors import CacheUnavailableError
from fastrdb.near import NearCache
from fastrdb.transport import (
    EXACTLY,
    OTHER_DATA,
    Call,
    Client,
    Command,
    Link,
    Range,
    Script,
    Shard,
    SlotNames,
    Target,
    lists,
)

from .cluster_leases import fill_calls
from .cluster_search import ClusterSearch
from .outcomes import Fill
from .sweep import Progress, batches, nothing, one_by_one

if TYPE_CHECKING:
    from fastrdb.transport import Histories

T = TypeVar("T")

_FENCE = Script.load("shard_fence")
_UNBAR = Script.load("shard_unbar")
_TAKE = Script.load("slot_take")
_RELEASE = Script.load("slot_release")
_HOLDER = Script.load("slot_holder")

_TRIES, _PAUSE = 10, 0.01
_LOST = -1

_Job = tuple[list[bytes], list[Range], list[bytes]]  # barriers, ranges, keys for the index


class ClusterSweeper:
    """The steps on a cluster."""

    def __init__(
        self,
        link: Link,
        names: SlotNames,
        histories: Histories,
        search: ClusterSearch,
        *,
        barrier_ms: int,
        chunk: int,
        near: NearCache,
    ) -> None:
        self._link, self.names, self._histories, self._search = link, names, histories, search
        self._barrier_ms, self._chunk, self._near = barrier_ms, chunk, near

    async def begin(
        self,
        client: Client,
        token: str,
        fence: Sequence[Target],
        targets: Iterable[Target],
        leases: MutableMapping[bytes, str] | None = None,
        *,
        again: bool = False,
        progress: Progress = nothing,
    ) -> int:
        """Bar, delete, take leases. Fence, deletions and leases of one portion are one piece of work."""
        each, leases = list(targets), {} if leases is None else leases
        barriers, indexed = self._by_shard(fence), self._by_shard(_exactly(leases))
        ranges = [target.range() for target in each if not target.exact]
        jobs = {
            shard: deque(self._jobs([target.barrier(token) for target in barriers[shard]], ranges, indexed[shard]))
            for shard in self.names.shards
        }
        keys = {target.head for target in each if target.exact}
        own, spared, deleted = set(leases), token if again else None, 0
        with self._near.shut([each.head for each in ranges], [*keys, *leases]):
            while any(jobs.values()):
                keys |= await self._fence(client, jobs, progress)
                deleted += await self._delete(client, keys - own, spared, progress)
                keys = set()
                if any(jobs.values()):
                    progress()
            deleted += await self._delete(client, keys - own, spared, progress)
            return deleted + await self._take(client, token, leases, progress)

    async def delete(self, client: Client, targets: Iterable[Target], progress: Progress = nothing) -> int:
        """Delete what the targets reach."""
        return await self.begin(client, "", (), targets, progress=progress)

    async def end(
        self,
        client: Client,
        token: str,
        fills: Sequence[Fill],
        released: Sequence[bytes],
        fence: Sequence[Target],
        progress: Progress = nothing,
    ) -> bool:
        """Fill, give back, take barriers down."""
        back = [*released]
        for portion in _portions(fills, self._chunk, progress):
            stores = fill_calls(self.names, portion)
            replies = await self._link.run(client, stores)
            # A slot that is being moved refuses this: it is not stored then. The rest must not fail for it.
            refused = [isinstance(reply, TryAgainError) for reply in replies]
            back += [fill.entry for fill, is_refused in zip(portion, refused, strict=True) if is_refused]
            self._link.raised(stores, [0 if each else reply for each, reply in zip(refused, replies, strict=True)])
        releases = [Call(_RELEASE, (self.names.lease(entry),), (token,)) for entry in back]
        for calls in _portions(releases, self._chunk, progress):
            await self._link.many(client, calls)
        down = [
            Call(_UNBAR, (shard.barriers,), [target.barrier(token) for target in targets])
            for shard, targets in self._by_shard(fence).items()
        ]
        stood = await self._patiently(client, down) if down else []
        return all(stood) and not self._histories.other_data

    def heal(self, client: Client) -> None:
        """See to it that somebody deletes what is there: it is other data."""
        self._histories.heal(partial(self._link.run, client), partial(self._search.delete_all, client))

    # --- parts

    def _by_shard(self, targets: Iterable[Target]) -> defaultdict[Shard, list[Target]]:
        """Which targets concern which shard: a single key its own, a prefix all of them."""
        shards: defaultdict[Shard, list[Target]] = defaultdict(list)
        for target in targets:
            for shard in (self.names.shard(target.head),) if target.exact else self.names.shards:
                shards[shard].append(target)
        return shards

    def _jobs(self, barriers: list[bytes], ranges: list[Range], indexed: list[Target]) -> Iterator[_Job]:
        for job in batches(self._chunk, barriers, ranges, [target.head for target in indexed]):
            yield job[0], job[1], job[2]

    async def _fence(self, client: Client, jobs: dict[Shard, deque[_Job]], progress: Progress) -> set[bytes]:
        """Do the next job of each shard; gives the keys that are reached. A job that is not done yet stays.

        Where an index was lost nothing is done yet, but all that it does not know of is gone.
        """
        working = [(shard, shard_jobs) for shard, shard_jobs in jobs.items() if shard_jobs]
        calls = [
            Call(_FENCE, shard.work, (self._barrier_ms, self._chunk, *lists(*shard_jobs[0])))
            for shard, shard_jobs in working
        ]
        replies = await self._patiently(client, calls)
        # Found out meanwhile: the shards may not know of keys that there are. Unless that server was only new to us.
        if self._histories.other_data and not await self._histories.settle(partial(self._link.run, client)):
            self.heal(client)
            raise CacheUnavailableError(_FENCE.name, OTHER_DATA)
        if any(done == _LOST for done, *_ in replies):
            await self._search.make_whole(client, progress)
            return set()
        reached: set[bytes] = set()
        for (_, shard_jobs), (done, last, keys) in zip(working, replies, strict=True):
            reached.update(keys)
            _, ranges, indexed = shard_jobs.popleft()
            if done < len(ranges):
                # The barriers stand; go on in the range that the script stopped in, behind the last key it looked at.
                rest = [ranges[done]._replace(start=b"(" + last), *ranges[done + 1 :]]
                shard_jobs.appendleft(([], rest, indexed))
        return reached

    async def _patiently(self, client: Client, calls: Sequence[Call]) -> list[Any]:
        """Run scripts; try again where the keys of a shard are being moved, one after the other."""
        replies: list[Any] = []
        for _ in range(_TRIES):
            replies = await self._link.run(client, calls)
            if not any(isinstance(reply, TryAgainError) for reply in replies):
                break
            await asyncio.sleep(_PAUSE)
        return self._link.raised(calls, replies)

    async def _delete(self, client: Client, keys: Iterable[bytes], spared: str | None, progress: Progress) -> int:
        """Delete keys with their leases, but those whose lease is held by the spared token."""
        deleted = 0
        for portion in _portions(list(keys), self._chunk, progress):
            going = portion
            if spared is not None:
                holders = await self._link.many(
                    client, [Call(_HOLDER, (self.names.lease(key),), ()) for key in portion]
                )
                going = [key for key, held in zip(portion, holders, strict=True) if held != spared.encode()]
            deleted += (await self._away(client, [("DEL", self.names.lease(key)) for key in going], going))[1]
        return deleted

    async def _take(self, client: Client, token: str, entries: MutableMapping[bytes, str], progress: Progress) -> int:
        """Take leases, note what they hold, and delete the entries."""
        deleted = 0
        for portion in _portions(list(entries), self._chunk, progress):
            takes = [Call(_TAKE, (self.names.lease(entry),), (token, self._barrier_ms)) for entry in portion]
            held, gone = await self._away(client, takes, portion)
            entries.update(zip(portion, (each.decode() for each in held), strict=True))
            deleted += gone
        if self._histories.evicts:  # the index may have been lost since they were put into it
            await self._patiently(client, [self._index(*job) for job in self._by_shard(_exactly(entries)).items()])
        return deleted

    def _index(self, shard: Shard, targets: Sequence[Target]) -> Call:
        """Put keys into the index, and nothing else."""
        return Call(
            _FENCE, shard.work, (self._barrier_ms, self._chunk, *lists((), (), [each.head for each in targets]))
        )

    async def _away(
        self, client: Client, first: Sequence[Call | Command], entries: Sequence[bytes]
    ) -> tuple[list[Any], int]:
        """For each entry its lease first, and then itself: whoever would store it cannot do so any more."""
        commands = [
            command for lease, entry in zip(first, entries, strict=True) for command in (lease, ("UNLINK", entry))
        ]
        replies: list[Any] = await self._link.many(client, commands) if commands else []
        return replies[::2], sum(replies[1::2])


def _exactly(entries: Iterable[bytes]) -> list[Target]:
    return [Target(entry, EXACTLY) for entry in entries]


def _portions(items: Sequence[T], size: int, progress: Progress) -> Iterator[Sequence[T]]:
    return one_by_one((items[at : at + size] for at in range(0, len(items), size)), progress)
