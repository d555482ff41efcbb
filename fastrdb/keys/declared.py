"""What a declared type says: the types that it comes down to, those of its attributes, and of its type variables.

A method of a generic class may return a type variable. Each subclass puts a type in its place.
"""

from __future__ import annotations

import collections.abc
import sys
import types
import typing
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import is_dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Annotated, Any, Final, Literal, NewType, TypeVar, Union, get_args, get_origin
from uuid import UUID


class _Missing(Enum):
    MISSING = "missing"

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing.MISSING
"""No declared type, no default, no argument. None is a value."""

SCALARS: Final = (str, bool, int, float, UUID, datetime, date, time, Decimal, timedelta, bytes)
SEQUENCES: frozenset[Any] = frozenset((
    *(list, set, frozenset, collections.abc.Sequence, collections.abc.MutableSequence, collections.abc.Collection),
    *(collections.abc.Iterable, collections.abc.Set, collections.abc.MutableSet),
))  # fmt: skip
MAPPINGS: frozenset[Any] = frozenset((dict, collections.abc.Mapping, collections.abc.MutableMapping))
_ALIAS_DEPTH = 16  # type aliases may be recursive


def members(declared: Any, depth: int = 0, *, whole: bool = False) -> list[Any]:
    """Return what a type comes down to: through Annotated, NewType, aliases, TypeVars, Literal, unions, less None.

    With `whole`, None is among these, and a Literal stands for itself.
    """
    if depth > _ALIAS_DEPTH:
        return [Any]
    inner = None if whole and get_origin(declared) is Literal else _inner(declared, whole)
    if inner is None:
        return [declared]
    found = [each for one in inner for each in members(one, depth + 1, whole=whole)]
    hashable = all(getattr(type(each), "__hash__", None) is not None for each in found)
    return list(dict.fromkeys(found)) if hashable else found


def _inner(declared: Any, with_none: bool) -> list[Any] | None:
    """Return the types that a type form stands for; None if it stands for itself."""
    origin = get_origin(declared)
    if origin is Union or origin is types.UnionType:
        return [each for each in get_args(declared) if with_none or each is not NoneType]
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


def scalar_base(cls: type) -> type | None:
    """Return the scalar type that *cls* is, or is built on (str for a StrEnum), or None."""
    return next((base for base in cls.__mro__ if base in SCALARS), None)


def is_keyable(declared: Any) -> bool:
    """Return True if the type has values for keys: `session: str` is a session's id, and no AsyncSession."""
    if declared is MISSING:
        return False
    return any(get_origin(each) is not None or _is_value_type(each) for each in members(declared))


def _is_value_type(member: Any) -> bool:
    if not isinstance(member, type):
        return False
    return (
        is_model(member)
        or scalar_base(member) is not None
        or issubclass(member, Enum | list | tuple | set | frozenset | dict)
    )


def is_model(cls: type) -> bool:
    """Return True for a dataclass or a pydantic model."""
    return is_dataclass(cls) or hasattr(cls, "__pydantic_fields__")


def or_none(declared: Any) -> Any:
    """Return the type with None as a value."""
    with suppress(TypeError):  # what stands in an annotation may be no type at all
        return declared if declared is MISSING else Union[declared, None]  # noqa: UP007 - of whatever there is
    return declared


def attribute_type(declared: Any, path: tuple[str, ...]) -> Any:
    """Return the declared type of the attribute at *path* of a value of type *declared*; MISSING if it is not known."""
    for name in path:
        owners = [each for each in members(declared) if isinstance(each, type)]
        declared = _hint_of(owners[0], name) if len(owners) == 1 else MISSING
        if declared is MISSING:
            return MISSING
    return declared


def lacks(declared: Any, name: str) -> str | None:
    """Return what to say of a model without that attribute; None for one that has it, and for all other types."""
    owners = [each for each in members(declared) if isinstance(each, type)]
    owner: Any = owners[0] if len(owners) == 1 else None
    mapped, fields = getattr(owner, "__mapper__", None), getattr(owner, "__pydantic_fields__", None)
    if mapped is not None:
        fields = mapped.columns.keys()
    elif getattr(owner, "model_config", {}).get("extra") == "allow":
        fields = None
    if fields is None or name in fields or hasattr(owner, name):
        return None
    return f"{owner.__name__} has no '{name}'; it has: {', '.join(fields)}"


def _hint_of(owner: type, name: str) -> Any:
    found = getattr(owner, name, None)
    getter = found.fget if isinstance(found, property) else None
    try:
        hints = typing.get_type_hints(owner if getter is None else getter, include_extras=True)
    except Exception:  # noqa: BLE001 - annotations may name what is not there at run time, or fail in any way of their own
        return MISSING
    return hints.get(name if getter is None else "return", MISSING)


def may_be_mapped(cls: type) -> bool:
    """Return True for a class of an ORM."""
    return hasattr(cls, "__mapper__") or hasattr(cls, "_sa_class_manager")


def hint_for(value: object) -> str:
    """Return what to give in place of a value that no key can hold."""
    if may_be_mapped(type(value)):
        return "give its primary key, or write the attribute into the pattern, like {user.id}"
    return "give a plain value, or name the parameter in ignore=(...)"


def full_name(cls: type) -> str:
    """Return module and qualified name of a class, and those of the arguments of a generic of pydantic.

    Its own name has the arguments without their modules, which two models of one name may have.
    """
    arguments = (getattr(cls, "__pydantic_generic_metadata__", None) or {}).get("args", ())
    named = ",".join(full_name(each) if isinstance(each, type) else repr(each) for each in arguments)
    return f"{cls.__module__}.{cls.__qualname__}" + (f"[{named}]" if named else "")


def variables(annotation: Any) -> tuple[Any, ...]:
    """Return the type variables that an annotation mentions."""
    if isinstance(annotation, TypeVar):
        return (annotation,)
    of_model = getattr(annotation, "__pydantic_generic_metadata__", {})  # a generic model of pydantic says it there
    found = of_model.get("parameters", getattr(annotation, "__parameters__", ()))
    return found if isinstance(found, tuple) else ()


def filled(annotation: Any, types: Mapping[Any, Any]) -> Any:
    """Return the annotation with `types` in the place of its type variables; one without a type stays."""
    names = variables(annotation)
    if not names or not any(name in types for name in names):
        return annotation
    given = tuple(types.get(name, name) for name in names)
    return given[0] if names == (annotation,) else annotation[given]


def type_in(cls: type, home: type, annotation: Any) -> Any:
    """Return the annotation of a method that stands in `home`, as the subclass `cls` has it.

    What no class between the two says stays a type variable.
    """
    with suppress(TypeError, ValueError):  # a TypeVarTuple, or what a generic model refuses
        return filled(annotation, _arguments(cls, home))
    return annotation


def open_in(home: type, annotation: Any) -> list[str]:
    """Return the names of the type variables that no subclass of `home` can fill, since the class has others."""
    own = {name for base in _bases(home) for name in (*variables(base), *getattr(home, "__type_params__", ()))}
    return [each.__name__ for each in variables(annotation) if each not in own]


def _arguments(cls: type, home: type) -> dict[Any, Any]:
    """Return what stands for each type variable of `home` in its subclass `cls`."""
    if cls is home:
        return {}
    found: dict[Any, Any] = {}
    for base in _bases(cls):
        origin = get_origin(base) or base
        if isinstance(origin, type) and issubclass(origin, home):
            names = getattr(origin, "__parameters__", ())
            args = [_evaluated(each, cls) for each in get_args(base)]
            given = dict(zip(names, args, strict=True)) if args else _defaults(names)
            inner = {name: name for name in names} if origin is home else _arguments(origin, home)
            for name, each in inner.items():
                found.setdefault(name, filled(each, given))
    return found


def _bases(cls: type) -> tuple[Any, ...]:
    found: tuple[Any, ...] = cls.__dict__.get("__orig_bases__", cls.__bases__)
    return found


def _defaults(names: tuple[Any, ...]) -> dict[Any, Any]:
    """Return the defaults of type variables that a subclass does not mention."""
    return {name: name.__default__ for name in names if getattr(name, "has_default", bool)()}


def _evaluated(annotation: Any, cls: type) -> Any:
    """Return the annotation with the names in it evaluated where the subclass is defined: `Repo["AuthorOut"]`."""

    def holder() -> None: ...

    holder.__annotations__ = {"it": annotation}
    with suppress(Exception):  # whatever an annotation's own code may raise
        return typing.get_type_hints(holder, vars(sys.modules[cls.__module__]), include_extras=True)["it"]
    return annotation
