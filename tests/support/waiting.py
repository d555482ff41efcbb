"""Waiting for what other processes bring about, of which nothing tells."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from redis.exceptions import RedisError

_LIMIT = 30.0
_LOOK = 0.02


async def until(fact: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so; a server that does not answer says no. TimeoutError after half a minute."""
    async with asyncio.timeout(_LIMIT):
        while True:
            with contextlib.suppress(RedisError, OSError):
                if await fact():
                    return
            await asyncio.sleep(_LOOK)
