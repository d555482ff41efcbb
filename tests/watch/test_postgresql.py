"""What only PostgreSQL has: slow transactions, partitions, TRUNCATE, several watchers, an outbox that is emptied."""

from __future__ import annotations

import asyncio
import contextlib
import os
import random
import shutil
import signal
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from functools import partial
from typing import Any

import pytest
from sqlalchemy import URL, event, text
from sqlalchemy.exc import DBAPIError

from fastrdb.inference import OWN_STATEMENTS
from fastrdb.keys import Image
from fastrdb.watch import postgres, source_of
from tests.support.availability import missing
from tests.support.servers import databases
from tests.support.servers import postgresql as private_postgresql
from tests.support.waiting import until
from tests.watch.conftest import TABLES, Watched

pytestmark = pytest.mark.parametrize("watchable", ["postgresql"], indirect=True)


async def test_a_long_snapshot_keeps_no_change_back(watched: Watched) -> None:
    """Rows that were read cannot be removed under it, and are not read again."""
    await watched.install()
    async with watched.database.engine.connect() as old:
        reader = await old.execution_options(isolation_level="REPEATABLE READ")
        assert await reader.scalar(text("SELECT count(*) FROM users")) == 3
        for number in ("1", "2", "3"):
            await watched.write(f"UPDATE users SET bio = 'x' WHERE id = {number}")
            assert (await watched.changes())["users"]["id"] == {number}
            await watched.source.clean(str(watched.position))


async def test_a_long_transaction_keeps_no_change_back(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own row waits. All other rows are read, counted no more, and deleted behind."""
    monkeypatch.setattr(postgres, "_MOST_WAITING", 3)
    await watched.install()
    async with watched.database.engine.connect() as slow, slow.begin():
        await slow.exec_driver_sql("UPDATE users SET bio = 'slow' WHERE id = 1")
        for round_ in range(3):
            await watched.write(*(f"UPDATE users SET bio = '{round_}' WHERE id = {number}" for number in (2, 3)))
            assert (await watched.changes())["users"]["id"] == {"2", "3"}
            assert (await watched.source.status(watched.position)).waiting == 0
            await watched.source.clean(str(watched.position))
            assert await _count(watched) == 0
    assert (await watched.changes())["users"]["id"] == {"1"}
    assert watched.lost == []


async def _count(watched: Watched) -> int:
    """Return the number of changes in the outbox."""
    async with watched.database.engine.connect() as connection:
        return int(await connection.scalar(text("SELECT count(*) FROM fastrdb.outbox WHERE tbl <> ''")) or 0)


async def test_a_commit_between_two_pages_is_reported_by_the_next_poll_alone(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All pages of a poll show what its first snapshot sees, and the position is that snapshot."""
    monkeypatch.setattr(postgres, "_PAGE", 2)
    await watched.install()
    async with watched.database.engine.connect() as slow, slow.begin():
        await slow.exec_driver_sql("INSERT INTO users VALUES (10, 1, 'slow@x', '')")
        await watched.write(*(f"INSERT INTO users VALUES ({n}, 1, '{n}@x', '')" for n in range(11, 16)))
        pages = list[set[str]]()

        async def note(images: Sequence[Image]) -> None:
            if not pages:
                await slow.commit()
                await watched.write("INSERT INTO users VALUES (16, 1, '16@x', '')")
            pages.append({number for each in images for number in (each.columns or {})["id"] or ()})

        poll = await watched.source.poll(watched.position, note)
    assert [len(page) for page in pages] == [2, 2, 1]  # the changes of a transaction have no order
    assert set[str]().union(*pages) == {"11", "12", "13", "14", "15"}
    watched.position = poll.position
    assert (await watched.changes())["users"]["id"] == {"10", "16"}


async def test_a_poll_is_one_statement_and_holds_no_snapshot_while_it_hands_over(watched: Watched) -> None:
    """Each further statement would wait for the server once more, and a snapshot would keep dead rows of all tables."""
    await watched.install()
    statements = list[str]()

    def on_statement(connection: Any, cursor: Any, statement: str, *_: object) -> None:
        if OWN_STATEMENTS in connection.get_execution_options():  # not what a cache asks for a statement of the test
            statements.append(statement)

    event.listen(watched.database.engine.sync_engine, "before_cursor_execute", on_statement)
    assert await watched.changes() == {}
    assert len(statements) == 1
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    statements.clear()
    states = list[str]()

    async def note(_: Sequence[Image]) -> None:
        async with watched.database.engine.connect() as other:
            states.append(str(await other.scalar(text(_STATE_OF_LEADER))))

    await watched.source.poll(watched.position, note)
    assert len(statements) == 1
    assert "found" in statements[0]
    assert states == ["idle, no snapshot"]


_STATE_OF_LEADER = """
SELECT a.state || CASE WHEN a.backend_xmin IS NULL THEN ', no snapshot' ELSE '' END
FROM pg_stat_activity a JOIN pg_locks l USING (pid) JOIN pg_database d ON d.oid = l.database
WHERE l.locktype = 'advisory' AND l.objid <> 0 AND d.datname = current_database() LIMIT 1
"""


async def test_no_poll_is_compiled_or_takes_memory_for_rows_that_are_not_there(watched: Watched) -> None:
    """The planner takes a walk over partitions for costly, and compiling takes longer than many polls."""
    await watched.install()
    source: Any = watched.source
    assert await source._connection.scalar(text("SHOW jit")) == "off"
    assert await source._connection.scalar(text("SHOW work_mem")) == "256kB"


async def test_changes_of_a_table_with_many_partitions_name_each_partition_once(watched: Watched) -> None:
    """A poll of 200 changes and as many partitions took 14 seconds, so a watcher fell behind for good."""
    await watched.write(
        "CREATE TABLE days (day INTEGER PRIMARY KEY) PARTITION BY RANGE (day)",
        *(f"CREATE TABLE days_{n} PARTITION OF days FOR VALUES FROM ({n}) TO ({n + 1})" for n in range(9)),
    )
    await watched.install()
    await watched.write(*(f"INSERT INTO days VALUES ({n})" for n in range(9)))
    _, images = await watched.poll()
    assert sorted(image.table or "" for image in images) == ["days"] * 9 + [f"days_{n}" for n in range(9)]
    assert {image.table for image in images if image.columns is None} == {f"days_{n}" for n in range(9)}


async def test_no_poll_makes_a_writer_fail_that_is_serializable(watched: Watched) -> None:
    """A poll that is SERIALIZABLE, too, sees the later of two commits and not the earlier: the server refuses that."""
    name = watched.database.engine.url.database
    await watched.write(f'ALTER DATABASE "{name}" SET default_transaction_isolation = serializable')
    await watched.database.engine.dispose()
    try:
        await watched.install()
        async with watched.database.engine.begin() as writer:
            assert await writer.scalar(text("SHOW transaction_isolation")) == "serializable"
            assert await writer.scalar(text("SELECT name FROM orgs WHERE id = 1")) == "one"
            await watched.write("UPDATE orgs SET name = 'first' WHERE id = 1")
            await watched.changes()
            await writer.exec_driver_sql("UPDATE users SET bio = 'x' WHERE id = 1")
    finally:
        await watched.write(f'ALTER DATABASE "{name}" RESET default_transaction_isolation')
    assert (await watched.changes())["users"]["id"] == {"1"}


async def test_the_number_that_a_writer_asks_for_is_of_its_own_row(watched: Watched) -> None:
    """Some programs ask for the last number of any sequence, and a sequence of the outbox would answer."""
    await watched.write("CREATE TABLE notes (id SERIAL PRIMARY KEY)")
    await watched.install()
    async with watched.database.engine.begin() as connection:
        for number in (1, 2):
            await connection.exec_driver_sql("INSERT INTO notes DEFAULT VALUES")
            assert await connection.scalar(text("SELECT lastval()")) == number
    assert (await watched.changes())["notes"]["id"] == {"1", "2"}


async def test_values_of_many_rows_are_not_collected(watched: Watched) -> None:
    """A statement may change millions of rows, and their values would take the server's memory."""
    await watched.install()
    notices: list[str] = []
    async with watched.database.engine.connect() as connection:
        driver: Any = (await connection.get_raw_connection()).driver_connection
        driver.add_log_listener(lambda _, message: notices.append(str(message)))
        await connection.exec_driver_sql("LOAD 'auto_explain'")
        for setting in ("log_min_duration = 0", "log_nested_statements = on", "log_level = notice"):
            await connection.exec_driver_sql(f"SET auto_explain.{setting}")
        for most, is_collected in ((64, True), (65, False)):
            await connection.exec_driver_sql(
                f"INSERT INTO users SELECT i + {most} * 100 FROM generate_series(1, {most}) i"
            )
            await connection.commit()
            assert any("jsonb_agg" in each for each in notices) is is_collected
            assert any("LIMIT 65" in each for each in notices)
            notices.clear()
        await connection.invalidate()


async def test_a_table_that_a_subscription_writes_to_is_named(watchable: object) -> None:
    """Logical replication fires triggers for rows alone. A trigger of the owner's may write into the outbox."""
    if (binaries := private_postgresql.find_binaries()) is None:
        missing("no initdb and pg_ctl")
    with private_postgresql.started(binaries, wal_level="logical") as url:
        async with databases.opened(url) as database, databases.opened(url.set(database="template1")) as publisher:
            await execute(
                publisher, *TABLES[:1], "INSERT INTO orgs VALUES (1, 'one')", "CREATE PUBLICATION p FOR TABLE orgs"
            )
            await execute(publisher, "SELECT pg_create_logical_replication_slot('s', 'pgoutput')")
            watched = Watched(database, source_of(database.engine))
            await watched.write(*TABLES[:1])
            await watched.install()
            place = f"host=127.0.0.1 port={url.port} user=postgres dbname=template1"
            await execute(
                database, f"CREATE SUBSCRIPTION s CONNECTION '{place}' PUBLICATION p WITH (create_slot = false)"
            )
            assert "subscription" in (await watched.source.status(watched.position)).unwatched["orgs"]
            await watched.write(
                "CREATE FUNCTION applied() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN INSERT INTO fastrdb.outbox (tbl) VALUES (TG_TABLE_NAME); RETURN NULL; END $$",
                "CREATE TRIGGER applied AFTER INSERT OR UPDATE ON orgs FOR EACH ROW EXECUTE FUNCTION applied()",
                "ALTER TABLE orgs ENABLE REPLICA TRIGGER applied",
            )
            assert (await watched.source.status(watched.position)).watched == ["orgs"]
            await execute(publisher, "UPDATE orgs SET name = 'new'")
            await until(lambda: is_reported(watched, "orgs"))
            await watched.source.close()
            await execute(database, "ALTER SUBSCRIPTION s DISABLE", "ALTER SUBSCRIPTION s SET (slot_name = NONE)")
            await execute(database, "DROP SUBSCRIPTION s")


async def is_reported(watched: Watched, table: str) -> bool:
    """Return whether a poll has found changes of a table."""
    return table in await watched.changes()


async def test_the_mark_is_found_without_walking_over_the_changes(watched: Watched) -> None:
    """A poll would become slower with each change that waits, or that is dead under an old snapshot."""
    await watched.install()
    async with watched.database.engine.connect() as connection:
        await connection.execute(text("SET LOCAL enable_seqscan = off"))
        plan = await connection.scalars(text("EXPLAIN SELECT image FROM fastrdb.outbox WHERE tbl = '' LIMIT 1"))
        assert "outbox_mark" in " ".join(plan)


async def test_truncate_is_any_row(watched: Watched) -> None:
    """It has a trigger of its own; CASCADE truncates the tables that refer to the first, and is reported for each."""
    await watched.install()
    await watched.write("TRUNCATE orgs CASCADE")
    assert await watched.changes() == {"orgs": None, "users": None}


async def test_a_partition_and_its_parent_stand_for_each_other(watched: Watched) -> None:
    """A statement fires the triggers of the table that it names; readers may have named the other one."""
    await watched.write(
        "CREATE TABLE events (id INTEGER, org_id INTEGER, PRIMARY KEY (id, org_id)) PARTITION BY LIST (org_id)",
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1)",
    )
    await watched.install()
    row = {"id": {"7"}, "org_id": {"1"}}
    await watched.write("INSERT INTO events VALUES (7, 1)")
    assert await watched.changes() == {"events": row, "events_1": row}
    await watched.write("DELETE FROM events_1 WHERE id = 7")
    assert await watched.changes() == {"events": row, "events_1": row}


async def test_no_write_fails_because_a_column_was_renamed_or_dropped(watched: Watched) -> None:
    """The triggers name columns: where one is gone, any row counts as changed until the next `install`."""
    await watched.write("ALTER TABLE users ADD COLUMN found INTEGER UNIQUE")  # a name that the function has too
    await watched.install()
    await watched.write("UPDATE users SET found = 7 WHERE id = 1")
    assert (await watched.changes())["users"]["found"] == {"%none", "7"}
    await watched.write("ALTER TABLE users RENAME COLUMN email TO address", "ALTER TABLE orgs DROP COLUMN name CASCADE")
    await watched.write("UPDATE users SET address = 'new@x' WHERE id = 1", "DELETE FROM users WHERE id = 2")
    assert await watched.changes() == {"users": None}
    notes = (await watched.source.status(watched.position)).notes
    assert [note for note in notes if note.startswith("users: a column was renamed")] == notes != []
    await watched.source.run(await watched.source.install_sql())
    await watched.write("UPDATE users SET address = 'newer@x' WHERE id = 1")
    assert (await watched.changes())["users"]["address"] == {"new@x", "newer@x"}
    assert (await watched.source.status(watched.position)).notes == []


async def test_a_renamed_table_is_reported_under_its_new_name(watched: Watched) -> None:
    """Also before the next `install`, and after it; TRUNCATE too."""
    await watched.install()
    await watched.write("ALTER TABLE users RENAME TO members", "UPDATE members SET bio = 'x' WHERE id = 1")
    assert (await watched.changes())["members"]["id"] == {"1"}
    await watched.write("ALTER TABLE members ADD COLUMN team INTEGER UNIQUE", "TRUNCATE members")
    assert await watched.changes() == {"members": None}
    await watched.source.run(await watched.source.install_sql())
    await watched.write("INSERT INTO members VALUES (4, 2, 'd@x', '', 9)")
    assert (await watched.changes())["members"]["team"] == {"9"}


async def test_a_partition_that_is_attached_later_stands_for_its_parent_at_once(watched: Watched) -> None:
    """And `status` says that it has no triggers of its own, which writes that name it would need."""
    await watched.write(
        "CREATE TABLE events (id INTEGER, org_id INTEGER, PRIMARY KEY (id, org_id)) PARTITION BY LIST (org_id)"
    )
    await watched.install()
    await watched.write(
        "CREATE TABLE events_1 PARTITION OF events FOR VALUES IN (1)", "INSERT INTO events VALUES (7, 1)"
    )
    row = {"id": {"7"}, "org_id": {"1"}}
    assert await watched.changes() == {"events": row, "events_1": row}
    assert "events_1" in (await watched.source.status(watched.position)).unwatched


@pytest.mark.parametrize("how", ["DISABLE TRIGGER fastrdb_update", "ENABLE REPLICA TRIGGER fastrdb_update"])
async def test_a_disabled_trigger_is_named_and_made_again(watched: Watched, how: str) -> None:
    """`status` says so, and `install` mends it."""
    await watched.install()
    await watched.write(f"ALTER TABLE users {how}")
    assert "disabled" in (await watched.source.status(watched.position)).unwatched["users"]
    await watched.source.run(await watched.source.install_sql())
    unwatched = (await watched.source.status(watched.position)).unwatched
    assert {name for name in unwatched if "." not in name} == set()  # other tests have schemas of their own
    assert await watched.changes() == {"users": None}  # what was written meanwhile
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    assert (await watched.changes())["users"]["id"] == {"1"}


async def test_a_role_that_fires_no_trigger_is_named(watched: Watched) -> None:
    """Such a role writes on a subscriber of logical replication, or restores a dump."""
    await watched.install()
    name = watched.database.engine.url.database
    await watched.write(f'ALTER DATABASE "{name}" SET session_replication_role = replica')
    try:
        notes = (await watched.source.status(watched.position)).notes
    finally:
        await watched.write(f'ALTER DATABASE "{name}" RESET session_replication_role')
    assert [note for note in notes if "session_replication_role" in note] == notes != []


KINDS = {
    "uuid": ("'11111111-2222-3333-4444-555555555555'", {"id": {"11111111-2222-3333-4444-555555555555"}}),
    "bigint": ("9007199254740993", {"id": {"9007199254740993"}}),
    "date": ("'2024-02-29'", {"id": {"2024-02-29"}}),
    "boolean": ("true", {"id": {"1"}}),
    "text": ("'O''Brien'", {"id": {"O'Brien"}}),
    "bytea": ("'x'", None),
    "numeric": ("1.50", None),
    "timestamptz": ("now()", None),
    "char(5)": ("'a'", None),
    "double precision": ("1.5", None),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_key_of_any_type_is_reported(watched: Watched, kind: str) -> None:
    """Types whose values have several texts count as any row."""
    literal, expected = KINDS[kind]
    await watched.write(f'CREATE TABLE "Odd one" (id {kind} PRIMARY KEY, v INTEGER)')
    await watched.install()
    await watched.write(f'INSERT INTO "Odd one" VALUES ({literal}, 1)')
    assert await watched.changes() == {"Odd one": expected}


HIDDEN_WRITES = {
    "MERGE": "MERGE INTO orgs USING (VALUES (1)) AS v (id) ON orgs.id = v.id WHEN MATCHED THEN UPDATE SET name = 'm'",
    "DO": "DO $$ BEGIN UPDATE orgs SET name = 'm' WHERE id = 1; END $$",
    "a writable CTE": "WITH w AS (UPDATE orgs SET name = 'm' WHERE id = 1 RETURNING id) SELECT * FROM w",
    "an upsert": "INSERT INTO orgs VALUES (1, 'm') ON CONFLICT (id) DO UPDATE SET name = excluded.name",
    "a view": "UPDATE org_view SET name = 'm' WHERE id = 1",
}


@pytest.mark.parametrize("kind", HIDDEN_WRITES)
async def test_every_kind_of_write_is_reported(watched: Watched, kind: str) -> None:
    """Statement triggers fire for each."""
    async with watched.database.engine.connect() as connection:
        version = int(await connection.scalar(text("SHOW server_version_num")) or 0)
    if kind == "MERGE" and version < 150_000:
        pytest.skip("PostgreSQL 15 is the first with MERGE")
    await watched.write("CREATE VIEW org_view AS SELECT * FROM orgs")
    await watched.install()
    await watched.write(HIDDEN_WRITES[kind])
    assert (await watched.changes())["orgs"]["id"] == {"1"}
    await watched.write("DROP VIEW org_view")


async def test_an_emptied_outbox_is_noticed_until_it_is_marked(watched: Watched) -> None:
    """A watcher that dies between the loss and the mark leaves the loss to the next one."""
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1", "TRUNCATE fastrdb.outbox")
    for _ in range(2):
        assert "emptied" in (await watched.poll())[0].lost
    assert any("emptied" in note for note in (await watched.source.status(watched.position)).notes)
    await watched.source.mark(str(watched.position))
    await watched.write("UPDATE users SET bio = 'y' WHERE id = 2")
    poll, images = await watched.poll()
    assert (poll.lost, [image.table for image in images]) == ("", ["users"])


async def test_a_position_of_a_newer_database_is_lost(watched: Watched) -> None:
    """As after a restore from a backup: the changes since then are not in the outbox."""
    await watched.install()
    watched.position = f"{str(watched.position).partition(' ')[0]} 99999999:99999999:"
    assert "older" in (await watched.poll())[0].lost


async def _dumped(url: URL, target: str) -> None:
    """Restore a dump of a database in another one."""
    dumping, restoring = shutil.which("pg_dump"), shutil.which("psql")
    if dumping is None or restoring is None:
        missing("no pg_dump and psql")
    await databases.execute(url.set(database="postgres"), f"CREATE DATABASE {target}")
    server = [f"--host={url.host}", f"--port={url.port}", f"--username={url.username}"]
    environment = os.environ | {"PGPASSWORD": url.password or ""}
    dump = await asyncio.create_subprocess_exec(
        dumping, *server, str(url.database), stdout=asyncio.subprocess.PIPE, env=environment
    )
    made, _ = await dump.communicate()
    restore = await asyncio.create_subprocess_exec(
        restoring, *server, "-qd", target, stdin=asyncio.subprocess.PIPE, env=environment
    )
    await restore.communicate(made)


async def _copied(url: URL, target: str) -> None:
    """Copy a database as a template."""
    await databases.execute(url.set(database="postgres"), f"CREATE DATABASE {target} TEMPLATE {url.database}")


@pytest.mark.parametrize("copy", [_dumped, _copied])
async def test_a_copy_of_the_database_on_the_same_server_is_another_one(watched: Watched, copy: Any) -> None:
    """Its transactions have numbers beyond the position, and what was read since the copy was made is not in there."""
    await watched.install()
    url = watched.database.engine.url
    target = f"{url.database}_copy"
    await watched.source.close()
    await watched.database.engine.dispose()
    await copy(url, target)
    try:
        async with databases.opened(url.set(database=target)) as database:
            copied = Watched(database, source_of(database.engine), watched.position)
            await copied.write("UPDATE users SET bio = 'x' WHERE id = 1")
            await until(copied.source.lead)
            notes = (await copied.source.status(watched.position)).notes
            assert any("another one" in note for note in notes)
            assert await copied.changes() == {}
            assert "another one" in copied.lost.pop()
            await copied.source.mark(str(copied.position))
            await copied.write("UPDATE users SET bio = 'y' WHERE id = 1")
            assert (await copied.changes())["users"]["id"] == {"1"}
            assert copied.lost == []
            await copied.source.close()
    finally:
        await databases.execute(url.set(database="postgres"), f"DROP DATABASE {target} WITH (FORCE)")


async def test_copied_files_of_a_server_are_older(watched: Watched) -> None:
    """Each watcher that begins to lead leaves a trace, which files from before have not."""
    await watched.install()
    async with watched.database.engine.connect() as connection:
        before = await connection.scalar(text("SELECT image ->> 0 FROM fastrdb.outbox WHERE tbl = ''"))
    await watched.source.close()
    await until(watched.source.lead)
    assert await watched.changes() == {}
    assert watched.lost == []
    await watched.write(f"UPDATE fastrdb.outbox SET image = to_jsonb('{before}'::text) WHERE tbl = ''")
    assert await watched.changes() == {}
    assert "older" in watched.lost.pop()


@pytest.mark.parametrize("writes", [240, pytest.param(10_000, marks=pytest.mark.slow)])
async def test_each_commit_is_reported_exactly_once(watched: Watched, writes: int) -> None:
    """Six writers whose transactions overlap and end in any order, some in a rollback; one is open all the time."""
    await watched.write("CREATE TABLE notes (id INTEGER PRIMARY KEY)")
    await watched.install()
    chance, committed, heard = random.Random(1), set[str](), Counter[str]()
    numbers = iter(range(writes))
    done = asyncio.Event()

    async def writer() -> None:
        async with watched.database.engine.connect() as connection:
            for number in numbers:
                transaction = await connection.begin()
                await connection.exec_driver_sql(f"INSERT INTO notes VALUES ({number})")
                for _ in range(chance.randrange(8)):
                    await asyncio.sleep(0)
                    await connection.exec_driver_sql("SELECT 1")
                if chance.random() < 0.1:
                    await transaction.rollback()
                else:
                    await transaction.commit()
                    committed.add(str(number))

    async def note(images: Sequence[Image]) -> None:
        for image in images:
            heard.update((image.columns or {})["id"] or ())

    async def poll() -> None:
        watched.position = (await watched.source.poll(watched.position, note)).position

    async def poller() -> None:
        while not done.is_set():
            await poll()
            await watched.source.clean(str(watched.position))

    async with watched.database.engine.connect() as slow, slow.begin():
        await slow.exec_driver_sql("INSERT INTO notes SELECT generate_series(1000000, 1000009)")
        polling = asyncio.create_task(poller())
        await asyncio.gather(*(writer() for _ in range(6)))
        done.set()
        await polling
    await poll()
    await poll()
    expected = committed | {str(number) for number in range(1_000_000, 1_000_010)}
    assert set(heard) == expected
    assert set(heard.values()) == {1}


@pytest.fixture
async def preparing(preparing_server: databases.ServerDatabase) -> AsyncIterator[databases.Database]:
    """Return an empty database of a server that has prepared transactions."""
    await preparing_server.clear()
    async with databases.opened(preparing_server.url) as database:
        yield database


async def execute(database: databases.Database, *statements: str) -> None:
    """Execute statements of which some begin and end transactions."""
    async with database.engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            await connection.exec_driver_sql(statement)


async def test_a_transaction_that_was_prepared_long_ago_is_reported_when_it_is_committed(
    watchable: object, preparing: databases.Database
) -> None:
    """Its row has been in the outbox since, and other rows were read and deleted meanwhile."""
    watched = Watched(preparing, source_of(preparing.engine))
    await watched.write(*TABLES)
    await watched.install()
    await execute(preparing, "BEGIN", "UPDATE users SET bio = 'late' WHERE id = 1", "PREPARE TRANSACTION 'late'")
    for number in range(3):
        await watched.write(f"UPDATE users SET bio = '{number}' WHERE id = 2")
        assert (await watched.changes())["users"]["id"] == {"2"}
        await watched.source.clean(str(watched.position))
    await watched.source.close()
    await until(watched.source.lead)
    await execute(preparing, "COMMIT PREPARED 'late'")
    assert (await watched.changes())["users"]["id"] == {"1"}
    assert watched.lost == []
    await watched.source.close()
    await watched.source.run(await watched.source.uninstall_sql())


async def test_nothing_is_installed_that_makes_commits_wait_or_keeps_wal(watched: Watched) -> None:
    """NOTIFY takes a lock that all commits share, and a slot without a reader fills the disk."""
    made = " ".join(await watched.source.install_sql()).lower()
    assert "unlogged" in made
    assert not any(word in made for word in ("notify", "replication_slot"))


async def _answers(database: databases.Database) -> bool:
    """Return whether a server takes connections again."""
    try:
        async with database.engine.connect():
            return True
    except (DBAPIError, OSError):
        return False


async def test_a_crash_of_the_server_loses_nothing_unnoticed(watchable: object) -> None:
    """kill -9 empties the unlogged outbox, and the mark goes with it."""
    if (binaries := private_postgresql.find_binaries()) is None:
        missing("no initdb and pg_ctl")
    with private_postgresql.started(binaries) as url:
        async with databases.opened(url) as database:
            watched = Watched(database, source_of(database.engine))
            await watched.write(*TABLES)
            await watched.install()
            await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
            await execute(database, "BEGIN", "DELETE FROM users WHERE id = 2", "PREPARE TRANSACTION 'outlives'")
            async with database.engine.connect() as victim:
                pid = await victim.scalar(text("SELECT pg_backend_pid()"))
                os.kill(pid, signal.SIGKILL)  # the server restarts all of its processes, as after a loss of power
                with contextlib.suppress(DBAPIError):
                    await victim.scalar(text("SELECT 1"))
            await watched.source.close()
            await until(partial(_answers, database))
            await until(watched.source.lead)
            assert "emptied" in (await watched.poll())[0].lost
            await watched.source.mark(str(watched.position))
            await watched.write("UPDATE users SET bio = 'y' WHERE id = 1")
            assert (await watched.changes())["users"]["id"] == {"1"}
            await execute(database, "COMMIT PREPARED 'outlives'")
            assert "prepared transaction has ended" in (await watched.poll())[0].lost
            await watched.source.mark(str(watched.position))
            await watched.write("UPDATE users SET bio = 'z' WHERE id = 1")
            assert (await watched.changes())["users"]["id"] == {"1"}
            assert len(watched.lost) == 2
            await watched.source.close()


async def test_a_column_of_any_name_stays_a_name(watched: Watched) -> None:
    """The role that installs may have more rights than the one that has named the column."""
    name = "a$fastrdb$; CREATE TABLE public.taken_over (); --"
    await watched.write(f'CREATE TABLE named ("{name}" INTEGER PRIMARY KEY)')
    await watched.install()
    async with watched.database.engine.connect() as connection:
        assert await connection.scalar(text("SELECT to_regclass('public.taken_over')")) is None
    await watched.write("INSERT INTO named VALUES (1)")
    assert await watched.changes() == {"named": {name: {"1"}}}


async def test_a_table_has_the_name_that_the_path_of_the_watcher_gives_it(watched: Watched) -> None:
    """The application has the path of the watcher, and `install` may have run under another one."""
    await watched.write("CREATE SCHEMA apart", "CREATE TABLE apart.days (id INTEGER PRIMARY KEY)")
    settings = {"server_settings": {"search_path": "apart"}}
    try:
        await watched.source.run(await watched.source.install_sql(["apart.days"]))
        async with databases.opened(watched.database.engine.url, connect_args=settings) as database:
            apart = Watched(database, source_of(database.engine))
            await apart.install("days")
            await watched.source.run(await watched.source.install_sql(["apart.days"]))
            await apart.write("INSERT INTO days VALUES (1)")
            assert (await apart.changes())["days"] == {"id": {"1"}}
            await apart.source.close()
    finally:
        await watched.write("DROP SCHEMA apart CASCADE")


async def test_a_table_of_a_later_part_of_the_path_has_its_name_alone(watched: Watched) -> None:
    """Readers name it without its schema, and so do the triggers and what is known of partitions."""
    settings = {"server_settings": {"search_path": "apart, public"}}
    async with databases.opened(watched.database.engine.url, connect_args=settings) as database:
        apart = Watched(database, source_of(database.engine))
        await apart.write(
            "CREATE SCHEMA apart",
            "CREATE TABLE apart.days (id INTEGER, day INTEGER) PARTITION BY RANGE (day)",
            "CREATE TABLE public.days_1 PARTITION OF apart.days FOR VALUES FROM (0) TO (10)",
        )
        try:
            await apart.install("users", "apart.days", "public.days_1")
            await apart.write("UPDATE users SET bio = 'x' WHERE id = 1", "INSERT INTO days VALUES (1, 1)")
            assert (await apart.changes()).keys() == {"users", "days", "days_1"}
        finally:
            await apart.source.close()
            await apart.write("DROP SCHEMA apart CASCADE")
