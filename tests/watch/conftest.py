"""A small schema on each database that can be watched, and a source of its changes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from fastrdb.keys import Image
from fastrdb.watch import ChangeSource, Poll, source_of
from tests.support.servers.databases import Database

TABLES = (
    "CREATE TABLE orgs (id INTEGER PRIMARY KEY, name VARCHAR(50))",
    (
        "CREATE TABLE users (id INTEGER PRIMARY KEY, org_id INTEGER REFERENCES orgs (id) ON DELETE CASCADE,"
        " email VARCHAR(50) UNIQUE, bio TEXT)"
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

    async def install(self, *tables: str) -> None:
        """Install the triggers, and begin."""
        await self.source.run(await self.source.install_sql(tables))
        assert await self.source.lead()
        await self.changes()
        assert self.lost.pop() == "there is no position of an earlier poll"

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


@pytest.fixture(params=["sqlite", "postgresql"])
def watchable(request: pytest.FixtureRequest) -> Database:
    """Return an empty database of each kind."""
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
