"""Each type that pydantic takes: a value comes back the same in all that `pickle` sees, or is not stored.

The judge is apart from `fastrdb.values.equality`: two values are the same if their reductions for `pickle` are.
"""

from __future__ import annotations

import collections
import dataclasses
import decimal
import enum
import fractions
import functools
import ipaddress
import pathlib
import re
import typing
import uuid
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, timezone, tzinfo
from typing import Annotated, Any, Generic, Literal, NamedTuple, NotRequired, TypeVar
from zoneinfo import ZoneInfo

import pydantic
import pydantic_core
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, RootModel, TypeAdapter, computed_field
from pydantic.dataclasses import dataclass as pydantic_dataclass
from typing_extensions import TypedDict

from fastrdb import SchemaError
from fastrdb.values import Codec

T = TypeVar("T")
BERLIN = ZoneInfo("Europe/Berlin")
_ATOMS = (type(None), bool, int, str, bytes, type)


def reduced(value: Any) -> Any:
    """Return all of a value that `pickle` would take: classes, items, and hidden state."""
    kind = type(value)
    if kind in _ATOMS or isinstance(value, Callable):  # type: ignore[arg-type]
        return kind, value
    if isinstance(value, float):
        return kind, repr(value)
    if isinstance(value, uuid.UUID):
        return uuid.UUID, value.bytes
    if isinstance(value, enum.Enum):
        return kind, value.name
    if isinstance(value, tzinfo):
        offset = value.utcoffset(None)
        return ("zone", offset, str(value.tzname(None)).removeprefix("UTC")) if offset is not None else repr(value)
    if isinstance(value, datetime | time):
        return kind, value.replace(tzinfo=None).isoformat(), value.fold, reduced(value.tzinfo)
    if kind in (list, tuple):
        return kind, [*map(reduced, value)]
    if kind in (set, frozenset):
        return kind, sorted(repr(reduced(each)) for each in value)
    if kind is dict:
        return kind, [(reduced(key), reduced(each)) for key, each in value.items()]
    return kind, [reduced(part) for part in reduction(value)]


def reduction(value: Any) -> list[Any]:
    """Return the parts of a reduction, less what a cached_property has remembered, and which fields were set."""
    if isinstance(value, BaseModel):
        return [without_memos(value), value.__pydantic_extra__, value.__pydantic_private__]
    try:
        parts = value.__reduce_ex__(4)
    except TypeError:
        return [repr(value)]
    if isinstance(parts, str):
        return [parts]
    _, args, state, *items = [*parts, None, None, None][:5]
    return [args, without_memos(value) if isinstance(state, dict) else state, *(list(each or ()) for each in items)]


def without_memos(value: Any) -> dict[str, Any]:
    """Return the attributes of an object that no cached_property has put there."""
    cls = type(value)
    memos = {name for name in vars(value) if isinstance(getattr(cls, name, None), functools.cached_property)}
    return {name: each for name, each in vars(value).items() if name not in memos}


def stored(annotation: Any, value: Any) -> bool:
    """Return whether a value is stored; fail if what comes back then is not the same, or the value was changed."""
    codec, before = Codec(annotation, owner="load"), reduced(value)
    try:
        raw = codec.encode(value)
    except ValueError:
        return False
    reason = codec.verify(raw, value)
    assert reduced(value) == before
    if reason is None:
        assert reduced(codec.decode(raw)) == before, raw
    return reason is None


# --- kinds of values, each with its strategy


class Plain(enum.Enum):
    """Members with values of several types, equal ones among them."""

    ONE = 1
    TEXT = "1"
    REAL = 1.5
    NOTHING = None
    PAIR = (1, 2)


class Text(enum.StrEnum):
    """Members that are text."""

    A = "a"


class Number(enum.IntEnum):
    """Members that are numbers."""

    ONE = 1


class Flags(enum.Flag):
    """Members that combine."""

    A = 1
    B = 2
    C = 4


class IntFlags(enum.IntFlag):
    """Members that combine, and are numbers."""

    A = 1
    B = 2


class Pair(NamedTuple):
    """A tuple with names."""

    a: int
    b: str = "x"


class Fields(TypedDict):
    """A dict with declared keys."""

    a: int
    b: NotRequired[date]


class Open(TypedDict):
    """A dict with declared keys and others."""

    __pydantic_config__ = ConfigDict(extra="allow")  # type: ignore[misc]
    a: int


@dataclasses.dataclass
class Data:
    """A dataclass with a field that is no argument of equality, and what it remembers."""

    a: int
    b: list[str] = dataclasses.field(default_factory=list, compare=False)

    @functools.cached_property
    def memo(self) -> object:
        """Return another object for each instance."""
        return object()


@dataclasses.dataclass
class SubData(Data):
    """A dataclass with a base."""

    c: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class Slots:
    """A dataclass without `__dict__`."""

    a: int


@dataclasses.dataclass
class Derived:
    """A dataclass with an attribute that is no field."""

    a: int

    def __post_init__(self) -> None:
        self.double = self.a * 2


@pydantic_dataclass(config=ConfigDict(extra="allow"))
class OpenData:
    """A dataclass of pydantic's that takes more than its fields."""

    a: int


class Model(BaseModel):
    """A model with a default, an alias, a private attribute and computed fields."""

    a: int = 1
    name: str | None = Field(default=None, alias="Name")
    _secret: int = PrivateAttr(0)

    @computed_field  # type: ignore[prop-decorator]
    @property
    def double(self) -> int:
        """Return what is computed each time."""
        return self.a * 2

    @functools.cached_property
    def memo(self) -> object:
        """Return another object for each instance."""
        return object()


class SubModel(Model):
    """A model with a base."""

    b: int = 2


class OpenModel(BaseModel):
    """A model that takes more than its fields."""

    model_config = ConfigDict(extra="allow")
    a: int = 1


class Frozen(BaseModel):
    """A model of which callers may share an instance."""

    model_config = ConfigDict(frozen=True)
    a: tuple[date, ...]


class Touched(BaseModel):
    """A model with a constructor of its own, which leaves something in the instance."""

    a: int

    def __init__(self, **values: Any) -> None:
        super().__init__(**values)
        vars(self)["touched"] = True


class Tree(BaseModel):
    """A model that holds itself."""

    value: int
    kids: list[Tree] = []


class Box(BaseModel, Generic[T]):
    """A generic model."""

    item: T


class Root(RootModel[dict[str, int]]):
    """A model of one value."""


class Cat(BaseModel):
    """One of two pets."""

    kind: Literal["cat"] = "cat"


class Dog(BaseModel):
    """The other of two pets, with the same fields."""

    kind: Literal["dog"] = "dog"


class Hidden:
    """An object with state that its `==` does not compare."""

    def __init__(self, shown: int, hidden: int = 0) -> None:
        self.shown, self.hidden = shown, hidden

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Hidden) and self.shown == other.shown

    __hash__ = None  # type: ignore[assignment]

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Return the schema of a number."""
        schema = pydantic.GetPydanticSchema(lambda _, handle: handle(int))
        number = handler.generate_schema(Annotated[int, schema])
        show = pydantic_core.core_schema.plain_serializer_function_ser_schema(lambda value: value.shown)
        return pydantic_core.core_schema.no_info_after_validator_function(cls, number, serialization=show)


def with_state(value: Any, **state: Any) -> Any:
    """Return an object with more attributes than it was made with."""
    vars(value).update(state)
    return value


def with_private(value: Model, secret: int) -> Model:
    """Return a model with another private attribute."""
    value._secret = secret
    return value


def remembering(value: Any) -> Any:
    """Return an object of which a cached_property was read."""
    assert value.memo is value.memo
    return value


TEXT = st.text(max_size=4)
NUMBERS = st.integers() | st.booleans() | st.sampled_from([*Number, 2**64, -(10**30)])
REALS = st.floats() | st.integers(-3, 3) | st.sampled_from([-0.0, 1e308, 5e-324])
ZONES: st.SearchStrategy[Any] = (
    st.sampled_from([None, UTC, ZoneInfo("UTC"), BERLIN, ZoneInfo("Etc/GMT+5"), timezone(timedelta(hours=1), "CET")])
    | st.integers(-1439, 1439).map(lambda minutes: timezone(timedelta(minutes=minutes)))
    | st.integers(-86399, 86399).map(lambda seconds: timezone(timedelta(seconds=seconds)))
)
DATES, SPANS = st.dates(), st.timedeltas()
TIMES = st.times(timezones=ZONES)
MOMENTS = st.datetimes(timezones=ZONES)
DECIMALS = [decimal.Decimal(text) for text in ("1.0", "1.00", "-0", "0E+5", "1E-40", "NaN")]
EXACT = st.decimals(allow_nan=False) | st.sampled_from(DECIMALS)
URLS = [
    "http://example.com", "HTTPS://EX.com:443/a?b=c#d", "http://пример.рф/ü%20x", "ftp://a/b", "file:///a/b", "ws://a",
    "postgresql://u:p@h1:1,h2:2/db", "redis://u:p@h:1/0", "mongodb://u:p@a,b/c", "amqp://a", "mysql://u@a/b", "nats://a",
]  # fmt: skip


def urls(kind: Any) -> st.SearchStrategy[Any]:
    """Return urls of one of pydantic's classes."""
    made, adapter = [], TypeAdapter(kind)
    for text in URLS:
        try:
            made.append(adapter.validate_python(text))
        except ValueError:
            continue
    return st.sampled_from(made)


SCALARS: dict[Any, st.SearchStrategy[Any]] = {
    int: NUMBERS,
    bool: st.booleans() | st.sampled_from([0, 1]),
    float: REALS,
    complex: st.complex_numbers() | st.builds(complex, REALS, REALS),
    str: TEXT | st.sampled_from([Text.A, "\ud800", "e\u0301", "\u00e9", "\x00"]),
    bytes: st.binary(max_size=4) | st.binary(max_size=2).map(bytearray),
    date: DATES | MOMENTS,
    time: TIMES,
    datetime: MOMENTS | DATES,
    timedelta: SPANS,
    decimal.Decimal: EXACT,
    fractions.Fraction: st.fractions(),
    uuid.UUID: st.uuids(allow_nil=True),
    pydantic.UUID4: st.uuids(version=4),
    pathlib.Path: st.sampled_from([pathlib.Path("/a/b"), pathlib.Path("a/./b"), pathlib.Path(), pathlib.PurePath("a")]),
    pathlib.PurePath: st.sampled_from([pathlib.PurePath("/a"), pathlib.PureWindowsPath("c:/a"), pathlib.Path("/a")]),
    ipaddress.IPv4Address: st.ip_addresses(v=4),
    ipaddress.IPv6Address: st.ip_addresses(v=6) | st.just(ipaddress.IPv6Address("fe80::1%eth0")),
    ipaddress.IPv4Network: st.just(ipaddress.IPv4Network("1.2.3.0/24")),
    ipaddress.IPv6Interface: st.just(ipaddress.IPv6Interface("::1/64")),
    pydantic.IPvAnyAddress: st.ip_addresses(),
    re.Pattern: st.sampled_from([re.compile("a"), re.compile("a", re.IGNORECASE), re.compile(b"a")]),
    ZoneInfo: st.just(BERLIN),
    pydantic.ByteSize: st.sampled_from([5, pydantic.ByteSize(5)]),
    pydantic.Base64Bytes: st.binary(max_size=4),
    pydantic.Base64UrlStr: TEXT,
    pydantic.AwareDatetime: MOMENTS,
    pydantic.NaiveDatetime: MOMENTS,
    pydantic.JsonValue: st.recursive(
        TEXT | REALS | st.none(), lambda each: st.lists(each) | st.dictionaries(TEXT, each)
    ),
    **{kind: urls(kind) for kind in (pydantic.AnyUrl, pydantic.HttpUrl, pydantic.FileUrl, pydantic.RedisDsn)},
    **{
        kind: urls(kind)
        for kind in (pydantic.PostgresDsn, pydantic.MongoDsn, pydantic.AmqpDsn, pydantic.AnyWebsocketUrl)
    },
    Plain: st.sampled_from(Plain),
    Text: st.sampled_from([Text.A, "a"]),
    Number: st.sampled_from([Number.ONE, 1]),
    Flags: st.integers(0, 7).map(Flags),
    IntFlags: st.integers(0, 3).map(IntFlags),
    Literal["a", 1, b"a", Text.A]: st.sampled_from(["a", 1, True, b"a", Text.A]),
    Annotated[str, pydantic.StringConstraints(to_lower=True, strip_whitespace=True)]: TEXT | st.just(" A"),
}
"""The declared type, and values that functions may give for it: of that type, and of others that pass for it."""

HOLDERS: dict[Any, st.SearchStrategy[Any]] = {
    Annotated[int, pydantic.PlainSerializer(str)]: NUMBERS,
    Annotated[list[int], pydantic.AfterValidator(tuple)]: st.sampled_from([(1,), [1]]),
    Pair: st.builds(Pair, NUMBERS) | st.just((1, "x")),
    tuple[int, str]: st.builds(Pair, NUMBERS) | st.tuples(NUMBERS, TEXT),
    Fields: st.sampled_from(
        [{"a": 1}, {"a": 1, "b": date(2020, 1, 1)}, {"a": 1, "c": 2}, collections.OrderedDict(a=1)]
    ),
    Open: st.builds(lambda more: {"a": 1, **more}, st.dictionaries(TEXT, TEXT | DATES | REALS)),
    Data: st.sampled_from([Data(1), Data(1, ["a"]), SubData(1), with_state(Data(1), more=1), remembering(Data(1))]),
    SubData | Data: st.sampled_from([Data(1), SubData(1)]),
    Slots: st.builds(Slots, NUMBERS),
    Derived: st.sampled_from([Derived(1), with_state(Derived(1), double=3), with_state(Derived(1), more=3)]),
    OpenData: st.sampled_from([OpenData(a=1), OpenData(a=1, b=2)]),  # type: ignore[call-arg]
    Model: st.builds(Model, a=NUMBERS, Name=st.none() | TEXT)
    | st.just(remembering(Model()))
    | st.sampled_from(
        [SubModel(), Model.model_construct(a="x"), with_private(Model(), 1), with_state(Model(), more=1)]
    ),
    OpenModel: st.builds(OpenModel, b=TEXT | DATES | REALS | st.lists(NUMBERS), c=st.none()),
    Frozen: st.builds(Frozen, a=st.lists(DATES).map(tuple)),
    Touched: st.just(Touched(a=1)),
    Tree: st.recursive(st.builds(Tree, value=NUMBERS), lambda kid: st.builds(Tree, value=NUMBERS, kids=st.lists(kid))),
    Root: st.builds(Root, st.dictionaries(TEXT, NUMBERS)),
    Box[int]: st.builds(Box[int], item=NUMBERS) | st.just(Box(item=1)),
    Box[datetime]: st.builds(Box[datetime], item=MOMENTS),
    Annotated[Cat | Dog, Field(discriminator="kind")]: st.sampled_from([Cat(), Dog()]),
    Box[int] | Box[float]: st.sampled_from([Box[int](item=1), Box[float](item=1)]),
    Hidden: st.sampled_from([Hidden(1), Hidden(1, hidden=5)]),
    collections.deque[int]: st.lists(NUMBERS).flatmap(
        lambda items: st.sampled_from([collections.deque(items), collections.deque(items, 9)])
    ),
    collections.Counter[str]: st.dictionaries(TEXT, NUMBERS).map(collections.Counter),
    collections.OrderedDict[str, int]: st.dictionaries(TEXT, NUMBERS).map(collections.OrderedDict),
    collections.defaultdict[str, list[int]]: st.sampled_from([list, None, lambda: [1]]).map(
        lambda factory: collections.defaultdict(factory, a=[1])
    ),
    Mapping[str, int]: st.sampled_from([{"b": 1, "a": 2}, collections.Counter("a"), collections.ChainMap({"a": 1})]),
    Sequence[int]: st.sampled_from([[1], (1,), range(3), collections.deque([1])]),
    typing.AbstractSet[int]: st.sampled_from([{1}, frozenset({1})]),
}


NEVER = [Annotated[int, pydantic.PlainSerializer(str)], Touched]
"""Types of which no value comes back the same."""


@pytest.mark.parametrize("annotation", [*SCALARS, *HOLDERS], ids=repr)
def test_a_value_of_each_type_comes_back_the_same_or_is_not_stored(annotation: Any) -> None:
    """Values of the declared type, and those that pass for it; for each type there is one that is stored."""
    found = set[bool]()

    @given({**SCALARS, **HOLDERS}[annotation])
    @settings(max_examples=25, database=None)
    def check(value: Any) -> None:
        found.add(stored(annotation, value))

    check()
    assert True in found or annotation in NEVER


def of(generic: Any, first: Any, *more: Any) -> Any:
    """Return a generic type with its parameters."""
    return generic[(first, *more)] if more else generic[first]


def holders(part: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Return types that hold another type, each with its values."""

    def one(pair: tuple[Any, Any]) -> st.SearchStrategy[Any]:
        kind, values = pair
        box = of(Box, kind)
        made: list[tuple[Any, Any]] = [
            (of(list, kind), st.lists(values, max_size=2)),
            (of(tuple, kind, ...), st.lists(values, max_size=2).map(tuple)),
            (of(typing.Union, kind, None), st.none() | values),
            (of(dict, str, kind), st.dictionaries(TEXT, values, max_size=2)),
            (box, values.map(lambda value: box.model_construct(item=value))),
            (of(typing.Union, kind, str), values | TEXT),
            (of(typing.Union, str, kind), values | TEXT),
        ]
        return st.sampled_from(made)

    return part.flatmap(one)


def keyed(pair: tuple[Any, Any]) -> tuple[Any, Any]:
    """Return a dict with keys of a type, and its values."""
    kind, values = pair
    return of(dict, kind, int), st.dictionaries(values, st.just(1), max_size=2)


LEAVES = st.sampled_from([*SCALARS.items()])
KEYS = LEAVES.filter(lambda pair: pair[0] not in (bytes, pydantic.JsonValue)).map(keyed)
TYPES = st.recursive(LEAVES | KEYS, holders, max_leaves=2)


@given(st.data())
@settings(max_examples=250)
def test_a_value_of_a_type_made_of_others_comes_back_the_same_or_is_not_stored(data: st.DataObject) -> None:
    """Lists, dicts, unions, tuples and models of one another; what cannot be read back may be refused at decoration."""
    annotation, values = data.draw(TYPES)
    value = data.draw(values)
    try:
        stored(annotation, value)
    except SchemaError:
        return
