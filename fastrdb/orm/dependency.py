"""Declared dependencies: the rows that a cached function reads (`depends_on`), or that a function writes (`touches`).

A dependency is a mapped class or a table, for any of its rows, or `rows(...)` for those with some values. A class that
inherits a table stands for all of its tables.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pydantic import TypeAdapter
from sqlalchemy import Column, Table, inspect
from sqlalchemy.exc import NoInspectionAvailable
from sqlalchemy.orm import Mapper

from fastrdb.errors import OptionError
from fastrdb.keys import EVERYTHING, Image, Pattern, row_tag, shown, table_tag, value_text

from .columns import Field

_MOST_VALUES: Final = 32
"""A dependency on more values of one column is one on the whole table: an entry has few members in the tags."""
_RESULT: Final = "result"
SchemaMap = Mapping[str | None, str | None]
_Place = tuple[str | None, str]  # the schema of a table in the metadata, and its name


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of an entity with these values, by attribute or column. Made by `rows`."""

    entity: Any
    columns: Mapping[str, Any]


def rows(entity: Any, /, **columns: Any) -> Rows:
    """Return the rows of a mapped class or table that have these values; a text may have placeholders, as in patterns.

    Raises:
        OptionError: the entity is neither, it has no such column, or no column is given.
    """
    found = _columns_of(entity, "rows")
    if not columns:
        raise OptionError("rows: give at least one column, or the entity alone for any of its rows")
    for name in columns:
        if name not in found:
            known = ", ".join(f"'{each}'" for each in sorted(found))
            raise OptionError(f"rows: {_name_of(entity)} has no column '{name}'; it has {known}")
    return Rows(entity, dict(columns))


Schemas = Sequence[SchemaMap | None]
Dependency = type[Any] | Table | Rows
"""A mapped class or a table, for any of its rows, or `rows(...)` of one."""


@dataclass(frozen=True, slots=True)
class _Value:
    """The value of one column: a constant, or a pattern that the arguments of a call fill."""

    field: Field
    table: _Place
    column: str
    constant: Any
    pattern: Pattern | None

    def texts(self, arguments: Mapping[str, Any], dialect: str) -> frozenset[str] | None:
        """Return the texts of the values; None if the database may take other values for equal to these."""
        if not self.field.exact_in(dialect):
            return None
        try:
            given = self.constant if self.pattern is None else _filled(self.pattern, arguments)
            many = given if isinstance(given, list | tuple | set | frozenset) else (given,)
            texts = {value_text(self._coerced(each)) for each in many}
        except Exception:  # noqa: BLE001  # an attribute of an argument may do anything when read
            return None
        return None if None in texts or len(texts) > _MOST_VALUES else frozenset(each for each in texts if each)

    def _coerced(self, value: Any) -> Any:
        python_type = self.field.python_type
        if value is None or type(value) is python_type:
            return value
        return TypeAdapter(python_type).validate_python(value)


class Declared:
    """The dependencies that one decorated function declares, or that one call names."""

    __slots__ = ("_tables", "_values", "of_result")

    def __init__(self, given: Any, *, owner: str, parameters: Iterable[str] = ()) -> None:
        """Check what is given. Raise OptionError or PatternError, naming the owner."""
        self._tables: dict[_Place, None] = {}
        self._values: list[list[_Value]] = []
        names = frozenset(parameters)
        several = isinstance(given, list | tuple | set | frozenset)
        for each in given if several else [given]:
            if isinstance(each, Rows):
                self._values.append([_value(each, name, value, owner, names) for name, value in each.columns.items()])
            else:
                self._tables.update(dict.fromkeys(_places(each, owner)))
        patterns = [value.pattern for each in self._values for value in each]
        self.of_result = any(pattern is not None and _RESULT in pattern.names for pattern in patterns)

    def tags(self, arguments: Mapping[str, Any], dialect: str = "", schemas: Schemas = ()) -> list[str]:
        """Return the tags of an entry: of each dependency on rows one column's, the one with the fewest values.

        `schemas` are the schema_translate_maps under which its statements run.
        """
        found = [table_tag(table) for place in self._tables for table in _spellings(place, schemas)]
        for values in self._values:
            known = [(value, texts) for value in values if (texts := value.texts(arguments, dialect))]
            if not known:
                found += map(table_tag, _spellings(values[0].table, schemas))
                continue
            value, texts = min(known, key=lambda pair: len(pair[1]))
            for table in _spellings(value.table, schemas):
                head = (row_tag(table, value.column, None) or "").partition("=")[0]
                found += [f"{head}={text}\0" for text in sorted(texts)]
        return list(dict.fromkeys(found))

    def images(self, arguments: Mapping[str, Any], dialect: str = "", schemas: Schemas = ()) -> list[Image]:
        """Return the images of writes to these rows. Columns that are not given count as unknown."""
        found = [Image(table) for place in self._tables for table in _spellings(place, schemas)]
        for values in self._values:
            columns = {value.column: value.texts(arguments, dialect) for value in values}
            found += [Image(table, columns) for table in _spellings(values[0].table, schemas)]
        return found

    def whole(self, schemas: Schemas = ()) -> list[Image]:
        """Return the images of writes to any rows of the tables."""
        places = dict.fromkeys([*self._tables, *(values[0].table for values in self._values)])
        return [Image(table) for place in places for table in _spellings(place, schemas)]


def table_names(entity: Any, owner: str) -> list[str]:
    """Return the names of the tables of a mapped class or table. Raise OptionError for anything else."""
    return list(dict.fromkeys(name for place in _places(entity, owner) for name in _spellings(place, ())))


def _places(entity: Any, owner: str) -> list[_Place]:
    if isinstance(entity, Table):
        tables = [entity]
    else:
        mapper = _mapper(entity)
        if mapper is None:
            plain = isinstance(entity, str | int | float | bytes | None)
            name = repr(entity) if plain else getattr(entity, "__qualname__", type(entity).__name__)
            hint = f"; call {name}.invalidate(...)" if hasattr(entity, "invalidate") else ""
            raise OptionError(f"{owner}: {name} must be a mapped class, a Table or rows(...) of one{hint}")
        tables = [table for table in mapper.tables if isinstance(table, Table)]
    return [(table.schema, table.name) for table in tables]


def _spellings(place: _Place, schemas: Schemas) -> list[str]:
    """Return the names of a table, as tags have these, under each schema_translate_map.

    A table with a schema is named without it, too: whether the schema is the connection's default one is not known.
    """
    schema, name = place
    found = [schema, *(each.get(schema, schema) for each in schemas if each)]
    return list(dict.fromkeys([*(f"{each}.{name}" for each in found if each), name]))


def _mapper(entity: Any) -> Mapper[Any] | None:
    try:
        found = inspect(entity)
    except NoInspectionAvailable:
        return None
    return found if isinstance(found, Mapper) else None


def _name_of(entity: Any) -> str:
    return str(getattr(entity, "__name__", None) or getattr(entity, "name", entity))


def _columns_of(entity: Any, owner: str) -> dict[str, Column[Any]]:
    if isinstance(entity, Table):
        return {column.key: column for column in entity.columns}
    table_names(entity, owner)
    mapper = _mapper(entity)
    mapped: list[tuple[str, Any]] = mapper.columns.items() if mapper is not None else []
    return {name: column for name, column in mapped if isinstance(column, Column)}


def _value(given: Rows, name: str, value: Any, owner: str, parameters: frozenset[str]) -> _Value:
    column = _columns_of(given.entity, owner)[name]
    pattern = None
    if isinstance(value, str) and "{" in value:
        parsed = Pattern.parse(value, owner=f"{owner}: rows({_name_of(given.entity)}, {name}=...)", kind="prefix")
        if parsed.parts:
            pattern = parsed
            for part in parsed.parts:
                if part.root not in parameters:
                    raise OptionError(
                        f"{owner}: rows({_name_of(given.entity)}, {name}={value!r}) has a placeholder '{part.field}', "
                        f"and the function has no parameter '{part.root}'"
                    )
    return _Value(Field.of(name, column), (column.table.schema, column.table.name), column.name, value, pattern)


def _filled(pattern: Pattern, arguments: Mapping[str, Any]) -> Any:
    """Return the value itself where the pattern is one placeholder, else the text that it makes."""
    found = []
    for part in pattern.parts:
        value = arguments[part.root]
        for name in part.path:
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        found.append(value)
    if len(found) == 1 and not pattern.parts[0].literal and not pattern.tail:
        return found[0]
    texts = [f"{part.literal}{value}" for part, value in zip(pattern.parts, found, strict=True)]
    return "".join([*texts, pattern.tail])


def readable(tag: str) -> str:
    """Return a tag or a name as a person reads it: `users where id = 5`, `users (any row)`, `anything`."""
    if tag == EVERYTHING or tag.startswith("*"):
        return "anything"
    table, _, row = tag.removesuffix("\0").partition(":")
    column, _, text = row.partition("=")
    if column != (column := shown(column)):
        text = text and "(hidden)"
    return f"{table} where {column} = {text or '(any value)'}" if row else f"{table} (any row)"


def images_of(given: Sequence[Any], owner: str, schemas: Schemas = ()) -> list[Image]:
    """Return the images of writes to what is given without a call."""
    return Declared(given, owner=owner).images({}, schemas=schemas)
