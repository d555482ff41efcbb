"""Databases as people run them: each kind of server at each isolation level, and what a transaction means there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, event, text

from tests.support.servers import databases
from tests.support.servers.databases import Database

Server = Literal["sqlite", "postgresql", "mariadb"]
Sees = Literal["statement", "transaction", "locks"]
Savepoints = Literal["kept", "commits", "none"]


@dataclass(frozen=True)
class Place:
    """A server and a level, and what follows from them for readers and writers.

    `sees`: what a transaction that has read already sees of a later commit: each *statement* what is committed by
    then, or the whole *transaction* what was there at its start, or nothing can be committed, because it *locks*.
    `savepoints`: whether what is released in one waits for COMMIT (*kept*), or *commits*.
    """

    server: Server
    level: str | None = None
    journal: Literal["DELETE", "WAL"] = "DELETE"
    begins: bool = False  # SQLAlchemy's recipe for SQLite: BEGIN is sent at the start of each transaction
    sees: Sees = "statement"
    savepoints: Savepoints = "kept"

    @property
    def name(self) -> str:
        """The name in a test's id."""
        how = [self.journal, *(["BEGIN"] if self.begins else [])] if self.server == "sqlite" else []
        return " ".join([self.server, *how, *([self.level] if self.level else [])])

    @property
    def autocommits(self) -> bool:
        """Return True if each statement commits by itself."""
        return self.level == "AUTOCOMMIT"


#                             server        level                  sees           savepoints
PLACES = [
    Place("postgresql", "READ COMMITTED", sees="statement", savepoints="kept"),
    Place("postgresql", "REPEATABLE READ", sees="transaction", savepoints="kept"),
    Place("postgresql", "SERIALIZABLE", sees="transaction", savepoints="kept"),
    Place("mariadb", "REPEATABLE READ", sees="transaction", savepoints="kept"),
    Place("mariadb", "READ COMMITTED", sees="statement", savepoints="kept"),
    Place("sqlite", journal="DELETE", sees="statement", savepoints="commits"),
    Place("sqlite", journal="WAL", sees="statement", savepoints="commits"),
    Place("sqlite", journal="DELETE", begins=True, sees="locks", savepoints="kept"),
    Place("sqlite", journal="WAL", begins=True, sees="transaction", savepoints="kept"),
    Place("postgresql", "AUTOCOMMIT", sees="statement", savepoints="none"),
    Place("mariadb", "AUTOCOMMIT", sees="statement", savepoints="none"),
    Place("sqlite", "AUTOCOMMIT", sees="statement", savepoints="commits"),
]
BY_NAME = {place.name: place for place in PLACES}


@asynccontextmanager
async def opened(place: Place, url: Any, **options: Any) -> AsyncIterator[Database]:
    """Open the database at `url`, which is empty, as it is run in `place`."""
    if place.level is not None:
        options["isolation_level"] = place.level
    async with databases.opened(url, **options) as database:
        if place.server == "sqlite":
            async with database.engine.connect() as connection:
                await connection.execute(text(f"PRAGMA journal_mode={place.journal}"))
            await database.engine.dispose()  # this connection begins as it likes
        if place.begins:
            _send_begin(database)
        yield database


def _send_begin(database: Database) -> None:
    """Send BEGIN, as SQLAlchemy's documentation advises for real transactions and savepoints of SQLite."""

    @event.listens_for(database.engine.sync_engine, "connect")
    def connect(dbapi_connection: Any, record: object) -> None:
        dbapi_connection.isolation_level = None

    @event.listens_for(database.engine.sync_engine, "begin")
    def begin(connection: Connection) -> None:
        connection.exec_driver_sql("BEGIN")
