"""Copies of query results that have no JSON form, for callers that share one load."""

from __future__ import annotations

from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import NoneType
from typing import Any
from uuid import UUID

from sqlalchemy.engine import Row

_IMMUTABLE = frozenset(
    (str, int, float, bool, complex, NoneType, bytes, Decimal, UUID, date, datetime, time, timedelta)
)


class NotPlainError(TypeError):
    """A value holds something that may not be copied: a mapped object, say, belongs to its session."""


def plain_copy(value: Any) -> Any:
    """Return a copy that shares nothing changeable with `value`: rows and plain values in lists, tuples, sets, dicts.

    Raises NotPlainError for anything else.
    """
    kind = type(value)
    if kind in _IMMUTABLE:
        return value
    if kind in (list, tuple, set, frozenset):
        return kind(map(plain_copy, value))
    if kind is dict:
        return {plain_copy(key): plain_copy(item) for key, item in value.items()}
    if isinstance(value, Row) and all(type(item) in _IMMUTABLE for item in value):
        return value  # a row cannot be changed
    raise NotPlainError(kind.__name__)
