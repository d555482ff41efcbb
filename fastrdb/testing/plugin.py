"""The pytest plugin of fastrdb: a private server, a client of it, and a cache for each test.

`pytest_plugins = ["fastrdb.testing.plugin"]` in the top `conftest.py` turns it on; runs without that pay nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from redis.asyncio import Redis

from fastrdb.cache import Cache
from fastrdb.testing import emptied
from fastrdb.testing.isolation import new_namespace

from .server import EmbeddedServer

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

try:  # fixtures of its own kind, or its strict mode does not take them; it has been imported by pytest already
    from pytest_asyncio import fixture as _fixture
except ImportError:  # anyio takes any
    _fixture: Any = pytest.fixture  # type: ignore[no-redef]


@pytest.fixture(scope="session")
def fastrdb_server() -> Iterator[EmbeddedServer]:
    """Yield a private Redis or Valkey for the whole run: `fastrdb_server.url`, `.port`, `.stop()`, `.start()`."""
    with EmbeddedServer() as started:
        yield started


@_fixture
async def fastrdb_client(fastrdb_server: EmbeddedServer) -> AsyncIterator[Redis]:
    """Yield a client of the private server."""
    async with Redis.from_url(fastrdb_server.url) as client:
        yield client


@pytest.fixture
def fastrdb_namespace() -> str:
    """Return a namespace that no other test has."""
    return new_namespace()


@_fixture
async def fastrdb_cache(fastrdb_client: Redis, fastrdb_namespace: str) -> AsyncIterator[Cache]:
    """Yield a cache on the private server with keys of its own; at the end it is emptied and closed."""
    async with emptied(Cache(fastrdb_client, namespace=fastrdb_namespace)) as cache:
        yield cache
