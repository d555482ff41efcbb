"""The queries that ask MariaDB, MySQL and SQLite for the facts about their tables and functions."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Final

from sqlalchemy import Connection, text

from .bodies import NO_TABLES, UNKNOWN_FUNCTION, Function, columns_set_in
from .facts import Facts, Link, Source, joined, merged
from .lexer import tokens
from .names import Names

_CONTENT: Final = re.compile(r"^CREATE\s+VIRTUAL\b.*\bcontent\s*=\s*['\"`\[]?([\w.]+)", re.IGNORECASE | re.DOTALL)
"""The table that holds the rows of a full-text index of SQLite."""


def _split(table: str) -> tuple[str | None, str]:
    schema, _, name = table.rpartition(".")
    return schema or None, name


class MySQL(Source):
    """The queries for MariaDB and MySQL."""

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
    # The server opens each table and view that is not left out: those of `sys` would take half of the time.
    _LINKS = text(
        """SELECT k.table_schema, k.table_name, min(k.column_name), min(k.referenced_column_name), r.delete_rule,
            r.update_rule, count(*)
        FROM information_schema.key_column_usage k JOIN information_schema.referential_constraints r
            ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name
            AND r.table_name = k.table_name
        WHERE k.referenced_table_schema = :schema AND k.referenced_table_name = :name
            AND k.table_schema NOT IN ('information_schema', 'mysql', 'performance_schema', 'sys')
            AND r.constraint_schema NOT IN ('information_schema', 'mysql', 'performance_schema', 'sys')
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
        """See `Source`."""
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
        """See `Source`."""
        place = self._place(name)
        homes = {*self.catalog.known_names.searched, place["schema"]}
        bodies = connection.execute(self._FUNCTION, place).all()
        if not bodies and "." in name:  # a function that this user does not see, or a part of a package
            return UNKNOWN_FUNCTION
        touched = joined(
            self.catalog.named_in(connection, body, homes, modes) if body else None for body, modes in bodies
        )
        return Function(self.through(connection, touched), touched)

    def _place(self, name: str) -> dict[str, Any]:
        schema, plain = _split(name)
        return {"schema": schema or next(iter(self.catalog.known_names.searched), None), "name": plain}

    def tables(self, connection: Connection) -> Iterable[tuple[str, str]]:
        """See `Source`."""
        return [(row[0], row[1]) for row in connection.execute(self._TABLES)]


class SQLite(Source):
    """The queries for SQLite."""

    def names(self, connection: Connection) -> Names:
        """See `Source`. A name without a schema may be one of any file that is attached."""
        return Names(frozenset(row[1] for row in connection.execute(text("PRAGMA database_list"))))

    def facts(self, connection: Connection, table: str) -> Facts:
        """See `Source`."""
        schema, name = _split(table)
        schemas = [schema] if schema else sorted(self.catalog.known_names.searched)
        return merged(self._facts(connection, each, name) for each in schemas)

    def _facts(self, connection: Connection, schema: str, name: str) -> Facts:
        place = _sqlite_schema(connection, schema)
        made = connection.execute(
            text(f"SELECT type, sql, lower(tbl_name) FROM {place} WHERE type <> 'index'")  # noqa: S608
        ).all()
        body = next((each for kind, each, of in made if kind == "view" and of == name.lower()), None)
        triggers = [each for kind, each, of in made if kind == "trigger" and of == name.lower()]
        writes = joined(self.catalog.named_in(connection, _behind_begin(each)) for each in triggers)
        if any(kind == "table" and of == name.lower() and _replaces(each) for kind, each, of in made):
            writes = joined([writes, frozenset({self.name(schema, name)})])
        if body is not None:
            named = self.catalog.named_in(connection, body)  # its own name is in it
            bases = self.through(connection, None if named is None else named - {self.name(schema, name)})
            return Facts(reads=bases, writes=joined([bases, writes]), changes=None, may_lock=False)
        generated = text("SELECT name FROM pragma_table_xinfo(:name, :schema) WHERE hidden IN (2, 3)")
        changes = connection.scalars(generated, {"name": name, "schema": schema})
        links = self._links(connection, place, schema, name)
        virtual = next((each for kind, each, of in made if kind == "table" and of == name.lower()), None)
        content = _CONTENT.match(virtual or "")
        reads = NO_TABLES if content is None else self.catalog.named_in(connection, content[1])
        return Facts(reads, writes, changes=frozenset(changes), links=links)

    def function(self, connection: Connection, name: str) -> Function:
        """See `Source`."""
        # Written in C, or in the program: neither reads a table. But a virtual table may have arguments: `found('x')`.
        return Function(self.through(connection, self.catalog.named_in(connection, name) or NO_TABLES))

    def tables(self, connection: Connection) -> Iterable[tuple[str, str]]:
        """See `Source`."""
        found = list[tuple[str, str]]()
        for schema in sorted(self.catalog.known_names.searched):
            place = _sqlite_schema(connection, schema)
            names = connection.execute(text(f"SELECT name FROM {place} WHERE type IN ('table', 'view')"))  # noqa: S608
            found += [(schema, row[0]) for row in names]
        return found

    def _links(self, connection: Connection, place: str, schema: str, name: str) -> tuple[Link, ...]:
        asked = text(
            f"""SELECT m.name, min(f."from"), min(f."to"), f.on_delete, f.on_update, count(*)
            FROM {place} m, pragma_foreign_key_list(m.name, :schema) f
            WHERE m.type = 'table' AND lower(f."table") = :name GROUP BY m.name, f.id, f.on_delete, f.on_update"""  # noqa: S608
        )
        found = connection.execute(asked, {"name": name.lower(), "schema": schema})
        return tuple(
            Link.of(self.name(schema, child), (one, other), size, (deleted, updated))
            for child, one, other, deleted, updated, size in found
        )


def _behind_begin(trigger: str) -> str:
    """Return the body of a trigger, without the name of its own table."""
    found = tokens(trigger, "sqlite") or ()
    return trigger[next((token.end for token in found if token[:2] == ("word", "begin")), 0) :]


def _replaces(table: str) -> bool:
    """Return True if a write to the table may delete other rows of it, by ON CONFLICT REPLACE."""
    found = tokens(table, "sqlite")
    return found is None or "on conflict replace" in " ".join(token.text for token in found if token.kind == "word")


def _sqlite_schema(connection: Connection, schema: str) -> str:
    quoted = connection.dialect.identifier_preparer.quote_identifier(schema)
    return f"{quoted}.sqlite_master"
