"""Whether the data of a cluster can be relied on: each of its servers, and all that it has had, has been looked at.

A server that is started again, or a replica that takes over, may lack the latest writes. Entries that had been deleted
are back then; and its shards of the index do not know of some entries on other servers. So a server is known by its
*history* (`master_replid`), which begins anew with every start and every takeover. Those that are known to be good are
noted in every shard. Where there is one that is not, one process deletes all there is, slot by slot, by the rosters: a
roster lies in the slot of what it lists, so that it cannot be older.

A lease that came back is of no use: it holds the history it was given in (`sealed` in Lua).
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Any

from redis.exceptions import NoScriptError

from fastrdb.errors import CacheUnavailableError

from .health import OTHER_DATA, Health
from .restarts import Evicts
from .scripts import Call, Command, Script
from .slots import SlotNames
from .timeouts import ended

logger = logging.getLogger("fastrdb")

LOOK = Call(Script.load("look"), (), ())
_HEALING_MS = 2_000
"""A process that has not gone on for so long is taken for dead: several times as long as a step may last."""
_PAUSE = 0.05
WHOLE = b"\0"
"""A member of each index from its beginning: an index without it has been lost, and has begun anew."""
NOT_YET = b"\0\0"
"""What members begin with that say no more than that there is an index."""
_NOBODY = b"0" * 32 + b"\0\n"  # a barrier that bars no key

Send = Callable[[Sequence[Command]], Awaitable[list[Any]]]
DeleteAll = Callable[[], Awaitable[object]]


class Histories:
    """What one event loop knows of it; among the `obstacles` to reading while there are histories not known as good."""

    def __init__(self, names: SlotNames, obstacles: Health) -> None:
        self._names, self._obstacles = names, obstacles
        self._good: set[bytes] = {b""}
        self._doubtful: set[bytes] = set()
        self._task: asyncio.Task[None] | None = None
        self._token = secrets.token_hex(16)
        self._untold = self._warned = False
        self._policies: dict[bytes, bytes] = {}  # by which each server evicts: they need not be the same
        self._evicts = Evicts()

    @property
    def other_data(self) -> bool:
        """Whether what is there may be anything."""
        return self in self._obstacles

    @property
    def evicts(self) -> bool:
        """Whether a server of it may evict the index."""
        return bool(self._evicts.policy)

    def question(self) -> Command:
        """Give what a server is asked before what it gives is used."""
        return LOOK.known()

    def heard(self, reply: Any) -> Command | None:
        """Take the reply, and give what to ask where it did not know the script."""
        if isinstance(reply, NoScriptError):
            return LOOK.whole()
        if isinstance(reply, Exception):  # an ACL, say: it will be the answer to every other script, too
            return None
        if reply[0]:
            self._policies[reply[0]] = reply[1]
            self._evicts.heard(max(self._policies.values()))  # mechanism: one-master-evicts
        elif not self._untold:
            self._untold = True
            logger.warning("Redis does not tell its history (%s): a takeover with old data is not noticed", reply[1])
        self.seen(reply[0])
        return None

    def seen(self, history: bytes) -> None:
        """A server has this history."""
        if history not in self._good:
            self._doubtful.add(history)
            self._obstacles.put_up(self, "restart")

    async def settle(self, run: Send) -> bool:
        """Look whether all that is doubtful is known as good; if nothing at all is known, so it is."""
        shards = self._names.shards
        looks = [command for s in shards for command in (("SMEMBERS", s.histories), ("EXISTS", s.index))]
        replies = await run(looks)
        lists = [reply for reply in replies[::2] if not isinstance(reply, Exception)]
        noted = {history for each in lists for history in each}
        if not noted and all(reply == 0 for reply in replies[1::2]):
            noted = set(self._doubtful)
            await self._note(run, noted)
        self._doubtful -= noted
        self._good |= noted
        if not self._doubtful:
            self._obstacles.take_down(self, "healing")
        return not self._doubtful

    def heal(self, run: Send, delete_all: DeleteAll) -> None:
        """See to it that somebody deletes what is there."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._heal(run, delete_all), context=Context())

    def going_on(self) -> Command:
        """Give what is to be sent with each step of the deletion, so that nobody takes this process for dead."""
        return ("PEXPIRE", self._names.healing, _HEALING_MS)

    async def aclose(self) -> None:
        """Stop; another process, or the next who comes, does it."""
        if self._task is not None:
            await ended((self._task,))

    async def _heal(self, run: Send, delete_all: DeleteAll) -> None:
        try:
            with suppress(CacheUnavailableError):  # who asks next tries again
                while not await self.settle(run):
                    self._warn()
                    await (self._take_turn(run, delete_all) if await self._mine(run) else asyncio.sleep(_PAUSE))
                if self._warned:
                    logger.info("everything has been invalidated: the cache is used again")
                self._warned = False
        finally:
            self._task = None

    def _warn(self) -> None:
        if not self._warned:  # said once, however often it is tried
            logger.warning("%s: everything is invalidated before it is used again", OTHER_DATA)
        self._warned = True

    async def _mine(self, run: Send) -> bool:
        """Whether this process is to do it; or was, when it could not go on."""
        healing = self._names.healing
        taken = ("SET", healing, self._token, "NX", "PX", _HEALING_MS)
        _, holder = _raised(await run((taken, ("GET", healing))))
        return bool(holder == self._token.encode())

    async def _take_turn(self, run: Send, delete_all: DeleteAll) -> None:
        try:
            doubtful = set(self._doubtful)  # what is found out from now on has not been deleted from the beginning
            await delete_all()
            await self._note(run, doubtful)
        finally:  # also if it could not: another process may be able to
            await run((("DEL", self._names.healing),))

    async def _note(self, run: Send, good: set[bytes]) -> None:
        """Note in every shard what is good, and that its index is whole."""
        if not good:
            return
        # Where all of it may have been evicted, and entries not, the first who writes has to look for them.
        member = NOT_YET if self.evicts else WHOLE  # mechanism: evicted-is-not-whole
        commands: list[Command] = []
        for shard in self._names.shards:
            # Something that stays in each key: while a slot is being moved, a script whose keys are not all there, or
            # all not there, is refused.
            commands += [
                ("ZADD", shard.expiry, "+inf", WHOLE),
                ("ZADD", shard.barriers, "+inf", _NOBODY),
                ("ZADD", shard.index, 0, member),
                ("SADD", shard.histories, *good),
            ]
        _raised(await run(commands))


def _raised(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise CacheUnavailableError("heal", str(reply)) from reply
    return replies
