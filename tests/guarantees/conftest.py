"""The worlds in which a guarantee must hold."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

from fastrdb.testing import script_texts
from tests.support.servers import databases
from tests.support.servers.cluster import Cluster
from tests.support.servers.databases import ServerDatabase
from tests.support.world.world import World, world

Opens = Callable[..., AbstractAsyncContextManager[World]]


@pytest.fixture(params=["sqlite", "postgresql", "cluster"])
def place(request: pytest.FixtureRequest) -> tuple[databases.Database, Any]:
    """Provide a database and a client: SQLite, then PostgreSQL in READ COMMITTED, then SQLite and a Redis Cluster."""
    database: databases.Database = request.getfixturevalue("postgresql" if request.param == "postgresql" else "sqlite")
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        cluster.load(script_texts())
        return database, request.getfixturevalue("cluster_client")
    return database, request.getfixturevalue("client")


@pytest.fixture
async def everywhere(place: tuple[databases.Database, Any]) -> AsyncIterator[World]:
    """Provide a world in each place in turn."""
    async with world(*place) as made:
        yield made


@pytest.fixture
def opens(client: Redis) -> Opens:
    """Provide a function that opens a world on a database server, with an engine of its own."""

    @asynccontextmanager
    async def open_world(server: ServerDatabase, **options: Any) -> AsyncIterator[World]:
        await client.flushall()
        async with server.emptied(**options) as database, world(database, client) as made:
            yield made

    return open_world


@pytest.fixture(params=["postgresql", "mariadb"])
def repeatable(request: pytest.FixtureRequest) -> tuple[ServerDatabase, dict[str, Any]]:
    """Provide a server and the options for REPEATABLE READ, which MariaDB has by default."""
    server: ServerDatabase = request.getfixturevalue(f"{request.param}_server")
    return server, {"isolation_level": "REPEATABLE READ"} if request.param == "postgresql" else {}


@pytest.fixture
async def on_one_snapshot(repeatable: tuple[ServerDatabase, dict[str, Any]], opens: Opens) -> AsyncIterator[World]:
    """Provide a world in REPEATABLE READ on each server in turn."""
    server, options = repeatable
    async with opens(server, **options) as made:
        yield made
