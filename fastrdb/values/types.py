"""The checks of a cached type at decoration: its shape, what must be refused, what callers may share."""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Collection, Iterable, Iterator, MutableSequence, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from fractions import Fraction
from types import NoneType, UnionType
from typing import Annotated, Any, Optional, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel
from pydantic_core import MultiHostUrl, Url

from fastrdb.errors import SchemaError

from .equality import class_of, held, is_data, slots_of
from .schema import Schema, kind_of, parts

_LISTS = (list, Sequence, MutableSequence, Collection, Iterable)
_SCALARS = frozenset({
    *("none", "bool", "int", "float", "complex", "str", "bytes", "date", "time", "datetime", "timedelta", "decimal"),
    *("fraction", "uuid", "enum", "literal", "url", "multi-host-url"),
})  # fmt: skip
_FROZEN_IF_PARTS_ARE = frozenset({
    *("nullable", "union", "tagged-union", "tuple", "frozenset", "function-before", "model-fields", "model-field"),
    *("dataclass-args", "dataclass-field", "named-tuple", "named-tuple-field"),
})  # fmt: skip
_UNCHANGEABLE = frozenset({
    *(NoneType, bool, int, float, complex, str, bytes, date, time, datetime, timedelta, Decimal, Fraction, UUID),
    *(Url, MultiHostUrl),
})  # fmt: skip
"""What the kinds of _SCALARS are in Python, but for the members of an enum."""
_WITHOUT_JSON = {
    "callable": "a callable",
    "is-subclass": "a class",
    "generator": "an iterator",
    "missing-sentinel": "pydantic's MISSING",
}


def is_mapped(cls: Any) -> bool:
    """Return whether SQLAlchemy maps `cls`, without importing SQLAlchemy."""
    return isinstance(cls, type) and getattr(cls, "__mapper__", None) is not None


def effective_type(annotation: Any, schema: Any) -> Any:
    """Return the type that is cached: the annotation, or `schema` in the annotation's shape (a list of it, or None)."""
    if schema is None:
        return annotation
    origin = get_origin(schema)
    shaped = origin in _LISTS or origin in (Union, UnionType)
    return schema if shaped else _in_shape_of(annotation, schema)


def is_absent(annotation: Any) -> bool:
    """Return whether there is no annotation: a function without one, or any sentinel that says so."""
    return annotation is inspect.Signature.empty or annotation is ... or isinstance(annotation, enum.Enum)


def _in_shape_of(annotation: Any, schema: Any) -> Any:
    annotation = _bare(annotation)
    origin, args = get_origin(annotation) or annotation, get_args(annotation)
    if origin in (Union, UnionType) and NoneType in args:
        rest = [arg for arg in args if arg is not NoneType]
        return Optional[_in_shape_of(rest[0], schema) if len(rest) == 1 else schema]  # noqa: UP045
    several = origin in _LISTS or getattr(origin, "__name__", "") == "ScalarResult"
    if several or (origin is tuple and args[1:] == (...,)):
        return list[schema]
    return schema


def _bare(annotation: Any) -> Any:
    """Return the type under Annotated and type aliases."""
    while True:
        if get_origin(annotation) is Annotated:
            annotation = get_args(annotation)[0]
        elif hasattr(annotation, "__value__"):
            annotation = annotation.__value__
        else:
            return annotation


def mapped_in(annotation: Any) -> type | None:
    """Return the first mapped class that an annotation mentions."""
    annotation = _bare(annotation)
    if is_mapped(annotation):
        return annotation  # type: ignore[no-any-return]
    return next((found for arg in get_args(annotation) if (found := mapped_in(arg))), None)


# --- what cannot round trip


def refuse(schema: Schema, owner: str, where: str = "the value", *, raw: bool = True) -> None:
    """Raise SchemaError for a part of the type whose values would not come back from JSON unchanged.

    `where` names the field; `raw` is True if this schema gets the JSON itself, not the result of a validator.
    """
    kind = kind_of(schema)
    if reason := _reason(schema, kind, raw):
        raise SchemaError(f"{owner}: {where} cannot be cached: {reason}")
    for part, name, still_raw in _read_parts(schema, kind, raw):
        inside = f"{_name(schema, where)}.{name}" if name else _name(schema, where)
        refuse(part, owner, inside, raw=still_raw)


def _read_parts(schema: Schema, kind: str, raw: bool) -> Iterator[tuple[Schema, str, bool]]:
    """Yield the parts that are read from JSON, with their names, and for each whether it gets the JSON unchanged."""
    if kind == "lax-or-strict":
        yield schema["strict_schema"], "", raw
    elif kind == "json-or-python":
        anything = schema["json_schema"]["type"] == "any"  # pydantic's JsonValue: any JSON, and nothing else
        yield schema["python_schema" if anything else "json_schema"], "", raw and not anything
    else:
        before = kind in ("function-before", "function-wrap")
        for index, (part, name) in enumerate(parts(schema)):
            yield part, name, raw and not before and not (kind == "chain" and index)


def _name(schema: Schema, where: str) -> str:
    if kind_of(schema) in ("model", "dataclass", "typed-dict", "named-tuple"):
        return getattr(schema.get("cls"), "__name__", where)
    return where


def _reason(schema: Schema, kind: str, raw: bool) -> str | None:
    cls, function = schema.get("cls"), schema.get("serialization", {}).get("function")
    reason = None
    if "ImportString" in getattr(function, "__qualname__", ""):
        reason = "reading it back would import, and so run, what Redis names (ImportString)"
    elif is_mapped(cls):
        reason = f"{_named(cls)} is a mapped SQLAlchemy class; give schema=, a pydantic model of it"
    elif kind == "any":
        reason = "its type is Any, or left open; declare it (pydantic.JsonValue for any JSON)"
    elif kind in _WITHOUT_JSON:
        reason = f"it is {_WITHOUT_JSON[kind]}, which has no JSON form"
    elif kind == "is-instance" and raw:
        reason = f"{_named(cls)} has no JSON form"
    elif schema.get("serialization_exclude") or schema.get("serialization_exclude_if"):
        reason = "the field is left out of its JSON (exclude=)"
    elif kind == "dataclass-field" and (schema.get("init") is False or schema.get("init_only")):
        reason = "the field is not an argument and an attribute both (init=False, InitVar)"
    elif getattr(function, "__module__", "") == "pydantic.types" and "secret" in _named(function):
        reason = "a secret is masked in JSON; keep it out of what is cached"
    return reason


def _named(thing: Any) -> str:
    return str(getattr(thing, "__name__", thing))


# --- what may be handed to many callers

_NOTHING: Schema = {"type": "none"}
_ANYTHING: Schema = {"type": "any"}


def is_immutable(schema: Schema, known: dict[str, Schema] | None = None, *, inside: bool = False) -> bool:
    """Return whether callers can change nothing in such a value, except what `own_copy` copies for each.

    `known` are the definitions around it; `inside` says that it is a part of another value.
    """
    known = {} if known is None else known
    kind = kind_of(schema)
    if kind == "definitions":
        known |= {definition["ref"]: definition for definition in schema["definitions"]}
        return is_immutable(schema["schema"], known, inside=inside)
    if kind == "definition-ref":
        # While it is being checked, a type that holds itself counts as immutable, unless it is copied.
        definition, ref = known.get(schema["schema_ref"], _NOTHING), schema["schema_ref"]
        known[ref] = _ANYTHING if _is_copied(definition) else _NOTHING
        return is_immutable(definition, known, inside=inside)
    if kind in _SCALARS:
        return True
    if kind in ("function-after", "function-wrap"):  # the function gives the value; around a model it gives the model
        called = kind_of(_called_on(schema)) in ("model", "dataclass")
        return called and is_immutable(schema["schema"], known, inside=inside)
    if not _is_frozen_container(schema, kind) or (inside and _is_copied(schema)):
        return False
    inside = inside or kind not in ("nullable", "union", "tagged-union", "function-before")
    return all(is_immutable(part, known, inside=inside) for part, _ in parts(schema))


def holds_only_fields(value: Any, classes: Collection[type]) -> bool:
    """Return whether callers can change nothing in such a value: objects of these classes that hold only their fields.

    The type does not say so: a validator, or `__post_init__`, may leave in an object what it likes.
    """
    kind = class_of(value)
    if kind is frozenset or (isinstance(value, tuple) and not kind.__dictoffset__):  # a tuple has no slots
        return all(holds_only_fields(each, classes) for each in value)
    if kind not in classes:
        return kind in _UNCHANGEABLE or isinstance(value, enum.Enum)
    fields = kind.__pydantic_fields__ if issubclass(kind, BaseModel) else kind.__dataclass_fields__
    found = held(value)
    return found.keys() <= fields.keys() and all(holds_only_fields(each, classes) for each in found.values())


def own_copy(value: Any) -> Any:
    """Return a shared value for one of many callers: of a frozen model or dataclass a copy, which shares the fields.

    Frozen are the fields. The caller can add attributes, and change `model_fields_set`.
    """
    attributes = getattr(value, "__dict__", None)
    kind = class_of(value)
    if attributes is None or not is_data(kind):
        return value
    made, put = object.__new__(kind), object.__setattr__
    put(made, "__dict__", attributes.copy())
    fields = getattr(value, "__pydantic_fields_set__", None)
    if fields is not None:
        put(made, "__pydantic_fields_set__", fields.copy())
        put(made, "__pydantic_extra__", None)
        put(made, "__pydantic_private__", None)
    return made


def _called_on(schema: Schema) -> Schema:
    """Return the schema inside of functions."""
    while kind_of(schema).startswith("function-") and "schema" in schema:
        schema = schema["schema"]
    return schema


def _is_copied(schema: Schema) -> bool:
    """Return whether `own_copy` makes a copy for each caller, which it does not do of what is inside."""
    return bool(getattr(_called_on(schema).get("cls"), "__dictoffset__", 0))


def _is_frozen_container(schema: Schema, kind: str) -> bool:
    if kind in ("model", "dataclass"):
        cls = schema["cls"]
        settings = getattr(cls, "model_config", None) or schema.get("config", {})
        standard = getattr(cls, "__dataclass_params__", None)  # pydantic ignores the standard library's frozen=
        frozen = settings.get("frozen") or (standard is not None and standard.frozen)
        loose = schema["schema"].get("extra_behavior") == "allow" or getattr(cls, "__private_attributes__", None)
        slots = cls.__dictoffset__ and slots_of(cls)  # of which `own_copy` makes no copy
        return bool(frozen) and is_data(cls) and not (loose or slots or _has_memo(cls))
    return kind in _FROZEN_IF_PARTS_ARE


def _has_memo(cls: type) -> bool:
    return any(isinstance(item, functools.cached_property) for base in cls.__mro__ for item in vars(base).values())
