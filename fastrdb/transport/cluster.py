"""A cluster: a pipeline to each master, commands sent by slot, and followed where their slot has gone.

The client knows which master has which slot. Its topology is refreshed when a master does not answer, or redirects to a
server that is not known: not for each slot that moves, since redis-py then closes connections, too. Commands are sent
here and not by the client, so that each connection is greeted before it is used: a replica that has taken over is
noticed before anything is read from it.
"""

from __future__ import annotations

import asyncio
import logging
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

from .connection import Greeting
from .health import Breaker, Health, ended, redacted
from .pipeline import Pipeline
from .scripts import Command
from .slots import key_of, redirected, slot_of

logger = logging.getLogger("fastrdb")

T = TypeVar("T")

_REDIRECTIONS = 3
"""How often a command follows a slot that is being moved; then its caller goes on without the cache."""
_REFRESH_PAUSE_S = 0.2
"""The least time between two refreshes of the topology that no caller waits for."""

Met = Callable[[Any, str, Callable[[], None]], None]
"""Called with a client, the name of a master before it is first asked, and a function that refreshes the topology."""


class Topology:
    """Refreshes of a client's map of the cluster: one at a time, in a task that outlives its callers.

    A caller that cannot wait any longer leaves the refresh going on, since it may take longer than any of them.
    """

    def __init__(self, timeout: float, breaker: Breaker) -> None:
        self._timeout, self._breaker = timeout, breaker
        self.refreshing: asyncio.Task[None] | None = None
        self._latest = 0.0

    def refresh_soon(self, owner: Any) -> None:
        """Refresh in the background, unless it was done just now. `owner` is the client or its `nodes_manager`."""
        if asyncio.get_running_loop().time() - self._latest > _REFRESH_PAUSE_S:
            self._begin(owner)

    async def refresh(self, owner: Any) -> None:
        """Refresh and wait for the result. Raises CacheUnavailableError if it takes longer than the timeout."""
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.wait({self._begin(owner)})
        except TimeoutError as error:
            raise self._breaker.on_error("connect", error) from error

    async def aclose(self) -> None:
        """End a refresh: the connections that it opens would never be closed."""
        if self.refreshing is not None:
            await ended((self.refreshing,))

    def _begin(self, owner: Any) -> asyncio.Task[None]:
        if self.refreshing is None:
            self.refreshing = asyncio.get_running_loop().create_task(self._refresh(owner), context=Context())
            self.refreshing.add_done_callback(self._over)
        return self.refreshing

    async def _refresh(self, owner: Any) -> None:
        try:
            await owner.initialize()
        except Exception as error:  # noqa: BLE001  # it is tried again
            logger.debug("the topology of the cluster could not be refreshed: %s", redacted(error))

    def _over(self, task: asyncio.Task[None]) -> None:
        self.refreshing, self._latest = None, task.get_loop().time()


class ClusterTransport:
    """The commands to a cluster. For one client and one event loop.

    `breaker` is for the cluster as a whole: it opens when not even the topology can be had. `met` is called before a
    master is asked for anything. All methods raise CacheUnavailableError.
    """

    def __init__(
        self,
        client: Any,
        timeout: float,
        greeting: Greeting,
        health: Health,
        breaker: Breaker,
        met: Met | None = None,
    ) -> None:
        self._client, self._met = ref(client), met
        self._timeout, self._greeting, self._health, self.breaker = timeout, greeting, health, breaker
        self._nodes: dict[str, Pipeline] = {}
        self._slots: dict[int, Pipeline] = {}
        self._map: Any = None  # that `_slots` was made by
        self._topology = Topology(timeout, breaker)
        self._loop = asyncio.get_running_loop()
        self._open = False
        self._opening: asyncio.Task[None] | None = None

    async def get(self, name: bytes) -> bytes | None:
        """Return the value of a key."""
        if self.breaker.opened:
            raise self.breaker.refusal("GET", self.ping)
        if not self._open:
            return await self._first(partial(self.get, name))
        node = self._node_of(slot_of(name))
        try:
            raw = await node.get(name)
        except AskError as error:
            raw = await self._follow_get(name, node, error)
        if self.breaker.failures:
            self.breaker.on_reply()
        return raw

    async def send(self, commands: Sequence[Command], *, insist: bool = False) -> list[Any]:
        """Send commands, those of each slot in their order, and return their replies: errors as values.

        With `insist` masters are asked whatever their breakers say.
        """
        if self.breaker.opened and not insist:
            raise self.breaker.refusal(str(commands[0][0]), self.ping)
        if not self._open:
            return await self._first(partial(self._send, commands, insist=insist))
        return await self._send(commands, insist=insist)

    async def ping(self) -> None:
        """Ask for a sign of life, whatever the breaker says."""
        await self.send((("PING",),), insist=True)

    def due(self, names: Collection[bytes]) -> float:
        """Return when the time of the callers that were answered for these keys is over, by the event loop's clock."""
        nodes = (self._slots.get(slot_of(name)) for name in names)
        return min((node.due() for node in nodes if node is not None), default=0.0)

    def crowded(self) -> bool:
        """Return True while callers of a master wait for each other."""
        return any(node.crowded() for node in self._nodes.values())

    async def aclose(self) -> None:
        """Close all connections; the next caller opens others."""
        await self.breaker.aclose()
        if (opening := self._opening) is not None:
            await self._topology.aclose()
            await asyncio.wait({opening})
        for node in list(self._nodes.values()):
            await node.aclose()
        await self._topology.aclose()  # last, for a master that does not answer has the topology refreshed

    def close(self) -> None:
        """Close all connections soon, from any thread: the client is gone."""
        for node in list(self._nodes.values()):
            node.close()

    def forget(self) -> None:
        """Drop all connections: the event loop has ended."""
        for node in self._nodes.values():
            node.forget()

    # --- which master has which slot

    async def refresh(self) -> None:
        """Refresh the topology and wait for it."""
        await self._topology.refresh(self._alive().nodes_manager)

    def refresh_soon(self) -> None:
        """Refresh the topology in the background, unless it was done just now."""
        if (client := self._client()) is not None:
            self._topology.refresh_soon(client.nodes_manager)

    def _node_of(self, slot: int) -> Pipeline:
        client = self._client()
        known = None if client is None else client.nodes_manager.slots_cache
        if known is not self._map:  # it was refreshed
            self._map = known
            self._slots.clear()
        node = self._slots.get(slot)
        if node is None:
            nodes = self._alive().nodes_manager.slots_cache.get(slot)
            if not nodes:
                self.refresh_soon()
                raise CacheUnavailableError("send", f"no server has slot {slot}")
            node = self._slots[slot] = self._node(nodes[0].name)
        return node

    def _node(self, name: str) -> Pipeline:
        if self._met is not None:
            self._met(self._alive(), name, self.refresh_soon)
        node = self._nodes.get(name)
        if node is None:
            breaker = Breaker(self._health, name, on_silence=self.refresh_soon)
            node = self._nodes[name] = Pipeline(
                partial(self._settings, name), self._timeout, self._greeting, self._health, breaker, in_slots=True
            )
        return node

    def _settings(self, name: str) -> Any:
        client = self._client()
        return None if client is None else client.nodes_manager.nodes_cache.get(name)

    def _alive(self) -> Any:
        client = self._client()
        if client is None:
            raise CacheUnavailableError("send", "the client is gone")
        return client

    # --- the beginning

    async def _first(self, ask: Callable[[], Awaitable[T]]) -> T:
        """Open the cluster and ask, both within one timeout."""
        began = self._loop.time()
        if self._opening is None:
            self._opening = self._loop.create_task(self._begin(), context=Context())
            self._opening.add_done_callback(self._has_begun)
        opening = self._opening
        try:
            async with asyncio.timeout(self._timeout):
                await asyncio.wait({opening})
                if not self._open:
                    error = None if opening.cancelled() else opening.exception()
                    raise CacheUnavailableError("connect", getattr(error, "reason", error))
                found = await ask()
        except TimeoutError as late:  # counted where it was noticed
            raise CacheUnavailableError("connect", "the cluster is still being looked at") from late
        for node in self._nodes.values():  # what follows from the answer shares the timeout
            node.answered = min(node.answered, began)
        return found

    def _has_begun(self, task: asyncio.Task[None]) -> None:
        self._opening = None
        if not task.cancelled():
            task.exception()  # given to the callers that wait for it, if there are any

    async def _begin(self) -> None:
        """Find the masters, and whether their data can be trusted. In a task of its own, since this may take long."""
        client = self._alive()
        await self._topology.refresh(client)
        names = [node.name for node in client.get_primaries()]
        if not names:
            raise self.breaker.on_error("connect", RedisConnectionError("no server of the cluster answers"))
        await asyncio.gather(*map(self._greet, names))
        if self._greeting.other_data:
            await self._greeting.settle(self._send)
        self._open = True

    async def _greet(self, name: str) -> None:
        with suppress(CacheUnavailableError):  # what the others have is known all the same, and waited for
            await self._node(name).send((("PING",),))

    # --- commands

    async def _send(self, commands: Sequence[Command], *, insist: bool = False) -> list[Any]:
        replies: list[Any] = [None] * len(commands)
        slots = [slot_of(key_of(command) or b"") for command in commands]
        groups: defaultdict[Pipeline, list[int]] = defaultdict(list)
        for at, slot in enumerate(slots):
            try:
                groups[self._node_of(slot)].append(at)
            except CacheUnavailableError as error:
                replies[at] = error

        async def part(node: Pipeline, places: Sequence[int]) -> None:
            try:
                found = await node.send([commands[at] for at in places], insist=insist)
            except CacheUnavailableError as error:
                found = [error] * len(places)
            for at, reply in zip(places, found, strict=True):
                replies[at] = reply

        if len(groups) == 1:
            await part(*groups.popitem())
        else:
            await asyncio.gather(*(part(node, places) for node, places in groups.items()))
        if self.breaker.failures and not all(isinstance(reply, CacheUnavailableError) for reply in replies):
            self.breaker.on_reply()
        if any(isinstance(reply, AskError) for reply in replies):
            for at in redirected(slots, replies):
                replies[at] = await self._follow(slots[at], commands[at], replies[at], insist=insist)
        return replies

    async def _follow_get(self, name: bytes, asked: Pipeline, error: AskError) -> bytes | None:
        """Follow a GET within the timeout of the first one."""
        began, slot = asked.answered, slot_of(name)
        try:
            async with asyncio.timeout_at(began + self._timeout):  # mechanism: redirection-in-deadline
                reply = await self._follow(slot, ("GET", name), error)
        except TimeoutError as late:
            raise self.breaker.on_error("GET", late) from late
        finally:
            if slot in self._slots:
                self._slots[slot].answered = began  # mechanism: redirection-keeps-due
        if isinstance(reply, CacheUnavailableError):
            raise reply
        if isinstance(reply, Exception):
            raise self.breaker.on_error("GET", reply)
        raw: bytes | None = reply
        return raw

    async def _follow(self, slot: int, command: Command, reply: Any, *, insist: bool = False) -> Any:
        """Send a command again to where its slot has gone, and return the reply: errors as values."""
        for _ in range(_REDIRECTIONS):
            try:
                if isinstance(reply, MovedError):
                    name = await self._known(reply)
                    self._node_of(slot)  # what was found by an older map goes first
                    self._slots[slot] = self._node(name)
                if isinstance(reply, AskError) and not isinstance(reply, MovedError):
                    node = self._node(await self._known(reply))
                    _, reply = await node.send((("ASKING",), command), insist=insist)
                else:
                    (reply,) = await self._node_of(slot).send((command,), insist=insist)
            except CacheUnavailableError as error:
                return error
            if not isinstance(reply, AskError):
                break
        return reply

    async def _known(self, error: AskError) -> str:
        """Return the name of the server of a redirection. The topology is refreshed first if it is new."""
        manager = self._alive().nodes_manager
        host, port = manager.remap_host_port(error.host, error.port)
        name = f"{host}:{port}"
        if name not in manager.nodes_cache:
            await self._topology.refresh(manager)
        return name
