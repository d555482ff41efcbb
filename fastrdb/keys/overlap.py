"""The keys that two functions could both make, by their patterns and the types of their parameters. Pure.

The texts of a parameter's values are a regular language: digits for an `int`, and for a `str` any text in which some
characters are escaped. A pattern is such languages in a row. Two patterns overlap if both rows have one text.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum, Flag
from functools import lru_cache
from itertools import zip_longest
from types import NoneType
from typing import Any, Final, Literal, NamedTuple, get_args, get_origin
from uuid import UUID

from .declared import members, scalar_base
from .encoders import encoder_for, is_container_type
from .encoding import MARK, NONE, has_meaningful, percent
from .pattern import NIL, SEALED, Pattern


class Chars(NamedTuple):
    """One character of these, or of all others; `repeated`: any number of these, with `escapes` between."""

    of: frozenset[str]
    others: bool = False
    repeated: bool = False
    escapes: frozenset[str] = frozenset()

    def both(self, other: Chars) -> str | None:
        """Return a character that is in both."""
        if self.others and other.others:
            found = _LETTERS - self.of - other.of
        elif self.others or other.others:
            found = other.of - self.of if self.others else self.of - other.of
        else:
            found = self.of & other.of
        return "1" if "1" in found else min(found, default=None)  # as a part of a date, too


Form = tuple[Chars, ...]
Language = tuple[Form, ...]
"""The texts of each of these forms."""
Row = tuple[str | Language, ...]


class Made(NamedTuple):
    """The parts that the keys of one function are made of.

    Attributes:
        pattern: with `values`, the texts of each placeholder.
        pairs: for each argument behind the pattern its texts, and whether all keys have it.
        more: the texts of keyword arguments of any other name; none without such arguments.
        version: of the function's results.
    """

    pattern: Pattern
    values: Sequence[Language]
    pairs: Mapping[str, tuple[Language, bool]]
    more: Language
    version: str

    def rows(self, apart: bool) -> list[Row]:
        """Return the pattern: literals and languages. If it is cut `apart`, there is a row between each two colons."""
        rows: list[list[str | Language]] = [[]]
        literals = [*(part.literal for part in self.pattern.parts), self.pattern.tail]
        for literal, language in zip_longest(literals, self.values):
            first, *others = literal.split(":") if apart else [literal]
            rows[-1].append(first)
            rows += [[other] for other in others]
            if language is not None:
                rows[-1].append(language)
        return [tuple(row) for row in rows]

    def texts_of(self, name: str) -> Language:
        """Return the texts of an argument behind the pattern."""
        return self.pairs.get(name, (self.more, False))[0]

    def has_colons(self) -> bool:
        """Return whether a value may have a colon: if none has, all keys have those of the pattern."""
        return any((":" in chars.of) != chars.others for each in self.values for form in each for chars in form)


def shared_key(one: Made, other: Made) -> str | None:
    """Return a key that both functions make for some arguments; None if there is none."""
    if one.version != other.version:
        return None
    apart = not (one.has_colons() or other.has_colons())
    rows, others = one.rows(apart), other.rows(apart)
    if len(rows) != len(others):
        return None
    names = sorted({name for each in (one, other) for name, (_, always) in each.pairs.items() if always})
    both = [*zip(rows, others, strict=True)]
    both += [((one.texts_of(name),), (other.texts_of(name),)) for name in names]
    found = list[str]()
    for pair in both:
        if (text := _common(*pair)) is None:
            return None
        found.append(text)
    key, pairs = ":".join(found[: len(rows)]), zip(names, found[len(rows) :], strict=True)
    return f"{key}?{'&'.join(f'{name}={text}' for name, text in pairs)}".removesuffix("?").replace(_OPAQUE, "")


# --- the texts of a type

_LETTERS: Final = frozenset("abcdefghijklmnopqrstuvwxyz")
_DIGITS, _HEX = frozenset("0123456789"), frozenset("0123456789abcdef")
_WRITTEN, _OFFSET = _DIGITS | {*".+-eENaInfsity%DB"}, _DIGITS | {*"+-%ADB"}  # `%2D` is an escaped minus
_ZONE = _LETTERS | _DIGITS | {*map(str.upper, _LETTERS), *"_/+-~%"}
_WHOLE = (Chars(_DIGITS - {"0"}), Chars(_DIGITS, repeated=True))
_ENDING: Final = frozenset(":?*\\{}")
_ESCAPES: Final = frozenset(percent(chr(code)) for code in range(128) if has_meaningful(chr(code)))
_CLASSES: Final[dict[str, Form]] = {
    "9": (Chars(_DIGITS),),
    "#": _WHOLE,
    "!": _WHOLE[::-1],
    "h": (Chars(_HEX),),
    "~": (Chars(_HEX, repeated=True),),
    "^": (Chars(_LETTERS),),
    "$": (Chars(_ENDING | {*"&=%[]"}, others=True, repeated=True, escapes=_ESCAPES),),
    "*": (Chars(_ENDING, others=True, repeated=True),),
    ",": (Chars(_WRITTEN), Chars(_WRITTEN, repeated=True)),
    ";": (Chars(_OFFSET), Chars(_OFFSET, repeated=True)),
    "@": (Chars(_ZONE, repeated=True),),
}
"""What a character in the forms below stands for, if not for itself.

`$` is a str, `*` what is behind `%`, `,` a number as it was written, and `;` and `@` the offset and the name of a zone.
"""
_CLOCKS = ("99%3A99%3A99", "99%3A99%3A99.999999")
_INTS, _FRACTIONS = ("0", "#", "-#"), ("0.!", "-0.!", "#.!", "-#.!")
_POWERS = [f"{number}E{sign}#" for number in ("9", "-9", "9.~", "-9.~") for sign in "+-"]
_SCALARS: Final[Mapping[type, Sequence[str]]] = {
    str: ("$",),
    bool: ("true", "false"),
    int: _INTS,
    float: (*_FRACTIONS, "0.0", "#.0", "-#.0", "nan", "inf", "-inf", *(f"{number}{MARK}f," for number in _INTS)),
    Decimal: (*_INTS, *_FRACTIONS, "nan", "inf", "-inf", *_POWERS),
    UUID: ("-".join("h" * size for size in (8, 4, 4, 4, 12)),),
    date: ("9999-99-99",),
    datetime: tuple(f"9999-99-99T{clock}{zone}" for clock in _CLOCKS for zone in ("", "+00%3A00")),
    time: tuple(f"{clock}{zone}" for clock in _CLOCKS for zone in ("", "+99%3A99", "-99%3A99")),
    timedelta: tuple(f"P{days}DT{seconds}.999999S" for days in _INTS for seconds in ("0", "#")),
    bytes: ("0x~",),
}
_BEHIND: Final[Mapping[type, Sequence[str]]] = {
    float: (f"{MARK}f,",),
    Decimal: (f"{MARK}q,",),
    datetime: (f"{MARK}p;", f"{MARK}p[@]", f"{MARK}p;[@]"),
    time: (f"{MARK}c[@]",),
}
"""Behind values of exactly the declared type, of which several have one text."""
_OPAQUE: Final = "\0"
_UNDECLARED: Final = ("$", "$%^*")


def language_of(declared: Any, *, also: str = "", path: bool = False, sealed: bool = False) -> Language:
    """Return the texts of all values of a declared type; perhaps more, never fewer.

    Args:
        declared: the type.
        also: the character that is escaped besides.
        path: an attribute is read, whose owner may be None.
        sealed: the values are hashed.
    """
    forms = [_form(SEALED + "h" * 32 + more) for more in ("", MARK + SEALED + "h" * 32)] if sealed else _forms(declared)
    more = [_text(NIL)] if path else []
    return tuple(tuple(_escaped(form, also)) for form in (*forms, *more))


def attribute_of_instance(field: str) -> Language:
    """Return a text that stands for the value of an attribute of `self`: it equals that attribute, and nothing else.

    A program gives its instances values of its own, such as names of tables, and no caller chooses one.
    """
    return (_text(f"{_OPAQUE}{{{field}}}"),)


def _forms(declared: Any) -> Iterator[Form]:
    """Yield the forms of the values of a type. What is of another type has a mark that no other function has."""
    kinds = members(declared, whole=True)
    several = len([kind for kind in kinds if kind not in (None, NoneType)]) > 1
    for kind in kinds:
        for form in _forms_of(kind, declared):
            yield form
            if several:  # then a value is marked by its type
                yield (*form, *_form(f"{MARK}*"))


def _forms_of(kind: Any, declared: Any) -> Iterable[Form]:
    if kind in (None, NoneType):
        return [_text(NONE)]
    if get_origin(kind) is Literal:
        return [_text(encoder_for(declared)(each)) for each in get_args(kind)]
    if is_container_type(kind):
        return [_form("%^*]")]
    if not isinstance(kind, type) or get_origin(kind) is not None:
        return map(_form, _UNDECLARED)
    if issubclass(kind, Enum) and [*kind]:
        named = [_text(encoder_for(declared)(each)) for each in kind]
        return [*named, *map(_form, _SCALARS[int])] if issubclass(kind, Flag) else named
    if (base := scalar_base(kind)) is None:
        return map(_form, _UNDECLARED)
    behind = _BEHIND.get(base, ()) if kind is base else (f"{MARK}*",)
    return [_form(text + more) for text in _SCALARS[base] for more in ("", *behind)]


def _text(text: str) -> Form:
    """Return the form of one text."""
    return tuple(Chars(frozenset(char)) for char in text)


def _form(notation: str) -> Form:
    return tuple(chars for char in notation for chars in _CLASSES.get(char) or _text(char))


def _escaped(form: Form, also: str) -> Iterator[Chars]:
    for chars in form:
        if also and chars.escapes:
            yield chars._replace(of=chars.of | {also}, escapes=chars.escapes | {percent(also)})
        elif chars.of == {also} and not chars.others:
            yield from _text(percent(also))
        elif also and chars.repeated and chars.others:
            yield chars._replace(of=chars.of | {also})
        elif also in chars.of and chars.repeated:
            yield chars._replace(of=chars.of - {also}, escapes=chars.escapes | {percent(also)})
        else:
            yield chars


# --- an automaton of both rows


class _Automaton:
    """The states of a row of languages, from 0 to `end`. A step without characters takes none."""

    def __init__(self, row: Row) -> None:
        self.steps: list[list[tuple[Chars | None, int]]] = [[]]
        self.end = 0
        for each in row:
            start, self.end = self.end, self._new()
            for form in (_text(each),) if isinstance(each, str) else each:
                at = start
                for chars in form:
                    at = self._after(at, chars)
                self.steps[at].append((None, self.end))

    def _new(self) -> int:
        self.steps.append([])
        return len(self.steps) - 1

    def _after(self, at: int, chars: Chars) -> int:
        to = self._new()
        self.steps[at].append((None if chars.repeated else chars, to))
        if chars.repeated:
            self.steps[to].append((chars, to))
        for escape in chars.escapes:
            inside = to
            for char in _text(escape)[:-1]:
                inside = self._after(inside, char)
            self.steps[inside].append((Chars(frozenset(escape[-1])), to))
        return to


@lru_cache(4096)  # most programs have few kinds of rows, and each pair takes milliseconds
def _common(one: Row, other: Row) -> str | None:
    """Return a short text that is in both rows; None if there is none."""
    if len(one) == len(other) == 1 and isinstance(one[0], str) and isinstance(other[0], str):
        return one[0] if one == other else None
    first, second = _Automaton(one), _Automaton(other)
    texts, waiting = {(0, 0): ""}, deque([(0, 0)])
    while waiting:
        here = waiting.popleft()
        if here == (first.end, second.end):
            return texts[here]
        for state, char in _next(first.steps[here[0]], second.steps[here[1]], here):
            if state not in texts:
                texts[state] = texts[here] + char
                waiting.append(state)
    return None


_Steps = list[tuple[Chars | None, int]]
_State = tuple[int, int]


def _next(first: _Steps, second: _Steps, here: _State) -> Iterator[tuple[_State, str]]:
    """Yield the states of both automata behind this one, each with the character that leads there."""
    for chars, to in first:
        if chars is None:
            yield (to, here[1]), ""
            continue
        for others, too in second:
            if others is not None and (char := chars.both(others)) is not None:
                yield (to, too), char
    for others, too in second:
        if others is None:
            yield (here[0], too), ""
