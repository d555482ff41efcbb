"""A comparison of two values, type for type: `1`, `1.0` and `True` are equal in Python, and not the same here.

It includes what `==` leaves out: all attributes that an object holds, fields or not, a deque's bound, the sign of a
zero. Objects that are not data are also compared by what `pickle` would take of them. Left out are values that a
`cached_property` has stored, and the order of a dict: a TypedDict comes back in the order of its declaration.
"""

from __future__ import annotations

import dataclasses
from collections import deque
from contextlib import suppress
from datetime import date, datetime, time, tzinfo
from decimal import Decimal
from enum import Enum
from functools import cached_property, lru_cache
from types import MemberDescriptorType, NoneType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

_ABSENT = object()
class_of: Callable[[object], Any] = type  # for the checker, to which a class cannot be hashed
_PLAIN = frozenset({str, int, bool, NoneType, bytes, date, UUID})  # same type and equal is the same
_SCALARS = _PLAIN | {float, Decimal, datetime, time}
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_NUMBERS = (float, Decimal, datetime, time)  # compared by more than `==`, and by less than what `pickle` takes
_DRIVER = "asyncpg"  # its UUIDs are of a class of its own, which has the methods of UUID
_MADE_BY_PYTHON = 1 << 9  # Py_TPFLAGS_HEAPTYPE
_OWN_PICKLE = frozenset({"__reduce__", "__reduce_ex__", "__getstate__"})


def difference(left: Any, right: Any, where: str = "value") -> str | None:
    """Return the first place where `left` is not the same as `right`, in words without the values; None if nowhere."""
    kind = class_of(right)
    found = None
    if left is right:
        return None
    if kind is not class_of(left):
        if class_of(left) is UUID and kind.__module__.partition(".")[0] == _DRIVER and left == right:
            return None
        return f"{where}: {kind.__name__} comes back as {type(left).__name__}"
    if kind in _SCALARS or not (is_data(kind) or isinstance(right, _CONTAINERS)):
        return None if _same_object(left, right) else f"{where}: another {kind.__name__} comes back"
    if isinstance(right, _CONTAINERS):
        found = _in_container(left, right, where)
    elif isinstance(right, BaseModel):
        private, extra = right.__pydantic_private__, right.__pydantic_extra__
        if private or extra or left.__pydantic_private__ or left.__pydantic_extra__:
            found = _in_hidden(left, right, where)
    return found if found is not None or kind in _CONTAINERS else _in_attributes(left, right, where)


# --- attributes


def held(value: Any) -> dict[str, Any]:
    """Return all attributes that an object holds: those of its `__dict__`, and the slots of all its classes."""
    found = dict(getattr(value, "__dict__", ()))
    for name, slot in slots_of(class_of(value)).items():
        with suppress(AttributeError):  # never set
            found[name] = slot.__get__(value)
    return found


@lru_cache(1_000)
def slots_of(kind: type) -> dict[str, MemberDescriptorType]:
    """Return the slots of a class and of its bases, also those that one of the same name hides.

    If a class that is no data has a pickle of its own, that stands for its slots and those of its bases.
    """
    found: dict[str, MemberDescriptorType] = {}
    by_pickle = not is_data(kind) and not issubclass(kind, _CONTAINERS)
    for base in kind.__mro__:
        if base is BaseModel:  # of its own slots, `_in_hidden` looks at those that count
            continue
        if by_pickle and _OWN_PICKLE & vars(base).keys():
            break
        for name, slot in vars(base).items():
            if isinstance(slot, MemberDescriptorType):
                found[f"{base.__name__}.{name}" if name in found else name] = slot
    return found


@lru_cache(1_000)
def is_data(kind: type) -> bool:
    """Return whether objects of a class are nothing but attributes: models, and dataclasses without a base in C."""
    declared = issubclass(kind, BaseModel) or (dataclasses.is_dataclass(kind) and not issubclass(kind, Enum))
    return declared and all(base.__flags__ & _MADE_BY_PYTHON for base in kind.__mro__[:-1])


def _in_attributes(left: Any, right: Any, where: str) -> str | None:
    kind = class_of(right)
    if slots_of(kind) or not hasattr(right, "__dict__"):
        return _in_names(held(left), held(right), where, kind)
    return _in_names(left.__dict__, right.__dict__, where, kind)  # the usual class, at little cost


def _in_names(left: dict[str, Any], right: dict[str, Any], where: str, kind: type) -> str | None:
    if left.keys() != right.keys():
        left, right = _without_memos(left, kind), _without_memos(right, kind)
        if left.keys() != right.keys():
            return f"{where}: other attributes come back"
    return _first([left[name] for name in right], right.values(), right, (f"{where}.", ""))


def _without_memos(found: dict[str, Any], kind: type) -> dict[str, Any]:
    """Return attributes without values that a `cached_property` has stored."""
    return {name: each for name, each in found.items() if not isinstance(getattr(kind, name, None), cached_property)}


def _in_hidden(left: BaseModel, right: BaseModel, where: str) -> str | None:
    """Compare the private attributes of two models, and their extras, whose names are data."""
    own, private = left.__pydantic_private__ or {}, right.__pydantic_private__ or {}
    found = _in_names(own, private, where, type(right))
    return found or _in_dict(left.__pydantic_extra__ or {}, right.__pydantic_extra__ or {}, f"{where} (extra)")


# --- scalars and other objects


def _same_object(left: Any, right: Any) -> bool:
    """Return whether two objects are equal, `pickle` takes the same of both, and both hold the same besides."""
    kind = type(right)
    if kind in _SCALARS or not _same_scalar(left, right):
        return kind in _SCALARS and _same_scalar(left, right)
    one, other = _pickled(left), _pickled(right)
    if _in_names(one, other, "", kind) is not None:
        return False
    own, places = ({id(part): place for place, part in parts.items()} for parts in (one, other))
    mine, theirs = (_without_memos(held(each), kind) for each in (left, right))
    return mine.keys() == theirs.keys() and all(  # what has been compared in the same place is not compared again
        own.get(id(mine[name]), "") == places.get(id(theirs[name])) or difference(mine[name], theirs[name]) is None
        for name in theirs
    )


def _same_scalar(left: Any, right: Any) -> bool:
    if isinstance(right, float):
        return float.__repr__(left) == float.__repr__(right)  # -0.0 is not 0.0
    if isinstance(right, Decimal):
        return Decimal.as_tuple(left) == Decimal.as_tuple(right)  # 1.0 is not 1.00
    if isinstance(right, datetime | time):
        return bool(left == right and left.fold == right.fold and _same_zone(left.tzinfo, right.tzinfo))
    return bool(left == right)  # of a UUID not is_safe, which pydantic 2.11 sets whatever it was


def _pickled(value: Any) -> dict[str, Any]:
    """Return what `pickle` takes of an object, by place; nothing of what it refuses (functions, classes)."""
    if isinstance(value, _NUMBERS):
        return {}
    try:
        reduced = value.__reduce_ex__(4)
    except TypeError:
        return {}
    if isinstance(reduced, str):
        return {"name": reduced}
    _, args, state, *items = (*reduced, None, None, None)[:5]
    found: dict[str, Any] = {f"argument {number}": each for number, each in enumerate(args or ())}
    found["items"] = [list(each or ()) for each in items]
    for number, part in enumerate(state if isinstance(state, tuple) else (state,)):
        named = _without_memos(part, type(value)) if isinstance(part, dict) else {"": part}
        found.update({f"state {number} {name}": each for name, each in named.items()})
    return found


def _same_zone(left: tzinfo | None, right: tzinfo | None) -> bool:
    """Return True for two fixed offsets that are equal, and for no zone at all.

    A zone with daylight saving time comes back as the fixed offset of one day, so date arithmetic gives other results.
    """
    if left is None or right is None:
        return left is right
    offset, name, own = right.utcoffset(None), right.tzname(None), left.tzname(None)
    return offset is not None and offset == left.utcoffset(None) and name in (own, f"UTC{own}")


# --- containers


def _in_container(left: Any, right: Any, where: str) -> str | None:
    """Compare what a container holds, whatever its own class gives for it, and the bound of a deque."""
    if isinstance(right, dict):
        return _in_dict(dict(dict.items(left)), dict(dict.items(right)), where)
    if isinstance(right, deque) and left.maxlen != right.maxlen:
        return f"{where}: {type(right).__name__} comes back with another maxlen"
    base: Any = next(each for each in _CONTAINERS if isinstance(right, each))
    own, items = list(base.__iter__(left)), list(base.__iter__(right))
    if isinstance(right, set | frozenset):
        if set(own) != set(items):
            return f"{where}: other members come back"
        own = _matched(own, items)
    return _in_items(own, items, where)


def _in_dict(left: dict[Any, Any], right: dict[Any, Any], where: str) -> str | None:
    if left.keys() != right.keys():
        return f"{where}: other keys come back"
    keys = _in_items(_matched(left, right), list(right), f"{where} (key)")
    return keys or _in_items([left[key] for key in right], list(right.values()), where)


def _in_items(left: Collection[Any], right: Collection[Any], where: str) -> str | None:
    if len(left) != len(right):
        return f"{where}: {len(right)} items come back as {len(left)}"
    return _first(left, right, range(len(right)), (f"{where}[", "]"))


def _first(left: Iterable[Any], right: Iterable[Any], names: Iterable[Any], around: tuple[str, str]) -> str | None:
    """Return the first difference of two rows of values. A place is the name of a value, with the texts around it."""
    for one, other, name in zip(left, right, names, strict=True):
        kind = type(other)
        if kind in _PLAIN and type(one) is kind and one == other:  # the usual answer, at little cost
            continue
        if (found := difference(one, other, f"{around[0]}{name}{around[1]}")) is not None:
            return found
    return None


def _matched(left: Iterable[Any], right: Iterable[Any]) -> list[Any]:
    """Return the members of `left` that equal those of `right`, in the order of `right`."""
    own = {member: member for member in left}
    return [own.get(member, _ABSENT) for member in right]
