"""Prefixes: which keys an invalidation reaches, and the templates that a call's arguments are filled into."""

from __future__ import annotations

import re
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from itertools import chain, product
from types import NoneType
from typing import Any, Final, NamedTuple
from uuid import UUID

from fastrdb.errors import KeyValueError, MissingKeyFieldError, PatternError

from .declared import MISSING
from .encoders import encode_with, encoder_for
from .encoding import MARK, Encoder, forms_of
from .pattern import DIGEST_MARK, NIL, Part, Pattern, Seal, cut, escaping, fit, guard, sealed, spellings

VARIANTS: Final = ("?%", MARK)
"""Behind a key: what a session adds to it, such as `?%schema=`, and the type of an equal value."""
RESULT: Final = "result"
"""The name by which a prefix takes the function's result."""
_HEAD_LIMIT_BYTES: Final = 460  # a little less than what is kept of a long key: no key is cut where a head compares
_MOST_BYTES: Final = 4  # of one character in UTF-8
_WILDCARDS = re.compile(r"[*?]")
_PLAIN = frozenset((str, int, bool, float, Decimal, UUID, bytes, datetime, date, time, timedelta, NoneType))
_MOST_ELEMENTS: Final = 256
"""A list with more elements reaches whatever stands in its place."""
_NOTHING: Final = object()  # the attribute of a value that is None

Arguments = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Prefix:
    """A range of keys: those that begin with `head`, and whose rest matches `glob`.

    `whole`: the glob ends in a value, and must hold all of that value: then the key ends, a mark of the value follows,
    or `:`, `?` or `&`. Without it, the glob ends in `*`.
    """

    head: str
    glob: str = "*"
    whole: bool = False

    @classmethod
    def plain(cls, text: str, owner: str) -> list[Prefix]:
        """Return the prefix of a text without placeholders. Raises PatternError, naming the owner."""
        pattern = Pattern.parse(text, owner=owner, kind="prefix")
        if pattern.fields:
            raise PatternError(f"{owner}: prefix {text!r} has placeholders, and nothing here fills them")
        found = cls.of(pattern.tail)
        return [] if found is None else [found]

    @classmethod
    def of(cls, text: str, *, whole: bool = False) -> Prefix | None:
        """Return the prefix that a filled-in text means; None for the empty text, which means nothing at all."""
        if not text and not whole:
            return None
        wild = _WILDCARDS.search(text)
        head, glob = (text, "") if wild is None else (text[: wild.start()], text[wild.start() :])
        whole = whole and not glob.endswith("*")
        if not whole:
            glob = f"{glob.rstrip('*')}*"
        head = guard(head)
        if len(head) * _MOST_BYTES > _HEAD_LIMIT_BYTES and len(raw := head.encode()) > _HEAD_LIMIT_BYTES:
            kept = cut(raw, _HEAD_LIMIT_BYTES)
            head, glob = kept, head[len(kept) :] + glob
        return cls(head, glob, whole)

    @classmethod
    def variants(cls, key: str) -> Prefix:
        """Return the prefix of the entries that other sessions have of `key`."""
        raw = f"{key}{'&%' if '?' in key else VARIANTS[0]}".encode()
        return cls(cut(raw, _HEAD_LIMIT_BYTES) if len(raw) > _HEAD_LIMIT_BYTES else raw.decode())

    def under(self, namespace: str) -> Prefix:
        """Return the same keys with *namespace* (its separator included) in front of each."""
        return replace(self, head=namespace + self.head)

    @property
    def filter(self) -> str:
        """Return what decides about keys that begin with `head`, for Lua: "" for all of them, else the glob.

        A glob that ends in `$` is whole. All other characters but `*` and `?` stand for themselves.
        """
        if self.whole:
            return f"{self.glob}$"
        return "" if self.glob == "*" else self.glob

    def matches(self, key: str) -> bool:
        """Return True if this prefix reaches *key*."""
        if not key.startswith(self.head):
            return False
        rest = key[len(self.head) :]
        if _fits(rest, self.glob, self.whole):
            return True
        # What a long key's value was cannot be read from its digest: reach the key, rather than leave it stale.
        return DIGEST_MARK in rest if self.glob else rest.startswith(DIGEST_MARK)


def _fits(rest: str, glob: str, whole: bool) -> bool:
    """Return True if the glob matches. Each piece between two `*` is found leftmost in turn, without backtracking."""
    *pieces, last = glob.split("*")
    if not pieces:
        return _stands_at(rest, last, 0) and _ends_at(rest, len(last))
    if not _stands_at(rest, pieces[0], 0):
        return False
    at = len(pieces[0])
    for piece in pieces[1:]:
        if (at := _find(rest, piece, at)) < 0:
            return False
        at += len(piece)
    if not whole:
        return True
    while (at := _find(rest, last, at)) >= 0:
        if _ends_at(rest, at + len(last)):
            return True
        at += 1
    return False


def _find(text: str, piece: str, start: int) -> int:
    """Return where *piece* stands first at or behind *start*, or -1."""
    if "?" not in piece:
        return text.find(piece, start)
    return next((at for at in range(start, len(text) - len(piece) + 1) if _stands_at(text, piece, at)), -1)


def _stands_at(text: str, piece: str, at: int) -> bool:
    if "?" not in piece:
        return text.startswith(piece, at)
    found = text[at : at + len(piece)]
    return len(found) == len(piece) and all(wanted in ("?", char) for wanted, char in zip(piece, found, strict=True))


def _ends_at(text: str, at: int) -> bool:
    return at == len(text) or text[at] in ":?&" or text.startswith(MARK, at)


# --- templates --------------------------------------------------------------------------------------------------------


class Reached(NamedTuple):
    """The keys that an invalidation reaches: prefixes, and single keys."""

    prefixes: list[Prefix]
    keys: list[str]


class PrefixTemplates:
    """The prefixes and single keys that the calls of one function invalidate.

    `patterns`: of all of them. `heads`: what all keys begin with that the prefixes reach; "" where a placeholder or a
    wildcard comes first.
    """

    def __init__(self, prefixes: Sequence[Template] = (), keys: Sequence[Template] = ()) -> None:
        self._prefixes, self._prefixes_of_result = _apart(prefixes)
        self._keys, self._keys_of_result = _apart(keys)
        self._of_result = [*self._prefixes_of_result, *self._keys_of_result]
        self.heads = {_WILDCARDS.split(each.pattern.head)[0] for each in prefixes}
        self.patterns = [each.pattern for each in (*prefixes, *keys)]

    def before(self, calls: Sequence[Arguments]) -> Reached:
        """Return what the arguments of these calls alone say.

        Raises:
            KeyValueError: a value has no canonical form.
            MissingKeyFieldError: a single key lacks a value.
        """
        prefixes = [made for each, call in _distinct(self._prefixes, calls) for made in each.prefixes(call)]
        return _with_keys(prefixes, [each.keys(call) for each, call in _distinct(self._keys, calls)])

    def before_result(self, calls: Sequence[Arguments]) -> list[Prefix]:
        """Return what stands for `after` until the result is known: all that the result may name."""
        pairs = _distinct(self._of_result, calls)
        return list(dict.fromkeys(made for each, call in pairs for made in each.prefixes(call)))

    def after(self, calls: Sequence[Arguments], result: Any) -> Reached:
        """Return what is invalidated besides, now that the result is known. A value that cannot be written cuts.

        A single key that lacks a value becomes a prefix: more is invalidated, never less.
        """
        if not self._of_result:
            return Reached([], [])
        known, keys = [{**call, RESULT: result} for call in calls], []
        prefixes = [
            made for each, call in _distinct(self._prefixes_of_result, known) for made in each.prefixes(call, True)
        ]
        for each, call in _distinct(self._keys_of_result, known):
            try:
                keys.append(each.keys(call, True))
            except Exception:  # noqa: BLE001 - reading an attribute of the result may do anything
                prefixes += each.prefixes(call, True)
        return _with_keys(prefixes, keys)


def _with_keys(prefixes: list[Prefix], keys: Iterable[Reached]) -> Reached:
    single: dict[str, None] = {}
    for each in keys:
        prefixes += each.prefixes
        single |= dict.fromkeys(each.keys)
    return Reached(list(dict.fromkeys(prefixes)), list(single))


def _apart(templates: Sequence[Template]) -> tuple[list[Template], list[Template]]:
    """Return the templates that do without the result, and those that need it."""
    return [each for each in templates if RESULT not in each.roots], [
        each for each in templates if RESULT in each.roots
    ]


def _distinct(templates: Sequence[Template], calls: Sequence[Arguments]) -> list[tuple[Template, Arguments]]:
    """Return the templates, each with the calls between which it differs."""
    if len(calls) == 1:
        return [(each, calls[0]) for each in templates]
    found = list[tuple[Template, Arguments]]()
    for each in templates:
        different = {fingerprint([call.get(root, MISSING) for root in each.roots]): call for call in calls}
        found += [(each, call) for call in different.values()]
    return found


class _Source(NamedTuple):
    """A placeholder: the argument that it stands for, how its value is read, checked, and written without a mark."""

    part: Part
    root: str
    read: Callable[[Any], Any] | None
    check: Encoder
    write: Encoder


class Template:
    """A pattern whose placeholders take values by name, with the declared type of each (MISSING: undeclared).

    `roots`: the names, in their order.
    """

    def __init__(
        self, pattern: Pattern, declared: Sequence[Any] | None = None, function: str = "", seal: Seal | None = None
    ) -> None:
        self.pattern, self.roots = pattern, sorted(pattern.names)
        self._function = function
        types = [MISSING] * len(pattern.parts) if declared is None else declared
        self._sources = [
            _Source(
                part,
                part.root,
                reader(part.path),
                encoder_for(each),
                escaping(str if seal is None else seal, part.also),
            )
            for part, each in zip(pattern.parts, types, strict=True)
        ]

    def prefixes(self, values: Arguments, lenient: bool = False) -> list[Prefix]:
        """Return the prefixes for *values*; a placeholder whose value is not there cuts them, so that more is reached.

        Args:
            values: the values by name.
            lenient: a value without a canonical form, or without the attribute, cuts them too.

        Raises:
            KeyValueError: there is such a value, and the call is not *lenient*.
        """
        parts, tail = self.pattern.parts, self.pattern.tail
        texts = self._texts(values, lenient)
        complete = len(texts) == len(parts)
        whole = complete and bool(parts) and not tail
        if whole:  # the end of the prefix reaches marks by itself
            texts[-1] = tuple(text for text in texts[-1] if not text.endswith(f"{MARK}*")) or texts[-1]
        rest = tail if complete else f"{parts[len(texts)].literal}*"
        return [found for text in _joined(parts, texts, rest) if (found := Prefix.of(text, whole=whole)) is not None]

    def keys(self, values: Arguments, lenient: bool = False) -> Reached:
        """Return the keys for *values*, and as prefixes those of equal values of other types and of other schemas.

        Args:
            values: the values by name.
            lenient: a value that cannot be written counts as missing.

        Raises:
            KeyValueError: a value has no canonical form.
            MissingKeyFieldError: a value is missing.
        """
        texts = self._texts(values, lenient)
        if len(texts) < len(self._sources):
            raise MissingKeyFieldError(self._sources[len(texts)].part.field, self.pattern.text)
        prefixes, keys = [], []
        for text in _joined(self.pattern.parts, texts, self.pattern.tail):
            if "*" in text:
                prefixes.append(Prefix.of(text, whole=True))
            else:
                keys.append(fit(guard(text)))
                prefixes.append(Prefix.variants(keys[-1]))
        return Reached([each for each in prefixes if each is not None], keys)

    def _texts(self, values: Arguments, lenient: bool) -> list[tuple[str, ...]]:
        """Return what each placeholder may be written as, up to the first that cannot be."""
        found: list[tuple[str, ...]] = []
        for source in self._sources:
            if source.root not in values:
                break
            try:
                found.append(self._texts_of(source, values[source.root], lenient))
            except Exception:  # an attribute may do anything when read: an ORM row's, once it is expired, needs I/O
                if not lenient:
                    raise
                break
        return found

    def _texts_of(self, source: _Source, argument: Any, lenient: bool) -> tuple[str, ...]:
        """Return the texts that functions may have for the value, whatever type is declared, with `*` for any mark."""
        value = attribute(source.read, argument, self._function, source.part)
        if value is _NOTHING:
            if lenient:
                raise KeyValueError(self._function, source.part.field, "NoneType")
            return (NIL,)
        encode_with(source.check, value, self._function, source.part.field)
        several, found = [value], list[str]()
        if type(value) in (list, tuple, set, frozenset):  # the whole, and each element, as `cached_many` has keys of it
            if len(value) > _MOST_ELEMENTS:
                return ("*",)
            several += value
        for each in several:
            texts = [spellings(source.write(form), source.part) for form in forms_of(each)]
            found += (*chain(*texts), *(f"{text}{MARK}*" for text in texts[0])) if texts else ("%*",)
        return tuple(found)


def _joined(parts: Sequence[Part], texts: Sequence[Sequence[str]], rest: str) -> Iterable[str]:
    """Return each text that the first parts make, followed by *rest*."""
    for chosen in product(*texts):
        yield "".join([part.literal + text for part, text in zip(parts, chosen, strict=False)]) + rest


def reader(path: tuple[str, ...]) -> Callable[[Any], Any] | None:
    """Return what takes the attribute (or a mapping's item) at *path* from a value; None if the path is empty."""
    if not path:
        return None

    def read(value: Any) -> Any:
        for name in path:
            if value is None:
                return _NOTHING
            value = value[name] if isinstance(value, Mapping) else getattr(value, name)
        return value

    return read


def attribute(read: Callable[[Any], Any] | None, source: Any, function: str, part: Part) -> Any:
    """Return what *read* takes from *source*, or *source* itself.

    Raises:
        KeyValueError: *source* has no such attribute.
    """
    try:
        return source if read is None else read(source)
    except (AttributeError, KeyError):
        hint = f"it has no '{'.'.join(part.path)}'"
        raise KeyValueError(function, part.field, type(source).__qualname__, hint) from None


def part_encoder(part: Part, declared: Any, home: str, seal: Seal | None = None) -> Encoder:
    """Return the encoder of what a placeholder stands for, *declared* as it is; an attribute of None is `%nil`."""
    encode = escaping(sealed(encoder_for(declared, home), seal), part.also)
    if not part.path:
        return encode
    return lambda value: NIL if value is _NOTHING else encode(value)


def fingerprint(values: Iterable[Any]) -> Hashable:
    """Return what two lists of values have in common only if both are written alike, and nearly always then.

    Only of plain types is it known that what is written otherwise prints otherwise: an own type may print as `***`.
    """
    return tuple([(kind, repr(each)) if (kind := type(each)) in _PLAIN else _fingerprint(each) for each in values])


def _fingerprint(value: Any) -> Hashable:
    if isinstance(value, Enum):
        return type(value), id(value)  # there is but one of each
    return fingerprint(value) if type(value) is tuple else object()
