"""A cluster: a pipeline to each master, commands sent by slot, and followed where their slot has gone.

The client has the topology: which master has which slot. It is refreshed when a master does not answer, or redirects to
a server that is not known: not for each slot that moves, since redis-py then closes connections, too. Commands are sent
here and not by the client, so that each connection is greeted before it is used: a replica that has taken over is
noticed before anything is read from it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from contextvars import Context
from functools import partial
from typing import Any
from weakref import ref

from redis.exceptions import AskError, MovedError
from redis.exceptions import ConnectionError as RedisConnectionError

from fastrdb.errors import CacheUnavailableError

from .commands import Command, key_of, redirected, slot_of
from .connection import Greeting
from .health import OTHER_DATA, Breaker, Health, ended, redacted
from .pipeline import Pipeline
from .timeouts import Budget, used_up

logger = logging.getLogger("fastrdb")

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

    async def refresh(self, owner: Any, seconds: float | None = None) -> None:
        """Refresh and wait for the result. Raises CacheUnavailableError if it takes longer than the timeout.

        With `seconds` the caller waits for no longer than that; then the cluster is not to blame.
        """
        less = seconds is not None and seconds < self._timeout
        _, late = await asyncio.wait({self._begin(owner)}, timeout=seconds if less else self._timeout)
        if late and less:
            raise used_up()
        if late:
            raise self._breaker.on_error("connect", TimeoutError())

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
        slot = slot_of(name)
        if not self._open:
            raw = await self._first_get(name)
        else:
            node = self._node_of(slot)
            try:
                raw = await node.get(name)
            except AskError as error:
                raw = await self._follow_get(name, node, error)
        if self.breaker.failures:
            self.breaker.on_reply()
        return raw

    async def send(
        self, commands: Sequence[Command], *, insist: bool = False, budget: Budget | None = None
    ) -> list[Any]:
        """Send commands, those of each slot in their order, and return their replies: errors as values.

        With `insist` masters are asked whatever their breakers say.
        """
        if self.breaker.opened and not insist:
            raise self.breaker.refusal(str(commands[0][0]), self.ping)
        budget = budget or Budget(self._timeout)
        began = None if self._open else await self._opened(budget)
        replies = await self._send(commands, budget, insist=insist)
        if began is not None:
            self._answered_since(began)
        return replies

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
            breaker = Breaker(self._health, name, on_silence=self.refresh_soon, timeout=self._timeout)
            node = self._nodes[name] = Pipeline(
                partial(self._settings, name),
                self._timeout,
                self._greeting,
                self._health,
                breaker,
                in_slots=True,
                crowded=self.crowded,
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

    async def _opened(self, budget: Budget) -> float:
        """Wait until the masters are known. Return when that began, by the event loop's clock."""
        began = self._loop.time()
        if self._opening is None:
            self._opening = self._loop.create_task(self._begin(), context=Context())
            self._opening.add_done_callback(self._has_begun)
        opening = self._opening
        budget.start(began)
        await asyncio.wait({opening}, timeout=budget.left)
        budget.stop(self._loop.time())
        if not opening.done():  # counted where it was noticed
            raise CacheUnavailableError("connect", "the cluster is still being looked at")
        if not self._open:
            error = None if opening.cancelled() else opening.exception()
            raise CacheUnavailableError("connect", getattr(error, "reason", error))
        return began

    async def _first_get(self, name: bytes) -> bytes | None:
        budget = Budget(self._timeout)
        began = await self._opened(budget)
        (reply,) = await self._send((("GET", name),), budget)
        self._answered_since(began)
        return self._value(reply)

    def _answered_since(self, began: float) -> None:
        """Count the wait for the first look at the cluster: what follows from the answer shares the timeout."""
        for node in self._nodes.values():
            node.answered = min(node.answered, began)

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

    async def _send(
        self, commands: Sequence[Command], budget: Budget | None = None, *, insist: bool = False
    ) -> list[Any]:
        budget = budget or Budget(self._timeout)
        replies: list[Any] = [None] * len(commands)
        slots = [slot_of(key_of(command) or b"") for command in commands]
        groups = self._by_master(slots, replies)

        async def part(node: Pipeline, places: Sequence[int]) -> float:
            own = Budget(self._timeout, budget.left)
            try:
                found = await node.send([commands[at] for at in places], insist=insist, budget=own)
            except CacheUnavailableError as error:
                found = [error] * len(places)
            for at, reply in zip(places, found, strict=True):
                replies[at] = reply
            return own.left

        budget.start(self._loop.time())
        if len(groups) == 1:
            budget.left = await part(*groups.popitem())
        elif groups:
            budget.left = min(await asyncio.gather(*(part(node, places) for node, places in groups.items())))
        if self.breaker.failures and not all(isinstance(reply, CacheUnavailableError) for reply in replies):
            self.breaker.on_reply()
        if any(isinstance(reply, AskError) for reply in replies):
            for at in redirected(slots, replies):
                replies[at] = await self._follow(slots[at], commands[at], replies[at], budget, insist=insist)
        return replies

    def _by_master(self, slots: Sequence[int], replies: list[Any]) -> dict[Pipeline, list[int]]:
        """Return the places of the commands of each master; write errors to `replies` where no server has a slot."""
        groups: defaultdict[Pipeline, list[int]] = defaultdict(list)
        for at, slot in enumerate(slots):
            try:
                groups[self._node_of(slot)].append(at)
            except CacheUnavailableError as error:
                replies[at] = error
        return groups

    async def _follow_get(self, name: bytes, asked: Pipeline, error: AskError) -> bytes | None:
        """Follow a GET within the timeout of the first one."""
        began, slot = asked.answered, slot_of(name)
        left = began + self._timeout - self._loop.time()  # mechanism: redirection-in-deadline
        reply = await self._follow(slot, ("GET", name), error, Budget(self._timeout, left))
        if slot in self._slots:
            self._slots[slot].answered = began  # mechanism: redirection-keeps-due
        return self._value(reply)

    def _value(self, reply: Any) -> bytes | None:
        """Return the value in a reply to a GET, unless a greeting has found other data just before."""
        if self._greeting.other_data:  # mechanism: first-get-judged
            raise CacheUnavailableError("GET", OTHER_DATA)
        if isinstance(reply, CacheUnavailableError):
            raise reply
        if isinstance(reply, Exception):
            raise self.breaker.on_error("GET", reply)
        raw: bytes | None = reply
        return raw

    async def _follow(self, slot: int, command: Command, reply: Any, budget: Budget, *, insist: bool = False) -> Any:
        """Send a command again to where its slot has gone, and return the reply: errors as values."""
        for _ in range(_REDIRECTIONS):
            try:
                if isinstance(reply, MovedError):
                    name = await self._known(reply, budget)
                    self._node_of(slot)  # what was found by an older map goes first
                    self._slots[slot] = self._node(name)
                if isinstance(reply, AskError) and not isinstance(reply, MovedError):
                    node = self._node(await self._known(reply, budget))
                    _, reply = await node.send((("ASKING",), command), insist=insist, budget=budget)
                else:
                    (reply,) = await self._node_of(slot).send((command,), insist=insist, budget=budget)
            except CacheUnavailableError as error:
                return error
            if not isinstance(reply, AskError):
                break
        return reply

    async def _known(self, error: AskError, budget: Budget) -> str:
        """Return the name of the server of a redirection. The topology is refreshed first if it is new."""
        manager = self._alive().nodes_manager
        host, port = manager.remap_host_port(error.host, error.port)
        name = f"{host}:{port}"
        if name not in manager.nodes_cache:
            budget.start(self._loop.time())
            await self._topology.refresh(manager, budget.left)
            budget.stop(self._loop.time())
        return name
