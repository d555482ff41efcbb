"""The masters of a cluster: a wire to each, commands sent to whom they belong, and followed where they have gone.

Which master has which slot is the client's to know; it is asked to look again when a master does not answer, or says
that a slot has gone to one that is not known. Not for each slot that moves: with the map redis-py changes connections,
too. Everything is sent here, not by the client, so that each connection is greeted before it is used:
a replica that has taken over is noticed before anything is read from it.
"""

from __future__ import annotations

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any, TypeVar
from weakref import ref

from redis.exceptions import AskError, MovedError
from redis.exceptions import ConnectionError as RedisConnectionError

from fastrdb.errors import CacheUnavailableError

from .deadlines import Deadlines
from .histories import Histories
from .looks import Looks
from .nodes import Master, NodeSource
from .pipeline import Boundary
from .scripts import Command
from .slots import key_of, slot_of

T = TypeVar("T")

REDIRECTIONS = 3
"""So often a command follows a slot that is being moved; then its caller goes on without the cache."""

Met = Callable[[Any, str, Callable[[], None]], None]
"""Told of a client, the name of a master that it is about to ask, and how to have the map of the cluster looked at."""


class Masters:
    """The route to a cluster. `met` is told of each master before it is asked for anything."""

    def __init__(
        self, client: Any, deadlines: Deadlines, histories: Histories, boundary: Boundary, met: Met | None = None
    ) -> None:
        self._met = met
        self._client, self._deadlines, self._histories, self._boundary = ref(client), deadlines, histories, boundary
        self._masters: dict[str, Master] = {}
        self._map: Any = None
        self._slots: dict[int, Master] = {}
        self._looks = Looks(deadlines, boundary)
        self._open = False
        self._opening: asyncio.Task[None] | None = None

    async def get(self, name: bytes) -> bytes | None:
        """Give the value of a key."""
        if not self._open:
            return await self._first(partial(self.get, name))
        master = self._of_slot(slot_of(name))
        if master.breaker.opened:
            master.check()
        try:
            return await master.wire.get(name)
        except AskError as error:
            reply = await self._follow_get(name, master, error)
        refused = self._boundary.answered()
        if refused is not None:
            raise refused
        if isinstance(reply, Exception):
            raise self._boundary.failed("GET", reply)
        raw: bytes | None = reply
        return raw

    async def send(self, commands: Sequence[Command], *, insist: bool = False) -> list[Any]:
        """Send commands, those of each slot in their order; what fails is given as it is, an exception.

        To `insist` is to try also the masters that have not answered lately.
        """
        if not self._open:
            return await self._first(partial(self.send, commands, insist=insist))
        return await self._send(commands, insist=insist)

    def due(self, names: Collection[bytes]) -> float:
        """By when the first of what has just been read of these keys was due."""
        asked = (self._slots.get(slot_of(name)) for name in names)
        return min((master.wire.answer_due for master in asked if master is not None), default=0.0)

    def crowded(self) -> bool:
        """Whether so many ask one of the masters at once that they wait for each other."""
        return any(master.wire.crowded() for master in self._masters.values())

    async def aclose(self, *, closing: bool = False) -> None:
        """Give connections back, or close them before."""
        if (opening := self._opening) is not None:
            await self._looks.aclose()
            await asyncio.wait({opening})
        for master in list(self._masters.values()):
            await master.aclose(closing=closing)
        await self._looks.aclose()  # last, for a master that does not answer has the map looked at

    def lose(self) -> None:
        """Forget all connections: the event loop has ended."""
        for master in self._masters.values():
            master.lose()

    # --- who has what

    async def look(self) -> None:
        """Have the client look at the map of the cluster, and wait for it."""
        await self._looks.wait(self._alive().nodes_manager)

    def look_soon(self) -> None:
        """Have the client look at the map of the cluster, if it has not done so just now."""
        self._looks.soon(self._alive().nodes_manager)

    def _of_slot(self, slot: int) -> Master:
        client = self._client()
        known = None if client is None else client.nodes_manager.slots_cache
        if known is not self._map:  # it has looked since
            self._map = known
            self._slots.clear()
        master = self._slots.get(slot)
        if master is None:
            nodes = self._alive().nodes_manager.slots_cache.get(slot)
            if not nodes:
                self.look_soon()
                raise CacheUnavailableError("send", f"no server has slot {slot}")
            master = self._slots[slot] = self._master(nodes[0].name)
        return master

    def _master(self, name: str) -> Master:
        if self._met is not None:
            self._met(self._alive(), name, self.look_soon)
        master = self._masters.get(name)
        if master is None:
            source = NodeSource(self._alive(), name)
            master = self._masters[name] = Master(
                source, self._deadlines, self._histories, self._boundary, self.look_soon
            )
        return master

    def _alive(self) -> Any:
        client = self._client()
        if client is None:
            raise CacheUnavailableError("send", "the client is gone")
        return client

    # --- the beginning

    async def _first(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Ask what is the first to be asked, under one deadline with all that comes before it."""
        if self._opening is None:
            self._opening = asyncio.get_running_loop().create_task(self._begin(), context=Context())
            self._opening.add_done_callback(self._has_begun)
        opening = self._opening
        try:
            with self._deadlines.start() as deadline:
                await asyncio.wait({opening})
                if not self._open:
                    error = None if opening.cancelled() else opening.exception()
                    raise CacheUnavailableError("connect", getattr(error, "reason", error))
                found = await ask()
                for master in self._masters.values():  # what follows from the answer goes on under the same deadline
                    master.wire.answer_due = min(master.wire.answer_due, deadline.when)
                return found
        except TimeoutError as late:  # counted where it was noticed
            raise CacheUnavailableError("connect", "the cluster is still being looked at") from late

    def _has_begun(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # those who wait for it are told; it may be that nobody does any more

    async def _begin(self) -> None:
        """Look who is there, and whether what they have can be relied on. In a task of its own, as a look is."""
        client = self._alive()
        await self._looks.wait(client)
        names = [node.name for node in client.get_primaries()]
        if not names:
            raise self._boundary.failed("connect", RedisConnectionError("no server of the cluster answers"))
        await asyncio.gather(*map(self._greet, names))
        if self._histories.other_data:
            await self._histories.settle(self._send)
        self._open = True

    async def _greet(self, name: str) -> None:
        with suppress(CacheUnavailableError):  # what the others have is known all the same, and waited for
            await self._master(name).send((("PING",),))

    # --- commands

    async def _send(self, commands: Sequence[Command], *, insist: bool = False) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        groups: defaultdict[Master, list[int]] = defaultdict(list)
        for at, command in enumerate(commands):
            try:
                groups[self._of_slot(slot_of(key_of(command) or b""))].append(at)
            except CacheUnavailableError as error:
                replies[at] = error

        async def part(master: Master, places: Sequence[int]) -> None:
            try:
                found = await master.send([commands[at] for at in places], insist=insist)
            except CacheUnavailableError as error:
                found = [error] * len(places)
            for at, reply in zip(places, found, strict=True):
                replies[at] = reply

        if len(groups) == 1:
            await part(*groups.popitem())
        else:
            await asyncio.gather(*(part(master, places) for master, places in groups.items()))
        for at in redirected(commands, replies):
            replies[at] = await self._follow(commands[at], replies[at], insist=insist)
        return replies

    async def _follow_get(self, name: bytes, asked: Master, error: AskError) -> Any:
        """The same for what is read, under the deadline that it was asked under."""
        due, slot = asked.wire.answer_due, slot_of(name)
        try:
            with self._deadlines.since(
                due - self._deadlines.seconds,  # mechanism: redirection-in-deadline
                asyncio.get_running_loop(),
            ):
                return await self._follow(("GET", name), error)
        except TimeoutError as late:
            raise self._boundary.failed("GET", late) from late
        finally:
            if slot in self._slots:
                self._slots[slot].wire.answer_due = due  # mechanism: redirection-keeps-due

    async def _follow(self, command: Command, reply: Any, *, insist: bool = False) -> Any:
        """Send a command again, to whom its slot has gone."""
        for _ in range(REDIRECTIONS):
            try:
                reply = await self._again(command, reply, insist=insist)
            except CacheUnavailableError as error:
                return error
            if not isinstance(reply, AskError):
                break
        return reply

    async def _again(self, command: Command, reply: Any, *, insist: bool) -> Any:
        slot = slot_of(key_of(command) or b"")
        if isinstance(reply, MovedError):
            await self._note_move(slot, reply)
        elif isinstance(reply, AskError):
            master = self._master(await self._known(reply))
            return (await master.send((("ASKING",), command), insist=insist))[1]
        return (await self._of_slot(slot).send((command,), insist=insist))[0]

    async def _note_move(self, slot: int, error: MovedError) -> None:
        name = await self._known(error)
        self._of_slot(slot)  # what was found in an older map goes first
        self._slots[slot] = self._master(name)

    async def _known(self, error: AskError) -> str:
        """The name of the server that an error points to; who it is is looked up first, if it is new."""
        manager = self._alive().nodes_manager
        host, port = manager.remap_host_port(error.host, error.port)
        name = f"{host}:{port}"
        if name not in manager.nodes_cache:
            await self._looks.wait(manager)
        return name


def redirected(commands: Sequence[Command], replies: Sequence[Any]) -> list[int]:
    """What has to be sent again: what was redirected, and what came behind it for the same slot, to keep the order."""
    slots: set[int] = set()
    again = []
    for at, (command, reply) in enumerate(zip(commands, replies, strict=True)):
        key = key_of(command)
        if key is not None and (isinstance(reply, AskError) or slot_of(key) in slots):
            slots.add(slot_of(key))
            again.append(at)
    return again
