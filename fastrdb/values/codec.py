"""Values to JSON and back: `decode(encode(value)) == value`, or it is said beforehand, or it is not stored.

JSON by pydantic, by field name, plain enough for `redis-cli GET` to read. Only what `encode` would
write for this type is an entry: a field too few or too many, or a value of another type, is a `DecodeError`.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from typing import Any

from pydantic import TypeAdapter, ValidationError

from fastrdb.errors import SchemaError

from . import strict, types
from .equality import difference
from .response import unlike_response

_SPACE = 0x20  # no JSON that encode() writes begins with it; a negative entry does


class DecodeError(ValueError):
    """These bytes are no entry of this type: a miss."""


class EncodeError(ValueError):
    """This value has no JSON form under its declared type: not to be stored."""


class Codec:
    """The way in which the values of one decorated function are stored.

    Args:
        annotation: the function's return annotation; a sentinel (an enum member, `...`) where there is none.
        schema: what the function's result is converted to, in the annotation's shape: a function that returns
            `list[Row]` with the schema `Item` gives `list[Item]`.
        owner: the function's name, for messages.

    Raises:
        SchemaError: values of this type would not come back unchanged; the message names the field.

    Attributes:
        type: what a call gives: the annotation, or the schema in its shape.
        converts: the function's results are converted to a schema.
        shared: one value may be handed to many callers, since none of them can change it.
        optional: None is one of the values.
    """

    __slots__ = ("_adapter", "_dump", "_load", "_schema", "converts", "optional", "owner", "shared", "type")

    def __init__(self, annotation: Any, *, schema: Any = None, owner: str) -> None:
        self.owner = owner
        self._schema, self.converts = schema, schema is not None
        self.type = self._effective(annotation)
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(self.type)
            core: strict.Schema = dict(self._adapter.core_schema)
        except Exception as exc:
            text = str(exc).partition("\n")[0]
            raise SchemaError(f"{owner}: {_name(self.type)} cannot be cached as JSON: {text}") from exc
        types.refuse(core, owner)
        entry = strict.exact(core)
        self.shared = types.is_immutable(entry)
        validator, serializer = strict.compile_exact(entry)
        self._load = partial(validator.validate_json, strict=True)
        self._dump = serializer.to_json
        self.optional = self._takes_none()

    def _effective(self, annotation: Any) -> Any:
        if self._schema is None and types.is_absent(annotation):
            raise SchemaError(f"{self.owner}: no return type; declare it, or give schema=")
        effective = types.effective_type(annotation, self._schema)
        if mapped := types.mapped_in(effective):
            raise SchemaError(
                f"{self.owner}: {mapped.__name__} is a mapped SQLAlchemy class, which has no JSON form of its own; "
                "give schema=, a pydantic model to convert it to"
            )
        return effective

    def _takes_none(self) -> bool:
        try:
            return self.decode(b"null") is None
        except DecodeError:
            return False

    def unlike_response(self) -> str | None:
        """Return why the JSON of a response model of this type is not that of an entry; None if it is the same."""
        return unlike_response(dict(self._adapter.core_schema))

    def __repr__(self) -> str:
        return f"Codec({_name(self.type)})"

    def encode(self, value: Any) -> bytes:
        """Return the entry for `value`.

        Raises:
            EncodeError: the value has no JSON form. A value of another type than declared may get one: see `verify`.
        """
        try:
            return self._dump(value, by_alias=False, round_trip=True, warnings=False)
        except Exception as exc:
            raise EncodeError(f"{self.owner}: {type(value).__name__} is not {_name(self.type)}: {exc}") from exc

    def decode(self, raw: bytes) -> Any:
        """Return the value of an entry.

        Raises:
            DecodeError: anything else than what `encode` writes; never another exception.
        """
        try:
            if raw[0] != _SPACE:
                return self._load(raw)
        except Exception as exc:  # validators are the user's, and may raise anything
            raise DecodeError(f"{self.owner}: the entry is not {_name(self.type)}") from exc
        raise DecodeError(f"{self.owner}: a negative entry has no value")

    def verify(self, raw: bytes, value: Any) -> str | None:
        """Return why `decode(raw)` would not be the same as `value`, type for type; None if it is."""
        try:
            return difference(self.decode(raw), value)
        except DecodeError as exc:
            return f"it does not come back from JSON: {_first(exc.__cause__, where=False)}"
        except Exception as exc:  # noqa: BLE001 (an own __eq__ raises what it likes)
            return f"it cannot be compared with what comes back from JSON: {type(exc).__name__}"

    def convert(self, result: Any) -> Any:
        """Return the call's answer for the function's `result`: converted to `schema=`, or else the result itself.

        Raises:
            SchemaError: the result does not fit the schema. What reading an attribute raises (MissingGreenlet for a
                relationship that was not loaded, say) is raised unchanged.
        """
        if self._schema is None or type(result) is self._schema:
            return result
        try:
            return self._adapter.validate_python(result, from_attributes=True, by_name=True)
        except ValidationError as exc:
            failure = exc
        for error in failure.errors(include_url=False, include_input=False):
            if error["type"] == "get_attribute_error":
                _read_again(result, error["loc"])
        text = f"{self.owner}: the result, {type(result).__name__}, does not fit schema {_name(self.type)}"
        raise SchemaError(f"{text}: {_first(failure)}") from failure


def _read_again(result: Any, loc: tuple[int | str, ...]) -> None:
    """Read the attribute that pydantic could not read, to raise the error of which pydantic keeps only the text."""
    for part in loc:
        if isinstance(part, str):
            result = getattr(result, part, result)  # a part may be a union's label instead
        elif isinstance(result, Sequence):
            result = result[part]
        else:
            return


def _first(exc: BaseException | None, *, where: bool = True) -> str:
    """Return the first thing wrong, without the values. The place may name the key of a dict: for no log."""
    if not isinstance(exc, ValidationError):
        return type(exc).__name__
    error = exc.errors(include_url=False, include_input=False)[0]
    place = ".".join(map(str, error["loc"]))
    return f"{place}: {error['msg']}" if place and where else error["msg"]


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)


ABSENT = b"null"
"""What is not there, as the entry of one of many ids: also where None is no value of the type."""


def encode_missing(message: str) -> bytes:
    """Return the negative entry: there is no such row, with the `message` of the error to raise."""
    return b" " + json.dumps({"error": "NoResultFound", "message": message}).encode()


def missing_message(raw: bytes) -> str | None:
    """Return the message of a negative entry; None for every other bytes."""
    if not raw.startswith(b" "):
        return None
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or entry.keys() != {"error", "message"} or entry["error"] != "NoResultFound":
        return None
    message = entry["message"]
    return message if isinstance(message, str) else None
