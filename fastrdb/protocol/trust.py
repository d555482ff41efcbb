"""Whether the data in Redis can be trusted: after a restart or a failover, everything is invalidated once.

A server that was restarted from a snapshot, or a replica that was promoted, may lack the latest deletes: entries are
back that had been invalidated. A server is known by its replication id, which changes with each start and each
promotion. The ids whose data is trusted are noted beside the index, in each shard. Where a server has another id, one
process deletes everything, and notes the id.

A former master that was not restarted has its old id, and an old note. So each healing notes a new mark besides. The
marks are numbered, and a process remembers the newest one: a note with that mark has all that was noted before. The
latest healings stay in a note. A process that has slept through more of them finds that its mark is missing, and heals.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoScriptError

from fastrdb.errors import CacheUnavailableError
from fastrdb.transport import OTHER_DATA, Command, Health, ended, whole

from .keyspace import COMPLETE, INCOMPLETE, NO_BARRIER, ClusterKeyspace, Keyspace
from .lua import load_script

logger = logging.getLogger("fastrdb")

Send = Callable[[Sequence[Command]], Awaitable[list[Any]]]
DeleteAll = Callable[[], Awaitable[object]]

GREET_SERVER, GREET_CLUSTER = load_script("server", "greet"), load_script("cluster", "greet")
_HEALING_MS = 2_000
"""A healing process that does not renew its lock for so long is taken for dead."""
_PAUSE_S = 0.05
_HEALINGS_KEPT = 16
"""So many healings a process may sleep through, and still find its mark in the note."""


class Trust:
    """The trust of one event loop in its servers. While data is not trusted, this object blocks reads.

    It is the greeting of connections: what each one begins with, and repeats once a second.
    """

    def __init__(self, keyspace: Keyspace, health: Health) -> None:
        self._keyspace, self._health = keyspace, health
        self._on_cluster = isinstance(keyspace, ClusterKeyspace)
        keys = () if self._on_cluster else keyspace.shards[0].all
        self._greeting = (GREET_CLUSTER if self._on_cluster else GREET_SERVER).call(keys, (keyspace.before,))
        self._newest: set[bytes] = set()  # the mark with the highest number, of all trusted notes
        self._met: set[bytes] = set()  # ids: on a cluster all since the beginning, else the latest
        self._unknown: set[bytes] = set()  # of these, the ids that no trusted note had
        self._noted: dict[bytes, float] = {}  # the latest note, with its numbers
        # Whether a server may evict the index, and its policy, by id: servers need not have the same.
        self._policies: dict[bytes, tuple[bool, bytes]] = {}
        self._policy: tuple[bool, bytes] = False, b""
        self._without_entries = True
        self._token = secrets.token_hex(16)  # for all attempts: a process that failed need not wait for itself
        self._task: asyncio.Task[None] | None = None
        self._logged_unknown = self._logged_healing = False

    @property
    def other_data(self) -> bool:
        """Return whether what is there is not trusted."""
        return self in self._health

    @property
    def evicts(self) -> bool:
        """Return whether a server may evict the index."""
        return self._policy[0]

    @property
    def policy(self) -> str:
        """Return the eviction policy of the server, of several one that may evict the index; "" if none is known."""
        return self._policy[1].decode()

    # --- greetings

    def question(self) -> Command:
        """Return what a server is asked before its data is used."""
        return self._greeting

    def take_reply(self, reply: Any) -> Command | None:
        """Take the reply to the question. Return what to ask instead if the server did not have the script.

        Raises redis-py's ConnectionError if this server is not to be used.
        """
        if isinstance(reply, NoScriptError):
            return whole(self._greeting)
        if isinstance(reply, Exception):  # an ACL, say: every other script will get the same error
            return None
        replication_id, role, *more = reply
        if not replication_id:
            self._cannot_know(role)
        elif self._on_cluster:
            self._note_policy(replication_id, (bool(more[1]), more[0]))
            self._without_entries = self._without_entries and bool(more[2])
            self.saw(replication_id)
        elif role == b"slave":
            raise RedisConnectionError("the server is a replica, which may be behind: it is not used")
        else:
            self._note_policy(replication_id, (bool(more[1]), more[0]))
            self._met = self._unknown = {replication_id}
            self._judge(_numbered(more[2]))  # mechanism: greeting-judged
        return None

    def saw(self, replication_id: bytes) -> None:
        """Take the id of a server of a cluster. A new one blocks reads until its note has been read."""
        if replication_id and replication_id not in self._noted:
            self._met.add(replication_id)
            self._unknown.add(replication_id)
            self.distrust()

    def distrust(self) -> None:
        """Block reads: a script has found out that the data is not its server's own."""
        self._health.block(self, "restart")

    async def settle(self, send: Send) -> bool:
        """Read the notes, and return whether the data is trusted. Where nothing is there at all, a new note is made."""
        if not self._on_cluster:
            (reply,) = await send((self._greeting,))
            self.take_reply(reply)
            return not self.other_data
        shards = self._keyspace.shards
        commands = [
            command
            for shard in shards
            for command in (("ZRANGEBYSCORE", shard.trusted, "-inf", "+inf", "WITHSCORES"), ("EXISTS", shard.index))
        ]
        replies = await send(commands)
        noted = dict[bytes, float]()
        for reply in replies[::2]:
            for each, number in ({} if isinstance(reply, Exception) else _numbered(reply)).items():
                noted[each] = max(number, noted.get(each, 0.0))
        if not noted and all(reply == 0 for reply in replies[1::2]):
            noted = dict.fromkeys(self._newest | self._met, 0.0)
            await self._note(send, noted, complete=self._without_entries)
        self._judge(noted)
        return not self.other_data

    def _judge(self, noted: dict[bytes, float]) -> None:
        self._noted = noted
        if not self._newest | self._unknown <= noted.keys():  # mechanism: note-has-all-seen
            self.distrust()
            return
        newest = max(noted.values(), default=0.0)
        self._newest = {each for each, number in noted.items() if number == newest}  # mechanism: newest-mark-remembered
        self._unknown = set()
        self._health.unblock(self, "healing")

    def _cannot_know(self, why: bytes) -> None:
        if not self._on_cluster:
            self._health.unblock(self, "healing")
        if not self._logged_unknown:
            self._logged_unknown = True
            reason = why.decode("utf-8", "replace")
            logger.warning("Redis gives no replication id (%s): a restart with old data is not noticed", reason)

    def _note_policy(self, replication_id: bytes, policy: tuple[bool, bytes]) -> None:
        if not self._on_cluster:
            self._policies.clear()
        self._policies[replication_id] = policy
        found = max(self._policies.values())  # mechanism: one-master-evicts
        if found[0] and found != self._policy:
            logger.warning(
                "Redis has maxmemory-policy %s and may evict the index: each time it does, the next write has to scan "
                "all keys. Set noeviction or volatile-*",
                found[1].decode(),
            )
        self._policy = found

    # --- healing

    def heal(self, send: Send, delete_all: DeleteAll) -> None:
        """Start deleting what is there in the background, in one process of all, unless this runs already."""
        if self._task is None:
            self._task = asyncio.get_running_loop().create_task(self._heal(send, delete_all), context=Context())
            self._task.add_done_callback(self._healed)

    async def aclose(self) -> None:
        """Stop. Another process, or the next call, goes on."""
        if self._task is not None:
            await ended((self._task,))

    async def _heal(self, send: Send, delete_all: DeleteAll) -> None:
        with suppress(CacheUnavailableError, RedisConnectionError):  # the next call tries again
            while not await self.settle(send):
                if not self._logged_healing:  # once, however often it is tried
                    self._logged_healing = True
                    logger.warning("%s: everything is invalidated before it is used again", OTHER_DATA)
                await (self._take_turn(send, delete_all) if await self._has_lock(send) else asyncio.sleep(_PAUSE_S))
            if self._logged_healing:
                logger.info("everything has been invalidated: the cache is used again")
            self._logged_healing = False

    def _healed(self, task: asyncio.Task[None]) -> None:
        self._task = None

    async def _has_lock(self, send: Send) -> bool:
        healing = self._keyspace.healing
        taken = ("SET", healing, self._token, "NX", "PX", _HEALING_MS)
        _, holder = _raised(await send((taken, ("GET", healing))))
        return bool(holder == self._token.encode())

    async def _take_turn(self, send: Send, delete_all: DeleteAll) -> None:
        renewing = asyncio.get_running_loop().create_task(self._renew_lock(send))
        try:
            seen = self._newest | self._met  # a server that is met from now on has not been deleted from the beginning
            await delete_all()  # mechanism: healed-life
            number = max(self._noted.values(), default=0.0) + 1
            # The mark has a number of its own: an id may be in an older note, too.
            noted = {**dict.fromkeys(seen, number), secrets.token_hex(16).encode(): number + 1}
            # Where an index may have been evicted, and entries not, the first writer has to look for them.
            await self._note(send, noted, complete=not self.evicts)
        finally:  # after a failure, too: another process may be able to
            await ended((renewing,))
            await send((("DEL", self._keyspace.healing),))

    async def _renew_lock(self, send: Send) -> None:
        while True:
            await asyncio.sleep(_HEALING_MS / 4000)
            with suppress(CacheUnavailableError):
                await send((("PEXPIRE", self._keyspace.healing, _HEALING_MS),))

    async def _note(self, send: Send, trusted: dict[bytes, float], *, complete: bool) -> None:
        """Note in every shard what is trusted, and drop the oldest.

        On a cluster, note also that there is an index, and if it is complete.
        """
        if not trusted:
            return
        commands: list[Command] = []
        member = COMPLETE if complete else INCOMPLETE  # mechanism: evicted-is-not-whole
        oldest = max(trusted.values()) - 2 * _HEALINGS_KEPT
        for shard in self._keyspace.shards:
            if self._on_cluster:
                # A member that stays in each key: while a slot is being moved, a script is refused whose keys are
                # neither all there nor all gone.
                commands += [
                    ("ZADD", shard.expiry, "+inf", COMPLETE),
                    ("ZADD", shard.barriers, "+inf", NO_BARRIER),
                    ("ZADD", shard.index, 0, member),
                ]
            members = (part for each in sorted(trusted) for part in (f"{trusted[each]:.0f}", each))
            commands.append(("ZADD", shard.trusted, *members))
            commands.append(("ZREMRANGEBYSCORE", shard.trusted, "-inf", f"({oldest:.0f}"))
        _raised(await send(commands))


def _numbered(reply: Sequence[Any]) -> dict[bytes, float]:
    """Return the members of a note with their numbers, of a script's reply or of a command's in RESP2 or RESP3."""
    pairs = reply if reply and isinstance(reply[0], list | tuple) else zip(reply[::2], reply[1::2], strict=True)
    return {each: float(number) for each, number in pairs}


def _raised(replies: list[Any]) -> list[Any]:
    for reply in replies:
        if isinstance(reply, Exception):
            raise CacheUnavailableError("heal", str(reply)) from reply
    return replies
