"""Values to JSON and back: what comes back is the same, or it is said."""

from __future__ import annotations

import collections
import collections.abc
import json
import re
from datetime import datetime, timedelta, timezone
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    field_serializer,
)
from sqlalchemy import ForeignKey
from sqlalchemy.orm import DeclarativeBase, Mapped, make_transient_to_detached, mapped_column, relationship
from sqlalchemy.orm.exc import DetachedInstanceError

from fastrdb.errors import SchemaError
from fastrdb.values.codec import Codec, EncodeError
from tests.support.world.samples import CODEC, EVERYTHING, SAMPLE, Address, Cat, Color, Dog, Everything, Page


@settings(max_examples=150)
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


def test_a_result_that_is_the_schema_is_not_validated_again() -> None:
    """It is returned as it is, even where the model asks for its instances to be made anew."""

    class Anew(BaseModel):
        model_config = ConfigDict(revalidate_instances="always")
        a: int

    value = Anew(a=1)
    assert Codec(Author, schema=Anew, owner="load").convert(value) is value


def test_a_result_that_does_not_fit_names_the_field() -> None:
    """A row without an attribute of the schema: SchemaError with function, place and type, without values."""
    with pytest.raises(SchemaError, match=r"load: the result, list, does not fit schema .*AuthorOut\]: \*\.\w+: "):
        Codec(list[Author], schema=AuthorOut, owner="load").convert([Book(id=1)])


def test_a_relationship_that_was_not_loaded_raises_its_own_error() -> None:
    """SQLAlchemy's error (here of a detached row) reaches the caller as it is, not as a validation error."""
    row = Author(id=1, name="a")
    make_transient_to_detached(row)
    with pytest.raises(DetachedInstanceError):
        Codec(list[Author], schema=Shelf, owner="load").convert([row])
