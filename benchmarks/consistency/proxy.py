"""A TCP proxy that takes a server away from those who come through it: swallows, keeps back, or cuts."""

from __future__ import annotations

import asyncio
from typing import Literal

from benchmarks.consistency.address import HOST

Mode = Literal["pass", "drop", "hold", "refuse"]


class _End(asyncio.Protocol):
    """One end of a connection; what comes in here goes out at the other."""

    def __init__(self, proxy: Proxy, other: _End | None = None) -> None:
        self._proxy = proxy
        self.other = other
        self.transport: asyncio.Transport | None = None
        self.kept: list[bytes] = []

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._proxy.ends.add(self)
        if self.other is None:  # a client: what it sends before the server is there is kept
            if self._proxy.mode == "refuse":
                transport.abort()
            else:
                self._proxy.connect(self)
        else:
            self.other.other = self
            self.other.flush()

    def data_received(self, data: bytes) -> None:
        if self._proxy.mode == "drop":
            return
        self.kept.append(data)
        if self._proxy.mode == "pass":
            self.flush()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._proxy.mode == "hold" and self.kept:  # who sent it has given up; it arrives all the same, later
            return
        self._proxy.ends.discard(self)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.close()

    def flush(self) -> None:
        """Send on what was kept, if there is where to."""
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(b"".join(self.kept))
            self.kept.clear()
            if self.transport is not None and self.transport.is_closing():
                self._proxy.ends.discard(self)
                self.other.transport.close()


class Proxy:
    """Listens on `port`, and passes everything on to the server until told not to."""

    def __init__(self, server: int, host: str = HOST) -> None:
        self._host, self._target = host, server
        self.port = 0
        self.mode: Mode = "pass"
        self.ends: set[_End] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._listening: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen."""
        self._listening = await asyncio.get_running_loop().create_server(lambda: _End(self), HOST, 0)
        self.port = self._listening.sockets[0].getsockname()[1]

    def set(self, mode: Mode) -> None:
        """From now on: `pass` on, also what was kept; `drop` what comes; `hold` it back; cut all, and `refuse` new."""
        self.mode = mode
        for end in list(self.ends):
            if mode == "refuse" and end.transport is not None:
                end.transport.abort()
            elif mode == "pass":
                end.flush()

    def close(self) -> None:
        """Stop listening, and end all connections."""
        if self._listening is not None:
            self._listening.close()
        self.set("refuse")

    def connect(self, client: _End) -> None:
        """Open the other half of a client's connection."""
        task = asyncio.get_running_loop().create_task(self._connect(client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _connect(self, client: _End) -> None:
        try:
            await asyncio.get_running_loop().create_connection(lambda: _End(self, client), self._host, self._target)
        except OSError:
            if client.transport is not None:
                client.transport.abort()
