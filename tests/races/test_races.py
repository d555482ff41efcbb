"""Every race that the protocol is there for, step by step, on real servers."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster

from fastrdb.testing import script_texts
from tests.races.scenarios import commits as scenarios_commits
from tests.races.scenarios import fills as scenarios
from tests.races.scenarios import sessions as scenarios_sessions
from tests.support.servers import databases
from tests.support.servers.cluster import Cluster
from tests.support.servers.databases import Database, ServerDatabase
from tests.support.world.world import Scenario, World, spawn, world

RACES: list[Scenario] = [
    scenarios.stale_fill,
    scenarios.refill_before_commit,
    scenarios.window_after_commit,
    scenarios.deleted_before_commit,
    scenarios_sessions.identity_map,
    scenarios_sessions.identity_map_by_get,
    scenarios_sessions.identity_map_by_relationship,
    scenarios_sessions.own_writes,
    scenarios_sessions.savepoint_rolled_back,
    scenarios.lease_expired,
    scenarios.release_spares_others,
    scenarios.zombie_fill,
    scenarios.zombie_acquire,
    scenarios.joiner,
    scenarios.followers,
    scenarios_sessions.put_against_a_writer,
    scenarios_sessions.put_before_a_writer,
    scenarios_sessions.put_against_a_reader,
    scenarios_sessions.put_rolled_back,
    scenarios.lost_reply,
    scenarios_commits.result_prefix,
    scenarios_commits.closed_without_commit,
    scenarios_commits.joined,
    scenarios_commits.joined_and_open,
    scenarios_commits.joined_and_rolled_back,
    scenarios_commits.text_dml,
    scenarios_commits.hidden_session,
    scenarios_commits.older_hidden_session,
    scenarios_commits.connection_inside,
    scenarios_commits.connection_outside,
    scenarios_commits.raises_after_its_commit,
    scenarios_commits.raises_before_the_commit,
    scenarios_commits.read_only_commit,
]
SNAPSHOTS: list[Scenario] = [
    scenarios_sessions.old_snapshot,
    scenarios_sessions.old_snapshot_ended_inside,
    scenarios_sessions.old_snapshot_of_a_leader,
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


@pytest.fixture
async def on_mariadb(mariadb: Database, client: Redis) -> AsyncIterator[World]:
    """Give a world on MariaDB, in its REPEATABLE READ."""
    async with world(mariadb, client) as made:
        yield made


@pytest.mark.parametrize("race", [*RACES, scenarios_sessions.savepoint_that_commits], ids=name)
async def test_on_sqlite(on_sqlite: World, race: Scenario) -> None:
    """Nobody is answered with anything older than what was committed, whoever comes when."""
    await race(on_sqlite)


@pytest.mark.parametrize("race", [*RACES, scenarios_sessions.savepoint_released, scenarios.two_writers], ids=name)
async def test_on_postgresql(on_postgresql: World, race: Scenario) -> None:
    """The same where readers and writers do not wait for each other."""
    await race(on_postgresql)


@pytest.mark.parametrize("race", [*RACES, scenarios_sessions.savepoint_that_commits], ids=name)
async def test_on_cluster(on_cluster: World, race: Scenario) -> None:
    """The same over a cluster."""
    await race(on_cluster)


@pytest.mark.parametrize("race", SNAPSHOTS, ids=name)
async def test_old_snapshots_on_mariadb(on_mariadb: World, race: Scenario) -> None:
    """By default a transaction looks at one snapshot all the time."""
    await race(on_mariadb)


@pytest.mark.parametrize("race", SNAPSHOTS, ids=name)
async def test_old_snapshots_on_postgresql(postgresql_server: ServerDatabase, client: Redis, race: Scenario) -> None:
    """The same in PostgreSQL's REPEATABLE READ."""
    await postgresql_server.clear()
    async with (
        databases.opened(postgresql_server.url, isolation_level="REPEATABLE READ") as database,
        world(database, client) as made,
    ):
        await race(made)


@pytest.mark.parametrize("how", ["attribute", "text"])
async def test_every_kind_of_own_write(on_sqlite: World, how: str) -> None:
    """R6 for changes that are not flushed yet, and for statements given as text."""
    await scenarios_sessions.own_writes(on_sqlite, how)


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


@pytest.mark.parametrize("seed", range(40))
async def test_stale_fill_in_any_order(on_sqlite: World, seed: int) -> None:
    """Readers and a writer all at once, started in any order: afterwards the entry is what is committed."""
    chance = random.Random(seed)
    w = on_sqlite
    work = [w.one.read, w.two.read] * 4 + [lambda: w.one.write("new")]
    chance.shuffle(work)
    await asyncio.gather(*(spawn(each()) for each in work))
    await w.fair()
    assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'
    await w.quiet()
