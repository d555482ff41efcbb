"""Caches that share nothing on one server for the time of a test. No other keys are deleted."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from fastrdb.cache import Cache, default_cache
from fastrdb.protocol import Keyspace

from .faults import FaultyClient

if TYPE_CHECKING:
    from redis.asyncio import Redis

AnyCache = TypeVar("AnyCache", bound=Cache)
_ANSWER_LIMIT_S = 1.0
"""Longest wait for the server at the end: the client's own retries of a dead port take five seconds."""
_CLOSE_LIMIT_S = FaultyClient.close_limit
"""Longest wait for background work at both ends: nothing that a test's cache still has to invalidate is of use."""


def new_namespace() -> str:
    """Return a new, unused namespace."""
    return f"test-{secrets.token_hex(8)}"


@asynccontextmanager
async def isolated(*caches: Cache, redis: Redis | None = None) -> AsyncIterator[str]:
    """Move caches into a namespace of their own inside the block; yield the namespace.

    For functions that were decorated when the application was imported. The caches start and end without any state,
    and all that is stored inside is deleted at the end. Not for two tests at once in one process.

    Args:
        caches: the caches to move, by default the one of the module-level decorators.
        redis: replaces the caches' own clients inside. A `FaultyClient` is healed at the end.
    """
    namespace = new_namespace()
    async with AsyncExitStack() as stack:
        for cache in caches or (default_cache,):
            await stack.enter_async_context(_moved(cache, namespace, redis))
        yield namespace


@asynccontextmanager
async def _moved(cache: Cache, namespace: str, redis: Redis | None) -> AsyncIterator[None]:
    kept = cache.namespace, cache.redis
    await cache.aclose(_CLOSE_LIMIT_S)
    cache.runtime.move(namespace, cache.redis if redis is None else redis)
    try:
        async with emptied(cache):
            yield
    finally:
        cache.runtime.move(*kept)


@asynccontextmanager
async def emptied(cache: AnyCache, client: Any = None) -> AsyncIterator[AnyCache]:
    """Yield the cache; at the end delete all that is in its namespace, if it has one and Redis answers, and close it.

    Args:
        cache: the cache.
        client: the client to delete with, by default the cache's own; without either, nothing is deleted. A
            `FaultyClient` is healed first.
    """
    try:
        yield cache
    finally:
        client = cache.redis if client is None else client
        if isinstance(client, FaultyClient):
            client.heal()
        if client is not None and cache.namespace and await _answers(client):
            await cache.invalidate("*", redis=client)
            await cache.aclose(_CLOSE_LIMIT_S)
            names = Keyspace(cache.namespace)  # last: what was still pending has been written down again
            await client.delete(*names.shards[0].all, names.healing)
        else:
            await cache.aclose(_CLOSE_LIMIT_S)


async def _answers(client: Any) -> bool:
    try:
        async with asyncio.timeout(_ANSWER_LIMIT_S):
            await client.ping()
    except (RedisError, OSError):
        return False
    return True
