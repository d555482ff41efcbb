"""The look before an UPDATE or DELETE: the values that its rows have now, read under the lock that it takes anyway.

The ORM's old values cannot be trusted: another session may have moved the row since it was loaded. The look takes no
lock that the statement would not take a moment later. The rows that were looked at cannot change until then, so an
equal count of rows means that no other row has come in between.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from sqlalchemy import BindParameter, Connection, Table, and_, bindparam, false, or_, select, update
from sqlalchemy.sql import visitors

from fastrdb.keys import value_text
from fastrdb.orm import exact_type

from .catalog import asking
from .conditions import MOST_VALUES
from .writes import MOST_ROWS, Change, statement_of


def look(connection: Connection, context: Any, change: Change, columns: Collection[str]) -> None:
    """Fill `change.looked` with the values before, in these columns; leave it empty where these cannot be known.

    Runs a statement in the connection's transaction. An error of the database is that of the statement itself: a row
    lock that times out, say, and passes through.
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
        rows = connection.execute(_select(context, statement, wanted), execution_options=_options(context)).all()
    if len(rows) <= MOST_ROWS:
        change.looked = _texts(wanted, rows, connection.dialect.name)
        change.rows = None if _are_all(table, change, len(rows)) else len(rows)


def check(cursor: Any, change: Change) -> None:
    """After the statement: forget what was looked at if the statement has changed another number of rows."""
    if change.rows is not None and getattr(cursor, "rowcount", -1) != change.rows:
        change.looked = {}
    change.rows = None


def _select(context: Any, statement: Any, columns: Sequence[Any]) -> Any:
    """Return the SELECT that finds and locks the rows of all parameter sets."""
    dialect = context.dialect.name
    rows: Any = select(*columns).limit(MOST_ROWS + 1)
    if dialect != "sqlite":
        rows = rows.with_for_update(key_share=dialect == "postgresql")
    if not statement._where_criteria:
        return rows
    return rows.where(or_(*(and_(*_where(statement, context, values)) for values in context.compiled_parameters)))


def _are_all(table: Table, change: Change, rows: int) -> bool:
    """Return True if no other row can match: each key that WHERE names was found, and is locked."""
    keys = [column.name for column in table.primary_key.columns]
    return len(keys) == 1 and keys[0] in change.old and len(change.old[keys[0]]) == rows


def _where(statement: Any, context: Any, values: Mapping[str, Any]) -> list[Any]:
    """Return the statement's WHERE with the values of this execution: those in it are of the first one compiled."""
    names, expanded = context.compiled.bind_names, context._expanded_parameters or {}
    escaped = getattr(context.compiled, "escaped_bind_names", None) or {}

    def replace(element: Any, **_: Any) -> Any:
        if not isinstance(element, BindParameter):
            return None
        name = names.get(element, element.key)
        value = [values[each] for each in expanded[name]] if name in expanded else values[escaped.get(name, name)]
        return bindparam(None, value, type_=element.type, unique=True, expanding=element.expanding)

    return [visitors.replacement_traverse(each, {}, replace) for each in statement._where_criteria]


def _lock_sqlite(connection: Connection, table: Table) -> None:
    """Take SQLite's write lock, as the statement is about to: it has no FOR UPDATE."""
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
    """Return the values of each column, where all can be written in a tag."""
    found = {}
    for at, column in enumerate(columns):
        if exact_type(column.type, dialect) is None:
            continue
        texts = [value_text(row[at]) for row in rows]
        if None not in texts:
            found[column.name] = frozenset(each for each in texts if each is not None)
    return found
