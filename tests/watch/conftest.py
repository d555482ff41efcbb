"""A small schema on each database that can be watched, and a source of its changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fastrdb.keys import Image
from fastrdb.watch import ChangeSource, Poll, source_of
from tests.support.availability import missing
from tests.support.servers import mariadb as private_mariadb
from tests.support.servers.databases import Database, ServerDatabase, opened, server_database
from tests.support.waiting import until

TABLES = (
    "CREATE TABLE orgs (id INTEGER PRIMARY KEY, name VARCHAR(50))",
    (
        "CREATE TABLE users (id INTEGER PRIMARY KEY, org_id INTEGER NULL,"
        " email VARCHAR(50) UNIQUE, bio TEXT, FOREIGN KEY (org_id) REFERENCES orgs (id) ON DELETE CASCADE)"
    ),
    "INSERT INTO orgs VALUES (1, 'one'), (2, 'two')",
    "INSERT INTO users VALUES (1, 1, 'a@x', ''), (2, 1, 'b@x', ''), (3, 2, 'c@x', '')",
)


@dataclass
class Watched:
    """A database with its source; `changes` polls once and returns what was reported, by table."""

    database: Database
    source: ChangeSource
    position: str | None = None
    lost: list[str] = field(default_factory=list)

    def row(self, **columns: set[str]) -> dict[str, set[str]]:
        """Return what is reported of rows: on MariaDB no texts, whose collations may take different ones for equal."""
        return {name: texts for name, texts in columns.items() if name != "email" or self.has_texts}

    @property
    def has_texts(self) -> bool:
        """Return whether texts are reported."""
        return self.database.name in {"sqlite", "postgresql"}

    async def install(self, *tables: str, columns: Sequence[str] = ()) -> None:
        """Install the triggers, and begin."""
        await self.source.run(await self.source.install_sql(tables, columns))
        await until(self.source.lead)  # the server ends the session of an earlier leader after the client's close
        await self.changes()
        assert self.lost.pop() == "there is no position of an earlier poll"
        await self.source.mark(str(self.position))

    async def write(self, *statements: str) -> None:
        """Commit statements as a program does that has no cache."""
        async with self.database.engine.begin() as connection:
            if self.database.name == "sqlite":
                await connection.exec_driver_sql("PRAGMA foreign_keys = ON")
            for statement in statements:
                await connection.exec_driver_sql(statement)

    async def poll(self) -> tuple[Poll, list[Image]]:
        """Poll once from the last position, and return what was reported."""
        found: list[Image] = []

        async def note(images: Sequence[Image]) -> None:
            found.extend(images)

        poll = await self.source.poll(self.position, note)
        self.position = poll.position
        if poll.lost:
            self.lost.append(poll.lost)
        return poll, found

    async def changes(self) -> dict[str, Any]:
        """Poll once; return the columns of each table as plain sets, None for any row."""
        _, images = await self.poll()
        result: dict[str, Any] = {}
        for image in images:
            columns: Any = image.columns and {name: set(texts or ()) for name, texts in image.columns.items()}
            known = result.setdefault(str(image.table), columns)
            if known is not columns and known and columns:
                for name, texts in columns.items():
                    known.setdefault(name, set()).update(texts)
        return result


@pytest.fixture(scope="session")
def binlog_server() -> Iterator[ServerDatabase]:
    """Start a MariaDB with a binary log, once for all tests."""
    if (binaries := private_mariadb.find_binaries()) is None:
        missing("no mariadbd and mariadb-install-db")
    with (
        private_mariadb.started(binaries, **private_mariadb.BINLOG) as url,
        server_database("FASTRDB_TEST_NO_OTHER", [url]) as made,
    ):
        yield made


@pytest.fixture(scope="session")
def mysql_binlog_server() -> Iterator[ServerDatabase]:
    """Start a MySQL whose binary log can be read, once for all tests."""
    if (binary := private_mariadb.find_mysql()) is None:
        pytest.skip("no mysqld of MySQL, for a private server")
    settings = private_mariadb.BINLOG | private_mariadb.GTIDS
    with (
        private_mariadb.started_mysql(binary, **settings) as url,
        server_database("FASTRDB_TEST_NO_OTHER", [url]) as made,
    ):
        yield made


@pytest.fixture
async def mysql_binlog(mysql_binlog_server: ServerDatabase) -> AsyncIterator[Database]:
    """Return an empty database of the MySQL whose binary log can be read."""
    await mysql_binlog_server.clear()
    async with opened(mysql_binlog_server.url) as database:
        yield database


@pytest.fixture
async def binlog(binlog_server: ServerDatabase) -> AsyncIterator[Database]:
    """Return an empty database of the server with a binary log."""
    await binlog_server.clear()
    async with opened(binlog_server.url) as database:
        yield database


@pytest.fixture(params=["sqlite", "postgresql", "mariadb", "binlog", "mysql", "mysql_binlog"])
def watchable(request: pytest.FixtureRequest) -> Database:
    """Return an empty database of each kind. `mariadb` and `mysql` get an outbox: no log can be read there."""
    database: Database = request.getfixturevalue(request.param)
    return database


@pytest.fixture
async def watched(watchable: Database) -> AsyncIterator[Watched]:
    """Create the schema on a database, with nothing installed."""
    database, source = watchable, source_of(watchable.engine)
    made = Watched(database, source)
    await made.write(*TABLES)
    try:
        yield made
    finally:
        await source.close()
        await source.run(await source.uninstall_sql())
