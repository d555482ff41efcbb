"""The connection that a wire holds: greeted before it is used, kept while it is, and given back when it is idle.

Replies come in the order of what was sent. Who is cancelled while waiting for one leaves it to be skipped by the next,
so that a cancellation costs no connection, and what is sent after it cannot overtake what was sent before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from .connections import Connection, Source
from .scripts import Command

try:
    import hiredis
except ImportError:  # redis-py can do without it, several times slower
    _pack: Callable[[Any], bytes] | None = None
else:
    _pack = hiredis.pack_command

Greeting = Callable[[Callable[[Command], Awaitable[Any]]], Awaitable[None]]

_IDLE = 1.0
"""Seconds without use after which the connection goes back to where it came from."""


class Line:
    """One connection to one server, for one exchange at a time.

    Args:
        greet: is awaited for each new connection before it is used, with a function that sends one command on it.
    """

    def __init__(self, source: Source, greet: Greeting) -> None:
        self._source, self._greet = source, greet
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._unread = 0
        self._used = False
        self._timer: asyncio.TimerHandle | None = None
        self._giving: asyncio.Task[None] | None = None

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in their order, and give their replies: the server's errors as they are, not raised.

        Raises what redis-py raises when there is no connection. What is sent here may be sent twice.
        """
        connection, self._used = self._connection, True
        if self._timer is None:
            self._timer = self._loop.call_later(_IDLE, self._look)
        if connection is None:
            connection = self._connection = await self._source.take()
        elif connection.is_connected:
            try:
                return await self._talk(connection, commands)
            except RedisConnectionError:
                pass  # the server may have closed it since it was last used
        await self._welcome(connection)
        return await self._talk(connection, commands)

    async def hang_up(self) -> None:
        """Close the connection: nobody knows what is still to come on it."""
        self._unread = 0
        if self._connection is not None:
            await self._connection.disconnect(nowait=True)

    async def give_back(self) -> None:
        """Give the connection back; the next exchange takes one again."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._unread:
            await self.hang_up()
        connection, self._connection = self._connection, None
        if connection is not None:
            await self._source.give(connection)

    async def _welcome(self, connection: Connection) -> None:
        """Connect if need be, and greet."""
        self._unread = 0
        await connection.connect()

        async def ask(command: Command) -> Any:
            (reply,) = await self._talk(connection, (command,))
            return reply

        await self._greet(ask)

    async def _talk(self, connection: Connection, commands: Sequence[Command]) -> list[Any]:
        skipped, replies = self._unread, list[Any]()
        try:
            await connection.send_packed_command(_packed(connection, commands), check_health=False)
            self._unread += len(commands)
            while self._unread:
                try:
                    reply = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
                except ResponseError as error:
                    reply = error
                self._unread -= 1
                if skipped:
                    skipped -= 1
                else:
                    replies.append(reply)
        except Exception:
            await self.hang_up()
            raise
        return replies

    def _look(self) -> None:
        """Give the connection back if it has not been used since the last look."""
        self._timer = None
        if self._used:
            self._used = False
            self._timer = self._loop.call_later(_IDLE, self._look)
        elif self._connection is not None:
            self._giving = self._loop.create_task(self.give_back())


def _packed(connection: Connection, commands: Sequence[Command]) -> Any:
    if _pack is None:
        return connection.pack_commands(commands)
    return [_pack(tuple(command)) for command in commands]
