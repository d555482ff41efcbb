"""What only the driver's connection knows, or is known of it beyond one transaction."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection

_LEVEL, _STREAMS = "fastrdb.level", "fastrdb.streams"  # in `Connection.info`, which belongs to the driver's connection


def autocommits(connection: Connection) -> bool:
    """True if each statement commits by itself. SQLAlchemy has no public word for what the engine was set to."""
    if connection._is_autocommit_isolation():
        return True
    driver = sqlite_driver(connection)
    if driver is not None:
        return driver.isolation_level is None and not driver.in_transaction
    asked = getattr(connection.connection.dbapi_connection, "get_autocommit", None)  # MariaDB's and MySQL's drivers
    return asked is not None and bool(asked())


def sqlite_driver(connection: Connection) -> Any:
    """The driver's connection to SQLite, which knows whether there is a transaction; None for other databases."""
    return connection.connection.driver_connection if connection.dialect.name == "sqlite" else None


def level_may_differ(connection: Connection) -> bool:
    """True if a statement has set an isolation level since the driver connected."""
    return _LEVEL in connection.info


def streams(connection: Connection) -> bool:
    """True if a result is being read row by row: in SQLite, it holds a snapshot until its end, for all statements."""
    return bool(connection.info.get(_STREAMS))


def level_is_set(connection: Connection) -> None:
    """A statement sets an isolation level, and for all that follows perhaps."""
    connection.info[_LEVEL] = True


def stream_begins(connection: Connection, context: Any) -> None:
    """A statement's result is not read at once."""
    connection.info.setdefault(_STREAMS, WeakSet()).add(context)
