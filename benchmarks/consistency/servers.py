"""The servers of a run, each a private one: one, a cluster of three masters, or a master and a replica with sentinels.

Proxies stand in front of them.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager, contextmanager, suppress
from pathlib import Path
from random import randrange
from typing import Any, Literal

from redis.asyncio import Redis

from benchmarks.consistency.address import HOST, Address
from fastrdb.testing import EmbeddedServer, EmbeddedServerError, TcpProxy
from tests.support.servers import sentinels
from tests.support.servers.sentinels import Group

NetworkFault = Literal["drop", "hold", "refuse"]
MASTERS = 3
DOWN_AFTER_MS = 700
"""Milliseconds of silence after which the sentinels take the master for dead."""
_SLOTS = 16384
_CLUSTER = ("--cluster-enabled", "yes", "--cluster-node-timeout", "5000", "--cluster-require-full-coverage", "no")
_LIMIT = 20.0
_TRIES = 5


class Servers:
    """Servers that run, and the proxies in front of each."""

    def __init__(self, servers: list[EmbeddedServer], group: Group | None = None) -> None:
        self.servers, self.group = servers, group
        self.proxies: list[TcpProxy] = []

    @property
    def address(self) -> Address:
        """The way that nothing is in."""
        if self.group is not None:
            return Address((), sentinels=tuple(self.group.sentinels))
        return Address(tuple(server.port for server in self.servers), len(self.servers) > 1)

    @property
    def detour(self) -> Address:
        """The way through the proxies."""
        ports = self.address.ports
        detours = {port: proxy.port for port, proxy in zip(ports, self.proxies, strict=True)}
        return Address(ports, self.address.cluster, detours)

    @asynccontextmanager
    async def proxied(self) -> AsyncIterator[None]:
        """Inside, the proxies run."""
        async with AsyncExitStack() as stack:
            self.proxies = [await stack.enter_async_context(TcpProxy(server.port)) for server in self.servers]
            yield

    async def take_away(self, fault: NetworkFault) -> None:
        """Make all proxies swallow what comes, keep it back, or reset all connections and refuse new ones."""
        for proxy in self.proxies:
            match fault:
                case "drop":
                    proxy.drop()
                case "hold":
                    proxy.hold()
                case "refuse":
                    await proxy.refuse()
                    proxy.cut()

    async def give_back(self) -> None:
        """End what `take_away` began; what was kept back arrives now."""
        for proxy in self.proxies:
            proxy.heal()
            await proxy.accept()

    @asynccontextmanager
    async def client(self, server: EmbeddedServer) -> AsyncIterator[Redis]:
        """Give a client of one server, to do something to it."""
        async with Redis(host=HOST, port=server.port) as client:
            yield client

    async def serving(self, server: EmbeddedServer) -> None:
        """Wait until a server that was started again is there for its clients: a cluster's is not for two seconds."""
        if self.address.cluster:
            async with self.client(server) as client, asyncio.timeout(_LIMIT):
                while not await _complete(client, len(self.servers)):  # noqa: ASYNC110  # theirs to say
                    await asyncio.sleep(0.01)


def restart(server: EmbeddedServer, *, folder: Path | None) -> None:
    """Kill a server and start it again; from the snapshot in `folder` if there is one, else empty."""
    server.kill()
    if folder is not None:
        (folder / "dump.rdb").unlink(missing_ok=True)
    server.start()


@contextmanager
def started(*, cluster: bool, sentinel: bool = False) -> Iterator[Servers]:
    """Give running servers; they go with the block."""
    with ExitStack() as stack:
        if sentinel:
            master, replica = sentinels.pair(stack)
            asyncio.run(sentinels.follow(replica, master.port))
            group = sentinels.watched(stack, master, replica, DOWN_AFTER_MS)
            asyncio.run(group.known())
            yield Servers([master, replica], group)
            return
        count = MASTERS if cluster else 1
        made = [_started(stack, cluster=cluster) for _ in range(count)]
        if cluster:
            asyncio.run(_join([server.port for server in made]))
        yield Servers(made)


def _started(stack: ExitStack, *, cluster: bool) -> EmbeddedServer:
    for left in reversed(range(_TRIES if cluster else 1)):
        options: dict[str, Any] = {"args": _CLUSTER, "port": _port()} if cluster else {}
        try:
            return stack.enter_context(EmbeddedServer(**options))
        except EmbeddedServerError:  # somebody has taken the port meanwhile, or the one for the cluster itself
            if not left:
                raise
    raise AssertionError("unreachable")


def _port() -> int:
    """Give a free port that leaves room for the cluster's own, which is 10,000 above it."""
    while True:
        port = randrange(20_000, 50_000)
        with socket.socket() as probe, suppress(OSError):
            probe.bind((HOST, port))
            return port


async def _join(ports: list[int]) -> None:
    """Make a cluster of empty servers: slots in equal parts; wait until each knows all of it."""
    clients = [Redis(host=HOST, port=port) for port in ports]
    try:
        share = -(-_SLOTS // len(ports))
        for number, client in enumerate(clients):
            first, last = number * share, min(_SLOTS, (number + 1) * share) - 1
            await client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
            await client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        for port in ports[1:]:
            await clients[0].execute_command("CLUSTER", "MEET", HOST, port)
        async with asyncio.timeout(_LIMIT):
            while not all([await _complete(client, len(ports)) for client in clients]):  # noqa: ASYNC110  # theirs to say
                await asyncio.sleep(0.05)
    finally:
        for client in clients:
            await client.aclose()


async def _complete(client: Redis, count: int) -> bool:
    info: Any = await client.execute_command("CLUSTER", "INFO")
    fields = info if isinstance(info, dict) else dict(line.split(":", 1) for line in info.decode().splitlines() if line)
    return fields["cluster_state"] == "ok" and int(fields["cluster_known_nodes"]) == count
