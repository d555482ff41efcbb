"""Removal of dead members from a cluster's index: in steps, since entry, lease and index lie in different slots."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Sequence
from contextvars import Context
from typing import Any

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import Client, RedisClient

from .interface import GONE
from .keyspace import ClusterKeyspace, Shard
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
