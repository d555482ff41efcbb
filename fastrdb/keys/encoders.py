"""Encoders: from the declared type of a parameter to what writes its values.

Python enforces no types, so an argument may be of any other. Its mark ends in the `home` of the parameter then, a
digest of pattern, place and type. Only functions of this very pattern make a key with such a value. So the types alone
say which keys two functions have in common: see `overlap`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from enum import Enum
from hashlib import blake2b
from types import NoneType
from typing import Any, Literal, TypeVar, get_args, get_origin
from weakref import WeakSet

from fastrdb.errors import KeyValueError

from .declared import MAPPINGS, SEQUENCES, is_model, members, scalar_base
from .encoding import CONTAINERS, Encoder, container, counts_as, enum_text, own_name, quote, search, text_as, undeclared

T = TypeVar("T")

_NONE = (None, NoneType)
_NO_SCALAR = object
_HOME_BYTES = 4
_has_tag = re.compile("%[a-z]").search
_of_ints: WeakSet[Encoder] = WeakSet()


def home_of(shape: str, place: str, declared: Any) -> str:
    """Return what ends the marks of values of other types than declared, at one place of the keys of a pattern.

    Names of placeholders do not count: a function of one id may have the keys of one that takes many.
    """
    text = "\n".join([shape, place, *map(repr, members(declared, whole=True))])
    return f"~{blake2b(text.encode('utf-8', 'surrogatepass'), digest_size=_HOME_BYTES).hexdigest()}"


def encoder_for(declared: Any, home: str = "") -> Encoder:
    """Return the function that writes a value declared so. Whatever cannot be made out counts as undeclared.

    Args:
        declared: the type.
        home: of the parameter; "" where no other function may have the key.
    """
    found, kinds = members(declared), members(declared, whole=True)
    takes_none = any(kind in _NONE or (get_origin(kind) is Literal and None in get_args(kind)) for kind in kinds)
    tests = [_test_of(kind) for kind in kinds if kind not in _NONE]
    if None in tests:
        return undeclared
    none_home = "" if takes_none else home
    if len(found) == 1 and found[0] is not None and not any(get_origin(kind) is Literal for kind in kinds):
        return _encoder_of(found[0], home, none_home)
    plain = _encoder_of(found[0], "", "") if len(found) == 1 and tests else undeclared

    def encode(value: Any) -> str:
        if value is None:
            return text_as(None, None, none_home)
        return plain(value) if any(test is not None and test(value) for test in tests) else _other(value, home)

    return encode


def is_for_int(encode: Encoder) -> bool:
    """Return True if an int that is no bool is written as Python writes it."""
    return encode in _of_ints


def is_container_type(kind: Any) -> bool:
    """Return True for types whose values are written between brackets: lists, dicts, dataclasses, pydantic models."""
    origin, cls = get_origin(kind), get_origin(kind) or kind
    if not isinstance(cls, type):
        return False
    several = origin in SEQUENCES or origin in MAPPINGS
    return several or issubclass(cls, tuple(base for base, _ in CONTAINERS)) or is_model(cls)


def _test_of(kind: Any) -> Callable[[Any], bool] | None:
    """Return a test of whether a value is of a type; None for a type that says too little."""
    if get_origin(kind) is Literal:
        given = {(type(each), each) for each in get_args(kind)}
        types = {cls for cls, _ in given}
        return lambda value: type(value) in types and (type(value), value) in given
    if is_container_type(kind):
        return _is_container
    if not isinstance(kind, type) or get_origin(kind) is not None:
        return None
    if (base := scalar_base(kind)) is not None:
        own = counts_as(kind, base)
        return lambda value: (other := scalar_base(type(value))) is not None and counts_as(type(value), other) is own
    return (lambda value: isinstance(value, kind)) if issubclass(kind, Enum) else None


def _is_container(value: Any) -> bool:
    return scalar_base(type(value)) is None and not isinstance(value, Enum)


def _other(value: Any, home: str) -> str:
    """Return the text of a value of another type than declared."""
    return text_as(value, _NO_SCALAR, home)


def _encoder_of(member: Any, home: str, none_home: str) -> Encoder:
    origin, args = get_origin(member), get_args(member)
    if origin in MAPPINGS and len(args) == 2:
        return _container_encoder(home, none_home, encoder_for(args[1]), encoder_for(args[0]))
    if (origin in SEQUENCES and len(args) == 1) or (origin is tuple and len(args) == 2 and args[1] is Ellipsis):
        return _container_encoder(home, none_home, encoder_for(args[0]))
    cls = member if origin is None else origin
    if origin is None and scalar_base(cls) is not None:
        return _scalar_encoder(cls, home, none_home)
    if origin is None and issubclass(cls, Enum):
        return _enum_encoder(cls, home, none_home)
    return _container_encoder(home, none_home, declared=cls)


def _scalar_encoder(declared: type, home: str, none_home: str) -> Encoder:
    """Return the encoder of a parameter that declares a scalar type, or a class built on one."""
    own = counts_as(declared, scalar_base(declared) or declared)
    if declared is str:
        # The commonest by far, and the regular expression alone decides: no call but one.
        def encode_str(value: Any) -> str:
            if type(value) is str:
                return value if search(value) is None else quote(value)
            return text_as(value, str, home if value is not None else none_home)

        return encode_str

    def encode(value: Any) -> str:
        return text_as(value, own, home if value is not None else none_home)

    if declared is int:
        _of_ints.add(encode)
    return encode


def _enum_encoder(declared: type[Enum], home: str, none_home: str) -> Encoder:
    """Return the encoder of a parameter that declares an enum which is not also a str or an int."""

    def encode(value: Any) -> str:
        if not isinstance(value, declared):
            return _other(value, home if value is not None else none_home)
        text = enum_text(value)
        return text_as(value, declared) if _has_tag(text) or own_name(value) else text

    return encode


def _container_encoder(
    home: str,
    none_home: str,
    item: Encoder = undeclared,
    key: Encoder = undeclared,
    declared: type | None = None,
) -> Encoder:
    def encode(value: Any) -> str:
        if isinstance(value, list | tuple | set | frozenset | dict) or type(value) is declared:
            return container(value, item, key, declared)
        if value is None or not _is_container(value):
            return _other(value, home if value is not None else none_home)
        return undeclared(value)

    return encode


def encode_with(encode: Callable[[Any], T], value: Any, function: str = "", parameter: str = "") -> T:
    """Return what *encode* writes for *value*; errors name *function* and *parameter*.

    Raises:
        KeyValueError: the value has no canonical form, or is a container that holds itself.
    """
    try:
        return encode(value)
    except KeyValueError as error:
        raise KeyValueError(function, parameter, error.value_type, error.hint) from None
    except RecursionError:
        raise KeyValueError(function, parameter, type(value).__qualname__, "it is nested too deeply") from None
