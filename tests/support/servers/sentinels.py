"""A master, a replica and three sentinels, from the binary that the tests have."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.sentinel import Sentinel

from fastrdb.testing.server import EmbeddedServer, find_binaries
from tests.support.waiting import until

SERVICE = "main"
AT_ONCE = ("--repl-diskless-sync-delay", "0")  # a replica need not wait for others to come along


async def synced(master: Redis) -> None:
    """Wait until a replica has what the master has by now."""
    await master.set("synced", 1)
    assert await master.wait(1, 10_000)


async def service(client: Redis) -> dict[str, Any]:
    """Return a sentinel's report on the service."""
    masters: Any = await client.sentinel_masters()
    found: dict[str, Any] = masters[SERVICE]
    return found


async def replication(client: Redis) -> dict[str, str]:
    """Return a server's report on its part in replication."""
    found = await client.info("replication")
    return {str(name): str(value) for name, value in found.items()}


@dataclass
class Group:
    """One service."""

    master: EmbeddedServer
    replica: EmbeddedServer
    sentinels: list[int]  # ports

    def sentinel(self) -> Sentinel:
        """Return a client of the sentinels."""
        return Sentinel([("127.0.0.1", port) for port in self.sentinels], socket_timeout=1.0)

    async def known(self) -> None:
        """Wait until each sentinel knows the replica and the other sentinels."""
        for port in self.sentinels:
            async with Redis(port=port) as client:

                async def complete(client: Redis = client) -> bool:
                    state = await service(client)
                    others = len(self.sentinels) - 1
                    return (state["num-slaves"], state["num-other-sentinels"]) == (1, others)

                await until(complete)

    async def failed_over(self) -> None:
        """Wait until the replica is the master, by its own word and by the sentinels'."""
        async with Redis(port=self.replica.port) as client:

            async def promoted() -> bool:
                return (await replication(client))["role"] == "master"

            await until(promoted)
        for port in self.sentinels:
            async with Redis(port=port) as client:

                async def said(client: Redis = client) -> bool:
                    return bool((await service(client))["port"] == self.replica.port)

                await until(said)


async def follow(replica: EmbeddedServer, port: int) -> None:
    """Make a server follow the one on a port, and wait until it has all of its data."""
    async with Redis(port=replica.port) as client:
        await client.replicaof("127.0.0.1", str(port))

        async def up() -> bool:
            return (await replication(client)).get("master_link_status") == "up"

        await until(up)


@contextlib.contextmanager
def _sentinel(binary: Path, folder: Path, master: int, down_after: int) -> Iterator[int]:
    """Start one, and give its port."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    settings = folder / f"{port}.conf"
    settings.write_text(
        f"port {port}\nbind 127.0.0.1\ndir {folder}\n"
        f"sentinel monitor {SERVICE} 127.0.0.1 {master} 2\n"
        f"sentinel down-after-milliseconds {SERVICE} {down_after}\n"
        f"sentinel failover-timeout {SERVICE} 3000\n"
    )
    with (folder / f"{port}.log").open("wb") as log:
        process = subprocess.Popen([str(binary), str(settings), "--sentinel"], stdout=log, stderr=log)
    try:
        yield port
    finally:
        process.kill()
        process.wait()


@contextlib.asynccontextmanager
async def group(down_after: int = 300) -> AsyncIterator[Group]:
    """Run a group; its sentinels take the master for dead after `down_after` ms."""
    with contextlib.ExitStack() as stack:
        master, replica = pair(stack)
        await follow(replica, master.port)
        made = watched(stack, master, replica, down_after)
        await made.known()
        yield made


def pair(stack: contextlib.ExitStack) -> tuple[EmbeddedServer, EmbeddedServer]:
    """Start two servers, which end with the stack."""
    return stack.enter_context(EmbeddedServer(args=AT_ONCE)), stack.enter_context(EmbeddedServer(args=AT_ONCE))


def watched(stack: contextlib.ExitStack, master: EmbeddedServer, replica: EmbeddedServer, down_after: int) -> Group:
    """Start the sentinels of a master and the replica that follows it. Wait for `known` before use."""
    binary = next(iter(find_binaries().values()))
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="fastrdb-sentinel-")))
    ports = [stack.enter_context(_sentinel(binary, folder, master.port, down_after)) for _ in range(3)]
    return Group(master, replica, ports)
