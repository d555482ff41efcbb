"""A comparison of two values, type for type: `1`, `1.0` and `True` are equal in Python, and not the same here.

It includes what `==` leaves out: attributes beside the fields, a deque's bound, the sign of a zero. Other objects are
compared by the state that `pickle` would take. Left out are values that a `cached_property` has stored, and the order
of a dict: a TypedDict comes back in the order of its declaration.
"""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from datetime import date, datetime, time, tzinfo
from decimal import Decimal
from functools import cached_property
from types import NoneType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_ABSENT = object()
_PLAIN = frozenset({str, int, bool, NoneType, bytes, date, UUID})  # same type and equal is the same
_SCALARS = _PLAIN | {float, Decimal, datetime, time}


def difference(left: Any, right: Any, where: str = "value") -> str | None:
    """Return the first place where `left` is not the same as `right`, in words without the values; None if nowhere."""
    kind, found = type(right), None
    if isinstance(right, UUID) and left == right:
        return None  # drivers give UUIDs of classes of their own (asyncpg), which have the same methods
    if type(left) is not kind:
        return f"{where}: {kind.__name__} comes back as {type(left).__name__}"
    if kind in _SCALARS:
        found = _in_scalar(left, right, where)
    elif isinstance(right, BaseModel):
        found = _in_model(left, right, where)
    elif dataclasses.is_dataclass(right) and not isinstance(right, type):
        found = _in_fields(_attributes(left), _attributes(right), where, kind)
    elif _settings(left) != _settings(right):
        found = f"{where}: {kind.__name__} comes back with another maxlen or default_factory"
    elif isinstance(right, dict):
        found = _in_dict(left, right, where)
    elif isinstance(right, list | tuple | deque):
        found = _in_items(left, right, where)
    elif isinstance(right, set | frozenset):
        found = _in_items(_matched(left, right), right, where) if left == right else f"{where}: other members come back"
    else:
        found = _in_scalar(left, right, where)
    return found


def _settings(value: Any) -> Any:
    """Return the settings of a container that `==` does not compare, such as a deque's maxlen."""
    if isinstance(value, deque):
        return value.maxlen
    return value.default_factory if isinstance(value, defaultdict) else None


def _in_scalar(left: Any, right: Any, where: str) -> str | None:
    same = left is right or _same_scalar(left, right)
    return None if same else f"{where}: another {type(right).__name__} comes back"


def _same_scalar(left: Any, right: Any) -> bool:
    if isinstance(right, float):
        return repr(left) == repr(right)  # -0.0 is not 0.0
    if isinstance(right, Decimal):
        return bool(left.as_tuple() == right.as_tuple())  # 1.0 is not 1.00
    if isinstance(right, datetime | time):
        return bool(left == right and left.fold == right.fold and _same_zone(left.tzinfo, right.tzinfo))
    return bool(left == right) and (type(right) in _PLAIN or _same_state(left, right))


def _same_state(left: Any, right: Any) -> bool:
    """Return True if `pickle` would take the same state of both, or cannot pickle the kind (functions, classes)."""
    try:
        one, other = left.__reduce_ex__(4), right.__reduce_ex__(4)
    except TypeError:
        return True
    if isinstance(one, str) or isinstance(other, str):
        return bool(one == other)
    (_, args, *parts), (_, own_args, *own) = one, other
    state, own_state = (_without_memos(each[0] if each else None, type(right)) for each in (parts, own))
    items, own_items = ([list(each or ()) for each in more[1:]] for more in (parts, own))
    return difference((args, state, items), (own_args, own_state, own_items)) is None


def _without_memos(state: Any, kind: type) -> Any:
    """Return an object's attributes, without values that a `cached_property` has stored."""
    if not isinstance(state, dict):
        return state
    return {name: each for name, each in state.items() if not isinstance(getattr(kind, name, None), cached_property)}


def _same_zone(left: tzinfo | None, right: tzinfo | None) -> bool:
    """Return True for two fixed offsets that are equal, and for no zone at all.

    A zone with daylight saving time comes back as the fixed offset of one day, so date arithmetic gives other results.
    """
    if left is None or right is None:
        return left is right
    offset, name, own = right.utcoffset(None), right.tzname(None), left.tzname(None)
    return offset is not None and offset == left.utcoffset(None) and name in (own, f"UTC{own}")


def _in_model(left: Any, right: Any, where: str) -> str | None:
    """Compare fields, what else is among the attributes, private attributes, and extras, whose names are data."""
    private, extra = right.__pydantic_private__ or {}, right.__pydantic_extra__ or {}
    own_private, own_extra = left.__pydantic_private__ or {}, left.__pydantic_extra__ or {}
    found = _in_fields(left.__dict__, right.__dict__, where, type(right))
    if found is None and (private or own_private):
        found = _in_fields(own_private, private, where, type(right))
    if found is None and (extra or own_extra):
        found = _in_dict(own_extra, extra, f"{where} (extra)")
    return found


def _in_fields(left: dict[str, Any], right: dict[str, Any], where: str, kind: type) -> str | None:
    if left.keys() != right.keys():
        left, right = _without_memos(left, kind), _without_memos(right, kind)
        if left.keys() != right.keys():
            return f"{where}: other attributes come back"
    return _first([left[name] for name in right], right.values(), right, (f"{where}.", ""))


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


def _attributes(value: Any) -> dict[str, Any]:
    """Return the fields of a dataclass, in slots or not, and all other attributes that were set."""
    own: dict[str, Any] = getattr(value, "__dict__", {})
    slots = {name: getattr(value, name, _ABSENT) for name in value.__dataclass_fields__ if name not in own}
    return {**slots, **own} if slots else own
