"""Changes of a PostgreSQL database: triggers write them into an unlogged outbox, which is read by snapshot.

Statement-level triggers with transition tables add one row to `fastrdb.outbox` for each statement, cascades and COPY
among them. The outbox writes no WAL. A crash or a failover empties it, and with it the row that marks it as whole: then
everything is invalidated. The mark has a number, which each position repeats beside the numbers of the server, the
database and the outbox. So a position of another outbox, of a copy, or of one that was read for another namespace
meanwhile, is recognized. The mark counts the watchers that have led: files that were copied from a stopped server, and
put back later, have an earlier count.

A row gets its id before its transaction commits, so reading from the last id on would skip slow transactions. The
position is the snapshot of the last poll: a row is new if it is visible now and was not visible to that snapshot.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Collection, Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, Final
from uuid import UUID

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from fastrdb.errors import OptionError
from fastrdb.inference import SEARCHED
from fastrdb.keys import Image

from .failure import reason_of
from .lead import Lead, named
from .postgres_tables import (
    INEXACT,
    INSTALLED,
    KIN,
    Table,
    chosen,
    outbox_sql,
    removal_sql,
    reported_of,
    tables_of,
    trigger_sql,
)
from .source import ChangeSource, Images, NotInstalledError, Poll, Status, execute, image, loss

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_PAGE: Final = 1000
_MOST_WAITING: Final = 100_000
"""With more rows waiting, everything is invalidated at once."""
_MOST_KIN: Final = 8
"""A change of a table with more partitions names its values, and counts as one of any row of them: a poll would take
seconds to name each value for each partition."""
_LOCK: Final = 0x66617374  # of advisory locks: the name in hexadecimal digits
_READER: Final = _LOCK + 1
_INSTALL: Final = "`fastrdb watch install`"
_DENIED: Final = "42501"  # the error of PostgreSQL
_EVENTS: Final = 4  # of each table: INSERT, UPDATE, DELETE, TRUNCATE

_PLACE = text("""
SELECT (SELECT system_identifier FROM pg_control_system()) || '.' || oid FROM pg_database
WHERE datname = current_database()
""")
# The planner overrates recursion over partitions. JIT compilation would take a second in each poll, and hash tables for
# all these rows tens of milliseconds. And a SERIALIZABLE poll would make the transactions of writers fail.
_SESSION = text("""
SELECT set_config('jit', 'off', false), set_config('work_mem', '256kB', false),
    set_config('default_transaction_isolation', 'read committed', false)
""")
_TAKE = text("SELECT pg_try_advisory_lock(:ours, hashtext(COALESCE(CAST(:namespace AS text), current_database())))")
_CLEAN = text("""
DELETE FROM fastrdb.outbox WHERE tbl <> '' AND xid >= CAST(CAST(:cleaned AS text) AS xid8)
AND xid < pg_snapshot_xmax(CAST(CAST(:position AS text) AS pg_snapshot))
AND pg_visible_in_snapshot(xid, CAST(CAST(:position AS text) AS pg_snapshot))
""")
_TURN = text("""
WITH gone AS (DELETE FROM fastrdb.outbox WHERE tbl = '' RETURNING string_to_array(image ->> 0, '/') AS mark)
INSERT INTO fastrdb.outbox (tbl, image)
SELECT '', to_jsonb(mark[1] || '/' || (CAST(mark[2] AS bigint) + 1)) FROM gone
""")
_MARK_AGAIN = text("""
WITH gone AS (DELETE FROM fastrdb.outbox WHERE tbl = '')
INSERT INTO fastrdb.outbox (tbl, image) VALUES ('', to_jsonb(CAST(:mark AS text)))
""")
_TRIGGERS = text("""
SELECT t.tgrelid, CAST(t.tgenabled AS text) AS tgenabled, p.proname, p.prosrc
FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid JOIN pg_namespace n ON n.oid = p.pronamespace
JOIN pg_class c ON c.oid = t.tgrelid JOIN pg_namespace s ON s.oid = c.relnamespace
WHERE n.nspname = 'fastrdb' AND NOT t.tgisinternal ORDER BY s.nspname, c.relname, t.tgname
""")
_INSTALLED = text(f"SELECT {INSTALLED}")
_LEADER = text("""
SELECT COALESCE(NULLIF(a.application_name, ''), a.usename, 'session') || ', pid ' || a.pid
    || COALESCE(', at ' || host(a.client_addr), '')
FROM pg_locks l JOIN pg_stat_activity a USING (pid)
WHERE l.locktype = 'advisory' AND l.classid = :ours AND l.granted
AND l.database = (SELECT oid FROM pg_database WHERE datname = current_database())
""")
_PREPARED = text("""
SELECT CAST(xid AS text) FROM pg_snapshot_xip(CAST(CAST(:now AS text) AS pg_snapshot)) AS xid
WHERE CAST(xid AS xid) IN (SELECT transaction FROM pg_prepared_xacts WHERE database = current_database())
""")
_REPLICAS = text("""
SELECT EXISTS (SELECT FROM pg_db_role_setting
    WHERE array_to_string(setconfig, ',') LIKE '%session_replication_role=replica%')
""")
_SINCE: Final = "CAST(CAST(:since AS text) AS pg_snapshot)"
# Two index scans: what began behind the position, and what was running then.
_BEHIND: Final = f"SELECT * FROM fastrdb.outbox WHERE tbl <> '' AND xid >= COALESCE(pg_snapshot_xmax({_SINCE}), '0')"
_RUNNING: Final = (
    f"SELECT * FROM fastrdb.outbox WHERE tbl <> '' AND xid = ANY (ARRAY(SELECT pg_snapshot_xip({_SINCE})))"
)
_STATE: Final = f"""
CAST(pg_current_snapshot() AS text) AS now,
CAST(CAST(to_regclass('fastrdb.outbox') AS oid) AS text) AS outbox,
(SELECT string_agg(COALESCE(image ->> 0, ''), ' ') FROM fastrdb.outbox WHERE tbl = '') AS mark,
COALESCE(pg_snapshot_xmax({_SINCE}) > pg_snapshot_xmax(pg_current_snapshot()), false) AS older,
(SELECT count(*) FROM (({_BEHIND} LIMIT :most) UNION ALL ({_RUNNING} LIMIT :most)) AS waiting) AS waiting
"""
_NOW = text(f"SELECT {_STATE}")
_NEXT: Final = """
(xid, id) > (CAST(CAST(:xid AS text) AS xid8), CAST(CAST(:id AS text) AS uuid))
AND pg_visible_in_snapshot(xid, COALESCE(CAST(CAST(:now AS text) AS pg_snapshot), pg_current_snapshot()))
ORDER BY xid, id LIMIT :page
"""
# One statement, for one round trip and one snapshot: each statement of a poll would wait for the server once more.
_POLL = text(f"""
WITH RECURSIVE found AS (
    SELECT * FROM (({_BEHIND} AND {_NEXT}) UNION ALL ({_RUNNING} AND {_NEXT})) AS new ORDER BY xid, id LIMIT :page
), {KIN}, {INEXACT}
SELECT {_STATE},
(SELECT CAST(json_agg(json_build_array(CAST(xid AS text), id, tbl, CAST(rel AS bigint), image - COALESCE(names, '{{}}'))
    ORDER BY xid, id) AS text) FROM found LEFT JOIN inexact ON attrelid = rel) AS rows,
(SELECT CAST(json_agg(json_build_array(CAST(root AS bigint), other)) AS text) FROM kin) AS kin
""")


class PostgresSource(ChangeSource):
    """The changes of one PostgreSQL database, over an `AsyncEngine` of any driver."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.name = named("postgresql", engine.url, 5432)
        self._connection: AsyncConnection | None = None
        self._cleaned = "0"
        self._place = ""
        self._leads = False
        self._lead: Lead | None = None

    # --- what is installed

    async def install_sql(self, tables: Collection[str] = (), columns: Iterable[str] = ()) -> list[str]:
        """See `ChangeSource`. Needs CREATE on the database, and TRIGGER on the tables."""
        async with self.engine.connect() as connection:
            found = chosen(await tables_of(connection, columns), tables)
            searched = sorted(await connection.scalars(text(SEARCHED)))
        return [outbox_sql(), *(trigger_sql(table, searched) for table in found)]

    async def uninstall_sql(self) -> list[str]:
        """See `ChangeSource`."""
        async with self.engine.connect() as connection:
            return removal_sql(dict.fromkeys(row.proname for row in await connection.execute(_TRIGGERS)))

    async def run(self, statements: Sequence[str]) -> None:
        """See `ChangeSource`. Each statement commits by itself, so that locks are held on one table at a time.

        Raises:
            OptionError: a right is missing on some tables; all others are done.
        """
        denied: list[str] = []
        async with self.engine.connect() as connection:
            await connection.execution_options(isolation_level="AUTOCOMMIT")
            for number, statement in enumerate(statements):
                try:
                    await execute(connection, statement)
                except DBAPIError as error:
                    if number == 0 or getattr(error.orig, "sqlstate", None) != _DENIED:
                        raise
                    denied.append(reason_of(error))
        if denied:
            raise OptionError(
                f"watch: a right is missing ({'; '.join(denied)}). All other tables are done. `fastrdb docs outside`"
                " lists the rights. Or name the tables by --table"
            )

    # --- changes

    async def lead(self, namespace: str = "") -> bool:
        """See `ChangeSource`. The lead is an advisory lock of the session, so no pooler may change sessions."""
        if self._leads:
            return True
        if self._connection is None:
            connection = await self.engine.connect()
            self._connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            await connection.execute(_SESSION)
            self._place = str(await connection.scalar(_PLACE))
        if not await self._connection.scalar(_INSTALLED):
            raise NotInstalledError(f"watch: {self.name} has no fastrdb.outbox: run `fastrdb watch install` first")
        lead = self._lead = self._lead or Lead(self.name, namespace)
        self._leads = await lead.take(
            partial(_locked, self._connection, _READER, namespace), partial(_locked, self._connection, _LOCK, None)
        )
        if self._leads:
            await self._connection.execute(_TURN)
        return self._leads

    async def poll(self, position: str | None, images: Images) -> Poll:
        """See `ChangeSource`. Each page is a statement; all read what the first one's snapshot sees."""
        connection, (expected, since, prepared) = self._led(), _parsed(position)
        now, xid, last, total = None, "0", str(UUID(int=0)), 0
        while True:
            given: dict[str, Any] = {
                "since": since,
                "now": now,
                "xid": xid,
                "id": last,
                "page": _PAGE,
                "most": _MOST_WAITING,
            }
            found = (await connection.execute(_POLL, given)).one()
            mark = _mark(self._place, found)
            if lost := _loss(expected, mark, found, prepared):
                open_ = (await connection.scalars(_PREPARED, {"now": found.now})).all()
                mark = f"{self._place}.{found.outbox}.{secrets.token_hex(8)}/0"
                return Poll(_position(mark, found.now, open_), lost=lost)
            now, rows = now or found.now, json.loads(found.rows or "[]")
            if rows:
                await images(_images(rows, json.loads(found.kin or "[]")))
                xid, last = rows[-1][:2]
                total += len(rows)
            if len(rows) < _PAGE:
                return Poll(_position(str(mark), str(now), prepared), total)

    def _led(self) -> AsyncConnection:
        if self._connection is None:
            raise OptionError("watch: lead() comes before poll()")
        return self._connection

    async def mark(self, position: str) -> None:
        """See `ChangeSource`."""
        await self._led().execute(_MARK_AGAIN, {"mark": str(_parsed(position)[0]).rpartition(".")[2]})

    async def clean(self, position: str) -> None:
        """See `ChangeSource`. Begins behind what was deleted before: an old snapshot makes a scan walk over dead rows.

        Deletes what polls have read even while an old transaction is open.
        """
        since = str(_parsed(position)[1])
        try:
            await self._led().execute(_CLEAN, {"position": since, "cleaned": self._cleaned})
            self._cleaned = since.partition(":")[0]
        except DBAPIError as error:  # the next call deletes it; reading goes on
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
            mark, since, prepared = _parsed(position)
            row = (await connection.execute(_NOW, {"since": since, "most": _MOST_WAITING})).one()
            status.waiting = int(row.waiting)
            present = _mark(str(await connection.scalar(_PLACE)), row)
            if since and (lost := _loss(mark, present, row, prepared)):
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
        self._cleaned = "0"
        if connection is not None:
            await connection.invalidate()  # the lock ends with the session, which a pool would keep
            await connection.close()


async def _locked(connection: AsyncConnection, ours: int, namespace: str | None) -> bool:
    return bool(await connection.scalar(_TAKE, {"ours": ours, "namespace": namespace}))


def _position(mark: str, snapshot: str, prepared: Iterable[str]) -> str:
    """Return a position: the mark, the snapshot, and the transactions that were prepared when changes were lost.

    A crash empties the outbox, but a prepared transaction survives it: its changes are no longer in the outbox.
    """
    return " ".join([mark, snapshot, *prepared])


def _parsed(position: str | None) -> tuple[str | None, str | None, list[str]]:
    """Return the parts of a position."""
    mark, since, *prepared = (position or " ").split(" ")
    return mark or None, since or None, prepared


def _mark(place: str, state: Any) -> str | None:
    """Return the mark that the outbox has now: see `loss`. A dump has another place, and a copy of the files a turn."""
    return None if state.mark is None else f"{place}.{state.outbox}.{state.mark}"


def _loss(expected: str | None, mark: str | None, state: Any, prepared: Collection[str]) -> str:
    """Return why changes since a position may be missing; empty if all are there."""
    if lost := loss(expected, mark):  # mechanism: outbox-mark
        return lost
    if not {*state.now.split(":")[2].split(",")}.issuperset(prepared):
        return "a prepared transaction has ended whose changes were lost from the outbox"
    if state.older:
        return "the database is older than at the last poll"
    return f"more than {_MOST_WAITING:,} changes wait" if state.waiting >= _MOST_WAITING else ""


def _images(rows: Sequence[Any], kin: Sequence[Sequence[Any]]) -> list[Image]:
    """Return the images of rows, of a partition and its parents alike: readers name one, triggers report another.

    Args:
        rows: each with the number of its transaction, its id, the table's name and number, and values.
        kin: pairs of a table's number and the name of one that holds rows of the same.
    """
    others: dict[int, list[str]] = {}
    for root, other in kin:
        others.setdefault(root, []).append(other)
    found, any_row = list[Image](), set[str]()
    for _, _, table, rel, values in rows:
        names = {table, *others.get(rel, ())}
        if len(names) > _MOST_KIN:
            any_row |= names - {table}
            names = {table}
        found += [image(name, values) for name in names]
    return [*found, *map(Image, any_row)]


def _note_table(status: Status, table: Table, triggers: Sequence[Any], wanted: Collection[str]) -> None:
    """Add the state of one table to `status`."""
    name, fails = table.known_as, any(each.proname != table.function for each in triggers) and table.has_foreign
    if table.is_foreign or table.has_foreign:
        status.unwatched[name] = (
            "a foreign table, or one with a foreign partition: writes at the other server are not seen"
        )
    if fails:
        status.notes.append(f"{name}: an INSERT fails that has a row for a foreign partition: run {_INSTALL} again")
    elif table.is_foreign:
        return
    elif not triggers:
        status.unwatched[name] = "no trigger: made after `install`, or left out"
    elif len(triggers) < _EVENTS or any(each.tgenabled in "DR" for each in triggers):
        status.unwatched[name] = f"a trigger is missing or disabled: run {_INSTALL} again"
    elif table.is_applied:
        status.unwatched[name] = (
            "a subscription writes to it, which fires no trigger of a statement: see `fastrdb docs outside`"
        )
    else:
        status.watched.append(name)
        reported = reported_of(triggers[0].prosrc)
        named = {f"{name}:{column}".lower(): column for column in table.columns}
        status.missing_columns.extend(name for name in named if name in wanted and named[name] not in reported)
        if not reported <= table.exact:
            status.notes.append(
                f"{name}: a column was renamed, dropped, or given another type after `install`, and each change counts"
                f" as one of any row or value: run {_INSTALL} again"
            )
