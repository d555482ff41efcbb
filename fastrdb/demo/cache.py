"""The tutorial's Redis: one client for the application, and `get_redis`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from redis.asyncio import Redis

from fastrdb.demo.resources import resource


@dataclass
class _Application:
    client: Redis | None = None


_application = _Application()


@asynccontextmanager
async def open_redis(url: str) -> AsyncIterator[Redis]:
    """Inside, `get_redis` gives a client of the server at `url`."""
    before = _application.client
    async with Redis.from_url(url, decode_responses=True) as client:
        _application.client = client
        try:
            yield client
        finally:
            _application.client = before


@resource
async def get_redis() -> AsyncGenerator[Redis, None]:
    """Yield the application's client: for `Depends(get_redis)` and for `async with get_redis() as redis`."""
    if _application.client is None:
        raise RuntimeError("open_redis(url) comes first")
    yield _application.client
