"""Where a wire has its connection from, and what it uses of it."""

from __future__ import annotations

import inspect
from contextlib import suppress
from types import FunctionType
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import TimeoutError as RedisTimeoutError

SILENT = (TimeoutError, OSError, RedisConnectionError, RedisTimeoutError)
"""What counts for a breaker: no answer. A server that answers with an error is there, and costs no time; nor does a
client's pool that is exhausted."""

SMALL_POOL = 8
"""A pool of fewer connections than this cannot spare one between two exchanges."""


class Connection(Protocol):
    """What is used of redis-py's connections."""

    socket_timeout: float | None

    @property
    def is_connected(self) -> bool:
        """Whether there is a socket; the server may have closed it."""
        ...

    async def connect(self) -> None:
        """Connect, authenticate, choose database and protocol."""

    async def disconnect(self, nowait: bool = ...) -> None:
        """Close the socket."""

    async def send_packed_command(self, command: Any, check_health: bool = ...) -> None:
        """Write."""

    async def read_response(self, disable_decoding: bool = ..., *, disconnect_on_error: bool = ...) -> Any:
        """Read one reply; the server's errors are raised."""

    def pack_commands(self, commands: Any) -> Any:
        """Put commands into bytes."""


class Source(Protocol):
    """Where a wire has its connection from."""

    spares: bool
    """Whether it can do without one for as long as a wire has work; else it is given back after each exchange."""

    async def take(self) -> Connection:
        """Give a connection."""
        ...

    async def give(self, connection: Connection) -> None:
        """Take it back."""

    def lose(self, connection: Connection) -> None:
        """Do without it from now on: its event loop has ended, and nobody can close it any more."""


class PoolSource:
    """Connections of a redis-py pool, which keeps its bounds and closes what is out when the client is closed."""

    def __init__(self, pool: Any) -> None:
        self._pool = ref(pool)  # a wire must not keep a pool alive whose client is gone
        self.spares = int(getattr(pool, "max_connections", 0)) >= SMALL_POOL
        self._timeouts: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()

    async def take(self) -> Connection:
        """Give one of the pool's connections."""
        pool = self._pool()
        if pool is None:
            raise RedisConnectionError("the client is gone")
        connection: Connection = await pool.get_connection()
        # A wire has a deadline of its own, for all of a batch; redis-py's costs a timer for each read, and a task for
        # each write.
        self._timeouts[connection] = connection.socket_timeout
        connection.socket_timeout = None
        return connection

    async def give(self, connection: Connection) -> None:
        """Give it back, or close it if its pool is gone or does not know it any more."""
        pool = self._pool()
        connection.socket_timeout = self._timeouts.pop(connection, None)
        if pool is not None:
            with suppress(KeyError):  # of a pool that was reset
                await pool.release(connection)
                return
        await connection.disconnect(nowait=True)

    def lose(self, connection: Connection) -> None:
        """Take it off the pool's books: it would count as in use for ever."""
        pool = self._pool()
        if pool is not None:
            pool._in_use_connections.discard(connection)


def connections_of(pool: Any) -> list[Any]:
    """Give the connections that a redis-py pool has made: it has no public word for them."""
    return [*getattr(pool, "_available_connections", ()), *getattr(pool, "_in_use_connections", ())]


def pool_to_share(client: Any) -> Any:
    """The pool of a plain redis-py client; None where the client must be asked itself."""
    if not is_plain(client, Redis):
        return None
    return None if client.single_connection_client else client.connection_pool


def is_plain(client: Any, kind: type[Any]) -> bool:
    """Whether a client sends commands as redis-py does.

    Its own `execute_command` may be more than that (a subclass, an instrumentation, a test's gate), and must then see
    every command.
    """
    own = inspect.getattr_static(client, "execute_command", None)
    return isinstance(client, kind) and type(own) is FunctionType and own.__module__ == kind.__module__
