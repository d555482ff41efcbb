"""Transactions that are begun, levelled, ended or shared behind SQLAlchemy's back, by text and by settings."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import AsyncAdaptedQueuePool, NullPool, select, text
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from fastrdb.testing import Gate
from fastrdb.transactions.sql import Effect, effect
from tests.races.mechanisms import without
from tests.races.scenarios import sessions as scenarios_sessions
from tests.races.scenarios.commits import NEW
from tests.races.scenarios.fills import LEASE
from tests.support.servers.databases import Database, ServerDatabase, opened
from tests.support.world import levels as places
from tests.support.world.levels import BY_NAME
from tests.support.world.world import Item, ItemOut, World, spawn, world


@pytest.fixture
async def w(database: Database, client: Redis) -> AsyncIterator[World]:
    """Yield a world on each database."""
    async with world(database, client) as made:
        yield made


@pytest.fixture
async def pg(postgresql: Database, client: Redis) -> AsyncIterator[World]:
    """Yield a world on PostgreSQL."""
    async with world(postgresql, client) as made:
        yield made


@pytest.fixture
async def maria(mariadb: Database, client: Redis) -> AsyncIterator[World]:
    """Yield a world on MariaDB."""
    async with world(mariadb, client) as made:
        yield made


async def test_a_savepoint_by_text_that_sqlite_commits_at_its_release(w: World) -> None:
    """Made outside of a transaction, it is one: a rollback behind the release takes nothing back."""
    if w.database.name != "sqlite":
        pytest.skip("a savepoint is always inside of a transaction there")
    assert (await w.one.read(), await w.two.read()) == ("old", "old")
    async with w.database.sessions() as db:

        @w.one.cache.invalidates("item:*")
        async def rename(db: AsyncSession, redis: Any) -> None:
            await db.execute(text("SAVEPOINT a"))
            await db.execute(text("UPDATE item SET name = 'new'"))
            await db.execute(text("RELEASE SAVEPOINT a"))

        await rename(db, w.one.client)
        await db.rollback()
    assert (await w.truth(), await w.two.read()) == ("new", "new")
    await w.quiet()


@asynccontextmanager
async def reading_old(w: World) -> AsyncIterator[Gate]:
    """Load the old row as a reader, and go on when all is done: the row must not have been stored then."""
    gate = w.one.gates.after("load")
    reader = spawn(w.one.read())
    await gate.reached()
    yield gate
    gate.open()
    assert await reader == "old"


# --- commits by hand


async def committed_by_text(w: World, how: str) -> None:
    """Commit a write by text: a reader from before stores nothing, though the session goes on."""
    async with reading_old(w) as gate, w.two.database.sessions() as db:
        await w.two.rename(db, w.two.client, 1, "new")
        await db.execute(text(how))
        assert await w.truth() == "new"
        gate.open()
        await w.one.cache.aclose()
        assert await w.one.read() == "new"
        await db.rollback()
    await w.fair()
    await w.quiet()


async def test_commit_by_text(w: World) -> None:
    """COMMIT that SQLAlchemy takes for a statement like any other."""
    await committed_by_text(w, "COMMIT")


@pytest.mark.parametrize("how", ["CREATE TABLE other (id int)", "START TRANSACTION", "SET autocommit = 1"])
async def test_implicit_commit(maria: World, how: str) -> None:
    """Statements that MariaDB commits before."""
    await committed_by_text(maria, how)


async def statements_after(w: World) -> None:
    """Write after a COMMIT that was sent by hand: PostgreSQL commits what follows statement by statement."""
    async with w.two.database.sessions() as db:
        await db.execute(text("COMMIT"))
        async with reading_old(w):
            await w.two.rename(db, w.two.client, 1, "new")
            assert await w.truth() == "new"
        assert await w.one.read() == "new"
        await db.rollback()
    await w.fair()
    await w.quiet()


async def test_statements_after_it(pg: World) -> None:
    """Each statement after it is followed before it is sent."""
    await statements_after(pg)


async def test_driver_that_commits_each_statement(postgresql: Database, client: Redis) -> None:
    """A setting of the driver, given when it connects, is as good as SQLAlchemy's AUTOCOMMIT."""
    pytest.importorskip("psycopg")
    url = postgresql.engine.url.set(drivername="postgresql+psycopg")
    async with opened(url, connect_args={"autocommit": True}) as database, world(database, client) as w:
        assert await w.one.read() == "old"
        async with database.sessions() as db:
            await w.two.rename(db, w.two.client, 1, "new")
            await w.fair()
        await w.fair()
        await w.quiet()


async def undone_by_text(w: World) -> None:
    """Undo by text what was put after a savepoint: it is not stored when the rest is committed."""
    async with w.two.database.sessions() as db:
        await db.execute(NEW.values(name="first"))
        await db.execute(text("SAVEPOINT here"))
        await w.two.rename(db, w.two.client, 1, "never")
        await w.two.get.put(ItemOut(id=1, name="never"), db=db, redis=w.two.client, item_id=1)
        await db.execute(text("ROLLBACK TO SAVEPOINT here"))
        await db.commit()
    assert not await w.client.exists("item:1")
    assert await w.truth() == "first"
    await w.fair()
    await w.quiet()


async def test_undone_by_text(w: World) -> None:
    """ROLLBACK TO undoes, by way of each client."""
    await undone_by_text(w)


# --- levels by hand


@asynccontextmanager
async def one_connection(url: Any, client: Redis, **options: Any) -> AsyncIterator[World]:
    """Yield a world whose first process has one connection, which keeps what is set on it."""
    engine = create_async_engine(url, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, **options)
    others = create_async_engine(url, poolclass=NullPool)
    try:
        async with world(Database(others, async_sessionmaker(others, expire_on_commit=False)), client) as w:
            w.one.database = Database(engine, async_sessionmaker(engine, expire_on_commit=False))
            yield w
    finally:
        await engine.dispose()
        await others.dispose()


SESSION_LEVEL = "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL REPEATABLE READ"


async def level_of_the_connection(w: World) -> None:
    """Set a level for the connection, which outlives the transaction that set it: a later one has an old snapshot."""
    assert await w.one.read() == "old"  # and the engine's level is known
    async with w.one.database.sessions() as db:
        await db.execute(text(SESSION_LEVEL))
        await db.commit()
    await w.two.write("newer")
    async with w.one.database.sessions() as db:
        await db.execute(select(Item.id))
        await w.two.write("new")
        assert (await w.one.get(db, w.one.client, 1)).name == "newer"
    await w.two.cache.aclose()
    assert not await w.client.exists("item:1")
    w.one.database = w.database
    await w.fair()


async def test_level_of_the_connection(postgresql: Database, client: Redis) -> None:
    """Then the database is asked, not the memory of it."""
    async with one_connection(postgresql.engine.url, client) as w:
        await level_of_the_connection(w)


async def level_of_the_transaction(w: World, how: str) -> None:
    """Choose the level for one transaction, in one of SQLAlchemy's ways or by text."""
    assert await w.one.read() == "old"
    async with w.one.database.sessions() as db:
        if how == "text":
            await db.execute(text("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ"))
        else:
            await db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        await db.execute(select(Item.id))
        await w.two.write("new")
        assert (await w.one.get(db, w.one.client, 1)).name == "old"
    assert not await w.client.exists("item:1")
    await w.fair()


@pytest.mark.parametrize("how", ["text", "option"])
async def test_level_of_the_transaction(pg: World, how: str) -> None:
    """Nothing is stored from its snapshot."""
    await level_of_the_transaction(pg, how)


async def test_autocommit_for_one_transaction(pg: World) -> None:
    """`session.connection(execution_options=...)` and `engine.execution_options(...)`: each statement commits."""
    w = pg
    for name in ("session", "engine"):
        await w.one.write("old")
        engine = w.two.database.engine
        if name == "engine":
            engine = engine.execution_options(isolation_level="AUTOCOMMIT")
        async with reading_old(w), AsyncSession(engine) as db:
            if name == "session":
                await db.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
            await w.two.rename(db, w.two.client, 1, "new")
            assert await w.truth() == "new"
        await w.fair()
        await w.quiet()


@asynccontextmanager
async def driver_autocommits(server: ServerDatabase, client: Redis) -> AsyncIterator[World]:
    """Yield a world on MariaDB whose driver commits each statement, unlike SQLAlchemy's settings."""
    await server.clear()
    place = BY_NAME["mariadb REPEATABLE READ"]
    options = {"connect_args": {"autocommit": True}}
    async with places.opened(place, server.url) as database, world(database, client) as w:
        engine = create_async_engine(server.url, poolclass=NullPool, **options)
        w.two.database = Database(engine, async_sessionmaker(engine, expire_on_commit=False))
        try:
            yield w
        finally:
            await engine.dispose()


async def set_at_the_driver(w: World) -> None:
    """Write where a statement commits itself; the session is rolled back, which changes nothing."""
    async with reading_old(w), w.two.database.sessions() as db:
        await w.two.rename(db, w.two.client, 1, "new")
        assert await w.truth() == "new"
        await db.rollback()
    await w.fair()
    await w.quiet()


async def test_autocommit_of_the_driver(mariadb_server: ServerDatabase, client: Redis) -> None:
    """The driver is asked."""
    async with driver_autocommits(mariadb_server, client) as w:
        await set_at_the_driver(w)


# --- results that are read row by row


async def streaming(w: World, later: bool) -> None:
    """Hold a result with more to be read: its snapshot is old, for its session and the next on its connection."""
    async with w.one.database.sessions() as db:
        db.add_all([Item(id=n, name="more", owner_id=1) for n in range(10, 3000)])
        await db.commit()
        result = await db.stream(select(Item.id).execution_options(yield_per=1))
        assert await result.fetchone()
        await w.two.write("new")
        if not later:
            assert (await w.one.get(db, w.one.client, 1)).name == "old"
    if later:
        async with w.one.database.sessions() as db:
            assert (await w.one.get(db, w.one.client, 1)).name == "old"
    assert not await w.client.exists("item:1")
    await result.close()
    await w.fair()


@asynccontextmanager
async def write_ahead(sqlite: Database, client: Redis) -> AsyncIterator[World]:
    """Yield a world on SQLite with a write-ahead log, whose first process has one connection."""
    async with (
        places.opened(BY_NAME["sqlite WAL"], sqlite.engine.url),
        one_connection(sqlite.engine.url, client) as w,
    ):
        yield w


@pytest.mark.parametrize("later", [False, True])
async def test_streaming(sqlite: Database, client: Redis, later: bool) -> None:
    """A row that is read meanwhile is not stored."""
    async with write_ahead(sqlite, client) as w:
        await streaming(w, later)


# --- one connection for all


@asynccontextmanager
async def in_memory(client: Redis) -> AsyncIterator[World]:
    """Yield a world on SQLite in memory, whose pool gives the same connection to all."""
    engine = create_async_engine("sqlite+aiosqlite://")
    try:
        async with world(Database(engine, async_sessionmaker(engine, expire_on_commit=False)), client) as w:
            yield w
    finally:
        await engine.dispose()


async def shared_and_rolled_back(w: World) -> None:
    """Read what another session has not committed: nothing of it is stored."""
    async with w.two.database.sessions() as db:
        await db.execute(NEW)
        assert await w.one.read() == "new"
        await db.rollback()
    assert not await w.client.exists("item:1")
    await w.fair()


async def shared_and_committed(w: World) -> None:
    """Commit a session, and with it another one, whose prefixes it carries."""
    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db, w.one.database.sessions() as other:
        await w.two.rename(db, w.two.client, 1, "new")
        await other.execute(select(Item.id))
        await other.commit()
        assert not await w.client.exists("item:1", LEASE)
    await w.fair()
    await w.quiet()


@pytest.mark.parametrize("race", [shared_and_rolled_back, shared_and_committed], ids=lambda race: str(race.__name__))
async def test_in_memory(client: Redis, race: Any) -> None:
    """Transactions on one connection are one."""
    async with in_memory(client) as w:
        await race(w)


# --- with one mechanism less


@pytest.mark.parametrize("how", ["rollback", "savepoint"])
async def test_forgetting_what_was_undone(pg: World, monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    """When the load is over, no state shows any more that it wrote."""
    without("undone-remembered").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await scenarios_sessions.undone_in_the_load(pg, how)


def _never_controls(statement: str, dialect: str) -> Effect:
    return min(effect(statement, dialect), Effect.WRITES)


async def test_taking_text_for_any_write(pg: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """COMMIT by text counts as a write, and no more."""
    without("statements-classified", _never_controls).apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await committed_by_text(pg, "COMMIT")


async def test_taking_ddl_for_any_write(maria: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """MariaDB's implicit commit counts as a write, and no more."""
    without("statements-classified", _never_controls).apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await committed_by_text(maria, "CREATE TABLE other (id int)")


async def test_taking_them_for_a_transaction(pg: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Statements after a COMMIT by hand are taken for a transaction."""
    without("loose-transactions").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await statements_after(pg)


async def test_trusting_what_was_put(pg: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is dropped when a part is undone."""
    without("undone-puts-dropped").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await undone_by_text(pg)


async def test_remembering_the_level(postgresql: Database, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The engine's level is taken for that of each connection."""
    without("level-noticed").apply(monkeypatch.setattr)
    async with one_connection(postgresql.engine.url, client) as w:
        with pytest.raises(AssertionError):
            await level_of_the_connection(w)


async def test_not_asking_the_driver(
    mariadb_server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only SQLAlchemy is asked whether statements commit by themselves."""
    without("autocommit-noticed", lambda c: bool(c._is_autocommit_isolation())).apply(monkeypatch.setattr)
    async with driver_autocommits(mariadb_server, client) as w:
        with pytest.raises(AssertionError):
            await set_at_the_driver(w)


@pytest.mark.parametrize("later", [False, True])
async def test_forgetting_streams(
    sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch, later: bool
) -> None:
    """A result that is not read to its end is taken for nothing."""
    without("streams-noticed").apply(monkeypatch.setattr)
    async with write_ahead(sqlite, client) as w:
        with pytest.raises(AssertionError):
            await streaming(w, later)


@pytest.mark.parametrize("race", [shared_and_rolled_back, shared_and_committed], ids=lambda race: str(race.__name__))
async def test_taking_one_for_many(client: Redis, monkeypatch: pytest.MonkeyPatch, race: Any) -> None:
    """Each session is taken to have a connection of its own."""
    without("shared-connection-noticed").apply(monkeypatch.setattr)
    async with in_memory(client) as w:
        with pytest.raises(AssertionError):
            await race(w)
