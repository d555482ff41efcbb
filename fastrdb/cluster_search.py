"""A shard of a cluster's index was lost: all that it may not know of is deleted, and it is whole again.

Two ways lead to what there is, since each may fail where the other does not: the rosters, of which a server that evicts
may have lost some, and a look at all keys of each master, which may miss a slot that is being moved at the moment.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any

from .errors import CacheUnavailableError
from .link import Client, Link
from .scripts import Call, Command, Script
from .slots import SlotNames

if TYPE_CHECKING:
    from .histories import Histories

logger = logging.getLogger("fastrdb")

_SEARCH = Script.load("slot_search")
_WHOLE = Script.load("shard_whole")
_NOT_YET = b"\0\0"
_KEYS_AT_ONCE = 512


class ClusterSearch:
    """Makes shards of the index whole. `heads` is what keys begin with, as for a `Search`."""

    def __init__(self, link: Link, names: SlotNames, histories: Histories, heads: Collection[str]) -> None:
        self._link, self._names, self._histories, self._heads = link, names, histories, heads
        self._told = False

    async def make_whole(self, client: Client, progress: Callable[[], None]) -> None:
        """Delete all entries and leases, the leases first. `progress` is called on the way."""
        if not self._told:
            self._told = True
            logger.warning("the index in Redis was lost: everything is invalidated before the next write is done")
        names = self._names
        member = _NOT_YET + secrets.token_hex(16).encode()
        await self._link.many(client, [("ZADD", shard.index, 0, member) for shard in names.shards])

        async def run(commands: Sequence[Call | Command]) -> list[Any]:
            progress()
            return await self._link.run(client, commands)

        await self._histories.forget(run)
        for heads in ([names.leases], names.known(self._heads)):
            for slot in _one_of_each_master(client):
                await self._delete(client, names.roster(slot), heads, progress)
        progress()
        whole = await self._link.many(client, [Call(_WHOLE, (shard.index,), (member,)) for shard in names.shards])
        if not all(whole):
            raise CacheUnavailableError(_WHOLE.name, "the index was lost once more meanwhile")

    async def _delete(self, client: Client, place: bytes, heads: Sequence[bytes], progress: Callable[[], None]) -> None:
        """Delete what a master has whose names begin so."""
        cursor, histories = b"0", set[bytes]()
        while heads:
            progress()
            cursor, history, found = await self._link.script(
                client, Call(_SEARCH, (place,), (cursor, _KEYS_AT_ONCE, *heads))
            )
            histories.add(history)
            if len(histories) > 1:  # another has the slot by now, and the cursor means nothing to it
                raise CacheUnavailableError(_SEARCH.name, "a slot was moved meanwhile")
            await self._link.many(client, [("UNLINK", name) for name in found])
            if cursor == b"0":
                break


def _one_of_each_master(client: Any) -> list[int]:
    """A slot of each master."""
    return list({nodes[0].name: slot for slot, nodes in client.nodes_manager.slots_cache.items() if nodes}.values())
