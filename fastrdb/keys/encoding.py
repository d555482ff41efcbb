"""Canonical values: how one argument is written inside a key, so that equal text means equal value.

A value's text is what the value is equal by; a mark behind it, `%a`, says which of the equal values it is. So the
arguments `5`, `5.0`, `Decimal("5.00")` and `"5"` have four texts, and one prefix reaches them all. A value of exactly
the declared type has no mark. In a text, everything that means something in a key is percent-encoded in upper case
(`%3A`). `%` with a lower-case letter is a mark or a tag, and brackets stand unescaped only around the items of a
container.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from enum import Enum
from functools import cache, cached_property
from typing import Any, Final
from uuid import UUID
from zoneinfo import ZoneInfo

from fastrdb.errors import KeyValueError

from .declared import full_name, hint_for, may_be_mapped, scalar_base

Encoder = Callable[[Any], str]

NONE: Final = "%none"
MARK: Final = "%a"
"""Between the text that a value is equal by, and what differs in other values with that text."""
_MOST_DIGITS: Final = 320  # enough for all floats; a Decimal beyond is written with its exponent
_MEANINGFUL = re.compile(r"[:?&=%*\[\]\\{}\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_no_zone = re.compile(r"[^\w/+~-]", re.ASCII)
search = _MEANINGFUL.search
_ZONES = ("pytz", "dateutil.", "pendulum.")
"""The modules of time zones whose names say all."""
_DRIVERS = ("asyncpg.",)
"""The modules of classes that drivers have for values of a plain type."""
_WIDE = 1 << 63  # larger numbers may have more digits than Python writes
# What the other plainly written types look like. A str that reads so is marked where no type is declared.
_reads_otherwise = re.compile(
    r"-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?|-?0x[0-9a-f]+|-?inf|nan|true|false"
    r"|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}(T.*)?|[0-9]{2}:[0-9]{2}.*",
    re.ASCII | re.DOTALL,
).fullmatch


def percent(text: str) -> str:
    """Return every byte of the text as `%XX`; a lone surrogate too, which UTF-8 itself refuses."""
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def quote(text: str) -> str:
    """Return the text with all that means something in a key percent-encoded."""
    if search(text) is None:
        return text
    return _MEANINGFUL.sub(lambda match: percent(match.group()), text)


def has_meaningful(text: str, allowed: str = "") -> str | None:
    """Return the first character of *text*, apart from *allowed*, that `quote` would escape, or None."""
    return next((found.group() for found in _MEANINGFUL.finditer(text) if found.group() not in allowed), None)


def class_name(cls: type) -> str:
    """Return module and qualified name of a class, as written in a key."""
    return quote(full_name(cls))


# --- scalars: a tag for each type, the text that a value is equal by, and what that text does not say ----------------


def _write_str(value: str) -> tuple[str, str]:
    return quote(str.__str__(value)), ""


def _write_int(value: int) -> tuple[str, str]:
    try:
        return int.__repr__(value), ""
    except ValueError:  # more digits than sys.set_int_max_str_digits allows: hexadecimal has no such limit
        return format(int(value), "#x"), ""


def _write_float(value: float) -> tuple[str, str]:
    text = float.__repr__(value)
    number = _number(Decimal(text))
    return (text, "") if text in (number, f"{number}.0") else (number, text)


def _write_decimal(value: Decimal) -> tuple[str, str]:
    text, number = Decimal.__str__(value), _number(value)
    return number, "" if text == number else text


def _number(value: Decimal) -> str:
    """Return the text that all numbers equal to *value* have in common."""
    if not value.is_finite():
        return "nan" if value.is_nan() else "inf" if value > 0 else "-inf"
    if value == 0:
        return "0"
    if abs(value.adjusted()) > _MOST_DIGITS:
        return Decimal.__str__(value)
    text = Decimal.__format__(value, "f")
    return text.rstrip("0").rstrip(".") if "." in text else text


def _write_datetime(value: datetime) -> tuple[str, str]:
    text = own = datetime.isoformat(value)
    if value.tzinfo is not None:
        with suppress(OverflowError):  # the first and the last day there are
            text = datetime.isoformat(datetime.astimezone(value, UTC)) if datetime.utcoffset(value) is not None else own
    offset = "" if text == own else own[len(datetime.isoformat(datetime.replace(value, tzinfo=None))) :]
    return quote(text), f"{quote(offset)}{_zone_and_fold(value)}"


def _write_time(value: time) -> tuple[str, str]:
    return quote(time.isoformat(value)), _zone_and_fold(value)


def _zone_and_fold(value: datetime | time) -> str:
    text = f"{_zone(value.tzinfo)}{'~1' if value.fold else ''}"
    return f"[{_no_zone.sub(lambda match: percent(match.group()), text)}]" if text else ""


def _zone(zone: tzinfo | None) -> str:
    """Return what a time zone is beside its offset of the moment; "" for a fixed offset without a name of its own."""
    cls = type(zone)
    if zone is None or (cls is timezone and str(zone) == str(timezone(zone.utcoffset(None) or timedelta()))):
        return ""
    if cls.__module__.startswith("pydantic_core"):  # what pydantic reads from text is a fixed offset, too
        return ""
    name = zone.key if isinstance(zone, ZoneInfo) else f"{cls.__module__}.{zone}"
    if not name or " at 0x" in name:
        raise KeyValueError("", "", f"{cls.__module__}.{cls.__qualname__}", "use a time zone that has a name")
    if cls in (timezone, ZoneInfo) or cls.__module__.startswith(_ZONES):
        return name
    return f"{name}~{class_name(cls)}{_state(zone)}"  # an own class may have rules of which its name says nothing


def _write_timedelta(value: timedelta) -> tuple[str, str]:
    return f"P{value.days}DT{value.seconds}.{value.microseconds:06}S", ""


_SCALARS: dict[type, tuple[str, Callable[[Any], tuple[str, str]]]] = {
    str: ("s", _write_str),
    bool: ("b", lambda value: ("true" if value else "false", "")),
    int: ("i", _write_int),
    float: ("f", _write_float),
    UUID: ("g", lambda value: (UUID.__str__(value), "")),
    datetime: ("p", _write_datetime),
    date: ("d", lambda value: (date.isoformat(value), "")),
    time: ("c", _write_time),
    Decimal: ("q", _write_decimal),
    timedelta: ("v", _write_timedelta),
    bytes: ("x", lambda value: (f"0x{bytes.hex(value)}", "")),
}
_PLAIN_UNDECLARED = frozenset((str, bool, int, float, UUID, datetime, date, time))


def counts_as(cls: type, base: type) -> type:
    """Return the class that values of *cls* count as: itself, but drivers give UUIDs of classes of their own."""
    return base if base is UUID and cls.__module__.startswith(_DRIVERS) else cls


def _write_scalar(value: Any, base: type, own: type | None, home: str) -> str:
    """Return the text of a scalar; without a mark if it is of the kind *own*, or plain where no kind is declared."""
    cls = type(value)
    kind = counts_as(cls, base)
    tag, parts = _SCALARS[base]
    text, rest = parts(value)
    rest = f"{rest}{own_name(value)}" if issubclass(cls, Enum) else rest
    if own is None:
        plain = kind in _PLAIN_UNDECLARED and not (kind is str and _reads_otherwise(str.__str__(value)))
    else:
        plain = kind is own
    state = "" if kind is base or isinstance(value, Enum) else _state(value, vars(base).get("__slots__", ()))
    if plain and not rest and not state:
        return text
    if base is bool:
        text = "1" if value else "0"
    elif base is float:
        text = text.removesuffix(".0")
    name = "" if kind is base or kind is own else f"~{class_name(cls)}"
    if kind is not base and not isinstance(value, Enum):
        shown = quote(repr(value)) if cls.__repr__ is not base.__repr__ else ""
        name = f"{name}~{shown}{state}"
    return f"{text}{MARK}{tag}{rest}{name}{'' if kind is own else home}"


def text_as(value: Any, own: type | None, home: str = "") -> str:
    """Return the text of a value where the type *own* is declared; None for a type that has no scalars.

    Args:
        value: the value.
        own: the scalar type of which values have no mark; None if none is declared.
        home: what stands behind the mark of any other value.

    Raises:
        KeyValueError: the value has no canonical form.
    """
    if value is None:
        return f"{NONE}{MARK}{home}" if home else NONE
    base = scalar_base(type(value))
    if base is not None:
        return _write_scalar(value, base, own, home)
    if isinstance(value, Enum):
        return f"{enum_text(value)}{MARK}e{class_name(type(value))}{own_name(value)}{home}"
    return f"{container(value)}{MARK}{home}" if home else container(value)


def enum_text(member: Enum) -> str:
    """Return the text of the value of a member, or of its name if its value has none."""
    try:
        return undeclared(member.value)
    except KeyValueError:
        return f"%k{quote(member.name)}"


def own_name(member: Enum) -> str:
    """Return the name of a member with whose text another member is written, too; "" for all others."""
    return f"~{quote(member.name)}" if member.name in _alike(type(member)) else ""


@cache
def _alike(cls: type[Enum]) -> frozenset[str]:
    base = scalar_base(cls)
    texts = {each.name: enum_text(each) if base is None else _SCALARS[base][1](each)[0] for each in cls}
    several = Counter(texts.values())
    return frozenset(name for name, text in texts.items() if several[text] > 1)


def undeclared(value: Any) -> str:
    """Return the text of a value for which no type is declared.

    Raises:
        KeyValueError: the value has no canonical form.
    """
    return text_as(value, None)


def forms_of(value: Any) -> tuple[str, ...]:
    """Return the texts, less marks, of all values that are equal to *value*; the first is the one that may be marked.

    Empty for a container, whose items may be equal to others in many ways.
    """
    if type(value) is int and (1 < value < _WIDE or -_WIDE < value < 0):  # a bulk write pays for this
        return (f"{value}", f"{value}.0")
    while isinstance(value, Enum) and scalar_base(type(value)) is None:
        value = value.value
    if value is None:
        return (NONE,)
    base = scalar_base(type(value))
    if base is None:
        return ()
    text = _SCALARS[base][1](value)[0]
    if base is str:
        return (text, f"{text}.0") if text.isascii() and text.lstrip("-").isdigit() else (text,)
    if base not in (bool, int, float, Decimal):
        return (text,)
    text = {"true": "1", "false": "0"}.get(text, text.removesuffix(".0"))
    also = {"1": ("true",), "0": ("false",)}.get(text, ())
    return (text, f"{text}.0", *also) if text.lstrip("-").isdigit() else (text,)


# --- containers and objects: items between brackets -------------------------------------------------------------------

CONTAINERS: tuple[tuple[type, str], ...] = ((list, "l"), (tuple, "t"), (set, "u"), (frozenset, "z"), (dict, "m"))


def container(value: Any, item: Encoder = undeclared, key: Encoder = undeclared, declared: type | None = None) -> str:
    """Return the text of a list, tuple, set, dict, dataclass or pydantic model.

    Args:
        item: the encoder of the items, or of a dict's values.
        key: the encoder of a dict's keys.
        declared: the model or dataclass that was declared; another's name is written before its fields.

    Raises:
        KeyValueError: *value* is nothing of that kind, or holds what has no canonical form.
    """
    cls = type(value)
    for base, letter in CONTAINERS:
        if isinstance(value, base):
            name = "" if cls is base else class_name(cls)
            return f"%{letter}{name}[{'&'.join(_items(value, item, key))}]{_state(value) if name else ''}"
    fields = _fields(value)
    if fields is None:
        raise KeyValueError("", "", f"{cls.__module__}.{cls.__qualname__}", hint_for(value))
    name = "" if cls is declared else class_name(cls)
    shown = {field.removesuffix("%2A") for field, _ in fields}
    texts = [f"{field}={_item(undeclared, each)}" for field, each in fields]
    return f"%o{name}[{'&'.join(texts)}]{_state(value, shown)}"


def _item(encode: Encoder, value: Any) -> str:
    """Return the text of one item. An empty str needs a mark here: [] and [""] are two lists."""
    return encode(value) or "%s"


def _items(value: Any, item: Encoder, key: Encoder) -> Iterable[str]:
    if isinstance(value, dict):  # in its own order, which a function may go by: ORDER BY
        return [f"{_item(key, name)}={_item(item, each)}" for name, each in value.items()]
    texts = [_item(item, each) for each in value]
    return sorted(texts) if isinstance(value, set | frozenset) else texts


def _pairs(fields: Iterable[tuple[str, Any]]) -> list[str]:
    return [f"{quote(name)}={_item(undeclared, each)}" for name, each in fields]


def _fields(value: Any) -> list[tuple[str, Any]] | None:
    """Return what a dataclass or a pydantic model has, None of anything else (ORM objects are something else).

    Behind a mark, an extra value or a private attribute may be called as a field is.
    """
    cls = type(value)
    if isinstance(value, type) or may_be_mapped(cls):
        return None
    if dataclasses.is_dataclass(cls):
        names = [each.name for each in dataclasses.fields(cls)]
        return [(name, getattr(value, name)) for name in names if hasattr(value, name)]
    known: Mapping[str, Any] | None = getattr(cls, "__pydantic_fields__", None)
    if known is None or not hasattr(cls, "model_fields"):
        return None
    given: set[str] = value.__pydantic_fields_set__
    data: dict[str, Any] = value.__dict__
    # `exclude_unset` sees whether a field was given: the same values, given or not, can give different results.
    found = [(name if name in given else f"{name}%2A", data[name]) for name in known if name in data]
    for mark, others in (("%x", value.__pydantic_extra__), ("%p", value.__pydantic_private__)):
        found += [(f"{mark}{quote(name)}", each) for name, each in (others or {}).items()]
    return found


def _state(value: Any, shown: Iterable[str] = ()) -> str:
    """Return what an object holds besides what is *shown*, less what it memoizes; "" if nothing."""
    cls = type(value)
    found: dict[str, Any] = dict(getattr(value, "__dict__", ()))
    for base in cls.__mro__:
        slots = vars(base).get("__slots__", ())
        for slot in (slots,) if isinstance(slots, str) else slots:
            name = f"_{base.__name__.lstrip('_')}{slot}" if slot[:2] == "__" != slot[-2:] else slot
            if slot[-2:] != "__" and hasattr(value, name):
                found[name] = getattr(value, name)
    known = {*shown, *(name for name in found if isinstance(getattr(cls, name, None), cached_property))}
    pairs = _pairs(sorted(pair for pair in found.items() if pair[0] not in known))
    if isinstance(value, defaultdict) and (made := value.default_factory) is not None:
        if not isinstance(made, type):
            raise KeyValueError("", "", f"{cls.__module__}.{cls.__qualname__}", "give a plain dict")
        pairs.append(f"%f={class_name(made)}")
    return f"[{'&'.join(pairs)}]" if pairs else ""
