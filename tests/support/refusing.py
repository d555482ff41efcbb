"""A TCP proxy that answers in the server's place: every command gets the same error."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from tests.support.proxy import Direction, TcpProxy


@dataclass
class RefusingProxy(TcpProxy):
    """Passes everything on while `refusal` is empty; then each command is answered with it, and counted."""

    refusal: str = ""
    refused: int = 0

    async def _join(self, *pipes: tuple[asyncio.StreamReader, asyncio.StreamWriter, Direction]) -> None:
        (client, server, _), (_, back, _) = pipes
        await super()._join((client, _Fork(self, server, back), "up"), pipes[1])  # type: ignore[arg-type]


class _Fork:
    """Where bytes of a client go: to the server, or back to the client as so many errors as there are commands."""

    def __init__(self, proxy: RefusingProxy, server: asyncio.StreamWriter, back: asyncio.StreamWriter) -> None:
        self.proxy, self.server, self.back = proxy, server, back
        self.rest = b""

    def write(self, data: bytes) -> None:
        if not self.proxy.refusal:
            self.server.write(data)
            return
        self.rest += data
        while (end := command_end(self.rest)) is not None:
            self.rest = self.rest[end:]
            self.proxy.refused += 1
            self.back.write(f"-{self.proxy.refusal}\r\n".encode())

    async def drain(self) -> None:
        await self.server.drain()
        await self.back.drain()


def command_end(data: bytes) -> int | None:
    """Where the first command in *data* ends: an array of bulk strings. None if it has not arrived whole."""
    at, left = data.find(b"\r\n"), 0
    if at < 0:
        return None
    left, at = int(data[1:at]), at + 2
    while left:
        line = data.find(b"\r\n", at)
        if line < 0:
            return None
        at = line + 2 + int(data[at + 1 : line]) + 2
        left -= 1
    return at if at <= len(data) else None
