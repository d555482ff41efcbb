"""Every race that the protocol is there for, step by step, on real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from fastrdb.testing import script_texts
from tests.races.mechanisms import label
from tests.races.scenarios import commits, fills, sessions
from tests.support.servers import databases
from tests.support.servers.cluster import Cluster
from tests.support.servers.databases import Database, ServerDatabase
from tests.support.world.world import Scenario, World, world

RACES: list[Scenario] = [
    sessions.put_against_a_writer,
    sessions.put_before_a_writer,
    sessions.put_against_a_reader,
    fills.missed_commit,
    commits.result_prefix,
    commits.joined,
    commits.joined_and_open,
    commits.text_dml,
    commits.hidden_session,
    commits.changed_in_another_task,
    commits.older_hidden_session,
    commits.connection_inside,
    commits.connection_outside,
    commits.raises_after_its_commit,
    commits.raises_before_its_result,
    commits.read_only_commit,
]
AUTOCOMMIT: list[Scenario] = [
    commits.autocommit,
    commits.autocommit_put,
    commits.autocommit_by_hand,
]


@pytest.fixture
async def on_postgresql(postgresql: Database, client: Redis) -> AsyncIterator[World]:
    """Provide a world on PostgreSQL, in READ COMMITTED."""
    async with world(postgresql, client) as made:
        yield made


@pytest.fixture
async def on_cluster(sqlite: Database, cluster: Cluster, cluster_client: RedisCluster) -> AsyncIterator[World]:
    """Provide a world on SQLite, over a cluster: every slot is a step of its own."""
    cluster.load(script_texts())
    async with world(sqlite, cluster_client) as made:
        yield made


@pytest.mark.parametrize("race", [*RACES, sessions.savepoint_that_commits], ids=label)
async def test_race_on_sqlite_is_won(w: World, race: Scenario) -> None:
    """No answer is older than what was committed, in whatever order the steps come."""
    await race(w)


@pytest.mark.parametrize("race", [*RACES, sessions.savepoint_released], ids=label)
async def test_race_on_postgresql_is_won(on_postgresql: World, race: Scenario) -> None:
    """The same where readers and writers do not wait for each other."""
    await race(on_postgresql)


@pytest.mark.parametrize("race", [*RACES, sessions.savepoint_that_commits], ids=label)
async def test_race_on_a_cluster_is_won(on_cluster: World, race: Scenario) -> None:
    """The same over a cluster."""
    await race(on_cluster)


@pytest.fixture(params=["sqlite", "postgresql"])
async def autocommitting(
    request: pytest.FixtureRequest, client: Redis, postgresql_server: ServerDatabase, sqlite: Database
) -> AsyncIterator[World]:
    """Provide a world in which each statement commits by itself."""
    url = sqlite.engine.url
    if request.param == "postgresql":
        await postgresql_server.clear()
        url = postgresql_server.url
    async with databases.opened(url, isolation_level="AUTOCOMMIT") as database, world(database, client) as made:
        yield made


@pytest.mark.parametrize("race", AUTOCOMMIT, ids=label)
async def test_race_in_autocommit_is_won(autocommitting: World, race: Scenario) -> None:
    """No COMMIT follows, so the writer begins before each statement that writes."""
    await race(autocommitting)


async def test_race_in_autocommit_is_won_when_the_barrier_has_run_out(
    autocommitting: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each statement is covered, however long it comes after the first."""
    await commits.autocommit_again(autocommitting, monkeypatch)
