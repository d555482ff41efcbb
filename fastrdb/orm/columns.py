"""The columns of a mapped class: names, Python types, unique keys, and which values the database takes for equal.

Every name that a user gives (filter, order, placeholder) is looked up here, and is a column or an error: no other
attribute of the model can be reached by name. Nothing here does I/O or configures mappers: a `FastRDB` may be made
before the classes that its model relates to exist.
"""

from __future__ import annotations

import datetime as dt
import enum
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal

from pydantic import TypeAdapter, ValidationError
from sqlalchemy import CHAR, Boolean, Column, Date, Enum, Integer, String, Table, TypeDecorator, UniqueConstraint, Uuid
from sqlalchemy.exc import InvalidRequestError
from sqlalchemy.orm import InstrumentedAttribute, Mapper, class_mapper
from sqlalchemy.types import NCHAR, TypeEngine

from fastrdb.errors import MissingKeyFieldError, OptionError, UnknownFieldError

_PLAIN: Final = (
    bool,
    int,
    float,
    str,
    bytes,
    Decimal,
    uuid.UUID,
    dt.date,
    dt.time,
    dt.timedelta,
    enum.Enum,
)
_ACTIONS: Final = ("CASCADE", "SET NULL", "SET DEFAULT")
_SEVERAL: Final = (list, tuple, set, frozenset)
Exactness = Literal["everywhere", "by collation", "nowhere"]


@dataclass(frozen=True, slots=True)
class Field:
    """One column attribute. `exactness`: on which databases two values are equal only if Python finds them equal."""

    name: str
    column: Column[Any]
    python_type: Any
    exactness: Exactness
    adapter: TypeAdapter[Any] | None

    @classmethod
    def of(cls, name: str, column: Column[Any]) -> Field:
        """Return the field of a column, from the column's type."""
        python_type = _python_type(column.type)
        adapter = None if python_type is Any else TypeAdapter(python_type)
        return cls(name, column, python_type, _exactness(column.type), adapter)

    def exact_in(self, dialect: str) -> bool:
        """Return whether two values that are equal in the database are equal here, whatever the collation there."""
        return _is_exact(self.exactness, dialect)

    def coerce(self, value: Any, model: str) -> Any:
        """Return `value` as the column's Python type: "5" and 5 have one key. Raise ValueError, naming the column."""
        if value is None or self.adapter is None:
            return value
        try:
            return self.adapter.validate_python(value)
        except ValidationError:
            kind = getattr(self.python_type, "__name__", self.python_type)
            given = type(value).__qualname__  # never the value itself: errors end up in logs
            raise ValueError(f"{model}.{self.name}: the {given} given is not a value of type {kind}") from None


class Columns:
    """The column attributes of one mapped class."""

    def __init__(self, model: type[Any]) -> None:
        try:
            self.mapper: Mapper[Any] = class_mapper(model, configure=False)
        except InvalidRequestError as error:
            raise OptionError(f"FastRDB: {model!r} is not a mapped class") from error
        self.model = model
        self.name = model.__name__
        mapped: list[tuple[str, Any]] = self.mapper.columns.items()  # expressions of column_property among them
        self.fields = {name: Field.of(name, column) for name, column in mapped if isinstance(column, Column)}
        self.primary_key = tuple(self._names(self.mapper.primary_key) or ())
        self._spreading: dict[str, frozenset[str]] = {}

    def field(self, name: object) -> Field:
        """Return the column of that name. Raises UnknownFieldError."""
        found = self.fields.get(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownFieldError(str(name), self.name, self.fields)
        return found

    def attribute(self, name: object) -> InstrumentedAttribute[Any]:
        """Return the mapped attribute of that name, for statements. Raises UnknownFieldError."""
        attribute: InstrumentedAttribute[Any] = getattr(self.model, self.field(name).name)
        return attribute

    def filters(
        self, given: Mapping[str, Any], *, required: Iterable[str] = (), pattern: str = "", some: bool = False
    ) -> dict[str, Any]:
        """Return the filters of a call, each value as its column's type; None finds NULL.

        Raises:
            UnknownFieldError: a name that is no column.
            MissingKeyFieldError: a column of `required`, which `pattern` needs, is not among the filters.
            ValueError: a value that the column cannot have; several values where one is meant; with `some`, no
                filter at all.
        """
        asked = {name: self._one(self.field(name), value) for name, value in given.items()}
        for name in required:
            if name not in asked:
                raise MissingKeyFieldError(name, pattern)
        if some and not asked:
            raise ValueError(f"at least one column of {self.name} must say which rows are meant")
        return asked

    def listed(self, given: Mapping[str, Any]) -> tuple[str, list[Any]]:
        """Return the one filter that has several values, and these. Raises UnknownFieldError, ValueError."""
        names = [name for name in given if isinstance(given[name], _SEVERAL) and not self._holds_list(self.field(name))]
        if len(names) != 1:
            raise ValueError(f"get_many takes one list of values, as in get_many(..., id=[1, 2]); got {len(names)}")
        field = self.field(names[0])
        return field.name, [self._one(field, value) for value in given[field.name]]

    def exact_in(self, dialect: str, names: Iterable[str]) -> bool:
        """Return whether, in that database, a row found by these columns has exactly the values of the filter."""
        return all(self.fields[name].exact_in(dialect) for name in names)

    def deferred(self) -> list[str]:
        """Return the columns that the model does not load unless asked to."""
        found = {name: self.mapper.get_property_by_column(field.column) for name, field in self.fields.items()}
        return [name for name, mapped in found.items() if getattr(mapped, "deferred", False)]

    def unique(self, names: Collection[str]) -> bool:
        """Return whether no two rows share these values: a primary key or unique constraint lies in the columns."""
        return any(key <= set(names) for key in self._unique_keys())

    def in_key(self, names: Collection[str]) -> bool:
        """Return whether one of these is a column of a primary key or unique constraint."""
        return any(not key.isdisjoint(names) for key in self._unique_keys())

    def spreading(self, action: Literal["ondelete", "onupdate"]) -> frozenset[str]:
        """Return the columns by which foreign keys, with an action, have the database change other rows of the model.

        Keys of other tables count if there are keys from these tables back to the model.
        """
        if action not in self._spreading:
            own = {*self.mapper.tables}
            found = {
                to for table in own for to, child in _acting(table, action) if not own.isdisjoint(_below(child, action))
            }
            self._spreading[action] = frozenset(name for to in found for name in self._names([to]) or [to.name])
        return self._spreading[action]

    def values(self, row: object, names: Iterable[str]) -> dict[str, Any]:
        """Return the row's values in these columns."""
        return {name: getattr(row, name) for name in names}

    def _one(self, field: Field, value: Any) -> Any:
        if isinstance(value, _SEVERAL) and not self._holds_list(field):
            raise ValueError(f"{self.name}.{field.name}: one value is meant, not several: those are for get_many")
        return field.coerce(value, self.name)

    def _holds_list(self, field: Field) -> bool:
        return bool(getattr(field.column.type, "_is_array", False))

    def _unique_keys(self) -> Iterator[frozenset[str]]:
        yield frozenset(self.primary_key)
        for table in self.mapper.tables:
            for key in unique_keys(table) if isinstance(table, Table) else ():
                if names := self._names(key):
                    yield frozenset(names)

    def _names(self, columns: Iterable[Any]) -> list[str] | None:
        """Return the attributes of these columns; None if one has none."""
        names = []
        for column in columns:
            try:
                names.append(self.mapper.get_property_by_column(column).key)
            except InvalidRequestError:
                return None
        return names


def unique_keys(table: Table) -> Iterator[list[Any]]:
    """Yield the columns and expressions of each unique constraint, and of each unique index of all rows."""
    for constraint in table.constraints:
        if isinstance(constraint, UniqueConstraint):
            yield [*constraint.columns]
    for index in table.indexes:
        partial = any(index.dialect_options[known].get("where") is not None for known in ("postgresql", "sqlite"))
        if index.unique and not partial:
            yield [*index.expressions]


def _acting(table: Any, action: str) -> Iterator[tuple[Column[Any], Any]]:
    """Yield the columns of a table that foreign keys with an action refer to, each with the table that has the key.

    The key of a table that inherits from the other is left out: both have parts of one row.
    """
    for other in table.metadata.tables.values() if isinstance(table, Table) else ():
        for key in other.foreign_keys:
            part = other is not table and key.parent.primary_key and len(other.primary_key) == 1
            if key.references(table) and str(getattr(key, action)).upper() in _ACTIONS and not part:
                yield key.column, other


def _below(table: Any, action: str) -> set[Any]:
    """Return the table, and all that such foreign keys reach from there, each once however many ways there are."""
    found, waiting = set[Any](), [table]
    while waiting:
        if (each := waiting.pop()) not in found:
            found.add(each)
            waiting += [child for _, child in _acting(each, action)]
    return found


def _python_type(kind: TypeEngine[Any]) -> Any:
    """Return the Python type of a column's values; Any if it is unknown, such as behind a user's TypeDecorator."""
    if isinstance(kind, TypeDecorator):
        return Any
    try:
        found = kind.python_type
    except NotImplementedError:
        return Any
    return found if issubclass(found, _PLAIN) else Any


def exact_type(kind: TypeEngine[Any], dialect: str) -> type | None:
    """Return the Python type of a column's values; None where the database may take two different ones for equal."""
    kind = kind._variant_mapping.get(dialect, kind)  # `with_variant`, of which SQLAlchemy has no public word
    if not _is_exact(_exactness(kind), dialect):
        return None
    found: type = kind.python_type
    return found


def _is_exact(exactness: Exactness, dialect: str) -> bool:
    if exactness == "by collation":  # by default only MySQL's and MariaDB's take different texts for equal
        return dialect in {"sqlite", "postgresql"}
    return exactness == "everywhere"


def _exactness(kind: TypeEngine[Any]) -> Exactness:
    home = type(kind).__module__
    if not home.startswith("sqlalchemy."):  # a class of the user's may convert values, as a TypeDecorator does
        return "nowhere"
    if isinstance(kind, Integer | Boolean | Date) or (isinstance(kind, Uuid) and kind.as_uuid):
        return "everywhere"
    plain = isinstance(kind, String) and not isinstance(kind, Enum | CHAR | NCHAR)
    # A type of one dialect may compare by rules of its own (CITEXT), and so does a collation.
    if plain and home.startswith("sqlalchemy.sql.") and getattr(kind, "collation", None) is None:
        return "by collation"
    return "nowhere"
