"""A cached query and a write that changes its answer without a sign in its text, for the tests of hidden writes."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache
from tests.support.servers.databases import Database

META = sa.MetaData()
ORGS = sa.Table("orgs", META, sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20)))
POSTS = sa.Table(
    "posts", META, sa.Column("id", sa.Integer, primary_key=True), sa.Column("org_id", sa.Integer, index=True)
)
COMMENTS = sa.Table(
    "comments", META, sa.Column("id", sa.Integer, primary_key=True), sa.Column("post_id", sa.Integer, index=True)
)
PRICES = sa.Table(  # `gross` is generated, and the metadata has it as a plain column
    "prices",
    META,
    *(sa.Column("id", sa.Integer, primary_key=True), sa.Column("net", sa.Integer)),
    sa.Column("gross", sa.Integer, index=True),
)
TABLES = (
    "CREATE TABLE orgs (id INTEGER PRIMARY KEY, name VARCHAR(20))",
    "CREATE TABLE posts (id INTEGER PRIMARY KEY, org_id INTEGER)",
    """CREATE TABLE comments (id INTEGER PRIMARY KEY, post_id INTEGER,
    FOREIGN KEY (post_id) REFERENCES posts (id) ON DELETE CASCADE)""",
    "CREATE TABLE prices (id INTEGER PRIMARY KEY, net INTEGER, gross INTEGER GENERATED ALWAYS AS (net * 2) STORED)",
    "CREATE VIEW names AS SELECT id, name FROM orgs",
    "INSERT INTO orgs (id, name) VALUES (1, 'a'), (2, 'b')",
    "INSERT INTO posts (id, org_id) VALUES (1, 1), (2, 2)",
    "INSERT INTO comments (id, post_id) VALUES (1, 1), (2, 2)",
    "INSERT INTO prices (id, net) VALUES (1, 10), (2, 20)",
)
EVERY = ("sqlite", "postgresql", "mariadb")


class Case(NamedTuple):
    """A query of a cached function, and a write that changes its answer. `prepare` has statements by database."""

    read: Any
    write: Any
    prepare: Mapping[str, tuple[str, ...]] = MappingProxyType({})
    databases: tuple[str, ...] = EVERY


def _keep_foreign_keys(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


async def answered_anew(case: Case, database: Database, cache: Cache) -> None:
    """Check that the answer after the commit is that of the database."""
    if database.name == "sqlite":
        event.listen(database.engine.sync_engine, "connect", _keep_foreign_keys)
    async with database.engine.begin() as connection:
        for statement in (*TABLES, *case.prepare.get(database.name, ())):
            await connection.exec_driver_sql(statement.replace("%", "%%"))

    async def read(db: AsyncSession) -> list[str]:
        return [str(value) for value in (await db.scalars(case.read)).all()]

    cached = cache.cached("hidden:read")(read)
    before: list[str] = []
    for writes in (True, True, False):  # after the first, this process has met the column in use
        async with database.sessions() as db:
            before = await cached(db)
        async with database.sessions() as db:
            assert (await cached.explain(db)).state == "hit"
            if writes:
                await db.execute(sa.update(PRICES).where(PRICES.c.id == 2).values(net=21))
                await db.commit()
    async with database.sessions() as db:
        for statement in case.write if isinstance(case.write, tuple) else (case.write,):
            await db.execute(statement)
        await db.commit()
    async with database.sessions() as db:
        after = await read(db)
    async with database.sessions() as db:
        assert await cached(db) == after != before
