"""Keys of arguments that `==` takes for equal: never shared where results can differ, and reached by one prefix."""

from __future__ import annotations

import enum
import itertools
from collections import defaultdict
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Self
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from asyncpg.pgproto import pgproto
from pydantic import BaseModel, ConfigDict, PrivateAttr

from fastrdb import KeyValueError
from fastrdb.keys import MISSING, CallPlan, Pattern, Prefix
from fastrdb.keys import prefix as prefixes
from fastrdb.keys.prefix import Template
from tests.keys.texts import encode_value

BERLIN = ZoneInfo("Europe/Berlin")
EAST = timezone(timedelta(hours=2))
NOON = datetime(2020, 1, 1, 12, tzinfo=UTC)


class Colour(enum.Enum):
    RED = "red"


class Shade(str, enum.Enum):  # noqa: UP042 - printed otherwise than a StrEnum
    RED = "red"


class Tint(enum.StrEnum):
    RED = "red"


class OtherTint(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    ONE = 1


class OtherLevel(enum.IntEnum):
    ONE = 1


class Bits(enum.IntFlag):
    ONE = 1


class Money(Decimal):
    currency = "EUR"


@dataclass
class Point:
    x: int


EQUAL = [
    [5, 5.0, Decimal(5), Decimal("5.00"), Money(5), "5"],
    [1, 1.0, True, Decimal(1)],
    [0, 0.0, -0.0, False],
    ["red", Colour.RED, Shade.RED, Tint.RED, OtherTint.RED],
    [1, Level.ONE, OtherLevel.ONE, Bits.ONE],
    [NOON, NOON.astimezone(timezone(timedelta(hours=2))), NOON.astimezone(BERLIN)],
]


@pytest.mark.parametrize("declared", [MISSING, int, float, str, bool, Decimal, Colour, datetime])
@pytest.mark.parametrize("values", EQUAL, ids=repr)
def test_equal_values_have_keys_of_their_own_and_one_prefix(values: list[Any], declared: Any) -> None:
    """Whatever is declared in the function that reads, and in the one that writes; at the end and in the middle."""
    assert len({encode_value(each, declared) for each in values}) == len(values)
    for text in ("k:{x}", "k:{x}:*", "k:{x}:y:{x}"):
        for mine, other in itertools.product(values, values):
            key = text.replace("{x}", encode_value(other, declared)).replace("*", "z")
            prefixes = Template(Pattern.parse(text, owner="f", kind="prefix")).prefixes({"x": mine})
            assert any(prefix.matches(key) for prefix in prefixes), (mine, other, key)


def test_single_keys_reach_equal_values_and_other_schemas() -> None:
    """`keys=` takes along what stands behind the very key."""
    reached = Template(Pattern.parse("k:{x}", owner="f", kind="pattern")).keys({"x": 5})
    assert reached.keys == ["k:5", "k:5.0"]
    for key in ("k:5%ai", "k:5%as", "k:5?%schema=a"):
        assert any(prefix.matches(key) for prefix in reached.prefixes)
    for key in ("k:5", "k:50", "k:5:a", "k:5?page=2"):
        assert not any(prefix.matches(key) for prefix in reached.prefixes)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (time(12, tzinfo=BERLIN), time(12, tzinfo=ZoneInfo("Asia/Tokyo"))),
        (time(12, tzinfo=BERLIN), time(12)),
        (datetime(2024, 10, 27, 2, 30), datetime(2024, 10, 27, 2, 30, fold=1)),  # noqa: DTZ001
        ({"name": "asc", "age": "desc"}, {"age": "desc", "name": "asc"}),
        (NOON.replace(tzinfo=EAST), NOON.replace(tzinfo=timezone(EAST.utcoffset(None), "UTC+1"))),
        (defaultdict(int, a=1), defaultdict(bool, a=1)),
        (defaultdict(int, a=1), defaultdict(None, a=1)),
        (Decimal("5.0"), Decimal("5.00")),
    ],
    ids=repr,
)
def test_values_that_print_otherwise_have_two_keys(one: Any, other: Any) -> None:
    """A function may go by what `==` does not see."""
    for declared in (MISSING, type(one)):
        assert encode_value(one, declared) != encode_value(other, declared)


class Status(str, enum.Enum):  # noqa: UP042 - its members are made otherwise
    """Two members with one text."""

    OPEN = "open", 1
    REOPENED = "open", 2

    def __new__(cls, text: str, number: int) -> Self:
        """Make a str of the text, whose value is both."""
        made = str.__new__(cls, text)
        made._value_ = f"{text}{number}"
        return made


class Grade(int, enum.Enum):
    """Two members with one number."""

    LOW = 1, "low"
    LOWEST = 1, "lowest"

    def __new__(cls, number: int, name: str) -> Self:
        """Make an int of the number, whose value is the name."""
        made = int.__new__(cls, number)
        made._value_ = name
        return made


class Rate(enum.Enum):
    """Two members with values that print alike."""

    UNKNOWN = float("nan")
    NONE = float("-nan")


@pytest.mark.parametrize("kind", [Status, Grade, Rate])
def test_members_with_one_text_have_two_keys(kind: type[enum.Enum]) -> None:
    """A function may go by the member."""
    one, other = kind
    for declared in (MISSING, kind, str, int):
        assert encode_value(one, declared) != encode_value(other, declared)
        assert encode_value([one], list[declared]) != encode_value([other], list[declared])  # type: ignore[valid-type]
    assert encode_value(one, kind).partition("%a")[0] == encode_value(other, kind).partition("%a")[0]


def test_a_factory_that_has_no_name_is_refused() -> None:
    """Two functions may return other defaults, and nothing in the key would differ."""
    with pytest.raises(KeyValueError, match=r"defaultdict.*give a plain dict"):
        encode_value(defaultdict(lambda: 1, a=1))


def test_hidden_state_is_part_of_a_value() -> None:
    """An attribute that is no field, of a dataclass and of a subclass of a plain type."""
    one, other = Point(1), Point(1)
    other.note = "b"  # type: ignore[attr-defined]
    assert encode_value(one) != encode_value(other)
    euro, dollar = Money(5), Money(5)
    dollar.currency = "USD"
    assert encode_value(euro, Decimal) != encode_value(dollar, Decimal)


def test_hidden_state_of_the_declared_class_is_part_of_a_value() -> None:
    """A subclass of a plain type may be what is declared."""
    euro, dollar = Money(5), Money(5)
    dollar.currency = "USD"
    assert encode_value(euro, Money) == "5"
    assert encode_value(dollar, Money) != "5"


class Loose(BaseModel):
    """A model that takes more than its fields, and has a private attribute."""

    model_config = ConfigDict(extra="allow")
    x: int = 0
    _note: int = PrivateAttr()


def test_extra_values_are_no_private_attributes() -> None:
    """Nor are these fields that were not given, whatever their names."""
    private = Loose()
    private._note = 1
    alike = [Loose(_note=1), private, Loose(), Loose(**{"x*": 0}), Loose(x=0), Loose(**{"x%2A": 0})]  # type: ignore[call-arg]
    assert len({encode_value(each) for each in alike}) == len(alike)


class Rule(tzinfo):
    """A time zone whose text says nothing of its rule."""

    def __init__(self, summer: timedelta) -> None:
        self.summer = summer

    def utcoffset(self, _: datetime | None) -> timedelta:
        """Return the same for all moments of these tests."""
        return timedelta(hours=1)

    def dst(self, _: datetime | None) -> timedelta:
        """Return the rule."""
        return self.summer

    def tzname(self, _: datetime | None) -> str:
        """Return one name for all."""
        return "rule"

    def __repr__(self) -> str:
        return "rule"


class OtherRule(Rule):
    """Another class with the same text."""


@pytest.mark.parametrize("declared", [MISSING, datetime, str])
def test_state_of_a_time_zone_is_part_of_a_value(declared: Any) -> None:
    """A function may go by a rule that no offset shows; the class counts, too."""
    zones = [Rule(timedelta()), Rule(timedelta(hours=1)), OtherRule(timedelta()), timezone(timedelta(hours=1), "rule")]
    texts = [encode_value(NOON.replace(tzinfo=zone), declared) for zone in zones]
    assert len({*texts}) == len(zones)
    assert encode_value(NOON.replace(tzinfo=Rule(timedelta())), declared) == texts[0]


class UserId(UUID):
    """An id with a class of its own."""


class OrgId(UUID):
    """Another one."""


def test_ids_with_classes_of_their_own_are_apart() -> None:
    """A function may go by the class; but a driver's class is no one's own."""
    text = "00000000-0000-0000-0000-000000000001"
    values = UUID(text), UserId(text), OrgId(text)
    for declared in (MISSING, UUID, UserId, UserId | OrgId, str):
        assert len({encode_value(each, declared) for each in values}) == 3
    assert encode_value(UserId(text), UserId) == encode_value(pgproto.UUID(text), UUID) == text
    assert [Prefix.of(f"k:{text}", whole=True).matches(f"k:{encode_value(each)}") for each in values] == [True] * 3  # type: ignore[union-attr]


def test_a_name_alone_makes_no_session() -> None:
    """A filter may be called `session`, `db` or `redis`; so may an argument without an annotation."""

    async def find(**filters: str) -> Any: ...

    async def load(session) -> Any: ...  # type: ignore[no-untyped-def]

    for function, name in ((find, "session"), (find, "db"), (find, "redis"), (load, "session")):
        plan = CallPlan.of(function, pattern="cart", decorator="cached")
        assert plan.locate(None, (), {name: "bob"}) == (MISSING, None, f"cart?{name}=bob")


def test_a_mutable_default_that_has_changed_is_in_the_key() -> None:
    """The function sees what it has become."""
    allowed = ["alice"]

    async def visible(to: list[str] = allowed) -> Any: ...

    plan = CallPlan.of(visible, pattern="visible", decorator="cached")
    assert plan.quick()[2] == "visible"
    allowed.append("bob")
    assert plan.quick()[2] == "visible?to=%l[alice&bob]"


@pytest.mark.parametrize("glob", ["user:*a*a*a*a*a*b", "user:*-*-*-*-draft", "user:*?a*?a*?a*b"])
def test_no_glob_backtracks(glob: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A key of 440 letters is decided in few steps, where backtracking takes hours."""
    prefix = Prefix.of(glob)
    assert prefix is not None
    steps, plain = 0, prefixes._stands_at

    def counted(text: str, piece: str, at: int) -> bool:
        nonlocal steps
        steps += 1
        return plain(text, piece, at)

    monkeypatch.setattr(prefixes, "_stands_at", counted)
    assert not prefix.matches(f"user:{'a-' * 220}")
    assert steps < 5_000
