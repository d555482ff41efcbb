"""What a function does with a session that it does not name is never stored where it must not be."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

import fastrdb.loading.function
import fastrdb.transactions.listeners
import fastrdb.transactions.rules
import fastrdb.transactions.scope
from fastrdb.transactions.scope import RunningCall
from tests.races.mechanisms import without
from tests.races.scenarios import hidden
from tests.support.servers.databases import ServerDatabase
from tests.support.world.world import Scenario, World, world


def name(scenario: Scenario) -> str:
    """Name a race in a test's id."""
    return scenario.__name__


@asynccontextmanager
async def on(server: ServerDatabase, client: Redis, **options: Any) -> AsyncIterator[World]:
    """Yield a world on a server, with an engine of its own."""
    async with server.emptied(**options) as database, world(database, client) as made:
        yield made


async def lost(race: Coroutine[Any, Any, None]) -> None:
    """Check that the race ends with a wrong answer."""
    with pytest.raises(AssertionError):
        await race


async def test_session_that_only_reads_is_stored(w: World) -> None:
    """However the load ends it."""
    await hidden.stored(w)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
async def test_session_that_only_reads_is_stored_on_postgresql(
    postgresql_server: ServerDatabase, client: Redis, level: str
) -> None:
    """In both levels."""
    async with on(postgresql_server, client, isolation_level=level) as made:
        await hidden.stored(made)


async def test_session_that_only_reads_is_stored_on_mariadb(mariadb_server: ServerDatabase, client: Redis) -> None:
    """In MariaDB's REPEATABLE READ."""
    async with on(mariadb_server, client) as made:
        await hidden.stored(made)


async def test_an_older_transaction_that_sees_what_is_committed(
    postgresql_server: ServerDatabase, client: Redis
) -> None:
    """In READ COMMITTED, what it loads is as new as its statement: it is stored."""
    async with on(postgresql_server, client) as w, w.one.database.sessions() as db:

        async def load() -> str:
            return (await db.scalars(hidden.NAME)).one()

        assert await load() == "old"
        await w.two.write("new")
        get = hidden.cached(w, load)
        assert (await get(w.one.client, 1)).name == "new"
        assert get.stats.fills == 1


async def test_a_level_that_sees_what_may_never_be_committed(mariadb_server: ServerDatabase, client: Redis) -> None:
    """READ UNCOMMITTED, however young the transaction: not stored."""
    async with on(mariadb_server, client, isolation_level="READ UNCOMMITTED") as w, w.two.database.sessions() as other:
        await other.execute(hidden.NEVER)

        async def load() -> str:
            async with w.one.database.sessions() as db:
                return (await db.scalars(hidden.NAME)).one()

        get = hidden.cached(w, load)
        assert (await get(w.one.client, 1)).name == "never"
        assert get.stats.unstored == 1
        await other.rollback()


@pytest.mark.parametrize(("writes", "fills"), [(True, 0), (False, 1)])
async def test_functions_of_the_database(
    postgresql_server: ServerDatabase, client: Redis, writes: bool, fills: int
) -> None:
    """A function of unknown name counts as a write, if a look before the rollback says so."""
    body = "UPDATE item SET name = 'never' WHERE id = 1 RETURNING name" if writes else "SELECT name FROM item LIMIT 1"
    async with on(postgresql_server, client) as w:
        async with w.database.engine.begin() as connection:
            await connection.execute(text(f"CREATE FUNCTION named() RETURNS text LANGUAGE sql AS $$ {body} $$"))

        async def load() -> str:
            async with w.one.database.sessions() as db:
                return str((await db.execute(text("SELECT named()"))).scalar_one())

        get = hidden.cached(w, load)
        assert (await get(w.one.client, 1)).name == ("never" if writes else "old")
        assert get.stats.fills == fills


async def test_a_transaction_that_has_failed(postgresql_server: ServerDatabase, client: Redis) -> None:
    """The database's own error passes through, also where the level was to be asked first."""
    async with on(postgresql_server, client) as w, w.one.database.sessions() as db:

        async def load() -> str:
            return (await db.scalars(hidden.NAME)).one()

        for statement in ("SELECT 1 / 0", "SELECT 1"):
            with pytest.raises(Exception, match=r"division by zero|aborted"):
                await db.execute(text(statement))
        with pytest.raises(Exception, match="aborted"):
            await hidden.cached(w, load)(w.one.client, 1)


# --- with a mechanism taken out


@pytest.mark.parametrize(
    "race", [race for race in hidden.SNAPSHOTS if race is not hidden.old_snapshot_of_a_connection], ids=name
)
async def test_without_the_look_at_statements(
    mariadb_server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch, race: Scenario
) -> None:
    """A load does not know in which transactions it runs: the old snapshot is stored."""
    without("rule-2-statements", RunningCall.before_statement).apply(monkeypatch.setattr)
    async with on(mariadb_server, client) as made:
        await lost(race(made))


async def test_without_the_rules_for_connections(
    mariadb_server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the look at statements, what a connection that is an argument shows is kept out as a session's is."""
    without("rule-2-statements", RunningCall.before_statement).apply(monkeypatch.setattr)
    async with on(mariadb_server, client) as made:
        await hidden.old_snapshot_of_a_connection(made)
    monkeypatch.setattr(fastrdb.loading.function, "session_of", fastrdb.transactions.rules.sync_session)
    async with on(mariadb_server, client) as made:
        await client.flushall()
        await lost(hidden.old_snapshot_of_a_connection(made))


async def test_looking_only_after_the_load(
    mariadb_server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After the load the connection may be another session's, or no session's."""
    older = fastrdb.transactions.rules.older

    async def check(load: Any) -> None:
        found = [older(c, t, "REPEATABLE READ", load.since) for t, c in load._seen.items() if not c.closed]
        load.unfit = next(filter(None, found), None)

    without("rule-2-levels").apply(monkeypatch.setattr)
    without("rule-2-checked-before", check).apply(monkeypatch.setattr)
    async with on(mariadb_server, client) as made:
        await hidden.old_snapshot(made)
    async with on(mariadb_server, client) as made:
        await client.flushall()
        await lost(hidden.old_snapshot_ended_inside(made))


@pytest.mark.parametrize(
    "race", [*(race for race in hidden.UNDONE if race is not hidden.still_open), hidden.in_a_thread], ids=name
)
async def test_without_the_look_at_what_was_written(w: World, monkeypatch: pytest.MonkeyPatch, race: Scenario) -> None:
    """Rows that the load has written and rolled back are stored."""

    without("rule-1-statements").apply(monkeypatch.setattr)
    await lost(race(w))


async def test_without_the_look_at_what_is_open(
    postgresql_server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same for what is not committed yet, where the level lets a transaction see what others commit."""

    without("rule-1-statements").apply(monkeypatch.setattr)
    async with on(postgresql_server, client) as made:
        await lost(hidden.still_open(made))


async def test_without_asking_before_a_rollback(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every load that calls a function of the database in a session of its own would be kept out."""
    without("called-functions-asked").apply(monkeypatch.setattr)
    await lost(hidden.stored(w))


async def test_without_rule_3(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """The identity map of a session that is no argument answers the load."""
    without("rule-3-identity-lookup").apply(monkeypatch.setattr)
    await lost(hidden.identity_map_of_a_task(w))
