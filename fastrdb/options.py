"""Values of options and decorators that every part checks in the same way."""

from __future__ import annotations

import inspect
from datetime import timedelta
from typing import TypeVar

from .errors import OptionError, PatternError

Seconds = float | timedelta
T = TypeVar("T")
_LONGEST = 10 * 365 * 86_400.0  # ten years: more is a mistake in the unit


def seconds(value: Seconds, *, name: str, owner: str, zero: bool = False) -> float:
    """Return `value` in seconds. Raise OptionError naming `owner`, `name` and the value unless 0 < value <= ten years.

    With `zero`, 0 is a duration too.
    """
    number = value.total_seconds() if isinstance(value, timedelta) else value
    if isinstance(number, bool) or not isinstance(number, int | float):
        raise OptionError(f"{owner}: {name}={value!r} must be seconds: a number or a timedelta")
    if not 0 <= number <= _LONGEST or (number == 0 and not zero):
        least = "at least 0" if zero else "more than 0"
        raise OptionError(f"{owner}: {name}={value!r} must be {least} seconds and at most ten years")
    return float(number)


def synchronous(value: T, *, name: str, owner: str, use: str) -> T:
    """Return `value`, a function or None. Raise OptionError for another value, and for an async function.

    `use` says what kind of function is wanted.
    """
    if value is not None and not callable(value):
        raise OptionError(f"{owner}: {name}={value!r} must be {use}")
    for function in (value, getattr(value, "__call__", None)):  # noqa: B004 (an object may have an async `__call__`)
        if inspect.iscoroutinefunction(function) or inspect.isasyncgenfunction(function):
            raise OptionError(f"{owner}: {name}={value!r} is async, and is not awaited: it must be {use}, with `def`")
    return value


def flag(value: object, *, name: str, owner: str) -> bool:
    """Return `value`. Raise OptionError naming `owner`, `name` and the value unless it is True or False."""
    if not isinstance(value, bool):
        raise OptionError(f"{owner}: {name}={value!r} must be True or False")
    return value


def at_least_one(value: object, *, name: str, owner: str) -> int:
    """Return `value`. Raise OptionError naming `owner`, `name` and the value unless it is a whole number from 1 on."""
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise OptionError(f"{owner}: {name}={value!r} must be a whole number of at least 1")
    return value


def share(value: object, *, name: str, owner: str) -> float:
    """Return `value`. Raise OptionError naming `owner`, `name` and the value unless 0 <= value <= 1."""
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise OptionError(f"{owner}: {name}={value!r} must be a share from 0 (none) to 1 (all)")
    return float(value)


def refuse_function(given: object, decorator: str, example: str, what: str = "pattern") -> None:
    """Raise PatternError for a function in place of a text: the decorator stands there without parentheses."""
    if callable(given):
        raise PatternError(f"{decorator} needs a {what}: @{decorator}({example})")
