"""What only the driver's connection knows, or is known of it beyond one transaction; the database knows the rest."""

from __future__ import annotations

from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine

from .state import next_order

_LEVEL, _STREAMS = "fastrdb.level", "fastrdb.streams"  # in `Connection.info`, which belongs to the driver's connection
_levels: WeakKeyDictionary[Engine, str] = WeakKeyDictionary()


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


# --- isolation levels


def known_level(connection: Connection) -> str | None:
    """The isolation level, or None if the database must be asked."""
    if autocommits(connection):
        return "AUTOCOMMIT"
    if _LEVEL in connection.info:
        return None
    chosen = connection.get_execution_options().get("isolation_level")
    return _levels.get(connection.engine) if chosen is None else str(chosen).replace("_", " ").upper()


def ask_level(connection: Connection) -> str:
    """Ask the database: once for each engine, until a statement sets a level of its own."""
    level = connection.get_isolation_level()
    if _LEVEL not in connection.info:
        _levels[connection.engine] = level
    return level


def level_is_set(connection: Connection) -> None:
    """A statement sets an isolation level: for its transaction, or for all that the driver's connection will see."""
    connection.info[_LEVEL] = True


# --- what else a transaction does


def has_written(connection: Connection) -> bool:
    """Ask the database whether functions that were called have written. Only PostgreSQL can tell."""
    if connection.dialect.name != "postgresql":
        return False
    return bool(connection.exec_driver_sql("SELECT txid_current_if_assigned() IS NOT NULL").scalar())


def stream_begins(connection: Connection, context: Any) -> None:
    """A statement's result is not read at once. In SQLite it holds a snapshot until its end, for all statements."""
    connection.info.setdefault(_STREAMS, WeakKeyDictionary())[context] = next_order()


def streams(connection: Connection, since: int) -> bool:
    """True if a result that is being read began before the point `since`."""
    return any(order < since for order in connection.info.get(_STREAMS, {}).values())
