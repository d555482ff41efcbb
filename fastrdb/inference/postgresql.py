"""The queries that ask PostgreSQL for the facts about its tables and functions."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Connection, text

from .bodies import CONTROL, NO_FUNCTION, NO_TABLES, UNKNOWN_FUNCTION, Function, Tables, columns_set_in
from .facts import UNKNOWN_TABLE, Facts, Link, Source, joined, merged
from .lexer import BACKSLASHES
from .names import SEARCHED, SEARCHES, Names, names_in
from .text import OF_THE_MOMENT, harmless

# Of a function p: it is a part of the server, save those that run a query or use large objects, or it is compiled and
# a part of one of these extensions. No such function reads or writes a table, but for the row of a trigger.
_HARMLESS: Final = """(p.oid < 16384
    AND p.proname !~ '^(lo_.*|loread|lowrite|ts_stat|ts_rewrite|.*_to_xml.*)$'
OR l.lanname = 'c' AND EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid
    WHERE d.classid = 'pg_proc'::regclass AND d.objid = p.oid AND d.deptype = 'e' AND e.extname IN (
        'autoinc', 'hstore', 'insert_username', 'isn', 'lo', 'moddatetime', 'pg_trgm', 'pg_uuidv7', 'pgcrypto',
        'postgis', 'tcn', 'unaccent', 'uuid-ossp', 'vector')))"""


class PostgreSQL(Source):
    """The queries for PostgreSQL."""

    # The schemas that are searched, and the functions of operators, of casts, and with the names of harmless ones. What
    # is compiled and a part of an extension counts as harmless there: one operator would widen all answers. And the
    # functions of a row, which may be called as its attributes: `users.post_count`.
    _ENGINE = text(
        f"""SELECT s.nspname, false FROM ({SEARCHED}) s
        UNION SELECT n.nspname || '.' || p.proname, true FROM pg_proc p JOIN pg_namespace n ON n.oid = p.pronamespace
        JOIN pg_language l ON l.oid = p.prolang LEFT JOIN pg_aggregate a ON a.aggfnoid = p.oid
        WHERE p.oid >= 16384 AND (p.provolatile <> 'i' OR a.aggfnoid IS NOT NULL)
        AND NOT (l.lanname = 'c' AND EXISTS (SELECT FROM pg_depend d WHERE d.classid = 'pg_proc'::regclass
            AND d.objid = p.oid AND d.deptype = 'e'))
        AND (lower(p.proname) = ANY (CAST(:known AS text[])) OR p.oid IN (SELECT oprcode FROM pg_operator)
            OR p.oid IN (SELECT castfunc FROM pg_cast))
        UNION SELECT lower(p.proname), NULL FROM pg_proc p WHERE p.oid >= 16384 AND p.provolatile <> 'i'
        AND p.pronargs > 0 AND p.pronargs - p.pronargdefaults <= 1 AND p.proargtypes[0] IN (
            SELECT oid FROM pg_type WHERE typtype IN ('c', 'p'))"""  # noqa: S608
    )
    _TABLE = text(
        """SELECT c.oid, c.relkind, c.relrowsecurity, has_table_privilege(c.oid, 'SELECT')
            AND has_any_column_privilege(c.oid, 'UPDATE')
        FROM unnest(CAST(:schemas AS name[]), CAST(:names AS name[])) AS place(schema, name)
        JOIN pg_namespace n ON n.nspname = place.schema
        JOIN pg_class c ON c.relnamespace = n.oid AND c.relname = place.name
        WHERE c.relkind IN ('r', 'p', 'v', 'm', 'f')"""
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
    # Generated columns, and the functions that give columns their values.
    _VALUES = text(
        f"""SELECT a.attname, false FROM pg_attribute a WHERE a.attrelid = CAST(:oid AS oid) AND NOT a.attisdropped
            AND to_jsonb(a) ->> 'attgenerated' <> ''  -- a column that versions before 12 do not have
        UNION SELECT n.nspname || '.' || p.proname, true FROM pg_attrdef f JOIN pg_depend v ON v.objid = f.oid
            AND v.classid = 'pg_attrdef'::regclass AND v.refclassid = 'pg_proc'::regclass
        JOIN pg_proc p ON p.oid = v.refobjid JOIN pg_namespace n ON n.oid = p.pronamespace
        JOIN pg_language l ON l.oid = p.prolang
        WHERE f.adrelid = CAST(:oid AS oid) AND p.provolatile <> 'i' AND NOT {_HARMLESS}"""  # noqa: S608
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
        """See `Source`."""
        if SEARCHES in connection.info:
            return None
        given = {"known": sorted({name.lower() for name in harmless("postgresql") | OF_THE_MOMENT} | CONTROL)}
        rows = connection.execute(self._ENGINE, given).all()
        self.unnamed = frozenset(name for name, is_function in rows if is_function)
        self.attributes = frozenset(name for name, is_function in rows if is_function is None)
        searched = frozenset(name for name, is_function in rows if is_function is False)
        return Names(searched | names_in(connection.dialect).searched)

    def facts(self, connection: Connection, table: str) -> Facts:
        """See `Source`."""
        places = {(schema, name) for name in (table, table.lower()) for schema in self.catalog.known_names.searched}
        parts = table.split(".")  # a dot may be a part of a name
        for at in range(1, len(parts)):
            schema, name = ".".join(parts[:at]), ".".join(parts[at:])
            places |= {(schema, name), (schema.lower(), name.lower())}
        asked = {"schemas": [schema for schema, _ in places], "names": [name for _, name in places]}
        # None: a temporary table, or a name that only the statement has.
        return merged(self._facts(connection, *row) for row in connection.execute(self._TABLE, asked).all())

    def _facts(self, connection: Connection, oid: int, kind: Any, secured: bool, may_lock: bool) -> Facts:
        kind = _letter(kind)
        if kind in ("m", "f"):
            return UNKNOWN_TABLE
        if kind == "v":
            bases = self._bases(connection, oid)
            instead, _ = self._triggers(connection, [oid])
            return Facts(reads=bases, writes=joined([bases, instead]), changes=None, may_lock=False)
        values = connection.execute(self._VALUES, {"oid": oid}).all()
        relatives = connection.execute(self._RELATIVES, {"oid": oid}).all()
        oids = [oid, *(row[0] for row in relatives)]
        writes, changes = self._triggers(connection, oids)
        if connection.scalar(self._RULES, {"oid": oid}):
            writes = None
        called = [self.catalog.function(connection, name).writes for name, is_function in values if is_function]
        return Facts(
            reads=self._policies(connection, oid) if secured else NO_TABLES,
            writes=joined([writes, *called]),
            relatives=frozenset(self.name(schema, name) for _, schema, name in relatives),
            changes=joined([changes, frozenset(name for name, is_function in values if not is_function)]),
            links=self._links(connection, oids),
            may_lock=bool(may_lock),
        )

    def function(self, connection: Connection, name: str) -> Function:
        """See `Source`."""
        version: Any = connection.dialect.server_version_info
        modern = version is not None and version >= (14,)
        body = "coalesce(pg_get_function_sqlbody(p.oid), p.prosrc)" if modern else "p.prosrc"
        schema, _, plain = name.rpartition(".")
        rows = connection.execute(
            text(self._FUNCTION.format(body=body)), {"name": plain, "schema": schema or None}
        ).all()
        if not rows:
            return NO_FUNCTION
        touched, written = list[Tables](), list[Tables]()
        for volatile, language, is_harmless, source in rows:
            if is_harmless or _letter(volatile) == "i":
                continue
            is_known, found = language in ("sql", "plpgsql"), UNKNOWN_FUNCTION
            if is_known:
                found = self.catalog.of_text(connection, source, modes=_modes(connection))
            touched.append(found.reads)
            # A STABLE function of a known language may not write, but may call one that does.
            written.append(found.reads if _letter(volatile) == "v" else found.writes if is_known else NO_TABLES)
        return Function(self.through(connection, joined(touched)), joined(written))

    def tables(self, connection: Connection) -> Iterable[tuple[str, str]]:
        """See `Source`."""
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
