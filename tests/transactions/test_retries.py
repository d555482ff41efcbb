"""Commits that fail, for good or until the next try, and transactions that end without one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import AsyncAdaptedQueuePool, select, text, update
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine

from tests.races.mechanisms import without
from tests.races.scenarios.commits import NEW
from tests.support.servers.databases import Database, ServerDatabase
from tests.support.world import levels as places
from tests.support.world.levels import BY_NAME
from tests.support.world.world import Item, ItemOut, Owner, World, spawn, world

# --- serialization failures


@pytest.fixture(params=["REPEATABLE READ", "SERIALIZABLE"])
async def strict(request: pytest.FixtureRequest, postgresql: Database, client: Redis) -> AsyncIterator[World]:
    """Yield a world on PostgreSQL at each level at which transactions fail to be serialized."""
    place = BY_NAME[f"postgresql {request.param}"]
    async with places.opened(place, postgresql.engine.url) as database, world(database, client) as made:
        yield made


async def retried(work: Callable[[], Awaitable[None]]) -> int:
    """Do it until it is not in another one's way; gives how often it was tried."""
    for tried in range(1, 10):
        try:
            await work()
        except DBAPIError as error:
            if getattr(error.orig, "sqlstate", None) != "40001":
                raise
        else:
            return tried
    raise AssertionError("never done")


async def save(w: World, db: AsyncSession, name: str) -> None:
    """Write a row whose value is stored at its commit."""
    await w.two.rename(db, w.two.client, 1, name)
    await w.two.get.put(ItemOut(id=1, name=name), db=db, redis=w.two.client, item_id=1)


async def test_a_statement_that_fails(strict: World) -> None:
    """Another one has changed the row meanwhile: the first try stores and leaves nothing, the second is in force."""
    w = strict
    assert await w.one.read() == "old"
    seen = []

    async def work() -> None:
        async with w.two.database.sessions() as db:
            seen.append((await db.scalars(select(Item.name).where(Item.id == 1))).one())
            if len(seen) == 1:
                await w.one.write("first")
            await save(w, db, "new")
            await db.commit()

    assert await retried(work) == 2
    assert seen == ["old", "first"]
    assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'
    await w.fair()
    await w.quiet()


async def test_a_commit_that_fails(postgresql: Database, client: Redis) -> None:
    """Two transactions read what the other writes: one COMMIT is refused, and tried again in the same session."""
    place = BY_NAME["postgresql SERIALIZABLE"]
    async with places.opened(place, postgresql.engine.url) as database, world(database, client) as w:
        assert await w.one.read() == "old"
        commits: list[str] = []

        async with w.two.database.sessions() as db:

            async def work() -> None:
                try:
                    await db.execute(select(Owner.name))
                    await save(w, db, "new")
                    if not commits:
                        async with database.sessions() as other:
                            await other.execute(select(Item.name))
                            await other.execute(update(Owner).values(name="new"))
                            await other.commit()
                    commits.append("sent")
                    await db.commit()
                except DBAPIError:
                    await db.rollback()
                    raise

            tried = await retried(work)
        assert (tried, len(commits)) == (2, 2), "it was the COMMIT that failed"
        assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'
        await w.fair()
        await w.quiet()


async def deadlock(w: World) -> None:
    """Two writers wait for each other; the one with less to lose is rolled back, and goes on regardless."""
    async with w.one.database.sessions() as first, w.two.database.sessions() as second:
        await first.execute(update(Owner).values(name="first"))
        await first.execute(update(Item).where(Item.id == 2).values(name="first"))
        await save(w, second, "never")
        waiting = spawn(first.execute(update(Item).where(Item.id == 1).values(name="first")))
        with pytest.raises(DBAPIError, match="Deadlock"):
            await second.execute(update(Item).where(Item.id == 2).values(name="second"))
        await waiting
        await first.commit()
        await second.commit()
    assert await w.truth() == "first"
    await w.fair()
    await w.quiet()


async def test_a_deadlock(mariadb: Database, client: Redis) -> None:
    """MariaDB has undone what was put: it is not stored at the commit."""
    async with world(mariadb, client) as w:
        await deadlock(w)


async def test_trusting_after_an_error(mariadb: Database, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that was put before an error is stored all the same."""
    without("undone-puts-dropped").apply(monkeypatch.setattr)
    async with world(mariadb, client) as w:
        with pytest.raises(AssertionError):
            await deadlock(w)


async def test_taking_a_refusal_for_silence(strict: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer's refused commit counts as unknown: its barrier stays."""
    without("outcome-known").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await test_a_statement_that_fails(strict)


# --- a writer that is stopped


@asynccontextmanager
async def impatient(server: ServerDatabase, client: Redis, limit: str) -> AsyncIterator[World]:
    """Yield a world whose writer's transactions PostgreSQL ends when idle for so long (in milliseconds)."""
    await server.clear()
    place = BY_NAME["postgresql READ COMMITTED"]
    settings = {"connect_args": {"server_settings": {"idle_in_transaction_session_timeout": limit}}}
    async with (
        places.opened(place, server.url) as database,
        world(database, client) as w,
        places.opened(place, server.url, **settings) as stopped,
    ):
        w.two.database = stopped
        yield w


async def stopped_at_commit(w: World) -> None:
    """Stop a writer after Redis has its barrier, until that has lapsed; its COMMIT comes then (C4)."""
    assert await w.one.read() == "old"
    gate = w.two.client.after("begin")
    writer = spawn(w.two.write("new"))
    await gate.reached()
    async with w.database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")  # in a transaction it would see one snapshot
        query = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND pid <> pg_backend_pid()"
        for _ in range(3_000):  # until PostgreSQL has ended it, or it never will
            if not (await connection.execute(text(query))).scalar_one():
                break
    await w.lapse_barriers()
    assert await w.one.read() == "old"
    gate.open()
    with pytest.raises(DBAPIError):
        await writer
    assert await w.truth() == "old"
    await w.fair()
    await w.lapse_barriers()
    await w.fair()
    assert await w.client.exists("item:1")


async def test_stopped_at_commit(postgresql_server: ServerDatabase, client: Redis) -> None:
    """With `idle_in_transaction_session_timeout` below the barrier, the late COMMIT fails, and all is as before."""
    async with impatient(postgresql_server, client, "100") as w:
        await stopped_at_commit(w)


async def test_stopped_without_a_limit(postgresql_server: ServerDatabase, client: Redis) -> None:
    """Without it, the late COMMIT is done."""
    async with impatient(postgresql_server, client, "0") as w:
        with pytest.raises(pytest.fail.Exception, match="DID NOT RAISE"):
            await stopped_at_commit(w)


# --- hooks that fail


async def test_redis_dies_before_the_end(database: Database, client: Redis) -> None:
    """C21: the row is committed, so `commit()` returns, and no caller is asked to write it again."""
    async with world(database, client) as w:
        assert await w.one.read() == "old"
        w.two.client.fail_with(ConnectionError("gone"), on="end")
        await w.two.write("new")
        w.two.client.heal()
        assert await w.truth() == "new"
        await w.fair()
        await w.lapse_barriers()
        await w.fair()


async def test_the_end_raises(database: Database, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """C21: likewise whatever it is that goes wrong there."""

    async def end(intent: Any, committed: bool) -> None:
        raise LookupError

    async with world(database, client) as w:
        assert await w.one.read() == "old"
        monkeypatch.setattr("fastrdb.protocol.intent.Intent.end", end)
        await w.two.write("new")
        monkeypatch.undo()
        assert await w.truth() == "new"
        await w.fair()


# --- ends without a commit


async def closed(db: AsyncSession) -> None:
    """Close the session in the middle."""
    await db.close()


async def invalidated(db: AsyncSession) -> None:
    """Invalidate the session with its connection."""
    await db.invalidate()


async def begun_anew(db: AsyncSession) -> None:
    """Begin the session anew."""
    await db.reset()


async def forgotten(db: AsyncSession) -> None:
    """Then the pool resets the connection."""
    await db.run_sync(lambda session: session.close())


@pytest.mark.parametrize("how", ["rollback", "commit", None])
@pytest.mark.parametrize("end", [closed, invalidated, begun_anew, forgotten], ids=lambda end: str(end.__name__))
async def test_ends_without_a_commit(
    postgresql: Database, client: Redis, end: Callable[[AsyncSession], Awaitable[None]], how: Any
) -> None:
    """Nothing has changed, the entry stays, and the next transaction of the session is followed like any other."""
    engine = create_async_engine(
        postgresql.engine.url,
        poolclass=AsyncAdaptedQueuePool,
        pool_size=1,
        max_overflow=0,
        pool_reset_on_return=how,
    )
    async with world(postgresql, client) as w:
        w.two.database = Database(engine, async_sessionmaker(engine, expire_on_commit=False))
        assert await w.one.read() == "old"

        @w.two.cache.invalidates("item:{item_id}")
        async def give_up(db: AsyncSession, redis: object, item_id: int) -> None:
            await db.execute(NEW)
            await end(db)

        async with w.two.database.sessions() as db:
            await give_up(db, w.two.client, 1)
            assert await w.truth() == "old"
            await w.fair()
            await w.quiet()
            await w.two.rename(db, w.two.client, 1, "new")
            await db.commit()
        assert await w.truth() == "new"
        await w.fair()
        await w.quiet()
        await engine.dispose()
