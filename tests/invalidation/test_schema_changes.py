"""`Cache(auto=True)`: the facts of tables are asked anew after each statement of this process that may change them."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache
from tests.support.servers.databases import Database, opened

META = sa.MetaData()
ORGS, POSTS = (
    sa.Table(name, META, sa.Column("id", sa.Integer, primary_key=True), sa.Column("number", sa.Integer))
    for name in ("orgs", "posts")
)
FUNCTION = """CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN UPDATE posts SET number = 9; RETURN NEW; END'"""
TRIGGER = "CREATE TRIGGER noted AFTER UPDATE ON orgs FOR EACH ROW EXECUTE FUNCTION noted()"


def _sends(statement: str) -> Callable[[Database], Awaitable[None]]:
    async def send(database: Database) -> None:
        async with database.sessions() as db:
            await db.execute(sa.text(statement))
            await db.commit()

    return send


async def by_driver(database: Database) -> None:
    """Send a text that SQLAlchemy does not look at, and several statements in one."""
    async with opened(database.engine.url.set(drivername="postgresql+psycopg")) as other, other.engine.begin() as db:
        await db.exec_driver_sql(f"SELECT 1; {TRIGGER}")


async def by_another_engine(database: Database) -> None:
    """Migrate by another engine, as many programs do at their start."""
    async with opened(database.engine.url) as other:
        await _sends(TRIGGER)(other)


WAYS: dict[str, Callable[[Database], Awaitable[None]]] = {
    "plainly": _sends(TRIGGER),
    "behind a comment": _sends(f"-- migration 7\n/* of /* today */ */ {TRIGGER}"),
    "in a block": _sends(f"DO $$ BEGIN {TRIGGER}; END $$"),
    "in a block that makes it": _sends(f"DO $$ BEGIN EXECUTE replace('CRE' || 'ATE {TRIGGER[7:]}', '!', ''); END $$"),
    "among others": by_driver,
    "by another engine": by_another_engine,
}


@pytest.mark.parametrize("way", WAYS)
async def test_a_trigger_that_is_made_later_counts(postgresql: Database, client: Redis, way: str) -> None:
    """The table has been written before, so its facts were known."""
    async with postgresql.engine.begin() as connection:
        await connection.run_sync(META.create_all)
        await connection.execute(sa.text(FUNCTION))
        for table in (ORGS, POSTS):
            await connection.execute(sa.insert(table).values(id=1, number=1))

    async def read(db: AsyncSession) -> int:
        return int((await db.scalars(sa.select(POSTS.c.number).where(POSTS.c.id == 1))).one())

    async def write() -> None:
        async with postgresql.sessions() as db:
            await db.execute(sa.update(ORGS).where(ORGS.c.id == 1).values(number=2))
            await db.commit()

    async with Cache(client, auto=True) as cache:
        cached = cache.cached("later")(read)
        await write()
        await WAYS[way](postgresql)
        async with postgresql.sessions() as db:
            assert await cached(db) == 1
        await write()
        async with postgresql.sessions() as db:
            assert await cached(db) == 9
