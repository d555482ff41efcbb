"""Two-phase commits: of one database, and of two that commit together."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any, Literal

import pytest
from redis.asyncio import Redis
from sqlalchemy import Engine, NullPool, event, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.util import await_only

from fastrdb import Cache
from fastrdb.errors import CacheUnavailableError
from fastrdb.testing import Gate
from fastrdb.transactions import listeners as transactions
from fastrdb.transactions.sql import Effect
from tests.races.mechanisms import label, without
from tests.races.scenarios import commits as scenarios_commits
from tests.races.scenarios import fills as scenarios
from tests.races.scenarios import sessions as scenarios_sessions
from tests.support.servers import databases
from tests.support.servers.databases import Database, ServerDatabase
from tests.support.world.stores import members
from tests.support.world.world import Base, Item, Owner, Scenario, World, spawn, world

RACES: list[Scenario] = [
    scenarios.stale_fill,
    scenarios.refill_before_commit,
    scenarios.deleted_before_commit,
    scenarios.window_after_commit,
    scenarios_sessions.own_writes,
    scenarios_sessions.savepoint_released,
    scenarios_sessions.savepoint_rolled_back,
    scenarios_sessions.put_before_a_writer,
    scenarios_sessions.put_against_a_writer,
    scenarios_sessions.put_rolled_back,
    scenarios_commits.closed_without_commit,
    scenarios_commits.hidden_session,
    scenarios_commits.older_hidden_session,
    scenarios_commits.raises_before_the_commit,
]


@asynccontextmanager
async def two_phase(server: ServerDatabase) -> AsyncIterator[Database]:
    """Yield an empty database whose sessions all commit in two phases."""
    await server.clear()
    engine = create_async_engine(server.url, poolclass=NullPool)
    gids: list[str] = []

    @event.listens_for(engine.sync_engine, "prepare_twophase")
    def prepare(connection: object, xid: str) -> None:
        gids.append(xid)

    try:
        yield Database(engine, async_sessionmaker(engine, expire_on_commit=False, twophase=True, info={"gids": gids}))
    finally:
        for gid in gids:  # a test that fails may leave it, with its locks
            with suppress(DBAPIError):
                await resolve(engine, "ROLLBACK", gid)
        await engine.dispose()


@pytest.fixture(params=["preparing_server", "mariadb_server"])
def preparing(request: pytest.FixtureRequest) -> ServerDatabase:
    """Yield a PostgreSQL that can prepare, and a MariaDB."""
    found: ServerDatabase = request.getfixturevalue(request.param)
    return found


@pytest.fixture
async def w(preparing: ServerDatabase, client: Redis) -> AsyncIterator[World]:
    """Yield a world in which all sessions commit in two phases."""
    async with two_phase(preparing) as database, world(database, client) as made:
        yield made


@pytest.fixture
async def strict(preparing_server: ServerDatabase, client: Redis) -> AsyncIterator[World]:
    """Yield one on PostgreSQL, in which a commit fails that Redis misses."""
    async with two_phase(preparing_server) as database, world(database, client, on_error="raise") as made:
        yield made


async def prepared(w: World) -> list[str]:
    """Return what is prepared in PostgreSQL, and neither committed nor rolled back."""
    async with w.database.engine.connect() as connection:
        found = await connection.execute(text("SELECT gid FROM pg_prepared_xacts WHERE database = current_database()"))
        return [str(gid) for gid in found.scalars()]


async def resolve(engine: AsyncEngine, how: Literal["COMMIT", "ROLLBACK"], gid: str) -> None:
    """Do what is left of a commit, as an administrator would."""
    statement = f"{how} PREPARED '{gid}'" if engine.dialect.name == "postgresql" else f"XA {how} '{gid}'"
    await databases.execute(engine.url, statement)


@pytest.mark.parametrize("race", RACES, ids=label)
async def test_races(w: World, race: Scenario) -> None:
    """No caller is answered wrongly, and rows that are read are stored."""
    await race(w)


async def test_nothing_is_left(w: World) -> None:
    """After a commit, and after a rollback, no barrier stands."""
    await w.one.write("new")
    await w.quiet()
    async with w.two.database.sessions() as db:
        await w.two.rename(db, w.two.client, 1, "never")
        await db.rollback()
    await w.fair()
    await w.quiet()


async def test_redis_fails_before_it_is_prepared(strict: World) -> None:
    """Redis gets its barriers before PREPARE: what fails then is rolled back, and holds no locks."""
    w = strict
    assert await w.one.read() == "old"
    w.two.client.fail_with(ConnectionError("gone"), on="begin")
    with pytest.raises(CacheUnavailableError):
        await w.two.write("never")
    w.two.client.heal()
    assert await prepared(w) == []
    assert await w.truth() == "old"
    await w.two.write("new")
    await w.fair()
    await w.quiet()


async def test_cancelled_before_it_is_prepared(strict: World) -> None:
    """The same where the writer is cancelled while Redis gets its barriers."""
    w = strict
    gate = w.two.client.before("begin")
    writer = spawn(w.two.write("never"))
    await gate.reached()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    assert await prepared(w) == []
    await w.two.write("new")
    await w.fair()
    await w.quiet()


async def test_the_outcome_is_unknown(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled while the second phase is under way: it may be done yet, so the barrier stays."""
    assert await w.one.read() == "old"
    gate = Gate()
    dialect = w.database.engine.sync_engine.dialect
    do_commit = dialect.do_commit_twophase

    def hold(*arguments: Any) -> None:
        await_only(gate.hold())
        do_commit(*arguments)

    monkeypatch.setattr(dialect, "do_commit_twophase", hold)
    writer = spawn(w.two.write("new"))
    await gate.reached()
    monkeypatch.undo()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    await w.two.cache.aclose()
    assert await members(w.client, "barriers")
    assert await w.one.read() == "old"
    assert not await w.client.exists("item:1")
    await resolve(w.database.engine, "COMMIT", w.database.sessions.kw["info"]["gids"][-1])
    await w.fair()
    await w.lapse_barriers()
    await w.fair()
    assert await w.truth() == "new"


# --- by hand, and by another connection


async def prepare_by_hand(engine: AsyncEngine, gid: str) -> None:
    """Write and prepare on a connection that is lost before the commit."""
    lost = create_async_engine(engine.url, isolation_level="AUTOCOMMIT", poolclass=NullPool)
    async with lost.connect() as connection:
        begin, *prepare = (
            ("BEGIN", f"PREPARE TRANSACTION '{gid}'")
            if engine.dialect.name == "postgresql"
            else (f"XA START '{gid}'", f"XA END '{gid}'", f"XA PREPARE '{gid}'")
        )
        for statement in (begin, "UPDATE item SET name = 'new' WHERE id = 1", *prepare):
            await connection.exec_driver_sql(statement)
        await connection.invalidate()


async def test_another_connection_commits_what_was_prepared(w: World, following: Cache) -> None:
    """A cache that follows cannot read from COMMIT PREPARED what it publishes: it reaches everything."""

    @following.cached("prepared:{item_id}")
    async def name_of(db: AsyncSession, item_id: int) -> str:
        return (await db.scalars(select(Item.name).where(Item.id == item_id))).one()

    async def read() -> str:
        async with databases.opened(w.database.engine.url) as database, database.sessions() as db:
            return await name_of(db, 1)

    assert await read() == "old"
    engine, gid = w.database.engine, f"fastrdb-{w.database.engine.dialect.name}"
    w.database.sessions.kw["info"]["gids"].append(gid)
    await prepare_by_hand(engine, gid)
    await w.lapse_barriers()
    assert [await read(), await read()] == ["old", "old"]
    async with engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        way = f"COMMIT PREPARED '{gid}'" if engine.dialect.name == "postgresql" else f"XA COMMIT '{gid}'"
        await connection.exec_driver_sql(way)
    assert await w.truth() == "new"
    assert await read() == "new"


# --- two databases


@pytest.fixture
async def both(
    preparing_server: ServerDatabase, mariadb_server: ServerDatabase, client: Redis
) -> AsyncIterator[tuple[World, async_sessionmaker[AsyncSession]]]:
    """Yield a world on PostgreSQL, and sessions for which owners are in MariaDB."""
    async with two_phase(preparing_server) as first, two_phase(mariadb_server) as second, world(first, client) as made:
        await second.create(Base)
        async with second.sessions() as db:
            db.add(Owner(id=1, name="old"))
            await db.commit()
        binds = {Item: first.engine, Owner: second.engine}
        yield made, async_sessionmaker(binds=binds, expire_on_commit=False, twophase=True)


async def write_both(w: World, db: AsyncSession) -> None:
    """Write in both databases."""
    await w.two.rename(db, w.two.client, 1, "new")
    await db.execute(update(Owner).values(name="new"))


async def test_two_databases(both: tuple[World, async_sessionmaker[AsyncSession]]) -> None:
    """Redis has the barriers before the first of the databases commits, and the end when both have."""
    w, sessions = both
    assert await w.one.read() == "old"
    async with sessions() as db:
        await write_both(w, db)
        await scenarios_commits.carried(w, db.commit())
        assert [name for name in w.two.client.names() if name in ("begin", "end")] == ["begin", "end"]
        assert (await db.get_one(Owner, 1, populate_existing=True)).name == "new"
    await w.fair()
    await w.quiet()


async def test_two_databases_rolled_back(both: tuple[World, async_sessionmaker[AsyncSession]]) -> None:
    """Nothing has changed, and no barrier is left."""
    w, sessions = both
    assert await w.one.read() == "old"
    async with sessions() as db:
        await write_both(w, db)
        await db.rollback()
    assert await w.client.exists("item:1")
    await w.fair()
    await w.quiet()


async def test_one_of_two_databases_fails(both: tuple[World, async_sessionmaker[AsyncSession]]) -> None:
    """The prepared part is gone when it is to be committed, by an unknown third party: so the barrier stays."""
    w, sessions = both
    assert await w.one.read() == "old"
    gate = w.at_commit()
    async with sessions() as db:
        await write_both(w, db)
        committing = spawn(db.commit())
        await gate.reached()
        [gid] = await prepared(w)
        await resolve(w.database.engine, "ROLLBACK", gid)
        gate.open()
        with pytest.raises(DBAPIError, match="does not exist"):
            await committing
    assert await members(w.client, "barriers")
    await w.fair()
    assert not await w.client.exists("item:1")
    await w.lapse_barriers()
    await w.fair()


# --- with one mechanism less


@pytest.mark.parametrize("race", [scenarios.refill_before_commit, scenarios_commits.hidden_session], ids=label)
async def test_without_their_begin(strict: World, race: Scenario) -> None:
    """A transaction whose begin was not seen is not followed: the race is lost."""
    event.remove(Engine, "begin_twophase", transactions._on_begin_twophase)
    try:
        with pytest.raises(AssertionError):
            await race(strict)
    finally:
        event.listen(Engine, "begin_twophase", transactions._on_begin_twophase)


async def test_told_when_it_is_prepared(strict: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """After PREPARE a failure is too late: the commit goes on, and the invalidation is pending."""
    without("statements-classified", lambda statement, dialect: Effect.NOTHING).apply(
        monkeypatch.setattr
    )  # PREPARE TRANSACTION
    event.remove(Engine, "prepare_twophase", transactions._on_prepare_twophase)
    try:
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            await test_redis_fails_before_it_is_prepared(strict)
    finally:
        event.listen(Engine, "prepare_twophase", transactions._on_prepare_twophase)
        strict.two.client.heal()  # what is pending is repaired before the world ends
