"""A server in memory with connections whose writing and reading stop at gates, for tests of what is sent when."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterator
from contextvars import Context
from types import SimpleNamespace
from typing import Any

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError

from fastrdb.testing import Gates
from fastrdb.transport.commands import Command

CLOSED = object()
"""In place of a reply: the server closes the connection."""
Told = tuple[bytes, ...]


class Waiting(Gates):
    """Gates that can be asked whether one is set."""

    def waits(self, name: str) -> bool:
        """Return True if the next one of this name is held."""
        return bool(self._before[name])


class Server:
    """Far end of all connections. `log` has what arrived, a list for each time that something was sent."""

    def __init__(self) -> None:
        self.gates = Waiting()  # "connect", "send" and "read"
        self.data: dict[bytes, bytes] = {}
        self.log: list[list[Told]] = []
        self.senders: list[asyncio.Task[Any] | None] = []
        self.replies: dict[bytes, deque[Any]] = {}
        self.connects = 0
        self.connections: list[Wired] = []
        self.refuses = False

    def answer(self, name: bytes, *replies: Any) -> None:
        """Set the replies to the next commands of a name."""
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
        """All commands that arrived, one by one."""
        return [command for batch in self.log for command in batch]


class Wired:
    """A connection to it, as redis-py makes one by the settings of a pool. It is the transport of its socket, too."""

    def __init__(self, *, server: Server, **_: Any) -> None:
        self.server = server
        self.is_connected = False
        self._writer = SimpleNamespace(transport=self)
        self._protocol: Any = None
        self._written: asyncio.Queue[bytes] = asyncio.Queue()
        self._task: asyncio.Task[None] | None = None
        server.connections.append(self)

    async def connect(self) -> None:
        await self.server.gates.arrive("connect")
        if self.server.refuses:
            raise RedisConnectionError("refused")
        self.server.connects += 1
        self.is_connected = True
        await self.server.gates.leave("connect")

    async def disconnect(self, nowait: bool = False) -> None:
        self.abort()

    def _close(self) -> None:
        self.abort()

    def set_protocol(self, protocol: Any) -> None:
        self._protocol = protocol
        self._task = asyncio.get_running_loop().create_task(self._work(), context=Context())

    def write(self, data: bytes) -> None:
        self.server.senders.append(asyncio.current_task())
        self._written.put_nowait(data)

    def abort(self) -> None:
        if self.is_connected:
            self.is_connected = False
            if self._task is not None:
                self._task.cancel()
                asyncio.get_running_loop().call_soon(self._protocol.connection_lost, None)

    async def reply(self) -> None:
        """Send one more reply."""
        await self.server.gates.arrive("read")

    async def _work(self) -> None:
        while True:
            data = await self._written.get()
            await self.server.gates.arrive("send")
            commands = list(parsed(data))
            self.server.log.append(commands)
            replies = [self.server.handle(command) for command in commands]
            await self.server.gates.leave("send")
            for reply in replies:
                await self.reply()
                if reply is CLOSED:
                    self.abort()
                    return
                self._protocol.data_received(written(reply))
                await self.server.gates.leave("read")


class Pool:
    """Settings of connections to it."""

    connection_class = Wired

    def __init__(self, server: Server) -> None:
        self.connection_kwargs = {"server": server}


class Asks:
    """Greeting that records the replies; the test sets its question and its answer."""

    def __init__(self) -> None:
        self.replies: list[Any] = []
        self.says: deque[Any] = deque()
        self.other_data = False

    def question(self) -> Command:
        return ("WHO",)

    def take_reply(self, reply: Any) -> Command | None:
        self.replies.append(reply)
        said = self.says.popleft() if self.says else None
        if isinstance(said, Exception):
            raise said
        found: Command | None = said
        return found

    async def settle(self, send: object) -> bool:
        return True


class Passing:
    """The event loop's own clock, which can be put forward."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loop = asyncio.get_running_loop()
        time, self._passed = loop.time, 0.0
        monkeypatch.setattr(loop, "time", lambda: time() + self._passed)

    def passes(self, seconds: float) -> None:
        """Add so much to the time at once."""
        self._passed += seconds


async def turns(count: int = 20) -> None:
    """Run every task that can go on."""
    for _ in range(count):
        await asyncio.sleep(0)


def written(reply: Any) -> bytes:
    """Return a reply as it is on the wire."""
    match reply:
        case None:
            return b"$-1\r\n"
        case bytes():
            return b"$%d\r\n%s\r\n" % (len(reply), reply)
        case list():
            return b"*%d\r\n" % len(reply) + b"".join(map(written, reply))
    return b"-%s\r\n" % str(reply).encode()


def parsed(data: bytes) -> Iterator[Told]:
    """Return commands as read from the wire."""
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
