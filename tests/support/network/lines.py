"""A server in memory with connections whose writing and reading stop at gates, for tests of what is sent when."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import ResponseError

from fastrdb.testing import Gates
from fastrdb.transport.connection import Line
from fastrdb.transport.deadlines import Deadlines
from fastrdb.transport.scripts import Command

CLOSED = object()
"""In place of a reply: the server closes the connection."""
Told = tuple[bytes, ...]


class Server:
    """What all connections lead to. `log` is what arrived, a list for each time that something was sent."""

    def __init__(self) -> None:
        self.gates = Gates()  # "connect", "send" and "read"
        self.data: dict[bytes, bytes] = {}
        self.log: list[list[Told]] = []
        self.senders: list[asyncio.Task[Any] | None] = []
        self.replies: dict[bytes, deque[Any]] = {}
        self.connects = 0
        self.refuses = False

    def answer(self, name: bytes, *replies: Any) -> None:
        """Give these replies to the next commands of a name."""
        self.replies.setdefault(name, deque()).extend(replies)

    def handle(self, command: Told) -> Any:
        """Do a command, and give its reply."""
        name, *args = command
        if waiting := self.replies.get(name):
            return waiting.popleft()
        match name:
            case b"GET":
                return self.data.get(args[0])
            case b"MGET":
                return [self.data.get(key) for key in args]
            case b"SET":
                self.data[args[0]] = args[1]
        return b"OK"

    @property
    def told(self) -> list[Told]:
        """What arrived, one by one."""
        return [command for batch in self.log for command in batch]


class Wired:
    """A connection to it."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.is_connected = False
        self.socket_timeout: float | None = 5.0
        self._replies: deque[Any] = deque()
        self._on_its_way = False

    async def connect(self) -> None:
        if self.is_connected:
            return
        await self.server.gates.arrive("connect")
        if self.server.refuses:
            raise RedisConnectionError("refused")
        self.server.connects += 1
        self.is_connected = True

    async def disconnect(self, nowait: bool = False) -> None:
        self.is_connected = False
        self._replies.clear()

    async def send_packed_command(self, command: Any, check_health: bool = True) -> None:
        await self.server.gates.arrive("send")
        if not self.is_connected:
            raise RedisConnectionError("closed")
        commands = list(parsed(b"".join(command)))
        self.server.log.append(commands)
        self.server.senders.append(asyncio.current_task())
        self._on_its_way = True
        self._replies.extend(map(self.server.handle, commands))
        await self.server.gates.leave("send")

    async def read_response(self, disable_decoding: bool = False, *, disconnect_on_error: bool = True) -> Any:
        await self.server.gates.arrive("read")
        if self._on_its_way:  # as from a socket, nothing is there at once
            self._on_its_way = False
            await asyncio.sleep(0)
        if not self._replies or self._replies[0] is CLOSED:
            self.is_connected = False
            raise RedisConnectionError("the server has closed the connection")
        reply = self._replies.popleft()
        await self.server.gates.leave("read")
        if isinstance(reply, ResponseError):
            raise reply
        return reply

    def pack_commands(self, commands: Any) -> Any:
        raise NotImplementedError


class Pool:
    """A source with one connection."""

    def __init__(self, server: Server, *, spares: bool = True) -> None:
        self.server, self.spares = server, spares
        self.free = [Wired(server)]
        self.given: list[bool] = []  # whether it was connected when it was given back
        self.taken = 0

    async def take(self) -> Wired:
        self.taken += 1
        (connection,) = self.free
        self.free = []
        await connection.connect()
        return connection

    async def give(self, connection: Any) -> None:
        self.given.append(connection.is_connected)
        self.free = [connection]

    def lose(self, connection: Any) -> None:
        self.free = [Wired(self.server)]


class Asks:
    """A greeting; what it heard is written down, and what it is to say to it comes from the test."""

    def __init__(self) -> None:
        self.heards: list[Any] = []
        self.says: deque[Any] = deque()

    def question(self) -> Command:
        return ("WHO",)

    def heard(self, reply: Any) -> Command | None:
        self.heards.append(reply)
        said = self.says.popleft() if self.says else None
        if isinstance(said, Exception):
            raise said
        found: Command | None = said
        return found


class Border:
    """A boundary that leaves errors as they are."""

    def __init__(self) -> None:
        self.failures: list[Exception] = []
        self.answers = 0
        self.refusal: Exception | None = None

    def answered(self) -> Exception | None:
        self.answers += 1
        return self.refusal

    def failed(self, operation: str, error: Exception) -> Exception:
        self.failures.append(error)
        return error


class Timers:
    """The timers of lines, which look whether they are used: they go off when the test says so."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        self.set: list[tuple[float, asyncio.TimerHandle]] = []
        call_later = loop.call_later

        def later(delay: float, callback: Any, *args: Any, **options: Any) -> asyncio.TimerHandle:
            if not isinstance(getattr(callback, "__self__", None), Line):
                return call_later(delay, callback, *args, **options)
            handle = call_later(3600, callback, *args, **options)
            self.set.append((delay, handle))
            return handle

        monkeypatch.setattr(loop, "call_later", later)

    def go_off(self) -> None:
        """Let all that are set go off now."""
        due, self.set = self.set, []
        for _, handle in due:
            if not handle.cancelled():
                handle._run()
                handle.cancel()


def deadlines(seconds: float = 60) -> Deadlines:
    """Give deadlines that do not hurry a test."""
    return Deadlines(seconds)


async def turns(count: int = 20) -> None:
    """Let every task that can go on do so."""
    for _ in range(count):
        await asyncio.sleep(0)


def parsed(data: bytes) -> Iterator[Told]:
    """Read commands as they are on the wire."""
    at = 0

    def line() -> bytes:
        nonlocal at
        end = data.index(b"\r\n", at)
        found, at = data[at:end], end + 2
        return found

    while at < len(data):
        parts = []
        for _ in range(int(line()[1:])):
            size = int(line()[1:])
            parts.append(data[at : at + size])
            at += size + 2
        yield tuple(parts)
