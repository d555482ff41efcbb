"""Whether two values are the same, type for type: `1`, `1.0` and `True` are equal in Python, and not the same."""

from __future__ import annotations

import dataclasses
from collections import defaultdict, deque
from datetime import date, datetime, time, tzinfo
from decimal import Decimal
from types import NoneType
from typing import TYPE_CHECKING, Any
from uuid import UUID

from pydantic import BaseModel

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

_ABSENT = object()
_PLAIN = frozenset({str, int, bool, NoneType, bytes, date, UUID})  # same type and equal is the same


def difference(left: Any, right: Any, where: str = "value") -> str | None:
    """Return the first place where `left` is not the same as `right`, in words without the values; None if nowhere."""
    kind, found = type(right), None
    if isinstance(right, UUID) and left == right:
        return None  # drivers give UUIDs of classes of their own (asyncpg), which have the same methods
    if type(left) is not kind:
        return f"{where}: {kind.__name__} comes back as {type(left).__name__}"
    if _settings(left) != _settings(right):
        found = f"{where}: {kind.__name__} comes back with another maxlen or default_factory"
    elif isinstance(right, BaseModel):
        found = _in_fields(_state(left), _state(right), where)
    elif dataclasses.is_dataclass(right):
        found = _in_fields(_attributes(left), _attributes(right), where)
    elif isinstance(right, dict):
        found = _in_dict(left, right, where)
    elif isinstance(right, list | tuple | deque):
        found = _in_items(left, right, where)
    elif isinstance(right, set | frozenset):
        found = _in_items(_matched(left, right), right, where) if left == right else f"{where}: other members come back"
    elif left is not right and not _same_scalar(left, right):
        found = f"{where}: another {kind.__name__} comes back"
    return found


def _settings(value: Any) -> Any:
    """Return what a container does besides holding its items, and `==` does not see."""
    if isinstance(value, deque):
        return value.maxlen
    return value.default_factory if isinstance(value, defaultdict) else None


def _same_scalar(left: Any, right: Any) -> bool:
    if isinstance(right, float):
        return repr(left) == repr(right)  # -0.0 is not 0.0
    if isinstance(right, Decimal):
        return bool(left.as_tuple() == right.as_tuple())  # 1.0 is not 1.00
    if isinstance(right, datetime | time):
        return bool(left == right and left.fold == right.fold and _same_zone(left.tzinfo, right.tzinfo))
    return bool(left == right)


def _same_zone(left: tzinfo | None, right: tzinfo | None) -> bool:
    """Return True for two fixed offsets that are equal, and for no zone at all.

    A zone with other offsets in summer comes back as the offset of one day: what is added to it comes out otherwise.
    """
    if left is None or right is None:
        return left is right
    offset, name = right.utcoffset(None), right.tzname(None)
    return offset is not None and offset == left.utcoffset(None) and name in (_named(left), f"UTC{_named(left)}")


def _named(zone: tzinfo) -> str | None:
    return zone.tzname(None)


def _in_fields(left: dict[str, Any], right: dict[str, Any], where: str) -> str | None:
    if left.keys() != right.keys():
        return f"{where}: other fields come back"
    for name, value in right.items():
        if not _plainly_same(left[name], value) and (found := difference(left[name], value, f"{where}.{name}")):
            return found
    return None


def _in_dict(left: dict[Any, Any], right: dict[Any, Any], where: str) -> str | None:
    if left.keys() != right.keys():
        return f"{where}: other keys come back"
    keys = _in_items(_matched(left, right), list(right), f"{where} (key)")
    return keys or _in_items([left[key] for key in right], list(right.values()), where)


def _in_items(left: Collection[Any], right: Collection[Any], where: str) -> str | None:
    if len(left) != len(right):
        return f"{where}: {len(right)} items come back as {len(left)}"
    for index, (one, other) in enumerate(zip(left, right, strict=True)):
        if not _plainly_same(one, other) and (found := difference(one, other, f"{where}[{index}]")):
            return found
    return None


def _plainly_same(left: Any, right: Any) -> bool:
    """Return the usual answer at little cost; where it is False, `difference` decides."""
    kind = type(right)
    return kind in _PLAIN and type(left) is kind and bool(left == right)


def _matched(left: Iterable[Any], right: Iterable[Any]) -> list[Any]:
    """Return the members of `left` that equal those of `right`, in the order of `right`."""
    own = {member: member for member in left}
    return [own.get(member, _ABSENT) for member in right]


def _state(model: Any) -> dict[str, Any]:
    """Return all that makes up a pydantic model: fields, extras, private attributes; not what it memoizes."""
    fields = {name: vars(model)[name] for name in type(model).model_fields if name in vars(model)}
    return {**fields, **(model.__pydantic_extra__ or {}), **(model.__pydantic_private__ or {})}


def _attributes(value: Any) -> dict[str, Any]:
    return {field.name: getattr(value, field.name, _ABSENT) for field in dataclasses.fields(value)}
