"""Waiting for what other processes bring about without a sign: the only places of the tests that sleep."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from redis.exceptions import RedisError

from fastrdb.errors import CacheUnavailableError

T = TypeVar("T")

_LIMIT = 30.0
_LOOK = 0.02


async def until(fact: Callable[[], Awaitable[bool]]) -> None:
    """Wait until `fact()` returns True. An error of Redis, of the cache or of a socket counts as False.

    Raises:
        TimeoutError: after half a minute.
    """
    async with asyncio.timeout(_LIMIT):
        while True:
            with contextlib.suppress(RedisError, CacheUnavailableError, OSError):
                if await fact():
                    return
            await asyncio.sleep(_LOOK)


def until_found(find: Callable[[], T], what: str) -> T:
    """Return the first result of `find()` that is true, as `until` waits. Raises TimeoutError, which names `what`."""
    end = time.monotonic() + _LIMIT
    while time.monotonic() < end:
        with contextlib.suppress(RedisError, OSError):
            if found := find():
                return found
        time.sleep(_LOOK)
    raise TimeoutError(what)
