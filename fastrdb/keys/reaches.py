"""What a call of a function that writes invalidates: prefixes and single keys, known before it runs or only after."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from .filling import Filling
from .prefix import Prefix

T = TypeVar("T", Prefix, str)
Values = Mapping[str, Any]

RESULT: Final = "result"
"""The name by which a prefix takes what the function gives."""


class Reaches:
    """The templates of one decorated function: those of `prefixes`, and those of single `keys`."""

    def __init__(self, prefixes: Sequence[Filling], keys: Sequence[Filling]) -> None:
        self._before, self._after = _halves(prefixes)
        self._keys_before, self._keys_after = _halves(keys)
        # What all keys begin with that the prefixes reach; "" where a placeholder or a wildcard comes first.
        self.heads = {re.split("[*?]", each.template.head)[0] for each in prefixes}

    def prefixes_before(self, calls: Sequence[Values]) -> list[Prefix]:
        """What the arguments of these calls alone say is invalidated."""
        return _all(Filling.prefixes, self._before, calls)

    def prefixes_before_result(self, calls: Sequence[Values]) -> list[Prefix]:
        """Return what stands for `prefixes_after` and `keys_after` until the result is known: all that it may name."""
        return _all(Filling.prefixes, (*self._after, *self._keys_after), calls)

    def prefixes_after(self, calls: Sequence[Values]) -> list[Prefix]:
        """What is invalidated besides, now that the result is known, and among the arguments."""
        found = _all(_lenient_prefixes, self._after, calls)
        for each in self._keys_after:
            unknown = [values for values in calls if not each.keys(values, lenient=True)]
            found += _all(_lenient_prefixes, (each,), unknown)
        return found

    def keys_before(self, calls: Sequence[Values]) -> list[str]:
        """The single keys that the arguments alone say are invalidated."""
        return _all(Filling.keys, self._keys_before, calls)

    def keys_after(self, calls: Sequence[Values]) -> list[str]:
        """The single keys that are invalidated besides, now that the result is known, and among the arguments."""
        return _all(_lenient_keys, self._keys_after, calls)


_lenient_prefixes = partial(Filling.prefixes, lenient=True)
_lenient_keys = partial(Filling.keys, lenient=True)


def _all(fill: Callable[[Filling, Values], list[T]], fillings: Iterable[Filling], calls: Sequence[Values]) -> list[T]:
    """What all the templates come to, filled for all the calls: what some of them say alike is worked out once."""
    return list(
        dict.fromkeys(made for each in fillings for values in each.distinct(calls) for made in fill(each, values))
    )


def _halves(filled: Sequence[Filling]) -> tuple[tuple[Filling, ...], tuple[Filling, ...]]:
    """Those that need no result, and those that do."""
    after = tuple(each for each in filled if RESULT in each.template.names)
    return tuple(each for each in filled if each not in after), after
