"""Only what was written for this very type is read: no guess, no default, nothing left over."""

from __future__ import annotations

import random
from datetime import date
from typing import Any

import pytest
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    model_validator,
)

from fastrdb.values.codec import Codec, DecodeError
from tests.support.world.samples import CODEC, SAMPLE, Address, Cat, Page, Tags


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
    """extra="allow" makes extras a part of the value, so that extras are compared when stored."""

    class Open(BaseModel):
        model_config = ConfigDict(extra="allow")
        a: int

    codec = Codec(Open, owner="load")
    plain, odd = Open(a=1, b="c"), Open(a=1, b=date(2020, 1, 1))  # type: ignore[call-arg]
    assert codec.verify(codec.encode(plain), plain) is None
    assert codec.verify(codec.encode(odd), odd) == "value (extra)[0]: date comes back as str"


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
