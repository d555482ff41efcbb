"""Declared dependencies mean the tables that a schema_translate_map names, as the statements of a session do."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache
from tests.support.servers.databases import Database

from .tables import Base, Club

RED = {None: "red"}
HIDDEN = text("DO $$ BEGIN UPDATE red.clubs SET name = 'new'; END $$")
READ = text("SELECT name FROM red.clubs")


@pytest.fixture
async def cache(client: Redis) -> AsyncIterator[Cache]:
    """Return a cache that follows."""
    async with Cache(client, auto=True) as made:
        yield made


@pytest.fixture
async def tenant(postgresql: Database) -> Callable[[], AsyncSession]:
    """Return what opens a session of the tenant `red`, which has a club."""
    async with postgresql.engine.begin() as connection:
        await connection.execute(text("DROP SCHEMA IF EXISTS red CASCADE"))
        await connection.execute(text("CREATE SCHEMA red"))
        mapped = await connection.execution_options(schema_translate_map=RED)
        await mapped.run_sync(Base.metadata.create_all)
        await mapped.execute(insert(Club).values(id=1, name="old"))
    return lambda: AsyncSession(postgresql.engine.execution_options(schema_translate_map=RED))


async def by_flush(cache: Cache, db: AsyncSession) -> None:
    """Write by the ORM."""
    (await db.get_one(Club, 1)).name = "new"
    await db.commit()


async def by_bulk(cache: Cache, db: AsyncSession) -> None:
    """Write by one statement."""
    await db.execute(update(Club).where(Club.id == 1).values(name="new"))
    await db.commit()


async def by_touches(cache: Cache, db: AsyncSession) -> None:
    """Write by a text that cannot be read, in a function that says what it writes."""

    @cache.invalidates(touches=[Club])
    async def write(db: AsyncSession) -> None:
        await db.execute(HIDDEN)
        await db.commit()

    await write(db)


async def by_option(cache: Cache, db: AsyncSession) -> None:
    """Say of one statement what it writes."""
    await db.execute(HIDDEN, execution_options={"fastrdb_touches": [Club]})
    await db.commit()


async def inferred(db: AsyncSession) -> Any:
    """Read by a statement."""
    return await db.scalar(select(Club.name).where(Club.id == 1))


async def declared(db: AsyncSession) -> Any:
    """Read by a text, in a function that says what it reads."""
    return await db.scalar(READ)


async def with_option(db: AsyncSession) -> Any:
    """Say of one statement what it reads."""
    return await db.scalar(READ, execution_options={"fastrdb_reads": [Club]})


@pytest.mark.parametrize("write", [by_flush, by_bulk, by_touches, by_option])
@pytest.mark.parametrize("read", [inferred, declared, with_option])
async def test_declarations_and_statements_mean_the_same_table(
    tenant: Callable[[], AsyncSession],
    cache: Cache,
    read: Callable[[AsyncSession], Awaitable[Any]],
    write: Callable[[Cache, AsyncSession], Awaitable[None]],
) -> None:
    """Each way to read goes by each way to write."""

    given: Any = {"depends_on": [Club]} if read is declared else {}
    decorate: Any = cache.cached("club", **given)

    @decorate  # type: ignore[untyped-decorator]
    async def club(db: AsyncSession) -> str:
        return str(await read(db))

    async with tenant() as db:
        assert await club(db) == "old"
        await db.rollback()
        assert (await club.explain(db)).state == "hit"
    async with tenant() as db:
        await write(cache, db)
    async with tenant() as db:
        assert await club(db) == "new"
