"""A reason for which a value is not stored goes into logs and hooks: no value is quoted, wherever it stands."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from types import SimpleNamespace
from typing import Annotated, Any, Literal, Union

import pytest
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, PlainSerializer, PrivateAttr
from pydantic_core import PydanticCustomError

from fastrdb import SchemaError
from fastrdb.values import Codec, DecodeError

CANARY = "canary-4111"


class Open(BaseModel):
    """A model that takes fields of any name."""

    model_config = ConfigDict(extra="allow")
    _memo: int = PrivateAttr(0)


class Cat(BaseModel):
    """One pet."""

    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    """Another pet."""

    kind: Literal["dog"] = "dog"


def quote(value: Any) -> Any:
    """Raise an error that quotes the value."""
    raise ValueError(f"{value} is wrong")


def quote_with_a_type(value: Any) -> Any:
    """Raise pydantic's own kind of error, which quotes the value."""
    raise PydanticCustomError("own_type", "{value} is wrong", {"value": value})


class Quoting(str):
    """Text whose comparison quotes the text."""

    __slots__ = ()

    def __eq__(self, other: object) -> bool:
        raise ValueError(str(other))

    __hash__ = str.__hash__


def remember(value: Open, memo: int) -> Open:
    """Return the model with another private attribute."""
    value._memo = memo
    return value


Pet = Annotated[Union[Cat, Dog], Field(discriminator="kind")]  # noqa: UP007
NOT_STORED: dict[str, tuple[Any, Any]] = {
    "value": (int, CANARY),
    "other type": (str, Quoting(CANARY)),
    "key of a dict": (dict[str, int], {CANARY: True}),
    "key of another type": (dict[date, int], {CANARY: 1}),
    "name of an extra": (Open, Open(**{CANARY: (1,)})),
    "value under an extra": (Open, Open(**{CANARY: {CANARY: (1,)}})),
    "text of a validator": (Annotated[str, BeforeValidator(quote)], CANARY),
    "type of a validator's own": (Annotated[str, BeforeValidator(quote_with_a_type)], CANARY),
    "text of a comparison": (Annotated[str, AfterValidator(Quoting)], Quoting(CANARY)),
    "text of a serializer": (Annotated[str, PlainSerializer(quote)], CANARY),
    "tag of a union": (Pet, Cat.model_construct(kind=CANARY)),
    "pattern": (Annotated[str, Field(pattern="^a$")], CANARY),
    "private attribute": (Open, remember(Open(), 4111)),
}


@pytest.mark.parametrize("name", NOT_STORED)
def test_the_reason_for_which_a_value_is_not_stored_does_not_quote_it(name: str) -> None:
    """Neither values nor names that are data: keys of dicts, extras, tags, what a validator says."""
    annotation, value = NOT_STORED[name]
    codec = Codec(annotation, owner="load")
    try:
        reason = codec.verify(codec.encode(value), value)
    except ValueError:  # an EncodeError, of which the cache uses the class alone
        return
    assert reason is not None
    assert "4111" not in reason


@pytest.mark.parametrize(
    ("annotation", "result", "place"),
    [
        (dict[str, Cat], {CANARY: {"kind": CANARY}}, r"\*\.kind: "),
        (dict[int, Cat], {4111: {}, 4112: {"kind": CANARY}}, r"\*\.kind: "),
        (Annotated[str, BeforeValidator(quote)], CANARY, "value error"),
        (Pet, {"kind": CANARY}, "union tag invalid"),
    ],
)
def test_the_error_of_a_result_that_does_not_fit_its_schema_does_not_quote_it(
    annotation: Any, result: Any, place: str
) -> None:
    """The error names type and field; a reload in the background logs its text."""
    with pytest.raises(SchemaError, match=place) as caught:
        Codec(object, schema=annotation, owner="load").convert(result)
    assert "4111" not in str(caught.value)


@dataclass
class Record:
    """A dataclass, which pydantic makes of a mapping, and not of a row."""

    kind: str


@pytest.mark.parametrize("several", [False, True])
def test_the_error_of_a_row_for_a_dataclass_names_models(*, several: bool) -> None:
    """Pydantic reads the attributes of a row for a model only."""
    row = SimpleNamespace(kind=CANARY)
    with pytest.raises(SchemaError, match=r"does not fit schema .*; of a row, pydantic makes models only$") as caught:
        Codec(object, schema=list[Record] if several else Record, owner="load").convert([row] if several else row)
    assert "4111" not in str(caught.value)


def test_the_error_of_an_entry_does_not_quote_the_entry() -> None:
    """A corrupt entry is reported by function and type."""
    with pytest.raises(DecodeError, match="load: the entry is not int") as caught:
        Codec(int, owner="load").decode(b'"%s"' % CANARY.encode())
    assert "4111" not in str(caught.value)
