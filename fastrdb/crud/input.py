"""The `obj_in` of a caller: its checks, and its conversion to column values and to instances of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel
from sqlalchemy import JSON, TypeDecorator
from sqlalchemy.orm import LoaderCallableStatus, MappedAsDataclass, class_mapper
from sqlalchemy.types import TypeEngine, UserDefinedType

from fastrdb.errors import UnknownFieldError
from fastrdb.orm import Columns

_NONE: Any = object()


def given(columns: Columns, obj_in: object, *, only_set: bool = False) -> dict[str, Any]:
    """Return the values in `obj_in`, a pydantic model or a mapping; with `only_set`, without the model's defaults.

    Raises:
        TypeError: `obj_in` is neither.
        UnknownFieldError: a field that the model cannot set. An empty relationship is left out.
    """
    if isinstance(obj_in, BaseModel):
        names = obj_in.model_fields_set if only_set else {*type(obj_in).model_fields, *(obj_in.model_extra or ())}
        values = {name: getattr(obj_in, name) for name in names}
    elif isinstance(obj_in, Mapping):
        values = dict(obj_in)
    else:
        raise TypeError(f"obj_in={type(obj_in).__name__} must be a pydantic model or a mapping of columns to values")
    return {name: _written(columns, name, value) for name, value in values.items() if _settable(columns, name, value)}


def build(columns: Columns, values: Mapping[str, Any]) -> Any:
    """Return a new instance with these values.

    The `__init__` of a dataclass may require values that only the database has (an id, a time). So `__init__` is not
    called; the defaults of the dataclass are set all the same.
    """
    if not issubclass(columns.model, MappedAsDataclass):
        return columns.model(**values)
    instance = class_mapper(columns.model).class_manager.new_instance()  # `class_mapper` also readies the attributes
    for field in dataclasses.fields(columns.model):
        if field.name in columns.fields and field.name not in values and (default := _default(field)) is not _NONE:
            setattr(instance, field.name, default)
    change(instance, values)
    finish = getattr(instance, "__post_init__", None)
    if finish is not None:
        finish()
    return instance


def change(instance: object, values: Mapping[str, Any]) -> None:
    """Set these attributes of an instance."""
    for name, value in values.items():
        setattr(instance, name, value)


def _written(columns: Columns, name: str, value: Any) -> Any:
    """Return the value as the column's type takes it.

    SQLAlchemy's own types take no pydantic model, so it becomes a dict, of plain JSON values for a JSON column. A type
    that the application has written gets the value itself.
    """
    field = columns.fields.get(name)
    if type(value) in _SCALARS or field is None:
        return value if field is not None else _plain(value, "python")
    kind: TypeEngine[Any] = getattr(field.column.type, "item_type", field.column.type)
    if isinstance(kind, TypeDecorator | UserDefinedType):
        return value
    return _plain(value, "json" if isinstance(kind, JSON) else "python")


_SCALARS = {str, int, float, bool, type(None)}


def _plain(value: Any, mode: Literal["json", "python"]) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode=mode)
    if type(value) is dict:
        return {key: _plain(found, mode) for key, found in value.items()}
    if type(value) in {list, tuple, set}:
        return type(value)(_plain(found, mode) for found in value)
    return value


def _settable(columns: Columns, name: str, value: object) -> bool:
    if name in columns.fields:
        return True
    if name in columns.mapper.relationships.keys() and not value:  # noqa: SIM118  # not a dict
        return False
    descriptor = columns.mapper.all_orm_descriptors.get(name)
    # A hybrid with a setter, or a synonym: the model defines what setting it does.
    if descriptor is not None and (getattr(descriptor, "fset", None) or name in columns.mapper.synonyms):
        return True
    raise UnknownFieldError(name, columns.name, columns.fields)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    # SQLAlchemy 2.1 leaves scalars to the column's own default, and marks them so.
    unset = field.default is dataclasses.MISSING or isinstance(field.default, LoaderCallableStatus)
    return _NONE if unset else field.default
