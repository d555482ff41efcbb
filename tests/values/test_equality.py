"""The same means: type for type, all the way down."""

from __future__ import annotations

from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from asyncpg.pgproto import pgproto
from pydantic import BaseModel, TypeAdapter

from fastrdb.values import Codec
from fastrdb.values.equality import difference

EAST = timezone(timedelta(hours=2))
BERLIN = ZoneInfo("Europe/Berlin")
NOON = datetime(2020, 1, 1, 12)  # noqa: DTZ001
CET = timezone(timedelta(hours=1), "CET")


class Item(BaseModel):
    a: Any


class Same(Item):
    pass


@pytest.mark.parametrize(
    ("left", "right"),
    [
        (1, True),
        (1, 1.0),
        (0.0, -0.0),
        (Decimal("1.0"), Decimal("1.00")),
        ([1], [True]),
        ({1}, {True}),
        ({1: "a"}, {True: "a"}),
        ({"a": 1}, {"a": 1.0}),
        ({"a": 1}, {"b": 1}),
        ([1], [1, 2]),
        ((1,), [1]),
        (Item(a=1), Same(a=1)),
        (Item(a=1), Item(a=True)),
        (Item(a=[{"x": 1}]), Item(a=[{"x": 2}])),
        (datetime(2020, 1, 1, 2, tzinfo=EAST), datetime(2020, 1, 1, tzinfo=UTC)),
        (time(2, tzinfo=EAST), time(0, tzinfo=UTC)),
        (NOON, NOON.replace(fold=1)),
        (datetime(2020, 1, 1, tzinfo=BERLIN), datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
        (datetime(2020, 1, 1, tzinfo=CET), datetime(2020, 1, 1, tzinfo=timezone(timedelta(hours=1)))),
        (time(12, fold=1), time(12)),
        ("a", "b"),
        (None, 0),
    ],
)
def test_equal_is_not_yet_the_same(left: Any, right: Any) -> None:
    """Values that differ in type, sign, precision or offset anywhere inside are different, either way round."""
    assert difference(left, right) is not None
    assert difference(right, left) is not None


@pytest.mark.parametrize(
    "make",
    [
        lambda: Item(a=[{"x": {1, "a"}}, (1.5, None), Decimal("1.0")]),
        lambda: {"b": 1, "a": float("nan")},
        lambda: datetime(2020, 1, 1, tzinfo=timezone(timedelta(0), "Z")),
        lambda: {(1, True): frozenset({1})},
    ],
)
def test_two_copies_are_the_same(make: Any) -> None:
    """Values made twice in the same way differ nowhere."""
    assert difference(make(), make()) is None


@pytest.mark.parametrize("zone", [UTC, ZoneInfo("UTC"), ZoneInfo("Etc/UTC"), EAST, timezone(-timedelta(minutes=30))])
@pytest.mark.parametrize("value", [NOON, time(12)])
def test_a_fixed_offset_is_the_same_whatever_its_class(zone: tzinfo, value: Any) -> None:
    """Pydantic reads time zones from JSON as a class of its own, which behaves as the others do."""
    kind = TypeAdapter(type(value))
    value = value.replace(tzinfo=zone)
    assert difference(kind.validate_json(kind.dump_json(value)), value) is None


@pytest.mark.parametrize(
    ("zone", "name"),
    [(UTC, "UTC"), (ZoneInfo("UTC"), "UTC"), (EAST, "+02:00"), (timezone(-timedelta(hours=1)), "-01:00")],
)
def test_a_hit_has_the_offset_of_the_miss(zone: tzinfo, name: str) -> None:
    """The zone is an object of pydantic's, with that offset and a name of its own."""
    codec, value = Codec(datetime, owner="f"), NOON.replace(tzinfo=zone)
    raw = codec.encode(value)
    found = codec.decode(raw)
    assert codec.verify(raw, value) is None
    assert (found, found.isoformat(), found.utcoffset()) == (value, value.isoformat(), value.utcoffset())
    assert (type(found.tzinfo).__name__, found.tzname()) == ("TzInfo", name)
    assert isinstance(zone, ZoneInfo) or found.tzinfo == zone
    assert found.astimezone(UTC).tzinfo is UTC


def test_the_place_is_named_without_the_values() -> None:
    """The text leads to the field and keeps what is in it to itself."""
    assert difference(Item(a=[Item(a="secret")]), Item(a=[Item(a="other")])) == "value.a[0].a: another str comes back"


TEXT = "6ba7b810-9dad-11d1-80b4-00c04fd430c8"


def test_a_drivers_own_uuid_is_a_uuid() -> None:
    """asyncpg gives UUIDs of a class of its own, which are stored and come back as the standard library's."""
    assert difference(UUID(TEXT), pgproto.UUID(TEXT)) is None
    assert difference(UUID(TEXT), pgproto.UUID(TEXT.replace("6", "7"))) is not None


class OwnUUID(UUID):
    """An application's own, which writes itself in another way."""

    def __str__(self) -> str:
        return f"user_{self.hex}"


@pytest.mark.parametrize(("kind", "wrap"), [(UUID, lambda value: value), (list[UUID], lambda value: [value])])
def test_an_applications_own_uuid_is_not_stored_as_a_uuid(kind: Any, wrap: Any) -> None:
    """A hit would be of another class, with other methods."""
    codec, value = Codec(kind, owner="f"), wrap(OwnUUID(TEXT))
    assert "comes back as UUID" in str(codec.verify(codec.encode(value), value))
