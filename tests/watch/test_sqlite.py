"""What only SQLite has: a file that is replaced by a copy, rows that REPLACE deletes unseen, and virtual tables."""

from __future__ import annotations

from pathlib import Path
from sqlite3 import connect
from typing import Any

import pytest
from sqlalchemy import text

from fastrdb.watch import sqlite
from tests.watch.conftest import Watched

pytestmark = pytest.mark.parametrize("watchable", ["sqlite"], indirect=True)


def copied(source: Path, target: Path) -> None:
    """Copy a database into a file that is there, as a restore does: the file stays the same one."""
    with connect(source) as one, connect(target) as other:
        one.backup(other)
    one.close()
    other.close()


async def test_a_backup_that_was_written_to_since_is_another_history(watched: Watched) -> None:
    """Its changes have numbers beyond the position, and the rows between would be skipped."""
    await watched.install()
    path = Path(str(watched.database.engine.url.database))
    copied(path, path.with_suffix(".backup"))
    await watched.write("UPDATE users SET bio = 'a' WHERE id = 1", "UPDATE users SET bio = 'b' WHERE id = 2")
    await watched.changes()
    await watched.source.close()
    await watched.database.engine.dispose()
    copied(path.with_suffix(".backup"), path)
    await watched.write(*(f"UPDATE users SET bio = '{number}' WHERE id = 3" for number in range(5)))
    await watched.source.lead()
    assert await watched.changes() == {}
    assert "another one" in watched.lost.pop()
    await watched.write("UPDATE users SET bio = 'c' WHERE id = 1")
    assert (await watched.changes())["users"]["id"] == {"1"}
    assert watched.lost == []


async def test_an_older_file_is_lost(watched: Watched) -> None:
    """The changes of the position are not in a backup."""
    await watched.install()
    path = Path(str(watched.database.engine.url.database))
    copied(path, path.with_suffix(".backup"))
    await watched.write("UPDATE users SET bio = 'a' WHERE id = 1")
    await watched.changes()
    copied(path.with_suffix(".backup"), path)
    assert await watched.changes() == {}
    assert len(watched.lost) == 1


async def test_another_file_is_noticed_that_came_while_no_watcher_ran(watched: Watched) -> None:
    """Entries may have been loaded from what was written before, which no position has."""
    await watched.install()
    path = Path(str(watched.database.engine.url.database))
    copied(path, path.with_suffix(".backup"))
    await watched.source.close()
    await watched.database.engine.dispose()
    path.with_suffix(".backup").rename(path)
    await watched.source.lead()
    assert await watched.changes() == {}
    assert "another one" in watched.lost.pop()


async def test_triggers_that_are_right_are_left_alone(watched: Watched) -> None:
    """Each change of the schema would make writers wait, and a thousand tables have five triggers each."""

    async def version() -> Any:
        async with watched.database.engine.connect() as connection:
            return await connection.scalar(text("PRAGMA schema_version"))

    await watched.install()
    before = await version()
    await watched.source.run(await watched.source.install_sql())
    assert await version() == before
    await watched.write("DROP TRIGGER fastrdb_insert_users")
    await watched.source.run(await watched.source.install_sql())
    assert await version() == before + 2


async def test_an_outbox_that_was_made_anew_is_another_one(watched: Watched) -> None:
    """Between `uninstall` and `install` changes were not recorded, and the numbers begin anew."""
    await watched.install()
    await watched.source.run(await watched.source.uninstall_sql())
    await watched.write("UPDATE users SET bio = 'unseen' WHERE id = 1")
    await watched.source.run(await watched.source.install_sql())
    await watched.write(*(f"UPDATE users SET bio = '{number}' WHERE id = 2" for number in range(5)))
    assert await watched.changes() == {}
    assert "another one" in watched.lost.pop()


async def test_an_emptied_outbox_is_marked_again(watched: Watched) -> None:
    """A position is a row of the outbox, so one is made."""
    await watched.install()
    await watched.write("DELETE FROM fastrdb_outbox")
    assert await watched.changes() == {}
    assert "emptied" in watched.lost.pop()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    assert (await watched.changes())["users"]["id"] == {"1"}
    assert watched.lost == []


async def test_rows_of_triggers_that_report_other_columns_are_apart(watched: Watched) -> None:
    """Before an `install` the values of a column are unknown, and the known ones of a later row do not stand for it."""
    await watched.write("ALTER TABLE users ADD COLUMN team INTEGER", "UPDATE users SET team = id")
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    await watched.source.run(await watched.source.install_sql(columns=["users:team"]))
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 2")
    _, images = await watched.poll()
    assert any(image.hits("users:team=1\0") for image in images)
    assert any(image.hits("users:team=2\0") for image in images)
    assert not any(image.hits("users:id=3\0") for image in images)


async def _has_fts5(watched: Watched) -> None:
    async with watched.database.engine.connect() as connection:
        if not await connection.scalar(text("SELECT 1 FROM pragma_compile_options WHERE compile_options LIKE '%FTS5'")):
            pytest.skip("this SQLite has no fts5")


async def test_a_table_that_is_named_like_one_of_a_virtual_table_is_watched(watched: Watched) -> None:
    """The catalog says which tables hold the data of a virtual one; a name says nothing."""
    await _has_fts5(watched)
    await watched.write(
        "CREATE VIRTUAL TABLE page USING fts5 (body, tokenize = 'porter')",
        "CREATE TABLE page_stat (id INTEGER PRIMARY KEY)",
        "CREATE TABLE page_parent (id INTEGER PRIMARY KEY)",
        'CREATE TABLE "text_content" (id INTEGER PRIMARY KEY, body TEXT)',
        "CREATE VIRTUAL TABLE text USING fts5 (body, content = 'text_content')",
    )
    await watched.install()
    status = await watched.source.status(watched.position)
    assert status.watched == ["orgs", "page_parent", "page_stat", "text_content", "users"]
    assert set(status.unwatched) == {"page", "text"}
    await watched.write("INSERT INTO page_stat VALUES (1)", "INSERT INTO text_content VALUES (2, '')")
    assert await watched.changes() == {"page_stat": {"id": {"1"}}, "text_content": {"id": {"2"}}}


REPLACED = {
    "an index on an expression": (
        "CREATE UNIQUE INDEX extra ON users (lower(email))",
        "INSERT OR REPLACE INTO users VALUES (9, 2, 'A@X', '')",
        "UPDATE OR REPLACE users SET email = 'A@X' WHERE id = 2",
    ),
    "an index with a collation": (
        "CREATE UNIQUE INDEX extra ON users (email COLLATE NOCASE)",
        "INSERT OR REPLACE INTO users VALUES (9, 2, 'A@X', '')",
        "UPDATE OR REPLACE users SET email = 'A@X' WHERE id = 2",
    ),
    "an index on some rows": (
        "CREATE UNIQUE INDEX extra ON users (bio) WHERE bio <> ''",
        "INSERT OR REPLACE INTO users VALUES (9, 2, 'd@x', 'rare')",
        "UPDATE OR REPLACE users SET bio = 'rare' WHERE id = 2",
    ),
    "a generated column": (
        "ALTER TABLE users ADD COLUMN folded TEXT GENERATED ALWAYS AS (lower(email))",
        "CREATE UNIQUE INDEX extra ON users (folded)",
        "INSERT OR REPLACE INTO users (id, email) VALUES (9, 'A@X')",
        "UPDATE OR REPLACE users SET email = 'A@X' WHERE id = 2",
    ),
    "a value by default": (
        "CREATE TABLE flags (id INTEGER PRIMARY KEY, users TEXT NOT NULL DEFAULT 'a' UNIQUE)",
        "INSERT INTO flags VALUES (1, 'a'), (2, 'b')",
        "INSERT OR REPLACE INTO flags (id, users) VALUES (9, NULL)",
        "UPDATE OR REPLACE flags SET users = NULL WHERE id = 2",
    ),
    "a primary key": (
        "UPDATE OR REPLACE users SET id = 1 WHERE id = 2",
        "UPDATE OR REPLACE users SET id = 1 WHERE id = 3",
    ),
}


@pytest.mark.parametrize("how", REPLACED)
@pytest.mark.parametrize("which", [-2, -1], ids=["INSERT", "UPDATE"])
async def test_the_row_that_is_replaced_is_reported(watched: Watched, how: str, which: int) -> None:
    """REPLACE deletes rows without a trigger, by any unique index."""
    *before, _, _ = REPLACED[how]
    await watched.write("UPDATE users SET bio = 'rare' WHERE id = 1", *before)
    await watched.install()
    await watched.write(REPLACED[how][which])
    table = "flags" if "flags" in REPLACED[how][which] else "users"
    async with watched.database.engine.connect() as connection:
        left = await connection.scalar(text(f"SELECT count(*) FROM {table} WHERE id = 1"))
    assert left == (1 if how == "a primary key" else 0)
    _, images = await watched.poll()
    assert any(image.hits(f"{table}:id=1\0") for image in images)


async def test_an_update_of_other_columns_names_its_rows_alone(watched: Watched) -> None:
    """Only a statement that sets a column of a unique key may replace another row."""
    await watched.write("CREATE UNIQUE INDEX extra ON users (lower(email))")
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x', email = email WHERE id = 1", "DELETE FROM users WHERE id = 2")
    assert (await watched.changes())["users"]["id"] == {"1", "2"}


async def test_a_text_under_a_collation_of_the_column_is_not_named(watched: Watched) -> None:
    """The database takes `A@x` for `a@x`: a reader may have asked for either."""
    await watched.write("CREATE TABLE people (id INTEGER PRIMARY KEY, email TEXT COLLATE NOCASE UNIQUE)")
    await watched.install()
    await watched.write("INSERT INTO people VALUES (1, 'a@x')")
    _, images = await watched.poll()
    assert any(image.hits("people:email=A%40x\0") for image in images)
    assert not any(image.hits("people:id=2\0") for image in images)


async def test_a_long_text_is_any_value(watched: Watched) -> None:
    """A page of the outbox has to fit into memory."""
    await watched.install()
    await watched.write("UPDATE users SET email = hex(zeroblob(1000000)) WHERE id = 1")
    found = (await watched.changes())["users"]
    assert (found["id"], found["email"]) == ({"1"}, set())


async def test_a_writer_that_does_not_trust_the_schema_is_reported(watched: Watched) -> None:
    """SQLite refuses its functions for JSON in triggers there, and the write would fail."""
    await watched.install()
    with connect(str(watched.database.engine.url.database)) as writer:
        writer.execute("PRAGMA trusted_schema = OFF")
        writer.execute("UPDATE users SET email = 'it''s-\"ü\"' || char(10) WHERE id = 1")
    writer.close()
    assert await watched.changes() == {"users": {"id": {"1"}, "org_id": {"1"}, "email": {"a@x", 'it\'s-"ü"%0A'}}}


async def test_a_writer_that_has_the_lock_does_not_delay_the_watcher(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A later call deletes what was read."""
    monkeypatch.setattr(sqlite, "_KEPT", 1)
    await watched.install()
    await watched.write(*(f"UPDATE users SET bio = '{number}' WHERE id = 1" for number in range(5)))
    await watched.changes()
    count = text("SELECT count(*) FROM fastrdb_outbox")
    with connect(str(watched.database.engine.url.database), isolation_level=None) as writer:
        writer.execute("BEGIN IMMEDIATE")
        await watched.source.clean(str(watched.position))
        writer.execute("ROLLBACK")
    writer.close()
    async with watched.database.engine.connect() as connection:
        kept = [await connection.scalar(count)]
        await watched.source.clean(str(watched.position))
        kept.append(await connection.scalar(count))
    assert kept == [6, 2]


async def test_a_table_without_a_key_is_watched(watched: Watched) -> None:
    """REPLACE finds no row of such a table, although the table has an index."""
    await watched.write("CREATE TABLE members (org_id INTEGER, user_id INTEGER)", "CREATE INDEX i ON members (org_id)")
    await watched.install()
    await watched.write("INSERT OR REPLACE INTO members VALUES (1, 2)")
    assert await watched.changes() == {"members": {"org_id": {"1"}}}
