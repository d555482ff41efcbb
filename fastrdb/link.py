"""The one way to Redis: every command under a deadline, every failure a CacheUnavailableError, a breaker before it all.

Replies are bytes whatever the client was told to decode. What was cancelled or timed out may still be executed, and
what got no reply may be sent again: all that goes through here is at-least-once.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Coroutine, Sequence
from contextvars import Context
from copy import copy
from types import FunctionType
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

from redis.asyncio import Redis
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MaxConnectionsError, NoScriptError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from .breaker import Breaker
from .connections import PoolSource
from .deadlines import Deadlines
from .direct import Client as Client
from .direct import Direct
from .errors import CacheUnavailableError
from .obstacles import Obstacles
from .reasons import hushed
from .restarts import OTHER_DATA, Restarts
from .scripts import Argument, Call, Command, Script
from .wire import Wire

logger = logging.getLogger("fastrdb")

_SILENT = (TimeoutError, OSError, RedisConnectionError, RedisTimeoutError)
"""What counts for the breaker: no answer. A server that answers with an error is there, and costs no time; nor does a
client's pool that is exhausted."""


class Route(Protocol):
    """How commands get to the server of one client."""

    def get(self, name: bytes, /) -> Awaitable[bytes | None]:
        """Give the value of a key."""
        ...

    def send(self, commands: Sequence[Command], /) -> Coroutine[Any, Any, list[Any]]:
        """Send commands in their order, and give their replies: the server's errors as they are, not raised."""
        ...

    async def aclose(self, *, closing: bool = False) -> None:
        """Give back what is held; with `closing`, closed."""

    def lose(self) -> None:
        """Forget what is held: the event loop has ended."""


class Link:
    """Sends commands and scripts, each under a deadline of `timeout` seconds. For one event loop.

    Everything here may raise CacheUnavailableError.

    `restarts` is asked about each new connection. What it finds is said of reads here, and by the scripts of the rest.
    """

    def __init__(self, timeout: float, restarts: Restarts, obstacles: Obstacles) -> None:
        self._deadlines, self._restarts, self._obstacles = Deadlines(timeout), restarts, obstacles
        self.breaker = Breaker()
        self._routes: WeakKeyDictionary[Any, Route] = WeakKeyDictionary()
        # The client of the latest call and its route, since there is but one client nearly always.
        self._latest: Any = lambda: None
        self._route: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._insists = False
        self._refusals: set[str] = set()  # the first words of those that were logged

    def insisting(self) -> Link:
        """The same link for work that nobody waits for: it tries Redis whatever the breaker says, and may close it."""
        other = copy(self)
        other._insists = True
        return other

    def get(self, client: Client, name: bytes) -> Awaitable[bytes | None]:
        """Give the value of a key."""
        if self.breaker.opened:
            raise self._closed_for("GET", client)
        route: Route = self._route if self._latest() is client else self._find(client)
        return route.get(name)

    async def get_many(self, client: Client, names: Sequence[bytes]) -> list[bytes | None]:
        """Give the values of keys."""
        (raws,) = await self._read(client, (("MGET", *names),))
        found: list[bytes | None] = raws
        return found

    async def get_timed(self, client: Client, names: Sequence[bytes]) -> list[tuple[bytes | None, int]]:
        """Give the values of keys and their PTTL, in one round trip."""
        # A value that is replaced in between gets its successor's life. It was there when it was read all the same.
        alone = len(names) == 1
        values, *lives = await self._read(
            client, (("GET" if alone else "MGET", *names), *(("PTTL", name) for name in names))
        )
        return list(zip([values] if alone else values, lives, strict=True))

    async def command(self, client: Client, *command: Argument) -> Any:
        """Send one command, and give its reply."""
        (reply,) = await self.many(client, (command,))
        return reply

    async def script(self, client: Client, script: Script, keys: Sequence[bytes], *arguments: Argument) -> Any:
        """Run a script, and give its result."""
        (reply,) = await self.batch(client, script, (Call(script, keys, arguments),))
        return reply

    async def batch(self, client: Client, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script many times in one round trip; the first error is raised when all have been run."""
        replies = await self._send(client, script.name, [call.known() for call in calls])
        for bringing in (1, len(calls)):  # one brings the script along; if somebody drops it meanwhile, all do
            unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
            if not unknown:
                break
            again = [calls[at].whole() if nth < bringing else calls[at].known() for nth, at in enumerate(unknown)]
            for at, reply in zip(unknown, await self._send(client, script.name, again), strict=True):
                replies[at] = reply
        for reply in replies:
            if isinstance(reply, Exception):
                raise self.failed(script.name, reply) from reply
        return replies

    async def many(self, client: Client, commands: Sequence[Command]) -> list[Any]:
        """Send several commands in one round trip, and give their replies; the first error is raised."""
        replies = await self._send(client, str(commands[0][0]), commands)
        for reply in replies:
            if isinstance(reply, Exception):
                raise self.failed(str(commands[0][0]), reply) from reply
        return replies

    async def aclose(self, *, closing: bool = False) -> None:
        """Give connections back to their pools, or close them before."""
        for task in list(self._tasks):
            task.cancel()
        if self._tasks:
            await asyncio.wait(set(self._tasks))
        for route in list(self._routes.values()):
            await route.aclose(closing=closing)

    def lose(self) -> None:
        """Forget all connections: their event loop has ended."""
        for route in list(self._routes.values()):
            route.lose()

    def pools(self) -> list[Any]:
        """The connection pools of the clients in use."""
        pools = [getattr(place, "connection_pool", place) for place in list(self._routes)]
        return [pool for pool in pools if hasattr(pool, "reset")]

    # --- parts

    async def _read(self, client: Client, commands: Sequence[Command]) -> list[Any]:
        """Send commands that read entries; what they give may be used."""
        replies = await self.many(client, commands)
        if self._restarts.other_data:  # found out just before they were sent
            raise CacheUnavailableError(str(commands[0][0]), OTHER_DATA)
        return replies

    async def _send(self, client: Client, operation: str, commands: Sequence[Command]) -> list[Any]:
        if self.breaker.opened and not self._insists:
            raise self._closed_for(operation, client)
        try:
            return await self._find(client).send(commands)
        except CacheUnavailableError as error:  # of the batch: said here of what was asked
            raise CacheUnavailableError(operation, error.reason) from error

    def _find(self, client: Client) -> Route:
        if self._latest() is client:
            found: Route = self._route
            return found
        pool = _pool_to_share(client)
        place = client if pool is None else pool
        route = self._routes.get(place)
        if route is None:
            route = (
                Direct(client, self._deadlines, self._restarts, self)
                if pool is None
                else Wire(PoolSource(pool), self._deadlines, self._restarts, self)
            )
            self._routes[place] = route
        self._latest, self._route = ref(client), route
        return route

    # --- the boundary

    def answered(self) -> Exception | None:
        """Redis has answered. Why what was read may not be used all the same: found out just before it was sent."""
        if self.breaker.succeeded():
            self._obstacles.take_down(self.breaker, "recovery")
            logger.info("Redis answers again")
        return CacheUnavailableError("GET", OTHER_DATA) if self._obstacles and self._restarts.other_data else None

    def failed(self, operation: str, error: Exception) -> Exception:
        """Translate an error, and count it."""
        reason = hushed(error)
        silent = isinstance(error, _SILENT) and not isinstance(error, MaxConnectionsError)
        if silent and self.breaker.failed():
            self._obstacles.put_up(self.breaker, "outage", f"{operation}: {reason}")
            logger.warning("Redis does not answer (%s: %s): calls go on without it until it does", operation, reason)
        if isinstance(error, ResponseError) and (kind := reason.partition(" ")[0]) not in self._refusals:
            self._refusals.add(kind)
            logger.warning("Redis refuses %s (%s): calls go on without; this is said once", operation, reason)
        return CacheUnavailableError(operation, reason)

    # --- while the breaker is open

    def closed_for(self, client: Client) -> bool:
        """Whether nothing is asked of Redis for the time being; sees to it that it is tried again."""
        if not self.breaker.opened:
            return False
        if self.breaker.due():
            task = asyncio.get_running_loop().create_task(self._try(client), context=Context())
            self._tasks.add(task)
            task.add_done_callback(self._tried)
        return True

    def _closed_for(self, operation: str, client: Client) -> CacheUnavailableError:
        self.closed_for(client)
        return CacheUnavailableError(operation, "Redis has not answered lately")

    async def _try(self, client: Client) -> None:
        """Whether Redis answers again: nobody waits for this."""
        try:
            await self.insisting().command(client, "PING")
        except CacheUnavailableError as error:
            logger.debug("still no answer: %s", error)

    def _tried(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self.breaker.tried()


def _pool_to_share(client: Any) -> Any:
    """The pool of a plain redis-py client; None where the client must be asked itself.

    Its own `execute_command` may be more than redis-py's (a subclass, an instrumentation, a test's gate), and must then
    see every command.
    """
    own = inspect.getattr_static(client, "execute_command", None)
    if not isinstance(client, Redis) or type(own) is not FunctionType or own.__module__ != Redis.__module__:
        return None
    return None if client.single_connection_client else client.connection_pool
