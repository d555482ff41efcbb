"""Every race that the protocol is there for, step by step, on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from fastrdb.testing import script_texts
from tests.races.scenarios import commits as scenarios_commits
from tests.races.scenarios import sessions as scenarios_sessions
from tests.support.servers import databases
from tests.support.servers.cluster import Cluster
from tests.support.servers.databases import Database, ServerDatabase
from tests.support.world.world import Scenario, World, world

RACES: list[Scenario] = [
    scenarios_sessions.put_against_a_writer,
    scenarios_sessions.put_before_a_writer,
    scenarios_sessions.put_against_a_reader,
    scenarios_commits.result_prefix,
    scenarios_commits.joined,
    scenarios_commits.joined_and_open,
    scenarios_commits.text_dml,
    scenarios_commits.hidden_session,
    scenarios_commits.older_hidden_session,
    scenarios_commits.connection_inside,
    scenarios_commits.connection_outside,
    scenarios_commits.raises_after_its_commit,
    scenarios_commits.raises_before_its_result,
    scenarios_commits.read_only_commit,
]
AUTOCOMMIT: list[Scenario] = [
    scenarios_commits.autocommit,
    scenarios_commits.autocommit_put,
    scenarios_commits.autocommit_by_hand,
]


def name(scenario: Scenario) -> str:
    """Name a race in a test's id."""
    return scenario.__name__


@pytest.fixture
async def on_sqlite(sqlite: Database, client: Redis) -> AsyncIterator[World]:
    """Give a world on SQLite."""
    async with world(sqlite, client) as made:
        yield made


@pytest.fixture
async def on_postgresql(postgresql: Database, client: Redis) -> AsyncIterator[World]:
    """Give a world on PostgreSQL, in READ COMMITTED."""
    async with world(postgresql, client) as made:
        yield made


@pytest.fixture
async def on_cluster(sqlite: Database, cluster: Cluster, cluster_client: RedisCluster) -> AsyncIterator[World]:
    """Give a world on SQLite, over a cluster: every slot is a step of its own."""
    cluster.load(script_texts().values())
    async with world(sqlite, cluster_client) as made:
        yield made


@pytest.mark.parametrize("race", [*RACES, scenarios_sessions.savepoint_that_commits], ids=name)
async def test_on_sqlite(on_sqlite: World, race: Scenario) -> None:
    """Nobody is answered with anything older than what was committed, whoever comes when."""
    await race(on_sqlite)


@pytest.mark.parametrize("race", [*RACES, scenarios_sessions.savepoint_released], ids=name)
async def test_on_postgresql(on_postgresql: World, race: Scenario) -> None:
    """The same where readers and writers do not wait for each other."""
    await race(on_postgresql)


@pytest.mark.parametrize("race", [*RACES, scenarios_sessions.savepoint_that_commits], ids=name)
async def test_on_cluster(on_cluster: World, race: Scenario) -> None:
    """The same over a cluster."""
    await race(on_cluster)


@pytest.fixture(params=["sqlite", "postgresql"])
async def autocommitting(
    request: pytest.FixtureRequest, client: Redis, postgresql_server: ServerDatabase, sqlite: Database
) -> AsyncIterator[World]:
    """Give a world in which each statement commits by itself."""
    url = sqlite.engine.url
    if request.param == "postgresql":
        await postgresql_server.clear()
        url = postgresql_server.url
    async with databases.opened(url, isolation_level="AUTOCOMMIT") as database, world(database, client) as made:
        yield made


@pytest.mark.parametrize("race", AUTOCOMMIT, ids=name)
async def test_autocommit(autocommitting: World, race: Scenario) -> None:
    """No COMMIT follows, so each write statement is what Redis is told before."""
    await race(autocommitting)


async def test_autocommit_outlives_its_barrier(autocommitting: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each statement is covered, however long after the first it comes."""
    await scenarios_commits.autocommit_again(autocommitting, monkeypatch)
