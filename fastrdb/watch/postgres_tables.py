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

INSTALLED: Final = """(EXISTS (
    SELECT FROM pg_attribute
    WHERE attrelid = to_regclass('fastrdb.outbox') AND attname = 'id' AND atttypid = CAST('pg_catalog.uuid' AS regtype)
))"""
"""The condition that there is an outbox, and of this version."""
_OUTBOX: Final = f"""
    IF to_regnamespace('fastrdb') IS NULL THEN
        CREATE SCHEMA fastrdb;
    END IF;
    IF NOT {INSTALLED} THEN
        DROP TABLE IF EXISTS fastrdb.outbox;  -- of an earlier version
        -- No sequence: lastval() of the writer would return its number.
        CREATE UNLOGGED TABLE fastrdb.outbox (id uuid NOT NULL DEFAULT gen_random_uuid(),
            xid xid8 NOT NULL DEFAULT pg_current_xact_id(), tbl text NOT NULL, rel oid, image jsonb);
        CREATE INDEX outbox_xid ON fastrdb.outbox (xid, id);
        -- Without it each poll would walk over all rows, the dead ones too, to find the mark.
        CREATE INDEX outbox_mark ON fastrdb.outbox (tbl) WHERE tbl = '';
        COMMENT ON TABLE fastrdb.outbox IS 'Changes for fastrdb watch. The row without a table marks it as whole.';
    END IF;
    INSERT INTO fastrdb.outbox (tbl) SELECT '' WHERE NOT EXISTS (SELECT FROM fastrdb.outbox WHERE tbl = '');
"""
_MOST_BYTES: Final = 32_768
"""A larger image counts as any row, so that a page of the outbox fits into memory."""
_LOCK: Final = 0x6661737472646202
_EXACT: Final = """(
    a.atttypid = ANY (CAST('{pg_catalog.int2,pg_catalog.int4,pg_catalog.int8,pg_catalog.text,pg_catalog.varchar,
        pg_catalog.uuid,pg_catalog.bool,pg_catalog.date}' AS regtype[])) AND a.attgenerated <> 'v'
    AND NOT EXISTS (SELECT FROM pg_collation l WHERE l.oid = a.attcollation AND NOT l.collisdeterministic)
)"""
"""The condition that different values of a column are different, each with the text that a reader's tags have."""
_TABLES = text(f"""
SELECT c.oid, n.nspname, c.relname, n.nspname = current_schema() AS own, n.nspname IN ({SEARCHED}) AS bare,
c.relkind = 'f' AS is_foreign, EXISTS (
    WITH RECURSIVE down AS (
        SELECT c.oid UNION SELECT i.inhrelid FROM pg_inherits i JOIN down ON i.inhparent = down.oid
    ) SELECT FROM pg_class f JOIN down USING (oid) WHERE f.relkind = 'f'
) AS has_foreign, EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = c.oid) AND NOT EXISTS (
    SELECT FROM pg_trigger WHERE tgrelid = c.oid AND tgenabled IN ('A', 'R') AND CAST(tgtype AS int) & 1 = 1
) AS is_applied
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind IN ('r', 'p', 'f') AND c.relpersistence <> 't'
AND n.nspname NOT IN ('pg_catalog', 'information_schema', 'fastrdb') AND n.nspname NOT LIKE 'pg_toast%'
ORDER BY n.nspname, c.relname
""")
_COLUMNS = text(f"""
SELECT a.attrelid, a.attname, {_EXACT},
    EXISTS (SELECT FROM pg_index i WHERE i.indrelid = a.attrelid AND a.attnum = ANY (i.indkey))
    OR EXISTS (SELECT FROM pg_constraint k
        WHERE k.conrelid = a.attrelid AND k.contype = 'f' AND a.attnum = ANY (k.conkey))
FROM pg_attribute a WHERE a.attnum > 0 AND NOT a.attisdropped
ORDER BY a.attrelid, a.attnum
""")
_EVENTS: Final = {
    "INSERT": "REFERENCING NEW TABLE AS n ",
    "UPDATE": "REFERENCING OLD TABLE AS o NEW TABLE AS n ",
    "DELETE": "REFERENCING OLD TABLE AS o ",
    "TRUNCATE": "",
}
"""The events of which each table has a trigger, with the transition tables."""
_REPORTED = re.compile(r"'((?:[^']|'')*)', jsonb_agg\(")
KIN: Final = f"""
down AS (
    SELECT rel AS root, rel AS oid FROM found
    UNION SELECT root, i.inhrelid FROM down JOIN pg_inherits i ON i.inhparent = oid
), up AS (
    SELECT root, oid FROM down UNION SELECT root, i.inhparent FROM up JOIN pg_inherits i ON i.inhrelid = oid
), kin AS (
    SELECT root, CASE WHEN n.nspname IN ({SEARCHED}) THEN '' ELSE n.nspname || '.' END || c.relname AS other
    FROM up JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
)
"""
"""Of a WITH RECURSIVE: each table of `found` beside the names of all that hold rows of it, or of its partitions and
children: itself, these, and all of their parents. `install` may have had another search_path, and so another name."""
INEXACT: Final = f"""
inexact AS (
    SELECT a.attrelid, array_agg(CAST(a.attname AS text)) AS names FROM pg_attribute a
    WHERE a.attrelid IN (SELECT rel FROM found) AND a.attnum > 0 AND NOT a.attisdropped AND NOT {_EXACT}
    GROUP BY a.attrelid
)
"""
"""Of a WITH: the columns of each table of `found` whose values are not those of tags, or no longer since `install`."""


@dataclass(frozen=True, slots=True)
class Table:
    """One table.

    Attributes:
        own: the table is in the default schema.
        bare: tags have the name without the schema.
        is_foreign, has_foreign: the table is a foreign one, or has a foreign partition. Transition tables are refused
            there, so triggers report any row.
        is_applied: a subscription writes to the table, which fires triggers for rows alone, and there is none.
        columns: those that triggers report.
        exact: those that could be reported.
    """

    oid: int
    schema: str
    name: str
    own: bool
    bare: bool
    is_foreign: bool
    has_foreign: bool
    is_applied: bool
    columns: tuple[str, ...] = ()
    exact: frozenset[str] = frozenset()

    @property
    def known_as(self) -> str:
        """Return the name in tags: without the schemas of the search_path."""
        return self.name if self.bare else f"{self.schema}.{self.name}"

    @property
    def function(self) -> str:
        """Return the name of the function that its triggers run."""
        digest = hashlib.sha256(f"{self.schema}.{self.name}".encode()).hexdigest()[:24]
        return f"{'touched' if self.has_foreign else 'changed'}_{digest}"

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
    exact: dict[int, set[str]] = {oid: set() for oid in names}
    for oid, column, is_exact, indexed in await connection.execute(_COLUMNS):
        if oid in names and is_exact:
            exact[oid].add(column)
            if indexed or f"{names[oid]}:{column}".lower() in wanted:
                chosen[oid].append(column)
    return [
        Table(
            *(row.oid, row.nspname, row.relname),
            own=row.own,
            bare=row.bare,
            is_foreign=row.is_foreign,
            has_foreign=row.has_foreign,
            is_applied=row.is_applied,
            columns=tuple(chosen[row.oid][:COLUMNS_NAMED]),
            exact=frozenset(exact[row.oid]),
        )
        for row in rows
    ]


def chosen(found: list[Table], tables: Collection[str]) -> list[Table]:
    """Return the tables of these names, or those of the default schema. Raises OptionError for an unknown name."""
    found = [table for table in found if not table.is_foreign]
    if not tables:
        return [table for table in found if table.own]
    ordered = sorted(found, key=lambda table: table.own)  # of two tables with one name, the default schema's is meant
    by_name = {name: table for table in ordered for name in (table.known_as, f"{table.schema}.{table.name}")}
    require_tables(tables, by_name)
    return [by_name[name] for name in tables]


def outbox_sql() -> str:
    """Return the statement that makes the outbox."""
    return _alone(_OUTBOX)


def trigger_sql(table: Table, searched: Iterable[str]) -> str:
    """Return the statement that makes one table record its changes; tags leave the schemas `searched` out.

    Triggers that are there already stay: to make one locks the table. Under an outbox that was read, any row of a table
    without them may have changed.
    """
    oid, made = f"CAST({_literal(table.quoted)} AS regclass)", ""
    for event, given in _EVENTS.items():
        trigger, transition = f"fastrdb_{event.lower()}", "" if table.has_foreign else given
        made += f"""
        DROP TRIGGER IF EXISTS {trigger} ON {table.quoted};
        CREATE TRIGGER {trigger} AFTER {event} ON {table.quoted} {transition}FOR EACH STATEMENT
            EXECUTE FUNCTION fastrdb.{table.function}();"""
    active = (
        f"SELECT count(*) FROM pg_trigger WHERE tgrelid = {oid} AND tgname LIKE 'fastrdb%' AND tgenabled IN ('O', 'A')"
    )
    return _alone(f"""    {_function(table, ", ".join(map(_literal, searched)))};
    IF ({active} AND tgfoid = to_regproc('fastrdb.{table.function}')) < {len(_EVENTS)} THEN
        INSERT INTO fastrdb.outbox (tbl, rel) SELECT {_literal(table.known_as)}, {oid} FROM fastrdb.outbox
        WHERE tbl = '' AND image IS NOT NULL AND ({active}) < {len(_EVENTS)};{made}
    END IF;
""")


def removal_sql(functions: Iterable[str]) -> list[str]:
    """Return the statements that remove functions with their triggers, and the outbox.

    Only the owner of a table may drop a trigger by itself.
    """
    removed = [_alone(f"    DROP FUNCTION IF EXISTS fastrdb.{_quoted(name)}() CASCADE;\n") for name in functions]
    return [*removed, _alone("    DROP SCHEMA IF EXISTS fastrdb CASCADE;\n")]


def _alone(body: str) -> str:
    """Return a statement for a part of an installation: by itself a transaction, which locks one table.

    One installation runs at a time. A lock that is not free is given up soon, since writers of the table wait behind.
    """
    block = f"""
DECLARE
    before text := current_setting('lock_timeout');
BEGIN
    SET LOCAL lock_timeout = '1s';
    PERFORM pg_advisory_xact_lock({_LOCK});
{body}    PERFORM set_config('lock_timeout', before, true);
END """
    return f"DO {_dollar_quoted(block)}"


def reported_of(function: str) -> set[str]:
    """Return the columns that the function of a table's triggers reports."""
    return {name.replace("''", "'") for name in _REPORTED.findall(function)}


def _function(table: Table, searched: str) -> str:
    """Return the statement that makes the function of a table's triggers.

    No write may fail because of it. The outbox is written outside of the block that catches errors: a subtransaction
    that writes uses up a transaction id. The name of the table is read when the trigger runs.
    """
    body = f"""
#variable_conflict use_column
DECLARE
    found jsonb;
    named text := CASE WHEN TG_TABLE_SCHEMA IN ({searched}) THEN '' ELSE TG_TABLE_SCHEMA || '.' END;
BEGIN{"" if table.has_foreign else _values(table.columns)}
    INSERT INTO fastrdb.outbox (tbl, rel, image) VALUES (named || TG_TABLE_NAME, TG_RELID, found);
    RETURN NULL;
END """
    return (
        f"CREATE OR REPLACE FUNCTION fastrdb.{table.function}() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER\n"
        f"SET search_path = pg_catalog AS {_dollar_quoted(body)}"
    )


def _values(columns: Collection[str]) -> str:
    """Return the part of a function that reads values. Where columns were renamed or dropped, any row has changed."""
    values = ", ".join(f"{_literal(each)}, jsonb_agg(DISTINCT {_quoted(each)})" for each in columns)
    picked = ", ".join(map(_quoted, columns))

    def found(rows: str, most: int) -> str:
        if not columns:
            return "NULL;"
        few = f"SELECT count(*) <= {most} FROM (SELECT FROM {rows} LIMIT {most + 1}) AS few"  # of millions of rows, too
        return f"IF ({few}) THEN SELECT jsonb_build_object({values}) INTO found FROM {rows}; END IF;"

    return f"""
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
    IF pg_column_size(found) > {_MOST_BYTES} THEN found := NULL; END IF;"""


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
