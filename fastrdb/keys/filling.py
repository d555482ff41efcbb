"""Templates filled with values of known declared types: the prefixes and single keys of an invalidation."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import product
from types import NoneType
from typing import Any, Final
from uuid import UUID

from fastrdb.errors import KeyValueError, MissingKeyFieldError

from .declared import MISSING, encode_with, encoder_for, escaping, texts_of
from .encoding import Encoder
from .pattern import NIL, Part, Template, fit, guard
from .prefix import Prefix, prefixes_of
from .sealing import Seal, sealed

_PLAIN = frozenset((str, int, bool, float, Decimal, UUID, bytes, datetime, date, time, timedelta, NoneType))
_NOTHING: Final = object()  # the attribute of a value that is None


def reader(path: tuple[str, ...]) -> Callable[[Any], Any] | None:
    """What takes the attribute (or a mapping's item) at *path* from a value; None if the path is empty."""
    if not path:
        return None

    def read(value: Any) -> Any:
        for name in path:
            if value is None:
                return _NOTHING
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        return value

    return read


def part_encoder(part: Part, declared: Any, seal: Seal | None = None) -> Encoder:
    """Encoder of what a placeholder stands for, *declared* as it is; an attribute of None is `%nil`."""
    encode = escaping(sealed(encoder_for(declared), seal), part.also)
    if not part.path:
        return encode
    return lambda value: NIL if value is _NOTHING else encode(value)


class Filling:
    """A template whose placeholders take values by name, with the declared type of each."""

    def __init__(
        self, template: Template, declared: Sequence[Any] | None = None, function: str = "", seal: Seal | None = None
    ) -> None:
        self.template = template
        self._function = function
        self._write = str if seal is None else seal
        types = [MISSING] * len(template.parts) if declared is None else declared
        self._sources = tuple(
            (part, reader(part.path), encoder_for(each)) for part, each in zip(template.parts, types, strict=True)
        )

    def prefixes(self, values: Mapping[str, Any], *, lenient: bool = False) -> list[Prefix]:
        """The prefixes for *values*; a placeholder whose value is not there cuts them, so that more is reached.

        Args:
            lenient: a value without a canonical form, or without the attribute, cuts them too.

        Raises:
            KeyValueError: such a value, if not *lenient*.
        """
        return prefixes_of(self.template, self._texts(values, lenient))

    def distinct(self, calls: Sequence[Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
        """Those of these values, several calls' arguments, between which the template can tell a difference."""
        if len(calls) == 1:
            return calls
        roots = sorted({part.root for part in self.template.parts})
        return [*{mark([values.get(root, MISSING) for root in roots]): values for values in calls}.values()]

    def keys(self, values: Mapping[str, Any], *, lenient: bool = False) -> list[str]:
        """The keys for *values*, none if *lenient* and one of them cannot be written.

        Raises:
            KeyValueError: a value without a canonical form.
            MissingKeyFieldError: a value is missing.
        """
        texts = self._texts(values, lenient)
        if len(texts) < len(self._sources):
            if lenient:
                return []
            raise MissingKeyFieldError(self._sources[len(texts)][0].field, self.template.text)
        return [fit(guard(self.template.join(each))) for each in product(*texts)]

    def _texts(self, values: Mapping[str, Any], lenient: bool) -> list[tuple[str, ...]]:
        """What each placeholder may be written as, up to the first that cannot be."""
        found: list[tuple[str, ...]] = []
        for part, read, encode in self._sources:
            if part.root not in values:
                break
            try:
                found.append(self._texts_of(part, read, encode, values[part.root], lenient))
            except Exception:  # an attribute may do anything when read: an ORM row's, once it is expired, needs I/O
                if not lenient:
                    raise
                break
        return found

    def _texts_of(
        self, part: Part, read: Callable[[Any], Any] | None, encode: Encoder, source: Any, lenient: bool
    ) -> tuple[str, ...]:
        value = source if read is None else attribute(read, source, self._function, part)
        if value is _NOTHING:
            if lenient:
                raise KeyValueError(self._function, part.field, "NoneType")
            return (NIL,)
        encode_with(encode, value, self._function, part.field)
        return texts_of(value, encode, escaping(self._write, part.also))


def mark(values: Iterable[Any]) -> Hashable:
    """What two lists of values have in common only if they are written alike, and nearly always then.

    Only of plain types is it known that what is written otherwise prints otherwise: an own type may print as `***`.
    """
    return tuple([(kind, repr(each)) if (kind := type(each)) in _PLAIN else _mark_of(each) for each in values])


def _mark_of(value: Any) -> Hashable:
    if isinstance(value, Enum):
        return type(value), id(value)  # there is but one of each
    return mark(value) if type(value) is tuple else object()


def attribute(read: Callable[[Any], Any], source: Any, function: str, part: Part) -> Any:
    """What *read* takes from *source*.

    Raises:
        KeyValueError: *source* has no such attribute.
    """
    try:
        return read(source)
    except (AttributeError, KeyError):
        hint = f"it has no '{'.'.join(part.path)}'"
        raise KeyValueError(function, part.field, type(source).__qualname__, hint) from None
