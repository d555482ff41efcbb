"""A TCP proxy that makes a network misbehave on command: hold, drop, cut, refuse. Nothing sleeps."""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Literal, Self

Direction = Literal["up", "down"]  # to the server, to the client
BOTH: tuple[Direction, Direction] = ("up", "down")


class _Way:
    """What happens to bytes in one direction."""

    def __init__(self) -> None:
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.arrived = asyncio.Event()
        self.dropping = False
        self.left: int | None = None

    async def through(self, data: bytes) -> bytes:
        """Give what goes on of *data*, at once or when the way is free again."""
        self.arrived.set()
        await self.flowing.wait()
        if self.dropping:
            return b""
        if self.left is None:
            return data
        part, self.left = data[: self.left], max(0, self.left - len(data))
        return part


@dataclass(frozen=True)
class Stranded:
    """What is kept back on the way to the server, on some connections."""

    _way: _Way

    async def held(self) -> None:
        """Wait until there is something."""
        await self._way.arrived.wait()

    def release(self) -> None:
        """Let it arrive."""
        self._way.flowing.set()


@dataclass
class TcpProxy:
    """`async with TcpProxy(server.port) as proxy:` listens on `proxy.port` and passes everything on, until told not to.

    What it is told holds for all connections, present and future, until `heal()`.
    """

    target: int
    host: str = "127.0.0.1"
    port: int = 0
    connections: int = 0
    _ways: dict[Direction, _Way] = field(init=False)
    _server: asyncio.Server | None = field(init=False, default=None)
    _tasks: set[asyncio.Task[None]] = field(init=False, default_factory=set)
    _writers: set[asyncio.StreamWriter] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._ways = {"up": _Way(), "down": _Way()}

    async def __aenter__(self) -> Self:
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.refuse()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def url(self) -> str:
        """The address for `redis.asyncio.from_url`."""
        return f"redis://{self.host}:{self.port}/0"

    async def accept(self) -> None:
        """Listen, again on the same port after `refuse()`."""
        self._server = await asyncio.start_server(self._serve, self.host, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Stop listening: new connections are refused, as on a dead port. Those that stand stay."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def hold(self, *directions: Direction) -> None:
        """Keep bytes back, in both directions if none is named, until `release`."""
        for direction in directions or BOTH:
            self._ways[direction].arrived.clear()
            self._ways[direction].flowing.clear()

    def strand(self) -> Stranded:
        """Keep back what the connections of now send from here on, while new ones pass, such as one that cancels."""
        way = self._ways["up"]
        self._ways = {"up": _Way(), "down": _Way()}
        way.arrived.clear()
        way.flowing.clear()
        return Stranded(way)

    def release(self, *directions: Direction) -> None:
        """Let what was held go on."""
        for direction in directions or BOTH:
            self._ways[direction].flowing.set()

    async def held(self, direction: Direction) -> None:
        """Wait until bytes have arrived in a direction since it was held."""
        await self._ways[direction].arrived.wait()

    def drop(self, *directions: Direction) -> None:
        """Swallow bytes, in both directions if none is named: a black hole, which never answers and never ends."""
        for direction in directions or BOTH:
            self._ways[direction].dropping = True

    def cut_after(self, size: int, direction: Direction) -> None:
        """Let *size* more bytes through in a direction, and cut the connection then."""
        self._ways[direction].left = size

    def cut(self) -> None:
        """Reset every connection now."""
        for writer in self._writers:
            writer.transport.abort()

    def heal(self) -> None:
        """Pass everything on again, and what was held; what was swallowed stays lost."""
        for way in self._ways.values():
            way.dropping = False
            way.left = None
        self.release()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                server_reader, server_writer = await asyncio.open_connection(self.host, self.target)
                self._writers.add(server_writer)
                try:
                    await self._join((reader, server_writer, "up"), (server_reader, writer, "down"))
                finally:
                    self._writers.discard(server_writer)
                    server_writer.transport.abort()
        finally:
            self._writers.discard(writer)
            writer.transport.abort()

    async def _join(self, *pipes: tuple[asyncio.StreamReader, asyncio.StreamWriter, Direction]) -> None:
        """Carry both ways until one has ended."""
        tasks = [asyncio.create_task(self._carry(*pipe)) for pipe in pipes]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter, direction: Direction) -> None:
        way = self._ways[direction]
        while data := await source.read(65536):
            sink.write(await way.through(data))
            await sink.drain()
            if way.left == 0:
                return
