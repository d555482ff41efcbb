"""The outbox of MariaDB: an identity that a restore changes, values that JSON has not, engines, and locks."""

from __future__ import annotations

from functools import partial

import pytest
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from fastrdb import OptionError
from fastrdb.watch import mysql_outbox
from fastrdb.watch import source as interface
from fastrdb.watch.mysql_tables import OUTBOX
from tests.support.waiting import until
from tests.watch.conftest import Watched

pytestmark = pytest.mark.parametrize("watchable", ["mariadb", "mysql"], indirect=True)


async def _made_again(watched: Watched, place: str) -> bool:
    """Make the outbox again with what is in it, as a restored dump does. Return whether it has another place now.

    The time of its creation has no fractions.
    """
    async with watched.database.engine.connect() as connection:
        marked = await connection.scalar(text("SELECT image FROM fastrdb_outbox WHERE id = -1"))
        await connection.exec_driver_sql("DROP TABLE fastrdb_outbox")
        await connection.exec_driver_sql(mysql_outbox._CREATED)
        await connection.exec_driver_sql(f"INSERT INTO fastrdb_outbox VALUES (-1, '', '', '{marked}')")
        await connection.commit()
        return str(await connection.scalar(mysql_outbox._PLACE, {"name": OUTBOX})) != place


async def test_an_outbox_from_a_dump_is_another_one(watched: Watched) -> None:
    """Entries may have been loaded since the dump from what no watcher has read."""
    await watched.install()
    async with watched.database.engine.connect() as connection:
        place = str(await connection.scalar(mysql_outbox._PLACE, {"name": OUTBOX}))
    await watched.source.close()
    await until(partial(_made_again, watched, place))
    await until(watched.source.lead)
    assert await watched.changes() == {}
    assert "another one" in watched.lost.pop()
    await watched.source.mark(str(watched.position))
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    assert (await watched.changes())["users"]["id"] == {"1"}
    assert watched.lost == []


async def test_an_older_outbox_is_noticed_while_a_watcher_runs(watched: Watched) -> None:
    """Each poll that takes something counts."""
    await watched.install()
    async with watched.database.engine.connect() as connection:
        before = await connection.scalar(text("SELECT image FROM fastrdb_outbox WHERE id = -1"))
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    await watched.changes()
    assert watched.lost == []
    await watched.write(f"UPDATE fastrdb_outbox SET image = '{before}' WHERE id = -1")
    assert "older" in (await watched.poll())[0].lost


async def test_no_write_fails_because_of_a_number_with_zeros_in_front(watched: Watched) -> None:
    """MariaDB writes such a number into JSON as it shows it, which is no JSON. MySQL writes the number."""
    await watched.write("CREATE TABLE codes (id INTEGER PRIMARY KEY, code INT(5) ZEROFILL UNIQUE)")
    await watched.install()
    await watched.write("INSERT INTO codes VALUES (1, 7)")
    assert await watched.changes() == {"codes": {"id": {"1"}}}
    await watched.write("ALTER TABLE codes MODIFY id INTEGER ZEROFILL", "INSERT INTO codes VALUES (2, 8)")
    is_mariadb = watched.database.engine.dialect.name == "mariadb"
    assert await watched.changes() == {"codes": None if is_mariadb else {"id": {"2"}}}


@pytest.mark.parametrize(
    ("stored", "named"),
    [("ABCDEF0123456789ABCDEF0123456789", {"abcdef01-2345-6789-abcd-ef0123456789"}), ("\uff10" * 32, set())],
    ids=["upper case", "other digits"],
)
async def test_a_uuid_is_named_however_its_digits_are_written(watched: Watched, stored: str, named: set[str]) -> None:
    """The collation takes letters of both cases for equal, and digits of other alphabets too."""
    await watched.write(
        "CREATE TABLE things (id INTEGER PRIMARY KEY, u CHAR(32) UNIQUE)"
        " CHARACTER SET utf8mb4 COLLATE utf8mb4_unicode_ci"
    )
    await watched.install()
    await watched.write(f"INSERT INTO things VALUES (1, '{stored}')")
    found = (await watched.changes())["things"]
    assert found.get("u", set()) == named


async def test_a_table_whose_engine_has_no_transactions_is_named(watched: Watched) -> None:
    """A rollback keeps its changes, and takes back what was reported of them."""
    await watched.write("CREATE TABLE notes (id INTEGER PRIMARY KEY) ENGINE=MyISAM")
    await watched.install()
    unwatched = (await watched.source.status(watched.position)).unwatched
    assert unwatched.keys() == {"notes"}
    assert "MyISAM" in unwatched["notes"]


async def test_a_lock_that_is_never_free_is_an_error(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """Writers wait behind a trigger that is being made, so each try is short, and the tries have an end."""
    monkeypatch.setattr(interface, "_TRIES", 2)
    statements = await watched.source.install_sql()
    async with watched.database.engine.connect() as writer, writer.begin():
        await writer.execute(text("UPDATE users SET bio = 'x' WHERE id = 1"))
        with pytest.raises(DBAPIError, match="Lock wait timeout"):
            await watched.source.run(statements)
    async with watched.database.engine.connect() as connection:
        assert await connection.scalar(text("SELECT @@lock_wait_timeout = @@global.lock_wait_timeout"))
    await watched.install()


WRITES = {
    "REPLACE": "REPLACE INTO users VALUES (9, 2, 'a@x', '')",
    "an upsert": "INSERT INTO users VALUES (9, 2, 'a@x', '') ON DUPLICATE KEY UPDATE bio = 'x'",
    "UPDATE IGNORE": "UPDATE IGNORE users SET bio = 'x' WHERE id = 1",
    "an update of two tables": "UPDATE users, orgs SET bio = 'x', name = 'x' WHERE users.id = 1 AND orgs.id = 1",
    "a delete from two tables": "DELETE users, orgs FROM users, orgs WHERE users.id = 1 AND orgs.id = 2",
}


@pytest.mark.parametrize("kind", WRITES)
async def test_every_kind_of_write_is_reported(watched: Watched, kind: str) -> None:
    """The triggers fire for each, for rows that are replaced too."""
    await watched.install()
    await watched.write(WRITES[kind])
    assert "1" in (await watched.changes())["users"]["id"]


@pytest.mark.parametrize(
    ("is_mariadb", "version", "says"),
    [(True, (10, 5, 9), "needs MariaDB 10.6 or later, and the server is 10.5.9"), (False, (8, 0, 28), "MySQL 8.0.29")],
)
async def test_a_server_that_is_too_old_is_refused(
    watched: Watched, monkeypatch: pytest.MonkeyPatch, is_mariadb: bool, version: tuple[int, ...], says: str
) -> None:
    """Before anything is made: half of an outbox would report no write."""
    await watched.write("SELECT 1")
    dialect = watched.database.engine.dialect
    monkeypatch.setattr(dialect, "is_mariadb", is_mariadb)
    monkeypatch.setattr(dialect, "server_version_info", version)
    with pytest.raises(OptionError, match=says):
        await watched.source.install_sql()
