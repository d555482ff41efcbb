"""A near cache over real servers: its tracking connection goes through a proxy, its clock is moved by hand.

Reads and writes go straight to the server, so that a test decides which of the two connections is the slower one.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from redis.asyncio import Redis

from fastrdb.near.cache import Near, NearCache, Token
from fastrdb.near.tracking import ServerTracking
from fastrdb.testing import TcpProxy
from fastrdb.testing.server import EmbeddedServer
from tests.support.network.clocks import ManualClock

HEADS = ("item:", "post:")


class Observed(NearCache):
    """A near cache that says when something has happened to it: tests wait for facts, not for time."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.heard: list[bytes | None] = []
        self._happened = asyncio.Event()
        super().__init__(*arguments, **options)

    def pushed(self, names: Any) -> None:
        """Note what the server says."""
        super().pushed(names)
        self.heard.extend([None] if names is None else names)
        self._happened.set()

    def clear(self) -> None:
        """Note that all is gone."""
        super().clear()
        self._happened.set()

    def settle(self) -> None:
        """Note a sign of life, or of death."""
        super().settle()
        self._happened.set()

    async def until(self, fact: Callable[[], bool]) -> None:
        """Wait until it is so."""
        while not fact():
            self._happened.clear()
            await self._happened.wait()


@dataclass
class Nearby:
    """One process with a near cache (`near`, `tracking`, `client`), and the rest of the world (`foreign`)."""

    near: Observed
    tracking: ServerTracking
    clock: ManualClock
    client: Redis
    foreign: Redis
    proxy: TcpProxy
    heartbeat: float
    heads: set[str]
    pool: Any
    _marks: int = field(default=0)

    def start(self) -> None:
        """Begin to track, or see to it that it goes on."""
        self.tracking.start(self.pool)

    @property
    def on(self) -> bool:
        """True if the near cache may answer now."""
        return self.clock() < self.near.valid_until

    async def opened(self) -> None:
        """Wait until the near cache may answer."""
        await self.near.until(lambda: self.on)

    def local(self, key: str) -> Any:
        """Return the value that is kept, or None."""
        kept = self.near.lookup(key)
        return None if kept is None else kept.value

    async def fetch(self, key: str) -> tuple[bytes | None, int]:
        """GET and PTTL, as bytes whatever the client decodes."""
        async with self.client.pipeline(transaction=False) as pipeline:
            pipeline.execute_command("GET", key, NEVER_DECODE=True)
            pipeline.execute_command("PTTL", key)
            raw, ttl_ms = await pipeline.execute()
        return raw, ttl_ms

    def keep(self, token: Token | None, fetched: tuple[bytes | None, int]) -> bool:
        """Keep what was fetched, if there is a token and a value."""
        raw, ttl_ms = fetched
        if token is None or raw is None:
            return False
        return self.near.keep(token, raw, size=len(raw), ttl_ms=ttl_ms)

    async def read(self, key: str) -> bytes | None:
        """Read as the store does: from the near cache, else from Redis, and keep the value if that is allowed."""
        kept = self.near.lookup(key)
        if kept is not None:
            found: bytes = kept.value
            return found
        token = self.near.begin(key)
        fetched = await self.fetch(key)
        self.keep(token, fetched)
        return fetched[0]

    async def write(self, values: dict[str, bytes]) -> None:
        """Write in this process: a SET for each key, sent together."""
        with self.near.shut(names=[key.encode() for key in values]):
            await set_each(self.client, values)

    async def told(self) -> None:
        """Wait until the server has reported all that has been done by now: pushes come in order."""
        self._marks += 1
        mark = f"{min(self.heads)}mark:{self._marks}"
        await self.foreign.set(mark, b"")
        await self.near.until(lambda: mark.encode() in self.near.heard)

    async def beat(self) -> None:
        """Send one PING and wait for its answer."""
        await self.near.until(lambda: self.tracking._asked is None)
        await self.clock.asleep()
        self.clock.advance(self.heartbeat / 3)
        await self.near.until(lambda: self.near.valid_until == self.clock() + self.heartbeat)


async def set_each(client: Redis, values: dict[str, bytes]) -> None:
    """Send a SET for each key, all at once."""
    async with client.pipeline(transaction=False) as pipeline:
        for key, value in values.items():
            pipeline.set(key, value)
        await pipeline.execute()


@asynccontextmanager
async def nearby(
    server: EmbeddedServer, *, heartbeat: float = 1.0, parser: Any = None, **options: Any
) -> AsyncIterator[Nearby]:
    """Run a near cache that is on; `options` are those of its client, `parser` that of its tracking connection."""
    heads: set[str] = set(HEADS)
    async with (
        TcpProxy(server.port) as proxy,
        Redis(port=server.port) as foreign,
        Redis(port=server.port, **options) as client,
        Redis(port=proxy.port, **options) as through,
    ):
        await foreign.flushall()
        if parser is not None:
            through.connection_pool.connection_kwargs["parser_class"] = parser
        clock = ManualClock()
        near = Observed(Near(heartbeat=heartbeat), clock=clock)
        tracking = ServerTracking(near, heads, sleep=clock.sleep)
        made = Nearby(near, tracking, clock, client, foreign, proxy, heartbeat, heads, through.connection_pool)
        made.start()
        try:
            await made.opened()
            yield made
        finally:
            await tracking.aclose()
