"""Caches that keep apart from each other on one server, for the time of a test; nobody's keys are flushed."""

from __future__ import annotations

import secrets
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TYPE_CHECKING, Any, TypeVar

from redis.exceptions import RedisError

from fastrdb.cache import default_cache
from fastrdb.runtime import BaseCache
from fastrdb.transport import Names

if TYPE_CHECKING:
    from redis.asyncio import Redis

AnyCache = TypeVar("AnyCache", bound=BaseCache)


def new_namespace() -> str:
    """Give a namespace that nobody else uses."""
    return f"test-{secrets.token_hex(8)}"


@asynccontextmanager
async def isolated(*caches: BaseCache, redis: Redis | None = None) -> AsyncIterator[str]:
    """Let caches use a namespace of their own inside, the default cache if none is named; gives the namespace.

    For functions that were decorated when the application was imported. What the caches know is forgotten at both
    ends, and what they have stored inside is deleted at the end, by the client of the cache. Not for two tests at once
    in one process: the caches are the application's.

    Args:
        caches: the caches.
        redis: takes the place of the caches' own clients inside.
    """
    namespace = new_namespace()
    async with AsyncExitStack() as stack:
        for cache in caches or (default_cache,):
            await stack.enter_async_context(_moved(cache, namespace, redis))
        yield namespace


@asynccontextmanager
async def _moved(cache: BaseCache, namespace: str, redis: Redis | None) -> AsyncIterator[None]:
    kept = cache.namespace, cache.redis
    await cache.aclose()
    cache.move(namespace, cache.redis if redis is None else redis)
    try:
        async with emptied(cache):
            yield
    finally:
        cache.move(*kept)


@asynccontextmanager
async def emptied(cache: AnyCache, client: Any = None) -> AsyncIterator[AnyCache]:
    """Close the cache at the end, and delete all that is in its namespace, if it has one and Redis answers.

    Args:
        cache: the cache; gives it on.
        client: what to delete with, if the cache has no client of its own; without either, nothing is deleted.
    """
    try:
        yield cache
    finally:
        client = cache.redis if client is None else client
        if client is not None and cache.namespace and await _answers(client):
            await cache.invalidate("*", redis=client)
            names = Names(cache.namespace)
            await client.delete(*names.shared, names.server, names.healing)
        await cache.aclose()


async def _answers(client: Any) -> bool:
    try:
        await client.ping()
    except (RedisError, OSError):
        return False
    return True
