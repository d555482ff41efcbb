"""All entries and leases of a cluster are to go: a shard of its index was lost, or it has other data.

Two ways lead to what there is, since each may fail where the other does not: the rosters, of which a server that evicts
may have lost some, and a look at all keys of each master, which may miss a slot that is being moved at the moment. All
but the two lists of names is done by commands of one key each, which a slot that is being moved does not refuse.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Sequence
from functools import partial
from typing import Any

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import NOT_YET, SLOTS, Call, Client, Command, Histories, Link, Script, SlotNames

from .sweep import Progress, nothing

logger = logging.getLogger("fastrdb")

_LISTED = Script.load("slot_listed")
_SEARCH = Script.load("slot_search")
_WHOLE = Script.load("shard_whole")
_SLOTS_AT_ONCE = 512
_NAMES_AT_ONCE = 256
_KEYS_AT_ONCE = 512

Run = Callable[[Sequence[Call | Command]], Awaitable[list[Any]]]


class ClusterSearch:
    """Finds what there is, and makes shards of the index whole. `heads` is what keys begin with, as for a `Search`."""

    def __init__(self, link: Link, names: SlotNames, histories: Histories, heads: Collection[str]) -> None:
        self._link, self._names, self._histories, self._heads = link, names, histories, heads
        self._told = False

    async def make_whole(self, client: Client, progress: Progress) -> None:
        """Delete all that the index may not know of; then it is whole again. `progress` is called on the way."""
        if not self._told:
            self._told = True
            logger.warning(
                "the index in Redis does not know all keys (it was lost, or is new): everything is invalidated"
            )
        shards = self._names.shards
        member = NOT_YET + secrets.token_hex(16).encode()
        await self._link.many(client, [("ZADD", shard.index, 0, member) for shard in shards])
        await self._delete_all(client, progress, looking=True)
        progress()
        whole = await self._link.many(client, [Call(_WHOLE, (shard.index,), (member,)) for shard in shards])
        if not all(whole):
            raise CacheUnavailableError(_WHOLE.name, "the index was lost once more meanwhile")

    async def delete_all(self, client: Client) -> None:
        """Delete all entries and leases."""
        await self._delete_all(client, nothing, looking=self._histories.evicts)  # mechanism: look-where-evicted

    async def _delete_all(self, client: Client, progress: Progress, *, looking: bool) -> None:
        """Leases first: one that has been given before this began could become an entry that nobody deletes."""
        names, run = self._names, partial(self._step, client, progress)
        rosters = await self._by_rosters(run, [*map(names.roster, range(SLOTS))], leases=True)
        if looking:
            await self._by_looking(client, run, [names.leases])  # mechanism: look-for-leases
        await self._by_rosters(run, rosters, leases=False)
        if looking:
            await self._by_looking(client, run, names.known(self._heads))

    async def _by_rosters(self, run: Run, rosters: Sequence[bytes], *, leases: bool) -> list[bytes]:
        """Delete the leases that are listed, or the entries; gives the rosters in which anything is."""
        used = dict[bytes, None]()
        for first in range(0, len(rosters), _SLOTS_AT_ONCE):
            places = dict.fromkeys(rosters[first : first + _SLOTS_AT_ONCE], b"-inf")
            while places:
                calls = [Call(_LISTED, (roster,), (place, _NAMES_AT_ONCE)) for roster, place in places.items()]
                parts = zip(places, await run(calls), strict=True)
                found = {roster: part for roster, part in parts if part[1]}
                listed = [name for _, names in found.values() for name in names]
                going = [name for name in listed if name.startswith(self._names.leases) is leases]
                await run([("UNLINK", name) for name in going])
                used |= dict.fromkeys(found)
                places = {roster: place for roster, (place, _) in found.items() if place}
        return list(used)

    async def _by_looking(self, client: Client, run: Run, heads: Sequence[bytes]) -> None:
        """Delete what masters have whose names begin so, and that expires: what does not is none of ours."""
        if not heads:
            return
        await self._link.look(client)  # mechanism: look-by-current-map
        looked_at: set[bytes] = set()
        for slot in _one_of_each_master(client):
            cursor, histories = b"0", set[bytes]()
            while not histories or cursor != b"0":
                search = Call(_SEARCH, (self._names.roster(slot),), (cursor, _KEYS_AT_ONCE, *heads))
                ((cursor, history, found),) = await run([search])
                histories.add(history)
                lives = await run([("PTTL", name) for name in found])
                await run([("UNLINK", name) for name, ms in zip(found, lives, strict=True) if ms > 0])
            # Another has got the slot: the cursor means nothing to it, or it has been looked at in another's place.
            if len(histories) > 1 or histories & looked_at - {b""}:
                raise CacheUnavailableError(_SEARCH.name, "a slot was moved meanwhile")
            looked_at |= histories

    async def _step(self, client: Client, progress: Progress, commands: Sequence[Call | Command]) -> list[Any]:
        progress()
        replies = await self._link.portions(client, [self._histories.going_on(), *commands], 1024)
        return replies[1:]


def _one_of_each_master(client: Any) -> list[int]:
    """A slot of each master."""
    return list({nodes[0].name: slot for slot, nodes in client.nodes_manager.slots_cache.items() if nodes}.values())
