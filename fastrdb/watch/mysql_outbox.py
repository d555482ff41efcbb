"""Changes of MariaDB and MySQL without a binary log: triggers for each row write them into a table.

A row's id is drawn before its transaction commits, so reading behind the last id would lose slow transactions. A poll
takes what is committed (`FOR UPDATE SKIP LOCKED`), and deletes it in the same transaction, which commits after Redis
has the changes. One row marks the outbox as whole. The mark has a number, which positions have too, beside the server
and the time at which the outbox was made. The mark also counts the polls that took something. So a position is never
taken for one of another outbox, a restored one, or of another namespace.

A foreign key changes rows without firing triggers: `Cascades` works these changes out. TRUNCATE fires no trigger and
is not seen.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import bindparam, text

from fastrdb.errors import OptionError

from .cascades import Cascades, Row
from .lead import Lead
from .mysql_tables import OUTBOX, columns_of, leader, lock_of, locked, quoted, tables_of, without_transactions
from .source import ChangeSource, Images, Poll, Status, execute, loss, require_tables, turn_of

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

    from fastrdb.inference import Verb

_LOCK: Final = "outbox"
_PAGE: Final = 1000
_MOST_WAITING: Final = 100_000
"""With more rows waiting, everything is invalidated at once."""
_UNKNOWN: Final = object()
_KINDS: Final[dict[str, Verb]] = {"i": "insert", "u": "update", "d": "delete"}
_CREATED: Final = (
    f"CREATE TABLE IF NOT EXISTS {OUTBOX} (id BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY, kind CHAR(1) NOT NULL,"
    " tbl VARCHAR(64) NOT NULL, image LONGTEXT) ENGINE=InnoDB DEFAULT CHARSET=utf8mb4"
    " COMMENT='Changes for fastrdb watch. The row with the id -1 marks it as whole.'"
)
_MARK: Final = f"INSERT IGNORE INTO {OUTBOX} (id, kind, tbl, image) VALUES (-1, '', '', '0')"
_ANY_ROW: Final = f"INSERT INTO {OUTBOX} (kind, tbl, image) VALUES ('i', {{}}, '')"
_MARKED = text(f"SELECT image FROM {OUTBOX} WHERE id = -1")
_COUNT = text(f"SELECT count(*) FROM (SELECT 1 FROM {OUTBOX} WHERE id > 0 LIMIT {_MOST_WAITING}) AS waiting")
_NEW = text(f"SELECT id, kind, tbl, image FROM {OUTBOX} WHERE id > 0 ORDER BY id LIMIT {_PAGE} FOR UPDATE SKIP LOCKED")
_DELETE = text(f"DELETE FROM {OUTBOX} WHERE id IN :ids").bindparams(bindparam("ids", expanding=True))
_COUNTED = text(f"UPDATE {OUTBOX} SET image = :image WHERE id = -1")
_MARK_AGAIN = text(f"REPLACE INTO {OUTBOX} (id, kind, tbl, image) VALUES (-1, '', '', :image)")
_PLACE = text(
    "SELECT concat_ws('-', @@hostname, @@port, @@server_id, unix_timestamp(create_time)) FROM"
    " information_schema.tables WHERE table_schema = database() AND table_name = :name"
)
_UUID: Final = re.compile(r"[0-9a-f]{32}|[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_DATE: Final = re.compile(r"\d{4}-\d\d-\d\d", re.ASCII)
_NAMED: Final = re.compile(r"(?:NEW|OLD)\.`((?:[^`]|``)+)`")
_COLUMNS = text(
    "SELECT table_name AS tbl, column_name AS name FROM information_schema.columns WHERE table_schema = database()"
)
_INSTALLED = text("SELECT 1 FROM information_schema.tables WHERE table_schema = database() AND table_name = :name")
_TRIGGERS = text(
    "SELECT trigger_name AS name, event_object_table AS tbl, action_statement AS body FROM information_schema.triggers"
    " WHERE trigger_schema = database() AND trigger_name LIKE 'fastrdb\\_%'"
)


def _require_version(dialect: Any) -> None:
    kind, least = ("MariaDB", (10, 6)) if dialect.is_mariadb else ("MySQL", (8, 0, 29))
    if tuple(found := dialect.server_version_info)[: len(least)] < least:
        version, needed = (".".join(map(str, each)) for each in (found, least))
        raise OptionError(f"watch: the outbox needs {kind} {needed} or later, and the server is {version}: upgrade it")


async def is_installed(connection: AsyncConnection) -> bool:
    """Return whether the database has an outbox."""
    return bool(await connection.scalar(_INSTALLED, {"name": OUTBOX}))


class MySQLOutbox(ChangeSource):
    """The outbox of one database, over an `AsyncEngine`. Made by `MySQLSource`."""

    def __init__(self, engine: AsyncEngine, name: str) -> None:
        self.engine, self.name = engine, name
        self._connection: AsyncConnection | None = None
        self._cascades = Cascades()
        self._lead: Lead | None = None
        self._place = ""

    async def install_sql(self, tables: Collection[str] = (), columns: Iterable[str] = ()) -> list[str]:
        """See `ChangeSource`. Needs CREATE and TRIGGER on the database.

        A trigger's name follows from what it does. It is made before an older one is dropped, so no write is lost.
        """
        async with self.engine.connect() as connection:
            _require_version(connection.dialect)
            found = await tables_of(connection)
            require_tables(tables, found)
            reported = await columns_of(connection, columns)
            old, was_there = (await connection.execute(_TRIGGERS)).all(), await is_installed(connection)
        statements = [_CREATED, _MARK]
        for table in tables or found:
            made = _trigger_sql(table, reported.get(table, ()))
            statements += made.values()
            reporting = [row for row in old if row.tbl == table and f"', {_literal(table)}, JSON_OBJECT" in row.body]
            if was_there and len(reporting) < len(made):  # any row may have changed without a trigger
                statements.append(_ANY_ROW.format(_literal(table)))
            statements += [
                f"DROP TRIGGER IF EXISTS {quoted(row.name)}" for row in old if row.tbl == table and row.name not in made
            ]
        return statements

    async def uninstall_sql(self) -> list[str]:
        """See `ChangeSource`."""
        async with self.engine.connect() as connection:
            names = [row.name for row in await connection.execute(_TRIGGERS)]
        return [*(f"DROP TRIGGER IF EXISTS {quoted(name)}" for name in names), f"DROP TABLE IF EXISTS {OUTBOX}"]

    async def run(self, statements: Sequence[str]) -> None:
        """See `ChangeSource`. Each statement commits by itself, and waits for a lock for a second only."""
        async with self.engine.begin() as connection:
            try:
                for statement in ("SET SESSION lock_wait_timeout = 1", *statements):
                    await execute(connection, statement)
            finally:
                await connection.exec_driver_sql("SET SESSION lock_wait_timeout = DEFAULT")

    async def lead(self, namespace: str = "") -> bool:
        """See `ChangeSource`. Reads in READ COMMITTED: gap locks would make writers wait."""
        if self._connection is None:
            connection = await self.engine.connect()
            self._connection = await connection.execution_options(isolation_level="READ COMMITTED")
        lead = self._lead = self._lead or Lead(self.name, namespace)
        async with self._connection.begin():
            self._place = str(await self._connection.scalar(_PLACE, {"name": OUTBOX}))
            return await lead.take(
                partial(locked, self._connection, lock_of(namespace)), partial(locked, self._connection, _LOCK)
            )

    async def poll(self, position: str | None, images: Images) -> Poll:
        """See `ChangeSource`. Deletes the rows of each page after passing them on, in one transaction."""
        connection = self._led()
        async with connection.begin():
            mark = _mark(self._place, await connection.scalar(_MARKED))
        if lost := loss(position, mark):
            return Poll(f"{self._place}.{secrets.token_hex(8)}/0", lost=lost)
        (name, _, _), count, total = str(mark).rpartition("/"), turn_of(str(mark)), 0
        while True:
            async with connection.begin():
                rows = (await connection.execute(_NEW)).all()
                if rows:
                    await images(await connection.run_sync(self._cascades.images, map(_row, rows)))
                    count += 1
                    await connection.execute(_DELETE, {"ids": [row.id for row in rows]})
                    await connection.execute(_COUNTED, {"image": _stored(f"{name}/{count}")})
            total += len(rows)
            if len(rows) < _PAGE:
                return Poll(f"{name}/{count}", total)

    def _led(self) -> AsyncConnection:
        if self._connection is None:
            raise OptionError("watch: lead() comes before poll()")
        return self._connection

    async def mark(self, position: str) -> None:
        """See `ChangeSource`."""
        connection = self._led()
        async with connection.begin():
            await connection.execute(_MARK_AGAIN, {"image": _stored(position)})

    async def clean(self, position: str) -> None:
        """See `ChangeSource`. Forgets foreign keys only: `poll` itself deletes what it has read."""
        self._cascades.forget()

    async def status(self, position: str | None, columns: Iterable[str] = (), namespace: str = "") -> Status:
        """See `ChangeSource`."""
        async with self.engine.connect() as connection:
            status = Status(installed=True, way="outbox, filled by a trigger for each row; TRUNCATE is not seen")
            bodies: dict[str, str] = {}
            for row in await connection.execute(_TRIGGERS):
                bodies[row.tbl] = bodies.get(row.tbl, "") + row.body
            reported: dict[str, set[str]] = {}
            status.unwatched |= await without_transactions(connection)
            for table in await tables_of(connection):
                if table in bodies and f"', {_literal(table)}, JSON_OBJECT" not in bodies[table]:
                    status.unwatched[table] = "renamed after `install`: run it again"
                elif table in bodies:
                    status.watched.append(table)
                    reported[table] = {word for word in bodies[table].split("'") if word}
                else:
                    status.unwatched[table] = "no trigger: made after `install`, left out, or hidden (right TRIGGER)"
            for table, names in (await columns_of(connection, columns)).items():
                lacking = set(names) - reported.get(table, set(names))
                asked = {name.lower() for name in columns}
                status.missing_columns += [
                    f"{table}:{name}" for name in names if name in lacking and f"{table}:{name}".lower() in asked
                ]
            for table, gone in (await _gone(connection)).items():
                status.notes.append(
                    f"{table}: each write fails, since a trigger names a column that is gone ({gone}): run"
                    " `fastrdb watch install`"
                )
            status.waiting = int(await connection.scalar(_COUNT) or 0)
            mark = _mark(await connection.scalar(_PLACE, {"name": OUTBOX}), await connection.scalar(_MARKED))
            if position and (lost := loss(position, mark)):
                status.notes.append(f"{lost}: the next poll invalidates everything")
            status.leader = await leader(connection, _LOCK)
        return status

    async def close(self) -> None:
        """See `ChangeSource`."""
        connection, self._connection, self._lead = self._connection, None, None
        if connection is not None:
            await connection.invalidate()  # the lock ends with the session, which a pool would keep
            await connection.close()


async def _gone(connection: AsyncConnection) -> dict[str, str]:
    """Return for each table a column that a trigger names and the table no longer has."""
    columns: dict[str, set[str]] = {}
    for row in await connection.execute(_COLUMNS):
        columns.setdefault(row.tbl, set()).add(row.name)
    found: dict[str, str] = {}
    for row in await connection.execute(_TRIGGERS):
        named = {name.replace("``", "`") for name in _NAMED.findall(row.body)}
        for name in sorted(named - columns.get(row.tbl, named)):
            found[row.tbl] = name
    return found


def _mark(place: Any, marked: str | None) -> str | None:
    """Return the mark that the outbox has now: see `loss`."""
    return None if marked is None else f"{place}.{json.loads(marked)}"


def _stored(mark: str) -> str:
    """Return the part of a mark that the outbox has."""
    return json.dumps(mark.rpartition(".")[2])


def _row(found: Any) -> Row:
    try:
        images: dict[str, list[Any]] = json.loads(found.image)
    except ValueError:  # `_ANY_ROW`. And MariaDB writes zeros in front of a number, for one
        return Row(_KINDS[found.kind], found.tbl, None, None)
    values = {column: [*map(_exact, each)] for column, each in images.items()}
    known = {column: each for column, each in values.items() if _UNKNOWN not in each}
    return Row(
        _KINDS[found.kind],
        found.tbl,
        {column: each[0] for column, each in known.items()},
        {column: each[-1] for column, each in known.items()},
    )


def _exact(value: Any) -> Any:
    """Return a value as readers tag by it. A text that is neither a date nor a UUID may be equal to another."""
    if not isinstance(value, str) or _DATE.fullmatch(value):
        return value
    return UUID(value) if _UUID.fullmatch(value) else _UNKNOWN


def _trigger_sql(table: str, columns: Sequence[str]) -> dict[str, str]:
    """Return the triggers of one table by name."""
    found = {}
    for event, rows in (("INSERT", ("NEW",)), ("UPDATE", ("OLD", "NEW")), ("DELETE", ("OLD",))):
        pairs = [
            f"{_literal(column)}, JSON_ARRAY({', '.join(f'{row}.{quoted(column)}' for row in rows)})"
            for column in columns
        ]
        action = (
            f"ON {quoted(table)} FOR EACH ROW INSERT INTO {OUTBOX} (kind, tbl, image)"
            f" VALUES ('{event[0].lower()}', {_literal(table)}, JSON_OBJECT({', '.join(pairs)}))"
        )
        name = f"fastrdb_{event.lower()}_{hashlib.sha256(action.encode()).hexdigest()[:24]}"
        found[name] = f"CREATE TRIGGER IF NOT EXISTS {quoted(name)} AFTER {event} {action}"
    return found


def _literal(value: str) -> str:
    return "'" + value.replace("\\", "\\\\").replace("'", "''") + "'"
