"""Whatever way a row is written, the cache neither shows it before it is committed nor misses that it was."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from fastrdb.transactions.scope import targets_around
from fastrdb.transactions.state import Targets
from tests.races.scenarios import writes as scenarios_writes
from tests.support.servers.databases import Database
from tests.support.world import writes as ways
from tests.support.world.world import World, spawn, world
from tests.support.world.writes import Way

Course = Callable[[World, Way], Coroutine[Any, Any, None]]
COURSES: list[Course] = [scenarios_writes.rolled_back, scenarios_writes.committed, scenarios_writes.hidden]


def name(way: Any) -> str:
    """Name a way or a course in a test's id."""
    return str(way.__name__)


@pytest.fixture
async def on_postgresql(postgresql: Database, client: Redis) -> AsyncIterator[World]:
    """Yield a world on PostgreSQL with a procedure, a function and a trigger that write."""
    async with world(postgresql, client) as made:
        async with postgresql.engine.begin() as connection:
            for statement in ways.POSTGRESQL_SET_UP:
                await connection.execute(text(statement))
        yield made


@pytest.mark.parametrize("course", COURSES, ids=name)
@pytest.mark.parametrize("way", ways.POSTGRESQL, ids=name)
async def test_on_postgresql(on_postgresql: World, way: Way, course: Course) -> None:
    """PostgreSQL has most of them."""
    await course(on_postgresql, way)


@pytest.mark.parametrize("course", COURSES, ids=name)
@pytest.mark.parametrize("way", [way for way in ways.EVERYWHERE if way is not ways.only_a_savepoint], ids=name)
async def test_on_sqlite(w: World, way: Way, course: Course) -> None:
    """SQLite's driver begins transactions by itself."""
    await course(w, way)


async def test_a_task_that_outlives_its_call(w: World) -> None:
    """A task's writes are followed for as long as the task goes on, and what is over is not kept."""
    going = asyncio.Event()
    found: list[Targets] = []

    async def work() -> None:
        await going.wait()
        for number in range(5):
            await w.two.read()
            async with w.database.engine.begin() as connection:
                await w.one.by_text(connection, f"new {number}")
            assert await w.two.read() == f"new {number}"

    @w.one.cache.invalidates("item:*")
    async def begin(redis: Any) -> asyncio.Task[None]:
        found.extend(targets_around())
        return spawn(work())

    task = await begin(w.one.client)
    going.set()
    await task
    assert len(found[0].intents) == 1
    await w.quiet()


async def test_by_the_driver(on_postgresql: World) -> None:
    """A write that SQLAlchemy does not see is followed all the same, because the function has declared its writes."""
    await scenarios_writes.committed(on_postgresql, ways.copied)
