"""A slow server, and a clock that goes only while the server is waited for: waits are counted, not timed."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import hiredis
import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import ClusterNode, RedisCluster

from fastrdb.testing import Direction, TcpProxy
from tests.support.servers.cluster import Cluster

STEP = 0.0025
"""Seconds that the clock goes at a time: a clock that jumps means that the event loop was blocked."""
_TURNS = 30
"""Turns of the loop in which all that follows from a step of the clock is done."""


class LoopClock:
    """The event loop's own clock. It goes only while a task sleeps by it.

    It stands still while something is loaded, and while a server works: a busy machine takes its time for that.

    Attributes:
        unanswered: how many commands a server works at, by connection.
    """

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.now = self._loop.time()
        self._sleepers = 0
        self._driver: asyncio.Task[None] | None = None
        self._working = 0
        self.unanswered: Counter[object] = Counter()

    @contextmanager
    def still(self) -> Iterator[None]:
        """Stop the clock inside."""
        self._working += 1
        try:
            yield
        finally:
            self._working -= 1

    @contextmanager
    def put_in(self) -> Iterator[LoopClock]:
        """Put the clock into the event loop; afterwards, the loop's own clock goes on from there."""
        own, loop = self._loop.time, self._loop
        self.now = own()  # back it must not go: there are timers
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(loop, "time", lambda: self.now)
            yield self
        back = self.now - own()
        vars(loop)["time"] = lambda: own() + back

    async def sleep(self, seconds: float) -> None:
        """Return when the clock has gone so far."""
        until = self.now + seconds
        self._sleepers += 1
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())
        try:
            while self.now < until:  # noqa: ASYNC110  # one turn for all: tasks wake in the order of their times
                await asyncio.sleep(0)
        finally:
            self._sleepers -= 1

    async def all_awake(self) -> None:
        """Return when all have slept enough."""
        while self._sleepers:  # noqa: ASYNC110  # as above
            await asyncio.sleep(0)

    async def _drive(self) -> None:
        turns = 0  # one after the other in which nothing worked: between two statements there are a few
        while self._sleepers:
            await asyncio.sleep(0)
            turns = 0 if self._working or any(self.unanswered.values()) else turns + 1
            if turns == _TURNS:
                self.now += STEP
                turns = 0


@dataclass
class Pace:
    """The time that every answer takes, and the number of batches of commands that were sent since it was set."""

    clock: LoopClock
    takes: float = 0.0
    asked: int = 0

    def set(self, takes: float) -> None:
        """Set how long answers take from now on."""
        self.takes, self.asked = takes, 0


class SlowProxy(TcpProxy):
    """A proxy that passes each batch of commands on after the time that the pace sets.

    The clock stands still from then on until the server has replied to every command, however long that takes.
    """

    pace: Pace

    async def _carry(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        direction: Direction,
        back: asyncio.StreamWriter,
    ) -> None:
        kind = _Commands if direction == "up" else _Replies
        try:
            await super()._carry(kind(self.pace, source, back), sink, direction, back)  # type: ignore[arg-type]
        finally:
            self.pace.clock.unanswered.pop(back, None)


class _Commands:
    """The bytes from a client, whose connection is `line`: a batch is all that comes while a reply is due."""

    def __init__(self, pace: Pace, source: asyncio.StreamReader, line: object) -> None:
        self.pace, self.source, self.line = pace, source, line
        self._parser, self._partial = hiredis.Reader(), False

    async def read(self, size: int) -> bytes:
        data = await self.source.read(size)
        unanswered = self.pace.clock.unanswered
        if data and self.pace.takes and not self._partial and not unanswered[self.line]:
            self.pace.asked += 1
            await self.pace.clock.sleep(self.pace.takes)
        if data:
            unanswered[self.line] += self._count(data)
        return data

    def _count(self, data: bytes) -> int:
        """Return how many commands or replies end in `data`. A push is no reply."""
        self._parser.feed(data)
        count = 0
        while (found := self._parser.gets()) is not False:
            count += not isinstance(found, hiredis.PushNotification)
        self._partial = self._parser.has_data()
        return count


class _Replies(_Commands):
    """The bytes from the server."""

    async def read(self, size: int) -> bytes:
        data = await self.source.read(size)
        self.pace.clock.unanswered[self.line] -= self._count(data)
        return data


@asynccontextmanager
async def slowed(pace: Pace, *ports: int, cluster: bool = False) -> AsyncIterator[Any]:
    """Yield a client of a server, or of all masters of a cluster, by way of proxies that keep a pace."""
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
    """Return the port of a server, or those of the masters of a cluster."""
    return [master.port for master in place.masters] if isinstance(place, Cluster) else [place.port]
