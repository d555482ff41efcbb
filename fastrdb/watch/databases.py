"""The source of changes for a database, by its dialect."""

from __future__ import annotations

from typing import Any

from fastrdb.errors import OptionError
from fastrdb.inference import OWN_STATEMENTS

from .mysql import MySQLSource
from .postgres import PostgresSource
from .source import ChangeSource
from .sqlite import SQLiteSource


def source_of(engine: Any) -> ChangeSource:
    """Return the source for an `AsyncEngine`, by its dialect. A cache with `auto=True` does not follow its statements.

    Raises:
        OptionError: there is no source for this database.
    """
    dialect, engine = engine.dialect.name, engine.execution_options(**{OWN_STATEMENTS: True})
    if dialect == "postgresql":
        return PostgresSource(engine)
    if dialect == "sqlite":
        return SQLiteSource(engine)
    if dialect in ("mysql", "mariadb"):
        return MySQLSource(engine)
    raise OptionError(f"watch: databases are PostgreSQL, MariaDB, MySQL and SQLite, and this is {dialect}")
