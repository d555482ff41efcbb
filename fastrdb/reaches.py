"""What a call of a function that writes invalidates: prefixes and single keys, known before it runs or only after."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from .filling import Filling
from .prefixes import Prefix

RESULT: Final = "result"
"""The name by which a prefix takes what the function gives."""


class Reaches:
    """The templates of one decorated function: those of `prefixes`, and those of single `keys`."""

    def __init__(self, prefixes: Sequence[Filling], keys: Sequence[Filling]) -> None:
        self._before, self._after = _halves(prefixes)
        self._keys_before, self._keys_after = _halves(keys)

    def prefixes_before(self, values: Mapping[str, Any]) -> list[Prefix]:
        """What the call's arguments alone say is invalidated."""
        return [prefix for each in self._before for prefix in each.prefixes(values)]

    def prefixes_after(self, values: Mapping[str, Any], result: Any) -> list[Prefix]:
        """What is invalidated besides, now that the result is known."""
        known = {**values, RESULT: result}
        unknown = [each for each in self._keys_after if not each.keys(known, lenient=True)]
        return [prefix for each in (*self._after, *unknown) for prefix in each.prefixes(known, lenient=True)]

    def keys_before(self, values: Mapping[str, Any]) -> list[str]:
        """The single keys that the call's arguments alone say are invalidated."""
        return [key for each in self._keys_before for key in each.keys(values)]

    def keys_after(self, values: Mapping[str, Any], result: Any) -> list[str]:
        """The single keys that are invalidated besides, now that the result is known."""
        known = {**values, RESULT: result}
        return [key for each in self._keys_after for key in each.keys(known, lenient=True)]


def _halves(filled: Sequence[Filling]) -> tuple[tuple[Filling, ...], tuple[Filling, ...]]:
    """Those that need no result, and those that do."""
    after = tuple(each for each in filled if RESULT in each.template.names)
    return tuple(each for each in filled if each not in after), after
