"""A server that takes its time, by a clock that goes only while it does: waits are counted, not timed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster

from fastrdb.testing import Direction, TcpProxy
from tests.support.servers.cluster import Cluster

STEP = 0.005
"""Seconds that the clock goes at a time: one that jumps tells of a loop that was held up."""
_TURNS = 12
"""Turns of the loop in which all that follows from a step of the clock is done."""


class LoopClock:
    """The event loop's own clock. It stands still unless somebody sleeps by it.

    And while something is loaded, or a server has been `asked` and works at it: a busy machine takes its time for that.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time()
        self._sleepers = 0
        self._driver: asyncio.Task[None] | None = None
        self._working = 0
        self.asked: set[int] = set()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Inside, it stands still."""
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    @contextmanager
    def put_in(self) -> Iterator[LoopClock]:
        """Inside, it is the loop's; afterwards, the loop's own goes on from there."""
        own, loop = self._loop.time, self._loop
        self.now = own()  # back it must not go: there are timers
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop, "time", lambda: self.now)
            yield self
        back = self.now - own()
        vars(loop)["time"] = lambda: own() + back

    async def sleep(self, seconds: float) -> None:
        """Come back when the clock has gone so far."""
        until = self.now + seconds
        self._sleepers += 1
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        try:
            while self.now < until:  # noqa: ASYNC110  # one turn for all who sleep: they wake in the order of their times
                await asyncio.sleep(0)
        finally:
            self._sleepers -= 1

    async def nobody_sleeps(self) -> None:
        """Come back when all have slept enough."""
        while self._sleepers:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0)

    async def _drive(self) -> None:
        while self._sleepers:
            for _ in range(_TURNS):
                await asyncio.sleep(0)
            self.now += 0 if self._working or self.asked else STEP


@dataclass
class Pace:
    """How long every answer takes, and how many were asked for since it was set."""

    clock: LoopClock
    takes: float = 0.0
    asked: int = 0

    def set(self, takes: float) -> None:
        """Let answers take so long from now on."""
        self.takes, self.asked = takes, 0


class SlowProxy(TcpProxy):
    """Lets nothing through to the server before the pace says so. The time that the server itself takes is none."""

    pace: Pace

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        direction: Direction,
        back: asyncio.StreamWriter,
    ) -> None:
        kind = _Late if direction == "up" else _Answering
        try:
            await super()._carry(kind(self, source), sink, direction, back)  # type: ignore[arg-type]
        finally:
            self.pace.clock.asked.discard(id(self))


class _Late:
    """What is on its way to the server."""

    def __init__(self, proxy: SlowProxy, source: asyncio.StreamReader) -> None:
        self.proxy, self.source = proxy, source

    async def read(self, size: int) -> bytes:
        data = await self.source.read(size)
        pace = self.proxy.pace
        if data and pace.takes:
            pace.asked += 1
            await pace.clock.sleep(pace.takes)
        if data:
            pace.clock.asked.add(id(self.proxy))
        return data


class _Answering(_Late):
    """What comes from it."""

    async def read(self, size: int) -> bytes:
        data = await self.source.read(size)
        self.proxy.pace.clock.asked.discard(id(self.proxy))
        return data


@asynccontextmanager
async def slowed(pace: Pace, *ports: int, cluster: bool = False) -> AsyncIterator[Any]:
    """Give a client of a server, or of all masters of a cluster, by way of proxies that keep a pace."""
    async with AsyncExitStack() as stack:
        proxies = {}
        for port in ports:
            proxies[port] = proxy = SlowProxy(port)
            proxy.pace = pace
            await stack.enter_async_context(proxy)
        if cluster:
            places = {port: ("127.0.0.1", proxy.port) for port, proxy in proxies.items()}
            nodes = [ClusterNode(*place) for place in places.values()]
            yield await stack.enter_async_context(
                RedisCluster(startup_nodes=nodes, address_remap=lambda place: places.get(place[1], place))
            )
        else:
            yield await stack.enter_async_context(Redis(port=proxies[ports[0]].port))


def ports_of(place: Any) -> list[int]:
    """Where a server listens, or the masters of a cluster."""
    return [master.port for master in place.masters] if isinstance(place, Cluster) else [place.port]
