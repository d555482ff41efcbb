"""One connection of our own to one server: opened when needed, greeted before use, watched while a reply is due.

The user's pool gives its settings and nothing else: no connection is taken out of it. Replies come in the order of the
commands. If a caller is cancelled while waiting for a reply, the next exchange reads and discards it: a cancellation
closes no connection and reorders no commands.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .scripts import Command

try:
    import hiredis
except ImportError:  # redis-py works without, several times slower
    _pack: Callable[[Any], bytes] | None = None
else:
    _pack = hiredis.pack_command

HELD_UP_S = 0.02
"""A timer that comes so late means that the event loop was blocked: the reply may be in the buffer already."""
_GREETING_S = 1.0
"""A greeting counts for so long: a server may become a replica without closing the connection."""
_IDLE_S = 60.0
"""A connection that is unused for so long is closed. Longer than the gaps of ordinary traffic, since opening costs."""
_LOOK = 0.05
"""The fraction of the timeout between two looks at an exchange: it bounds how late silence is noticed."""
_EXCUSES = 3
"""How often in one silence the blocked time is not counted. Without a bound a busy loop would wait for ever."""


class Greeting(Protocol):
    """A question asked in front of the first commands on a connection, and again every second."""

    @property
    def other_data(self) -> bool:
        """Return True while the server's data may be older than what was deleted."""
        ...

    def question(self) -> Command:
        """Return the command to send."""
        ...

    def heard(self, reply: Any) -> Command | None:
        """Judge the reply. Return the command to send instead if the server did not know the question.

        Raises redis-py's ConnectionError if this server must not be used: then the connection is opened anew.
        """
        ...

    async def settle(self, send: Callable[[Sequence[Any]], Awaitable[list[Any]]], /) -> bool:
        """Find out with `send` whether the data of a cluster's masters is known as good."""
        ...


def own_connection(pool: Any, **settings: Any) -> Any:
    """Return a new connection by the settings of `pool` (or of a cluster's node), which does not own it.

    It has neither timeouts nor retries nor maintenance notifications: these would keep the pool alive.
    """
    settings = {**pool.connection_kwargs, "socket_timeout": None, "health_check_interval": 0, **settings}
    settings |= {"retry": Retry(NoBackoff(), 0), "retry_on_error": [], "retry_on_timeout": False}
    for name in ("maint_notifications_config", "maint_notifications_pool_handler"):
        if name in settings:
            settings[name] = None
    return pool.connection_class(**settings)


class Connection:
    """One connection to one server, for one exchange at a time. For one event loop.

    Args:
        settings: returns the pool or node by whose settings to connect; None if it is gone.
        timeout: seconds without any reply after which the server counts as silent.
        on_look: is called several times in a long exchange, with the time and the seconds that the loop was blocked.

    Attributes:
        began: when the latest exchange began, by the event loop's clock; seconds that the loop was blocked are added.
        timeout: as given.
    """

    def __init__(
        self,
        settings: Callable[[], Any],
        greeting: Greeting,
        timeout: float,
        on_look: Callable[[float, float], None] = lambda *_: None,
    ) -> None:
        self._settings, self._greeting, self.timeout, self._on_look = settings, greeting, timeout, on_look
        self._loop = asyncio.get_running_loop()
        self._connection: Any = None
        self._connecting: asyncio.Timeout | None = None
        self._unread = 0  # replies that have yet to come
        self._greeting_due = self.began = 0.0
        self._busy = self._silent = False
        self._watch: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        # Of the look: when it is due, the latest sign of life and when it came, and excuses since.
        self._due, self._sign, self._heard, self._excuses, self._over = 0.0, (0.0, 0), 0.0, 0, False

    async def exchange(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in their order, and return their replies: the server's errors as values.

        If the server has closed the connection, another one is opened and the commands are sent again. Raises
        redis-py's ConnectionError without a connection, and TimeoutError if no reply comes for `timeout` seconds.
        """
        began = self.began = self._loop.time()
        self._busy = True
        if self._watch is None:
            self._start_watch(began)
        try:
            if self._connection is None:
                await self._connect()
            try:
                if began < self._greeting_due:  # mechanism: greeting-grows-old
                    return await self._talk(commands)
                return await self._greeted(commands)
            except (RedisConnectionError, RuntimeError):
                if self._silent:
                    raise
            await self._connect()
            return await self._greeted(commands)
        except (RedisConnectionError, RuntimeError) as error:
            if self._silent:
                raise RedisTimeoutError(f"no reply for {self.timeout:g} s") from error
            raise
        finally:
            self._busy = self._silent = False

    def close(self) -> None:
        """Close the connection without waiting; the next exchange opens another one."""
        connection, self._connection = self._connection, None
        for timer in (self._watch, self._idle):
            if timer is not None:
                timer.cancel()
        self._watch = self._idle = None
        if connection is not None and not self._loop.is_closed():
            connection._close()  # without a task: a loop that ends right now would cancel that one before it began

    async def aclose(self) -> None:
        """Close the connection; the next exchange opens another one. Not to be called during an exchange."""
        self.close()
        await asyncio.sleep(0)  # the event loop closes the socket in its next turn

    def forget(self) -> None:
        """Drop the connection without closing it: its event loop has ended."""
        self._connection = None

    # --- what is sent on it

    async def _connect(self) -> None:
        pool = self._settings()
        if pool is None:
            raise RedisConnectionError("the client is gone")
        connection = own_connection(pool)
        try:
            async with asyncio.timeout(None) as self._connecting:
                await connection.connect()
        except BaseException:
            await _disconnected(connection)
            raise
        finally:
            self._connecting = None
        self._connection, self._unread, self._greeting_due = connection, 0, 0.0
        if self._idle is None:
            self._idle = self._loop.call_later(_IDLE_S, self._close_if_idle)

    async def _greeted(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands behind the greeting, in one round trip. The greeting is judged before any reply is returned."""
        question = self._greeting.question()
        first, *replies = await self._talk((question, *commands))  # mechanism: greeting-repeated
        try:
            again = self._greeting.heard(first)  # mechanism: greeting-applied
            if again is not None:
                (first,) = await self._talk((again,))
                self._greeting.heard(first)
        except RedisConnectionError:
            await self._hang_up()
            raise
        self._greeting_due = self.began + _GREETING_S
        return replies

    async def _talk(self, commands: Sequence[Command]) -> list[Any]:
        connection, skipped, replies, sent = self._connection, self._unread, list[Any](), False
        # Or redis-py would connect by itself, and nothing would be greeted.
        if not connection.is_connected:  # mechanism: reconnection-noted
            await self._hang_up()
            raise RedisConnectionError("the connection is closed")
        try:
            packed = connection.pack_commands(commands) if _pack is None else [_pack(tuple(each)) for each in commands]
            await connection.send_packed_command(packed, check_health=False)
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
            # A caller that is cancelled while reading leaves replies to skip. While sending, their number is unknown.
            if not sent or isinstance(error, Exception):  # mechanism: unsent-hangs-up
                await self._hang_up()
            raise
        return replies

    async def _hang_up(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await _disconnected(connection)

    # --- the watchdog

    def _start_watch(self, now: float) -> None:
        self._sign, self._heard, self._excuses, self._over = (now, 0), now, 0, False
        self._look_at(now + _LOOK * self.timeout)

    def _look_at(self, when: float) -> None:
        self._due, self._watch = when, self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """End an exchange to which no reply has come for too long, by closing its socket."""
        self._watch = None
        if not self._busy:
            return
        now, blocked, sign = self._loop.time(), 0.0, (self.began, self._unread)
        if sign != self._sign:  # mechanism: exchanges-distinguished
            self._heard = now if sign[0] == self._sign[0] else self.began  # mechanism: progress-is-replies
            self._excuses, self._over = 0, False
        if now - self._due > HELD_UP_S and self._excuses < _EXCUSES:  # mechanism: excuses-bounded
            blocked = min(now - self._due, self.timeout)
            self._excuses += 1
            self._heard += blocked  # mechanism: blocked-loop-excused
            self.began += blocked
        self._sign = (self.began, self._unread)
        self._on_look(now, blocked)
        over = now - self._heard >= self.timeout
        if over and self._over:  # mechanism: last-look
            self._give_up()
        else:
            # Once it is over, one more look: what came in this turn of the event loop is read first.
            self._over = over
            self._look_at(now if over else now + _LOOK * self.timeout)

    def _give_up(self) -> None:
        self._silent = True
        if self._connecting is not None:
            self._connecting.reschedule(self._loop.time())
        elif self._connection is not None:
            _abort(self._connection)

    def _close_if_idle(self) -> None:
        self._idle = None
        left = self.began + _IDLE_S - self._loop.time()
        if self._busy or left > 0:  # mechanism: connection-in-use-stays
            self._idle = self._loop.call_later(max(left, _GREETING_S), self._close_if_idle)
        else:
            self.close()


async def _disconnected(connection: Any) -> None:
    with suppress(Exception):  # closed all the same
        await connection.disconnect(nowait=True)


def _abort(connection: Any) -> None:
    """Close the socket at once, so that reading and writing end with an error.

    redis-py's own `disconnect` waits until what is written has been taken, which a silent server never does.
    """
    connection._writer.transport.abort()
