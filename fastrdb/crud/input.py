"""What a caller hands in as `obj_in`, and what becomes of it: column values and instances of the model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from sqlalchemy.orm import LoaderCallableStatus, MappedAsDataclass, class_mapper

from fastrdb.errors import UnknownFieldError
from fastrdb.orm import Columns

_NONE: Any = object()


def given(columns: Columns, obj_in: object, *, only_set: bool = False) -> dict[str, Any]:
    """The values in `obj_in`, a pydantic model or a mapping; `only_set`: without the model's defaults.

    Raises:
        TypeError: it is neither.
        UnknownFieldError: a field that is not the model's to set. A relationship may be there if it is empty.
    """
    if isinstance(obj_in, BaseModel):
        names = obj_in.model_fields_set if only_set else {*type(obj_in).model_fields, *(obj_in.model_extra or ())}
        values = {name: getattr(obj_in, name) for name in names}
    elif isinstance(obj_in, Mapping):
        values = dict(obj_in)
    else:
        raise TypeError(f"obj_in={type(obj_in).__name__} must be a pydantic model or a mapping of columns to values")
    return {name: plain(value) for name, value in values.items() if _settable(columns, name, value)}


def build(columns: Columns, values: Mapping[str, Any]) -> Any:
    """A new instance with these values.

    The `__init__` of a dataclass may demand what only the database can give (an id, a time): it is not called, but
    its other defaults hold.
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
    """Set these attributes."""
    for name, value in values.items():
        setattr(instance, name, value)


def plain(value: Any) -> Any:
    """`value` with what pydantic models are inside as dicts, as a JSON column wants them."""
    if isinstance(value, BaseModel):
        return value.model_dump()
    if type(value) is dict:
        return {key: plain(found) for key, found in value.items()}
    if type(value) in {list, tuple, set}:
        return type(value)(plain(found) for found in value)
    return value


def _settable(columns: Columns, name: str, value: object) -> bool:
    if name in columns.fields:
        return True
    if name in columns.mapper.relationships.keys() and not value:  # noqa: SIM118  # not a dict
        return False
    descriptor = columns.mapper.all_orm_descriptors.get(name)
    # A hybrid with a setter, or a synonym: the model itself says what setting it means.
    if descriptor is not None and (getattr(descriptor, "fset", None) or name in columns.mapper.synonyms):
        return True
    raise UnknownFieldError(name, columns.name, columns.fields)


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    # SQLAlchemy 2.1 leaves scalars to the column's own default, and says so.
    unset = field.default is dataclasses.MISSING or isinstance(field.default, LoaderCallableStatus)
    return _NONE if unset else field.default
