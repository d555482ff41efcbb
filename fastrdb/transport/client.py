"""The one way to Redis: every command under a deadline, every failure a CacheUnavailableError, a breaker before it all.

Replies are bytes whatever the client was told to decode. What was cancelled or timed out may still be executed, and
what got no reply may be sent again: all that goes through here is at-least-once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Collection, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from contextvars import Context
from copy import copy
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

from redis.asyncio.cluster import RedisCluster
from redis.exceptions import MaxConnectionsError, NoScriptError, ResponseError

from fastrdb.errors import CacheUnavailableError

from .breaker import Breaker
from .cluster import Masters, Met
from .cluster_direct import ClusterDirect
from .connections import SILENT, PoolSource, is_plain, pool_to_share
from .deadlines import Deadlines, ended
from .direct import Client as Client
from .direct import Direct
from .histories import Histories
from .nodes import NodeSource
from .obstacles import Obstacles
from .pipeline import Wire
from .reasons import hushed
from .restarts import OTHER_DATA, Restarts
from .scripts import Argument, Call, Command
from .timeouts import Answers, Patience, Waits

logger = logging.getLogger("fastrdb")


class Route(Answers, Protocol):
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
    `met` is told of each master of a cluster before it is asked.
    """

    def __init__(
        self, timeout: float, restarts: Restarts | Histories, obstacles: Obstacles, met: Met | None = None
    ) -> None:
        self._met = met
        self._deadlines, self._restarts, self._obstacles = Deadlines(timeout), restarts, obstacles
        self._waits = Waits(timeout)
        self.breaker = Breaker()
        self._routes: WeakKeyDictionary[Any, Route] = WeakKeyDictionary()
        # The client of the latest call and its route, since there is but one client nearly always.
        self._latest: Any = lambda: None
        self._route: Any = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._insists = False
        self._brought: dict[str, asyncio.Future[None]] = {}  # scripts that are on their way to the server
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

    async def read(self, client: Client, commands: Sequence[Command]) -> list[Any]:
        """Send commands that read entries in one round trip, and give their replies, which may be used."""
        replies = await self.many(client, commands)
        if self._restarts.other_data:  # found out just before they were sent
            raise CacheUnavailableError(str(commands[0][0]), OTHER_DATA)
        return replies

    async def command(self, client: Client, *command: Argument) -> Any:
        """Send one command, and give its reply."""
        (reply,) = await self.many(client, (command,))
        return reply

    async def script(self, client: Client, call: Call) -> Any:
        """Run a script, and give its result."""
        (reply,) = await self.many(client, (call,))
        return reply

    async def many(self, client: Client, commands: Sequence[Call | Command]) -> list[Any]:
        """Send commands and scripts in one round trip; the first error is raised when all have been tried."""
        return self.raised(commands, await self.run(client, commands))

    async def portions(self, client: Client, commands: Sequence[Call | Command], size: int) -> list[Any]:
        """As `many`: in one round trip, unless they are so many that others would wait for them."""
        replies: list[Any] = []
        for at in range(0, len(commands), size):
            replies += await self.many(client, commands[at : at + size])
        return replies

    def patience(self, client: Client, read: Collection[bytes] = (), *, portions: int = 1) -> Patience:
        """How long a call may wait in all that it asks from now on; `read` are the keys that it has just been given."""
        return Patience(self._waits, self._find(client), read, portions)

    def raised(self, commands: Sequence[Call | Command], replies: list[Any]) -> list[Any]:
        """Give the replies; raise the first error among them."""
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, CacheUnavailableError):
                raise reply
            if isinstance(reply, Exception):
                raise self.failed(_name(command), reply) from reply
        return replies

    async def run(self, client: Client, commands: Sequence[Call | Command]) -> list[Any]:
        """Send commands and scripts in one round trip, and give what comes of each: errors as they are, not raised."""
        if not commands:
            return []
        name = _name(commands[0])
        replies = await self._send(client, name, [_known(command) for command in commands])
        unknown = _unknown(replies)
        while unknown:  # one of each script brings it along, and the others find it there; on each server of a cluster
            whole = {call.script.sha: at for at in reversed(unknown) if isinstance(call := commands[at], Call)}
            if brought := [self._brought[sha] for sha in whole if sha in self._brought]:
                await asyncio.wait(brought)  # by another caller, in this moment
                whole = {}
            with self._bringing(whole):
                again = [_whole(commands[at]) if at in whole.values() else _known(commands[at]) for at in unknown]
                for at, reply in zip(unknown, await self._send(client, name, again), strict=True):
                    replies[at] = reply
            before, unknown = unknown, _unknown(replies)
            if whole and len(unknown) == len(before):
                break
        return replies

    @contextmanager
    def _bringing(self, scripts: Collection[str]) -> Iterator[None]:
        """Inside, the others who miss these scripts wait: a crowd that finds none sends each of them once."""
        done = asyncio.get_running_loop().create_future()
        self._brought.update(dict.fromkeys(scripts, done))
        try:
            yield
        finally:
            for sha in scripts:
                del self._brought[sha]
            done.set_result(None)

    async def look(self, client: Client) -> None:
        """Have the map of a cluster looked at, now."""
        route = self._find(client)
        if isinstance(route, Masters | ClusterDirect):
            await route.look()

    async def aclose(self, *, closing: bool = False) -> None:
        """Give connections back to their pools, or close them before."""
        await ended(self._tasks)
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

    async def _send(self, client: Client, operation: str, commands: Sequence[Command]) -> list[Any]:
        if self.breaker.opened and not self._insists:
            raise self._closed_for(operation, client)
        try:
            route = self._find(client)
            if self._insists and isinstance(route, Masters):
                return await route.send(commands, insist=True)
            return await route.send(commands)
        except CacheUnavailableError as error:  # of the batch: said here of what was asked
            raise CacheUnavailableError(operation, error.reason) from error

    def _find(self, client: Client) -> Route:
        if self._latest() is client:
            found: Route = self._route
            return found
        pool = pool_to_share(client)
        place = client if pool is None else pool
        route = self._routes.get(place)
        if route is None:
            route = self._routes[place] = self._made(client, pool)
        self._latest, self._route = ref(client), route
        return route

    def _made(self, client: Any, pool: Any) -> Route:
        restarts = self._restarts
        if isinstance(restarts, Histories):
            if is_plain(client, RedisCluster) and NodeSource.spares_of(client):
                return Masters(client, self._deadlines, restarts, self, self._met)
            return ClusterDirect(client, self._deadlines, restarts, self)
        if pool is None:
            return Direct(client, self._deadlines, restarts, self)
        return Wire(PoolSource(pool), self._deadlines, restarts, self)

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
        silent = isinstance(error, SILENT) and not isinstance(error, MaxConnectionsError)
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


def is_cluster(client: object) -> bool:
    """Whether it is the client of a cluster."""
    return isinstance(client, RedisCluster)


def _name(command: Call | Command) -> str:
    return command.script.name if isinstance(command, Call) else str(command[0])


def _known(command: Call | Command) -> Command:
    return command.known() if isinstance(command, Call) else command


def _whole(command: Call | Command) -> Command:
    return command.whole() if isinstance(command, Call) else command


def _unknown(replies: Sequence[Any]) -> list[int]:
    """Where a script was not known."""
    return [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
