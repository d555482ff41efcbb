"""A check for differences between the JSON of a response model and that of an entry of the same type.

An entry is written by field name and comes back unchanged. A response has aliases and computed fields, and follows the
models' own settings.
"""

from __future__ import annotations

from .strict import Schema, kind_of, parts

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
