"""What only MariaDB has: an outbox that is read under locks, and a binary log that runs ahead of what is visible."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine
from typer.testing import CliRunner

from fastrdb import OptionError
from fastrdb.cli.commands import cli
from fastrdb.keys import Image
from fastrdb.watch import source_of
from fastrdb.watch.binlog import _written
from fastrdb.watch.mysql_log import Found, Log
from tests.support.availability import missing
from tests.support.servers import databases
from tests.support.servers import mariadb as private_mariadb
from tests.support.servers.databases import ServerDatabase, opened
from tests.support.waiting import until
from tests.watch.conftest import TABLES, Watched

outbox = pytest.mark.parametrize("watchable", ["mariadb", "mysql"], indirect=True)
binlog = pytest.mark.parametrize("watchable", ["binlog"], indirect=True)
each_binlog = pytest.mark.parametrize("watchable", ["binlog", "mysql_binlog"], indirect=True)
both = pytest.mark.parametrize("watchable", ["mariadb", "binlog", "mysql"], indirect=True)


@both
async def test_foreign_keys_are_followed_over_tables(watched: Watched) -> None:
    """SET NULL names the old value and NULL; below a row that is deleted, the rows are unknown."""
    await watched.write(
        "CREATE TABLE posts (id INTEGER PRIMARY KEY, user_id INTEGER, editor_id INTEGER,"
        " FOREIGN KEY (user_id) REFERENCES users (id) ON DELETE CASCADE ON UPDATE CASCADE,"
        " FOREIGN KEY (editor_id) REFERENCES users (id) ON DELETE SET NULL)",
        "INSERT INTO posts VALUES (1, 1, 2)",
    )
    await watched.install()
    await watched.write("DELETE FROM users WHERE id = 2")
    _, images = await watched.poll()
    assert Image("posts", {"editor_id": frozenset({"2", "%none"})}) in images
    await watched.write("UPDATE users SET id = 9 WHERE id = 1")
    assert (await watched.changes())["posts"] == {"user_id": {"1", "9"}}
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 9")
    assert (await watched.changes()).keys() == {"users"}
    await watched.write("DELETE FROM orgs WHERE id = 1")
    found = await watched.changes()
    assert (found["users"], found["posts"]) == ({"org_id": {"1"}}, None)


# --- the outbox


@outbox
async def test_writers_do_not_wait_for_a_poll(watched: Watched) -> None:
    """While Redis takes the changes, the rows that are read are locked, and no gap beside them."""
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")

    async def slow(images: Sequence[Image]) -> None:
        await watched.write("SET innodb_lock_wait_timeout = 1", "UPDATE users SET bio = 'y' WHERE id = 2")

    watched.position = (await watched.source.poll(watched.position, slow)).position
    assert (await watched.changes())["users"]["id"] == {"2"}


@outbox
async def test_an_emptied_outbox_is_noticed_until_it_is_marked(watched: Watched) -> None:
    """A watcher that dies between the loss and the mark leaves the loss to the next one."""
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1", "TRUNCATE fastrdb_outbox")
    for _ in range(2):
        assert "emptied" in (await watched.poll())[0].lost
    assert any("emptied" in note for note in (await watched.source.status(watched.position)).notes)
    await watched.source.mark(str(watched.position))
    await watched.write("UPDATE users SET bio = 'y' WHERE id = 2")
    assert (await watched.changes())["users"]["id"] == {"2"}


@outbox
async def test_a_database_that_is_older_than_the_position_is_lost(watched: Watched) -> None:
    """As after a restore from a backup: the rows are older, and so is the count of polls in the outbox."""
    await watched.install()
    watched.position = f"{str(watched.position).rpartition('/')[0]}/9"
    assert "older" in (await watched.poll())[0].lost


@outbox
async def test_triggers_made_anew_leave_no_gap(watched: Watched) -> None:
    """A trigger that reports another column is made before the old one is dropped."""
    await watched.write("ALTER TABLE users ADD COLUMN age INTEGER")
    await watched.install()
    statements = await watched.source.install_sql(["users"], ["users:age"])
    made = [number for number, each in enumerate(statements) if each.startswith("CREATE TRIGGER")]
    dropped = [number for number, each in enumerate(statements) if each.startswith("DROP TRIGGER")]
    assert len(made) == len(dropped) == 3
    assert max(made) < min(dropped)
    await watched.source.run(statements)
    await watched.write("UPDATE users SET age = 7 WHERE id = 1")
    assert (await watched.changes())["users"]["age"] == {"%none", "7"}


# --- the binary log


async def test_a_private_server_keeps_its_temporary_tables_to_itself(binlog_server: ServerDatabase) -> None:
    """One that starts would delete those of another, which then crashes."""
    async with opened(binlog_server.url) as database, database.engine.connect() as connection:
        places = (await connection.execute(text("SELECT @@tmpdir, @@datadir"))).one()
    assert Path(places[0]) == Path(places[1]).parent


@each_binlog
async def test_the_command_says_that_the_log_needs_no_installation(watched: Watched) -> None:
    """Its tables are all of the database; an unknown one is refused all the same."""
    database = ("--database", watched.database.engine.url.render_as_string(hide_password=False))
    for more, status, printed in (
        ((), 0, "Watched: orgs, users\nNothing was installed: the binary log has all changes\n"),
        (("--print",), 0, "-- nothing to install: the binary log has all changes\n"),
        (("--table", "user"), 2, "watch: there is no table user; there are: users\n"),
    ):
        done = await asyncio.to_thread(CliRunner().invoke, cli, ["watch", "install", *database, *more])
        assert (done.exit_code, done.output) == (status, printed)


@binlog
async def test_a_session_without_a_database_is_refused(watched: Watched) -> None:
    """Its lock would have no name, which no watcher can take: waiting for it would never end."""
    url = watched.database.engine.url

    async def connect() -> Any:
        aiomysql: Any = import_module("aiomysql")
        return await aiomysql.connect(host=url.host, port=url.port or 3306, user=url.username)

    async with opened(url.set(drivername="mysql+aiomysql"), async_creator=connect) as database:
        source = source_of(database.engine)
        with pytest.raises(OptionError, match="have no default database"):
            await source.lead()
        await source.close()
    with pytest.raises(OptionError, match="the address names no database"):
        source_of(create_async_engine(url.set(database="")))


@asynccontextmanager
async def setting(watched: Watched, name: str, value: str) -> AsyncIterator[None]:
    """Change a global setting of the server."""
    async with watched.database.engine.connect() as connection:
        before = await connection.scalar(text(f"SELECT @@global.{name}"))
    await watched.write(f"SET GLOBAL {name} = {value}")
    try:
        yield
    finally:
        await watched.write(
            f"SET GLOBAL {name} = '{before}'" if isinstance(before, str) else f"SET GLOBAL {name} = {before}"
        )


@binlog
@pytest.mark.parametrize(("name", "value"), [("binlog_format", "MIXED"), ("binlog_row_metadata", "NO_LOG")])
async def test_a_setting_that_permits_no_watching_is_named(watched: Watched, name: str, value: str) -> None:
    """With what it has to be, and the other way."""
    async with setting(watched, name, value):
        with pytest.raises(OptionError, match=f"{name} is {value}, and has to be .*fastrdb watch install"):
            await watched.source.lead()


@binlog
async def test_a_replica_whose_log_lacks_what_its_primary_writes_is_refused(watched: Watched) -> None:
    """As long as the server replicates. Its own writes alone would be seen."""
    await watched.write("CHANGE MASTER TO master_host='127.0.0.1', master_port=1", "START SLAVE SQL_THREAD")
    try:
        with pytest.raises(OptionError, match="log_slave_updates is OFF, and has to be ON"):
            await watched.source.lead()
    finally:
        await watched.write("STOP SLAVE", "RESET SLAVE ALL")
    assert await watched.source.lead()


async def test_a_log_that_leaves_the_database_out_is_refused() -> None:
    """Nothing would be seen."""
    if (binaries := private_mariadb.find_binaries()) is None:
        missing("no mariadbd and mariadb-install-db")
    with private_mariadb.started(
        binaries, **private_mariadb.BINLOG, binlog_do_db="shop", binlog_ignore_db="depot"
    ) as url:
        async with opened(url) as database, database.engine.begin() as connection:
            for name in ("shop", "depot", "office"):
                await connection.exec_driver_sql(f"CREATE DATABASE {name}")
        for name in ("depot", "office", "shop"):
            async with opened(url.set(database=name)) as database:
                source = source_of(database.engine)
                if name == "shop":
                    assert await source.lead()
                else:
                    with pytest.raises(OptionError, match=f"the log leaves {name} out: correct binlog_do_db"):
                        await source.lead()
                await source.close()


@binlog
@pytest.mark.parametrize("right", ["REPLICATION SLAVE", "BINLOG MONITOR"])
async def test_a_right_that_is_missing_is_named(watched: Watched, right: str) -> None:
    """Either of the two."""
    await watched.write(
        "CREATE OR REPLACE USER watcher@127.0.0.1",
        "GRANT SELECT ON *.* TO watcher@127.0.0.1",
        f"GRANT {right} ON *.* TO watcher@127.0.0.1",
    )
    lacking = "REPLICATION CLIENT" if right == "REPLICATION SLAVE" else "REPLICATION SLAVE"
    async with databases.opened(watched.database.engine.url.set(username="watcher", host="127.0.0.1")) as database:
        with pytest.raises(OptionError, match=f"lacks a right: GRANT {lacking}"):
            await source_of(database.engine).lead()


@binlog
async def test_truncate_and_definitions_are_any_row(watched: Watched) -> None:
    """Those of other databases are none of ours."""
    await watched.install()
    await watched.write("TRUNCATE users")
    assert await watched.changes() == {"users": None}
    await watched.write("ALTER TABLE orgs ADD COLUMN age INTEGER")
    assert await watched.changes() == {"orgs": None}
    await watched.write("SET STATEMENT lock_wait_timeout = 5 FOR TRUNCATE users")
    assert await watched.changes() == {"users": None}
    await watched.write("CREATE DATABASE IF NOT EXISTS besides", "CREATE TABLE besides.users (id INTEGER)")
    await watched.write("INSERT INTO besides.users VALUES (1)", "TRUNCATE besides.users", "DROP TABLE besides.users")
    assert await watched.changes() == {}
    await watched.write("SET SESSION binlog_format = 'STATEMENT'", "UPDATE orgs SET name = 'x' WHERE id = 1")
    assert await watched.changes() == {"None": None}
    for written in ("ANALYZE UPDATE", "SET STATEMENT max_statement_time = 9 FOR UPDATE"):
        await watched.write("SET SESSION binlog_format = 'STATEMENT'", f"{written} orgs SET name = 'y' WHERE id = 1")
        assert await watched.changes() == {"None": None}


@binlog
@pytest.mark.parametrize(
    ("statement", "table"),
    [
        ("# a comment\nTRUNCATE TABLE users", "users"),
        ("-- isn't in a string\nTRUNCATE users", "users"),
        ("CREATE /* a comment */ OR REPLACE TABLE users(id INTEGER)", "users"),
        ("DROP TABLE IF EXISTS users, odd", "None"),
        ("ALTER TABLE IF EXISTS users ADD COLUMN age INTEGER", "users"),
        ("TRUNCATE `it``s`", "it`s"),
        ("TRUNCATE euro€", "euro€"),
        ("TRUNCATE a$b", "a$b"),
    ],
)
async def test_statements_of_any_spelling_are_understood(watched: Watched, statement: str, table: str) -> None:
    """With comments, a condition, or a name of other letters than those of words."""
    names = ("odd", "`it``s`", "euro€", "a$b")
    await watched.write("SET foreign_key_checks = 0", *(f"CREATE TABLE {name} (id INTEGER)" for name in names))
    await watched.install()
    await watched.write(statement)
    assert await watched.changes() == {table: None}


@pytest.mark.parametrize("action", ["EXCHANGE PARTITION few WITH TABLE other", "CONVERT TABLE other TO PARTITION few"])
def test_a_partition_that_is_exchanged_changes_two_tables(action: str) -> None:
    """The statement begins with the name of one."""
    log, found = Log.__new__(Log), Found()
    log._database = "shop"
    log._take_statement(f"ALTER TABLE parts {action}", "shop", found)
    assert found.everything


@each_binlog
async def test_a_purged_position_is_lost(watched: Watched) -> None:
    """The changes behind it are unknown, so everything is invalidated."""
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1", "FLUSH BINARY LOGS")
    async with watched.database.engine.connect() as connection:
        last = (await _written(connection))[0]

        async def purged() -> bool:
            await connection.execute(text(f"PURGE BINARY LOGS TO '{last}'"))  # not while a reader has not left yet
            return len((await connection.execute(text("SHOW BINARY LOGS"))).all()) == 1

        await until(purged)
    await watched.write("UPDATE users SET bio = 'y' WHERE id = 2")
    assert "purged" in (await watched.poll())[0].lost
    await watched.write("UPDATE users SET bio = 'z' WHERE id = 2")
    assert (await watched.changes())["users"]["id"] == {"2"}


@each_binlog
async def test_a_log_of_another_server_is_lost(watched: Watched) -> None:
    """As after a failover: a file of the same name holds other changes."""
    await watched.install()
    way, server, *place = str(watched.position).split(" ")
    watched.position = " ".join([way, f"x{server}", *place])
    assert "another one" in (await watched.poll())[0].lost


@each_binlog
async def test_the_next_file_of_a_log_is_read_on(watched: Watched) -> None:
    """It has begun at another time than the one before."""
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    await watched.changes()
    begun = str(watched.position).rpartition(" ")[2]
    async with watched.database.engine.connect() as connection:

        async def is_later() -> bool:
            return bool(await connection.scalar(text(f"SELECT unix_timestamp() > {begun}")))

        await until(is_later)
    for number in ("2", "3"):
        await watched.write("FLUSH BINARY LOGS", f"UPDATE users SET bio = 'x' WHERE id = {number}")
        assert (await watched.changes())["users"]["id"] == {number}
        await watched.source.close()
        await until(watched.source.lead)
    assert watched.lost == []


@binlog
async def test_a_log_that_has_begun_anew_is_lost(watched: Watched) -> None:
    """As of a server that was restored from files: the file and the offset are there, and another history before."""
    await watched.install()

    async def place_now() -> tuple[str, int]:
        async with watched.database.engine.connect() as connection:
            found = await _written(connection)
        return str(found[0]), int(found[1])

    async def is_settled() -> bool:  # the server writes into a new file when it has no need of the one before
        async with watched.database.engine.connect() as connection:
            events = (await connection.execute(text(f"SHOW BINLOG EVENTS IN '{(await place_now())[0]}'"))).all()
        return ("Binlog_checkpoint", (await place_now())[0]) in {(row[2], row[5]) for row in events}

    async def written_in_a_new_file(bio: str) -> tuple[str, int]:
        await watched.write("UPDATE users SET bio = '0' WHERE id = 1", "FLUSH BINARY LOGS")
        await until(is_settled)
        await watched.write(f"UPDATE users SET bio = '{bio}' WHERE id = 1")
        return await place_now()

    place = await written_in_a_new_file("1")
    assert (await watched.changes())["users"]["id"] == {"1"}
    *_, file, offset, begun = str(watched.position).split(" ")
    assert (file, int(offset)) == place
    await watched.source.close()
    async with watched.database.engine.connect() as connection:

        async def is_reset() -> bool:
            await connection.execute(text("RESET MASTER"))  # not while a reader has not left yet
            return True

        async def is_later() -> bool:  # the time of a file has no fractions
            return bool(await connection.scalar(text(f"SELECT unix_timestamp() > {begun}")))

        await until(is_reset)
        await until(is_later)
    found = await written_in_a_new_file("2")
    while found[0] != file:
        found = await written_in_a_new_file("3")
    assert found == place
    await watched.write("UPDATE users SET bio = '4' WHERE id = 1")
    await until(watched.source.lead)
    assert "another one" in (await watched.poll())[0].lost
    await watched.write("UPDATE users SET bio = 'z' WHERE id = 2")
    assert (await watched.changes())["users"]["id"] == {"2"}


async def test_a_change_is_reported_when_it_is_visible() -> None:
    """Its COMMIT is in the log, and waits for a replica that there is not: readers still see the old row."""
    if (binaries := private_mariadb.find_binaries()) is None:
        missing("no mariadbd and mariadb-install-db")
    waits = {"rpl_semi_sync_master_wait_point": "AFTER_SYNC", "rpl_semi_sync_master_timeout": "600000"}
    with private_mariadb.started(binaries, **private_mariadb.BINLOG, **waits) as url:
        await databases.execute(url, "CREATE DATABASE shop")
        async with databases.opened(url.set(database="shop")) as database:
            watched = Watched(database, source_of(database.engine))
            await watched.write(*TABLES)
            await watched.install()
            async with database.engine.connect() as reader:
                await reader.execute(text("SET GLOBAL rpl_semi_sync_master_enabled = 1"))
                before = (await reader.execute(text("SHOW MASTER STATUS"))).one()
                writing = asyncio.create_task(watched.write("UPDATE users SET bio = 'new' WHERE id = 1"))

                async def written() -> bool:
                    return (await reader.execute(text("SHOW MASTER STATUS"))).one() != before

                await until(written)
                assert await reader.scalar(text("SELECT bio FROM users WHERE id = 1")) == ""
                assert await watched.changes() == {}
                await reader.execute(text("SET GLOBAL rpl_semi_sync_master_enabled = 0"))
                await writing
            assert (await watched.changes())["users"]["id"] == {"1"}
            await watched.source.close()


@each_binlog
async def test_values_that_the_log_lacks_are_unknown(watched: Watched) -> None:
    """With a row image of the key alone, any value of the other columns may have changed."""
    await watched.install()
    await watched.write("SET SESSION binlog_row_image = 'MINIMAL'", "UPDATE users SET bio = 'x' WHERE id = 1")
    found = await watched.changes()
    assert found == {"users": None}


@each_binlog
async def test_a_row_that_is_not_decoded_is_any_row(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library has no decoder for some types; the changes behind it are read."""
    row_event = pytest.importorskip("pymysqlreplication.row_event")
    await watched.install()

    def fail(self: object) -> None:
        raise NotImplementedError

    monkeypatch.setattr(row_event.UpdateRowsEvent, "_fetch_one_row", fail)
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1", "INSERT INTO orgs VALUES (3, 'three')")
    assert await watched.changes() == {"users": None, "orgs": {"id": {"3"}}}


@each_binlog
async def test_the_commit_of_a_prepared_transaction_invalidates_everything(watched: Watched) -> None:
    """Its rows were in the log when it was prepared: readers saw the old ones until now."""
    await watched.install()
    async with watched.database.engine.connect() as connection:
        session = await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in ("XA START 'x'", "UPDATE users SET bio = 'x' WHERE id = 1", "XA END 'x'", "XA PREPARE 'x'"):
            await session.exec_driver_sql(statement)
        await watched.changes()
        await session.exec_driver_sql("XA COMMIT 'x'")
    _, images = await watched.poll()
    assert [image.table for image in images] == [None]


@outbox
async def test_writes_that_fail_because_of_a_dropped_column_are_named(watched: Watched) -> None:
    """MariaDB checks the columns of a trigger before it runs; `install` makes triggers without it."""
    await watched.write("ALTER TABLE users ADD COLUMN team INT UNIQUE")
    await watched.install()
    await watched.write("ALTER TABLE users DROP COLUMN team")
    with pytest.raises(DBAPIError, match="team"):
        await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    notes = (await watched.source.status(watched.position)).notes
    assert [("users: each write fails" in note, "(team)" in note) for note in notes] == [(True, True)]
    await watched.source.run(await watched.source.install_sql())
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    assert (await watched.changes())["users"]["id"] == {"1"}
    assert (await watched.source.status(watched.position)).notes == []


@outbox
async def test_a_renamed_table_is_named_until_it_is_installed_again(watched: Watched) -> None:
    """Its triggers report the earlier name, and no trigger can find out the present one."""
    await watched.install()
    await watched.write("RENAME TABLE users TO members")
    assert "renamed" in (await watched.source.status(watched.position)).unwatched["members"]
    await watched.source.run(await watched.source.install_sql())
    await watched.write("UPDATE members SET bio = 'x' WHERE id = 1")
    assert set(await watched.changes()) == {"members"}
