"""The tables of MariaDB and MySQL: the names, and the columns that readers tag entries by."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from fastrdb.errors import OptionError

from .source import COLUMNS_NAMED

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

OUTBOX: Final = "fastrdb_outbox"
_TABLES = text(
    "SELECT table_name FROM information_schema.tables"
    " WHERE table_schema = database() AND table_type IN ('BASE TABLE', 'SYSTEM VERSIONED')"
    " AND table_name <> :outbox ORDER BY table_name"
)
_ENGINES = text(
    "SELECT table_name, engine FROM information_schema.tables WHERE table_schema = database() AND engine NOT IN"
    " (SELECT engine FROM information_schema.engines WHERE transactions = 'YES') AND table_type = 'BASE TABLE'"
)
# Integers (booleans among them), dates and UUIDs. Readers tag by no text: its collation may take different ones for
# equal. SQLAlchemy stores UUIDs as CHAR(32) where there is no type of its own. MariaDB's JSON has zeros in front.
_COLUMNS = text("""
SELECT c.table_name AS tbl, c.column_name AS name, s.column_name IS NOT NULL AS indexed
FROM information_schema.columns c LEFT JOIN (
    SELECT DISTINCT table_name, column_name FROM information_schema.statistics WHERE table_schema = database()
) AS s ON s.table_name = c.table_name AND s.column_name = c.column_name
WHERE c.table_schema = database() AND c.column_type NOT LIKE '%zerofill%'
AND (c.data_type IN ('tinyint', 'smallint', 'mediumint', 'int', 'bigint', 'date',
    'uuid') OR c.column_type = 'char(32)')
ORDER BY c.table_name, c.ordinal_position
""")

_LOCK: Final = "left(concat('fastrdb ', sha2(concat(database(), '/', :lock), 256)), 64)"  # locks are of the server
_TAKE = text(f"SELECT GET_LOCK({_LOCK}, 0)")
_LEADER = text(
    "SELECT used.id, CONCAT(p.user, ' at ', p.host) AS owner"
    f" FROM (SELECT IS_USED_LOCK({_LOCK}) AS id) AS used LEFT JOIN information_schema.processlist p ON p.id = used.id"
)


async def tables_of(connection: AsyncConnection) -> list[str]:
    """Return the tables of the connection's database, but for the outbox."""
    return list((await connection.scalars(_TABLES, {"outbox": OUTBOX})).all())


async def without_transactions(connection: AsyncConnection) -> dict[str, str]:
    """Return the tables of which an outbox may lack changes, each with the reason."""
    return {
        name: f"{engine} has no transactions: a rollback keeps changes, and takes back what was reported of them"
        for name, engine in await connection.execute(_ENGINES)
    }


async def columns_of(connection: AsyncConnection, wanted: Iterable[str]) -> dict[str, list[str]]:
    """Return the columns to report of each table: those with an index, and `table:column` that are wanted."""
    asked = {name.lower() for name in wanted}
    found: dict[str, list[str]] = {}
    for row in await connection.execute(_COLUMNS):
        columns = found.setdefault(row.tbl, [])
        if (row.indexed or f"{row.tbl}:{row.name}".lower() in asked) and len(columns) < COLUMNS_NAMED:
            columns.append(row.name)
    return found


def lock_of(namespace: str) -> str:
    """Return the name of the lock of a namespace's watchers."""
    return f"namespace {namespace}"


async def locked(connection: AsyncConnection, lock: str) -> bool:
    """Take a lock of this database for the session, and return whether the session has it.

    Raises:
        OptionError: the session has no database, and so no name for the lock.
    """
    taken = await connection.scalar(_TAKE, {"lock": lock})
    if taken is None:
        raise OptionError(
            "watch: the connections of the engine have no default database: name it where the engine makes one"
        )
    return bool(taken)


async def leader(connection: AsyncConnection, lock: str) -> str | None:
    """Return a description of the session that has a lock. Another user's is shown only with the right PROCESS."""
    found = (await connection.execute(_LEADER, {"lock": lock})).one()
    return None if found.id is None else f"connection {found.id}" + (f" of {found.owner}" if found.owner else "")


def quoted(name: str) -> str:
    """Return a name as statements have it."""
    return "`" + name.replace("`", "``") + "`"
