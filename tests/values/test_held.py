"""All that an object holds counts: items, fields, and attributes that are neither."""

from __future__ import annotations

import uuid
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from decimal import Decimal
from fractions import Fraction
from ipaddress import IPv4Address
from typing import Any, NamedTuple, Self

import pytest
from pydantic import BaseModel
from pydantic_core import core_schema

from fastrdb.values import Codec
from fastrdb.values.equality import difference


class Note:
    """A base with a slot."""

    __slots__ = ("note",)


@dataclass(slots=True)
class Slotted(Note):
    """A dataclass whose base has a slot that is no field."""

    a: int = 1


@dataclass(frozen=True, slots=True)
class Pickled(Note):
    """The same, with an answer for `pickle` that leaves the slot out."""

    a: int = 1


class SlottedModel(BaseModel):
    """A model with a slot."""

    __slots__ = ("note",)
    a: int = 1


class Lower(Note):
    """A class with two slots of one name, of which one is hidden."""

    __slots__ = ("note",)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self)

    __hash__ = None  # type: ignore[assignment]


@dataclass
class Rows(list[int]):
    """A dataclass that is a list."""

    total: int = 0


@dataclass
class Text(str):  # noqa: SLOT000
    """A dataclass that is a text, of which `==` compares the fields."""

    total: int = 0

    def __new__(cls, text: str, total: int = 0) -> Self:
        """Return the text."""
        return super().__new__(cls, text)

    def __init__(self, text: str, total: int = 0) -> None:
        """Set the field."""
        self.total = total


class Page(list[int]):
    """A list with an attribute that JSON does not hold."""

    total = 0

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Return the schema of a list."""
        return core_schema.no_info_after_validator_function(cls, core_schema.list_schema(core_schema.int_schema()))


class Hiding(Page):
    """A list that shows none of its items."""

    def __iter__(self) -> Iterator[int]:
        """Return nothing."""
        return iter(())


class Pair(NamedTuple):
    """A tuple with names."""

    a: int = 1


def noted(value: Any) -> Any:
    """Return an object with an attribute more."""
    object.__setattr__(value, "note", "n")
    return value


def filled(value: Any) -> Any:
    """Return a list with an item more."""
    value.append(1)
    return value


def below(value: Any) -> Any:
    """Return an object with a value in the slot that is hidden."""
    vars(Note)["note"].__set__(value, "n")
    return value


class Node:
    """An object that holds others, with a pickle of its own."""

    def __init__(self, value: int, below: Node | None = None) -> None:
        """Take a value and an object."""
        self.value, self.below = value, below

    def __eq__(self, other: object) -> bool:
        return True

    __hash__ = None  # type: ignore[assignment]

    def __reduce__(self) -> Any:
        """Return what makes it anew."""
        return Node, (self.value, self.below)


def chain(last: int) -> Node:
    """Return fifty objects, each in the next one."""
    made = Node(last)
    for number in range(50):
        made = Node(number, made)
    return made


def sub(base: type, *arguments: Any) -> Callable[[], Any]:
    """Return what makes objects of a subclass, which have a `__dict__`."""
    kind = type(f"Sub{base.__name__}", (base,), {})
    return lambda: kind(*arguments)


@pytest.mark.parametrize(
    "make",
    [
        *(Slotted, Pickled, SlottedModel, Rows, Page, Hiding),
        *(sub(Pair), sub(dict), sub(list), sub(tuple), sub(set), sub(frozenset), sub(deque)),
        *(sub(str, "a"), sub(int, 1), sub(float, 1.5), sub(bytes, b"a"), sub(Decimal, 1), sub(datetime, 2020, 1, 1)),
        *(sub(Fraction, 1), sub(IPv4Address, "1.2.3.4"), sub(uuid.UUID, "0" * 32), lambda: Text("a")),
    ],
    ids=lambda make: type(make()).__name__,
)
def test_an_attribute_that_is_no_field_counts(make: Callable[[], Any]) -> None:
    """Whatever the class is made of, and whatever it says to `==` and `pickle`."""
    assert difference(make(), make()) is None
    assert difference(noted(make()), noted(make())) is None
    assert difference(make(), noted(make())) is not None
    assert difference(noted(make()), make()) is not None


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Rows(), filled(Rows())),
        (Hiding([1]), Hiding([2])),
        (Text("a"), Text("b")),
        (Lower(), below(Lower())),
        (noted(Lower()), below(noted(Lower()))),
    ],
    ids=["items", "hidden items", "text", "slot", "hidden slot"],
)
def test_what_no_attribute_shows_counts(one: Any, other: Any) -> None:
    """Items of a dataclass, what a class hides, and what `==` leaves out."""
    assert difference(one, other) is not None
    assert difference(other, one) is not None


def test_objects_in_objects_are_compared_once() -> None:
    """Each is found in two ways, so fifty of them would be compared 2**50 times."""
    assert difference(chain(1), chain(1)) is None
    assert difference(chain(1), chain(2)) is not None


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (Page, noted(Page([1]))),
        (Rows, filled(Rows())),
        (Slotted, noted(Slotted())),
        (Pickled, noted(Pickled())),
        (SlottedModel, noted(SlottedModel())),
        (list[Slotted], [Slotted(), noted(Slotted())]),
    ],
    ids=["list", "dataclass as list", "slots", "slots with pickle", "model", "inside"],
)
def test_a_value_that_holds_more_than_its_json_is_not_stored(kind: Any, value: Any) -> None:
    """A hit would have lost it."""
    codec = Codec(kind, owner="f")
    assert codec.verify(codec.encode(value), value) is not None


@pytest.mark.parametrize(
    ("kind", "value"), [(Page, Page([1])), (Slotted, Slotted()), (Pickled, Pickled()), (SlottedModel, SlottedModel())]
)
def test_a_value_that_holds_no_more_is_stored(kind: Any, value: Any) -> None:
    """A class may have room for more than its JSON."""
    codec = Codec(kind, owner="f")
    assert codec.verify(codec.encode(value), value) is None
