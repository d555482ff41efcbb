"""`Cache(auto=True)`: a table has one name, whichever of the schemas that are searched has it."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack
from itertools import count
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache
from tests.support.servers.databases import Database, execute, opened


def table(name: str, *columns: str, schema: str | None = None) -> sa.Table:
    """Return a table of integers."""
    return sa.Table(
        name,
        sa.MetaData(schema=schema),
        sa.Column("id", sa.Integer, primary_key=True),
        *(sa.Column(each, sa.Integer) for each in columns),
    )


ORGS, PEOPLE, NOTES = table("orgs"), table("people", "org_id", "age"), table("notes", "org_id")
IDS, DAYS, FIRST = table("ids", "age"), table("days", "day"), table("days_1", "day")
PEOPLE_OF_PUBLIC, ORGS_OF_APP = table("people", "org_id", "age", schema="public"), table("orgs", schema="app")
HIDDEN = table("hidden", "org_id")
SCHEMAS = ("app", "postgres", "root", "elsewhere")
_NUMBERS = count()
MADE = (
    "CREATE TABLE {own}.orgs (id INTEGER PRIMARY KEY)",
    """CREATE TABLE public.people (id INTEGER PRIMARY KEY, org_id INTEGER REFERENCES {own}.orgs ON DELETE CASCADE,
    age INTEGER)""",
    "CREATE TABLE public.notes (id INTEGER PRIMARY KEY, org_id INTEGER)",
    "CREATE VIEW {own}.ids AS SELECT id, age FROM public.people",
    "CREATE TABLE {own}.days (id INTEGER, day INTEGER) PARTITION BY RANGE (day)",
    "CREATE TABLE public.days_1 PARTITION OF {own}.days FOR VALUES FROM (0) TO (10)",
    """CREATE FUNCTION public.note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN UPDATE notes SET org_id = 0 WHERE id = 1; RETURN NEW; END $$""",
    "CREATE TRIGGER noted AFTER DELETE ON {own}.orgs FOR EACH ROW EXECUTE FUNCTION public.note()",
    "CREATE TABLE public.hidden (id INTEGER PRIMARY KEY, org_id INTEGER REFERENCES {own}.orgs ON DELETE CASCADE)",
    "CREATE TABLE {own}.hidden (id INTEGER PRIMARY KEY, org_id INTEGER)",
    "INSERT INTO {own}.orgs VALUES (1), (2)",
    "INSERT INTO public.people VALUES (1, 1, 10), (2, 2, 20)",
    "INSERT INTO public.notes VALUES (1, 1)",
    "INSERT INTO {own}.days VALUES (1, 1)",
    "INSERT INTO public.hidden VALUES (1, 1)",
)


def by_connection(database: Database, path: str) -> Any:
    """Ask the server for the search_path with each connection."""
    return opened(database.engine.url, connect_args={"server_settings": {"search_path": path}})


@contextlib.asynccontextmanager
async def by_event(database: Database, path: str) -> AsyncIterator[Database]:
    """Set it behind the first statements of SQLAlchemy, which does not notice that."""

    def choose(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"SET search_path = {path}")
        cursor.close()
        connection.commit()

    async with opened(database.engine.url) as made:
        event.listen(made.engine.sync_engine, "connect", choose)
        yield made


@contextlib.asynccontextmanager
async def by_database(database: Database, path: str) -> AsyncIterator[Database]:
    """Make it the database's own."""
    url = database.engine.url
    await execute(url, f"ALTER DATABASE {url.database} SET search_path = {path}")
    try:
        async with opened(url) as made:
            yield made
    finally:
        await execute(url, f"ALTER DATABASE {url.database} RESET search_path")


Way = Callable[[Database, str], Any]
PEOPLE_1 = sa.select(PEOPLE.c.id).where(PEOPLE.c.id == 1)
AGE_1 = sa.select(PEOPLE.c.age).where(PEOPLE.c.id == 1)
DELETE = sa.delete(ORGS).where(ORGS.c.id == 1)
CASES: dict[str, tuple[Any, Any]] = {
    "a key cascades": (PEOPLE_1, DELETE),
    "a key cascades to what is named with its schema": (
        sa.select(PEOPLE_OF_PUBLIC.c.id).where(PEOPLE_OF_PUBLIC.c.id == 1),
        DELETE,
    ),
    "a trigger writes": (sa.select(NOTES.c.org_id).where(NOTES.c.id == 1), DELETE),
    "a view reads": (sa.select(IDS.c.age).where(IDS.c.id == 1), sa.update(PEOPLE).values(age=11)),
    "a partition": (
        sa.select(FIRST.c.day).where(FIRST.c.id == 1),
        sa.update(DAYS).where(DAYS.c.id == 1).values(day=2),
    ),
    "its parent": (sa.select(DAYS.c.day).where(DAYS.c.id == 1), sa.update(FIRST).where(FIRST.c.id == 1).values(day=2)),
    "written with its schema": (AGE_1, sa.update(PEOPLE_OF_PUBLIC).where(PEOPLE_OF_PUBLIC.c.id == 1).values(age=11)),
    "read with its schema": (
        sa.select(PEOPLE_OF_PUBLIC.c.age).where(PEOPLE_OF_PUBLIC.c.id == 1),
        sa.update(PEOPLE).where(PEOPLE.c.id == 1).values(age=11),
    ),
    "text in another case of letters": (PEOPLE_1, sa.text("DELETE FROM Orgs WHERE id = 1")),
}


@pytest.fixture
async def postgres(postgresql: Database) -> AsyncIterator[Database]:
    """Take away the schemas beside `public` before and after."""
    drops = [f"DROP SCHEMA IF EXISTS {name} CASCADE" for name in SCHEMAS]
    await execute(postgresql.engine.url, *drops)
    yield postgresql
    await execute(postgresql.engine.url, *drops)


async def prepare(database: Database, own: str) -> None:
    """Make tables in `public` and in another schema."""
    await execute(database.engine.url, f"CREATE SCHEMA {own}", *(each.format(own=own) for each in MADE))


async def expect_fresh(reader: Database, writer: Database, client: Redis, read: Any, write: Any) -> None:
    """Cache an answer, write, and expect the answer of the database."""
    async with Cache(client, auto=True) as cache:

        @cache.cached(f"searched:{next(_NUMBERS)}")
        async def cached(db: Any) -> list[str]:
            return [str(each) for each in (await db.scalars(read)).all()]

        before = list[str]()
        for _ in range(2):
            async with reader.sessions() as db:
                before = await cached(db)
            async with writer.sessions() as db:
                await db.execute(sa.update(NOTES).where(NOTES.c.id == 0).values(org_id=5))
                await db.commit()
        async with reader.sessions() as db:
            assert (await cached.explain(db)).state == "hit"
        async with writer.sessions() as db:
            for statement in write if isinstance(write, tuple) else (write,):
                await db.execute(statement)
            await db.commit()
        async with reader.sessions() as db:
            after = [str(each) for each in (await db.scalars(read)).all()]
        async with reader.sessions() as db:
            assert await cached(db) == after != before


@pytest.mark.parametrize("name", CASES)
async def test_a_later_part_of_the_search_path(postgres: Database, client: Redis, name: str) -> None:
    """Tables of `public` are found behind those of `app`."""
    await prepare(postgres, "app")
    async with by_connection(postgres, "app, public") as database:
        await expect_fresh(database, database, client, *CASES[name])


@pytest.mark.parametrize("way", [by_event, by_database])
async def test_each_way_to_choose_a_search_path(postgres: Database, client: Redis, way: Way) -> None:
    """The session has the path, and what SQLAlchemy takes for the default schema does not count."""
    await prepare(postgres, "app")
    async with way(postgres, "app, public") as database:
        await expect_fresh(database, database, client, *CASES["a key cascades"])
    await execute(postgres.engine.url, "DELETE FROM public.people", "INSERT INTO public.people VALUES (1, 2, 10)")
    write = sa.delete(ORGS_OF_APP).where(ORGS_OF_APP.c.id == 2)
    async with way(postgres, "app, public") as database:
        await expect_fresh(database, database, client, sa.select(ORGS.c.id).where(ORGS.c.id == 2), write)


async def test_a_schema_of_the_users_name(postgres: Database, client: Redis) -> None:
    """PostgreSQL's own path is "$user", public: the first part exists as soon as the schema does."""
    user = postgres.engine.url.username or ""
    await prepare(postgres, f'"{user}"')
    async with opened(postgres.engine.url) as database:
        await expect_fresh(database, database, client, *CASES["a key cascades"])


async def test_engines_with_other_paths(postgres: Database, client: Redis) -> None:
    """A table of `public` has one name for both, though one engine finds another table first."""
    await prepare(postgres, "app")
    async with AsyncExitStack() as stack:
        reader = await stack.enter_async_context(by_connection(postgres, "public"))
        writer = await stack.enter_async_context(by_connection(postgres, "app, public"))
        read = sa.select(HIDDEN.c.id).where(HIDDEN.c.id == 1)
        await expect_fresh(reader, writer, client, read, DELETE)


async def test_a_session_with_another_path_leaves_nothing(postgres: Database, client: Redis) -> None:
    """Its first look at a table is not that of the others."""
    await prepare(postgres, "app")
    async with (
        Cache(client, auto=True),
        by_connection(postgres, "app, public") as database,
        database.engine.connect() as connection,
    ):
        for path in ("pg_catalog", "elsewhere"):
            await connection.execute(sa.text(f"SET LOCAL search_path = {path}"))
            await connection.execute(sa.delete(ORGS_OF_APP).where(ORGS_OF_APP.c.id == 0))
            await connection.commit()
        await expect_fresh(database, database, client, *CASES["a key cascades"])


async def test_a_temporary_table_hides_nothing(postgres: Database, client: Redis) -> None:
    """The facts of a table are those of the one that all sessions have."""
    await prepare(postgres, "app")
    async with (
        Cache(client, auto=True),
        by_connection(postgres, "app, public") as database,
        database.engine.connect() as connection,
    ):
        await connection.execute(sa.text("CREATE TEMPORARY TABLE people (id INTEGER)"))
        await connection.execute(sa.text("CREATE TEMPORARY TABLE days_1 (id INTEGER)"))
        await connection.commit()
        for each in (ORGS, PEOPLE, DAYS, FIRST):  # the first look at each
            await connection.execute(sa.delete(each).where(each.c.id == 0))
        await connection.commit()
        for name in ("a key cascades", "its parent"):
            await expect_fresh(database, database, client, *CASES[name])


@pytest.mark.parametrize("database", ["sqlite", "postgresql"], indirect=True)
async def test_a_temporary_view_may_read_anything(database: Database, client: Redis) -> None:
    """One session alone has it, while the facts of tables are those of all sessions."""
    async with Cache(client, auto=True) as cache, database.engine.connect() as connection:
        for statement in ("CREATE TABLE orgs (id INTEGER)", "CREATE TABLE people (id INTEGER, age INTEGER)"):
            await connection.execute(sa.text(statement))
        await connection.execute(sa.text("INSERT INTO people VALUES (1, 10)"))
        await connection.commit()
        async with database.sessions() as db:  # the first look at the name
            await db.execute(sa.select(ORGS.c.id))
        await connection.execute(sa.text("CREATE TEMP VIEW ids AS SELECT id, age FROM people"))
        await connection.commit()

        @cache.cached("view")
        async def cached(db: Any) -> int:
            return int((await db.scalars(sa.select(IDS.c.age).where(IDS.c.id == 1))).one())

        async with AsyncSession(connection) as db:
            assert await cached(db) == 10
            await db.commit()
        async with database.sessions() as db:
            await db.execute(sa.update(PEOPLE).values(age=11))
            await db.commit()
        async with AsyncSession(connection) as db:
            assert await cached(db) == 11
            await db.commit()


@pytest.mark.parametrize("choose", ["SET search_path = elsewhere", "SET LOCAL SCHEMA 'elsewhere'"])
async def test_a_statement_that_chooses_the_path(postgres: Database, client: Redis, choose: str) -> None:
    """A name without a schema may then be any table."""
    await prepare(postgres, "app")
    await execute(postgres.engine.url, "CREATE SCHEMA elsewhere", "CREATE VIEW elsewhere.orgs AS TABLE public.people")
    async with by_connection(postgres, "app, public") as reader, by_connection(postgres, "app, public") as writer:
        await expect_fresh(reader, writer, client, PEOPLE_1, (sa.text(choose), DELETE))


async def test_a_path_of_one_transaction_ends_with_it(postgres: Database, following: Cache) -> None:
    """The next user of the connection gets names as before; a path of the connection itself stays."""
    await prepare(postgres, "app")

    @following.cached("age:{person_id}")
    async def age(db: AsyncSession, person_id: int) -> int:
        return int((await db.scalars(sa.select(PEOPLE.c.age).where(PEOPLE.c.id == person_id))).one())

    async with by_connection(postgres, "app, public") as database, database.engine.connect() as connection:
        for person_id, chosen, expected in (
            (1, ("SET LOCAL search_path = public",), ("people where id = 1",)),
            (2, ("SET search_path = public", "SET LOCAL search_path = public"), ("anything",)),
        ):
            for statement in chosen:
                await connection.execute(sa.text(statement))
            await connection.commit()
            async with AsyncSession(connection) as db:
                await age(db, person_id)
                await db.commit()
                assert (await age.explain(db, person_id)).depends_on == expected


# --- SQLite

ATTACHED = (
    "CREATE TABLE away.orgs (id INTEGER PRIMARY KEY)",
    """CREATE TABLE away.people (id INTEGER PRIMARY KEY, org_id INTEGER REFERENCES orgs (id) ON DELETE CASCADE,
    age INTEGER)""",
    "CREATE TABLE away.days (id INTEGER PRIMARY KEY, day INTEGER)",
    "CREATE VIEW away.ids AS SELECT id, age FROM people",
    "CREATE TABLE notes (id INTEGER PRIMARY KEY, org_id INTEGER)",
    "CREATE TRIGGER away.noted AFTER DELETE ON orgs BEGIN UPDATE days SET day = 9; END",
    "INSERT INTO away.orgs VALUES (1)",
    "INSERT INTO away.people VALUES (1, 1, 10)",
    "INSERT INTO away.days VALUES (1, 1)",
)
PEOPLE_AWAY = table("people", "org_id", "age", schema="away")
OF_SQLITE: dict[str, tuple[Any, Any]] = {
    "a key cascades": (PEOPLE_1, DELETE),
    "a key cascades to what is named with its schema": (
        sa.select(PEOPLE_AWAY.c.id).where(PEOPLE_AWAY.c.id == 1),
        DELETE,
    ),
    "a trigger writes": (sa.select(DAYS.c.day).where(DAYS.c.id == 1), DELETE),
    "a view reads": (sa.select(IDS.c.age).where(IDS.c.id == 1), sa.update(PEOPLE_AWAY).values(age=11)),
    "written with its schema": (AGE_1, sa.update(PEOPLE_AWAY).where(PEOPLE_AWAY.c.id == 1).values(age=11)),
}


@pytest.mark.parametrize("name", OF_SQLITE)
async def test_a_table_of_a_file_that_is_attached(sqlite: Database, client: Redis, tmp_path: Path, name: str) -> None:
    """SQLite looks there for names that the main file lacks."""

    def attach(connection: Any, record: object) -> None:
        cursor = connection.cursor()
        cursor.execute(f"ATTACH '{tmp_path}/away.sqlite' AS away")
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()

    event.listen(sqlite.engine.sync_engine, "connect", attach)
    async with sqlite.engine.begin() as connection:
        for statement in ATTACHED:
            await connection.exec_driver_sql(statement)
    await expect_fresh(sqlite, sqlite, client, *OF_SQLITE[name])
