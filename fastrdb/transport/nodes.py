"""One master of a cluster: where its connections come from, and what happens while it does not answer."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from contextvars import Context
from typing import Any
from weakref import WeakKeyDictionary, ref

from redis.exceptions import AskError
from redis.exceptions import ConnectionError as RedisConnectionError

from fastrdb.errors import CacheUnavailableError

from .breaker import Breaker
from .connection import Greeting
from .connections import SILENT, SMALL_POOL, Connection
from .deadlines import Deadlines, ended
from .pipeline import Boundary, Wire
from .scripts import Command

logger = logging.getLogger("fastrdb")


class NodeSource:
    """Connections of one node of the client, which closes what is out when it is closed."""

    def __init__(self, client: Any, name: str) -> None:
        self._client, self.name, self.spares = ref(client), name, True
        self._nodes: WeakKeyDictionary[Any, tuple[Any, Any]] = WeakKeyDictionary()

    @staticmethod
    def spares_of(client: Any) -> bool:
        """Whether nodes have connections enough to do without one."""
        return int(client.connection_kwargs.get("max_connections", 0)) >= SMALL_POOL

    async def take(self) -> Connection:
        """Give a connection, connected as a pool's is: if it is cut now, it is cut in use, and connected once more."""
        node = self._node()
        if node is None:
            raise RedisConnectionError(f"{self.name} is not in the cluster any more")
        connection: Connection = node.acquire_connection()
        # A wire has a deadline of its own: see PoolSource.
        self._nodes[connection] = node, connection.socket_timeout
        connection.socket_timeout = None
        try:
            await connection.connect()
        except BaseException:
            await self.give(connection)
            raise
        return connection

    async def give(self, connection: Connection) -> None:
        """Take it back; close it if its node is gone."""
        node, connection.socket_timeout = self._nodes.pop(connection)
        if node is not self._node():
            await connection.disconnect(nowait=True)
        elif hasattr(node, "release"):
            node.release(connection)
        else:  # redis-py before 7
            node._free.append(connection)

    def lose(self, connection: Connection) -> None:
        """Take it off the node's books: it would count as in use for ever."""
        node, _ = self._nodes.pop(connection, (None, None))
        if node is not None and connection in node._connections:
            node._connections.remove(connection)

    def _node(self) -> Any:
        client = self._client()
        return None if client is None else client.nodes_manager.nodes_cache.get(self.name)


class Master:
    """One master: its wire, and a breaker of its own, so that the others are used while it is away.

    `silent` is called when it does not answer.
    """

    def __init__(
        self,
        source: NodeSource,
        deadlines: Deadlines,
        greeting: Greeting,
        boundary: Boundary,
        silent: Callable[[], None],
    ) -> None:
        self.name, self._boundary, self._silent = source.name, boundary, silent
        self.breaker = Breaker()
        self.wire = Wire(source, deadlines, greeting, self, in_slots=True)
        self._trying: asyncio.Task[None] | None = None

    async def send(self, commands: Sequence[Command], *, insist: bool = False) -> list[Any]:
        """Send commands in their order; to `insist` is to try whatever the breaker says."""
        if not insist:
            self.check()
        return await self.wire.send(commands)

    def check(self) -> None:
        """Raise CacheUnavailableError while the breaker is open; and have the master tried again."""
        if not self.breaker.opened:
            return
        if self.breaker.due():
            self._trying = asyncio.get_running_loop().create_task(self._try(), context=Context())
        raise CacheUnavailableError("send", f"{self.name} has not answered lately")

    def answered(self) -> Exception | None:
        """It has answered."""
        if self.breaker.succeeded():
            logger.info("Redis answers again at %s", self.name)
        return self._boundary.answered()

    def failed(self, operation: str, error: Exception) -> Exception:
        """Translate an error: where a command has to go is for who sent it, silence for the own breaker."""
        if isinstance(error, AskError):  # MOVED is one, too
            return error
        if not isinstance(error, SILENT):
            return self._boundary.failed(operation, error)
        self._silent()
        reason = f"{self.name}: {str(error) or type(error).__name__}"
        if self.breaker.failed():
            logger.warning("Redis does not answer (%s: %s): calls go on without it until it does", operation, reason)
        return CacheUnavailableError(operation, reason)

    async def aclose(self, *, closing: bool = False) -> None:
        """Give the connection back, or close it before."""
        if self._trying is not None:
            await ended((self._trying,))
        await self.wire.aclose(closing=closing)

    def lose(self) -> None:
        """Forget the connection: the event loop has ended."""
        self.wire.lose()

    async def _try(self) -> None:
        try:
            with suppress(CacheUnavailableError):
                await self.wire.send((("PING",),))
        finally:
            self.breaker.tried()
