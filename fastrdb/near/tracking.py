"""The connections on which servers report changes: one for each server, by the settings of the user's client.

It broadcasts (CLIENT TRACKING ON BCAST) every key under the heads in use, whichever client changes it. It speaks RESP3,
whatever the client speaks: pushes and the answer to a PING come on one connection and in order. So after the answer,
every push for what happened before the PING has been applied.

On a cluster each master reports its own keys only. No master is asked for an entry before there is a channel to it. A
new one turns the near cache off, and takes what is on its way, until its channel is open: so what is kept was read from
masters that report changes. A key that moves is deleted where it was, and written where it comes to: both report.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextvars import Context
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fastrdb.transport import ended, is_master, own_connection, redacted

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from .cache import Channel, NearCache

logger = logging.getLogger("fastrdb")

_PINGS = 3
"""PINGs in a heartbeat: one that comes late must not turn the near cache off."""
_DEAD = 2.0
"""Heartbeats without an answer after which a connection is given up."""
_CONNECT_S = 5.0
"""The longest that connecting and subscribing may take."""
_PAUSES_S = (0.05, 1.0)
"""Pauses between attempts to connect: the first and the longest."""
_REFUSED_S = 60.0
"""The pause after a server has refused: a setting or a right is missing, which does not change soon."""
_LOST = (RedisConnectionError, RedisTimeoutError, OSError, ReferenceError)


class _OutgrownError(Exception):
    """There are heads in use that the connection was not made for."""


def covering(heads: Iterable[str]) -> tuple[str, ...]:
    """Return the fewest heads that cover all: no overlaps, which the server refuses."""
    found: list[str] = []
    for head in sorted(heads):
        if not found or not head.startswith(found[-1]):
            found.append(head)
    return tuple(found)


class Tracking:
    """A channel to each server, open from `follow` to `aclose` or the end of the event loop: one, or each master.

    Args:
        near: the near cache to which changes are reported.
        wanted: the heads (without the namespace) of the patterns in use; may grow at any time.
        cluster: its clients are those of a cluster.
        sleep: for tests.
    """

    def __init__(
        self,
        near: NearCache,
        wanted: Collection[str],
        *,
        cluster: bool = False,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        self._near, self._wanted, self._cluster, self._sleep = near, wanted, cluster, sleep
        self.servers: dict[str, ServerTracking] = {}
        # Of a cluster: the clients whose masters are announced by `met`, each with a function that refreshes its
        # topology; and the topology that the channels were made by.
        self._refreshes: WeakKeyDictionary[Any, Callable[[], None]] = WeakKeyDictionary()
        self._maps: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._ending: set[asyncio.Task[None]] = set()
        self._wants = False
        if not cluster:
            self._add("")

    def covers(self, client: Any) -> bool:
        """Return True if changes of all keys that this client reads are reported; False if it finds masters itself."""
        return not self._cluster or client in self._refreshes

    def met(self, client: Any, name: str, refresh: Callable[[], None]) -> None:
        """Keep nothing without a channel to this master, which the client is about to ask."""
        self._refreshes[client] = refresh
        if self._wants and name not in self.servers:
            self._add(name)

    def follow(self, client: Any) -> None:
        """Open a channel to each server of this client, and close those to masters that are gone."""
        if not self._cluster:
            self.servers[""].start(getattr(client, "connection_pool", None))
        elif client in self._refreshes:
            self._wants = True
            if any(each.nodes_manager.slots_cache is not self._maps.get(each) for each in self._refreshes):
                self._go_by_map()
            for name, server in self.servers.items():
                nodes = (each.nodes_manager.nodes_cache.get(name) for each in self._refreshes)
                node = next((node for node in nodes if node is not None), None)
                if node is not None:
                    server.start(node)

    def stop(self) -> None:
        """Close all channels at once, and the connections soon."""
        for server in self.servers.values():
            self._end(server)

    async def aclose(self) -> None:
        """Close channels and connections; `follow` opens them again."""
        self.stop()
        await ended(self._ending)

    def _go_by_map(self) -> None:
        """Open a channel to each master of the new topology, and to no other server.

        A server that is asked all the same, because a slot has moved there since, is met again first.
        """
        names = {node.name for client in self._refreshes for node in client.get_primaries()}
        for client in list(self._refreshes):
            self._maps[client] = client.nodes_manager.slots_cache
        for name in self.servers.keys() - names:
            server = self.servers.pop(name)
            self._end(server)
            server.leave()
        for name in names - self.servers.keys():
            self._add(name)

    def _add(self, name: str) -> None:
        self.servers[name] = ServerTracking(
            self._near, self._wanted, master=self._cluster, on_off=self._refresh, sleep=self._sleep
        )

    def _refresh(self) -> None:
        """Refresh the topology: a master that does not report may be none any more, or may be gone."""
        for refresh in list(self._refreshes.values()):
            refresh()

    def _end(self, server: ServerTracking) -> None:
        task = server.stop()
        if task is not None:
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)


class ServerTracking:
    """One channel of the near cache, open from `start` to `aclose` or the end of the event loop.

    Args:
        near, wanted: as for `Tracking`.
        master: the server is one of a cluster's masters, and each sign of life shows that it still is.
        on_off: is called whenever the channel could not be opened, or kept open.
        sleep, connect: for tests.
    """

    def __init__(
        self,
        near: NearCache,
        wanted: Collection[str],
        *,
        master: bool = False,
        on_off: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        connect: Callable[..., Any] = own_connection,
    ) -> None:
        self._near, self._wanted, self._sleep, self._connect = near, wanted, sleep, connect
        self._master, self._on_off = master, on_off
        self._channel: Channel = near.channel()
        self._pool: Any = None
        self._task: asyncio.Task[None] | None = None
        self._connection: Any = None  # the one that the channel stands for
        self._asked: float | None = None  # when the PING was sent that is not answered yet
        self._silent = False  # the log has that it is off

    def start(self, pool: Any) -> None:
        """Open the channel with the settings of this pool (or of a cluster's node), and keep it open."""
        self._pool = pool
        if self._task is None or self._task.done():
            loop = asyncio.get_running_loop()
            # In a context of its own: that of the request which came first must not live as long as this.
            self._task = loop.create_task(self._run(), context=Context())

    def stop(self) -> asyncio.Task[None] | None:
        """Close the channel at once, and the connection soon. Return the task that has yet to end."""
        task, self._task, self._connection = self._task, None, None
        self._channel.lost()
        if task is not None:
            task.cancel()
        return task

    def leave(self) -> None:
        """Remove the channel from the near cache: nothing is read from this server any more."""
        self._near.part(self._channel)

    async def aclose(self) -> None:
        """Close channel and connection; `start` opens them again."""
        task = self.stop()
        if task is not None:
            await ended((task,))

    async def _run(self) -> None:
        pause = _PAUSES_S[0]
        while True:
            try:
                await self._connected()
            except _OutgrownError:
                continue
            except _LOST as error:
                pause = _PAUSES_S[0] if not self._silent else min(pause * 2, _PAUSES_S[1])
                self._off(error)
            except Exception as error:  # noqa: BLE001 (a server that says no, a client unlike redis-py's: it stays off)
                pause = _REFUSED_S
                self._off(error)
            await self._sleep(pause * random.uniform(0.5, 1.0))

    async def _connected(self) -> None:
        """Be connected: raises when it is over."""
        connection = self._connect(self._pool, protocol=3)
        heads = covering(self._wanted)
        try:
            async with asyncio.timeout(_CONNECT_S):
                await connection.connect()
                asked = self._near.clock()
                await self._subscribe(connection, heads)
            self._asked, self._connection = None, connection
            self._channel.open(asked + self._near.heartbeat, heads)
            self._on()
            await _first_of(self._listen(connection), self._beat(connection, heads))
        finally:
            if self._connection is connection:
                self._channel.lost()
            await connection.disconnect(nowait=True)

    async def _subscribe(self, connection: Any, heads: tuple[str, ...]) -> None:
        prefixes = [part for head in heads for part in (b"PREFIX", self._near.before + head.encode())]
        if prefixes[-1:] == [b""]:  # the empty head, which covers all others: everything, without any prefix
            prefixes = []
        if self._master:
            _check_role(await _ask(connection, "ROLE"))
        parser = connection._parser  # redis-py has no public way to receive invalidations
        if hasattr(parser, "set_invalidation_push_handler"):
            parser.set_invalidation_push_handler(self._on_push)
        await _ask(connection, "CLIENT", "TRACKING", "ON", "BCAST", *prefixes)

    async def _on_push(self, message: list[Any]) -> None:
        """Apply a push, from parsers that separate pushes from replies."""
        self._near.pushed(message[1])

    async def _listen(self, connection: Any) -> None:
        while True:
            match await _answer(connection):
                case [b"invalidate", names]:
                    self._near.pushed(names)
                case b"PONG" | [b"master" | b"slave", *_] as sign if self._asked is not None:
                    _check_role(sign)
                    self._channel.alive(self._asked + self._near.heartbeat)
                    self._asked = None

    async def _beat(self, connection: Any, heads: tuple[str, ...]) -> None:
        while True:
            await self._sleep(self._near.heartbeat / _PINGS)
            if covering(self._wanted) != heads:
                raise _OutgrownError
            if self._asked is None:
                asked = self._near.clock()
                # The former master may be alive, and reports nothing that happens on the new one.
                if not await is_master(self._pool, connection):
                    raise RedisConnectionError("the master is another one now")
                self._asked = asked
                # A master that has become a replica answers a PING, too, and its reports may be behind.
                await connection.send_command("ROLE" if self._master else "PING", check_health=False)
            elif self._near.clock() - self._asked > self._near.heartbeat * _DEAD:
                raise RedisConnectionError("no answer to a PING")

    def _on(self) -> None:
        if self._silent:
            logger.info("the near cache is on again")
            self._silent = False

    def _off(self, error: Exception) -> None:
        self._on_off()
        if not self._silent:
            logger.warning("the near cache is off, reads go to Redis: %s: %s", type(error).__name__, redacted(error))
            self._silent = True


def _check_role(sign: Any) -> None:
    if sign[0] == b"slave":
        raise RedisConnectionError("it is a master no more")


async def _ask(connection: Any, *command: Any) -> Any:
    await connection.send_command(*command, check_health=False)
    return await _answer(connection)


async def _answer(connection: Any) -> Any:
    return await connection.read_response(disable_decoding=True, push_request=True)


async def _first_of(*works: Any) -> None:
    """Run all until one has ended, and raise what it raised."""
    tasks = [asyncio.ensure_future(work) for work in works]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    for task in done:
        task.result()
