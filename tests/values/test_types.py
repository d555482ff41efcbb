"""What is refused at decoration, and what may be handed to many callers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from datetime import datetime
from decimal import Decimal
from enum import Enum, auto
from inspect import Signature
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypeVar
from uuid import UUID

import pytest
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    SecretBytes,
    SecretStr,
    field_validator,
)
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from fastrdb.errors import SchemaError
from fastrdb.values.codec import Codec
from fastrdb.values.types import holds_only_fields

T = TypeVar("T")


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"
    id: Mapped[int] = mapped_column(primary_key=True)


class Member(MappedAsDataclass, Base):
    __tablename__ = "member"
    id: Mapped[int] = mapped_column(primary_key=True)


class Foreign:
    pass


class Hidden(BaseModel):
    kept: int
    gone: int = Field(0, exclude=True)


class Login(BaseModel):
    tokens: list[SecretStr]


class Loose(BaseModel):
    data: dict[str, Any]


class Open(BaseModel, Generic[T]):
    item: T


class Holds(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    foreign: Foreign


class HoldsRow(BaseModel):
    model_config = ConfigDict(arbitrary_types_allowed=True)
    row: User


class Nested(BaseModel):
    inside: list[Hidden | None]


@dataclasses.dataclass
class Late:
    a: int
    b: int = dataclasses.field(init=False, default=1)


@dataclasses.dataclass
class Passing:
    a: int
    b: dataclasses.InitVar[int] = 0


class Absent(Enum):
    MISSING = auto()


@pytest.mark.parametrize(
    ("kind", "says"),
    [
        (Any, "the value cannot be cached: its type is Any"),
        (object, "its type is Any"),
        (list, "its type is Any"),
        (dict, "its type is Any"),
        (tuple, "its type is Any"),
        (Loose, "Loose.data cannot be cached: its type is Any"),
        (Open, "the type of its value, T, is left open"),
        (Hidden, r"Hidden.gone cannot be cached: .*exclude="),
        (dict[str, Nested], r"Hidden.gone cannot be cached"),
        (Login, "Login.tokens cannot be cached: a secret"),
        (SecretBytes, "a secret"),
        (Late, "Late.b cannot be cached: .*init=False"),
        (Passing, "Passing.b cannot be cached: .*InitVar"),
        (Holds, "Holds.foreign cannot be cached: Foreign has no JSON form"),
        (HoldsRow, "HoldsRow.row cannot be cached: User is a mapped SQLAlchemy class; give schema="),
        (Callable[[], int], "a callable"),
        (type[int], "a class"),
        (Iterable[int], "an iterator"),
        (Iterator[int], "Iterator"),
        (AsyncIterator[int], "AsyncIterator"),
        (AsyncSession, "AsyncSession cannot be cached as JSON"),
        (User, "User is a mapped SQLAlchemy class.*give schema="),
        (list[User] | None, "User is a mapped SQLAlchemy class.*give schema="),
        (Member, "Member is a mapped SQLAlchemy class.*give schema="),
        ("Nowhere", "Nowhere"),
        (Absent.MISSING, "no return type"),
        (Signature.empty, "no return type"),
    ],
)
def test_what_cannot_round_trip_is_refused_at_decoration(kind: Any, says: str) -> None:
    """SchemaError names the function, the field and the way out."""
    with pytest.raises(SchemaError, match=f"module.load: .*{says}"):
        Codec(kind, owner="module.load")


@pytest.mark.parametrize("schema", [User, Hidden, list[User]])
def test_a_schema_is_checked_like_an_annotation(schema: Any) -> None:
    """schema= must round trip too."""
    with pytest.raises(SchemaError):
        Codec(User, schema=schema, owner="load")


def test_any_json_can_be_declared() -> None:
    """JsonValue is the way to say "any JSON"."""
    codec, value = Codec(JsonValue, owner="load"), {"a": [1, None, 2.5, "x", True]}
    assert codec.verify(codec.encode(value), value) is None


class Frozen(BaseModel):
    model_config = ConfigDict(frozen=True)
    id: UUID
    at: datetime | None = None
    price: Decimal = Decimal(0)
    kind: Literal["a"] | Absent = "a"
    names: tuple[str, ...] = ()
    more: frozenset[int] = frozenset()
    parent: Frozen | None = None

    @field_validator("price", mode="before")
    @classmethod
    def _price(cls, value: Any) -> Any:
        return value


class WithList(BaseModel):
    model_config = ConfigDict(frozen=True)
    names: list[str]
    parent: WithList | None = None


class WithPrivate(BaseModel):
    model_config = ConfigDict(frozen=True)
    _seen: int = PrivateAttr(0)


class WithExtras(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class WithMemo(BaseModel):
    model_config = ConfigDict(frozen=True)

    @functools.cached_property
    def memo(self) -> list[int]:
        return []


class WithFunction(BaseModel):
    model_config = ConfigDict(frozen=True)
    names: Annotated[tuple[str, ...], AfterValidator(list)]


class Thawed(BaseModel):
    a: int


@dataclasses.dataclass(frozen=True)
class Pair:
    a: int
    b: Frozen | None = None


@dataclasses.dataclass
class Loosely:
    a: int


@dataclasses.dataclass(frozen=True, slots=True)
class Point:
    a: int
    b: Point | None = None


@dataclasses.dataclass(frozen=True)
class Alone:
    a: int
    b: Point | None = None


@dataclasses.dataclass(frozen=True)
class Chain:
    a: int
    b: Chain | None = None


@dataclasses.dataclass(frozen=True)
class Both(Point):
    c: int = 1


@dataclasses.dataclass(frozen=True)
class Grown(list[int]):
    a: int


class Flat(BaseModel):
    model_config = ConfigDict(frozen=True)
    a: int
    b: Point | None = None


class WithSlot(Flat):
    __slots__ = ("c",)


class Row(NamedTuple):
    a: int


@pytest.mark.parametrize(
    "kind",
    [int, str | None, Flat, tuple[Point, ...], Flat | None, Point, Alone, Alone | None, Absent, bytes],
)
def test_what_nobody_can_change_is_shared(kind: Any) -> None:
    """Frozen all the way down, with attributes at the top only, since each caller gets a dict of these of its own."""
    assert Codec(kind, owner="load").shared


@pytest.mark.parametrize(
    "kind",
    [Thawed, list[Frozen], tuple[Thawed, ...], WithList, WithPrivate, WithExtras, WithMemo, WithFunction, Loosely,
     dict[str, int], Frozen | Thawed, Frozen, Pair, tuple[Flat, ...], WithSlot, tuple[Alone, ...], Chain, Both, Grown],
)  # fmt: skip
def test_what_somebody_can_change_is_not_shared(kind: Any) -> None:
    """One mutable part anywhere, attributes inside, a memo, private state or extras: each caller gets its own."""
    assert not Codec(kind, owner="load").shared


@pytest.mark.parametrize(("value", "holds"), [(Row(1), True), (Row([1]), False), (type("Sub", (Row,), {})(1), False)])  # type: ignore[arg-type]
def test_a_named_tuple_holds_its_items_only_if_it_has_room_for_no_more(value: Any, holds: bool) -> None:
    """Which versions of pydantic take the type for immutable differs."""
    assert holds_only_fields(value, ()) is holds


@pytest.mark.parametrize(
    ("kind", "optional"),
    [(int | None, True), (None, True), (JsonValue, True), (Annotated[int | None, Field(gt=1)], True), (int, False),
     (list[int | None], False)],
)  # fmt: skip
def test_optional_says_whether_none_is_a_value(kind: Any, optional: bool) -> None:
    """`optional` holds for Optional in any spelling, and for nothing else."""
    assert Codec(kind, owner="load").optional is optional
