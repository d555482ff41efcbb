"""The index of a cluster when it does not say what there is: dead members are removed, lost ones found.

Entry, lease and index lie in different slots, so dead members are removed in steps.

If a shard of the index was lost, or its data is not trusted, all entries and leases are deleted. Two ways lead to
them, since each may fail where the other does not. One is the rosters, of which a server that evicts may have lost
some. The other is a scan of all keys of each master, which may miss a slot that is being moved. All but the two lists
of names is done by commands of one key each, which a slot that is being moved does not refuse.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import Context
from functools import partial
from typing import Any

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import SLOTS, Budget, Client, Command, RedisClient

from .keyspace import COMPLETE, GONE, INCOMPLETE, ClusterKeyspace, Shard, portions
from .lua import load_script

REMOVE_DEAD = load_script("cluster", "remove_dead")
_MOST_DUE = 4096
"""So many members of the index wait to be checked for death; further ones are found again later."""
_DUE_AT_ONCE = 256


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
        commands = [("PTTL", name) for member, _ in due for name in (self._keyspace.lease(member), member)]
        lives = await self._link.many(client, commands)
        shards: defaultdict[Shard, list[Any]] = defaultdict(list)
        for (member, score), lease, entry in zip(due, lives[::2], lives[1::2], strict=True):
            life = "" if lease == entry == GONE else max(lease, entry)
            shards[self._keyspace.shard(member)] += (member, score, life)
        await self._link.many(
            client,
            [
                REMOVE_DEAD.call((shard.index, shard.expiry, shard.tags, shard.tagged), each)
                for shard, each in shards.items()
            ],
        )


logger = logging.getLogger("fastrdb")

LISTED, SCAN, MAKE_COMPLETE = (load_script("cluster", name) for name in ("listed", "scan", "complete"))
_SLOTS_AT_ONCE = 512
_NAMES_AT_ONCE = 256
_KEYS_AT_ONCE = 512
_COMMANDS_AT_ONCE = 1024
_PAUSE_S = 0.05

Run = Callable[[Sequence[Command]], Awaitable[list[Any]]]


class ClusterScan:
    """Finds all entries, and makes shards of the index complete. `heads` is what keys begin with, as for a backend."""

    def __init__(self, link: RedisClient, keyspace: ClusterKeyspace, heads: Collection[str]) -> None:
        self._link, self._keyspace, self._heads = link, keyspace, heads
        self._one_at_a_time = asyncio.Lock()
        self._logged_loss = False

    async def make_complete(self, client: Client, link: RedisClient, budget: Budget) -> None:
        """Delete all keys that the index may lack, and mark it complete. Only one writer of this process does so."""
        while self._one_at_a_time.locked():
            budget.renew()
            await asyncio.sleep(_PAUSE_S)
        async with self._one_at_a_time:
            shards = self._keyspace.shards
            known = await link.many(client, [("ZSCORE", shard.index, COMPLETE) for shard in shards], budget=budget)
            if None not in known:  # by another writer, meanwhile
                return
            if not self._logged_loss:
                self._logged_loss = True
                logger.warning(
                    "the index in Redis does not have all keys (it was lost, or is new): everything is invalidated"
                )
            member = INCOMPLETE + secrets.token_hex(16).encode()
            await link.many(client, [("ZADD", shard.index, 0, member) for shard in shards], budget=budget)
            await self._delete_all(client, partial(_step, link, client, budget), scanning=True)
            budget.renew()
            calls = [MAKE_COMPLETE.call((shard.index,), (member,)) for shard in shards]
            complete = await link.many(client, calls, budget=budget)
            if not all(complete):
                raise CacheUnavailableError(MAKE_COMPLETE.name, "the index was lost once more meanwhile")

    async def delete_all(self, client: Client, scanning: bool) -> None:
        """Delete all entries and leases; with `scanning`, also those that no roster has."""
        run = partial(_step, self._link, client, self._link.budget(client))
        await self._delete_all(client, run, scanning=scanning)  # mechanism: look-where-evicted

    async def _delete_all(self, client: Client, run: Run, *, scanning: bool) -> None:
        """Delete leases first: one that was granted before could become an entry that nothing deletes."""
        names = self._keyspace
        rosters = [*map(names.roster, range(SLOTS))]
        found = await run([("EXISTS", roster) for roster in rosters])
        used = [roster for roster, exists in zip(rosters, found, strict=True) if exists]
        await self._by_rosters(run, used, leases=True)
        if scanning:
            await self._by_scan(client, run, [names.leases])  # mechanism: look-for-leases
        await self._by_rosters(run, used, leases=False)
        if scanning:
            await self._by_scan(client, run, names.known(self._heads))

    async def _by_rosters(self, run: Run, rosters: Sequence[bytes], *, leases: bool) -> None:
        """Delete the leases that are listed, or the entries."""
        for portion in portions(rosters, _SLOTS_AT_ONCE):
            places = dict.fromkeys(portion, b"-inf")
            while places:
                calls = [LISTED.call((roster,), (place, _NAMES_AT_ONCE)) for roster, place in places.items()]
                parts = dict(zip(places, await run(calls), strict=True))
                listed = [name for _, names in parts.values() for name in names]
                await run([("UNLINK", name) for name in listed if name.startswith(self._keyspace.leases) is leases])
                places = {roster: place for roster, (place, _) in parts.items() if place}

    async def _by_scan(self, client: Client, run: Run, heads: Sequence[bytes]) -> None:
        """Delete what masters have whose names begin so, and that expires: other keys are not fastrdb's."""
        if not heads:
            return
        await self._link.look(client)  # mechanism: look-by-current-map
        scanned: set[bytes] = set()
        for slot in one_of_each_master(client):
            cursor, ids = b"0", set[bytes]()
            while not ids or cursor != b"0":
                ((cursor, replication_id, found),) = await run(
                    [SCAN.call((self._keyspace.roster(slot),), (cursor, _KEYS_AT_ONCE, *heads))]
                )
                ids.add(replication_id)
                lives = await run([("PTTL", name) for name in found])
                await run([("UNLINK", name) for name, ms in zip(found, lives, strict=True) if ms > 0])
            # Another master has the slot now: the cursor means nothing to it, or it was scanned in another's place.
            if len(ids) > 1 or ids & scanned - {b""}:
                raise CacheUnavailableError(SCAN.name, "a slot was moved meanwhile")
            scanned |= ids


async def _step(link: RedisClient, client: Client, budget: Budget, commands: Sequence[Command]) -> list[Any]:
    budget.renew()
    return await link.many(client, commands, budget=budget, portion=_COMMANDS_AT_ONCE)


def one_of_each_master(client: Any) -> list[int]:
    """Return a slot of each master."""
    return list({nodes[0].name: slot for slot, nodes in client.nodes_manager.slots_cache.items() if nodes}.values())
