"""Changes of a PostgreSQL database: triggers write them into an unlogged outbox, which is read by snapshot.

Statement-level triggers with transition tables add one row to `fastrdb.outbox` for each statement, cascades and COPY
among them. The outbox writes no WAL. A crash or a failover empties it, and the row that marks it as whole goes too:
then everything is invalidated.

A row's id is drawn before its transaction commits, so reading behind the last id would skip slow transactions. The
position is the snapshot of the last poll: new is what is visible now and was not visible to that snapshot.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from fastrdb.errors import OptionError
from fastrdb.keys import Image

from .source import COLUMNS_NAMED, ROWS_NAMED, ChangeSource, Images, Poll, Status, image

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_PAGE: Final = 1000
_MOST_WAITING: Final = 100_000
"""With more rows waiting, everything is invalidated at once."""
_LOCK: Final = 0x66617374  # of advisory locks: the name in hexadecimal digits
_TYPES: Final = ("int2", "int4", "int8", "text", "varchar", "uuid", "bool", "date")
"""Types whose values have one text, in the database and in a reader."""

_OUTBOX: Final = (
    "CREATE SCHEMA IF NOT EXISTS fastrdb",
    (
        "CREATE UNLOGGED TABLE IF NOT EXISTS fastrdb.outbox (id bigint GENERATED ALWAYS AS IDENTITY,"
        " xid xid8 NOT NULL DEFAULT pg_current_xact_id(), tbl text NOT NULL, image jsonb)"
    ),
    "CREATE INDEX IF NOT EXISTS outbox_xid ON fastrdb.outbox (xid, id)",
    "COMMENT ON TABLE fastrdb.outbox IS 'Changes for fastrdb watch. The row without a table marks it as whole.'",
    """CREATE OR REPLACE FUNCTION fastrdb.truncated() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog AS $fastrdb$
BEGIN
    INSERT INTO fastrdb.outbox (tbl) VALUES (TG_ARGV[0]);
    RETURN NULL;
END $fastrdb$""",
)
_TAKE = text("SELECT pg_try_advisory_lock(:ours, CAST(hashtext(current_database()) AS integer))")
_CLEAN = text(
    "DELETE FROM fastrdb.outbox"
    " WHERE tbl <> '' AND xid < pg_snapshot_xmin(CAST(CAST(:position AS text) AS pg_snapshot))"
)
_MARK: Final = "INSERT INTO fastrdb.outbox (tbl) SELECT '' WHERE NOT EXISTS (SELECT FROM fastrdb.outbox WHERE tbl = '')"
_TABLES = text("""
SELECT c.oid, n.nspname, c.relname, n.nspname = current_schema() AS own, c.relkind
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'fastrdb') AND n.nspname NOT LIKE 'pg_toast%'
ORDER BY n.nspname, c.relname
""")
_COLUMNS = text("""
SELECT a.attrelid, a.attname,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey))
    OR EXISTS (SELECT FROM pg_constraint k
        WHERE k.conrelid = a.attrelid AND k.contype = 'f' AND a.attnum = ANY (k.conkey))
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attnum > 0 AND NOT a.attisdropped AND t.typname = ANY (CAST(:types AS text[]))
ORDER BY a.attrelid, a.attnum
""")
_TRIGGERS = text("""
SELECT t.tgrelid, t.tgname, t.tgenabled, p.prosrc FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'fastrdb' AND NOT t.tgisinternal
""")
_INSTALLED = text("SELECT to_regclass('fastrdb.outbox') IS NOT NULL")
_LEADER = text("""
SELECT a.application_name || ', pid ' || a.pid FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.classid = :ours AND l.granted
AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
_REPLICAS = text("""
SELECT EXISTS (SELECT FROM pg_db_role_setting
    WHERE array_to_string(setconfig, ',') LIKE '%session_replication_role=replica%')
""")
_KIN = text("""
WITH RECURSIVE up AS (
    SELECT inhrelid AS child, inhparent AS parent FROM pg_inherits
    UNION SELECT up.child, i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.parent
) SELECT child, parent FROM up
""")
_NEW = text("""
SELECT id, CAST(xid AS text) AS xid, tbl, CAST(image AS text) AS image FROM (
    (SELECT * FROM fastrdb.outbox WHERE tbl <> '' AND xid >= pg_snapshot_xmax(CAST(CAST(:since AS text) AS pg_snapshot))
     AND (xid, id) > (CAST(CAST(:xid AS text) AS xid8), CAST(:id AS bigint)) ORDER BY xid, id LIMIT :page)
    UNION ALL
    (SELECT * FROM fastrdb.outbox WHERE tbl <> ''
     AND xid = ANY (ARRAY(SELECT pg_snapshot_xip(CAST(CAST(:since AS text) AS pg_snapshot))))
     AND (xid, id) > (CAST(CAST(:xid AS text) AS xid8), CAST(:id AS bigint)) ORDER BY xid, id LIMIT :page)
) AS found ORDER BY found.xid, found.id LIMIT :page
""")
_NOW = text("""
SELECT CAST(pg_current_snapshot() AS text), EXISTS (SELECT FROM fastrdb.outbox WHERE tbl = ''),
    COALESCE(pg_snapshot_xmax(CAST(CAST(:since AS text) AS pg_snapshot)) > pg_snapshot_xmax(pg_current_snapshot()),
        false),
    (SELECT count(*) FROM (SELECT FROM fastrdb.outbox
        WHERE xid >= COALESCE(pg_snapshot_xmin(CAST(CAST(:since AS text) AS pg_snapshot)), '0') LIMIT :most) AS waiting)
""")


@dataclass(frozen=True, slots=True)
class _Table:
    oid: int
    schema: str
    name: str
    own: bool  # in the default schema
    columns: tuple[str, ...] = ()

    @property
    def known_as(self) -> str:
        """Return the name in tags: without the default schema."""
        return self.name if self.own else f"{self.schema}.{self.name}"

    @property
    def function(self) -> str:
        digest = hashlib.sha256(f"{self.schema}.{self.name}".encode()).hexdigest()[:24]
        return f"fastrdb.changed_{digest}"

    @property
    def quoted(self) -> str:
        return f"{_quoted(self.schema)}.{_quoted(self.name)}"


class PostgresSource(ChangeSource):
    """The changes of one PostgreSQL database, over an `AsyncEngine` of any driver."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.name = f"postgresql:{engine.url.database}"
        self._connection: AsyncConnection | None = None
        self._kin: dict[str, tuple[str, ...]] = {}
        self._leads = False

    # --- what is installed

    async def install_sql(self, tables: Collection[str] = (), columns: Iterable[str] = ()) -> list[str]:
        """See `ChangeSource`. Needs CREATE on the database, and TRIGGER on the tables."""
        async with self.engine.connect() as connection:
            found = _chosen(await _tables(connection, columns), tables)
            there = {(row.tgrelid, row.tgname) for row in await connection.execute(_TRIGGERS) if row.tgenabled != "D"}
        statements = list(_OUTBOX)
        for table in found:
            statements += _trigger_sql(table, there)
        return [*statements, _MARK]

    async def uninstall_sql(self) -> list[str]:
        """See `ChangeSource`."""
        return ["DROP SCHEMA IF EXISTS fastrdb CASCADE"]

    async def run(self, statements: Sequence[str]) -> None:
        """See `ChangeSource`."""
        async with self.engine.begin() as connection:
            for statement in statements:
                await connection.exec_driver_sql(statement)

    # --- changes

    async def lead(self) -> bool:
        """See `ChangeSource`. The lead is a session's advisory lock: a pooler that changes sessions does not do."""
        if self._leads:
            return True
        if self._connection is None:
            connection = await self.engine.connect()
            self._connection = await connection.execution_options(isolation_level="REPEATABLE READ")
        async with self._connection.begin():
            if not await self._connection.scalar(_INSTALLED):
                raise OptionError(f"watch: {self.name} has no fastrdb.outbox: run `fastrdb watch install` first")
            taken = await self._connection.scalar(_TAKE, {"ours": _LOCK})
            self._kin = await _kin(self._connection)
        self._leads = bool(taken)
        return self._leads

    async def poll(self, position: str | None, images: Images) -> Poll:
        """See `ChangeSource`. Reads in one REPEATABLE READ transaction, in pages."""
        connection = self._led()
        async with connection.begin():
            row = (await connection.execute(_NOW, {"since": position, "most": _MOST_WAITING})).one()
            now, whole, older, waiting = str(row[0]), bool(row[1]), bool(row[2]), int(row[3])
            if position is None:
                return Poll(now, lost="there is no position of an earlier poll")
            if older:
                return Poll(now, lost="the database is older than at the last poll")
            if waiting < _MOST_WAITING and whole:
                return Poll(now, await self._pages(connection, position, images))
        if whole:
            return Poll(now, lost=f"more than {_MOST_WAITING:,} changes wait")
        return Poll(now, lost="the outbox was emptied (a crash, a failover, or TRUNCATE)")

    def _led(self) -> AsyncConnection:
        if self._connection is None:
            raise OptionError("watch: lead() comes before poll()")
        return self._connection

    async def _pages(self, connection: AsyncConnection, since: str, images: Images) -> int:
        xid, last, total = "0", -1, 0
        while True:
            given = {"since": since, "xid": xid, "id": last, "page": _PAGE}
            rows = (await connection.execute(_NEW, given)).all()
            total += len(rows)
            if rows:
                await images([found for row in rows for found in self._images(row.tbl, row.image)])
                xid, last = rows[-1].xid, rows[-1].id
            if len(rows) < _PAGE:
                return total

    def _images(self, table: str, found: str | None) -> list[Image]:
        values = None if found is None else json.loads(found)
        # A reader names a partition or its parent; a statement fires the triggers of the one that it names.
        return [image(name, values) for name in (table, *self._kin.get(table, ()))]

    async def mark(self) -> None:
        """See `ChangeSource`."""
        await self.run([_MARK])

    async def clean(self, position: str) -> None:
        """See `ChangeSource`."""
        connection = self._led()
        async with connection.begin():
            self._kin = await _kin(connection)
        try:
            async with self.engine.begin() as other:
                await other.execute(_CLEAN, {"position": position})
        except DBAPIError as error:  # deleted later; reading goes on
            if error.connection_invalidated:
                raise

    async def status(self, position: str | None, columns: Iterable[str] = ()) -> Status:
        """See `ChangeSource`."""
        wanted = {name.lower() for name in columns}
        async with self.engine.connect() as connection:
            if not await connection.scalar(_INSTALLED):
                return Status(notes=["nothing is installed: run `fastrdb watch install`"])
            status = Status(installed=True)
            triggers: dict[int, list[Any]] = {}
            for row in await connection.execute(_TRIGGERS):
                triggers.setdefault(row.tgrelid, []).append(row)
            for table in await _tables(connection, wanted):
                _note_table(status, table, triggers.get(table.oid, []), wanted)
            row = (await connection.execute(_NOW, {"since": position, "most": _MOST_WAITING})).one()
            status.waiting = int(row[3])
            if not row[1]:
                status.notes.append("the outbox was emptied: the next poll invalidates everything")
            status.leader = await connection.scalar(_LEADER, {"ours": _LOCK})
            if await connection.scalar(_REPLICAS):
                status.notes.append(
                    "a role or the database has session_replication_role=replica: its writes fire no trigger"
                )
        return status

    async def close(self) -> None:
        """See `ChangeSource`."""
        connection, self._connection, self._leads = self._connection, None, False
        if connection is not None:
            await connection.invalidate()  # the lock ends with the session, which a pool would keep
            await connection.close()


def _note_table(status: Status, table: _Table, triggers: Sequence[Any], wanted: Collection[str]) -> None:
    """Add one table to the state of watching."""
    if not triggers:
        status.unwatched[table.known_as] = "no trigger: made after `install`, or left out"
    elif any(each.tgenabled == "D" for each in triggers):
        status.unwatched[table.known_as] = "a trigger is disabled"
    else:
        status.watched.append(table.known_as)
        function = next((each.prosrc for each in triggers if "jsonb" in each.prosrc), "")
        named = {f"{table.known_as}:{column}".lower(): column for column in table.columns}
        missing = (name for name, column in named.items() if name in wanted and f"'{column}'" not in function)
        status.missing_columns.extend(missing)


async def _tables(connection: AsyncConnection, columns: Iterable[str]) -> list[_Table]:
    """Return all tables with the columns that their triggers report: keys, indexed ones, and those asked for."""
    wanted = {name.lower() for name in columns}
    rows = (await connection.execute(_TABLES)).all()
    names = {row.oid: row.relname if row.own else f"{row.nspname}.{row.relname}" for row in rows}
    chosen: dict[int, list[str]] = {}
    for oid, column, indexed in await connection.execute(_COLUMNS, {"types": list(_TYPES)}):
        if oid in names and (indexed or f"{names[oid]}:{column}".lower() in wanted):
            chosen.setdefault(oid, []).append(column)
    return [
        _Table(row.oid, row.nspname, row.relname, row.own, tuple(chosen.get(row.oid, ())[:COLUMNS_NAMED]))
        for row in rows
    ]


def _chosen(found: list[_Table], tables: Collection[str]) -> list[_Table]:
    if not tables:
        return [table for table in found if table.own]
    by_name = {name: table for table in found for name in (table.known_as, f"{table.schema}.{table.name}")}
    if missing := [name for name in tables if name not in by_name]:
        raise OptionError(f"watch: no table {', '.join(missing)}; there are: {', '.join(t.known_as for t in found)}")
    return [by_name[name] for name in tables]


async def _kin(connection: AsyncConnection) -> dict[str, tuple[str, ...]]:
    """Return for each table the partitions and parents that hold rows of the same."""
    names = {table.oid: table.known_as for table in await _tables(connection, ())}
    found: dict[str, list[str]] = {}
    for child, parent in await connection.execute(_KIN):
        if child in names and parent in names:
            found.setdefault(names[child], []).append(names[parent])
            found.setdefault(names[parent], []).append(names[child])
    return {name: tuple(kin) for name, kin in found.items()}


def _trigger_sql(table: _Table, there: Collection[tuple[int, str]]) -> list[str]:
    """Return the statements that make one table record its changes.

    A trigger that is `there` stays, since making one locks the table. What it does stands in the function.
    """
    name, columns = _literal(table.known_as), table.columns
    aggregates = ", ".join(f"{_literal(each)}, jsonb_agg(DISTINCT {_quoted(each)})" for each in columns)
    picked = ", ".join(map(_quoted, columns))

    def insert(rows: str, most: int) -> str:
        values = f"CASE WHEN count(*) <= {most} THEN jsonb_build_object({aggregates}) END" if columns else "NULL"
        return f"INSERT INTO fastrdb.outbox (tbl, image) SELECT {name}, {values} FROM {rows}"

    both = f"(SELECT {picked} FROM o UNION ALL SELECT {picked} FROM n) AS changed" if columns else "n LIMIT 1"
    function = f"""
CREATE OR REPLACE FUNCTION {table.function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog AS $fastrdb$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF EXISTS (SELECT FROM n) THEN {insert("n" if columns else "n LIMIT 1", ROWS_NAMED)}; END IF;
    ELSIF TG_OP = 'DELETE' THEN
        IF EXISTS (SELECT FROM o) THEN {insert("o" if columns else "o LIMIT 1", ROWS_NAMED)}; END IF;
    ELSE
        IF EXISTS (SELECT FROM n) THEN {insert(both, 2 * ROWS_NAMED)}; END IF;
    END IF;
    RETURN NULL;
END $fastrdb$"""
    made = [function.strip()]
    for event, given in (
        ("INSERT", "REFERENCING NEW TABLE AS n"),
        ("UPDATE", "REFERENCING OLD TABLE AS o NEW TABLE AS n"),
        ("DELETE", "REFERENCING OLD TABLE AS o"),
        ("TRUNCATE", ""),
    ):
        trigger = f"fastrdb_{event.lower()}"
        if (table.oid, trigger) in there:
            continue
        action = f"fastrdb.truncated({name})" if event == "TRUNCATE" else f"{table.function}()"
        made += [
            f"DROP TRIGGER IF EXISTS {trigger} ON {table.quoted}",
            f"CREATE TRIGGER {trigger} AFTER {event} ON {table.quoted} {given} FOR EACH STATEMENT"
            f" EXECUTE FUNCTION {action}".replace("  ", " "),
        ]
    return made


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
