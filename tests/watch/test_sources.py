"""What each database reports of writes: tables, and values before and after."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from sqlalchemy import text

from fastrdb import OptionError
from fastrdb.watch import mysql_outbox, postgres
from fastrdb.watch import sqlite as sqlite_source
from tests.support.waiting import until
from tests.watch.conftest import Watched

with_triggers = pytest.mark.parametrize("watchable", ["sqlite", "postgresql", "mariadb", "mysql"], indirect=True)


async def test_each_kind_of_write_is_reported_with_old_and_new_values(watched: Watched) -> None:
    """INSERT, UPDATE and DELETE name keys, foreign keys and unique columns, and no others."""
    await watched.install()
    await watched.write("INSERT INTO users VALUES (4, 2, 'd@x', 'long')")
    assert await watched.changes() == {"users": watched.row(id={"4"}, org_id={"2"}, email={"d@x"})}
    await watched.write("UPDATE users SET org_id = 1 WHERE id = 4")
    assert await watched.changes() == {"users": watched.row(id={"4"}, org_id={"1", "2"}, email={"d@x"})}
    await watched.write("DELETE FROM users WHERE id = 4")
    assert await watched.changes() == {"users": watched.row(id={"4"}, org_id={"1"}, email={"d@x"})}
    assert await watched.changes() == {}


async def test_a_cascade_is_reported(watched: Watched) -> None:
    """The rows that the database deletes by itself are reported like others."""
    await watched.install()
    await watched.write("DELETE FROM orgs WHERE id = 1")
    found = await watched.changes()
    assert found["orgs"] == {"id": {"1"}}
    if watched.has_texts:
        assert found["users"] == {"id": {"1", "2"}, "org_id": {"1"}, "email": {"a@x", "b@x"}}
    elif watched.database.engine.dialect.name == "mariadb":  # by the foreign key: the other columns are unknown
        assert found["users"] == {"org_id": {"1"}}
    else:  # the log of MySQL 9.6 has them
        assert found["users"]["org_id"] == {"1"}
        assert found["users"].get("id") in (None, {"1", "2"})


async def test_a_statement_that_changes_nothing_is_not_reported(watched: Watched) -> None:
    """Nor is a transaction that is rolled back."""
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 99")
    async with watched.database.engine.connect() as connection:
        await connection.exec_driver_sql("UPDATE users SET bio = 'x' WHERE id = 1")
        await connection.rollback()
    assert await watched.changes() == {}


async def test_many_rows_count_as_any_row(watched: Watched) -> None:
    """So a change of a million rows is one small message."""
    await watched.install()
    rows = ", ".join(f"({number}, 1, 'n{number}@x', '')" for number in range(100, 250))
    await watched.write(f"INSERT INTO users VALUES {rows}")
    assert await watched.changes() == {"users": None}


async def test_more_changes_than_a_page_are_all_reported(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    """One transaction may make more; its changes come in one poll, and none of them twice."""
    for module in (postgres, mysql_outbox, sqlite_source):
        monkeypatch.setattr(module, "_PAGE", 2)
    await watched.install()
    numbers = (1, 2, 3, 1, 2)
    await watched.write(*(f"UPDATE users SET bio = '{at}' WHERE id = {number}" for at, number in enumerate(numbers)))
    poll, images = await watched.poll()
    assert (poll.found, poll.lost) == (5, "")
    assert {text for each in images for text in (each.columns or {}).get("id") or ()} == {"1", "2", "3"}
    assert (await watched.poll())[0].found == 0


@with_triggers
async def test_a_position_of_an_earlier_version_is_lost(watched: Watched) -> None:
    """An installation may have made the outbox anew, and dropped what nothing had read."""
    await watched.source.run(await watched.source.install_sql())
    await until(watched.source.lead)
    watched.position = "outbox 735:740:"
    assert (await watched.poll())[0].lost


async def test_null_is_a_value(watched: Watched) -> None:
    """A row without an organisation is reached under NULL."""
    await watched.install()
    await watched.write("UPDATE users SET org_id = NULL WHERE id = 1")
    _, images = await watched.poll()
    reached = {name for image in images for name in image.names()}
    assert {"users:org_id=1\0", "users:org_id=%none\0", "users:id=1\0"} <= reached


async def test_a_change_that_was_not_taken_is_handed_over_again(watched: Watched) -> None:
    """The position moves when all changes of a poll are in Redis."""
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")

    async def refuse(images: object) -> None:
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await watched.source.poll(watched.position, refuse)
    assert (await watched.changes())["users"]["id"] == {"1"}


async def test_a_missing_table_is_named(watched: Watched) -> None:
    """And those with a name that is like it; without one, the first that there are."""
    with pytest.raises(OptionError, match=r"there is no table nope; there are: orgs, "):
        await watched.source.install_sql(["nope"])
    with pytest.raises(OptionError, match=r"there is no table userz; there are: users$"):
        await watched.source.install_sql(["userz"])


@with_triggers
async def test_without_installation_nobody_leads(watched: Watched) -> None:
    """The error names the command."""
    with pytest.raises(OptionError, match="fastrdb watch install"):
        await watched.source.lead()


@with_triggers
async def test_status_names_what_is_not_watched(watched: Watched) -> None:
    """Tables made later, columns that came into use later, and the number of changes that wait."""
    await watched.install("users")
    assert (await watched.source.status(None)).waiting == 0
    await watched.write("CREATE TABLE later (id INTEGER PRIMARY KEY)", "UPDATE users SET bio = 'x' WHERE id = 1")
    status = await watched.source.status(watched.position, ["users:bio", "users:id"])
    missing = ["users:bio"] if watched.has_texts else []  # MariaDB's texts are no tags
    assert (status.installed, status.watched, status.missing_columns) == (True, ["users"], missing)
    assert {name for name in status.unwatched if "." not in name} == {"orgs", "later"}
    assert status.waiting == 1
    assert not (await watched.source.status(None)).notes


@with_triggers
async def test_uninstalled_triggers_leave_nothing(watched: Watched) -> None:
    """Writes go on, and the status says that nothing is installed."""
    await watched.install()
    await watched.source.run(await watched.source.uninstall_sql())
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    assert not (await watched.source.status(None)).installed
    await watched.source.run(await watched.source.install_sql())


async def test_installing_again_changes_nothing(watched: Watched) -> None:
    """It may be a step of each deploy; changes that wait stay."""
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    await watched.source.run(await watched.source.install_sql())
    assert (await watched.changes())["users"]["id"] == {"1"}
    assert watched.lost == []


@with_triggers
async def test_a_table_made_anew_counts_as_changed_when_it_is_installed_again(watched: Watched) -> None:
    """Such as by a migration that copies it: a write between that and `install` has fired no trigger."""
    await watched.install()
    await watched.write(
        "CREATE TABLE copied (id INTEGER PRIMARY KEY, org_id INTEGER NULL, email VARCHAR(50) UNIQUE, bio TEXT)",
        "DROP TABLE users",
        "ALTER TABLE copied RENAME TO users",
        "INSERT INTO users VALUES (1, 1, 'a@x', '')",
    )
    await watched.source.run(await watched.source.install_sql())
    assert "users" in (await watched.source.status(watched.position)).watched
    assert await watched.changes() == {"users": None}
    await watched.source.run(await watched.source.install_sql())
    assert await watched.changes() == {}


sqlite = pytest.mark.parametrize("watchable", ["sqlite"], indirect=True)


@sqlite
@pytest.mark.parametrize("value", ["x'ff'", "9e999", "1.5", "CAST(x'ff00' AS TEXT)"])
async def test_no_write_fails_because_of_a_value_that_json_has_not(watched: Watched, value: str) -> None:
    """A column of SQLite takes any value, and the watcher reads what the triggers have made of it."""
    await watched.install()
    await watched.write(f"UPDATE users SET email = {value} WHERE id = 1")
    found = (await watched.changes())["users"]
    assert (found["id"], found["org_id"]) == ({"1"}, {"1"})


@sqlite
async def test_a_renamed_table_is_named_until_it_is_installed_again(watched: Watched) -> None:
    """Its triggers report the earlier name, and no trigger can find out the present one."""
    await watched.install()
    await watched.write("ALTER TABLE users RENAME TO members")
    assert "renamed" in (await watched.source.status(watched.position)).unwatched["members"]
    await watched.source.run(await watched.source.install_sql())
    await watched.write("UPDATE members SET bio = 'x' WHERE id = 1")
    assert set(await watched.changes()) == {"members"}
    assert (await watched.source.status(watched.position)).unwatched == {}


@sqlite
async def test_a_virtual_table_is_named_and_its_data_is_not(watched: Watched) -> None:
    """It can have no triggers; the tables that hold its data are nothing that a reader names."""
    async with watched.database.engine.connect() as connection:
        if not await connection.scalar(text("SELECT 1 FROM pragma_compile_options WHERE compile_options LIKE '%FTS5'")):
            pytest.skip("this SQLite has no fts5")
    await watched.write("CREATE VIRTUAL TABLE pages USING fts5 (body)")
    await watched.install()
    status = await watched.source.status(watched.position)
    assert (status.watched, status.unwatched) == (
        ["orgs", "users"],
        {"pages": "a virtual table, which has no triggers"},
    )


@pytest.mark.parametrize("watchable", ["sqlite"], indirect=True)
async def test_an_insert_that_replaces_reports_the_row_that_goes(watched: Watched) -> None:
    """INSERT OR REPLACE deletes rows with the same unique value, and fires no trigger for that."""
    await watched.install()
    await watched.write("INSERT OR REPLACE INTO users VALUES (9, 2, 'a@x', '')")
    assert (await watched.changes())["users"] == {"id": {"1", "9"}, "org_id": {"1", "2"}, "email": {"a@x"}}


@sqlite
async def test_a_file_in_the_place_of_another_is_noticed(watched: Watched) -> None:
    """A backup, say: all that was read of the old file may be other than in the new one."""
    await watched.install()
    path = Path(str(watched.database.engine.url.database))
    shutil.copy(path, path.with_suffix(".backup"))
    path.with_suffix(".backup").rename(path)
    assert await watched.changes() == {}
    assert watched.lost == ["another file is in its place"]
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    assert await watched.changes() == {"users": {"id": {"1"}, "email": {"a@x"}, "org_id": {"1"}}}
