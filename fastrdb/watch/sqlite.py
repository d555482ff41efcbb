"""Changes of a SQLite file: triggers for each row write them into a table, which is read by id.

SQLite has one writer at a time, so ids are in the order of the commits. `PRAGMA data_version` changes
with each commit of another connection, and is read in microseconds.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text

from fastrdb.errors import OptionError

from .source import COLUMNS_NAMED, ROWS_NAMED, ChangeSource, Images, Poll, Status, image

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_PAGE: Final = 1000
_KEPT: Final = 1000
"""The number of read changes that stay, for another watcher of the file that is behind."""
_OUTBOX: Final = (
    "CREATE TABLE IF NOT EXISTS fastrdb_outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, tbl TEXT NOT NULL, image TEXT)",
    # One row makes a number in sqlite_sequence, which stays when rows are deleted.
    "INSERT INTO fastrdb_outbox (tbl) SELECT '' WHERE NOT EXISTS (SELECT 1 FROM fastrdb_outbox)",
)
# A virtual table keeps its data in tables with these suffixes, which no query names.
_SHADOWS: Final = [
    "data",
    "idx",
    "content",
    "docsize",
    "config",
    "segments",
    "segdir",
    "stat",
    "node",
    "rowid",
    "parent",
]
_TABLES = text(f"""
SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name <> 'fastrdb_outbox'
AND sql NOT LIKE 'CREATE VIRTUAL%' AND name NOT IN (
    SELECT virtual.name || suffix.column1 FROM sqlite_master AS virtual,
    (VALUES {", ".join(f"('_{suffix}')" for suffix in _SHADOWS)}) AS suffix WHERE virtual.sql LIKE 'CREATE VIRTUAL%'
) ORDER BY name
""")
# A text may be invalid UTF-8, on which the driver would fail: so Python decodes it.
_EVENTS: Final = ("insert", "update", "delete", "replace")
_VIRTUAL = text("SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL%' ORDER BY name")
_TRIGGERS = text(
    "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'fastrdb\\_%' ESCAPE '\\'"
)
_NEW = text(
    "SELECT id, tbl, CAST(image AS BLOB) AS image FROM fastrdb_outbox WHERE id > :at AND id <= :last"
    " ORDER BY id LIMIT :page"
)
_AFFINITIES: Final = ("INT", "CHAR", "TEXT", "CLOB", "UUID", "BOOL", "DATE")


class SQLiteSource(ChangeSource):
    """The changes of one SQLite file, over an `AsyncEngine`. All writers must be on this machine."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        path = engine.url.database
        self.name = f"sqlite:{Path(path).absolute() if path and path[0] != ':' else path}"
        self._path = Path(path).absolute() if path and path[0] != ":" else None
        self._file: tuple[int, int] | None = None
        self._connection: AsyncConnection | None = None
        self._version: int | None = None

    async def install_sql(self, tables: Collection[str] = (), columns: Iterable[str] = ()) -> list[str]:
        """See `ChangeSource`."""
        wanted = {name.lower() for name in columns}
        async with self.engine.connect() as connection:
            found = list((await connection.scalars(_TABLES)).all())
            if missing := [name for name in tables if name not in found]:
                raise OptionError(f"watch: no table {', '.join(missing)}; there are: {', '.join(found)}")
            statements: list[str] = list(_OUTBOX)
            old = (await connection.execute(_TRIGGERS)).all()
            for table in tables or found:
                made = _trigger_sql(table, *await _columns(connection, table, wanted))
                # Drops triggers from before a rename of the table, which report its old name.
                names = {f"fastrdb_{event}_{table}" for event in _EVENTS}
                leftover = [row.name for row in old if row.tbl_name == table and row.name not in names]
                statements += [f"DROP TRIGGER {_quoted(name)}" for name in leftover]
                statements += made
        return statements

    async def uninstall_sql(self) -> list[str]:
        """See `ChangeSource`."""
        async with self.engine.connect() as connection:
            names = [row.name for row in await connection.execute(_TRIGGERS)]
            return [*(f"DROP TRIGGER {_quoted(name)}" for name in names), "DROP TABLE IF EXISTS fastrdb_outbox"]

    async def run(self, statements: Sequence[str]) -> None:
        """See `ChangeSource`."""
        async with self.engine.begin() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)

    async def lead(self, namespace: str = "") -> bool:
        """See `ChangeSource`. Every watcher of a file leads: an invalidation that is done twice does no harm."""
        if self._connection is None:
            self._file = self._identity()
            connection = await self.engine.connect()
            self._connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            if not await connection.scalar(text("SELECT 1 FROM sqlite_master WHERE name = 'fastrdb_outbox'")):
                await self.close()
                raise OptionError(f"watch: {self.name} has no fastrdb_outbox: run `fastrdb watch install` first")
        return True

    async def poll(self, position: str | None, images: Images) -> Poll:
        """See `ChangeSource`. Reads nothing if there was no commit since the last poll."""
        connection = self._connection
        if connection is None:
            raise OptionError("watch: lead() comes before poll()")
        if self._identity() != self._file:
            return await self._begin_anew()
        version = await connection.scalar(text("PRAGMA data_version"))
        if position is not None and version == self._version:
            return Poll(position)
        last = await connection.scalar(text("SELECT seq FROM sqlite_sequence WHERE name = 'fastrdb_outbox'"))
        now = str(last or 0)
        if position is None:
            self._version = version
            return Poll(now, lost="there is no position of an earlier poll")
        if int(now) < int(position):
            self._version = version
            return Poll(now, lost="the file is older than at the last poll")
        at, total = int(position), 0
        while True:
            rows = (await connection.execute(_NEW, {"at": at, "last": int(now), "page": _PAGE})).all()
            total += len(rows)
            if (rows[-1].id if rows else int(now)) != at + len(rows):  # ids have no gaps
                self._version = version
                return Poll(now, lost="the outbox was emptied, or another watcher has deleted what was not read here")
            if rows:
                at = rows[-1].id
                await images(_merged([(row.tbl, row.image) for row in rows if row.tbl]))
            if len(rows) < _PAGE:
                self._version = version
                return Poll(now, total)

    def _identity(self) -> tuple[int, int] | None:
        """Return device and number of the file, which another one in its place has not; None for one in memory."""
        try:
            found = None if self._path is None else self._path.stat()
        except FileNotFoundError:
            return None
        return None if found is None else (found.st_dev, found.st_ino)

    async def _begin_anew(self) -> Poll:
        """Read the file that has come in the place of the one that was open, from a backup, say."""
        await self.close()
        await self.engine.dispose()  # its other connections read the old file
        await self.lead()
        return replace(await self.poll(None, _nothing), lost="another file is in its place")

    async def clean(self, position: str) -> None:
        """See `ChangeSource`. Takes the write lock only where there is something to delete."""
        async with self.engine.connect() as connection:
            found = await connection.scalar(
                text("SELECT 1 FROM fastrdb_outbox WHERE id < :end LIMIT 1"), {"end": int(position) - 2 * _KEPT}
            )
        if found:
            async with self.engine.begin() as connection:
                await connection.execute(
                    text("DELETE FROM fastrdb_outbox WHERE id < :end"), {"end": int(position) - _KEPT}
                )

    async def status(self, position: str | None, columns: Iterable[str] = (), namespace: str = "") -> Status:
        """See `ChangeSource`."""
        async with self.engine.connect() as connection:
            if not await connection.scalar(text("SELECT 1 FROM sqlite_master WHERE name = 'fastrdb_outbox'")):
                return Status(notes=["nothing is installed: run `fastrdb watch install`"])
            triggers = {row.tbl_name: row.sql for row in await connection.execute(_TRIGGERS)}
            status = Status(installed=True, leader="none is needed: each watcher of a file reads all changes")
            for table in (await connection.scalars(_VIRTUAL)).all():
                status.unwatched[table] = "a virtual table, which has no triggers"
            for table in (await connection.scalars(_TABLES)).all():
                if table in triggers and f"SELECT {_literal(table)}," not in triggers[table]:
                    status.unwatched[table] = "renamed after `install`: run it again"
                elif table in triggers:
                    status.watched.append(table)
                else:
                    status.unwatched[table] = "no trigger: made after `install`, or left out"
            for each in columns:
                table, _, column = each.partition(":")
                if table in triggers and f"'{column}'" not in triggers[table]:
                    status.missing_columns.append(each)
            status.waiting = int(
                await connection.scalar(
                    text("SELECT count(*) FROM fastrdb_outbox WHERE id > :at"), {"at": int(position or 0)}
                )
                or 0
            )
        return status

    async def close(self) -> None:
        """See `ChangeSource`."""
        connection, self._connection, self._version = self._connection, None, None
        if connection is not None:
            await connection.close()


async def _columns(
    connection: AsyncConnection, table: str, wanted: Collection[str]
) -> tuple[list[str], list[list[str]]]:
    """Return the columns that triggers report, and the columns of each unique key."""
    rows = (await connection.execute(text(f"PRAGMA table_info({_quoted(table)})"))).all()
    kinds = {row.name: str(row.type).upper() for row in rows}
    primary = [row.name for row in sorted(rows, key=lambda row: row.pk) if row.pk]
    unique, indexed = [primary] if primary else [], set(primary)
    for index in (await connection.execute(text(f"PRAGMA index_list({_quoted(table)})"))).all():
        members = [row.name for row in await connection.execute(text(f"PRAGMA index_info({_quoted(index.name)})"))]
        indexed.update(members)
        if index.unique and None not in members and members not in unique:
            unique.append(members)
    foreign = await connection.execute(text(f"PRAGMA foreign_key_list({_quoted(table)})"))
    indexed.update(row[3] for row in foreign)
    chosen = [
        name
        for name, kind in kinds.items()
        if (name in indexed or f"{table}:{name}".lower() in wanted)
        and "DATETIME" not in kind
        and any(affinity in kind for affinity in _AFFINITIES)
    ]
    return chosen[:COLUMNS_NAMED], unique


def _trigger_sql(table: str, columns: Sequence[str], unique: Sequence[Sequence[str]]) -> list[str]:
    """Return the triggers of one table.

    INSERT OR REPLACE deletes rows without a trigger: the trigger before an INSERT records those with the same keys.
    A column of any type may hold a value of any kind. JSON has no blobs, and no write may fail. So a blob or a float is
    recorded as 0.5: a float has no text in tags, so the change counts as one of any value.
    """

    def record(*rows: str) -> str:
        def value(row: str, name: str) -> str:
            column = f"{row}.{_quoted(name)}"
            return f"CASE WHEN typeof({column}) IN ('blob', 'real') THEN 0.5 ELSE {column} END"

        values = [f"{_literal(name)}, json_array({', '.join(value(row, name) for row in rows)})" for name in columns]
        return f"INSERT INTO fastrdb_outbox (tbl, image) SELECT {_literal(table)}, json_object({', '.join(values)})"

    same = " OR ".join(
        "(" + " AND ".join(f"old.{_quoted(name)} = NEW.{_quoted(name)}" for name in key) + ")" for key in unique
    )
    statements = []
    for event, action in (
        ("insert", record("NEW")),
        ("update", record("OLD", "NEW")),
        ("delete", record("OLD")),
        *([("replace", f"{record('old')} FROM {_quoted(table)} AS old WHERE {same}")] if same else []),
    ):
        name = _quoted(f"fastrdb_{event}_{table}")
        when = "BEFORE INSERT" if event == "replace" else f"AFTER {event.upper()}"
        statements += [
            f"DROP TRIGGER IF EXISTS {name}",
            f"CREATE TRIGGER {name} {when} ON {_quoted(table)} FOR EACH ROW BEGIN {action}; END",
        ]
    return statements


def _merged(rows: Sequence[tuple[str, bytes | None]]) -> list[Any]:
    """Return one image for each table: a statement that changes many rows writes as many rows here."""
    found: dict[str, dict[str, list[Any]] | None] = {}
    counts: dict[str, int] = {}
    for table, raw in rows:
        counts[table] = counts.get(table, 0) + 1
        values = found.setdefault(table, {})
        if raw is None or counts[table] > ROWS_NAMED:
            found[table] = None
        elif values is not None:
            for column, each in json.loads(raw.decode(errors="replace")).items():
                values.setdefault(column, []).extend(each)
    return [image(table, values) for table, values in found.items()]


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


async def _nothing(_: object) -> None:
    """Take no changes."""
