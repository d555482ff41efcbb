"""Changes of a PostgreSQL database: triggers write them into an unlogged outbox, which is read by snapshot.

Statement-level triggers with transition tables add one row to `fastrdb.outbox` for each statement, cascades and COPY
among them. The outbox writes no WAL. A crash or a failover empties it, and the row that marks it as whole goes too:
then everything is invalidated. The mark has a number, which positions have too: so a position is never taken for one of
another outbox, or of one that was read for another namespace meanwhile.

A row's id is drawn before its transaction commits, so reading behind the last id would skip slow transactions. The
position is the snapshot of the last poll: new is what is visible now and was not visible to that snapshot.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from fastrdb.errors import OptionError
from fastrdb.keys import Image

from .lead import Lead, named
from .postgres_tables import OUTBOX, Table, chosen, kin_of, reported_of, tables_of, trigger_sql
from .source import ChangeSource, Images, Poll, Status, image

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_PAGE: Final = 1000
_MOST_WAITING: Final = 100_000
"""With more rows waiting, everything is invalidated at once."""
_LOCK: Final = 0x66617374  # of advisory locks: the name in hexadecimal digits
_READER: Final = _LOCK + 1
_EVENTS: Final = 4  # of each table: INSERT, UPDATE, DELETE, TRUNCATE

_TAKE = text("SELECT pg_try_advisory_lock(:ours, hashtext(COALESCE(CAST(:namespace AS text), current_database())))")
_CLEAN = text(
    "DELETE FROM fastrdb.outbox"
    " WHERE tbl <> '' AND xid < pg_snapshot_xmin(CAST(CAST(:position AS text) AS pg_snapshot))"
)
_MARK: Final = "INSERT INTO fastrdb.outbox (tbl) SELECT '' WHERE NOT EXISTS (SELECT FROM fastrdb.outbox WHERE tbl = '')"
_UNMARK = text("DELETE FROM fastrdb.outbox WHERE tbl = ''")
_MARK_AGAIN = text("INSERT INTO fastrdb.outbox (tbl, image) VALUES ('', to_jsonb(CAST(:mark AS text)))")
_TRIGGERS = text("""
SELECT t.tgrelid, t.tgname, CAST(t.tgenabled AS text) AS tgenabled, p.proname, p.prosrc
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
JOIN pg_namespace n ON n.oid = p.pronamespace WHERE n.nspname = 'fastrdb' AND NOT t.tgisinternal
""")
_DEFAULT = text("SELECT current_schema()")
_INSTALLED = text("SELECT to_regclass('fastrdb.outbox') IS NOT NULL")
_LEADER = text("""
SELECT COALESCE(NULLIF(a.application_name, ''), a.usename, 'session') || ', pid ' || a.pid
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.classid = :ours AND l.granted
AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
_REPLICAS = text("""
SELECT EXISTS (SELECT FROM pg_db_role_setting
    WHERE array_to_string(setconfig, ',') LIKE '%session_replication_role=replica%')
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
SELECT CAST(pg_current_snapshot() AS text),
    (SELECT COALESCE(image ->> 0, '') FROM fastrdb.outbox WHERE tbl = '' LIMIT 1),
    COALESCE(pg_snapshot_xmax(CAST(CAST(:since AS text) AS pg_snapshot)) > pg_snapshot_xmax(pg_current_snapshot()),
        false),
    (SELECT count(*) FROM (SELECT FROM fastrdb.outbox
        WHERE tbl <> '' AND xid >= COALESCE(pg_snapshot_xmin(CAST(CAST(:since AS text) AS pg_snapshot)), '0')
        LIMIT :most) AS waiting)
""")


class PostgresSource(ChangeSource):
    """The changes of one PostgreSQL database, over an `AsyncEngine` of any driver."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.name = named("postgresql", engine.url, 5432)
        self._connection: AsyncConnection | None = None
        self._kin: dict[str, tuple[str, ...]] = {}
        self._leads = False
        self._lead: Lead | None = None

    # --- what is installed

    async def install_sql(self, tables: Collection[str] = (), columns: Iterable[str] = ()) -> list[str]:
        """See `ChangeSource`. Needs CREATE on the database, and TRIGGER on the tables."""
        async with self.engine.connect() as connection:
            found = chosen(await tables_of(connection, columns), tables)
            triggers = await connection.execute(_TRIGGERS)
            there = {(row.tgrelid, row.tgname, row.proname) for row in triggers if row.tgenabled not in "DR"}
            default = str(await connection.scalar(_DEFAULT))
        statements = list(OUTBOX)
        for table in found:
            statements += trigger_sql(table, default, there)
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

    async def lead(self, namespace: str = "") -> bool:
        """See `ChangeSource`. The lead is a session's advisory lock: a pooler that changes sessions does not do."""
        if self._leads:
            return True
        if self._connection is None:
            connection = await self.engine.connect()
            self._connection = await connection.execution_options(isolation_level="REPEATABLE READ")
        async with self._connection.begin():
            if not await self._connection.scalar(_INSTALLED):
                raise OptionError(f"watch: {self.name} has no fastrdb.outbox: run `fastrdb watch install` first")
            lead = self._lead = self._lead or Lead(self.name, namespace)
            self._leads = await lead.take(
                partial(_locked, self._connection, _READER, namespace), partial(_locked, self._connection, _LOCK, None)
            )
        return self._leads

    async def poll(self, position: str | None, images: Images) -> Poll:
        """See `ChangeSource`. Reads in one REPEATABLE READ transaction, in pages."""
        connection = self._led()
        async with connection.begin():
            mark, since = _parsed(position)
            row = (await connection.execute(_NOW, {"since": since, "most": _MOST_WAITING})).one()
            lost = _loss(mark, *row[1:]) if since else "there is no position of an earlier poll"
            if not lost and since:
                return Poll(f"{mark} {row[0]}", await self._pages(connection, since, images))
        return Poll(f"{secrets.token_hex(8)} {row[0]}", lost=lost)

    def _led(self) -> AsyncConnection:
        if self._connection is None:
            raise OptionError("watch: lead() comes before poll()")
        return self._connection

    async def _pages(self, connection: AsyncConnection, since: str, images: Images) -> int:
        xid, last, total = "0", -1, 0
        while True:
            given = {"since": since, "xid": xid, "id": last, "page": _PAGE}
            rows = (await connection.execute(_NEW, given)).all()
            if rows:
                if not total:
                    self._kin = await kin_of(connection)
                await images([found for row in rows for found in self._images(row.tbl, row.image)])
                xid, last = rows[-1].xid, rows[-1].id
                total += len(rows)
            if len(rows) < _PAGE:
                return total

    def _images(self, table: str, found: str | None) -> list[Image]:
        values = None if found is None else json.loads(found)
        # A reader names a partition or its parent; a statement fires the triggers of the one that it names.
        return [image(name, values) for name in (table, *self._kin.get(table, ()))]

    async def mark(self, position: str) -> None:
        """See `ChangeSource`."""
        async with self.engine.begin() as connection:
            await connection.execute(_UNMARK)
            await connection.execute(_MARK_AGAIN, {"mark": _parsed(position)[0]})

    async def clean(self, position: str) -> None:
        """See `ChangeSource`."""
        try:
            async with self.engine.begin() as other:
                await other.execute(_CLEAN, {"position": _parsed(position)[1]})
        except DBAPIError as error:  # deleted later; reading goes on
            if error.connection_invalidated:
                raise

    async def status(self, position: str | None, columns: Iterable[str] = (), namespace: str = "") -> Status:
        """See `ChangeSource`."""
        wanted = {name.lower() for name in columns}
        async with self.engine.connect() as connection:
            if not await connection.scalar(_INSTALLED):
                return Status(notes=["nothing is installed: run `fastrdb watch install`"])
            status = Status(installed=True)
            triggers: dict[int, list[Any]] = {}
            for row in await connection.execute(_TRIGGERS):
                triggers.setdefault(row.tgrelid, []).append(row)
            for table in await tables_of(connection, wanted):
                _note_table(status, table, triggers.get(table.oid, []), wanted)
            mark, since = _parsed(position)
            row = (await connection.execute(_NOW, {"since": since, "most": _MOST_WAITING})).one()
            status.waiting = int(row[3])
            if since and (lost := _loss(mark, *row[1:])):
                status.notes.append(f"{lost}: the next poll invalidates everything")
            status.leader = await connection.scalar(_LEADER, {"ours": _LOCK})
            if await connection.scalar(_REPLICAS):
                status.notes.append(
                    "a role or the database has session_replication_role=replica: its writes fire no trigger"
                )
        return status

    async def close(self) -> None:
        """See `ChangeSource`."""
        connection, self._connection, self._leads, self._lead = self._connection, None, False, None
        if connection is not None:
            await connection.invalidate()  # the lock ends with the session, which a pool would keep
            await connection.close()


async def _locked(connection: AsyncConnection, ours: int, namespace: str | None) -> bool:
    return bool(await connection.scalar(_TAKE, {"ours": ours, "namespace": namespace}))


def _parsed(position: str | None) -> tuple[str, str | None]:
    """Return the mark of a position, and the snapshot."""
    mark, _, since = (position or "").partition(" ")
    return mark, since or None


def _loss(expected: str, mark: str | None, older: bool, waiting: int) -> str:
    """Return why changes since a position may be missing; empty if all are there."""
    if mark is None:
        return "the outbox was emptied (a crash, a failover, or TRUNCATE)"
    if mark != expected:
        return "the outbox is another one than at the last poll, or was read for another namespace"
    if older:
        return "the database is older than at the last poll"
    return f"more than {_MOST_WAITING:,} changes wait" if waiting >= _MOST_WAITING else ""


def _note_table(status: Status, table: Table, triggers: Sequence[Any], wanted: Collection[str]) -> None:
    """Add one table to the state of watching."""
    if not triggers:
        status.unwatched[table.known_as] = "no trigger: made after `install`, or left out"
    elif len(triggers) < _EVENTS or any(each.tgenabled in "DR" for each in triggers):
        status.unwatched[table.known_as] = "a trigger is missing or disabled: run `fastrdb watch install` again"
    else:
        status.watched.append(table.known_as)
        reported = reported_of(triggers[0].prosrc)
        named = {f"{table.known_as}:{column}".lower(): column for column in table.columns}
        status.missing_columns.extend(name for name in named if name in wanted and named[name] not in reported)
        if not reported <= table.names:
            status.notes.append(
                f"{table.known_as}: a column was renamed or dropped after `install`, and each change counts as one of"
                " any row: run `fastrdb watch install` again"
            )
