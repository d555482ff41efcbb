"""The names of tables, as tags have them. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar
from weakref import ref

from fastrdb.orm import SchemaMap as SchemaMap

T = TypeVar("T")


class Names(NamedTuple):
    """The rules that give a table one name, however a program writes it.

    Attributes:
        default: the schema that the connection searches first. A name has no schema if the table lies there.
        translated: the schema_translate_map of an execution.
    """

    default: str | None = None
    translated: SchemaMap | None = None

    def of(self, table: Any) -> str:
        """Return the name of a `Table`, or of a `table()`: `schema.table` or `table`."""
        schema = getattr(table, "schema", None)
        if self.translated:
            schema = self.translated.get(schema, schema)
        return self.joined(schema, table.name)

    def joined(self, schema: str | None, name: str) -> str:
        """Return the name of a table in this schema."""
        return name if schema in (None, self.default) else f"{schema}.{name}"

    def plain(self, name: str) -> str:
        """Return the name of a table that is written `schema.table` or `table` in a text."""
        schema, _, table = name.rpartition(".")
        return self.joined(schema or None, table)


class OncePerForm(Generic[T]):
    """A reader of compiled statements that reads each once for each schema_translate_map.

    Args:
        read: reads a compiled statement with the rules of its names.
    """

    def __init__(self, read: Callable[[Any, Names], T]) -> None:
        self._read = read
        self._known: dict[int, tuple[ref[Any], dict[Any, T]]] = {}

    def __call__(self, compiled: Any, translated: SchemaMap | None = None) -> T:
        """Return what was read, at the first call or now."""
        known = self._known.get(id(compiled))  # a WeakKeyDictionary takes three times as long
        key = frozenset(translated.items()) if translated else None
        forms = self._forms(compiled) if known is None else known[1]
        found = forms.get(key)
        if found is None:
            found = forms[key] = self._read(compiled, Names(compiled.dialect.default_schema_name, translated))
        return found

    def _forms(self, compiled: Any) -> dict[Any, T]:
        """Make a place for what is read of a compiled statement; drop it with the statement, whose id is used again."""
        forms, name, known = dict[Any, T](), id(compiled), self._known
        known[name] = ref(compiled, lambda _: known.pop(name, None)), forms
        return forms
