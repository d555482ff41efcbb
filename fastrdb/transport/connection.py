"""One connection of our own to one server: opened when needed, greeted before use, watched while a reply is due.

The user's pool gives its settings and nothing else: no connection is taken out of it. redis-py connects and logs in;
then the socket is ours. Replies come in the order of the commands. The reply for a caller that was cancelled, or has
waited for long enough, is discarded when it comes: that closes no connection and reorders no commands.
"""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any, Protocol

import hiredis
from redis.asyncio.connection import DefaultParser
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import InvalidResponse
from redis.exceptions import TimeoutError as RedisTimeoutError

from .commands import Command
from .sentinel import GREETING_S, has_sentinels, is_master
from .timeouts import Budget, used_up

HELD_UP_S = 0.02
"""A timer that comes so late means that the event loop was blocked: the reply may be in the buffer already."""
_IDLE_S = 60.0
"""A connection that is unused for so long is closed. Longer than the gaps of ordinary traffic, since opening costs."""
_LOOK = 0.05
"""The fraction of the timeout between two looks at an exchange: it bounds how late silence is noticed."""
_MORE = object()
"""What the parser returns when it needs more data."""
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

    def take_reply(self, reply: Any) -> Command | None:
        """Judge the reply. Return the command to send instead if the server lacked the script.

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


class Wire(asyncio.Protocol):
    """An open socket: commands out, and their replies in the order of the commands.

    Args:
        connection: redis-py's, which has connected. It is left to close the socket.

    Attributes:
        replies: how many have come: a sign of life.
        is_open: False when the socket is closed, from either side.
    """

    def __init__(self, connection: Any, loop: asyncio.AbstractEventLoop) -> None:
        self.connection, self._loop = connection, loop
        self.replies, self.is_open = 0, True
        self._due: deque[tuple[int, list[Any], Future[list[Any]]]] = deque()  # exchanges whose replies have to come
        self._reader = hiredis.Reader(
            protocolError=InvalidResponse, replyError=DefaultParser.parse_error, notEnoughData=_MORE
        )
        self._transport: asyncio.Transport = connection._writer.transport
        self._transport.set_protocol(self)

    def send(self, commands: Sequence[Command]) -> Future[list[Any]]:
        """Send commands. The future gives their replies: the server's errors as values."""
        packed = b"".join([hiredis.pack_command(tuple[Any](each)) for each in commands])
        future: Future[list[Any]] = Future(loop=self._loop)
        self._due.append((len(commands), [], future))
        self._transport.write(packed)
        return future

    def data_received(self, data: bytes) -> None:
        """Hand each exchange its replies; drop those for which no caller waits any more."""
        due, gets = self._due, self._reader.gets
        self._reader.feed(data)
        try:
            while (reply := gets(False)) is not _MORE:
                self.replies += 1
                if isinstance(reply, RedisConnectionError):  # the server is loading its data, say
                    self.lose(reply)
                    return
                count, replies, future = due[0]  # mechanism: unread-skipped
                replies.append(reply)
                if len(replies) == count:
                    due.popleft()
                    if not future.done():
                        future.set_result(replies)
        except (InvalidResponse, IndexError) as error:
            self.lose(RedisConnectionError(f"the server does not speak Redis's protocol: {type(error).__name__}"))

    def connection_lost(self, exc: Exception | None) -> None:
        """Fail the exchanges without a reply."""
        self.lose(RedisConnectionError(str(exc) if exc else "the server has closed the connection"))

    def lose(self, error: Exception) -> None:
        """Close the socket at once, and fail the exchanges without a reply.

        redis-py's own `disconnect` waits until what is written has been taken, which a silent server never does.
        """
        self.is_open = False
        while self._due:
            *_, future = self._due.popleft()
            if not future.done():
                future.set_exception(error)
        self._transport.abort()

    def close(self) -> None:
        """Close the socket, without a task: a loop that ends right now would cancel that one before it began."""
        self.lose(RedisConnectionError("the connection is closed"))
        self.connection._close()


class Connection:
    """One connection to one server, for one exchange at a time. For one event loop.

    Args:
        settings: returns the pool or node by whose settings to connect; None if it is gone.
        timeout: seconds without any reply after which the server counts as silent.
        on_look: is called several times in a long exchange, with the time and the seconds that the loop was blocked.
            Returns True if the time does not count for the budget.

    Attributes:
        began: when the latest exchange began, by the event loop's clock; seconds that the loop was blocked are added.
        timeout: as given.
    """

    def __init__(
        self,
        settings: Callable[[], Any],
        greeting: Greeting,
        timeout: float,
        on_look: Callable[[float, float], bool] = lambda *_: False,
    ) -> None:
        self._settings, self._greeting, self.timeout, self._on_look = settings, greeting, timeout, on_look
        self._loop = asyncio.get_running_loop()
        self._wire: Wire | None = None
        self._exchange: Future[list[Any]] | None = None  # that has no replies yet
        self._budget: Budget | None = None
        self._connecting: asyncio.Timeout | None = None
        self._greeting_due = self.began = 0.0
        self._busy = self._silent = self._late = self._has_sentinels = False
        self._watch: asyncio.TimerHandle | None = None
        self._idle: asyncio.TimerHandle | None = None
        # Of the watchdog: when it is due, the latest sign of life and when it came, and excuses since.
        self._due, self._sign, self._alive_at, self._excuses, self._over = 0.0, (0.0, 0), 0.0, 0, False

    async def exchange(self, commands: Sequence[Command], budget: Budget | None = None) -> list[Any]:
        """Send commands in their order, and return their replies: the server's errors as values.

        If the server has closed the connection, another one is opened and the commands are sent again. Raises
        redis-py's ConnectionError without a connection, and TimeoutError if no reply comes for `timeout` seconds.
        Raises CacheUnavailableError if the budget is used up, and leaves the connection open.
        """
        began = self.began = self._loop.time()
        self._busy, self._budget = True, budget
        if self._watch is None:
            self._start_watch(began)
        try:
            wire = self._wire
            if self._has_sentinels and wire is not None and began >= self._greeting_due:  # mechanism: sentinel-asked
                wire = wire if await self._is_master(wire) else None
            if wire is None or not wire.is_open:  # mechanism: reconnection-noted
                wire = await self._connect()
            try:
                if began < self._greeting_due:  # mechanism: greeting-grows-old
                    self._exchange = wire.send(commands)
                    return await self._exchange
                return await self._greeted(wire, commands)
            except (RedisConnectionError, RuntimeError):
                if self._silent:
                    raise
            return await self._greeted(await self._connect(), commands)
        except (RedisConnectionError, RuntimeError, TimeoutError) as error:
            if self._late:
                raise used_up() from error
            if self._silent:
                raise RedisTimeoutError(f"no answer within {self.timeout:g} s") from error
            raise
        finally:
            self._busy = self._silent = self._late = False
            self._exchange = self._budget = None

    def close(self) -> None:
        """Close the connection without waiting; the next exchange opens another one."""
        wire, self._wire = self._wire, None
        for timer in (self._watch, self._idle):
            if timer is not None:
                timer.cancel()
        self._watch = self._idle = None
        if wire is not None and not self._loop.is_closed():
            wire.close()

    async def aclose(self) -> None:
        """Close the connection; the next exchange opens another one. Not to be called during an exchange."""
        self.close()
        await asyncio.sleep(0)  # the event loop closes the socket in its next turn

    def forget(self) -> None:
        """Drop the connection without closing it: its event loop has ended."""
        self._wire = None

    # --- what is sent on it

    async def _is_master(self, wire: Wire) -> bool:
        try:
            async with asyncio.timeout(None) as self._connecting:
                return await is_master(self._settings(), wire.connection)
        finally:
            self._connecting = None

    async def _connect(self) -> Wire:
        pool = self._settings()
        if pool is None:
            raise RedisConnectionError("the client is gone")
        if self._wire is not None:
            self._wire.close()
        self._has_sentinels = has_sentinels(pool)
        connection = own_connection(pool, protocol=2)  # or there could be pushes among the replies
        try:
            async with asyncio.timeout(None) as self._connecting:
                await connection.connect()
        except BaseException:
            await _disconnected(connection)
            raise
        finally:
            self._connecting = None
        self._wire, self._greeting_due = Wire(connection, self._loop), 0.0
        if self._idle is None:
            self._idle = self._loop.call_later(_IDLE_S, self._close_if_idle)
        return self._wire

    async def _greeted(self, wire: Wire, commands: Sequence[Command]) -> list[Any]:
        """Send commands behind the greeting, in one round trip. The greeting is judged before any reply is returned."""
        question, began = self._greeting.question(), self.began
        self._exchange = wire.send((question, *commands))  # mechanism: greeting-repeated
        first, *replies = await self._exchange
        try:
            again = self._greeting.take_reply(first)  # mechanism: greeting-applied
            if again is not None:
                self._exchange = wire.send((again,))
                (first,) = await self._exchange
                self._greeting.take_reply(first)
        except RedisConnectionError:
            wire.close()
            raise
        self._greeting_due = began + GREETING_S
        return replies

    # --- the watchdog

    def _start_watch(self, now: float) -> None:
        self._sign, self._alive_at, self._excuses, self._over = (now, 0), now, 0, False
        self._look_at(now + _LOOK * self.timeout)

    def _look_at(self, when: float) -> None:
        self._due, self._watch = when, self._loop.call_at(when, self._look)

    def _look(self) -> None:
        """End an exchange to which no reply has come for too long, by closing its socket."""
        self._watch = None
        if not self._busy:
            return
        now, blocked, sign = self._loop.time(), 0.0, (self.began, self._replies())
        if sign != self._sign:  # mechanism: exchanges-distinguished
            self._alive_at = now if sign[0] == self._sign[0] else self.began  # mechanism: progress-is-replies
            self._excuses, self._over = 0, False
        late = now - max(self._due, self.began)  # a block before this exchange has not held it up
        if late > HELD_UP_S and self._excuses < _EXCUSES:  # mechanism: excuses-bounded
            blocked = min(late, self.timeout)
            self._excuses += 1
            self._alive_at += blocked  # mechanism: blocked-loop-excused
            self.began += blocked
        self._sign = (self.began, sign[1])
        crowded = self._on_look(now, blocked)
        over, budget = now - self._alive_at >= self.timeout, self._budget
        if budget is not None:
            budget.until = now + budget.left if crowded else budget.until + blocked
            if now > budget.until and not over:  # else the server is silent, which counts for its breaker
                self._leave()
        if over and self._over:  # mechanism: last-look
            self._give_up()
        else:
            # Once it is over, one more look: what came in this turn of the event loop is read first.
            self._over = over
            self._look_at(now if over else now + _LOOK * self.timeout)

    def _replies(self) -> int:
        return 0 if self._wire is None else self._wire.replies

    def _leave(self) -> None:
        """Fail the caller, whose budget is used up. Late replies are discarded."""
        if self._connecting is not None and not self._connecting.expired():
            self._late = True
            self._connecting.reschedule(self._loop.time())
        elif self._exchange is not None and not self._exchange.done():
            self._exchange.set_exception(used_up())

    def _give_up(self) -> None:
        self._silent = True
        if self._connecting is not None and not self._connecting.expired():
            self._connecting.reschedule(self._loop.time())
        elif self._wire is not None:
            self._wire.lose(RedisConnectionError("the server is silent"))

    def _close_if_idle(self) -> None:
        self._idle = None
        left = self.began + _IDLE_S - self._loop.time()
        if self._busy or left > 0:  # mechanism: connection-in-use-stays
            self._idle = self._loop.call_later(max(left, GREETING_S), self._close_if_idle)
        else:
            self.close()


async def _disconnected(connection: Any) -> None:
    with suppress(Exception):  # closed all the same
        await connection.disconnect(nowait=True)
