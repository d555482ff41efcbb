"""The connection that a wire holds: greeted before it is used, kept while it is, and given back when it is idle.

Replies come in the order of what was sent. Who is cancelled while waiting for one leaves it to be skipped by the next,
so that a cancellation costs no connection, and what is sent after it cannot overtake what was sent before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

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

_LOOK = 1.0
"""Seconds. So long a greeting holds, and so long unused a connection stays: it goes back to where it came from then."""


class Greeting(Protocol):
    """What a server is asked in front of the first commands on a connection, and now and then after that."""

    def question(self) -> Command:
        """Give what to ask."""
        ...

    def heard(self, reply: Any) -> Command | None:
        """Take the reply, and give what to ask instead where the server did not know the question.

        Raises redis-py's ConnectionError if this is not the server to talk to: then it is connected to anew.
        """
        ...


class Line:
    """One connection to one server, for one exchange at a time. For one event loop."""

    def __init__(self, source: Source, greeting: Greeting) -> None:
        self._source, self._greeting = source, greeting
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._unread = 0  # replies that nobody waits for any more
        self._greeted = False
        self._renewed = False  # connected here, because the server or the client's owner had closed it
        self._talking = self._used = False
        self._timer: asyncio.TimerHandle | None = None
        self._giving: set[asyncio.Task[None]] = set()

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in their order, and give their replies: the server's errors as they are, not raised.

        Raises what redis-py raises when there is no connection. What is sent here may be sent twice.
        """
        self._talking = self._used = True
        if self._timer is None:
            self._timer = self._loop.call_later(_LOOK, self._look)
        try:
            connection = self._connection
            if connection is None:
                self._greeted = self._renewed = False
                connection = self._connection = await self._source.take()
            if connection.is_connected:
                try:
                    return await self._ask(connection, commands)
                except (RedisConnectionError, RuntimeError):
                    pass  # closed since it was last used, by the server, or because its event loop has ended
            self._greeted, self._renewed, self._unread = False, True, 0  # mechanism: reconnection-noted
            await connection.connect()
            return await self._ask(connection, commands)
        finally:
            self._talking = False
            if not self._source.spares:
                await self.give_back()

    @property
    def unread(self) -> int:
        """How many replies have yet to come to what was sent."""
        return self._unread

    async def hang_up(self) -> None:
        """Close the connection: nobody knows what is still to come on it."""
        self._unread, self._greeted = 0, False
        if self._connection is not None:
            with suppress(Exception):  # its event loop may have ended: it is closed all the same
                await self._connection.disconnect(nowait=True)

    async def give_back(self, *, closing: bool = False) -> None:
        """Give the connection back, or close it before; the next exchange takes one again. Not while one goes on."""
        connection, unclean = self._let_go()
        await self._give(connection, closing or unclean)

    def lose(self) -> None:
        """Forget the connection, whose event loop has ended."""
        connection, _ = self._let_go()
        if connection is not None:
            self._source.lose(connection)

    # --- what is said on it

    async def _ask(self, connection: Connection, commands: Sequence[Command]) -> list[Any]:
        """Say it, behind a greeting if one is due: in the same round trip, and heard before any reply is looked at."""
        if self._greeted:
            return await self._talk(connection, commands)
        first, *replies = await self._talk(  # mechanism: greeting-repeated
            connection, (self._greeting.question(), *commands)
        )
        try:
            again = self._greeting.heard(first)  # mechanism: greeting-heard
            if again is not None:
                (first,) = await self._talk(connection, (again,))
                self._greeting.heard(first)
        except RedisConnectionError:
            await self.hang_up()
            raise
        self._greeted = True
        return replies

    async def _talk(self, connection: Connection, commands: Sequence[Command]) -> list[Any]:
        skipped, replies, sent = self._unread, list[Any](), False
        try:
            await connection.send_packed_command(_packed(connection, commands), check_health=False)
            sent = True
            self._unread += len(commands)  # mechanism: unread-counted
            while self._unread:
                try:
                    reply = await connection.read_response(disable_decoding=True, disconnect_on_error=False)
                except ResponseError as error:
                    reply = error
                self._unread -= 1
                if skipped:  # mechanism: unread-skipped
                    skipped -= 1
                else:
                    replies.append(reply)
        except BaseException as error:
            # Who is cancelled while reading leaves replies to be skipped. While sending (a full buffer), nobody knows
            # how many are to come.
            if not sent or isinstance(error, Exception):  # mechanism: unsent-hangs-up
                await self.hang_up()
            raise
        return replies

    # --- where it comes from and goes to

    def _look(self) -> None:
        """Once a second: a greeting is out of date by now, and a connection that was not used goes back."""
        self._timer = None
        if self._used or self._talking:  # mechanism: connection-in-use-stays
            self._used = self._greeted = False  # mechanism: greeting-grows-old
            self._timer = self._loop.call_later(_LOOK, self._look)
        elif self._connection is not None:
            task = self._loop.create_task(self._give(*self._let_go()))
            self._giving.add(task)
            task.add_done_callback(self._giving.discard)

    def _let_go(self) -> tuple[Connection | None, bool]:
        """Have no connection any more, from this moment on: the next exchange may begin before it is given back.

        Gives it, and whether it is to be closed first. One that was renewed is: if it was the client's owner who had
        closed it, nobody would do so again.
        """
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        unclean = self._renewed or self._unread > 0  # mechanism: unclean-is-closed
        connection, self._connection, self._unread = self._connection, None, 0
        return connection, unclean

    async def _give(self, connection: Connection | None, closing: bool) -> None:
        if connection is not None:
            if closing:
                await connection.disconnect(nowait=True)
            await self._source.give(connection)


def _packed(connection: Connection, commands: Sequence[Command]) -> Any:
    if _pack is None:
        return connection.pack_commands(commands)
    return [_pack(tuple(command)) for command in commands]
