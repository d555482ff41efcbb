"""A TCP proxy that makes a network misbehave on command: delay, lose or cut what is sent, refuse connections.

The proxy serves Redis and databases alike. Nothing in it sleeps: each fault lasts until the test ends it.
"""

from __future__ import annotations

import asyncio
import contextlib
from typing import Literal, Self

Direction = Literal["up", "down"]
"""`up` is to the server, `down` is to the client."""
_BOTH: tuple[Direction, Direction] = ("up", "down")
_HOST = "127.0.0.1"
_READ_BYTES = 65536


class Way:
    """The bytes of one direction: passed, held, swallowed or cut."""

    def __init__(self) -> None:
        self._flowing, self._arrived = asyncio.Event(), asyncio.Event()
        self._flowing.set()
        self.dropping = False
        self.left: int | None = None  # bytes that still pass before the cut

    def hold(self) -> None:
        """Keep bytes back from now on."""
        self._arrived.clear()
        self._flowing.clear()

    async def held(self) -> None:
        """Wait until bytes have arrived since `hold`."""
        await self._arrived.wait()

    def release(self) -> None:
        """Send on what was held."""
        self._flowing.set()

    async def pass_on(self, data: bytes) -> bytes:
        """Return the part of `data` that goes on, at once or when the way is released."""
        self._arrived.set()
        await self._flowing.wait()
        if self.dropping or self.left is None:
            return b"" if self.dropping else data
        part, self.left = data[: self.left], max(0, self.left - len(data))
        return part


class TcpProxy:
    """A proxy in front of a server: `async with TcpProxy(server.port) as proxy:` listens on `proxy.port`.

    The proxy passes everything on at first. A fault holds for all connections, present and future, until `heal()`.
    Faults may be combined. All methods belong to the event loop that entered the block.

    Args:
        target: the server's TCP port.
        target_host: the server's address.

    Attributes:
        host, port: the address to connect to.
        connections: the number of connections that were accepted.
        answered: the number of commands that `answer_with` has answered.
    """

    host = _HOST

    def __init__(self, target: int, target_host: str = _HOST) -> None:
        self.port = self.connections = self.answered = 0
        self._target = target_host, target
        self._ways: dict[Direction, Way] = {"up": Way(), "down": Way()}
        self._error = ""
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()

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
            self._ways[direction].release()

    async def held(self, direction: Direction) -> None:
        """Wait until bytes have arrived in a direction since `hold`."""
        await self._ways[direction].held()

    def strand(self) -> Way:
        """Hold all that today's connections send from here on; return what is held. New connections pass."""
        way = self._ways["up"]
        self._ways = {"up": Way(), "down": Way()}
        way.hold()
        return way

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
        task = asyncio.create_task(self._connect(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers = {writer}
        self._writers.add(writer)
        try:
            with contextlib.suppress(OSError, asyncio.CancelledError):
                server_reader, server_writer = await asyncio.open_connection(*self._target)
                writers.add(server_writer)
                self._writers.add(server_writer)
                up = self._carry(reader, server_writer, "up", writer)
                down = self._carry(server_reader, writer, "down", writer)
                await self._until_one_ends(asyncio.create_task(up), asyncio.create_task(down))
        finally:
            self._writers -= writers
            for each in writers:
                each.close()

    async def _until_one_ends(self, *tasks: asyncio.Task[None]) -> None:
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
