"""What only MySQL has: a binary log that names transactions, and says which of them are in their commit."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from sqlalchemy import URL, text

from fastrdb import OptionError
from fastrdb.watch import source_of
from fastrdb.watch.binlog import _names, _written
from tests.support.servers import mariadb as private
from tests.support.servers.databases import execute, opened, statements
from tests.support.waiting import until
from tests.watch.conftest import Watched

binlog = pytest.mark.parametrize("watchable", ["mysql_binlog"], indirect=True)


def test_names_of_transactions_are_read() -> None:
    """As `gtid_owned` has them: with the session behind each number, and one server behind the other."""
    assert [*_names("")] == []
    assert [*_names("a-1:5#8:6#9,\nb-2:7#10")] == ["a-1:5", "a-1:6", "b-2:7"]


@pytest.mark.parametrize("watchable", ["mysql"], indirect=True)
async def test_a_server_as_it_is_by_default_gets_an_outbox(watched: Watched) -> None:
    """Its log is on, and lacks the names of columns and of transactions."""
    with pytest.raises(OptionError, match="binlog_row_metadata is MINIMAL, and has to be FULL"):
        await watched.source.lead()
    await watched.install()
    assert (await watched.source.status(watched.position)).way.startswith("outbox")


@binlog
@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("binlog_format", "MIXED", "binlog_format is MIXED, and has to be ROW"),
        ("binlog_row_metadata", "MINIMAL", "binlog_row_metadata is MINIMAL, and has to be FULL"),
        ("binlog_transaction_compression", "ON", "binlog_transaction_compression is ON, and has to be OFF"),
        ("gtid_mode", "ON_PERMISSIVE", "does not report .* MySQL with gtid_mode=ON"),
    ],
)
async def test_a_setting_that_permits_no_watching_is_named(watched: Watched, name: str, value: str, says: str) -> None:
    """With what it has to be, and the other way."""
    before = {"binlog_transaction_compression": "OFF", "gtid_mode": "ON", "binlog_format": "ROW"}.get(name, "FULL")
    await watched.write(f"SET GLOBAL {name} = '{value}'")
    try:
        with pytest.raises(OptionError, match=f"{says}.*fastrdb watch install"):
            await watched.source.lead()
    finally:
        await watched.write(f"SET GLOBAL {name} = '{before}'")
    assert await watched.source.lead()


@binlog
async def test_a_mode_that_is_changed_under_a_running_watcher_is_named(watched: Watched) -> None:
    """Without names, a poll could report a change before readers see it."""
    await watched.install()
    await watched.write("SET GLOBAL gtid_mode = 'ON_PERMISSIVE'", "UPDATE users SET bio = 'x' WHERE id = 1")
    try:
        with pytest.raises(OptionError, match="any more: gtid_mode is not ON"):
            await watched.poll()
    finally:
        await watched.write("SET GLOBAL gtid_mode = 'ON'")
    assert (await watched.changes())["users"]["id"] == {"1"}


@binlog
@pytest.mark.parametrize("right", ["REPLICATION SLAVE", "REPLICATION CLIENT"])
async def test_a_right_that_is_missing_is_named(watched: Watched, right: str) -> None:
    """Either of the two."""
    lacking = ({"REPLICATION SLAVE", "REPLICATION CLIENT"} - {right}).pop()
    await watched.write("DROP USER IF EXISTS watcher@localhost", "CREATE USER watcher@localhost")
    await watched.write("GRANT SELECT ON *.* TO watcher@localhost", f"GRANT {right} ON *.* TO watcher@localhost")
    async with opened(watched.database.engine.url.set(username="watcher")) as database:
        with pytest.raises(OptionError, match=f"lacks a right: GRANT {lacking}"):
            await source_of(database.engine).lead()
    await watched.write(f"GRANT {lacking} ON *.* TO watcher@localhost")
    async with opened(watched.database.engine.url.set(username="watcher")) as database:
        source = source_of(database.engine)
        assert await source.lead()
        await source.close()


@binlog
@pytest.mark.parametrize(
    ("statement", "found"),
    [
        ("TRUNCATE users", {"users": None}),
        ("ALTER TABLE orgs ADD COLUMN age INTEGER", {"orgs": None}),
        ("DROP TABLE users", {"users": None}),
        ("CREATE INDEX by_bio ON users (bio(9))", {}),
        ("CREATE USER IF NOT EXISTS someone", {}),
        ("RENAME TABLE users TO members", {"None": None}),
        ("CREATE TABLE copied AS SELECT id FROM orgs", {"copied": None}),
    ],
)
async def test_definitions_are_any_row(watched: Watched, statement: str, found: dict[str, object]) -> None:
    """MySQL writes them with a comment of its own behind, or as one transaction with the rows."""
    await watched.install()
    await watched.write(statement)
    assert await watched.changes() == found


@binlog
async def test_a_transaction_with_a_tag_in_its_name_is_read(watched: Watched) -> None:
    """The library does not decode the name, nor such names at the beginning of the next file; the rows are decoded."""
    await watched.install()
    async with watched.database.engine.connect() as connection:
        await connection.exec_driver_sql("SET gtid_next = 'AUTOMATIC:nightly'")
        await connection.exec_driver_sql("UPDATE users SET bio = 'x' WHERE id = 1")
        await connection.commit()
        await connection.exec_driver_sql("SET gtid_next = 'AUTOMATIC'")
    assert (await watched.changes())["users"]["id"] == {"1"}
    await watched.write("FLUSH BINARY LOGS", "UPDATE users SET bio = 'y' WHERE id = 2")
    assert (await watched.changes())["users"]["id"] == {"2"}


@binlog
async def test_a_part_of_a_json_is_any_change(watched: Watched) -> None:
    """Such an event is not decoded."""
    await watched.write("CREATE TABLE notes (id INTEGER PRIMARY KEY, body JSON)")
    await watched.write("""INSERT INTO notes VALUES (1, '{"a": "long enough to be changed in its place"}')""")
    await watched.install()
    async with watched.database.engine.connect() as connection:
        await connection.exec_driver_sql("SET SESSION binlog_row_value_options = 'PARTIAL_JSON'")
        await connection.exec_driver_sql("UPDATE notes SET body = json_set(body, '$.a', 'short')")
        await connection.commit()
    assert await watched.changes() == {"None": None}


@binlog
async def test_a_log_that_has_begun_anew_is_lost(watched: Watched) -> None:
    """As of a server that was restored from files: the file and the offset are there, and another history before."""
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    assert (await watched.changes())["users"]["id"] == {"1"}
    *_, file, offset, begun = str(watched.position).split(" ")
    await watched.source.close()
    async with watched.database.engine.connect() as connection:

        async def is_later() -> bool:  # the time of a file has no fractions
            return bool(await connection.scalar(text(f"SELECT unix_timestamp() > {begun}")))

        await until(is_later)
        await connection.execute(text("RESET BINARY LOGS AND GTIDS"))
        while (await _written(connection))[0] != file:
            await connection.execute(text("FLUSH BINARY LOGS"))
        while (await _written(connection))[1] <= int(offset):
            await watched.write("UPDATE users SET bio = concat(bio, 'y') WHERE id = 1")
    await until(watched.source.lead)
    assert "another one" in (await watched.poll())[0].lost
    await watched.write("UPDATE users SET bio = 'z' WHERE id = 2")
    assert (await watched.changes())["users"]["id"] == {"2"}


async def test_a_server_that_does_not_log_what_it_replicates_is_refused() -> None:
    """It may replicate later: only a start of the server changes the setting."""
    if (binary := private.find_mysql()) is None:
        pytest.skip("no mysqld of MySQL, for a private server")
    with private.started_mysql(binary, **private.BINLOG, **private.GTIDS, log_replica_updates="OFF") as url:
        async with opened(url.set(database="sys")) as database:
            with pytest.raises(OptionError, match="log_slave_updates is OFF, and has to be ON"):
                await source_of(database.engine).lead()


@asynccontextmanager
async def held_commits(watched: Watched) -> AsyncIterator[URL]:
    """Make each COMMIT wait for a replica that there is not, after it is in the log, while `_enabled` is on."""
    url, plugin = watched.database.engine.url, "rpl_semi_sync_source"
    await execute(url, f"INSTALL PLUGIN {plugin} SONAME 'semisync_source.so'")
    try:
        await execute(url, f"SET GLOBAL {plugin}_wait_point = 'AFTER_SYNC'", f"SET GLOBAL {plugin}_timeout = 600000")
        yield url
    finally:
        await watched.source.close()
        await execute(url, f"SET GLOBAL {plugin}_enabled = 0", f"UNINSTALL PLUGIN {plugin}")


async def held(watched: Watched, url: URL, *change: str) -> asyncio.Task[None]:
    """Execute statements, and return when the commit is in the log, with a task that ends with the commit."""
    await execute(url, "SET GLOBAL rpl_semi_sync_source_enabled = 1")
    async with watched.database.engine.connect() as connection:
        before = await _written(connection)
        writing = asyncio.create_task(execute(url, *change))

        async def written() -> bool:
            return bool(await _written(connection) != before)

        await until(written)
        assert await connection.scalar(text("SELECT bio FROM users WHERE id = 1")) == ""
    return writing


@binlog
@pytest.mark.parametrize("tag", ["", ":nightly"])
async def test_a_change_is_reported_when_it_is_visible(watched: Watched, tag: str) -> None:
    """Its COMMIT is in the log, and readers still see the old row."""
    async with held_commits(watched) as url:
        await watched.install()
        await watched.write("UPDATE users SET bio = 'old' WHERE id = 2")
        change = "UPDATE users SET bio = 'new' WHERE id = 1"
        writing = await held(watched, url, f"SET gtid_next = 'AUTOMATIC{tag}'", change)
        assert (await watched.changes())["users"]["id"] == {"2"}
        for _ in range(2):
            assert await watched.changes() == {}
        await execute(url, "SET GLOBAL rpl_semi_sync_source_enabled = 0")
        await writing
        assert (await watched.changes())["users"]["id"] == {"1"}
        assert await watched.changes() == {}
        assert watched.lost == []


@binlog
async def test_a_watcher_begins_behind_what_is_visible(watched: Watched) -> None:
    """Everything is invalidated at its first poll: not before readers see each change that no later poll reads."""
    async with held_commits(watched) as url:
        assert await watched.source.lead()
        writing = await held(watched, url, "UPDATE users SET bio = 'new' WHERE id = 1")
        with statements(watched.database) as sent:
            polling = asyncio.create_task(watched.poll())

            async def has_asked_again() -> bool:
                return len([each for each in sent if "gtid_owned" in each]) > 2

            await until(has_asked_again)
            assert not polling.done()
            await execute(url, "SET GLOBAL rpl_semi_sync_source_enabled = 0")
            assert (await polling)[0].lost
        async with watched.database.engine.connect() as reader:
            assert await reader.scalar(text("SELECT bio FROM users WHERE id = 1")) == "new"
        await writing
        assert await watched.changes() == {}
