"""A commit inside of an invalidating function covers what only the function's result will name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import NullPool, create_engine
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from fastrdb.testing import Gate
from tests.races.scenarios.commits import NEW
from tests.support.servers import databases
from tests.support.servers.databases import Database
from tests.support.world.world import World, spawn, world

NAMED = {"prefix": {"prefix": "item:{result}"}, "key": {"keys": ["item:{result}"]}, "all": {"prefix": "{result}*"}}


@pytest.fixture
async def w(sqlite: Database, client: Redis) -> AsyncIterator[World]:
    """Return a world on SQLite in which both items are cached."""
    async with world(sqlite, client) as made:
        await made.one.read(1)
        await made.one.read(2)
        yield made


@pytest.fixture(params=NAMED)
def named(request: pytest.FixtureRequest) -> Any:
    """Return options of a decorator that name the row by the result."""
    return NAMED[request.param]


def writer(w: World, named: Any, after: Any) -> Any:
    """Return a function that writes item 1, commits, and then awaits `after()`."""

    @w.two.cache.invalidates(**named)
    async def write(db: AsyncSession, redis: Redis) -> str:
        await db.execute(NEW)
        await db.commit()
        await after()
        return "1" if named != NAMED["all"] else "item:1"

    return write


async def fail() -> None:
    """Raise."""
    raise LookupError


async def test_function_that_raises_after_its_commit_leaves_nothing_stale(w: World, named: Any) -> None:
    """The result is never known: all that it may have named is invalidated."""
    async with w.two.database.sessions() as db:
        with pytest.raises(LookupError):
            await writer(w, named, fail)(db, w.two.client)
    assert not await w.client.exists("item:1")
    await w.fair()
    await w.quiet()


async def test_function_that_is_cancelled_after_its_commit_leaves_nothing_stale(w: World, named: Any) -> None:
    """So it is where the caller gives up, and others read what is committed before that."""
    gate = Gate()
    async with w.two.database.sessions() as db:
        call = spawn(writer(w, named, gate.hold)(db, w.two.client))
        await gate.reached()
        await w.fair()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
    await w.fair()
    await w.quiet()


async def test_write_of_an_executor_behind_a_commit(w: World) -> None:
    """A thread without the call's context writes when the call has committed: its return invalidates once more."""
    engine = create_engine(w.database.engine.url.set(drivername="sqlite"), poolclass=NullPool)

    def save() -> None:
        with Session(engine) as session:
            session.execute(NEW)
            session.commit()

    @w.two.cache.invalidates("item:*")
    async def write(db: AsyncSession, redis: Redis) -> None:
        await db.execute(NEW.values(name="first"))
        await db.commit()
        await w.fair()
        await asyncio.get_running_loop().run_in_executor(None, save)

    async with w.two.database.sessions() as db:
        await write(db, w.two.client)
    assert await w.truth() == "new"
    await w.fair()
    await w.quiet()


async def test_function_that_dies_after_its_commit_has_deleted_the_entries_before(w: World, named: Any) -> None:
    """No step after the COMMIT is needed: a killed process leaves nothing stale."""
    gate = w.at_commit()
    async with w.two.database.sessions() as db:
        call = spawn(writer(w, named, Gate().hold)(db, w.two.client))
        await gate.reached()
        assert not await w.client.exists("item:1")
        assert await w.one.read() == "old"
        assert not await w.client.exists("item:1"), "the barrier stands"
        gate.open()
        call.cancel()


async def test_commit_after_the_result_is_known_invalidates_no_more_than_that(w: World) -> None:
    """The caller commits, so the wider prefix is not needed."""

    @w.two.cache.invalidates("item:{result}")
    async def write(db: AsyncSession, redis: Redis) -> int:
        await db.execute(NEW)
        return 1

    async with w.two.database.sessions() as db:
        await write(db, w.two.client)
        await db.commit()
    assert not await w.client.exists("item:1")
    assert await w.client.exists("item:2")
    await w.fair()
    await w.quiet()


async def test_commit_after_the_function_has_raised_covers_what_it_may_have_named(w: World) -> None:
    """A later commit of the caller publishes what the function has written."""

    @w.two.cache.invalidates("item:{result}")
    async def write(db: AsyncSession, redis: Redis) -> int:
        await db.execute(NEW)
        raise LookupError

    async with w.two.database.sessions() as db:
        with pytest.raises(LookupError):
            await write(db, w.two.client)
        await db.commit()
    assert not await w.client.exists("item:1")
    await w.fair()
    await w.quiet()


async def test_commit_of_a_connection_covers_what_the_result_will_name(w: World) -> None:
    """So it does where no session is in sight, inside of the function or after it has raised."""

    @w.two.cache.invalidates("item:{result}")
    async def write(connection: AsyncConnection, redis: Redis, inside: bool) -> int:
        await connection.execute(NEW)
        if inside:
            await connection.commit()
        raise LookupError

    for inside in (True, False):
        await w.one.write("old")
        await w.one.read()
        async with w.two.database.engine.connect() as connection:
            with pytest.raises(LookupError):
                await write(connection, w.two.client, inside)
            await connection.commit()
        await w.fair()
        await w.quiet()


async def test_commit_of_an_outer_transaction_covers_what_the_result_will_name(w: World) -> None:
    """A session has ended inside of the function; the transaction that it was joined to commits later."""

    @w.two.cache.invalidates("item:{result}")
    async def write(connection: AsyncConnection, redis: Redis) -> int:
        async with AsyncSession(connection) as db:
            await db.execute(NEW)
            await db.commit()
        await connection.commit()
        raise LookupError

    async with w.two.database.engine.connect() as connection:
        await connection.begin()
        with pytest.raises(LookupError):
            await write(connection, w.two.client)
    await w.fair()
    await w.quiet()


async def test_statement_that_commits_by_itself_covers_what_the_result_will_name(
    sqlite: Database, client: Redis
) -> None:
    """Under AUTOCOMMIT the statement is the commit."""
    async with (
        databases.opened(sqlite.engine.url, isolation_level="AUTOCOMMIT") as database,
        world(database, client) as w,
    ):
        await w.one.read()

        @w.two.cache.invalidates("item:{result}")
        async def write(db: AsyncSession, redis: Redis) -> int:
            await db.execute(NEW)
            raise LookupError

        async with w.two.database.sessions() as db:
            with pytest.raises(LookupError):
                await write(db, w.two.client)
        await w.fair()
        await w.quiet()
