"""Arguments by name, as Python itself would bind them, at a third of what `inspect.Signature.bind` costs."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Final

from .declared import MISSING
from .signature import Inspected

BOUND: Final = "*bound"
"""Set beside the arguments where a call brought an instance of which the function did not say that it takes one."""

_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
_NAMED = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)


class Binder:
    """Binds the calls of one function; `outside` are the parameters that are not part of the key."""

    def __init__(self, found: Inspected, outside: frozenset[str]) -> None:
        self._function = found.name
        self._signature = found.signature
        self._known = {each.name for each in found.parameters}
        self._positional = tuple(each.name for each in found.parameters if each.kind in _POSITIONAL)
        self._named = frozenset(each.name for each in found.parameters if each.kind in _NAMED)
        self._args = found.of_kind(inspect.Parameter.VAR_POSITIONAL)
        self._takes_keywords = found.of_kind(inspect.Parameter.VAR_KEYWORD) is not None
        self._takes_instance = found.takes_instance
        # A Redis that is not given is not there: its default, None, is no "just run the function".
        self._defaults = {
            each.name: each.default for each in found.parameters if each.default is not MISSING and each.role != "redis"
        }
        if self._args is not None:
            self._defaults[self._args] = ()
        optional = {each.name for each in found.parameters if each.default is not MISSING}
        self._required = (frozenset(self._positional) | self._named) - optional
        self._needed = self._required - outside
        self._complete = self._required | self._defaults.keys()
        self._simple = self._args is None and not self._takes_keywords and self._named >= frozenset(self._positional)

    def bind(self, instance: Any, args: tuple[Any, ...], kwargs: Mapping[str, Any], partial: bool) -> dict[str, Any]:
        """The arguments by name, defaults applied. Raises TypeError where they do not fit."""
        bound = instance is not None and self._takes_instance is not False
        if bound:
            args = (instance, *args)
        values = self._defaults.copy()
        if args:
            values.update(zip(self._positional, args, strict=False))
        # The common case first: with no *args, **kwargs or positional-only, the right names are proof enough.
        if self._simple and len(args) <= len(self._positional):
            if kwargs:
                values.update(kwargs)
            if values.keys() != self._complete or (args and kwargs and self._twice(args, kwargs)):
                self._check(values, args, kwargs, partial)
        else:
            self._bind_rest(values, args, kwargs)
            self._check(values, args, kwargs, partial)
        if bound and self._takes_instance is None:
            values[BOUND] = True
        return values

    def _twice(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bool:
        """Whether an argument is given by position and again by name."""
        return not (kwargs.keys() & self._named).isdisjoint(self._positional[: len(args)])

    def _bind_rest(self, values: dict[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        if self._args is not None:
            values[self._args] = args[len(self._positional) :]
        for name, value in kwargs.items():
            # A keyword may have the name of a positional-only parameter, of *args or **kwargs: another argument then.
            other = name not in self._named and (name in self._known or name.startswith("*"))
            values[f"**{name}" if other else name] = value

    def _check(self, values: dict[str, Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], partial: bool) -> None:
        unknown = not self._takes_keywords and not kwargs.keys() <= self._named
        many = self._args is None and len(args) > len(self._positional)
        missing = (self._needed if partial else self._required) - values.keys()
        if not (unknown or many or missing or self._twice(args, kwargs)):
            return
        try:
            (self._signature.bind_partial if partial else self._signature.bind)(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{self._function}(): {error}") from None
        names = ", ".join(f"'{name}'" for name in self._signature.parameters if name in missing)
        raise TypeError(f"{self._function}(): missing arguments that the key needs: {names}")
