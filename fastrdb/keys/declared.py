"""From a declared type to the encoder of its values: decided once, where a function is decorated."""

from __future__ import annotations

import collections.abc
import types
import typing
from enum import Enum
from typing import Annotated, Any, Final, Literal, NewType, TypeVar, Union, get_args, get_origin

from fastrdb.errors import KeyValueError

from .encoding import (
    Encoder,
    container,
    enum_encoder,
    mistaken,
    percent,
    plain,
    scalar_base,
    scalar_encoder,
    tagged,
    undeclared,
)


class _Missing(Enum):
    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing.MISSING
"""Nothing there: no declared type, no default, no argument. None is a value."""

_DEPTH = 16  # type aliases may be recursive
SEQUENCES: frozenset[Any] = frozenset(
    (
        list,
        set,
        frozenset,
        collections.abc.Sequence,
        collections.abc.MutableSequence,
        collections.abc.Collection,
        collections.abc.Iterable,
        collections.abc.Set,
        collections.abc.MutableSet,
    )
)
MAPPINGS: frozenset[Any] = frozenset((dict, collections.abc.Mapping, collections.abc.MutableMapping))


def members(declared: Any, depth: int = 0) -> list[Any]:
    """What a declared type comes down to: through Annotated, NewType, aliases, TypeVars, Literal, unions, less None."""
    if depth > _DEPTH:
        return [Any]
    inner = _inner(declared)
    if inner is None:
        return [declared]
    found = [each for one in inner for each in members(one, depth + 1)]
    return list(dict.fromkeys(found)) if _hashable(found) else found


def _hashable(found: list[Any]) -> bool:
    return all(getattr(type(each), "__hash__", None) is not None for each in found)


def _inner(declared: Any) -> list[Any] | None:
    """The types a type form stands for; None if it stands for itself."""
    origin = get_origin(declared)
    if origin is Union or origin is types.UnionType:
        return [each for each in get_args(declared) if each is not types.NoneType]
    if origin is Literal:
        return [type(each) for each in get_args(declared) if each is not None]
    if origin is Annotated or getattr(origin, "__name__", "") == "Mapped":
        return [get_args(declared)[0]]
    if isinstance(declared, NewType):
        return [declared.__supertype__]
    if isinstance(declared, TypeVar):
        return list(declared.__constraints__) or [declared.__bound__ or Any]
    if type(declared).__name__ == "TypeAliasType" or type(origin).__name__ == "TypeAliasType":
        return [(declared if origin is None else origin).__value__]
    return None


def encoder_for(declared: Any) -> Encoder:
    """The function that writes a value of a parameter declared so. Whatever cannot be made out counts as undeclared."""
    encoders = {_tag(each): each for each in members(declared)}
    if len(encoders) != 1:
        return undeclared
    return _encoder_of(next(iter(encoders.values())))


def _tag(member: Any) -> Any:
    base = scalar_base(member) if isinstance(member, type) else None
    return base if base is not None else repr(member)


def _encoder_of(member: Any) -> Encoder:
    origin = get_origin(member)
    if origin is not None:
        return _generic_encoder(origin, get_args(member), member)
    if not isinstance(member, type) or member is object or member is Any:  # Any is a class since Python 3.11
        return undeclared
    base = scalar_base(member)
    if base is not None:
        return scalar_encoder(base)
    if issubclass(member, Enum):
        return enum_encoder(member)
    return _container_encoder(undeclared, undeclared, member)


def _generic_encoder(origin: Any, args: tuple[Any, ...], declared: Any) -> Encoder:
    if origin in MAPPINGS and len(args) == 2:
        return _container_encoder(encoder_for(args[1]), encoder_for(args[0]))
    if (origin in SEQUENCES and len(args) == 1) or (origin is tuple and len(args) == 2 and args[1] is Ellipsis):
        return _container_encoder(encoder_for(args[0]), undeclared)
    return _container_encoder(undeclared, undeclared, origin if isinstance(origin, type) else None)


def _container_encoder(item: Encoder, key: Encoder, declared: type | None = None) -> Encoder:
    def encode(value: Any) -> str:
        if isinstance(value, list | tuple | set | frozenset | dict) or type(value) is declared:
            return container(value, item, key, declared)
        return tagged(value)

    return encode


def escaping(encode: Encoder, also: str) -> Encoder:
    """The encoder, with the characters *also* percent-encoded in all that it writes."""
    if not also:
        return encode

    def escape(value: Any) -> str:
        text = encode(value)
        for char in also:
            text = text.replace(char, percent(char))
        return text

    return escape


def encode_value(value: Any, declared: Any = MISSING, *, also: str = "") -> str:
    """Canonical text of *value* for a parameter declared as *declared*; characters in *also* are escaped besides.

    Raises:
        KeyValueError: no canonical form.
    """
    return encode_with(escaping(encoder_for(declared), also), value)


def encode_with(encode: Encoder, value: Any, function: str = "", parameter: str = "") -> str:
    """What *encode* writes for *value*; its errors name *function* and *parameter*.

    Raises:
        KeyValueError: no canonical form, or a container that holds itself.
    """
    try:
        return encode(value)
    except KeyValueError as error:
        raise KeyValueError(function, parameter, error.value_type, error.hint) from None
    except RecursionError:
        raise KeyValueError(function, parameter, type(value).__qualname__, "it is nested too deeply") from None


def texts_of(value: Any, encode: Encoder, write: Encoder = str) -> tuple[str, ...]:
    """Every text that functions may have written *value* as: as declared here, plainly, undeclared, and mistaken.

    *write* is what then becomes of these texts in a key.

    Prefixes are written in one function and keys in another, which may declare the parameter otherwise (or not at
    all), or be called against what it declares: what is invalidated must reach them all.
    """
    found = (encode(value), plain(value), undeclared(value), *mistaken(value))
    return tuple(dict.fromkeys(map(write, found)))


def attribute_type(declared: Any, path: tuple[str, ...]) -> Any:
    """Declared type of the attribute at *path* of a value of type *declared*; MISSING if it cannot be made out."""
    for name in path:
        owners = [each for each in members(declared) if isinstance(each, type)]
        declared = _hint_of(owners[0], name) if len(owners) == 1 else MISSING
        if declared is MISSING:
            return MISSING
    return declared


def _hint_of(owner: type, name: str) -> Any:
    found = getattr(owner, name, None)
    getter = found.fget if isinstance(found, property) else None
    try:
        hints = typing.get_type_hints(owner if getter is None else getter, include_extras=True)
    except Exception:  # noqa: BLE001 - annotations may name what is not there at run time, or fail in any way of their own
        return MISSING
    return hints.get(name if getter is None else "return", MISSING)
