"""Changes of a SQLite file: triggers for each row write them into a table, which is read by id.

SQLite has one writer at a time, so ids are in the order of the commits. `PRAGMA data_version` changes
with each commit of another connection, and is read in microseconds.

A position is the last row that was read: its id, its random token, and the number of the file. A restored backup, or
an outbox that was made anew, has another token in that row, or another file.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import bindparam, text
from sqlalchemy.exc import OperationalError

from fastrdb.errors import OptionError
from fastrdb.keys import Image

from .source import (
    COLUMNS_NAMED,
    ROWS_NAMED,
    ChangeSource,
    Images,
    NotInstalledError,
    Poll,
    Status,
    image,
    loss,
    require_tables,
    turn_of,
)

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_PAGE: Final = 1000
_KEPT: Final = 1000
"""The number of read changes that stay, for another watcher of the file that is behind."""
_OUTBOX: Final = (
    "CREATE TABLE IF NOT EXISTS fastrdb_outbox (id INTEGER PRIMARY KEY AUTOINCREMENT, tbl TEXT NOT NULL, image TEXT,"
    " token TEXT NOT NULL DEFAULT (lower(hex(randomblob(8)))))"
)
_FIRST: Final = "INSERT INTO fastrdb_outbox (tbl) SELECT '' WHERE NOT EXISTS (SELECT 1 FROM fastrdb_outbox)"
"""A position is a row of the outbox, so there is always one."""
_INSTALLED = text("SELECT count(*), sum(name = 'token') FROM pragma_table_info('fastrdb_outbox')")
# The data of a virtual table is in shadow tables, which no query names. SQLite goes by their names, which a user's own
# table may have, such as one that an option (`content =`) names. FTS writes the names of its own in single quotes.
_TABLES = text("""
SELECT name FROM sqlite_master AS one WHERE type = 'table' AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'
AND name <> 'fastrdb_outbox' AND sql NOT LIKE 'CREATE VIRTUAL%' AND NOT (
    name IN :shadows AND (sql LIKE 'CREATE TABLE ''%' OR NOT EXISTS (
        SELECT 1 FROM sqlite_master AS virtual WHERE virtual.sql LIKE 'CREATE VIRTUAL%=%'
        AND substr(one.name, 1, length(virtual.name) + 1) = virtual.name || '_'
    ))
) ORDER BY name
""").bindparams(bindparam("shadows", expanding=True))
_VIRTUAL = text("SELECT name FROM sqlite_master WHERE sql LIKE 'CREATE VIRTUAL%' ORDER BY name")
_SQL = text("SELECT sql FROM sqlite_master WHERE name = :name")
_EVENTS: Final = {
    "insert": "AFTER INSERT",
    "update": "AFTER UPDATE",
    "delete": "AFTER DELETE",
    "replace": "BEFORE INSERT",
    "supersede": "BEFORE UPDATE",
}
_TRIGGERS = text(
    "SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger' AND name LIKE 'fastrdb\\_%' ESCAPE '\\'"
)
_STATE = text(
    "SELECT id, token, (SELECT token FROM fastrdb_outbox WHERE id = :at) AS known FROM fastrdb_outbox"
    " ORDER BY id DESC LIMIT 1"
)
_READ = text("SELECT 1 FROM fastrdb_outbox WHERE id < :end LIMIT 1")
_DELETE = text("DELETE FROM fastrdb_outbox WHERE id < :end")
# A text may be invalid UTF-8, on which the driver would fail: so Python decodes it.
_NEW = text(
    "SELECT id, tbl, CAST(image AS BLOB) AS image FROM fastrdb_outbox WHERE id > :at AND id <= :last"
    " ORDER BY id LIMIT :page"
)
_MOST_BYTES: Final = 1000
"""A longer text counts as any value, so that a page fits into memory."""
_NUMBERS: Final = ("INT", "BOOL")
_AFFINITIES: Final = (*_NUMBERS, "CHAR", "TEXT", "CLOB", "UUID", "DATE")


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
            found = await _tables(connection)
            require_tables(tables, found)
            there, has_token = (await connection.execute(_INSTALLED)).one()
            statements = [*(["DROP TABLE fastrdb_outbox"] if there and not has_token else []), _OUTBOX, _FIRST]
            old: dict[str, list[Any]] = {}
            for row in await connection.execute(_TRIGGERS):
                old.setdefault(row.tbl_name, []).append(row)
            for table in tables or found:
                made = _trigger_sql(table, *await _columns(connection, table, wanted))
                # Drops triggers from before a rename of the table, which report its old name.
                names = {f"fastrdb_{event}_{table}" for event in _EVENTS}
                leftover = [row.name for row in old.get(table, ()) if row.name not in names]
                statements += [f"DROP TRIGGER {_quoted(name)}" for name in leftover]
                statements += made
                reporting = any(f"SELECT {_literal(table)}," in row.sql for row in old.get(table, ()))
                if has_token and not reporting:  # any row may have changed without a trigger
                    statements.append(f"INSERT INTO fastrdb_outbox (tbl) VALUES ({_literal(table)})")
        return statements

    async def uninstall_sql(self) -> list[str]:
        """See `ChangeSource`."""
        async with self.engine.connect() as connection:
            names = [row.name for row in await connection.execute(_TRIGGERS)]
            return [*(f"DROP TRIGGER {_quoted(name)}" for name in names), "DROP TABLE IF EXISTS fastrdb_outbox"]

    async def run(self, statements: Sequence[str]) -> None:
        """See `ChangeSource`. A trigger that is right is left alone: writers would wait until it is made again."""
        async with self.engine.begin() as connection:
            wanted = set(statements)
            right = [row for row in await connection.execute(_TRIGGERS) if row.sql in wanted]
            done = {text for row in right for text in (row.sql, f"DROP TRIGGER IF EXISTS {_quoted(row.name)}")}
            for statement in statements:
                if statement not in done:
                    await connection.exec_driver_sql(statement)

    async def lead(self, namespace: str = "") -> bool:
        """See `ChangeSource`. Every watcher of a file leads: an invalidation that is done twice does no harm."""
        if self._connection is None:
            self._file = self._identity()
            connection = await self.engine.connect()
            self._connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            if not (await connection.execute(_INSTALLED)).one()[1]:
                await self.close()
                raise NotInstalledError(f"watch: {self.name} has no fastrdb_outbox: run `fastrdb watch install` first")
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
        at = turn_of(position or "")
        while (state := (await connection.execute(_STATE, {"at": at})).first()) is None:
            await connection.exec_driver_sql(_FIRST)
        file, total = self._file and self._file[1], 0
        now = f"{file}.{state.token}/{state.id}"
        lost = loss(position, None if state.known is None else f"{file}.{state.known}/{at}")
        while not lost:
            rows = (await connection.execute(_NEW, {"at": at, "last": state.id, "page": _PAGE})).all()
            total += len(rows)
            if (rows[-1].id if rows else state.id) != at + len(rows):  # ids have no gaps
                lost = "another watcher has deleted changes that were not read here"
            elif rows:
                at = rows[-1].id
                await images(_images([(row.tbl, row.image) for row in rows if row.tbl]))
            if len(rows) < _PAGE:
                break
        self._version = version
        return Poll(now, lost=lost) if lost else Poll(now, total)

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
        """See `ChangeSource`. Takes the write lock only where there is something to delete, and never waits for it."""
        last, connection = turn_of(position), self._connection
        if connection is None or not await connection.scalar(_READ, {"end": last - 2 * _KEPT}):
            return
        patience = await connection.scalar(text("PRAGMA busy_timeout"))
        await connection.exec_driver_sql("PRAGMA busy_timeout = 0")
        try:
            with suppress(OperationalError):  # a writer has the lock, maybe for long: a later call deletes
                await connection.execute(_DELETE, {"end": last - _KEPT})
        finally:
            await connection.exec_driver_sql(f"PRAGMA busy_timeout = {patience}")

    async def status(self, position: str | None, columns: Iterable[str] = (), namespace: str = "") -> Status:
        """See `ChangeSource`."""
        async with self.engine.connect() as connection:
            if not (await connection.execute(_INSTALLED)).one()[1]:
                return Status(notes=["nothing is installed: run `fastrdb watch install`"])
            triggers = {row.tbl_name: row.sql for row in await connection.execute(_TRIGGERS)}
            status = Status(
                installed=True, way="triggers and an outbox; each watcher of a file reads all, and none leads"
            )
            for table in (await connection.scalars(_VIRTUAL)).all():
                status.unwatched[table] = "a virtual table, which has no triggers"
            for table in await _tables(connection):
                if table in triggers and f"SELECT {_literal(table)}," not in triggers[table]:
                    status.unwatched[table] = "renamed after `install`: run it again"
                elif table in triggers:
                    status.watched.append(table)
                else:
                    status.unwatched[table] = "no trigger: made after `install`, or left out"
            for each in columns:
                table, _, column = each.partition(":")
                if table in triggers and _field(column) not in triggers[table]:
                    status.missing_columns.append(each)
            status.waiting = int(
                await connection.scalar(
                    text("SELECT count(*) FROM fastrdb_outbox WHERE id > :at AND tbl <> ''"),
                    {"at": turn_of(position or "")},
                )
                or 0
            )
        return status

    async def close(self) -> None:
        """See `ChangeSource`."""
        connection, self._connection, self._version = self._connection, None, None
        if connection is not None:
            await connection.close()


@dataclass(frozen=True, slots=True)
class _Key:
    """A unique key, by which REPLACE finds the rows that it deletes.

    Attributes:
        columns: those of the key, or of the expressions in it, each with its collation.
        is_expression: the key has an expression: any row may be deleted.
    """

    columns: Mapping[str, str]
    is_expression: bool = False

    @property
    def changed(self) -> str:
        """Return the condition that an UPDATE changes a column of the key."""
        sides = ((f"NEW.{_quoted(name)}", f"OLD.{_quoted(name)}", kind) for name, kind in self.columns.items())
        return "(" + " OR ".join(f"{new} IS NOT {old} COLLATE {_quoted(kind)}" for new, old, kind in sides) + ")"


async def _tables(connection: AsyncConnection) -> list[str]:
    """Return all tables that can have triggers, without those that hold the data of virtual ones."""
    listed = await connection.execute(text("PRAGMA main.table_list"))  # nothing before SQLite 3.37: all are returned
    shadows = [row.name for row in listed if row.type == "shadow"] if listed.returns_rows else []
    return list((await connection.scalars(_TABLES, {"shadows": shadows})).all())


async def _columns(
    connection: AsyncConnection, table: str, wanted: Collection[str]
) -> tuple[list[str], dict[str, str], list[_Key]]:
    """Return the columns that triggers report, the values that REPLACE stores for NULL, and the unique keys."""
    rows = (await connection.execute(text(f"PRAGMA table_xinfo({_quoted(table)})"))).all()
    kinds = {row.name: str(row.type).upper() for row in rows}
    defaults = {row.name: row.dflt_value for row in rows if row.notnull and row.dflt_value is not None}
    primary = {row.name: "BINARY" for row in rows if row.pk}
    keys, indexed, has_primary = list[_Key](), set(primary), not primary
    for index in (await connection.execute(text(f"PRAGMA index_list({_quoted(table)})"))).all():
        members = await connection.execute(text(f"PRAGMA index_xinfo({_quoted(index.name)})"))
        columns = {row.name: str(row.coll) for row in members.all() if row.key}
        indexed.update(columns.keys() & kinds)
        has_primary |= index.origin == "pk"
        if index.unique and None in columns:
            made = str(await connection.scalar(_SQL, {"name": index.name})).lower()
            keys.append(_Key({name: "BINARY" for name in kinds if name.lower() in made}, is_expression=True))
        elif index.unique:
            keys.append(_Key(columns))
    if not has_primary:  # an INTEGER PRIMARY KEY has no index
        keys.append(_Key(primary))
    foreign = await connection.execute(text(f"PRAGMA foreign_key_list({_quoted(table)})"))
    indexed.update(row[3] for row in foreign)
    # SQLite does not say which column has a collation, under which different texts are equal.
    collated = "COLLATE" in str(await connection.scalar(_SQL, {"name": table})).upper()
    chosen = [
        name
        for name, kind in kinds.items()
        if (name in indexed or f"{table}:{name}".lower() in wanted)
        and "DATETIME" not in kind
        and any(affinity in kind for affinity in (_NUMBERS if collated else _AFFINITIES))
    ]
    return chosen[:COLUMNS_NAMED], defaults, keys


def _trigger_sql(table: str, columns: Sequence[str], defaults: Mapping[str, str], keys: Sequence[_Key]) -> list[str]:
    """Return the triggers of one table.

    INSERT OR REPLACE and UPDATE OR REPLACE delete rows without a trigger: a trigger before the statement records those
    with the same keys.
    """

    def record(*rows: str) -> str:
        fields = both.join(
            f"{_field(name)} || {both.join(_recorded(row, name) for row in rows)} || ']'" for name in columns
        )
        return f"{begin}, '{{' || {fields or _literal('')} || '}}'"

    def same(name: str, kind: str) -> str:
        given = f"NEW.{_quoted(name)}"
        given = f"COALESCE({given}, ({defaults[name]}))" if name in defaults else given
        return f"other.{_quoted(name)} = {given} COLLATE {_quoted(kind)}"

    begin, both = f"INSERT INTO fastrdb_outbox (tbl, image) SELECT {_literal(table)}", " || ',' || "
    plain = [key for key in keys if not key.is_expression]
    found = " OR ".join(f"({' AND '.join(starmap(same, key.columns.items()))})" for key in plain)
    replaced = [f"{record('other')} FROM {_quoted(table)} AS other WHERE {found}"] if plain else []
    expressions = " OR ".join(key.changed for key in keys if key.is_expression)
    actions = {
        "insert": [record("NEW")],
        "update": [record("OLD", "NEW")],
        "delete": [record("OLD")],
        "replace": [f"{begin}, NULL"] if expressions else replaced,
        "supersede": [*replaced, *([f"{begin}, NULL WHERE {expressions}"] if expressions else [])],
    }
    statements = []
    for event, action in actions.items():
        name, moment = _quoted(f"fastrdb_{event}_{table}"), _EVENTS[event]
        when = f" WHEN {' OR '.join(key.changed for key in keys)}" if event == "supersede" else ""
        statements.append(f"DROP TRIGGER IF EXISTS {name}")
        if action:
            statements.append(
                f"CREATE TRIGGER {name} {moment} ON {_quoted(table)} FOR EACH ROW{when} BEGIN {'; '.join(action)}; END"
            )
    return statements


def _recorded(row: str, name: str) -> str:
    """Return the expression for a value in JSON. A column of any type may hold any value, and no write may fail.

    So a blob, a float or a long text is recorded as 0.5: a float has no text in tags, so the change counts as one of
    any value. SQLite's functions for JSON are refused in triggers where a writer has `trusted_schema=OFF`.
    """
    column = f"{row}.{_quoted(name)}"
    return (
        f"CASE WHEN {column} IS NULL THEN 'null' WHEN typeof({column}) = 'integer' THEN {column} WHEN typeof({column})"
        f" = 'text' AND length(CAST({column} AS BLOB)) <= {_MOST_BYTES} THEN '[\"' || hex({column}) || '\"]'"
        " ELSE 0.5 END"
    )


def _images(rows: Iterable[tuple[str, bytes | None]]) -> list[Image]:
    """Return one image for all rows of a table that report the same columns: each changed row is a row here."""
    found: dict[tuple[str, tuple[str, ...]], dict[str, list[Any]]] = {}
    counts: dict[str, int] = {}
    for table, raw in rows:
        counts[table] = ROWS_NAMED + 1 if raw is None else counts.get(table, 0) + 1
        reported: dict[str, list[Any]] = {} if raw is None else json.loads(raw.decode(errors="replace"))
        values = found.setdefault((table, tuple(reported)), {})
        for column, each in reported.items():
            values.setdefault(column, []).extend(map(_value, each))
    whole = [table for table, count in counts.items() if count > ROWS_NAMED]
    return [*map(Image, whole), *(image(table, each) for (table, _), each in found.items() if table not in whole)]


def _value(recorded: Any) -> Any:
    """Return a value as it was: a text is recorded as its bytes."""
    return bytes.fromhex(recorded[0]).decode(errors="replace") if isinstance(recorded, list) else recorded


def _field(column: str) -> str:
    """Return the text in front of the values of a column, as a literal."""
    return _literal(f"{json.dumps(column, ensure_ascii=False)}:[")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"


async def _nothing(_: object) -> None:
    """Take no changes."""
