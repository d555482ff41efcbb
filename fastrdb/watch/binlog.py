"""Changes of MariaDB, read from its binary log, which costs writers nothing and shows TRUNCATE.

The log is written before a commit is visible. An entry that is invalidated in between would be loaded again with the
old row. So a poll reads only as far as a consistent snapshot sees. MariaDB and Percona Server report that place.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

from sqlalchemy import text
from sqlalchemy.exc import DBAPIError

from fastrdb.errors import OptionError
from fastrdb.keys import Image

from .cascades import Cascades
from .mysql_log import GoneError, Log, Place, is_available, place_of
from .mysql_tables import columns_of, leader, lock_of, locked, tables_of
from .source import ChangeSource, Images, Poll, Status, require_tables

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

_ON: Final = ("ON", "1")
_OFF: Final = ("OFF", "0")
_NEEDED: Final = {
    "log_bin": _ON,
    "binlog_format": ("ROW",),
    "binlog_row_metadata": ("FULL",),
    "log_bin_compress": _OFF,
    "binlog_transaction_compression": _OFF,
}
_UPDATES: Final = "log_slave_updates"
_SETTINGS = text(f"SHOW GLOBAL VARIABLES WHERE variable_name IN ({', '.join(map(repr, (*_NEEDED, _UPDATES)))})")
_SERVERS = text("SHOW GLOBAL STATUS WHERE variable_name IN ('Slaves_running', 'wsrep_cluster_size')")
_WRITTEN = text("SHOW MASTER STATUS")
_SNAPSHOT = text("SHOW STATUS WHERE variable_name IN ('binlog_snapshot_file', 'binlog_snapshot_position')")
_SERVER = text("SELECT concat(@@hostname, ':', @@port, ':', @@server_id)")
_GRANTS = text("SHOW GRANTS")
_REPLICA: Final = ("REPLICATION SLAVE", "REPLICATION REPLICA", "ALL PRIVILEGES ON *.*")


async def refusal(connection: AsyncConnection) -> str:
    """Return why this server's binary log cannot be read, and what to do; empty if it can be."""
    found = {name.lower(): str(value).upper() for name, value in await connection.execute(_SETTINGS)}
    for name, good in _NEEDED.items():
        if name in found and found[name] not in good:
            return f"{name} is {found[name]}, and has to be {good[0]}"
    if "binlog_row_metadata" not in found:
        return "the server has no binlog_row_metadata: it needs MariaDB 10.5 or later"
    if found.get(_UPDATES) in _OFF and any(int(number) for _, number in await connection.execute(_SERVERS)):
        return f"{_UPDATES} is OFF, and has to be ON: this server takes over what others write"
    if not is_available():
        return "python-mysql-replication is missing: pip install 'fastrdb[watch-mysql]'"
    if await _visible(connection) is None:
        return "the server does not report which part of its log a snapshot sees (binlog_snapshot_position)"
    try:
        _, _, only, without = (await connection.execute(_WRITTEN)).one()
    except DBAPIError:
        return "the user lacks a right: GRANT REPLICATION CLIENT (BINLOG MONITOR) ON *.*"
    name = await connection.scalar(text("SELECT database()"))
    if name in without.split(",") or (only and name not in only.split(",")):
        return f"the log leaves {name} out: correct binlog_do_db and binlog_ignore_db"
    grants = " ".join((await connection.scalars(_GRANTS)).all()).upper()
    if not any(right in grants for right in _REPLICA):
        return "the user lacks a right: GRANT REPLICATION SLAVE ON *.*"
    return ""


class BinlogSource(ChangeSource):
    """The binary log of one server, for one of its databases. Made by `MySQLSource`."""

    def __init__(self, engine: AsyncEngine, name: str) -> None:
        self.engine, self.name = engine, name
        self._connection: AsyncConnection | None = None
        self._cascades = Cascades()
        self._server = ""
        self._log: Log | None = None

    async def install_sql(self, tables: Collection[str] = (), columns: Iterable[str] = ()) -> list[str]:
        """See `ChangeSource`. Nothing to install: the server writes its log anyway, with all tables."""
        async with self.engine.connect() as connection:
            require_tables(tables, await tables_of(connection))
        return []

    async def uninstall_sql(self) -> list[str]:
        """See `ChangeSource`."""
        return []

    async def run(self, statements: Sequence[str]) -> None:
        """See `ChangeSource`."""

    async def lead(self, namespace: str = "") -> bool:
        """See `ChangeSource`. Any number of namespaces may read the log, each with a leader of its own."""
        if self._connection is None:
            connection = await self.engine.connect()
            self._connection = await connection.execution_options(isolation_level="AUTOCOMMIT")
            self._server = str(await self._connection.scalar(_SERVER))
        return await locked(self._connection, lock_of(namespace))

    async def poll(self, position: str | None, images: Images) -> Poll:
        """See `ChangeSource`. Read the log in a thread, as far as a snapshot of the database sees."""
        connection = self._connection
        if connection is None:
            raise OptionError("watch: lead() comes before poll()")
        server, since = _parsed(position)
        written = (await connection.execute(_WRITTEN)).one()
        if since == place_of(written[0], written[1]) and server == self._server:
            return Poll(str(position))
        end = await _visible(connection)
        if end is None:
            raise OptionError("watch: the server no longer reports binlog_snapshot_position")
        now = f"{self._server} {end.file} {end.offset} "
        if since is None:
            return Poll(f"{now}0", lost="there is no position of an earlier poll")
        if server != self._server or since.order > end.order:
            return Poll(f"{now}0", lost="the binary log is another one than at the last poll")
        try:
            count, begun = await self._pass_on(connection, since, end, images)
        except GoneError:
            return Poll(f"{now}0", lost="the server has purged the binary log of the last poll, or has another one")
        return Poll(f"{now}{begun}", count)

    async def _pass_on(self, connection: AsyncConnection, since: Place, end: Place, images: Images) -> tuple[int, int]:
        """Pass the changes between two places of the log to `images`. Return their number, and when the file began.

        The open log of the last poll is read on. After any error the log is closed, and the next poll opens it again.
        """
        log, self._log = self._log, None
        if log is None or log.place != since:
            if log is not None:
                log.close()
            columns = {table: frozenset(names) for table, names in (await columns_of(connection, ())).items()}
            log = Log(self.engine.sync_engine, since, columns)
        try:
            found = await asyncio.shield(asyncio.to_thread(log.read, end))
            if found.defined:
                self._cascades.forget()
            if found.everything:
                await images([Image(None)])
            elif found.rows:
                await images(await connection.run_sync(self._cascades.images, found.rows))
        except BaseException:
            log.close()
            raise
        if found.defined:  # columns may have changed
            log.close()
        else:
            self._log = log
        return found.count, log.place.begun if log.place.file == end.file else 0

    async def clean(self, position: str) -> None:
        """See `ChangeSource`. The server purges its log itself."""

    async def status(self, position: str | None, columns: Iterable[str] = (), namespace: str = "") -> Status:
        """See `ChangeSource`."""
        async with self.engine.connect() as connection:
            status = Status(installed=True, way="binary log")
            status.watched += await tables_of(connection)
            status.leader = await leader(connection, lock_of(namespace))
            written = (await connection.execute(_WRITTEN)).one()
            _, since = _parsed(position)
            if since is not None and since == place_of(written[0], written[1]):
                status.waiting = 0
        return status

    async def close(self) -> None:
        """See `ChangeSource`."""
        log, self._log = self._log, None
        if log is not None:
            log.close()
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.invalidate()  # the lock ends with the session, which a pool would keep
            await connection.close()


async def _visible(connection: AsyncConnection) -> Place | None:
    """Return the place in the log up to which a snapshot of now sees; None if the server does not report it."""
    await connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")
    try:
        found = {name.lower(): value for name, value in await connection.execute(_SNAPSHOT)}
    finally:
        await connection.exec_driver_sql("ROLLBACK")
    file, offset = found.get("binlog_snapshot_file"), found.get("binlog_snapshot_position")
    return place_of(file, offset) if file else None


def _parsed(position: str | None) -> tuple[str, Place | None]:
    """Return the server and the place of a position."""
    parts: list[Any] = (position or "").rsplit(" ", 3)
    if len(parts) != 4 or not (parts[2] + parts[3]).isdigit():
        return "", None
    return parts[0], place_of(*parts[1:])
