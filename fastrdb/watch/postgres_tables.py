"""The tables of a PostgreSQL database, and the triggers by which each records its changes."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import text

from fastrdb.inference import SEARCHED

from .source import COLUMNS_NAMED, ROWS_NAMED, require_tables

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection

_TYPES: Final = ("int2", "int4", "int8", "text", "varchar", "uuid", "bool", "date")
"""Types whose values have the same text in the database and in a reader's tags."""

OUTBOX: Final = (
    "CREATE SCHEMA IF NOT EXISTS fastrdb",
    (
        "CREATE UNLOGGED TABLE IF NOT EXISTS fastrdb.outbox (id bigint GENERATED ALWAYS AS IDENTITY,"
        " xid xid8 NOT NULL DEFAULT pg_current_xact_id(), tbl text NOT NULL, image jsonb)"
    ),
    "CREATE INDEX IF NOT EXISTS outbox_xid ON fastrdb.outbox (xid, id)",
    # Without it each poll would walk over all rows, the dead ones too, to find the mark.
    "CREATE INDEX IF NOT EXISTS outbox_mark ON fastrdb.outbox (tbl) WHERE tbl = ''",
    "COMMENT ON TABLE fastrdb.outbox IS 'Changes for fastrdb watch. The row without a table marks it as whole.'",
)
_TABLES = text(f"""
SELECT c.oid, n.nspname, c.relname, n.nspname = current_schema() AS own, n.nspname IN ({SEARCHED}) AS bare
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p') AND c.relpersistence <> 't'
AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'fastrdb') AND n.nspname NOT LIKE 'pg_toast%'
ORDER BY n.nspname, c.relname
""")
_COLUMNS = text("""
SELECT a.attrelid, a.attname, t.typname = ANY (CAST(:types AS text[])),
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey))
    OR EXISTS (SELECT FROM pg_constraint k
        WHERE k.conrelid = a.attrelid AND k.contype = 'f' AND a.attnum = ANY (k.conkey))
FROM pg_attribute a JOIN pg_type t ON t.oid = a.atttypid
WHERE a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
""")
_REPORTED = re.compile(r"'((?:[^']|'')*)', jsonb_agg\(")
KIN: Final = f"""
named AS (
    SELECT c.oid, CASE WHEN n.nspname IN ({SEARCHED}) THEN '' ELSE n.nspname || '.' END || c.relname AS name
    FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE EXISTS (SELECT FROM found)
    AND c.oid IN (SELECT inhrelid FROM pg_inherits UNION ALL SELECT inhparent FROM pg_inherits)
), up AS (
    SELECT name, oid FROM named WHERE name IN (SELECT tbl FROM found)
    UNION SELECT up.name, i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = up.oid
), down AS (
    SELECT name, oid FROM named WHERE name IN (SELECT tbl FROM found)
    UNION SELECT down.name, i.inhrelid FROM down JOIN pg_inherits i ON i.inhparent = down.oid
), kin AS (
    SELECT one.name, named.name AS other FROM (SELECT * FROM up UNION SELECT * FROM down) AS one
    JOIN named USING (oid) WHERE one.name <> named.name
)
"""
"""Of a WITH RECURSIVE: each table of `found` beside each partition or parent that holds rows of the same."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table, the columns that its triggers report, and the names of all of its columns."""

    oid: int
    schema: str
    name: str
    own: bool  # in the default schema
    bare: bool  # tags have the name without the schema
    columns: tuple[str, ...] = ()
    names: frozenset[str] = frozenset()

    @property
    def known_as(self) -> str:
        """Return the name in tags: without the schemas of the search_path."""
        return self.name if self.bare else f"{self.schema}.{self.name}"

    @property
    def function(self) -> str:
        """Return the name of the function that its triggers run."""
        digest = hashlib.sha256(f"{self.schema}.{self.name}".encode()).hexdigest()[:24]
        return f"changed_{digest}"

    @property
    def quoted(self) -> str:
        """Return the name as statements have it."""
        return f"{_quoted(self.schema)}.{_quoted(self.name)}"


async def tables_of(connection: AsyncConnection, columns: Iterable[str]) -> list[Table]:
    """Return all tables with the columns that their triggers report: keys, indexed ones, and those asked for."""
    wanted = {name.lower() for name in columns}
    rows = (await connection.execute(_TABLES)).all()
    names = {row.oid: row.relname if row.bare else f"{row.nspname}.{row.relname}" for row in rows}
    chosen: dict[int, list[str]] = {oid: [] for oid in names}
    all_of: dict[int, list[str]] = {oid: [] for oid in names}
    for oid, column, exact, indexed in await connection.execute(_COLUMNS, {"types": list(_TYPES)}):
        if oid not in names:
            continue
        all_of[oid].append(column)
        if exact and (indexed or f"{names[oid]}:{column}".lower() in wanted):
            chosen[oid].append(column)
    return [
        Table(oid, schema, name, own, bare, tuple(chosen[oid][:COLUMNS_NAMED]), frozenset(all_of[oid]))
        for oid, schema, name, own, bare in rows
    ]


def chosen(found: list[Table], tables: Collection[str]) -> list[Table]:
    """Return the tables of these names, or those of the default schema. Raises OptionError for an unknown name."""
    if not tables:
        return [table for table in found if table.own]
    ordered = sorted(found, key=lambda table: table.own)  # of two tables with one name, the default schema's is meant
    by_name = {name: table for table in ordered for name in (table.known_as, f"{table.schema}.{table.name}")}
    require_tables(tables, by_name)
    return [by_name[name] for name in tables]


def trigger_sql(table: Table, searched: Iterable[str], there: Collection[tuple[int, str, str]]) -> list[str]:
    """Return the statements that make one table record its changes.

    Args:
        table: with the columns to report.
        searched: the schemas that are left out in tags.
        there: the triggers that exist, by table, name and function. These stay: creating one locks the table.
    """
    made = [_function(table, ", ".join(map(_literal, searched)))]
    for event, given in (
        ("INSERT", "REFERENCING NEW TABLE AS n "),
        ("UPDATE", "REFERENCING OLD TABLE AS o NEW TABLE AS n "),
        ("DELETE", "REFERENCING OLD TABLE AS o "),
        ("TRUNCATE", ""),
    ):
        trigger = f"fastrdb_{event.lower()}"
        if (table.oid, trigger, table.function) not in there:
            made += [
                f"DROP TRIGGER IF EXISTS {trigger} ON {table.quoted}",
                (
                    f"CREATE TRIGGER {trigger} AFTER {event} ON {table.quoted} {given}FOR EACH STATEMENT"
                    f" EXECUTE FUNCTION fastrdb.{table.function}()"
                ),
            ]
    return made


def reported_of(function: str) -> set[str]:
    """Return the columns that the function of a table's triggers reports."""
    return {name.replace("''", "'") for name in _REPORTED.findall(function)}


def _function(table: Table, searched: str) -> str:
    """Return the statement that makes the function of a table's triggers.

    No write may fail because of it. Where columns were renamed or dropped, any row counts as changed. The outbox is
    written outside of the block that catches this error: a subtransaction that writes uses up a transaction id. The
    name of the table is read when the trigger runs.
    """
    columns = table.columns
    values = ", ".join(f"{_literal(each)}, jsonb_agg(DISTINCT {_quoted(each)})" for each in columns)
    picked = ", ".join(map(_quoted, columns))

    def found(rows: str, most: int) -> str:
        if not columns:
            return "NULL;"
        return f"SELECT CASE WHEN count(*) <= {most} THEN jsonb_build_object({values}) END INTO found FROM {rows};"

    body = f"""
#variable_conflict use_column
DECLARE
    found jsonb;
    named text := CASE WHEN TG_TABLE_SCHEMA IN ({searched}) THEN '' ELSE TG_TABLE_SCHEMA || '.' END;
BEGIN
    IF TG_OP = 'INSERT' THEN
        IF NOT EXISTS (SELECT FROM n) THEN RETURN NULL; END IF;
    ELSIF TG_OP <> 'TRUNCATE' THEN
        IF NOT EXISTS (SELECT FROM o) THEN RETURN NULL; END IF;
    END IF;
    BEGIN
        IF TG_OP = 'INSERT' THEN
            {found("n", ROWS_NAMED)}
        ELSIF TG_OP = 'DELETE' THEN
            {found("o", ROWS_NAMED)}
        ELSIF TG_OP = 'UPDATE' THEN
            {found(f"(SELECT {picked} FROM o UNION ALL SELECT {picked} FROM n) AS changed", 2 * ROWS_NAMED)}
        END IF;
    EXCEPTION WHEN OTHERS THEN
        found := NULL;
    END;
    INSERT INTO fastrdb.outbox (tbl, image) VALUES (named || TG_TABLE_NAME, found);
    RETURN NULL;
END """
    return (
        f"CREATE OR REPLACE FUNCTION fastrdb.{table.function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER\n"
        f"SET search_path = pg_catalog AS {_dollar_quoted(body)}"
    )


def _dollar_quoted(body: str) -> str:
    """Return a text as SQL. A column may have any name, and `install` may have more rights than the name's author."""
    quote = "$fastrdb$"
    while quote in body:
        quote = f"{quote[:-1]}_$"
    return f"{quote}{body}{quote}"


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(value: str) -> str:
    return "'" + value.replace("'", "''") + "'"
