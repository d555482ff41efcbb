"""`Cache(auto=True)`: rows that a statement changes without a sign in its text, and texts that hide their tables."""

from __future__ import annotations

import gc
from collections.abc import AsyncIterator, Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
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
NAMES = sa.Table(
    "names", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20))
)
ELSEWHERE = sa.Table(
    "orgs",
    sa.MetaData(schema="elsewhere"),
    *(sa.Column("id", sa.Integer, primary_key=True), sa.Column("name", sa.String(20))),
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


def _trigger(when: str, does: str) -> dict[str, tuple[str, ...]]:
    """Return what makes a trigger for each row."""
    return {
        "sqlite": (f"CREATE TRIGGER noted {when} BEGIN {does}; END",),
        "mariadb": (f"CREATE TRIGGER noted {when} FOR EACH ROW {does}",),
        "postgresql": (
            f"CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {does}; RETURN NEW; END $$",
            f"CREATE TRIGGER noted {when} FOR EACH ROW EXECUTE FUNCTION noted()",
        ),
    }


COMMENT = sa.select(COMMENTS.c.id).where(COMMENTS.c.post_id == 1)
RENAME = sa.update(ORGS).where(ORGS.c.id == 1).values(name="new")
ORG = sa.select(ORGS.c.name).where(ORGS.c.id == 1)
ORG_ALIAS: Any = ORGS.alias("o")
POST_ALIAS: Any = POSTS.alias("p")
CASES = {
    "a trigger deletes, and a key cascades": Case(
        COMMENT, RENAME, _trigger("AFTER UPDATE ON orgs", "DELETE FROM posts WHERE id = 1")
    ),
    "a trigger writes other rows of its own table": Case(
        sa.select(ORGS.c.name).where(ORGS.c.id == 2),
        RENAME,
        _trigger("AFTER UPDATE ON orgs", "UPDATE orgs SET name = 'c' WHERE id = 2 AND NEW.id = 1"),
        ("sqlite", "postgresql"),
    ),
    "a trigger writes in place of a view": Case(
        sa.select(POSTS.c.org_id).where(POSTS.c.id == 1),
        sa.update(NAMES).where(NAMES.c.id == 1).values(name="new"),
        _trigger("INSTEAD OF UPDATE ON names", "UPDATE posts SET org_id = 9 WHERE id = 1"),
        ("sqlite", "postgresql"),
    ),
    "a function deletes, and a key cascades": Case(
        COMMENT,
        sa.select(sa.func.purge(1)),
        {"postgresql": ("CREATE FUNCTION purge(n int) RETURNS int LANGUAGE sql AS 'DELETE FROM posts; SELECT 1'",)},
        ("postgresql",),
    ),
    "INSERT OR REPLACE deletes, and a key cascades": Case(
        COMMENT, sa.insert(POSTS).prefix_with("OR REPLACE").values(id=1, org_id=2), {}, ("sqlite",)
    ),
    "text of INSERT OR REPLACE": Case(
        COMMENT, sa.text("INSERT OR REPLACE INTO posts (id, org_id) VALUES (1, 2)"), {}, ("sqlite",)
    ),
    "a generated column that is not declared": Case(
        sa.select(PRICES.c.id).where(PRICES.c.gross == 70),
        sa.update(PRICES).where(PRICES.c.id == 1).values(net=35),
    ),
    "an UPDATE of an alias": Case(ORG, sa.update(ORG_ALIAS).where(ORG_ALIAS.c.id == 1).values(name="new")),
    "a DELETE from an alias": Case(
        sa.select(POSTS.c.id).where(POSTS.c.id == 1),
        sa.delete(POST_ALIAS).where(POST_ALIAS.c.id == 1),
        {},
        ("sqlite", "postgresql"),
    ),
    "a CTE with the name of its table": Case(
        sa.text("WITH orgs AS (SELECT * FROM orgs WHERE name = 'new') SELECT id FROM orgs"),
        RENAME,
        {},
        ("postgresql", "mariadb"),
    ),
    "text that updates the second table": Case(
        ORG, sa.text("UPDATE posts p JOIN orgs o ON o.id = p.org_id SET o.name = 'new'"), {}, ("mariadb",)
    ),
    "text that deletes from the second table": Case(
        COMMENT, sa.text("DELETE c FROM posts p JOIN comments c ON c.post_id = p.id"), {}, ("mariadb",)
    ),
    "a function with the name of another database's": Case(
        sa.select(sa.func.total(1)),
        RENAME,
        {
            "postgresql": (
                "CREATE FUNCTION total(n int) RETURNS text STABLE LANGUAGE sql AS 'SELECT name FROM orgs WHERE id = n'",
            )
        },
        ("postgresql",),
    ),
    "a function of a schema with the name of a built-in one": Case(
        sa.select(sa.func.public.count(1)),
        RENAME,
        {
            "postgresql": (
                """CREATE FUNCTION public.count(n int) RETURNS text STABLE LANGUAGE sql
                AS 'SELECT name FROM orgs WHERE id = n'""",
            )
        },
        ("postgresql",),
    ),
    "EXPLAIN ANALYZE of a write": Case(
        ORG, sa.text("EXPLAIN ANALYZE UPDATE orgs SET name = 'new'"), {}, ("postgresql",)
    ),
    "another search_path": Case(
        sa.select(ELSEWHERE.c.name).where(ELSEWHERE.c.id == 1),
        (sa.select(sa.func.set_config("search_path", "elsewhere", True)), RENAME),
        {
            "postgresql": (
                "CREATE SCHEMA elsewhere",
                "CREATE TABLE elsewhere.orgs (id INTEGER PRIMARY KEY, name VARCHAR(20))",
                "INSERT INTO elsewhere.orgs (id, name) VALUES (1, 'a')",
            )
        },
        ("postgresql",),
    ),
}


@pytest.fixture
async def cache(client: Redis) -> AsyncIterator[Cache]:
    """Return a cache that follows, alone in this process."""
    gc.collect()
    async with Cache(client, auto=True) as made:
        yield made
    gc.collect()


def _keep_foreign_keys(connection: Any, record: object) -> None:
    cursor = connection.cursor()
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


@pytest.mark.parametrize("name", CASES)
async def test_a_hidden_write_drops_the_answer(database: Database, cache: Cache, name: str) -> None:
    """The answer after the commit is that of the database."""
    case = CASES[name]
    if database.name == "sqlite":
        event.listen(database.engine.sync_engine, "connect", _keep_foreign_keys)
    if database.name not in case.databases:
        pytest.skip("this database has no such statement")
    async with database.engine.begin() as connection:
        for statement in (*TABLES, *case.prepare.get(database.name, ())):
            await connection.exec_driver_sql(statement)

    async def read(db: AsyncSession) -> list[str]:
        return [str(value) for value in (await db.scalars(case.read)).all()]

    cached = cache.cached("hidden:read")(read)
    before: list[str] = []
    for _ in range(2):  # with a write between, after which this process has met the column in use
        async with database.sessions() as db:
            before = await cached(db)
        async with database.sessions() as db:
            assert (await cached.explain(db)).state == "hit"
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
