"""Values to JSON and back: what comes back is the same, or it is said."""

from __future__ import annotations

import collections
import dataclasses
import enum
import json
import random
import re
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NotRequired, TypeVar
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    PrivateAttr,
    RootModel,
    TypeAdapter,
    computed_field,
    field_serializer,
    model_validator,
)
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, make_transient_to_detached, mapped_column, relationship
from sqlalchemy.orm.exc import DetachedInstanceError
from typing_extensions import TypedDict

from fastrdb.codec import Codec, DecodeError, EncodeError, encode_missing, missing_message
from fastrdb.errors import SchemaError

T = TypeVar("T")


class Color(enum.Enum):
    RED = "red"
    TWO = 2


class Address(BaseModel):
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True, frozen=True)
    street: str = Field("", alias="streetName")
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
    kind: Literal["cat"] = Field("cat", alias="type")
    lives: int = 9


class Dog(BaseModel):
    kind: Literal["dog"] = Field("dog", alias="type")
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
EVERYTHING: st.SearchStrategy[Everything] = st.recursive(
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
        clock=st.times(),
        at=st.datetimes(timezones=ZONES),
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


@settings(max_examples=150, deadline=None)
@given(EVERYTHING)
def test_a_value_comes_back_the_same(value: Everything) -> None:
    """decode(encode(x)) == x over every kind of field, and verify() sees no difference."""
    raw = CODEC.encode(value)
    assert (value, None) == (CODEC.decode(raw), CODEC.verify(raw, value))
    json.loads(raw)


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        (int, 10**400),
        (bytes, b"\xff\xfe"),
        (list[Address], [Address(street="a")]),
        (Address | None, None),
        (dict[int, str], {1: "a"}),
        (tuple[int, str], (1, "a")),
        (collections.deque[int], collections.deque([1])),
        (datetime, datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=2)))),
        (list[Cat | Dog], [Dog(), Cat()]),
        (Page[Page[int]], Page[Page[int]](items=[Page[int](items=[1])])),
    ],
)
def test_any_annotation_of_pydantic_will_do(kind: Any, value: Any) -> None:
    """Models, containers and scalars round trip as the annotation itself."""
    codec = Codec(kind, owner="load")
    raw = codec.encode(value)
    assert (value, None) == (codec.decode(raw), codec.verify(raw, value))


def test_entries_are_json_by_field_name() -> None:
    """Aliases and computed fields stay out of Redis, whatever the model's own settings say."""
    assert Codec(Address, owner="load").encode(Address(street="a")) == b'{"street":"a","code":""}'


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{}",
        b'{"street":"a"}',
        b'{"street":"a","code":"","more":1}',
        b'{"streetName":"a","code":""}',
        b'{"street":1,"code":""}',
        b'{"street":null,"code":""}',
        b' {"street":"a","code":""}',
        b'{"street":"\xff","code":""}',
        b'{"street":"a","code":""',
        b"[" * 100_000,
        b"NaN",
        b"null",
    ],
)
def test_an_entry_that_is_not_exactly_this_type_is_none(raw: bytes) -> None:
    """A field too few, too many, aliased or of another type, and what is no JSON: DecodeError."""
    with pytest.raises(DecodeError, match="load"):
        Codec(Address, owner="load").decode(raw)


def test_defaults_fill_nothing_at_any_depth() -> None:
    """An entry from before a field was added is a miss also where the model is nested, dataclass or root default."""
    for kind in (list[Cat], Page[Cat], Tags, dict[str, Tags]):
        raw = {list[Cat]: b'[{"kind":"cat"}]', Page[Cat]: b'{"items":[{}],"total":1}', Tags: b'{"names":[]}'}
        with pytest.raises(DecodeError):
            Codec(kind, owner="load").decode(raw.get(kind, b'{"a":{"seen":[]}}'))


def test_the_models_own_validator_stays_lenient() -> None:
    """Compiling the exact schema leaves the user's class as it was."""
    Codec(list[Cat], owner="load")
    assert TypeAdapter(list[Cat]).validate_json('[{"more":1}]') == [Cat()]
    assert Cat.__pydantic_complete__


@pytest.mark.parametrize(("kind", "raw"), [(int, b'"1"'), (bool, b"1"), (str, b"1"), (int, b"1.0"), (float, b'"1"')])
def test_json_of_another_type_is_not_made_to_fit(kind: Any, raw: bytes) -> None:
    """Decoding is strict: what plain pydantic would turn into the type is a miss."""
    with pytest.raises(DecodeError):
        Codec(kind, owner="load").decode(raw)


def test_an_own_init_does_not_loosen_decoding() -> None:
    """A model with its own __init__ is read by field name, all fields required, like any other."""

    class Own(BaseModel):
        a: int = Field(0, alias="x")

        def __init__(self, **data: Any) -> None:
            super().__init__(**data)

    codec = Codec(Own, owner="load")
    assert codec.decode(codec.encode(Own(x=3))) == Own(x=3)
    with pytest.raises(DecodeError):
        codec.decode(b"{}")


def test_allowed_extras_are_kept() -> None:
    """extra="allow" makes extras a part of the value; they are compared when stored."""

    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        a: int

    codec = Codec(Open, owner="load")
    plain, odd = Open(a=1, b="c"), Open(a=1, b=date(2020, 1, 1))  # type: ignore[call-arg]
    assert codec.verify(codec.encode(plain), plain) is None
    assert codec.verify(codec.encode(odd), odd) == "value.b: date comes back as str"


def test_errors_of_user_validators_are_decode_errors() -> None:
    """Whatever a validator raises while an entry is read, the entry is a miss."""

    class Picky(BaseModel):
        a: int

        @model_validator(mode="after")
        def _refuse(self) -> Picky:
            raise KeyError(self.a)

    with pytest.raises(DecodeError) as caught:
        Codec(Picky, owner="load").decode(b'{"a":1}')
    assert isinstance(caught.value.__cause__, KeyError)


class Rounded(BaseModel):
    real: float

    @field_serializer("real")
    def _round(self, real: float) -> float:
        return round(real, 1)


@pytest.mark.parametrize(
    ("kind", "value", "reason"),
    [
        (Rounded, Rounded(real=1.23), "value.real: another float"),
        (float, float("nan"), "valid number"),
        (float | None, float("inf"), "float comes back as NoneType"),
        (int, True, "bool comes back as int"),
        (Page[int], Page[int].model_construct(items=[1, True]), r"value.items\[1\]: bool comes back"),
        (dict[str | int, int], {1: 1}, "other keys"),
        (list[int], (1,), "tuple comes back as list"),
        (Cat, type("Kitten", (Cat,), {})(), "Kitten comes back as Cat"),
    ],
)
def test_what_would_come_back_different_is_told(kind: Any, value: Any, reason: str) -> None:
    """verify() gives the place and the reason, so that the value is not stored."""
    codec = Codec(kind, owner="load")
    assert re.search(reason, codec.verify(codec.encode(value), value) or "")


def test_a_private_attribute_that_would_be_lost_is_told() -> None:
    """State that JSON does not hold keeps a value out of the cache."""
    value = SAMPLE.model_copy()
    value._memo = 7
    assert CODEC.verify(CODEC.encode(value), value) == "value._memo: another int comes back"


@pytest.mark.parametrize("value", ["\ud800", object()])
def test_a_value_without_json_is_an_encode_error(value: Any) -> None:
    """Lone surrogates and foreign objects: EncodeError naming the function, nothing else."""
    with pytest.raises(EncodeError, match="load"):
        Codec(str, owner="load").encode(value)


def test_a_verify_that_cannot_compare_says_so() -> None:
    """An __eq__ of the user's that raises is a reason, not an error."""

    class Odd(str):
        __slots__ = ()

        def __eq__(self, other: object) -> bool:
            raise RuntimeError

        __hash__ = str.__hash__

    class Holder(BaseModel):
        a: Annotated[str, AfterValidator(Odd)]

    codec, value = Codec(Holder, owner="load"), Holder(a="x")
    assert "RuntimeError" in (codec.verify(codec.encode(value), value) or "")


def test_fuzzed_bytes_are_a_decode_error_or_a_value() -> None:
    """20,000 random or mutated entries: nothing but DecodeError escapes, and a value can be stored again."""
    dice = random.Random(20)
    valid = CODEC.encode(SAMPLE.model_copy(update={"child": SAMPLE}))
    for number in range(20_000):
        raw = dice.randbytes(dice.randrange(40)) if number % 2 else _mutated(valid, dice)
        try:
            value = CODEC.decode(raw)
        except DecodeError:
            continue
        assert CODEC.verify(CODEC.encode(value), value) is None, raw


def _mutated(raw: bytes, dice: random.Random) -> bytes:
    changed = bytearray(raw)
    for _ in range(dice.randrange(1, 4)):
        place, change = dice.randrange(len(changed)), dice.randrange(4)
        if change == 0:
            changed[place] = dice.randrange(256)
        elif change == 1:
            del changed[place : place + dice.randrange(1, 20)]
        elif change == 2:
            changed[place:place] = changed[dice.randrange(len(changed)) :][: dice.randrange(1, 20)]
        else:
            changed[place] = dice.choice(b'0123456789"{}[],:.-eE')
        changed = changed or bytearray(b"0")
    return bytes(changed)


@given(st.text())
@settings(max_examples=50, deadline=None)
def test_negative_entries_hold_their_message(message: str) -> None:
    """A negative entry is JSON, gives its message, and is a value of no type at all."""
    raw = encode_missing(message)
    assert (message, "NoResultFound") == (missing_message(raw), json.loads(raw)["error"])
    with pytest.raises(DecodeError):
        Codec(dict[str, str], owner="load").decode(raw)


@pytest.mark.parametrize(
    "raw",
    [b"", b" ", b" {}", b" []", b' {"error":"NoResultFound","message":1}', b' {"error":"X","message":"a"}', b" \xff",
     b" " + b"[" * 100_000, encode_missing("a")[1:], encode_missing("a")[:-1], CODEC.encode(SAMPLE)],
)  # fmt: skip
def test_other_bytes_are_no_negative_entry(raw: bytes) -> None:
    """Damaged negative entries and values have no message."""
    assert missing_message(raw) is None


# --- schema=


class Base(DeclarativeBase):
    pass


class Author(Base):
    __tablename__ = "author"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    books: Mapped[list[Book]] = relationship()


class Book(Base):
    __tablename__ = "book"
    id: Mapped[int] = mapped_column(primary_key=True)
    author_id: Mapped[int] = mapped_column(ForeignKey("author.id"))


class BookOut(BaseModel):
    id: int


class AuthorOut(BaseModel):
    id: int
    name: str = Field(alias="authorName")


class Shelf(BaseModel):
    id: int
    books: list[BookOut]


@pytest.mark.parametrize(
    ("annotation", "kind"),
    [
        (Author, AuthorOut),
        (list[Author], list[AuthorOut]),
        (collections.abc.Sequence[Author], list[AuthorOut]),
        (tuple[Author, ...], list[AuthorOut]),
        (Author | None, AuthorOut | None),
        (list[Author] | None, list[AuthorOut] | None),
        (Annotated[list[Author], "x"], list[AuthorOut]),
        (Color.RED, AuthorOut),
        (dict[str, Any], AuthorOut),
    ],
)
def test_a_schema_takes_the_shape_of_the_annotation(annotation: Any, kind: Any) -> None:
    """A list of rows gives a list of the schema; None stays possible; no annotation means the schema itself."""
    assert Codec(annotation, schema=AuthorOut, owner="load").type == kind


def test_a_schema_with_a_shape_of_its_own_is_kept() -> None:
    """list[...] or Optional given as schema= is the type, whatever the annotation says."""
    assert Codec(Author, schema=list[AuthorOut], owner="load").type == list[AuthorOut]
    assert Codec(list[Author], schema=AuthorOut | None, owner="load").type == AuthorOut | None


def test_rows_become_the_schema() -> None:
    """ORM rows, mappings and None are converted, by alias or name; a result that is the schema already is itself."""
    row, value = Author(id=1, name="a"), AuthorOut(id=1, authorName="a")
    many = Codec(list[Author], schema=AuthorOut, owner="load")
    assert [value, value] == many.convert([row, {"id": 1, "name": "a"}])
    single = Codec(Author | None, schema=AuthorOut, owner="load")
    assert (value, None) == (single.convert(row), single.convert(None))
    assert Codec(Author, schema=AuthorOut, owner="load").convert(value) is value
    assert Codec(AuthorOut, owner="load").convert(row) is row


def test_a_result_that_does_not_fit_names_the_field() -> None:
    """A row without an attribute of the schema: SchemaError with function, place and type, without values."""
    with pytest.raises(SchemaError, match=r"load: the result, list, does not fit schema list\[.*AuthorOut\]: 0\.\S+: "):
        Codec(list[Author], schema=AuthorOut, owner="load").convert([Book(id=1)])


def test_a_relationship_that_was_not_loaded_raises_its_own_error() -> None:
    """SQLAlchemy's error (here of a detached row) reaches the caller as it is, not as a validation error."""
    row = Author(id=1, name="a")
    make_transient_to_detached(row)
    with pytest.raises(DetachedInstanceError):
        Codec(list[Author], schema=Shelf, owner="load").convert([row])
