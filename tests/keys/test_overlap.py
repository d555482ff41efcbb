"""Patterns of two functions that can make one key: found exactly, and the key is one that both make."""

from __future__ import annotations

import enum
import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from random import Random
from typing import Annotated, Any, Literal
from urllib.parse import unquote
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from pydantic import BaseModel

from fastrdb.keys import CallPlan, hashed

ID = UUID("12345678-1234-5678-1234-567812345678")


class Kind(enum.StrEnum):
    ME = "me"
    X = "x-y"


class Rank(enum.Enum):
    FIRST = 1
    ALL = "all"


class Bit(enum.Flag):
    ONE = 1
    TWO = 2


class Point(BaseModel):
    x: int = 1


TYPES: dict[str, tuple[Any, Sequence[Any]]] = {
    "str": (str, ["", "me", "all", "x", "x-y", "5", "-5", "true", "true:x", "2024-01-02", str(ID), "5.5", "1"]),
    "int": (int, [0, 1, 5, -5, 10**25]),
    "float": (float, [0.0, 5.5, -5.0, float("nan"), 1e20]),
    "Decimal": (Decimal, [Decimal(5), Decimal("5.5"), Decimal("-1.50")]),
    "bool": (bool, [True, False]),
    "UUID": (UUID, [ID]),
    "date": (date, [date(2024, 1, 2)]),
    "datetime": (datetime, [datetime(2024, 1, 2), datetime(2024, 1, 2, 3, 4, 5, 6, UTC)]),  # noqa: DTZ001
    "time": (time, [time(1, 2), time(1, 2, 3, 4), time(1, 2, tzinfo=UTC)]),
    "timedelta": (timedelta, [timedelta(5), timedelta(seconds=-5)]),
    "bytes": (bytes, [b"", b"me"]),
    "int | None": (int | None, [5, None]),
    "UUID | None": (Annotated[UUID | None, "a note"], [ID, None]),
    "int | str": (int | str, [5, "5", "me", "all"]),
    "Literal": (Literal["me", "x-y"], ["me", "x-y"]),
    "Kind": (Kind, [*Kind]),
    "Rank": (Rank, [*Rank]),
    "list": (list[int], [[], [1]]),
    "Any": (Any, ["", "me", 5, -5, None, ID, True, [], "x-y"]),
}
OF_TEXT: dict[Any, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "Decimal": Decimal,
    "bool": lambda text: {"true": True, "false": False}[text],
    "UUID": UUID,
    "date": date.fromisoformat,
    "datetime": datetime.fromisoformat,
    "time": time.fromisoformat,
    "timedelta": lambda text: _timedelta(*re.fullmatch(r"P(-?\d+)DT(\d+\.\d+)S", text).groups()),  # type: ignore[union-attr]
    "bytes": lambda text: bytes.fromhex(text.removeprefix("0x")),
    "int | None": lambda text: None if text == "%none" else int(text),
    "UUID | None": lambda text: None if text == "%none" else UUID(text),
    "int | str": lambda text: int(text) if text.lstrip("-").isdigit() else text,
    "Literal": str,
    "Kind": Kind,
    "Rank": lambda text: {"1": Rank.FIRST, "all": Rank.ALL}[text],
    "list": lambda text: [int(each) for each in re.fullmatch(r"%l\[(.*)]", text)[1].split("&") if each],  # type: ignore[index]
    "Any": lambda text: None if text == "%none" else text,
}


def _timedelta(days: str, seconds: str) -> timedelta:
    return timedelta(int(days), float(seconds))


def plan_of(pattern: str, kinds: Mapping[str, str] = {}, seal: Any = None, **more: Any) -> CallPlan:
    """Return the plan of a function under a pattern, with parameters of these kinds, and more with a default."""

    async def function(**values: Any) -> int:
        return 0

    kind = inspect.Parameter.KEYWORD_ONLY
    parameters = [inspect.Parameter(name, kind, annotation=TYPES[each][0]) for name, each in kinds.items()]
    parameters += [inspect.Parameter(name, kind, default=value) for name, value in more.items()]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return CallPlan.of(function, pattern=pattern, decorator="cached", seal=seal)


def keys_of(plan: CallPlan, kinds: Mapping[str, str]) -> Iterator[str]:
    """Yield the keys of all calls with the samples."""
    given: list[dict[str, Any]] = [{}]
    for name, kind in kinds.items():
        given = [{**values, name: value} for values in given for value in TYPES[kind][1]]
    for values in given:
        yield plan.locate(None, (), values)[2]


def makes(plan: CallPlan, kinds: Mapping[str, str], key: str) -> bool:
    """Return True if the function makes the key: for values that are read back from a part of the key each."""
    assert plan.pattern is not None
    literals = [*(part.literal for part in plan.pattern.parts), plan.pattern.tail]
    fields = plan.pattern.fields

    def split(rest: str, at: int) -> Iterator[list[str]]:
        if not rest.startswith(literals[at]):
            return
        rest = rest[len(literals[at]) :]
        if at == len(fields):
            if not rest:
                yield []
            return
        for end in range(len(rest) + 1):
            for texts in split(rest[end:], at + 1):
                yield [rest[:end], *texts]

    for texts in split(key, 0):
        try:
            values = {name: OF_TEXT[kinds[name]](unquote(text)) for name, text in zip(fields, texts, strict=True)}
        except (ValueError, KeyError, ArithmeticError, TypeError, AttributeError):
            continue
        if plan.locate(None, (), values)[2] == key:
            return True
    return False


CASES: list[tuple[str, dict[str, str], str, dict[str, str], bool]] = [
    ("user:{name}", {"name": "str"}, "user:me", {}, True),
    ("user:{name}", {"name": "Any"}, "user:me", {}, True),
    ("user:{id}", {"id": "int"}, "user:me", {}, False),
    ("user:{id}", {"id": "int"}, "user:5", {}, True),
    ("user:{id}", {"id": "int | None"}, "user:me", {}, False),
    ("user:{kind}", {"kind": "Literal"}, "user:you", {}, False),
    ("user:{kind}", {"kind": "Kind"}, "user:me", {}, True),
    ("user:{rank}", {"rank": "Rank"}, "user:me", {}, False),
    ("user:{name}", {"name": "str"}, "user:me:posts", {}, False),
    ("user:{id}", {"id": "list"}, "user:me", {}, False),
    ("order:{a}:{b}", {"a": "str", "b": "str"}, "order:{a}:all", {"a": "str"}, True),
    ("order:{a}:{b}", {"a": "str", "b": "UUID"}, "order:{a}:all", {"a": "str"}, False),
    ("order:{a}:{b}", {"a": "int", "b": "str"}, "order:{a}:all", {"a": "UUID"}, False),
    ("order:{a}:{b}", {"a": "int | None", "b": "str"}, "order:{a}:all", {"a": "UUID | None"}, True),
    ("n:{a}", {"a": "str"}, "n:{a}-{b}", {"a": "str", "b": "str"}, True),
    ("n:{a}", {"a": "int"}, "n:{a}-{b}", {"a": "int", "b": "int"}, False),
    ("n:{a}", {"a": "date"}, "n:{a}-{b}", {"a": "str", "b": "int"}, False),
    ("n:{a}-{b}", {"a": "str", "b": "str"}, "n:x-y-z", {}, True),
    ("n:{a}-{b}:z", {"a": "str", "b": "str"}, "n:{a}:{b}", {"a": "str", "b": "str"}, True),
    ("n:{a}x", {"a": "str"}, "n:y{a}", {"a": "str"}, True),
    ("n:", {}, "n:{a}", {"a": "str"}, True),
    ("{{n}}:{a}", {"a": "str"}, "{{n}}:b", {}, True),
]


@pytest.mark.parametrize(("one", "ones", "other", "others", "overlap"), CASES)
def test_an_overlap_is_found(one: str, ones: Any, other: str, others: Any, overlap: bool) -> None:
    """In both orders; the key that is named is one that both functions make."""
    first, second = plan_of(one, ones), plan_of(other, others)
    assert (first.shares(second) is not None, second.shares(first) is not None) == (overlap, overlap)
    if (key := first.shares(second)) is not None:
        assert makes(first, ones, key)
        assert makes(second, others, key)


def test_an_overlap_is_found_exactly() -> None:
    """Of 1,500 pairs of patterns, none shares a key that is not found, and each key that is found is made by both."""
    random, overlaps = Random(3), 0
    for _ in range(1_500):
        (one, ones), (other, others) = (_pattern(random) for _ in range(2))
        first, second = plan_of(one, ones), plan_of(other, others)
        shared, key = {*keys_of(first, ones)} & {*keys_of(second, others)}, first.shares(second)
        assert key is not None or not shared, (one, ones, other, others, shared)
        if key is not None:
            overlaps += 1
            if not {"Any", "int | str"} & {*ones.values(), *others.values()}:  # there a str like a date is marked
                made = makes(first, ones, key), makes(second, others, key)
                assert made == (True, True), (one, ones, other, others, key)
    assert overlaps > 100


def key_of(declared: Any, value: Any, pattern: str = "k:{a}", **default: Any) -> str:
    """Return the key of a function with a parameter of this type."""

    async def function(**values: Any) -> int:
        return 0

    parameters = [inspect.Parameter("a", inspect.Parameter.KEYWORD_ONLY, annotation=declared, **default)]
    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return CallPlan.of(function, pattern=pattern, decorator="cached").locate(None, (), {"a": value})[2]


OTHERS: list[tuple[Any, list[Any], list[Any]]] = [
    (list[str], [["me"], [], ("me",), {"me"}], ["me", 5, None, Kind.ME]),
    (dict[str, int], [{"a": 1}], ["me", None]),
    (Point, [Point()], ["me", None, 5]),
    (Literal["a", "b"], ["a", "b"], ["c", 1, None, Kind.ME, [1]]),
    (Literal[1, "a"], [1, "a"], ["1", True, "1-a", 1.0]),
    (Literal["a"] | int, ["a", 5], ["c", None, True]),
    (int | str, [5, "me"], [date(2024, 1, 2), None, True, Kind.ME, [1]]),
    (int | UUID | None, [5, ID, None], ["me", 5.0]),
    (UUID, [ID], [str(ID), None, 5, [ID]]),
    (Rank, [Rank.FIRST, Rank.ALL], [1, "all", None, Kind.ME]),
    (str, ["me", ""], [5, None, Kind.ME, ["me"], Point()]),
]


@pytest.mark.parametrize(("declared", "own", "others"), OTHERS, ids=str)
@pytest.mark.parametrize("pattern", ["k:{a}", "k"])
def test_value_of_another_type_has_a_mark_of_its_pattern(
    declared: Any, own: list[Any], others: list[Any], pattern: str
) -> None:
    """A function of another pattern, or of another type, has other marks; what is declared has none."""
    assert not [value for value in own if "%a" in key_of(declared, value, pattern)]
    assert all(re.search("%a.*~[0-9a-f]{8}$", key_of(declared, value, pattern)) for value in others)
    several = ((declared, pattern), (declared, "n:{a}"), (bytes, pattern))
    marks = [key_of(each, others[0], more)[-8:] for each, more in several]
    assert len({*marks}) == 3


def test_none_that_is_the_default_is_declared() -> None:
    """Whatever the annotation says."""
    assert key_of(int, None, default=None) == key_of(int | None, None) == "k:%none"


MORE_TYPES: list[Any] = [
    *(declared for declared, _ in TYPES.values()),
    *(Literal[1, "a"], Literal["a"] | None, Literal["me"] | int, Bit, Kind | None, Rank | date, Point, Point | None),
    *(list[str], Sequence[int], dict[str, int], tuple[int, str], list[int] | str, Decimal | None, float | UUID),
]
ANYTHING: list[Any] = [
    *(value for _, values in TYPES.values() for value in values),
    *("a", "1", "1-a", "a-1", "a:b", "a.b", "5-5", "-", "1.0", "0x01", "2026", "%", "%none", "none", "5%as", "nil"),
    *(Decimal("5.00"), Decimal("-0"), Decimal("1E+400"), Decimal("NaN"), -0.0, float("inf"), 1.0, 5.0, 10**400),
    *(
        ["a"],
        ["me"],
        [5],
        (1,),
        (),
        {"a": 1},
        {5},
        frozenset([5]),
        [[]],
        Point(),
        Point(x=2),
        Bit.ONE,
        Bit.ONE | Bit.TWO,
    ),
    *(datetime(2024, 1, 2, tzinfo=ZoneInfo("Europe/Berlin")), datetime(2024, 1, 2, fold=1), time(1, fold=1)),  # noqa: DTZ001
    *(datetime(2024, 1, 2, tzinfo=timezone(timedelta(hours=-5))), time(1, tzinfo=timezone(timedelta(hours=2), "x"))),
]


def test_accepted_functions_share_no_key_whatever_they_are_given() -> None:
    """Python enforces no types. A value of another type than declared has no key of another pattern."""
    random, accepted = Random(5), 0
    for _ in range(500):
        plans = [_any_pattern(random) for _ in range(2)]
        if plans[0].shares(plans[1]) is not None:
            continue
        accepted += 1
        keys: list[dict[str, Any]] = [{}, {}]
        for plan, found in zip(plans, keys, strict=True):
            for _ in range(120 if plan.pattern and plan.pattern.fields else 1):
                values = {name: random.choice(ANYTHING) for name in (plan.pattern.names if plan.pattern else ())}
                found[plan.locate(None, (), values)[2]] = values
        shared = {*keys[0]} & {*keys[1]}
        assert not shared, [
            (plan.pattern, [found[key] for key in shared]) for plan, found in zip(plans, keys, strict=True)
        ]
    assert accepted > 250


def _any_pattern(random: Random) -> CallPlan:
    text, parameters = "k", list[inspect.Parameter]()
    for name in "ab"[: random.choice([0, 1, 1, 2])]:
        text += f"{random.choice([':', ':', '-', ':a-', ':1-', '.', ':me'])}{{{name}}}"
        parameters.append(_parameter(name, random.choice(MORE_TYPES)))
    text += random.choice(["", "", "", "-a", ":x", "-1", ".5"]) if parameters else random.choice([":me", ":5", ":1-a"])

    async def function(**values: Any) -> int:
        return 0

    function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    return CallPlan.of(function, pattern=text, decorator="cached")


def _parameter(name: str, declared: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=declared)


def _pattern(random: Random) -> tuple[str, dict[str, str]]:
    """Return a pattern that often overlaps with others, and the kinds of its parameters."""
    text, kinds = "k", dict[str, str]()
    for name in "ab"[: random.randrange(3)]:
        kinds[name] = random.choice([random.choice([*TYPES]), "str"])
        text += f"{random.choice(':-:')}{{{name}}}"
        if random.random() < 0.3:
            text += random.choice(["x", "-", ":all", "-y", ".5"])
    if not kinds or random.random() < 0.3:
        text += random.choice([":me", ":5", "-x-y", ":all", ":true", f":{ID}", ":", ":2024-01-02", ":me:all"])
    return text, kinds


def test_arguments_behind_the_pattern_tell_keys_apart() -> None:
    """A key with `?page=` is no key of a function without a page; a default may be left out."""
    name = plan_of("user:{name}", {"name": "str"})
    assert name.shares(plan_of("user:me", {"page": "int"})) is None
    assert name.shares(plan_of("user:me", page=1)) == "user:me"
    pages = plan_of("user:{name}", {"name": "str", "page": "int"})
    assert pages.shares(plan_of("user:me", {"page": "UUID"})) is None
    assert pages.shares(plan_of("user:me", {"page": "int"})) == "user:me?page=0"
    assert pages.shares(plan_of("user:me", page=1)) == "user:me?page=0"


def test_versions_tell_keys_apart() -> None:
    """The version stands behind each key."""
    one, other = plan_of("user:{name}", {"name": "str"}), plan_of("user:me")
    one.variant.settle("m", "f", "2", shared=False)
    assert one.shares(other) is None


def test_hashed_values_meet_no_text_of_a_pattern() -> None:
    """The hash of a value has a mark that no pattern has; two hashes may be of one value."""
    seal = hashed(b"secret", "test")
    name = plan_of("user:{name}", {"name": "str"}, seal)
    assert name.shares(plan_of("user:me", {}, seal)) is None
    assert plan_of("n:{a}-{b}", {"a": "str", "b": "str"}, seal).shares(plan_of("n:{a}", {"a": "str"}, seal)) is None
    several = plan_of("n:{a}:{b}", {"a": "str", "b": "str"}, seal), plan_of("n:{a}:{b}", {"b": "str", "a": "int"}, seal)
    assert several[0].shares(several[1]) is not None
