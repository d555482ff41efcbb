"""The look before an UPDATE or DELETE: a SELECT that locks its rows and reads their present values.

The ORM's old values cannot be trusted: another session may have changed the row since it was loaded. The look takes no
lock that the statement would not take a moment later. The locked rows cannot change until then. So if the statement
changes as many rows as were locked, no other row has come in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Final

from sqlalchemy import (
    BindParameter,
    Connection,
    Table,
    and_,
    bindparam,
    case,
    false,
    literal_column,
    or_,
    select,
    update,
)
from sqlalchemy.exc import DBAPIError
from sqlalchemy.sql import visitors
from sqlalchemy.sql.sqltypes import TupleType

from fastrdb.keys import value_text
from fastrdb.orm import exact_type

from .catalog import ROLE, asking, savepoint
from .conditions import MOST_VALUES
from .reads import unique_columns
from .writes import MOST_ROWS, Change, statement_of

_DENIED: Final = ("42501", 1142, 1143)
"""The SQLSTATE of PostgreSQL, and the errors of MariaDB and MySQL, for a right that the user lacks."""


def look(connection: Connection, context: Any, change: Change, columns: Collection[str]) -> None:
    """Fill `change.looked` with the present values of these columns; leave it empty where these cannot be known.

    Runs a statement in the connection's transaction. An error of the database, such as a lock timeout, is raised
    unchanged: the statement itself would meet the same one. It needs fewer rights than the look.
    """
    statement = statement_of(context.compiled)
    table = getattr(statement, "table", None)
    if change.whole or not change.by_row or not isinstance(table, Table) or not columns:
        return
    wanted = [column for column in table.c if column.name in columns or column.primary_key]
    if len(context.compiled_parameters) > MOST_VALUES:
        return
    with asking(connection):
        _lock_sqlite(connection, table)
        asked = _select(context, statement, wanted, key_share=not _locks_keys(table, change))
        try:
            with savepoint(connection) if ROLE in connection.info else nullcontext():
                rows = connection.execute(asked, execution_options=_options(context)).all()
        except DBAPIError as error:
            if not is_denied(error.orig):
                raise
            return
    if len(rows) <= MOST_ROWS:
        change.looked = _texts(wanted, rows, connection.dialect.name)
        change.rows = None if _are_all(table, change, len(rows)) else len(rows)


def is_denied(error: Any) -> bool:
    """Return True for a driver's error that a right is missing."""
    codes = (getattr(error, name, None) for name in ("sqlstate", "pgcode", "errno"))
    return any(code in _DENIED for code in (*codes, *getattr(error, "args", ())[:1]))


def check(cursor: Any, change: Change) -> None:
    """Clear `change.looked` if the statement, which has run, changed another number of rows than were locked."""
    rows = getattr(cursor, "rowcount", -1)
    change.empty = change.counted and rows == 0
    if change.rows is not None and rows != change.rows:
        change.looked = {}
    change.rows = None


def _locks_keys(table: Table, change: Change) -> bool:
    """Return True if PostgreSQL takes the lock of FOR UPDATE for the statement, and not a weaker one.

    A look that took the weaker one would wait for the other while it holds a lock.
    """
    return change.kind == "delete" or not change.new.keys().isdisjoint(unique_columns(table))


def _select(context: Any, statement: Any, columns: Sequence[Any], *, key_share: bool) -> Any:
    """Return the SELECT that finds and locks the rows of all parameter sets."""
    dialect = context.dialect.name
    rows: Any = select(*columns).limit(MOST_ROWS + 1)
    if dialect != "sqlite":
        rows = rows.with_for_update(key_share=key_share and dialect == "postgresql")
    if not statement._where_criteria:
        return rows
    sets = [and_(*_where(statement, context, values)) for values in context.compiled_parameters]
    rows = rows.where(or_(*sets))
    if dialect != "postgresql" or len(sets) == 1:
        return rows
    # PostgreSQL locks rows in this order: set by set, as the statement does. InnoDB locks them in that of its index.
    return rows.order_by(case(*((each, literal_column(str(at))) for at, each in enumerate(sets))))


def _are_all(table: Table, change: Change, rows: int) -> bool:
    """Return True if no other row can match: each key that WHERE names was found, and is locked."""
    keys = [column.name for column in table.primary_key.columns]
    return len(keys) == 1 and keys[0] in change.old and len(change.old[keys[0]]) == rows


def _where(statement: Any, context: Any, values: Mapping[str, Any]) -> list[Any]:
    """Return the statement's WHERE with the values of this execution: it holds those of the first execution."""
    names, expanded = context.compiled.bind_names, context._expanded_parameters or {}

    def replace(element: Any, **_: Any) -> Any:
        if not isinstance(element, BindParameter):
            return None
        name = names.get(element, element.key)
        value = [values[each] for each in expanded[name]] if name in expanded else values[name]
        if element.expanding and isinstance(element.type, TupleType):
            size = len(element.type.types)
            value = [tuple(value[at : at + size]) for at in range(0, len(value), size)]
        return bindparam(None, value, type_=element.type, unique=True, expanding=element.expanding)

    return [visitors.replacement_traverse(each, {}, replace) for each in statement._where_criteria]


def _lock_sqlite(connection: Connection, table: Table) -> None:
    """Take SQLite's write lock, which the statement takes next. SQLite has no FOR UPDATE."""
    driver = connection.connection.driver_connection if connection.dialect.name == "sqlite" else None
    if driver is not None and not driver.in_transaction:
        column = next(iter(table.primary_key), None)
        if column is not None:
            connection.execute(update(table).values({column: column}).where(false()))


def _options(context: Any) -> dict[str, Any]:
    """Return the options under which the look finds the same table."""
    translated = context.execution_options.get("schema_translate_map")
    return {"schema_translate_map": translated} if translated else {}


def _texts(columns: Sequence[Any], rows: Sequence[Any], dialect: str) -> dict[str, frozenset[str]]:
    """Return the texts of each column's values; leave out a column with a value that has no text in tags."""
    found = {}
    for at, column in enumerate(columns):
        if exact_type(column.type, dialect) is None:
            continue
        texts = [value_text(row[at]) for row in rows]
        if None not in texts:
            found[column.name] = frozenset(each for each in texts if each is not None)
    return found
