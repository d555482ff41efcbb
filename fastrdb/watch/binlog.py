"""Changes of MariaDB or MySQL, read from the binary log, which costs writers nothing and shows TRUNCATE.

The log is written before a commit is visible. An entry that is invalidated in between would be loaded again with the
old row. So a poll reads only as far as a consistent snapshot sees. MariaDB and Percona Server report that place. MySQL
reports which transactions are in their commit (`gtid_owned`): from before the log has them until readers see them.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import replace
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

_PAUSE_S: Final = 0.01
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
_NAMES: Final = "gtid_mode"  # only MySQL has it
_SETTINGS = text(f"SHOW GLOBAL VARIABLES WHERE variable_name IN ({', '.join(map(repr, (*_NEEDED, _UPDATES, _NAMES)))})")
_SERVERS = text("SHOW GLOBAL STATUS WHERE variable_name IN ('Slaves_running', 'wsrep_cluster_size')")
_UNREPORTED: Final = "the server does not report which part of its log a snapshot sees"
_IN_COMMIT = text("SELECT @@global.gtid_mode, @@global.gtid_owned")
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
        return "the server has no binlog_row_metadata: it needs MariaDB 10.5 or MySQL 8.0.1, or later"
    may_replicate = _NAMES in found or any(int(number) for _, number in await connection.execute(_SERVERS))
    if may_replicate and found.get(_UPDATES) in _OFF:
        return f"{_UPDATES} is OFF, and has to be ON: this server takes over what others write"
    if not is_available():
        return "python-mysql-replication is missing: pip install mysql-replication"
    try:
        _, _, only, without, *_ = await _written(connection)
    except DBAPIError:
        return "the user lacks a right: GRANT REPLICATION CLIENT (BINLOG MONITOR) ON *.*"
    if await _end(connection) is None:
        return f"{_UNREPORTED}: it needs MariaDB, or MySQL with gtid_mode=ON"
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
        written = await _written(connection)
        if since == place_of(written[0], written[1]) and server == self._server:
            return Poll(str(position))
        found = await _end(connection)
        if found is None:
            raise OptionError(f"watch: {_UNREPORTED} any more: gtid_mode is not ON")
        end, unseen = found
        if since is None:
            lost = "there is no position of an earlier poll"
        elif server != self._server or since.order > end.order:
            lost = "the binary log is another one than at the last poll"
        else:
            try:
                count, reached = await self._pass_on(connection, since, end, unseen, images)
                return Poll(self._position(reached), count)
            except GoneError:
                lost = "the server has purged the binary log of the last poll, or has another one"
        while unseen and not unseen.isdisjoint(_names((await connection.execute(_IN_COMMIT)).one()[1])):  # noqa: ASYNC110
            await asyncio.sleep(_PAUSE_S)  # the next poll begins behind these
        return Poll(self._position(end), lost=lost)

    def _position(self, place: Place) -> str:
        return f"{self._server} {place.file} {place.offset} {place.begun}"

    async def _pass_on(
        self, connection: AsyncConnection, since: Place, end: Place, unseen: Collection[str], images: Images
    ) -> tuple[int, Place]:
        """Pass the changes between two places of the log to `images`. Return their number, and the place behind them.

        The open log of the last poll is read on. After any error the log is closed, and the next poll opens it again.
        """
        log, self._log = self._log, None
        if log is None or log.place != since:
            if log is not None:
                log.close()
            columns = {table: frozenset(names) for table, names in (await columns_of(connection, ())).items()}
            log = Log(self.engine.sync_engine, since, columns)
        try:
            found = await asyncio.shield(asyncio.to_thread(log.read, end, unseen))
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
        if log.place.order < end.order:
            return found.count, log.place
        return found.count, replace(end, begun=log.place.begun if log.place.file == end.file else 0)

    async def clean(self, position: str) -> None:
        """See `ChangeSource`. The server purges its log itself."""

    async def status(self, position: str | None, columns: Iterable[str] = (), namespace: str = "") -> Status:
        """See `ChangeSource`."""
        async with self.engine.connect() as connection:
            status = Status(installed=True, way="binary log")
            status.watched += await tables_of(connection)
            status.leader = await leader(connection, lock_of(namespace))
            written = await _written(connection)
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


async def _written(connection: AsyncConnection) -> Any:
    """Return what the server reports of the end of its log: the file, the offset, and the filters."""
    dialect: Any = connection.dialect
    is_renamed = not dialect.is_mariadb and dialect.server_version_info >= (8, 2)
    return (await connection.exec_driver_sql(f"SHOW {'BINARY LOG' if is_renamed else 'MASTER'} STATUS")).one()


async def _end(connection: AsyncConnection) -> tuple[Place, frozenset[str]] | None:
    """Return a place in the log, and names of transactions before it that a snapshot of now does not see.

    None if the server does not report that.
    """
    await connection.exec_driver_sql("START TRANSACTION WITH CONSISTENT SNAPSHOT")
    try:
        found = {name.lower(): value for name, value in await connection.execute(_SNAPSHOT)}
    finally:
        await connection.exec_driver_sql("ROLLBACK")
    if file := found.get("binlog_snapshot_file"):
        return place_of(file, found.get("binlog_snapshot_position")), frozenset()
    dialect: Any = connection.dialect
    if dialect.is_mariadb:
        return None
    written = await _written(connection)  # read first: a commit may begin before the next answer
    mode, owned = (await connection.execute(_IN_COMMIT)).one()
    return (place_of(written[0], written[1]), frozenset(_names(owned))) if mode == "ON" else None


def _names(owned: str) -> Iterator[str]:
    """Yield each `uuid:number` of a list such as `uuid:5#8:6#9, uuid:7#10`: the session stands behind the number."""
    for each in owned.split(","):
        server, *numbers = each.strip().split(":")
        yield from (f"{server}:{number.partition('#')[0]}" for number in numbers)


def _parsed(position: str | None) -> tuple[str, Place | None]:
    """Return the server and the place of a position."""
    parts: list[Any] = (position or "").rsplit(" ", 3)
    if len(parts) != 4 or not (parts[2] + parts[3]).isdigit():
        return "", None
    return parts[0], place_of(*parts[1:])
