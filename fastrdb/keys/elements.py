"""Functions that take a list of ids and give a value for each: which parameter it is, what one id is, what comes out.

Pure: looked at once, where a function is decorated.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, replace
from types import NoneType
from typing import Any, get_args, get_origin

from fastrdb.errors import OptionError, PatternError, SchemaError

from .declared import MAPPINGS, MISSING, SEQUENCES, members
from .pattern import Template
from .signature import Inspected

_CONTAINERS = (list, tuple, set, frozenset)


@dataclass(frozen=True, slots=True)
class Elements:
    """The parameter that takes a list, and the declared type of one of its elements (MISSING if it is left open)."""

    parameter: str
    declared: Any

    def of(self, value: Any, function: str) -> list[Any]:
        """The elements of an argument, in its order. Raises TypeError, naming *function* and parameter."""
        if isinstance(value, str | bytes | Mapping) or not hasattr(type(value), "__iter__"):
            raise TypeError(f"{function}(): '{self.parameter}' must be a list, not {type(value).__qualname__}")
        return list(value)

    def one(self, value: Any, function: str) -> Any:
        """The argument, which must be one element. Raises TypeError, naming *function* and parameter."""
        several = tuple(each for each in _CONTAINERS if each not in self._own())
        if isinstance(value, several):
            raise TypeError(f"{function}: '{self.parameter}' is one of them here, not {type(value).__qualname__}")
        return value

    def _own(self) -> set[Any]:
        """The containers that an element itself may be."""
        if self.declared is MISSING:
            return {tuple}
        return {get_origin(each) or each for each in members(self.declared)}


def elements_of(found: Inspected, pattern: str, owner: str) -> tuple[Inspected, Elements]:
    """The function as if it took one element, and the parameter that takes the list.

    Raises:
        PatternError: *pattern* names no parameter that takes a list, or several.
    """
    names = Template.parse(pattern, owner=owner, kind="pattern").names
    lists = {each.name: element for each in found.parameters if (element := _element(each.declared)) is not None}
    named = [name for name in lists if name in names]
    if len(named) != 1:
        what = "none of its placeholders is" if not named else f"{' and '.join(named)} are both"
        known = ", ".join(f"'{name}'" for name in lists) or "it has none"
        raise PatternError(
            f"{owner}: pattern {pattern!r}: {what} a parameter that takes a list; it must be one; there is: {known}"
        )
    [name] = named
    parameters = tuple(replace(each, declared=lists[name]) if each.name == name else each for each in found.parameters)
    return replace(found, parameters=parameters), Elements(name, lists[name])


def _element(declared: Any) -> Any:
    """The type of one element, MISSING if it is left open; None for what takes no list."""
    several = members(declared)
    if len(several) != 1:
        return None
    origin, args = get_origin(several[0]), get_args(several[0])
    if origin in SEQUENCES and len(args) == 1:
        return args[0]
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return args[0]
    return MISSING if several[0] in SEQUENCES or several[0] is tuple else None


@dataclass(frozen=True, slots=True)
class Shape:
    """What comes out: a mapping by id, or a list in the order of the ids; and the declared type of one value."""

    mapping: bool
    value: Any


def shape_of(declared: Any, owner: str) -> Shape:
    """The shape of a return annotation.

    Raises:
        OptionError: there is none.
        SchemaError: it is neither a mapping nor a list.
    """
    if declared is MISSING:
        raise OptionError(f"{owner}: declare what it returns: a mapping by id, or a list in the order of the ids")
    several = members(declared)
    origin, args = get_origin(several[0]), get_args(several[0])
    if len(several) == 1 and NoneType not in get_args(declared):
        if origin in MAPPINGS and len(args) == 2:
            return Shape(mapping=True, value=args[1])
        if origin in SEQUENCES and len(args) == 1 and not issubclass(origin, AbstractSet):
            return Shape(mapping=False, value=args[0])
    raise SchemaError(
        f"{owner}: it returns {declared}, where a mapping by id (dict[int, User]) or a list in the order of the ids "
        "(list[User | None]) is wanted"
    )
