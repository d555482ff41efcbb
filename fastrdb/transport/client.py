"""The one way to Redis: commands and scripts, every failure a CacheUnavailableError.

Replies are bytes, whatever the client decodes. A command whose caller was cancelled or timed out may still
be executed, and one without a reply may be sent again: commands are executed at least once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Coroutine, Sequence
from contextlib import suppress
from copy import copy
from sys import maxsize
from typing import Any, Protocol
from weakref import WeakKeyDictionary, finalize, ref

from redis.exceptions import NoScriptError

from fastrdb.errors import CacheUnavailableError

from .cluster import ClusterTransport, Met
from .commands import Command, name_of, whole
from .connection import Greeting
from .health import OTHER_DATA, Breaker, Health
from .passthrough import Client, Passthrough, is_cluster, is_plain
from .pipeline import Pipeline
from .sentinel import has_sentinels, left_by_all
from .timeouts import Budget


class Route(Protocol):
    """The way of commands to the server of one client."""

    breaker: Breaker

    def get(self, name: bytes, /) -> Awaitable[bytes | None]:
        """Return the value of a key."""
        ...

    def send(
        self, commands: Sequence[Command], /, *, insist: bool = ..., budget: Budget | None = ...
    ) -> Coroutine[Any, Any, list[Any]]:
        """Send commands in their order, and return their replies: the server's errors as values."""
        ...

    def due(self, names: Collection[bytes], /) -> float:
        """Return when the time of the callers that were answered for these keys is over, by the event loop's clock."""
        ...

    async def ping(self) -> None:
        """Ask for a sign of life, whatever the breaker says."""

    async def aclose(self) -> None:
        """Close all connections; the next caller opens others."""

    def close(self) -> None:
        """Close all connections soon, from any thread."""

    def forget(self) -> None:
        """Drop all connections: the event loop has ended."""


class RedisClient:
    """Sends commands and scripts to one server or cluster. For one event loop.

    All methods raise CacheUnavailableError.

    Args:
        timeout: seconds that one round trip may take.
        greeting: judges each new connection before it is used.
        health: holds the reasons not to read.
        met: is called with each master of a cluster before it is asked.
    """

    def __init__(self, timeout: float, greeting: Greeting, health: Health, met: Met | None = None) -> None:
        self._timeout, self._greeting, self._health, self._met = timeout, greeting, health, met
        self.breaker = Breaker(health, timeout=timeout)
        self._routes: WeakKeyDictionary[Any, Route] = WeakKeyDictionary()
        self._open: set[Route] = set()  # the same: when this client is dropped, weak references are of no use any more
        # The latest client and its route, because there is nearly always one client.
        self._latest: Callable[[], Any] = lambda: None
        self._route: Any = None
        self._insists = False
        # An event loop that ends waits for its asynchronous generators to close, and so does one that is dropped.
        self._until_the_end = _closing(self._open)
        with suppress(StopIteration):
            self._until_the_end.asend(None).send(None)

    def insisting(self) -> RedisClient:
        """Return a view that ignores the breaker, for work that no caller waits for. An answer closes the breaker."""
        other = copy(self)
        other._insists = True
        return other

    def get(self, client: Client, name: bytes) -> Awaitable[bytes | None]:
        """Return the value of a key."""
        route: Route = self._route if self._latest() is client else self._find(client)
        return route.get(name)

    async def read(self, client: Client, commands: Sequence[Command], budget: Budget | None = None) -> list[Any]:
        """Send commands that read entries in one round trip, and return their replies, which may be used."""
        replies = await self.many(client, commands, budget=budget)
        if self._greeting.other_data:  # found out just before the commands were sent
            raise CacheUnavailableError(str(commands[0][0]), OTHER_DATA)
        return replies

    async def many(
        self,
        client: Client,
        commands: Sequence[Command],
        *,
        budget: Budget | None = None,
        portion: int = maxsize,
        errors: bool = False,
    ) -> list[Any]:
        """Send commands and scripts, and return the reply to each.

        Args:
            budget: of the call. Without one, each round trip may take the timeout.
            portion: of more commands, send so many in each round trip: other callers would wait for them.
            errors: return the server's errors as values. Else the first one is raised when all have been tried.
        """
        if len(commands) > portion:
            return await self._in_portions(client, commands, portion, budget=budget, errors=errors)
        if not commands:
            return []
        route: Route = self._route if self._latest() is client else self._find(client)
        try:
            replies = await route.send(commands, insist=self._insists, budget=budget)
            failed = any(isinstance(reply, Exception) for reply in replies)
            if failed:
                await self._bring_scripts(route, commands, replies, budget)
        except CacheUnavailableError as error:
            raise CacheUnavailableError(name_of(commands[0]), error.reason) from error
        return self.raised(commands, replies) if failed and not errors else replies

    async def _in_portions(
        self, client: Client, commands: Sequence[Command], portion: int, **options: Any
    ) -> list[Any]:
        parts = [commands[at : at + portion] for at in range(0, len(commands), portion)]
        return [reply for part in parts for reply in await self.many(client, part, **options)]

    async def _bring_scripts(
        self,
        route: Route,
        commands: Sequence[Command],
        replies: list[Any],
        budget: Budget | None,
    ) -> None:
        """Send again calls of scripts that a server lacked: at each master, the first of each brings its script."""
        unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
        while unknown:
            first = {commands[at][1]: at for at in reversed(unknown)}.values()
            again = [whole(commands[at]) if at in first else commands[at] for at in unknown]
            found = await route.send(again, insist=self._insists, budget=budget)
            for at, reply in zip(unknown, found, strict=True):
                replies[at] = reply
            unknown, before = [at for at in unknown if isinstance(replies[at], NoScriptError)], len(unknown)
            if len(unknown) == before:
                break

    def raised(self, commands: Sequence[Command], replies: list[Any]) -> list[Any]:
        """Return the replies; raise the first error among them."""
        for command, reply in zip(commands, replies, strict=True):
            if isinstance(reply, CacheUnavailableError):
                raise reply
            if isinstance(reply, Exception):
                raise self.breaker.on_error(name_of(command), reply) from reply
        return replies

    def budget(self, client: Client, read: Collection[bytes] = (), *, portions: int = 1) -> Budget:
        """Return how long a call may wait in all: `portions` round trips the timeout each.

        The time that it took to `read` these keys, for which the call was just answered, is counted.
        """
        timeout = self._timeout
        if not read:
            return Budget(timeout, timeout * portions)
        route: Route = self._route if self._latest() is client else self._find(client)
        left = route.due(read) - asyncio.get_running_loop().time()  # mechanism: budget-counts-read
        return Budget(timeout, (left if left > 0 else timeout) + timeout * (portions - 1))

    def closed_for(self, client: Client) -> bool:
        """Return True while Redis is left alone. Have it tried when it is time."""
        if not self.breaker.opened:
            return False
        self.breaker.probe(self._find(client).ping)
        return True

    def may_have_left(self, client: Client) -> bool:
        """Return whether other processes may still use a former master of this client's: Sentinel names the master."""
        return has_sentinels(getattr(client, "connection_pool", None))

    async def left_by_all(self, client: Client) -> None:
        """Wait until no process uses a former master."""
        await left_by_all(getattr(client, "connection_pool", None))

    async def look(self, client: Client) -> None:
        """Refresh the topology of a cluster, and wait for it."""
        route = self._find(client)
        if isinstance(route, ClusterTransport | Passthrough):
            await route.refresh()

    async def aclose(self) -> None:
        """Close all connections; the next caller opens others."""
        await self.breaker.aclose()
        await _aclose(self._open)

    def forget(self) -> None:
        """Drop all connections: their event loop has ended."""
        for route in self._open:
            route.forget()

    # --- routes

    def _find(self, client: Client) -> Route:
        if self._latest() is client:
            found: Route = self._route
            return found
        plain = is_plain(client)
        place: Any = client if is_cluster(client) or not plain else getattr(client, "connection_pool")  # noqa: B009
        route = self._routes.get(place)
        if route is None:
            route = self._routes[place] = self._made(place, plain)
            self._open.add(route)
            # When the pool is gone, its connection is closed. Without this it would stay until it is idle.
            finalize(place, _gone, ref(self), ref(route)).atexit = False
        self._latest, self._route = ref(client), route
        self.breaker.address = self.breaker.address or address_of(client)
        return route

    def _made(self, place: Any, plain: bool) -> Route:
        settings = (self._timeout, self._greeting, self._health, self.breaker)
        if not plain:
            return Passthrough(place, *settings)
        if is_cluster(place):
            return ClusterTransport(place, *settings, self._met)
        return Pipeline(ref(place), *settings)


async def _closing(routes: set[Route]) -> AsyncGenerator[None, None]:
    """Close all connections when this generator is closed: with its event loop, or with its owner."""
    try:
        yield
    finally:
        await _aclose(routes)


async def _aclose(routes: set[Route]) -> None:
    for route in list(routes):
        await route.aclose()


def _gone(client: Callable[[], RedisClient | None], route: Callable[[], Route | None]) -> None:
    if (found := route()) is not None:
        found.close()
        if (owner := client()) is not None:
            owner._open.discard(found)


def address_of(client: Client) -> str:
    """Return where a client connects to, for logs: no user and no password."""
    pool: Any = getattr(client, "connection_pool", None)
    known: dict[str, Any] = getattr(pool, "connection_kwargs", {})
    if (service := getattr(pool, "service_name", None)) is not None:
        return f"the Sentinel service {service}"
    return str(known.get("path") or (f"{known['host']}:{known.get('port', 6379)}" if "host" in known else ""))
