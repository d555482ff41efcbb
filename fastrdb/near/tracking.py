"""The connection on which a server tells what has changed: one of our own, by the settings of the user's client.

It broadcasts (CLIENT TRACKING ON BCAST) every key under the heads in use, whoever changes it and whatever we read: by
RESP3 push, or by RESP2 as messages that the connection redirects to itself. Pushes and the answer to a PING come on one
connection and in order: who has the answer has every push for what happened before the PING was sent.
"""

from __future__ import annotations

import asyncio
import logging
import random
from contextvars import Context
from typing import TYPE_CHECKING, Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fastrdb.transport import ended, hushed

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable

    from .cache import Channel, NearCache

logger = logging.getLogger("fastrdb")

_CHANNEL = b"__redis__:invalidate"  # where RESP2 has the pushes; its name is the server's
_PINGS = 3  # in a heartbeat: one that comes late must not turn the near cache off
_DEAD = 2.0  # heartbeats without an answer, and the connection is given up
_PATIENCE = 5.0  # seconds for connecting and subscribing
_PAUSES = (0.05, 1.0)  # seconds between attempts to connect: the first and the longest
_REFUSED = 60.0  # seconds until a server is asked again that has said no
_LOST = (RedisConnectionError, RedisTimeoutError, OSError, ReferenceError)


class _OutgrownError(Exception):
    """There are heads in use that the connection was not made for."""


def covering(heads: Iterable[str]) -> tuple[str, ...]:
    """Give the fewest heads that cover all: no overlaps, which the server refuses."""
    found: list[str] = []
    for head in sorted(heads):
        if not found or not head.startswith(found[-1]):
            found.append(head)
    return tuple(found)


def own_connection(pool: Any) -> Any:
    """Give a connection by the settings of `pool`, which does not know of it: neither limit nor retries are its own."""
    settings = {**pool.connection_kwargs, "socket_timeout": None, "health_check_interval": 0}
    settings |= {"retry": None, "retry_on_error": [], "retry_on_timeout": False}
    if "maint_notifications_config" in settings:
        settings["maint_notifications_config"] = None
    return pool.connection_class(**settings)


class Tracking:
    """Keeps one channel of `near` open, from `start` to `aclose` or the end of the event loop.

    Args:
        near: whom it tells of changes.
        wanted: the heads (without the namespace) of the patterns in use; may grow at any time.
        of_cluster: it is one of a cluster's masters, which says in each sign of life that it still is.
        off: is called whenever the channel could not be opened, or kept open.
        sleep, connect: for tests.
    """

    def __init__(
        self,
        near: NearCache,
        wanted: Collection[str],
        *,
        of_cluster: bool = False,
        off: Callable[[], None] = lambda: None,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        connect: Callable[[Any], Any] = own_connection,
    ) -> None:
        self._near, self._wanted, self._sleep, self._connect = near, wanted, sleep, connect
        self._of_cluster, self._is_off = of_cluster, off
        self._channel: Channel = near.channel()
        self._pool: Any = None
        self._task: asyncio.Task[None] | None = None
        self._connection: Any = None  # the one that the channel stands for
        self._asked: float | None = None  # when the PING was sent that is not answered yet
        self._silent = False  # it has been said that it is off

    def covers(self, client: Any) -> bool:
        """Whether it tells of what this client reads: of one server's, always."""
        return True

    def follow(self, client: Any) -> None:
        """See to it that somebody keeps the channel open to the server of this client."""
        self.start(getattr(client, "connection_pool", None))

    def start(self, pool: Any) -> None:
        """See to it that somebody keeps the channel open, with the settings of this pool, or of a cluster's node."""
        self._pool = pool
        if self._task is None or self._task.done():
            loop = asyncio.get_running_loop()
            # In a context of its own: that of the request which came first must not live as long as this.
            self._task = loop.create_task(self._run(), context=Context())

    def stop(self) -> asyncio.Task[None] | None:
        """Close the channel at once, and the connection soon: what the task does that is given has yet to end."""
        task, self._task, self._connection = self._task, None, None
        self._channel.lost()
        if task is not None:
            task.cancel()
        return task

    def leave(self) -> None:
        """Have the near cache do without the channel: nothing is read from this server any more."""
        self._near.part(self._channel)

    async def aclose(self) -> None:
        """Close channel and connection; `start` opens them again."""
        task = self.stop()
        if task is not None:
            await ended((task,))

    async def _run(self) -> None:
        pause = _PAUSES[0]
        while True:
            try:
                await self._connected()
            except _OutgrownError:
                continue
            except _LOST as error:
                pause = _PAUSES[0] if not self._silent else min(pause * 2, _PAUSES[1])
                self._off(error)
            except Exception as error:  # noqa: BLE001 (a server that says no, a client unlike redis-py's: it stays off)
                pause = _REFUSED
                self._off(error)
            await self._sleep(pause * random.uniform(0.5, 1.0))

    async def _connected(self) -> None:
        """Be connected: raises when it is over."""
        connection = self._connect(self._pool)
        heads = covering(self._wanted)
        try:
            async with asyncio.timeout(_PATIENCE):
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
        if prefixes[-1:] == [b""]:  # the empty head, which covers all others: everything, said by no prefix
            prefixes = []
        if self._of_cluster:
            if connection.protocol not in (3, "3"):
                raise NotImplementedError("on a cluster it takes RESP3 (protocol=3)")
            _check_role(await _ask(connection, "ROLE"))
        if connection.protocol in (3, "3"):
            parser = connection._parser  # there is no other way to hear of invalidations
            if hasattr(parser, "set_invalidation_push_handler"):
                parser.set_invalidation_push_handler(self._hear)
            await _ask(connection, "CLIENT", "TRACKING", "ON", "BCAST", *prefixes)
        else:
            own = await _ask(connection, "CLIENT", "ID")
            await _ask(connection, "CLIENT", "TRACKING", "ON", "REDIRECT", own, "BCAST", *prefixes)
            await _ask(connection, "SUBSCRIBE", _CHANNEL)  # the last: no other command is taken after it

    async def _hear(self, message: list[Any]) -> None:
        """A push, from parsers that tell pushes from replies."""
        self._near.pushed(message[1])

    async def _listen(self, connection: Any) -> None:
        while True:
            match await _answer(connection):
                case [b"invalidate", names] | [b"message", b"__redis__:invalidate", names]:
                    self._near.pushed(names)
                case b"PONG" | [b"pong", _] | [b"master" | b"slave", *_] as sign if self._asked is not None:
                    _check_role(sign)
                    self._channel.alive(self._asked + self._near.heartbeat)
                    self._asked = None

    async def _beat(self, connection: Any, heads: tuple[str, ...]) -> None:
        while True:
            await self._sleep(self._near.heartbeat / _PINGS)
            if covering(self._wanted) != heads:
                raise _OutgrownError
            # Only a pool of Sentinel's knows it. The old master may be alive and tell of nothing that the new one does.
            master = getattr(self._pool, "master_address", None)
            if master is not None and master != (connection.host, connection.port):
                raise RedisConnectionError("the master is another one now")
            if self._asked is None:
                self._asked = self._near.clock()
                # A master that has become a replica answers a PING, too, and may be behind with what it tells of.
                await connection.send_command("ROLE" if self._of_cluster else "PING", check_health=False)
            elif self._near.clock() - self._asked > self._near.heartbeat * _DEAD:
                raise RedisConnectionError("no answer to a PING")

    def _on(self) -> None:
        if self._silent:
            logger.info("the near cache is on again")
            self._silent = False

    def _off(self, error: Exception) -> None:
        self._is_off()
        if not self._silent:
            logger.warning("the near cache is off, reads go to Redis: %s: %s", type(error).__name__, hushed(error))
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
