"""What PostgreSQL's catalog says of tables: types, collations, parents, foreign partitions, and locks."""

from __future__ import annotations

import asyncio
import secrets
from datetime import date
from functools import partial
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from fastrdb import OptionError
from fastrdb.keys import Image, row_tag
from fastrdb.watch import source as interface
from fastrdb.watch import source_of
from tests.support.servers import databases
from tests.support.waiting import until
from tests.watch.conftest import Watched

pytestmark = pytest.mark.parametrize("watchable", ["postgresql"], indirect=True)


async def hits(watched: Watched, tag: str | None) -> bool:
    """Poll once, and return whether a change reaches this tag."""
    _, images = await watched.poll()
    return any(image.hits(str(tag)) for image in images)


def table_of(images: list[Image]) -> set[str | None]:
    """Return the tables of images."""
    return {image.table for image in images}


# --- values


@pytest.mark.parametrize(("stored", "read"), [("infinity", date.max), ("-infinity", date.min)])
async def test_a_date_without_end_is_named_as_the_driver_gives_it(watched: Watched, stored: str, read: date) -> None:
    """Asyncpg returns the last or the first date of Python, and readers tag by that."""
    await watched.write("CREATE TABLE terms (id INTEGER PRIMARY KEY, until DATE UNIQUE)")
    await watched.install()
    await watched.write(f"INSERT INTO terms VALUES (1, '{stored}')")
    async with watched.database.engine.connect() as connection:
        assert await connection.scalar(text("SELECT until FROM terms")) == read
    assert await hits(watched, row_tag("terms", "until", read))
    await watched.write("INSERT INTO terms VALUES (2, '2024-02-29')")
    assert not await hits(watched, row_tag("terms", "until", read))


NOCASE = "CREATE COLLATION nocase (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
OTHER_TYPES = {
    "a collation that takes different texts for equal": 'TYPE VARCHAR(50) COLLATE "nocase"',
    "a type with blanks behind": "TYPE CHAR(50)",
    "a type that is not reported": "TYPE BYTEA USING convert_to(email, 'UTF8')",
}


@pytest.mark.parametrize("how", OTHER_TYPES)
async def test_a_column_whose_type_was_changed_counts_as_any_value(watched: Watched, how: str) -> None:
    """The triggers report its texts, which are no longer those of readers; `status` says so until `install`."""
    await watched.write(NOCASE)
    await watched.install()
    await watched.write(f"ALTER TABLE users ALTER COLUMN email {OTHER_TYPES[how]}")
    await watched.write("INSERT INTO users VALUES (7, 1, 'D@x', '')")
    _, images = await watched.poll()
    assert any(image.hits(str(row_tag("users", "email", "d@X"))) for image in images)
    assert not any(image.hits(str(row_tag("users", "id", 8))) for image in images)
    notes = (await watched.source.status(watched.position)).notes
    assert [note for note in notes if note.startswith("users: a column was renamed")] == notes != []
    await watched.source.run(await watched.source.install_sql())
    assert (await watched.source.status(watched.position)).notes == []


async def test_a_column_whose_collation_takes_different_texts_for_equal_is_not_named(watched: Watched) -> None:
    """The collation may stand in the database alone, so a reader may have asked for another text."""
    await watched.write(NOCASE, 'CREATE TABLE people (id INTEGER PRIMARY KEY, email TEXT COLLATE "nocase" UNIQUE)')
    await watched.install()
    await watched.write("INSERT INTO people VALUES (1, 'a@x')")
    assert await watched.changes() == {"people": {"id": {"1"}}}


async def test_a_type_of_the_users_own_is_not_taken_for_one_of_the_same_name(watched: Watched) -> None:
    """A domain may be named like a type whose values are reported."""
    await watched.write("CREATE DOMAIN uuid AS NUMERIC", "CREATE TABLE odd (id public.uuid PRIMARY KEY)")
    await watched.install()
    await watched.write("INSERT INTO odd VALUES (1.0)")
    assert await watched.changes() == {"odd": None}


async def test_a_large_change_counts_as_any_row(watched: Watched) -> None:
    """A page of the outbox is one value of at most 1 GB, and has to fit into memory."""
    await watched.install(columns=["users:bio"])
    await watched.write("UPDATE users SET bio = repeat('x', 100000) WHERE id = 1")
    assert await watched.changes() == {"users": None}
    await watched.write("UPDATE users SET bio = 'y' WHERE id = 2")
    assert (await watched.changes())["users"]["bio"] == {"", "y"}


async def test_each_driver_installs_what_the_statements_say(watched: Watched) -> None:
    """Some drivers look for parameters in a statement that has none, and the name of a column may look like one."""
    pytest.importorskip("psycopg")
    await watched.write('CREATE TABLE "100%s" ("%b" INTEGER PRIMARY KEY)')
    async with databases.opened(watched.database.engine.url.set(drivername="postgresql+psycopg")) as other:
        source = source_of(other.engine)
        await source.run(await source.install_sql())
    await watched.install("users")
    await watched.write('INSERT INTO "100%s" VALUES (1)')
    assert await watched.changes() == {"100%s": {"%b": {"1"}}}


# --- kin


async def test_all_parents_of_a_child_hold_its_rows(watched: Watched) -> None:
    """A statement that names one parent changes rows that another one shows."""
    await watched.write(
        "CREATE TABLE ships (id INTEGER)",
        "CREATE TABLE houses (id INTEGER)",
        "CREATE TABLE houseboats () INHERITS (ships, houses)",
        "CREATE TABLE barges () INHERITS (houseboats)",
        "INSERT INTO barges VALUES (1)",
    )
    await watched.install()
    for written in ("ships", "houses", "houseboats", "barges"):
        await watched.write(f"UPDATE {written} SET id = id")
        _, images = await watched.poll()
        assert table_of(images) == {"ships", "houses", "houseboats", "barges"}, written
    await watched.write("INSERT INTO ships VALUES (2)")
    _, images = await watched.poll()
    assert "houses" in table_of(images)  # a statement may change rows of any child


@pytest.fixture
async def foreign(watched: Watched) -> Watched:
    """Provide a partitioned table, and what a foreign partition needs."""
    async with watched.database.engine.connect() as connection:
        if not await connection.scalar(text("SELECT 1 FROM pg_available_extensions WHERE name = 'postgres_fdw'")):
            pytest.skip("the server has no postgres_fdw")
    url = watched.database.engine.url
    here = f"dbname '{url.database}', host '{url.host}', port '{url.port}'"
    await watched.write(
        "CREATE EXTENSION postgres_fdw",
        f"CREATE SERVER besides FOREIGN DATA WRAPPER postgres_fdw OPTIONS ({here})",
        "CREATE USER MAPPING FOR CURRENT_USER SERVER besides",
        "CREATE TABLE far (id INTEGER, k INTEGER)",
        "CREATE TABLE parts (id INTEGER, k INTEGER) PARTITION BY LIST (k)",
        "CREATE TABLE parts_1 PARTITION OF parts FOR VALUES IN (1)",
    )
    return watched


FOREIGN = "CREATE FOREIGN TABLE parts_2 PARTITION OF parts FOR VALUES IN (2) SERVER besides OPTIONS (table_name 'far')"


async def test_no_write_fails_because_of_a_foreign_partition(foreign: Watched) -> None:
    """PostgreSQL refuses transition tables there. So the rows are unknown, and `status` says what is not seen."""
    await foreign.write(FOREIGN)
    await foreign.install()
    for value in (1, 2):
        await foreign.write(f"INSERT INTO parts VALUES (7, {value})")
        assert (await foreign.changes())["parts"] is None
    await foreign.write("UPDATE parts SET id = 8", "TRUNCATE parts_1")
    assert (await foreign.changes()).keys() >= {"parts", "parts_1"}
    unwatched = (await foreign.source.status(foreign.position)).unwatched
    assert "foreign" in unwatched["parts"]
    assert "foreign" in unwatched["parts_2"]
    assert "parts_1" not in unwatched


async def test_a_foreign_partition_that_came_later_is_named(foreign: Watched) -> None:
    """Until `install` runs again, an INSERT into the partition fails."""
    await foreign.install()
    await foreign.write(FOREIGN)
    with pytest.raises(DBAPIError, match="transition"):
        await foreign.write("INSERT INTO parts VALUES (7, 2)")
    notes = (await foreign.source.status(foreign.position)).notes
    assert [note for note in notes if note.startswith("parts: ") and "fails" in note] == notes != []
    await foreign.source.run(await foreign.source.install_sql())
    assert (await foreign.source.status(foreign.position)).notes == []
    await foreign.write("INSERT INTO parts VALUES (7, 2)")
    assert (await foreign.changes())["parts"] is None


# --- locks


async def _waits(watched: Watched) -> bool:
    async with watched.database.engine.connect() as connection:
        asked = text("SELECT EXISTS (SELECT FROM pg_locks WHERE NOT granted AND relation = CAST('users' AS regclass))")
        return bool(await connection.scalar(asked))


@pytest.mark.parametrize("which", ["install", "uninstall"])
async def test_triggers_are_made_without_a_deadlock_with_a_writer(watched: Watched, which: str) -> None:
    """A lock is held on one table at a time, and given up when a writer holds it for long."""
    if which == "uninstall":
        await watched.install()
    source: Any = watched.source
    statements = await (source.install_sql() if which == "install" else source.uninstall_sql())
    async with watched.database.engine.connect() as writer, writer.begin():
        await writer.execute(text("UPDATE users SET bio = 'x' WHERE id = 1"))
        installing = asyncio.create_task(source.run(statements))
        await until(partial(_waits, watched))
        await writer.execute(text("UPDATE orgs SET name = 'x' WHERE id = 1"))
        assert not installing.done()
        await writer.commit()
        await installing


async def test_a_lock_that_is_never_free_is_an_error(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tries have an end."""
    monkeypatch.setattr(interface, "_TRIES", 2)
    statements = await watched.source.install_sql()
    async with watched.database.engine.connect() as writer, writer.begin():
        await writer.execute(text("UPDATE users SET bio = 'x' WHERE id = 1"))
        with pytest.raises(DBAPIError, match="lock timeout"):
            await watched.source.run(statements)


async def test_several_may_install_at_once(watched: Watched) -> None:
    """As two deploys do, or several processes of one."""
    statements = await watched.source.install_sql()
    await asyncio.gather(*(watched.source.run(statements) for _ in range(4)))
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    poll, _ = await watched.poll()
    assert poll.found == 1


async def test_installing_again_waits_for_no_writer(watched: Watched) -> None:
    """A trigger that is there is left alone, and so is the outbox: making an index again would lock it."""
    await watched.install()
    async with watched.database.engine.connect() as writer, writer.begin():
        await writer.execute(text("UPDATE users SET bio = 'x' WHERE id = 1"))
        await writer.execute(text("LOCK TABLE orgs, users IN ROW EXCLUSIVE MODE"))
        await watched.source.run(await watched.source.install_sql())
        assert not await _waits(watched)
        await writer.commit()
    assert (await watched.changes())["users"]["id"] == {"1"}


async def test_a_migration_keeps_its_own_lock_timeout(watched: Watched) -> None:
    """The statements may be a part of one."""
    statements = await watched.source.install_sql()
    async with watched.database.engine.begin() as connection:
        await connection.execute(text("SET LOCAL lock_timeout = '7s'"))
        for statement in statements:
            await connection.exec_driver_sql(statement)
        assert await connection.scalar(text("SHOW lock_timeout")) == "7s"


async def test_a_table_without_the_right_keeps_no_other_from_being_watched(watched: Watched) -> None:
    """Such as one of an extension. What a role has installed it can also uninstall, although no table is its own."""
    role, url = f"installs_{secrets.token_hex(6)}", watched.database.engine.url
    await watched.write(
        "CREATE TABLE zone (id INTEGER)",
        f"CREATE ROLE {role}",
        f'GRANT CREATE ON DATABASE "{url.database}" TO {role}',
        f"GRANT USAGE ON SCHEMA public TO {role}",
        f"GRANT TRIGGER ON orgs, zone TO {role}",
    )
    engine = create_async_engine(url, connect_args={"server_settings": {"role": role}})
    try:
        source = source_of(engine)
        with pytest.raises(OptionError, match="permission denied for table users"):
            await source.run(await source.install_sql())
        assert {"orgs", "zone"} == set((await watched.source.status(None)).watched)
        await source.run(await source.uninstall_sql())
        assert not (await watched.source.status(None)).installed
        await watched.write("UPDATE orgs SET name = 'x'")
    finally:
        await engine.dispose()
        await watched.write(f"DROP OWNED BY {role}", f"DROP ROLE {role}")
