"""A certificate made for one test run, and a proxy that speaks TLS where a server cannot."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.availability import missing


@dataclass(frozen=True)
class Certificate:
    """A self-signed certificate for localhost, and its key."""

    certificate: Path
    key: Path

    @classmethod
    def made(cls, directory: Path) -> Certificate:
        """Make one, by openssl."""
        program = shutil.which("openssl")
        if program is None:
            missing("no openssl on PATH")
        made = cls(directory / "cert.pem", directory / "key.pem")
        options = ["-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", str(made.key), "-out", str(made.certificate)]
        subprocess.run([program, "req", *options, *subject, *files], check=True, capture_output=True)
        return made

    def server_arguments(self, port: int) -> tuple[str, ...]:
        """Return the arguments with which a server speaks TLS on a port, besides its plain one."""
        files = (
            "--tls-cert-file",
            self.certificate,
            "--tls-key-file",
            self.key,
            "--tls-ca-cert-file",
            self.certificate,
        )
        return ("--tls-port", str(port), *map(str, files), "--tls-auth-clients", "no")

    @asynccontextmanager
    async def terminator(self, target: int) -> AsyncIterator[int]:
        """Run a proxy that speaks TLS, in front of a port that does not; yield its port."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certificate, self.key)
        tasks: set[asyncio.Task[None]] = set()

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            up, down = await asyncio.open_connection("127.0.0.1", target)
            pair = {asyncio.create_task(_carry(reader, down)), asyncio.create_task(_carry(up, writer))}
            tasks.update(pair)
            await asyncio.wait(pair, return_when=asyncio.FIRST_COMPLETED)
            for each in (writer, down):
                each.transport.abort()

        async with await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context) as server:
            yield server.sockets[0].getsockname()[1]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    with contextlib.suppress(OSError):
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
