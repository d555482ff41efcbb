"""Options of time on a `FastRDB`: its methods take the caller's session, and reloads have one of their own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, FastRDB, OptionError
from tests.support.servers.databases import Database
from tests.support.world.items import Base, Item, Row


def crud_of(cache: Cache, **settings: Any) -> FastRDB[Row, Any, Any, Item]:
    """Return a FastRDB of the rows."""
    return FastRDB(Row, Item, pattern="row:{id}", list_pattern="rows:{page}:{limit}", exp=600, cache=cache, **settings)


@pytest.fixture
async def rows(sqlite: Database) -> Database:
    """Yield a database with two rows."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        db.add_all([Row(id=1, name="a"), Row(id=2, name="a")])
        await db.commit()
    return sqlite


@pytest.fixture
async def cache(client: Redis) -> AsyncIterator[Cache]:
    """Yield a cache on an empty server."""
    async with Cache(client) as made:
        yield made


async def unseen(rows: Database, name: str) -> None:
    """Write past fastrdb."""
    async with rows.engine.begin() as connection:
        await connection.execute(text("UPDATE items SET name = :name"), {"name": name})


async def age(client: Redis, left_ms: int) -> None:
    """Shorten the time of all entries until so much is left."""
    for key in await client.keys("row*"):
        assert await client.pexpire(key, left_ms)


def test_a_reload_needs_a_session_of_its_own() -> None:
    """Said when the FastRDB is made."""
    with pytest.raises(OptionError, match=r"FastRDB\[Row\]\.get: stale=60:.*parameter 'db'.*session_factory="):
        crud_of(Cache(), stale=60)
    crud_of(Cache(), fail_safe=60, early=1)


async def test_stale_reads_of_every_kind(rows: Database, client: Redis, cache: Cache) -> None:
    """One row, many, lists and counts: the old answer at once, the new one next time."""
    crud = crud_of(cache, stale=60, session_factory=rows.sessions)

    async def ask(db: AsyncSession) -> list[Any]:
        return [
            (await crud.get(db, id=1)).name,
            [item.name for item in await crud.get_multi(db)],
            [item.name for item in await crud.get_many(db, id=[2, 1]) if item],
            await crud.count(db, name="b"),
        ]

    async with rows.sessions() as db:
        old = await ask(db)
    await unseen(rows, "b")
    await age(client, 30_000)
    async with rows.sessions() as db:
        assert await ask(db) == old == ["a", ["a", "a"], ["a", "a"], 0]
    await asyncio.gather(*cache.runtime.here().reloads.values())
    async with rows.sessions() as db:
        assert await ask(db) == ["b", ["b", "b"], ["b", "b"], 2]
    assert cache.stats().failed == 0


async def test_a_write_ends_what_is_stale(rows: Database, client: Redis, cache: Cache) -> None:
    """Only what ran out by time is served: what was written is not."""
    crud = crud_of(cache, stale=60, session_factory=rows.sessions)
    async with rows.sessions() as db:
        await crud.get(db, id=1)
        await age(client, 30_000)
        await crud.update(db, obj_in={"name": "b"}, id=1)
        assert 650_000 < await client.pttl("row:1") <= 660_000
        assert (await crud.get(db, id=1)).name == "b"
    assert cache.stats().stale == 0


async def test_old_rows_help_when_the_database_is_away(rows: Database, client: Redis, cache: Cache) -> None:
    """One row and many: the caller's session has no connection."""
    crud = crud_of(cache, fail_safe=60)
    async with rows.sessions() as db:
        await crud.get_many(db, id=[1, 2])
    await age(client, 30_000)

    class Away(AsyncSession):
        async def execute(self, *args: Any, **kwargs: Any) -> Any:
            raise ConnectionRefusedError("nobody listens")

        scalars = execute

    async with Away(rows.engine) as db:
        assert (await crud.get(db, id=1)).name == "a"
        assert [item.name for item in await crud.get_many(db, id=[1, 2]) if item] == ["a", "a"]
        with pytest.raises(ConnectionRefusedError):
            await crud.get(db, id=3)
    assert cache.stats().stale == 3
