"""Models that hold every kind of field, a strategy for their values, and their codec."""

from __future__ import annotations

import dataclasses
import enum
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar
from uuid import UUID

from hypothesis import strategies as st
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    computed_field,
    model_validator,
)
from typing_extensions import TypedDict

from fastrdb.values.codec import Codec

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    TWO = 2


class Address(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True, frozen=True)
    street: str = Field(default="", validation_alias="streetName", serialization_alias="streetName")
    code: bytes = b""

    @computed_field
    def label(self) -> str:
        return f"{self.street}!"


class Point(TypedDict):
    x: int
    note: NotRequired[str]


@dataclasses.dataclass
class Tags:
    names: list[str] = dataclasses.field(default_factory=list)
    seen: set[int] = dataclasses.field(default_factory=set)


class Cat(BaseModel):
    kind: Literal["cat"] = Field(default="cat", validation_alias="type", serialization_alias="type")
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = Field(default="dog", validation_alias="type", serialization_alias="type")
    lives: int = 1


class Page(BaseModel, Generic[T]):
    items: list[T] = []
    total: int = 0


class Ids(RootModel[tuple[UUID, ...]]):
    pass


class Everything(BaseModel):
    number: int
    real: float
    exact: Decimal
    text: str | None = None
    flag: bool | int = False
    color: Color = Color.RED
    day: date
    clock: time
    at: datetime
    span: timedelta
    raw: bytes
    address: Address = Address()
    pet: Annotated[Cat | Dog, Field(discriminator="kind")]
    page: Page[Point] = Page[Point]()
    tags: Tags
    ids: Ids
    by_day: dict[date, frozenset[str]] = {}
    child: Everything | None = None
    _memo: int = PrivateAttr(0)

    @model_validator(mode="after")
    def _remember(self) -> Everything:
        self._memo = self.number + 1
        return self


TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
ZONES = st.none() | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
EVERYTHING: st.SearchStrategy[Any] = st.recursive(
    st.none(),
    lambda child: st.builds(
        Everything,
        number=st.integers(),
        real=st.floats(allow_nan=False, allow_infinity=False),
        exact=st.decimals(allow_nan=False, allow_infinity=False),
        text=st.none() | TEXT,
        flag=st.booleans() | st.integers(),
        color=st.sampled_from(Color),
        day=st.dates(),
        clock=st.times().map(lambda at: at.replace(fold=0)),
        at=st.datetimes(timezones=ZONES).map(lambda at: at.replace(fold=0)),
        span=st.timedeltas(timedelta(days=-9999), timedelta(days=9999)),
        raw=st.binary(max_size=8),
        address=st.builds(lambda street, code: Address(street=street, code=code), TEXT, st.binary(max_size=4)),
        pet=st.sampled_from([Cat(), Dog(lives=3)]),
        page=st.builds(Page[Point], items=st.lists(st.sampled_from([{"x": 1}, {"x": 2, "note": "n"}]), max_size=2)),
        tags=st.builds(Tags, st.lists(TEXT, max_size=2), st.sets(st.integers(), max_size=2)),
        ids=st.lists(st.uuids(), max_size=2).map(lambda ids: Ids(tuple(ids))),
        by_day=st.dictionaries(st.dates(), st.frozensets(TEXT, max_size=2), max_size=2),
        child=child,
    ),
    max_leaves=2,
).filter(lambda value: value is not None)
CODEC = Codec(Everything, owner="load")
SAMPLE = Everything(
    number=1, real=1.5, exact=Decimal("1.0"), day=date(2020, 1, 2), clock=time(3), at=datetime(2020, 1, 2, tzinfo=UTC),
    span=timedelta(seconds=1), raw=b"\xff", pet=Cat(), tags=Tags(["a"], {1}), ids=Ids((UUID(int=1),)),
)  # fmt: skip
