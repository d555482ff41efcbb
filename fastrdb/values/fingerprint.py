"""A digest of a type's form: equal in all processes, and another if a field is added, removed or changes its type."""

from __future__ import annotations

from enum import Enum
from hashlib import blake2b
from typing import Any

from .strict import Schema, kind_of, parts

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
