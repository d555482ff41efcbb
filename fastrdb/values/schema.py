"""The core schema that pydantic makes of a type: its exact form, its digest, and how a response would differ.

The exact schema accepts only the JSON that the type's values are stored as. A core schema is nested dicts, each with
a "type". None of these functions runs when a value is read or written.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from hashlib import blake2b
from typing import Any

from pydantic_core import SchemaSerializer, SchemaValidator

Schema = dict[str, Any]

_SINGLE = (
    *("schema", "items_schema", "keys_schema", "values_schema", "extras_schema", "extras_keys_schema", "json_schema"),
    *("python_schema", "lax_schema", "strict_schema", "arguments_schema", "var_args_schema", "var_kwargs_schema"),
)
_SEVERAL = ("items_schema", "choices", "fields", "definitions", "steps", "arguments_schema")
# One JSON form whatever the models' own settings: bytes that are not UTF-8 come back, the output stays plain JSON.
_JSON = {
    "ser_json_bytes": "base64",
    "val_json_bytes": "base64",
    "ser_json_timedelta": "iso8601",
    "ser_json_temporal": "iso8601",
    "ser_json_inf_nan": "null",
}
_building = threading.Lock()


def kind_of(schema: Schema) -> str:
    """Return the "type" of a schema."""
    return str(schema.get("type", "argument"))  # a named tuple's arguments have no type of their own


def rebuild(schema: Schema, change: Callable[[Schema, str], Schema]) -> Schema:
    """Return a copy of `schema` with `change(inner, field name or "")` in place of each schema directly inside."""
    copy = dict(schema)
    for key in _SINGLE:
        if isinstance(copy.get(key), dict):
            copy[key] = change(copy[key], "")
    for key in _SEVERAL:
        if isinstance(copy.get(key), list):
            copy[key] = [_rebuild_item(item, change) for item in copy[key]]
    for key in ("fields", "choices"):
        if isinstance(copy.get(key), dict):
            named = key == "fields"  # the others are tags of a union
            copy[key] = {name: _rebuild_item(part, change, name if named else "") for name, part in copy[key].items()}
    return copy


def _rebuild_item(item: Any, change: Callable[[Schema, str], Schema], name: Any = "") -> Any:
    if isinstance(item, dict):
        return change(item, str(item.get("name", name)))
    if isinstance(item, tuple):  # a union member with its label
        return (change(item[0], ""), *item[1:])
    return item  # the field names of a dataclass, or a tag that stands for another


def parts(schema: Schema) -> list[tuple[Schema, str]]:
    """Return the schemas directly inside `schema`, each with its field name, or ""."""
    found: list[tuple[Schema, str]] = []

    def note(part: Schema, name: str) -> Schema:
        found.append((part, name))
        return part

    rebuild(schema, note)
    return found


def field_names(schema: Schema) -> Iterator[str]:
    """Yield the names of all fields in a schema, and their aliases."""
    for part, name in parts(schema):
        yield name
        yield str(part.get("validation_alias"))
        yield from field_names(part)


def exact(schema: Schema, config: Schema | None = None) -> Schema:
    """Return the schema of stored entries: exactly the fields, by their own names, with no default for a missing one.

    Optional keys of a TypedDict stay optional, and extra="allow" stays allowed.
    """
    kind = kind_of(schema)
    if kind == "default":
        inner = exact(schema["schema"], config)
        return inner | {key: schema[key] for key in ("ref", "serialization") if key in schema}
    if kind in ("model", "dataclass"):
        config = schema.get("config")
    elif "config" in schema:
        config = {**(config or {}), **schema["config"]}
    copy = rebuild(schema, lambda part, _: exact(part, config))
    copy.pop("validation_alias", None)
    if "config" in copy or kind in ("model", "dataclass", "typed-dict"):
        copy["config"] = {**(config or {}), **_JSON}
    if kind == "model":
        copy["custom_init"] = False  # an own __init__ would go back to the model's lenient validator
    if kind in ("model-fields", "dataclass-args", "typed-dict"):
        extra = copy.get("extra_behavior") or (config or {}).get("extra_fields_behavior")
        copy["extra_behavior"] = "allow" if extra == "allow" else "forbid"
    return copy


def compile_exact(schema: Schema) -> tuple[SchemaValidator, SchemaSerializer]:
    """Return the validator and the serializer of an exact schema."""
    with _building, _rebuilt(set(classes_in(schema))):
        return SchemaValidator(schema, _JSON), SchemaSerializer(schema, _JSON)  # type: ignore[arg-type]


def classes_in(schema: Schema) -> Iterator[type]:
    """Yield the classes of all models and dataclasses in a schema."""
    if kind_of(schema) in ("model", "dataclass"):
        yield schema["cls"]
    for part, _ in parts(schema):
        yield from classes_in(part)


@contextmanager
def _rebuilt(classes: set[type]) -> Iterator[None]:
    """Build these classes by pydantic from the given schema.

    If a class is marked complete, pydantic uses its finished, lenient validator whatever the schema is. So the mark is
    removed while building. Only building reads it, so other uses of the class meanwhile are not affected.
    """
    marked = [cls for cls in classes if vars(cls).get("__pydantic_complete__")]
    for cls in marked:
        type.__setattr__(cls, "__pydantic_complete__", False)
    try:
        yield
    finally:
        for cls in marked:
            type.__setattr__(cls, "__pydantic_complete__", True)


_SCALARS = (str, int, float, bool, type(None))
_NAMES = frozenset({
    *("ref", "schema_ref", "cls_name", "model_name", "dataclass_name", "title", "generic_origin", "function_name"),
    *("type", "custom_init", "root_model", "slots"),
})  # fmt: skip
"""Parts of a core schema that change no value: names, and settings such as titles."""


def schema_digest(schema: Schema) -> str:
    """Return eight hexadecimal digits for a core schema of pydantic.

    Names of classes make no difference: no entry holds one. A new version of pydantic may give another
    digest for the same type.
    """
    return blake2b(repr(_shape(schema, {})).encode(), digest_size=4).hexdigest()


def _shape(schema: Schema, known: dict[str, int]) -> Any:
    """Return the kinds, fields and limits of a schema. `known` numbers definitions, whose names hold addresses."""
    kind = kind_of(schema)
    if kind == "definition-ref":
        return kind, known.setdefault(schema["schema_ref"], len(known))
    number = known.setdefault(schema["ref"], len(known)) if "ref" in schema else None
    limits = sorted((key, repr(value)) for key, value in schema.items() if key not in _NAMES and _is_plain(value))
    values = [repr(_value(each)) for each in (*schema.get("members", ()), *schema.get("expected", ()))]
    return kind, number, limits, values, [(name, _shape(part, known)) for part, name in parts(schema)]


def _is_plain(value: Any) -> bool:
    return isinstance(value, _SCALARS)


def _value(member: Any) -> Any:
    return member.value if isinstance(member, Enum) else member


# The settings that decide how a kind of value is written, and the settings' values that entries are written with.
_SETTINGS: dict[str, tuple[str, set[str | None]]] = {
    "bytes": ("ser_json_bytes", {"base64"}),
    "timedelta": ("ser_json_timedelta", {None, "iso8601"}),
    "float": ("ser_json_inf_nan", {None, "null"}),
}
_TEMPORAL = {"date", "time", "datetime", "timedelta"}


def unlike_response(schema: Schema, where: str = "the value", settings: Schema | None = None) -> str | None:
    """Return the first part that a response model would write otherwise than an entry, and why; None if all agree."""
    settings = {**(settings or {}), **schema.get("config", {})}
    kind = kind_of(schema)
    if (reason := _reason(schema, kind, settings)) is not None:
        return f"{where} {reason}"
    name = getattr(schema.get("cls"), "__name__", where)
    found = (unlike_response(part, f"{name}.{field}" if field else name, settings) for part, field in parts(schema))
    return next((reason for reason in found if reason is not None), None)


def _reason(schema: Schema, kind: str, settings: Schema) -> str | None:
    setting, same = _SETTINGS.get(kind, ("", {None}))
    function = schema.get("serialization", {}).get("function")
    if (alias := schema.get("serialization_alias")) is not None:
        return f"has the alias {alias!r} in a response"
    if schema.get("computed_fields"):
        return "has a computed field, which is no part of an entry"
    if kind == "json":
        return "is text in an entry, and what the text holds in a response"
    if function is not None and not str(getattr(function, "__module__", "")).startswith("pydantic"):
        return "has a serializer of its own"
    if settings.get(setting) not in same or (
        kind in _TEMPORAL and settings.get("ser_json_temporal") not in {None, "iso8601"}
    ):
        return f"is of type {kind}, which its model's settings write in another way"
    return None
