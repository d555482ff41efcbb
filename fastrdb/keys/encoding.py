"""Canonical values: how one argument is written inside a key, so that equal text means equal value.

Three kinds of text, which cannot be mistaken for each other: plain text, where everything that means something
in a key is percent-encoded in upper case (`%3A`); a tag, `%` and one lower-case letter, before a value whose type is
not the declared one; and brackets, which stand unescaped only around the items of a container.
Values are told apart by what they print as: 1 and 1.0 and True are three values, and so are Decimal 1.0 and 1.00.
"""

from __future__ import annotations

import dataclasses
import re
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from enum import Enum
from functools import cache
from typing import Any, Final
from uuid import UUID

from fastrdb.errors import KeyValueError

Encoder = Callable[[Any], str]

NONE: Final = "%none"
_MEANINGFUL = re.compile(r"[:?&=%*\[\]\\{}\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")
_search = _MEANINGFUL.search
# What the other plainly written types look like; a str that reads so is tagged where the type is not declared.
_reads_otherwise = re.compile(
    r"-?[0-9]+(\.[0-9]+)?(e[-+]?[0-9]+)?|-?0x[0-9a-f]+|-?inf|nan|true|false"
    r"|[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}"
    r"|[0-9]{4}-[0-9]{2}-[0-9]{2}(T.*)?|[0-9]{2}:[0-9]{2}.*",
    re.ASCII | re.DOTALL,
).fullmatch

_whole_number = re.compile(r"0|-?[1-9][0-9]*", re.ASCII).fullmatch


def percent(text: str) -> str:
    """Every byte of the text as `%XX`; a lone surrogate too, which UTF-8 itself refuses."""
    return "".join(f"%{byte:02X}" for byte in text.encode("utf-8", "surrogatepass"))


def quote(text: str) -> str:
    """The text with all that means something in a key percent-encoded."""
    if _search(text) is None:
        return text
    return _MEANINGFUL.sub(lambda match: percent(match.group()), text)


def has_meaningful(text: str, allowed: str = "") -> str | None:
    """The first character of *text*, apart from *allowed*, that quote() would escape, if there is one."""
    return next((found.group() for found in _MEANINGFUL.finditer(text) if found.group() not in allowed), None)


# --- scalars: one tag and one way to write for each type --------------------------------------------------------------


def _write_str(value: str) -> str:
    return quote(str.__str__(value))


def _write_int(value: int) -> str:
    try:
        return int.__repr__(value)
    except ValueError:  # more digits than sys.set_int_max_str_digits allows: hexadecimal has no such limit
        return format(int(value), "#x")


def _write_timedelta(value: timedelta) -> str:
    return f"P{value.days}DT{value.seconds}.{value.microseconds:06}S"


_SCALARS: dict[type, tuple[str, Encoder]] = {
    str: ("s", _write_str),
    bool: ("b", lambda value: "true" if value else "false"),
    int: ("i", _write_int),
    float: ("f", float.__repr__),
    UUID: ("g", UUID.__str__),
    datetime: ("p", lambda value: quote(datetime.isoformat(value))),
    date: ("d", date.isoformat),
    time: ("c", lambda value: quote(time.isoformat(value))),
    Decimal: ("q", Decimal.__str__),
    timedelta: ("v", _write_timedelta),
    bytes: ("x", lambda value: f"0x{bytes.hex(value)}"),
}
_PLAIN_UNDECLARED = frozenset("sbifgpdc")


def scalar_base(cls: type) -> type | None:
    """The scalar type that values of *cls* are written as: itself, or the one it is built on (str for a StrEnum)."""
    return next((base for base in cls.__mro__ if base in _SCALARS), None)


def _tagged_scalar(value: Any) -> tuple[str, str] | None:
    """(tag, plain text) of a scalar or an enum member; None of anything else."""
    base = scalar_base(type(value))
    if base is not None:
        tag, write = _SCALARS[base]
        return tag, write(value)
    if isinstance(value, Enum):
        return f"e{class_name(type(value))}", f"[{_enum_text(value)}]"
    return None


def _enum_text(member: Enum) -> str:
    try:
        return undeclared(member.value)
    except KeyValueError:
        return f"%k{quote(member.name)}"


def class_name(cls: type) -> str:
    """Module and qualified name of a class, as they stand in a key."""
    return quote(f"{cls.__module__}.{cls.__qualname__}")


def undeclared(value: Any) -> str:
    """Canonical text of a value about whose type nothing was declared.

    Raises:
        KeyValueError: no canonical form.
    """
    if type(value) is str:
        return quote(value) if _reads_otherwise(value) is None else f"%s{quote(value)}"
    if value is None:
        return NONE
    known = _tagged_scalar(value)
    if known is None:
        return container(value)
    tag, text = known
    if tag == "s":
        return undeclared(str.__str__(value))
    return text if tag in _PLAIN_UNDECLARED else f"%{tag}{text}"


def tagged(value: Any, declared: str = "") -> str:
    """Canonical text of a value which is perhaps not of the *declared* type (its tag): then with a tag of its own."""
    if value is None:
        return NONE
    known = _tagged_scalar(value)
    if known is None:
        return container(value)
    tag, text = known
    return text if tag == declared else f"%{tag}{text}"


def plain(value: Any) -> str:
    """Text of a value as a parameter that declares precisely its type has it; for prefixes, never for keys."""
    if isinstance(value, Enum) and scalar_base(type(value)) is None:
        return _enum_text(value)
    known = None if value is None else _tagged_scalar(value)
    return undeclared(value) if known is None else known[1]


def mistaken(value: Any) -> tuple[str, ...]:
    """Texts of a value where a caller passed it against the declared type: `1` to a `str`, `"1"` to an `int`."""
    known = None if value is None else _tagged_scalar(value)
    if known is None:
        return ()
    tag, text = known
    if tag != "s":
        return f"%{tag}{text}", f"%s{text}"
    return (f"%s{text}", f"%i{text}") if _whole_number(text) else ()


@cache
def scalar_encoder(base: type) -> Encoder:
    """Encoder of a parameter that declares the scalar type *base*."""
    tag, write = _SCALARS[base]
    if base is str:
        # The commonest by far, and the regular expression alone decides: no call but one.
        def encode_str(value: Any) -> str:
            if type(value) is str:
                return value if _search(value) is None else quote(value)
            return tagged(value, "s")

        return encode_str

    def encode(value: Any) -> str:
        return write(value) if type(value) is base else tagged(value, tag)

    return encode


def enum_encoder(declared: type[Enum]) -> Encoder:
    """Encoder of a parameter that declares an enum which is not also a str or an int."""

    def encode(value: Any) -> str:
        if isinstance(value, declared):
            text = _enum_text(value)
            # A tag would make the member equal to what else carries that tag: None, or a Decimal.
            return text if text and not (text[0] == "%" and text[1].islower()) else tagged(value)
        return tagged(value)

    return encode


# --- containers and objects: items between brackets -------------------------------------------------------------------

_CONTAINERS: tuple[tuple[type, str], ...] = ((list, "l"), (tuple, "t"), (set, "u"), (frozenset, "z"), (dict, "m"))


def container(value: Any, item: Encoder = undeclared, key: Encoder = undeclared, declared: type | None = None) -> str:
    """Canonical text of a list, tuple, set, dict, dataclass or pydantic model.

    Args:
        item: encoder of the items, or of a dict's values.
        key: encoder of a dict's keys.
        declared: the model or dataclass that was declared; another's name is written before its fields.
    """
    cls = type(value)
    for base, letter in _CONTAINERS:
        if isinstance(value, base):
            name = "" if cls is base else class_name(cls)
            return f"%{letter}{name}[{'&'.join(_items(value, item, key))}]"
    fields = _fields(value)
    if fields is None:
        raise KeyValueError("", "", f"{cls.__module__}.{cls.__qualname__}", _hint(value))
    name = "" if cls is declared else class_name(cls)
    return f"%o{name}[{'&'.join(f'{quote(field)}={_item(undeclared, each)}' for field, each in fields)}]"


def _item(encode: Encoder, value: Any) -> str:
    """One item. An empty str needs a mark here: [] and [""] are two lists."""
    return encode(value) or "%s"


def _items(value: Any, item: Encoder, key: Encoder) -> Iterable[str]:
    if isinstance(value, dict):
        pairs = [f"{_item(key, name)}={_item(item, each)}" for name, each in value.items()]
        return pairs if isinstance(value, OrderedDict) else sorted(pairs)
    texts = [_item(item, each) for each in value]
    return sorted(texts) if isinstance(value, set | frozenset) else texts


def _fields(value: Any) -> list[tuple[str, Any]] | None:
    """Fields of a dataclass or a pydantic model, None of anything else (ORM objects are something else)."""
    cls = type(value)
    if isinstance(value, type) or _is_mapped(cls):
        return None
    if dataclasses.is_dataclass(cls):
        return [(each.name, getattr(value, each.name)) for each in dataclasses.fields(cls) if hasattr(value, each.name)]
    known: Mapping[str, Any] | None = getattr(cls, "__pydantic_fields__", None)
    if known is None or not hasattr(cls, "model_fields"):
        return None
    given: set[str] = value.__pydantic_fields_set__
    data: dict[str, Any] = value.__dict__
    # `exclude_unset` sees whether a field was given: the same values, given or not, can give different results.
    own = [(name if name in given else f"{name}*", data[name]) for name in known if name in data]
    extra, private = (sorted((each or {}).items()) for each in (value.__pydantic_extra__, value.__pydantic_private__))
    return own + extra + private


def _is_mapped(cls: type) -> bool:
    return hasattr(cls, "__mapper__") or hasattr(cls, "_sa_class_manager")


def _hint(value: Any) -> str:
    if _is_mapped(type(value)):
        return "give its primary key, or write the attribute into the pattern, like {user.id}"
    return "give a plain value, or name the parameter in ignore=(...)"
