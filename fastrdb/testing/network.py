"""A TCP proxy that makes a network misbehave on command: delay, lose or cut what is sent, refuse connections.

The proxy serves Redis and databases alike. Nothing in it sleeps: each fault lasts until the test ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass, field
from typing import Literal, Self

Direction = Literal["up", "down"]
"""`up` is to the server, `down` is to the client."""
_BOTH: tuple[Direction, Direction] = ("up", "down")
_HOST = "127.0.0.1"
_READ_BYTES = 65536


class _Way:
    """The bytes of one direction: passed, held, swallowed or cut."""

    def __init__(self) -> None:
        self.flowing = asyncio.Event()
        self.flowing.set()
        self.arrived = asyncio.Event()
        self.dropping = False
        self.left: int | None = None  # bytes that still pass before the cut

    def hold(self) -> None:
        self.arrived.clear()
        self.flowing.clear()

    async def pass_on(self, data: bytes) -> bytes:
        """Return the part of `data` that goes on, at once or when the way is released."""
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
    """The bytes that `TcpProxy.strand` keeps from the server."""

    _way: _Way

    async def held(self) -> None:
        """Wait until there are some."""
        await self._way.arrived.wait()

    def release(self) -> None:
        """Send them on."""
        self._way.flowing.set()


@dataclass
class TcpProxy:
    """A proxy in front of a server: `async with TcpProxy(server.port) as proxy:` listens on `proxy.port`.

    The proxy passes everything on at first. A fault holds for all connections, present and future, until
    `heal()`. Faults may be combined. All methods belong to the event loop that entered the block.

    Args:
        target: the server's TCP port.
        target_host: the server's address.
        port: the port to listen on, on 127.0.0.1; 0 for a free one.
    """

    target: int
    target_host: str = _HOST
    port: int = 0
    connections: int = 0
    """How many connections were accepted."""
    answered: int = 0
    """How many commands `answer_with` has answered."""
    host = _HOST
    _ways: dict[Direction, _Way] = field(init=False)
    _error: str = field(init=False, default="")
    _server: asyncio.Server | None = field(init=False, default=None)
    _tasks: set[asyncio.Task[None]] = field(init=False, default_factory=set)
    _writers: set[asyncio.StreamWriter] = field(init=False, default_factory=set)

    def __post_init__(self) -> None:
        self._ways = {"up": _Way(), "down": _Way()}

    async def __aenter__(self) -> Self:
        """Listen."""
        await self.accept()
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop listening and end all connections."""
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
        """Listen, after `refuse()` on the same port again. Raises OSError if another program has taken the port."""
        if self._server is None:
            self._server = await asyncio.start_server(self._serve, self.host, self.port)
            self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Stop listening: new connections are refused, as on a dead port. Open ones stay; `cut` ends them."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def hold(self, *directions: Direction) -> None:
        """Keep bytes back, in both directions if none is named, until `release`.

        Bytes of a client that has given up meanwhile arrive all the same.
        """
        for direction in directions or _BOTH:
            self._ways[direction].hold()

    def release(self, *directions: Direction) -> None:
        """Send on what was held."""
        for direction in directions or _BOTH:
            self._ways[direction].flowing.set()

    async def held(self, direction: Direction) -> None:
        """Wait until bytes have arrived in a direction since `hold`."""
        await self._ways[direction].arrived.wait()

    def strand(self) -> Stranded:
        """Keep back all that today's connections send from here on; new connections pass."""
        way = self._ways["up"]
        self._ways = {"up": _Way(), "down": _Way()}
        way.hold()
        return Stranded(way)

    def drop(self, *directions: Direction) -> None:
        """Swallow bytes, in both directions if none is named: a black hole, which neither answers nor ends."""
        for direction in directions or _BOTH:
            self._ways[direction].dropping = True

    def cut_after(self, size: int, direction: Direction) -> None:
        """Pass `size` more bytes in a direction, then end the connection."""
        self._ways[direction].left = size

    def cut(self) -> None:
        """Reset every connection now."""
        for writer in self._writers:
            writer.transport.abort()

    def answer_with(self, error: str) -> None:
        """Answer each Redis command with this error, such as `"OOM no room"`; the server does not see the command."""
        self._error = error

    def heal(self) -> None:
        """End all faults but `refuse`: pass on what comes and what was held. What was swallowed stays lost."""
        self._error = ""
        for way in self._ways.values():
            way.dropping, way.left = False, None
        self.release()

    def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                server_reader, server_writer = await asyncio.open_connection(self.target_host, self.target)
                self._writers.add(server_writer)
                try:
                    await self._join((reader, server_writer, "up"), (server_reader, writer, "down"))
                finally:
                    self._writers.discard(server_writer)
                    server_writer.close()
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _join(self, *pipes: tuple[asyncio.StreamReader, asyncio.StreamWriter, Direction]) -> None:
        """Carry both ways until one has ended."""
        back = pipes[1][1]
        tasks = [asyncio.create_task(self._carry(source, sink, way, back)) for source, sink, way in pipes]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        direction: Direction,
        back: asyncio.StreamWriter,
    ) -> None:
        way, unanswered = self._ways[direction], b""
        while data := await source.read(_READ_BYTES):
            passed = await way.pass_on(data)
            if self._error and direction == "up":
                unanswered = self._answer(unanswered + passed, back)
                await back.drain()
                continue
            sink.write(passed)
            await sink.drain()
            if way.left == 0:
                return

    def _answer(self, data: bytes, back: asyncio.StreamWriter) -> bytes:
        """Answer the commands in `data` with the error; return what is not a whole command yet."""
        while (end := command_end(data)) is not None:
            data = data[end:]
            self.answered += 1
            back.write(f"-{self._error}\r\n".encode())
        return data


def command_end(data: bytes) -> int | None:
    """Return where the first command in `data` ends (an array of bulk strings), or None if it is not all there."""
    at = data.find(b"\r\n")
    if at < 0:
        return None
    left, at = int(data[1:at]), at + 2
    for _ in range(left):
        line = data.find(b"\r\n", at)
        if line < 0:
            return None
        at = line + 2 + int(data[at + 1 : line]) + 2
    return at if at <= len(data) else None
