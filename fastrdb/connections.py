"""The connections that a wire is made of: where it has one from, and how it speaks on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol
from weakref import ref

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from .scripts import Command

_SMALL_POOL = 8
"""A pool of fewer connections than this cannot spare one for good."""


class Connection(Protocol):
    """What is used of redis-py's connections."""

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

    async def read_response(self, disable_decoding: bool = ...) -> Any:
        """Read one reply; the server's errors are raised."""

    def pack_commands(self, commands: Any) -> Any:
        """Put commands into bytes."""


class Source(Protocol):
    """Where a wire has its connection from."""

    async def take(self) -> Connection:
        """Give a connection."""
        ...

    async def give(self, connection: Connection) -> None:
        """Take it back."""


class PoolSource:
    """Connections of a redis-py pool, which keeps its bounds and closes what is out when the client is closed."""

    def __init__(self, pool: Any) -> None:
        self._pool = ref(pool)  # a wire must not keep a pool alive whose client is gone

    @staticmethod
    def spares(pool: Any) -> bool:
        """Whether the pool is large enough to do without one connection."""
        return int(getattr(pool, "max_connections", 0)) >= _SMALL_POOL

    async def take(self) -> Connection:
        """Give one of the pool's connections."""
        pool = self._pool()
        if pool is None:
            raise RedisConnectionError("the client is gone")
        connection: Connection = await pool.get_connection()
        return connection

    async def give(self, connection: Connection) -> None:
        """Give it back, or close it if its pool is gone."""
        pool = self._pool()
        await (connection.disconnect(nowait=True) if pool is None else pool.release(connection))


async def talk(connection: Connection, commands: Sequence[Command]) -> list[Any]:
    """Send and read. Who is interrupted closes the connection: the next one would take the replies for its own."""
    replies: list[Any] = []
    try:
        await connection.send_packed_command(connection.pack_commands(commands), check_health=False)
        for _ in commands:
            try:
                replies.append(await connection.read_response(disable_decoding=True))
            except ResponseError as error:
                replies.append(error)
    except BaseException:
        await connection.disconnect(nowait=True)
        raise
    return replies
