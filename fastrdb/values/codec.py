"""Values to JSON and back: `decode(encode(value)) == value`. A type or value that breaks this is refused.

Pydantic writes the JSON, by field name, plain enough to read with `redis-cli GET`. Only what `encode` would write for
the type is an entry: a field too few or too many, or a value of another type, is a `DecodeError`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any, Final, get_args

from pydantic import TypeAdapter, ValidationError
from pydantic_core.core_schema import ErrorType

from fastrdb.errors import OptionError, SchemaError
from fastrdb.keys import members, variables

from . import types
from .equality import difference
from .schema import Schema, classes_in, compile_exact, exact, field_names, schema_digest, unlike_response

_KNOWN_ERRORS: Final = frozenset(get_args(ErrorType))  # a validator of the user's has types and texts of its own
_QUOTING: Final = {"error", "tag", "encoding_error"}  # what a text of pydantic's quotes: another text, or the value
_SPACE = 0x20  # no JSON that encode() writes begins with it; a negative entry does


def left_open(owner: str, variable: str) -> str:
    """Return the error message for a type that a type variable leaves open."""
    return f"{owner}: the type of its value, {variable}, is left open; decorate in the subclass, or give schema="


class DecodeError(ValueError):
    """An error for bytes that are no entry of the type. The call counts as a miss."""


class EncodeError(ValueError):
    """An error for a value that has no JSON form under its declared type. The value is not stored."""


class Codec:
    """The conversion of one decorated function's values to stored entries and back.

    Args:
        annotation: the function's return annotation; a sentinel (an enum member, `...`) where there is none.
        schema: what the function's result is converted to, in the annotation's shape: a function that returns
            `list[Row]` with the schema `Item` gives `list[Item]`.
        owner: the function's name, for messages.

    Raises:
        SchemaError: values of this type would not come back unchanged; the message names the field.

    Attributes:
        type: the type of a call's answer: the annotation, or the schema in its shape.
        converts: the function's results are converted to a schema.
        shared: one value may be handed to many callers, if it holds only its fields: see `shares`.
        optional: None is one of the values.
    """

    __slots__ = ("_adapter", "_classes", "_dump", "_load", "_schema", "converts", "optional", "owner", "shared", "type")

    def __init__(self, annotation: Any, *, schema: Any = None, owner: str) -> None:
        self.owner = owner
        self._schema, self.converts = schema, schema is not None
        self.type = self._effective(annotation)
        try:
            self._adapter: TypeAdapter[Any] = TypeAdapter(self.type)
            core = self._core
        except Exception as exc:
            text = str(exc).partition("\n")[0]
            raise SchemaError(f"{owner}: {_name(self.type)} cannot be cached as JSON: {text}") from exc
        types.refuse(core, owner)
        entry = exact(core)
        self.shared = types.is_immutable(entry)
        self._classes = frozenset(classes_in(entry))
        validator, serializer = compile_exact(entry)
        self._load = partial(validator.validate_json, strict=True)
        self._dump = serializer.to_json
        self.optional = self._takes_none()

    def _effective(self, annotation: Any) -> Any:
        if self._schema is None and types.is_absent(annotation):
            raise SchemaError(f"{self.owner}: no return type; declare it, or give schema=")
        effective = types.effective_type(annotation, self._schema)
        for each in variables(effective):
            raise SchemaError(left_open(self.owner, each.__name__))
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

    @property
    def _core(self) -> Schema:
        return dict(self._adapter.core_schema)

    def version(self, version: object) -> str:
        """Return the version as keys have it; "" without one. Raises OptionError for any other kind of value."""
        if version is None:
            return ""
        if isinstance(version, bool) or not isinstance(version, str | int) or version == "":
            raise OptionError(f'{self.owner}: version={version!r} must be a text, a whole number, or "auto"')
        return self.fingerprint() if version == "auto" else str(version)

    def fingerprint(self) -> str:
        """Return a short digest of the form of the values: see `version="auto"`."""
        return schema_digest(self._core)

    def unlike_response(self) -> str | None:
        """Return why the JSON of a response model of this type is not that of an entry; None if it is the same."""
        return unlike_response(self._core)

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
            DecodeError: the bytes are not what `encode` writes. No other error is raised.
        """
        try:
            if raw[0] != _SPACE:
                return self._load(raw)
        except Exception as exc:  # a validator of the user may raise anything
            raise DecodeError(f"{self.owner}: the entry is not {_name(self.type)}") from exc
        raise DecodeError(f"{self.owner}: a negative entry has no value")

    def verify(self, raw: bytes, value: Any) -> str | None:
        """Return why `decode(raw)` would not be the same as `value`, type for type; None if it is."""
        try:
            return difference(self.decode(raw), value)
        except DecodeError as exc:
            return f"it does not come back from JSON: {_first(exc.__cause__, self._core)}"
        except Exception as exc:  # noqa: BLE001 (an own __eq__ raises what it likes)
            return f"it cannot be compared with what comes back from JSON: {type(exc).__name__}"

    def shares(self, value: Any) -> bool:
        """Return whether a value of a shared type holds only its fields, so that it may indeed be handed to many."""
        return types.holds_only_fields(value, self._classes)

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
        kind = failure.errors(include_url=False, include_input=False)[0]["type"]
        hint = "; of a row, pydantic makes models only" if kind in ("dataclass_type", "dict_type") else ""
        raise SchemaError(f"{text}: {_first(failure, self._core)}{hint}") from failure

    def refusal_of_row(self, row: Any) -> str:
        """Return why a row of the ORM, or a list of rows, is not what is declared, and what to do."""
        inner = [kind for each in members(self.type) for kind in get_args(each) or (each,)]
        wanted = " or ".join(map(_name, inner))
        models = all(hasattr(kind, "model_validate") for kind in inner)  # pydantic makes nothing else of a row
        todo = f"give schema={wanted}" if models else "make that of the row before you return it"
        return f"the function returns a row of {type(row).__name__}, and declares {wanted}: {todo}"


def _read_again(result: Any, loc: tuple[int | str, ...]) -> None:
    """Read again the attribute that pydantic failed to read, and raise its error: pydantic keeps only the text."""
    for part in loc:
        if isinstance(part, str):
            result = getattr(result, part, result)  # a part may be a union's label instead
        elif isinstance(result, Sequence):
            result = result[part]
        else:
            return


def _first(exc: BaseException | None, core: Schema) -> str:
    """Return the first error of a validation, for a log: without values, keys of dicts and texts of validators."""
    if not isinstance(exc, ValidationError):
        return type(exc).__name__
    error = exc.errors(include_url=False, include_input=False)[0]
    names = set(field_names(core))
    place = ".".join(str(part) if part in names else "*" for part in error["loc"])
    plain = error["type"] in _KNOWN_ERRORS and not _QUOTING & error.get("ctx", {}).keys()
    text = error["msg"] if plain else error["type"].replace("_", " ")
    return f"{place}: {text}" if place else text


def _name(kind: Any) -> str:
    return kind.__name__ if isinstance(kind, type) and not hasattr(kind, "__args__") else str(kind)


# --- negative entries: the JSON of the error that a missing row raises
#
# The error comes back with its class, arguments and attributes. Nothing that Redis holds is imported or called: the
# class is looked up in loaded modules. An error that would come back changed has no entry.

ABSENT: Final = b"null"
"""The entry of a missing id, for functions of many ids, also where None is no value of the type."""
_MARK: Final = b" "  # no JSON of a value begins so
_FIELDS: Final = {"error", "message", "args", "attributes"}


def encode_missing(error: Exception, base: type[Exception]) -> bytes | None:
    """Return the negative entry for `error`, an instance of `base`; None if it would come back changed."""
    cls = type(error)
    name = cls.__name__ if cls is base else f"{cls.__module__}:{cls.__qualname__}"
    entry: dict[str, Any] = {"error": name, "message": str(error)}
    args, attributes = list(error.args), vars(error)
    if args != [entry["message"]]:
        entry["args"] = args
    if attributes:
        entry["attributes"] = attributes
    try:
        raw = _MARK + json.dumps(entry).encode()
    except (TypeError, ValueError, RecursionError):  # holds what has no JSON form
        return None
    found = decode_missing(raw, base)
    same = found is not None and type(found) is type(error) and str(found) == str(error)
    if found is None or not same or difference((found.args, vars(found)), (error.args, attributes)) is not None:
        return None
    return raw


def decode_missing(raw: bytes, base: type[Exception]) -> Exception | None:
    """Return the error of a negative entry; None for other bytes, and for a class that is not loaded here."""
    entry = _entry(raw)
    if entry is None:
        return None
    cls, args = _class_named(entry["error"], base), entry.get("args", [entry["message"]])
    attributes = entry.get("attributes", {})
    if cls is None or not isinstance(args, list) or not isinstance(attributes, dict):
        return None
    try:
        error = Exception.__new__(cls, *args)  # an own __init__ made the message and the attributes once already
    except TypeError:  # made by C code of another class, such as OSError
        return None
    vars(error).update(attributes)
    return error


def is_missing(raw: bytes) -> bool:
    """Return True for a negative entry, whatever the class of its error."""
    return _entry(raw) is not None


def _entry(raw: bytes) -> dict[str, Any] | None:
    if not raw.startswith(_MARK):
        return None
    try:
        entry = json.loads(raw)
    except (ValueError, RecursionError):
        return None
    if not isinstance(entry, dict) or not {"error", "message"} <= entry.keys() <= _FIELDS:
        return None
    return entry if isinstance(entry["error"], str) and isinstance(entry["message"], str) else None


def _class_named(name: str, base: type[Exception]) -> type[Exception] | None:
    """Return the subclass of `base` with that name at the top of a loaded module, or in a class there."""
    if name == base.__name__:
        return base
    module, _, path = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in path.split("."):
        # Not getattr: a module's own __getattr__ may import, and a class's metaclass may run anything.
        found = vars(found).get(part) if isinstance(found, type | type(sys)) else None
    slots = isinstance(found, type) and any(vars(cls).get("__slots__") for cls in found.__mro__)
    return found if isinstance(found, type) and issubclass(found, base) and not slots else None
