"""The queries that ask each kind of database for the facts about its tables and functions."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable
from typing import Any, Final, Protocol

from sqlalchemy import Connection, text

from .bodies import NO_FUNCTION, NO_TABLES, Function, Tables, columns_set_in
from .facts import (
    UNKNOWN_TABLE,
    Facts,
    Link,
    joined,
    merged,
)
from .lexer import BACKSLASHES, tokens
from .names import SEARCHED, SEARCHES, Names, names_in


class Asker(Protocol):
    """The catalog, from which a source reads further facts."""

    @property
    def known_names(self) -> Names:
        """The rules for names."""
        ...

    def facts(self, connection: Connection, table: str) -> Facts:
        """Return the facts of a table."""
        ...

    def function(self, connection: Connection, name: str) -> Function:
        """Return the facts of a function."""
        ...

    def named_in(
        self, connection: Connection, body: str, homes: Collection[str | None] | None = None, modes: str = ""
    ) -> Tables:
        """Return the tables that the text of a view, trigger or function may touch."""
        ...


class Source(ABC):
    """The queries of one kind of database."""

    def __init__(self, catalog: Asker) -> None:
        self.catalog = catalog

    def names(self, connection: Connection) -> Names | None:
        """Read the rules for names; None if the connection has others. Errors of the database are raised."""
        return names_in(connection.dialect)

    @abstractmethod
    def facts(self, connection: Connection, table: str) -> Facts:
        """Read the facts of a table. Errors of the database are raised."""

    @abstractmethod
    def function(self, connection: Connection, name: str) -> Function:
        """Read the facts of a function. Errors of the database are raised."""

    @abstractmethod
    def tables(self, connection: Connection) -> Iterable[tuple[str, str]]:
        """Read the schemas and names of all tables and views. Errors of the database are raised."""

    def name(self, schema: str | None, table: str) -> str:
        """Return the name as tags have it."""
        return self.catalog.known_names.joined(schema, table)

    def through(self, connection: Connection, tables: Tables) -> Tables:
        """Return these tables, and the tables that the views among them read."""
        if tables is None:
            return None
        return joined([tables, *(self.catalog.facts(connection, each).reads for each in sorted(tables))])


def _split(table: str) -> tuple[str | None, str]:
    schema, _, name = table.rpartition(".")
    return schema or None, name


# Of a function p: it is a part of the server, save those that run a query or use large objects, or it is compiled and
# a part of one of these extensions. No such function reads or writes a table, but for the row of a trigger.
_HARMLESS: Final = """(p.oid < 16384
    AND p.proname !~ '^(lo_.*|loread|lowrite|ts_stat|ts_rewrite|.*_to_xml.*)$'
OR l.lanname = 'c' AND EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
    WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' AND e.extname IN (
        'autoinc', 'hstore', 'insert_username', 'isn', 'lo', 'moddatetime', 'pg_trgm', 'pg_uuidv7', 'pgcrypto',
        'postgis', 'tcn', 'unaccent', 'uuid-ossp', 'vector')))"""


class _PostgreSQL(Source):
    _TABLE = text(
        """SELECT c.oid, c.relkind, c.relrowsecurity, has_table_privilege(c.oid, 'SELECT')
            AND has_any_column_privilege(c.oid, 'UPDATE')
        FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND (lower(n.nspname || '.' || c.relname) = CAST(:name AS text)
            OR lower(c.relname) = CAST(:name AS text) AND n.nspname = ANY (CAST(:searched AS text[])))"""
    )
    _RELATIVES = text(
        """WITH RECURSIVE down(oid) AS (SELECT CAST(:oid AS oid)
            UNION SELECT i.inhrelid FROM pg_inherits i JOIN down ON i.inhparent = down.oid),
        up(oid) AS (SELECT oid FROM down UNION SELECT i.inhparent FROM pg_inherits i JOIN up ON i.inhrelid = up.oid)
        SELECT c.oid, n.nspname, c.relname FROM up JOIN pg_class c USING (oid)
        JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid <> CAST(:oid AS oid)"""
    )
    _BASES = text(
        """SELECT DISTINCT d.refclassid = 'pg_proc'::regclass, n.nspname, coalesce(c.relname, p.proname)
        FROM pg_rewrite r JOIN pg_depend d ON d.classid = 'pg_rewrite'::regclass AND d.objid = r.oid
        LEFT JOIN pg_class c ON d.refclassid = 'pg_class'::regclass AND c.oid = d.refobjid
        LEFT JOIN pg_proc p ON d.refclassid = 'pg_proc'::regclass AND p.oid = d.refobjid
        JOIN pg_namespace n ON n.oid = coalesce(c.relnamespace, p.pronamespace)
        WHERE r.ev_class = CAST(:oid AS oid) AND d.refobjid <> CAST(:oid AS oid)
        UNION SELECT true, 'pg_catalog', found[2]  -- of the server's own functions, no dependency is recorded
        FROM regexp_matches(pg_get_viewdef(CAST(:oid AS oid)),
            '(^|[^a-z0-9_])(lo_get|loread|ts_stat|ts_rewrite|[a-z]+_to_xml[a-z_]*)[(]', 'g') AS found"""
    )
    _TRIGGERS = text(
        f"""SELECT t.tgtype, l.lanname, p.prosrc, {_HARMLESS} FROM pg_trigger t JOIN pg_proc p ON p.oid = t.tgfoid
        JOIN pg_language l ON l.oid = p.prolang
        WHERE t.tgrelid = ANY(CAST(:oids AS oid[])) AND NOT t.tgisinternal AND t.tgenabled <> 'D'"""  # noqa: S608
    )
    _GENERATED = text(
        """SELECT a.attname FROM pg_attribute a WHERE a.attrelid = CAST(:oid AS oid) AND NOT a.attisdropped
            AND to_jsonb(a) ->> 'attgenerated' <> ''"""  # a column that versions before 12 do not have
    )
    _RULES = text("SELECT count(*) FROM pg_rewrite WHERE ev_class = CAST(:oid AS oid) AND ev_type <> '1'")
    _POLICIES = text(
        """SELECT concat_ws(' ', pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
        FROM pg_policy WHERE polrelid = CAST(:oid AS oid)"""
    )
    _LINKS = text(
        """SELECT n.nspname, c.relname, ca.attname, pa.attname, f.confdeltype, f.confupdtype, cardinality(f.conkey)
        FROM pg_constraint f JOIN pg_class c ON c.oid = f.conrelid JOIN pg_namespace n ON n.oid = c.relnamespace
        JOIN pg_attribute ca ON ca.attrelid = f.conrelid AND ca.attnum = f.conkey[1]
        JOIN pg_attribute pa ON pa.attrelid = f.confrelid AND pa.attnum = f.confkey[1]
        WHERE f.contype = 'f' AND f.confrelid = ANY(CAST(:oids AS oid[])) AND (f.confdeltype IN ('c', 'n', 'd')
            OR f.confupdtype IN ('c', 'n', 'd'))"""
    )
    # Of an aggregate, which is always immutable and has no text, the functions that it is made of.
    _FUNCTION = f"""WITH named AS (SELECT p.oid FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
            WHERE lower(p.proname) = CAST(:name AS text)
            AND (CAST(:schema AS text) IS NULL OR lower(n.nspname) = CAST(:schema AS text))),
        parts AS (SELECT a.aggfnoid, part FROM pg_aggregate a JOIN named ON named.oid = a.aggfnoid,
            unnest(ARRAY[aggtransfn, aggfinalfn, aggmtransfn, aggminvtransfn, aggmfinalfn]) AS part)
        SELECT p.provolatile, l.lanname, {_HARMLESS}, {{body}} FROM pg_proc p JOIN pg_language l ON l.oid = p.prolang
        WHERE p.oid IN (SELECT oid FROM named EXCEPT SELECT aggfnoid FROM parts UNION ALL SELECT part FROM parts)"""  # noqa: S608
    _TABLES = text(
        """SELECT n.nspname, c.relname FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f') AND n.nspname NOT IN ('pg_catalog', 'information_schema')
            AND n.nspname NOT LIKE 'pg_toast%'"""
    )
    _ACTIONS: Final = {"c": "CASCADE", "n": "SET NULL", "d": "SET DEFAULT"}

    def names(self, connection: Connection) -> Names | None:
        if SEARCHES in connection.info:
            return None
        return Names(frozenset(connection.scalars(text(SEARCHED))) | names_in(connection.dialect).searched)

    def facts(self, connection: Connection, table: str) -> Facts:
        place = {"name": table.lower(), "searched": sorted(self.catalog.known_names.searched)}
        # None: a temporary table, or a name that only the statement has.
        return merged(self._facts(connection, *row) for row in connection.execute(self._TABLE, place).all())

    def _facts(self, connection: Connection, oid: int, kind: Any, secured: bool, may_lock: bool) -> Facts:
        kind = _letter(kind)
        if kind in ("m", "f"):
            return UNKNOWN_TABLE
        if kind == "v":
            bases = self._bases(connection, oid)
            instead, _ = self._triggers(connection, [oid])
            return Facts(reads=bases, writes=joined([bases, instead]), changes=None, may_lock=False)
        relatives = connection.execute(self._RELATIVES, {"oid": oid}).all()
        oids = [oid, *(row[0] for row in relatives)]
        writes, changes = self._triggers(connection, oids)
        if connection.scalar(self._RULES, {"oid": oid}):
            writes = None
        return Facts(
            reads=self._policies(connection, oid) if secured else NO_TABLES,
            writes=writes,
            relatives=frozenset(self.name(schema, name) for _, schema, name in relatives),
            changes=joined([changes, frozenset(connection.scalars(self._GENERATED, {"oid": oid}))]),
            links=self._links(connection, oids),
            may_lock=bool(may_lock),
        )

    def function(self, connection: Connection, name: str) -> Function:
        version: Any = connection.dialect.server_version_info
        modern = version is not None and version >= (14,)
        body = "coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)" if modern else "p.prosrc"
        schema, plain = _split(name)
        rows = connection.execute(text(self._FUNCTION.format(body=body)), {"name": plain, "schema": schema}).all()
        if not rows:
            return NO_FUNCTION
        touched, written = list[Tables](), list[Tables]()
        for volatile, language, is_harmless, source in rows:
            if is_harmless or _letter(volatile) == "i":
                continue
            tables = self.named_in(connection, source) if language in ("sql", "plpgsql") else None
            touched.append(tables)
            written.append(tables if _letter(volatile) == "v" else NO_TABLES)
        return Function(self.through(connection, joined(touched)), joined(written))

    def tables(self, connection: Connection) -> Iterable[tuple[str, str]]:
        return [(row[0], row[1]) for row in connection.execute(self._TABLES)]

    def named_in(self, connection: Connection, body: str) -> Tables:
        """Return the tables that a text may touch."""
        return self.catalog.named_in(connection, body, modes=_modes(connection))

    def _bases(self, connection: Connection, oid: int) -> Tables:
        parts = list[Tables]()
        for is_function, schema, name in connection.execute(self._BASES, {"oid": oid}).all():
            if is_function:
                parts.append(self.catalog.function(connection, f"{schema}.{name}").reads)
            else:
                parts.append(self.through(connection, frozenset({self.name(schema, name)})))
        return joined(parts)

    def _triggers(self, connection: Connection, oids: list[int]) -> tuple[Tables, Tables]:
        writes, changes = list[Tables](), list[Tables]()
        for kind, language, source, is_harmless in connection.execute(self._TRIGGERS, {"oids": oids}).all():
            is_known = language == "plpgsql"
            if not is_harmless:
                writes.append(self.named_in(connection, source) if is_known else None)
            if kind & 2 and not (is_harmless and language == "internal"):  # BEFORE
                changes.append(columns_set_in(source, "postgresql", _modes(connection)) if is_known else None)
        return joined(writes), joined(changes)

    def _policies(self, connection: Connection, oid: int) -> Tables:
        bodies = connection.execute(self._POLICIES, {"oid": oid}).scalars().all()
        return self.through(connection, joined(self.named_in(connection, body) for body in bodies))

    def _links(self, connection: Connection, oids: list[int]) -> tuple[Link, ...]:
        found = []
        for schema, name, child, parent, deleted, updated, size in connection.execute(self._LINKS, {"oids": oids}):
            actions = self._ACTIONS.get(_letter(deleted), ""), self._ACTIONS.get(_letter(updated), "")
            found.append(Link.of(self.name(schema, name), (child, parent), size, actions))
        return tuple(found)


def _modes(connection: Connection) -> str:
    return BACKSLASHES if connection.dialect._backslash_escapes else ""  # type: ignore[attr-defined]


def _letter(given: Any) -> str:
    """Return PostgreSQL's "char", which some drivers give as bytes."""
    return given.decode() if isinstance(given, bytes) else str(given)


class _MySQL(Source):
    _TABLE = text(
        """SELECT table_type, (SELECT v.view_definition FROM information_schema.views v
            WHERE v.table_schema = t.table_schema AND v.table_name = t.table_name)
        FROM information_schema.tables t
        WHERE table_schema = :schema AND table_name = :name"""
    )
    _TRIGGERS = text(
        """SELECT action_timing, action_statement, sql_mode FROM information_schema.triggers
        WHERE event_object_schema = :schema AND event_object_table = :name"""
    )
    _GENERATED = text(
        """SELECT column_name FROM information_schema.columns WHERE table_schema = :schema
            AND table_name = :name AND generation_expression <> ''"""
    )
    _LINKS = text(
        """SELECT k.table_schema, k.table_name, min(k.column_name), min(k.referenced_column_name), r.delete_rule,
            r.update_rule, count(*)
        FROM information_schema.key_column_usage k JOIN information_schema.referential_constraints r
            ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name
            AND r.table_name = k.table_name
        WHERE k.referenced_table_schema = :schema AND k.referenced_table_name = :name
        GROUP BY k.table_schema, k.table_name, k.constraint_name, r.delete_rule, r.update_rule"""
    )
    _FUNCTION = text(
        """SELECT routine_definition, sql_mode FROM information_schema.routines
        WHERE routine_schema = :schema AND lower(routine_name) = :name"""
    )
    _TABLES = text(
        """SELECT table_schema, table_name FROM information_schema.tables
        WHERE table_schema NOT IN ('information_schema', 'mysql', 'performance_schema', 'sys')"""
    )

    def facts(self, connection: Connection, table: str) -> Facts:
        place = self._place(table)
        found = connection.execute(self._TABLE, place).first()
        if found is None and "." in table:  # which may be a part of the name itself
            place = {**self._place(""), "name": table}
            found = connection.execute(self._TABLE, place).first()
        if found is None:
            return Facts()
        kind, body = found
        homes = {*self.catalog.known_names.searched, place["schema"]}
        if kind not in ("BASE TABLE", "SYSTEM VERSIONED"):
            bases = self.through(connection, self.catalog.named_in(connection, body, homes)) if body else None
            return Facts(reads=bases, writes=bases, changes=None, may_lock=False)
        triggers = connection.execute(self._TRIGGERS, place).all()
        actions = connection.execute(self._LINKS, place).all()
        return Facts(
            writes=joined(self.catalog.named_in(connection, body, homes, modes) for _, body, modes in triggers),
            changes=joined(
                [
                    frozenset(connection.scalars(self._GENERATED, place)),
                    *(columns_set_in(body, "mysql", modes) for timing, body, modes in triggers if timing == "BEFORE"),
                ]
            ),
            links=tuple(
                Link.of(self.name(schema, name), (child, parent), size, (deleted, updated))
                for schema, name, child, parent, deleted, updated, size in actions
            ),
        )

    def function(self, connection: Connection, name: str) -> Function:
        place = self._place(name)
        homes = {*self.catalog.known_names.searched, place["schema"]}
        touched = joined(
            self.catalog.named_in(connection, body, homes, modes) if body else None
            for body, modes in connection.execute(self._FUNCTION, place).all()
        )
        return Function(self.through(connection, touched), touched)

    def _place(self, name: str) -> dict[str, Any]:
        schema, plain = _split(name)
        return {"schema": schema or next(iter(self.catalog.known_names.searched), None), "name": plain}

    def tables(self, connection: Connection) -> Iterable[tuple[str, str]]:
        return [(row[0], row[1]) for row in connection.execute(self._TABLES)]


class _SQLite(Source):
    def facts(self, connection: Connection, table: str) -> Facts:
        schema, name = _split(table)
        place = _sqlite_schema(connection, schema)
        made = connection.execute(
            text(f"SELECT type, sql, lower(tbl_name) FROM {place} WHERE type IN ('view', 'trigger')")  # noqa: S608
        ).all()
        body = next((each for kind, each, of in made if kind == "view" and of == name.lower()), None)
        triggers = [each for kind, each, of in made if kind == "trigger" and of == name.lower()]
        writes = joined(self.catalog.named_in(connection, _behind_begin(each)) for each in triggers)
        if body is not None:
            named = self.catalog.named_in(connection, body)  # its own name is in it
            bases = self.through(connection, None if named is None else named - {table})
            return Facts(reads=bases, writes=joined([bases, writes]), changes=None, may_lock=False)
        generated = text("SELECT name FROM pragma_table_xinfo(:name, :schema) WHERE hidden IN (2, 3)")
        changes = connection.scalars(generated, {"name": name, "schema": schema or "main"})
        return Facts(writes=writes, changes=frozenset(changes), links=self._links(connection, place, schema, name))

    def function(self, connection: Connection, name: str) -> Function:
        return Function()  # written in C, or in the program: neither reads a table of the connection

    def tables(self, connection: Connection) -> Iterable[tuple[str, str]]:
        schemas = [row[1] for row in connection.execute(text("PRAGMA database_list")).all()]
        found = list[tuple[str, str]]()
        for schema in schemas:
            place = _sqlite_schema(connection, schema)
            names = connection.execute(text(f"SELECT name FROM {place} WHERE type IN ('table', 'view')"))  # noqa: S608
            found += [(schema, row[0]) for row in names]
        return found

    def _links(self, connection: Connection, place: str, schema: str | None, name: str) -> tuple[Link, ...]:
        asked = text(
            f"""SELECT m.name, min(f."from"), min(f."to"), f.on_delete, f.on_update, count(*)
            FROM {place} m, pragma_foreign_key_list(m.name) f
            WHERE m.type = 'table' AND lower(f."table") = :name GROUP BY m.name, f.id, f.on_delete, f.on_update"""  # noqa: S608
        )
        return tuple(
            Link.of(self.name(schema, child), (one, other), size, (deleted, updated))
            for child, one, other, deleted, updated, size in connection.execute(asked, {"name": name.lower()})
        )


def _behind_begin(trigger: str) -> str:
    """Return the body of a trigger, without the name of its own table."""
    found = tokens(trigger, "sqlite") or ()
    return trigger[next((token.end for token in found if token[:2] == ("word", "begin")), 0) :]


def _sqlite_schema(connection: Connection, schema: str | None) -> str:
    quoted = connection.dialect.identifier_preparer.quote_identifier(schema or "main")
    return f"{quoted}.sqlite_master"


SOURCES: Final[dict[str, type[Source]]] = {
    "postgresql": _PostgreSQL,
    "mysql": _MySQL,
    "mariadb": _MySQL,
    "sqlite": _SQLite,
}
