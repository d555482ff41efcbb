"""The names of tables, as tags have them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Generic, NamedTuple, TypeVar
from weakref import ref

from fastrdb.orm import SchemaMap as SchemaMap

T = TypeVar("T")
SEARCHES: Final = "fastrdb.searches"
"""In `Connection.info`: a statement has chosen where the database looks for names without a schema."""
SEARCHED: Final = """
WITH path AS (
    SELECT trim(BOTH ' "' FROM part) AS part FROM unnest(string_to_array(current_setting('search_path'), ',')) AS part
)
SELECT n.nspname FROM pg_namespace n WHERE n.nspname = 'public'
OR (n.nspname = ANY (current_schemas(false)) OR n.nspname IN (SELECT part FROM path)
    OR n.nspname IN (SELECT rolname FROM pg_roles WHERE '$user' IN (SELECT part FROM path)))
    AND left(n.nspname, 3) <> 'pg_'
"""
"""Of PostgreSQL: the schemas of the search_path, those that another role has in the place of "$user", and `public`, for
whose tables engines with different paths have one name. No temporary schema, which one session alone has."""


class Names(NamedTuple):
    """The rules that give a table one name, however a program writes it.

    Attributes:
        searched: the schemas in which the database may find a name without a schema. No table of theirs has its schema
            in its name. Tables of one name in two of them count as one table.
        translated: the schema_translate_map of an execution.
    """

    searched: frozenset[str] = frozenset()
    translated: SchemaMap | None = None

    def of(self, table: Any) -> str:
        """Return the name of a `Table`, or of a `table()`: `schema.table` or `table`."""
        schema = getattr(table, "schema", None)
        if self.translated:
            schema = self.translated.get(schema, schema)
        return self.joined(schema, table.name)

    def joined(self, schema: str | None, name: str) -> str:
        """Return the name of a table in this schema."""
        return name if schema is None or schema in self.searched else f"{schema}.{name}"

    def plain(self, name: str) -> str:
        """Return the name of a table that is written `schema.table` or `table` in a text."""
        schema, _, table = name.rpartition(".")
        return self.joined(schema or None, table)


def names_in(dialect: Any) -> Names:
    """Return the rules of a database that looks for a name without a schema in its default schema alone."""
    return Names(frozenset({dialect.default_schema_name} - {None}))


class OncePerForm(Generic[T]):
    """A reader of compiled statements that reads each once for each set of names.

    Args:
        read: reads a compiled statement with the rules of its names.
    """

    def __init__(self, read: Callable[[Any, Names], T]) -> None:
        self._read = read
        self._known: dict[int, tuple[ref[Any], dict[Any, T]]] = {}

    def __call__(self, compiled: Any, names: Names) -> T:
        """Return what was read, at the first call or now."""
        known = self._known.get(id(compiled))  # a WeakKeyDictionary takes three times as long
        translated = names.translated
        key = (names.searched, frozenset(translated.items())) if translated else names.searched
        forms = self._forms(compiled) if known is None else known[1]
        found = forms.get(key)
        if found is None:
            found = forms[key] = self._read(compiled, names)
        return found

    def _forms(self, compiled: Any) -> dict[Any, T]:
        """Make a place for what is read of a compiled statement; drop it with the statement, whose id is used again."""
        forms, name, known = dict[Any, T](), id(compiled), self._known
        known[name] = ref(compiled, lambda _: known.pop(name, None)), forms
        return forms
