"""The tables of a PostgreSQL database, and the triggers by which each records its changes."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from fastrdb.errors import OptionError

from .source import COLUMNS_NAMED, ROWS_NAMED

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_TYPES: Final = ("int2", "int4", "int8", "text", "varchar", "uuid", "bool", "date")
"""Types whose values have one text, in the database and in a reader."""

OUTBOX: Final = (
    "CREATE SCHEMA IF NOT EXISTS fastrdb",
    (
        "CREATE UNLOGGED TABLE IF NOT EXISTS fastrdb.outbox (id bigint GENERATED ALWAYS AS IDENTITY,"
        " xid xid8 NOT NULL DEFAULT pg_current_xact_id(), tbl text NOT NULL, image jsonb)"
    ),
    "CREATE INDEX IF NOT EXISTS outbox_xid ON fastrdb.outbox (xid, id)",
    "COMMENT ON TABLE fastrdb.outbox IS 'Changes for fastrdb watch. The row without a table marks it as whole.'",
    """CREATE OR REPLACE FUNCTION fastrdb.truncated() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog AS $fastrdb$
BEGIN
    INSERT INTO fastrdb.outbox (tbl) VALUES (TG_ARGV[0]);
    RETURN NULL;
END $fastrdb$""",
)
_TABLES = text("""
SELECT c.oid, n.nspname, c.relname, n.nspname = current_schema() AS own, c.relkind
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'fastrdb') AND n.nspname NOT LIKE 'pg_toast%'
ORDER BY n.nspname, c.relname
""")
_COLUMNS = text("""
SELECT a.attrelid, a.attname,
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey))
    OR EXISTS (SELECT FROM pg_constraint k
        WHERE k.conrelid = a.attrelid AND k.contype = 'f' AND a.attnum = ANY (k.conkey))
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attnum > 0 AND NOT a.attisdropped AND t.typname = ANY (CAST(:types AS text[]))
ORDER BY a.attrelid, a.attnum
""")
_KIN = text("""
WITH RECURSIVE up AS (
    SELECT inhrelid AS child, inhparent AS parent FROM pg_inherits
    UNION SELECT up.child, i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.parent
) SELECT child, parent FROM up
""")


@dataclass(frozen=True, slots=True)
class Table:
    """One table, and the columns that its triggers report."""

    oid: int
    schema: str
    name: str
    own: bool  # in the default schema
    columns: tuple[str, ...] = ()

    @property
    def known_as(self) -> str:
        """Return the name in tags: without the default schema."""
        return self.name if self.own else f"{self.schema}.{self.name}"

    @property
    def function(self) -> str:
        """Return the name of the function of its triggers."""
        digest = hashlib.sha256(f"{self.schema}.{self.name}".encode()).hexdigest()[:24]
        return f"fastrdb.changed_{digest}"

    @property
    def quoted(self) -> str:
        """Return the name as statements have it."""
        return f"{_quoted(self.schema)}.{_quoted(self.name)}"


async def tables_of(connection: AsyncConnection, columns: Iterable[str]) -> list[Table]:
    """Return all tables with the columns that their triggers report: keys, indexed ones, and those asked for."""
    wanted = {name.lower() for name in columns}
    rows = (await connection.execute(_TABLES)).all()
    names = {row.oid: row.relname if row.own else f"{row.nspname}.{row.relname}" for row in rows}
    chosen: dict[int, list[str]] = {}
    for oid, column, indexed in await connection.execute(_COLUMNS, {"types": list(_TYPES)}):
        if oid in names and (indexed or f"{names[oid]}:{column}".lower() in wanted):
            chosen.setdefault(oid, []).append(column)
    return [
        Table(row.oid, row.nspname, row.relname, row.own, tuple(chosen.get(row.oid, ())[:COLUMNS_NAMED]))
        for row in rows
    ]


def chosen(found: list[Table], tables: Collection[str]) -> list[Table]:
    """Return the tables of these names, or those of the default schema. Raises OptionError."""
    if not tables:
        return [table for table in found if table.own]
    by_name = {name: table for table in found for name in (table.known_as, f"{table.schema}.{table.name}")}
    if missing := [name for name in tables if name not in by_name]:
        raise OptionError(f"watch: no table {', '.join(missing)}; there are: {', '.join(t.known_as for t in found)}")
    return [by_name[name] for name in tables]


async def kin_of(connection: AsyncConnection) -> dict[str, tuple[str, ...]]:
    """Return for each table the partitions and parents that hold rows of the same."""
    names = {table.oid: table.known_as for table in await tables_of(connection, ())}
    found: dict[str, list[str]] = {}
    for child, parent in await connection.execute(_KIN):
        if child in names and parent in names:
            found.setdefault(names[child], []).append(names[parent])
            found.setdefault(names[parent], []).append(names[child])
    return {name: tuple(kin) for name, kin in found.items()}


def trigger_sql(table: Table, there: Collection[tuple[int, str]]) -> list[str]:
    """Return the statements that make one table record its changes.

    A trigger that is `there` stays, since making one locks the table. What it does stands in the function.
    """
    name, columns = _literal(table.known_as), table.columns
    aggregates = ", ".join(f"{_literal(each)}, jsonb_agg(DISTINCT {_quoted(each)})" for each in columns)
    picked = ", ".join(map(_quoted, columns))

    def insert(rows: str, most: int) -> str:
        values = f"CASE WHEN count(*) <= {most} THEN jsonb_build_object({aggregates}) END" if columns else "NULL"
        return f"INSERT INTO fastrdb.outbox (tbl, image) SELECT {name}, {values} FROM {rows}"

    both = f"(SELECT {picked} FROM o UNION ALL SELECT {picked} FROM n) AS changed" if columns else "n LIMIT 1"
    function = f"""
CREATE OR REPLACE FUNCTION {table.function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog AS $fastrdb$
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF EXISTS (SELECT FROM n) THEN {insert("n" if columns else "n LIMIT 1", ROWS_NAMED)}; END IF;
    ELSIF TG_OP = 'DELETE' THEN
        IF EXISTS (SELECT FROM o) THEN {insert("o" if columns else "o LIMIT 1", ROWS_NAMED)}; END IF;
    ELSE
        IF EXISTS (SELECT FROM n) THEN {insert(both, 2 * ROWS_NAMED)}; END IF;
    END IF;
    RETURN NULL;
END $fastrdb$"""
    made = [function.strip()]
    for event, given in (
        ("INSERT", "REFERENCING NEW TABLE AS n"),
        ("UPDATE", "REFERENCING OLD TABLE AS o NEW TABLE AS n"),
        ("DELETE", "REFERENCING OLD TABLE AS o"),
        ("TRUNCATE", ""),
    ):
        trigger = f"fastrdb_{event.lower()}"
        if (table.oid, trigger) in there:
            continue
        action = f"fastrdb.truncated({name})" if event == "TRUNCATE" else f"{table.function}()"
        made += [
            f"DROP TRIGGER IF EXISTS {trigger} ON {table.quoted}",
            f"CREATE TRIGGER {trigger} AFTER {event} ON {table.quoted} {given} FOR EACH STATEMENT"
            f" EXECUTE FUNCTION {action}".replace("  ", " "),
        ]
    return made


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
