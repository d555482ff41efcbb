"""Each command by the client's own methods: for clients with something of their own in them, which must see it.

redis-py connects anew by itself here, so the look at the server comes in front of a command when one is due, and behind
it when redis-py has connected meanwhile: then another server may have answered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from typing import Any, Protocol
from weakref import WeakSet, ref

from redis.client import NEVER_DECODE
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from .connection import Greeting
from .connections import connections_of
from .deadlines import Deadlines
from .pipeline import Boundary
from .scripts import Command

_LASTS = 1.0
"""Seconds that a look at the server holds."""


class Client(Protocol):
    """What is used of redis.asyncio.Redis, and of its relatives."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command; the result is awaited."""

    def pipeline(self, transaction: bool = ...) -> Any:
        """Collect commands to send at once."""


class Direct:
    """One client, asked itself. For one event loop."""

    def __init__(self, client: Client, deadlines: Deadlines, greeting: Greeting, boundary: Boundary) -> None:
        self._client, self._deadlines, self._greeting, self._boundary = ref(client), deadlines, greeting, boundary
        self._connects = Connects(getattr(client, "connection_pool", None))
        self._loop = asyncio.get_running_loop()
        self._greeted, self._due, self.answer_due = 0, 0.0, 0.0

    async def get(self, name: bytes) -> bytes | None:
        """Give the value of a key."""
        reply, refused = await self._send((("GET", name),))
        if refused is not None:
            raise refused
        if isinstance(reply[0], Exception):
            raise self._boundary.failed("GET", reply[0])
        raw: bytes | None = reply[0]
        return raw

    async def send(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands in their order; several in one pipeline."""
        replies, _ = await self._send(commands)
        return replies

    def due(self, _: Collection[bytes]) -> float:
        """By when the latest answer was due."""
        return self.answer_due

    def crowded(self) -> bool:
        """Nobody queues here."""
        return False

    async def aclose(self, *, closing: bool = False) -> None:
        """Nothing is held."""

    def lose(self) -> None:
        """Nothing is held."""

    async def _send(self, commands: Sequence[Command]) -> tuple[list[Any], Exception | None]:
        try:
            with self._deadlines.start(self._loop) as deadline:
                client = _alive(self._client)
                if self._loop.time() >= self._due:
                    await self._greet(client)
                replies = await _sent(client, commands)
                if self._connects.count() > self._greeted:  # mechanism: greeting-of-new-connections
                    await self._greet(client)
        except Exception as error:
            self._due = 0.0  # it may be another server that answers next
            raise self._boundary.failed(str(commands[0][0]), error) from error
        self.answer_due = deadline.when
        return replies, self._boundary.answered()

    async def _greet(self, client: Client) -> None:
        now, connects = self._loop.time(), self._connects.count()
        (reply,) = await _sent(client, (self._greeting.question(),))
        again = self._greeting.heard(reply)
        if again is not None:
            self._greeting.heard(*await _sent(client, (again,)))
        self._greeted, self._due = connects, now + _LASTS


class Connects:
    """Counts how often a redis-py pool has connected, as far as it can be seen."""

    def __init__(self, pool: Any) -> None:
        self._pool: Callable[[], Any] = _nobody if pool is None else ref(pool)
        self._known: WeakSet[Any] = WeakSet()
        self._count = 0

    def count(self) -> int:
        """Give the number, those by connections that were made since it was last asked among them."""
        for connection in connections_of(self._pool()):
            if connection not in self._known:
                self._known.add(connection)
                connection.register_connect_callback(self._on_connect)
                self._count += 1
        return self._count

    def _on_connect(self, connection: Any) -> None:
        self._count += 1


def _nobody() -> None:
    """The pool of a client without one."""


def _alive(client: Callable[[], Client | None]) -> Client:
    found = client()
    if found is None:
        raise RedisConnectionError("the client is gone")
    return found


async def _sent(client: Client, commands: Sequence[Command]) -> list[Any]:
    if len(commands) == 1:
        try:
            return [await client.execute_command(*commands[0], **{NEVER_DECODE: True})]
        except ResponseError as error:
            return [error]
    async with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command, **{NEVER_DECODE: True})
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
    return replies
