"""What callers get of one kept value, or of one load: none sees what another one has changed."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, Any

import pydantic.dataclasses
import pytest
from pydantic import AfterValidator, BaseModel, ConfigDict, model_validator
from redis.asyncio import Redis

from fastrdb import Cache
from fastrdb.testing import GatedClient
from tests.near.test_functions import warm


class Point(BaseModel):
    """A frozen model."""

    model_config = ConfigDict(frozen=True)
    x: int = 1


class Remembering(Point):
    """A frozen model with a list that its validator leaves in it."""

    @model_validator(mode="after")
    def _remember(self) -> Remembering:
        vars(self)["memo"] = []
        return self


@dataclass(frozen=True)
class Flat:
    """A frozen dataclass."""

    x: int = 1


@dataclass(frozen=True)
class Indexed(Flat):
    """A frozen dataclass with an index."""

    def __post_init__(self) -> None:
        """Make the index."""
        object.__setattr__(self, "memo", [])


@dataclass(frozen=True)
class Listing:
    """A frozen dataclass that makes its own list of what is declared as a tuple."""

    memo: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Make the list."""
        object.__setattr__(self, "memo", list(self.memo))


@pydantic.dataclasses.dataclass(frozen=True)
class Strict:
    """A frozen dataclass of pydantic's with an index."""

    x: int = 1

    def __post_init__(self) -> None:
        """Make the index."""
        object.__setattr__(self, "memo", [])


class Room:
    """A base with a slot."""

    __slots__ = ("memo",)


@dataclass(frozen=True, slots=True)
class Slotted(Room):
    """A frozen dataclass with an index in a slot."""

    x: int = 1

    def __post_init__(self) -> None:
        """Make the index."""
        object.__setattr__(self, "memo", [])


@dataclass(frozen=True, slots=True)
class Frozen:
    """A frozen dataclass without a dict."""

    x: int = 1


class Loose(Point, frozen=False):
    """A model that is not frozen."""

    memo: list[str] = []


def append(value: Any) -> None:
    """Change what is in an attribute."""
    value.memo.append("b")


def add(value: Any) -> None:
    """Add an attribute, as a class that remembers what it has computed does."""
    object.__setattr__(value, "memo", ["b"])


def set_field(value: Any) -> None:
    """Set a field of a frozen object."""
    object.__setattr__(value, "x", 9)


def loosened(value: Point) -> Point:
    """Return another object than was validated."""
    return Loose()


CASES: list[tuple[Any, Callable[[], Any], Callable[[Any], None]]] = [
    (Remembering, Remembering, append),
    (Indexed, Indexed, append),
    (Listing, Listing, append),
    (Strict, Strict, append),
    (Slotted, Slotted, append),
    (Indexed | None, Indexed, append),
    (tuple[Slotted, ...], lambda: (Slotted(),), lambda value: append(value[0])),
    (Annotated[Point, AfterValidator(loosened)], Loose, append),
    (Flat, Flat, add),
    (tuple[Flat, ...], lambda: (Flat(),), lambda value: add(value[0])),
    (Point, Point, add),
    (Point, Point, set_field),
    (Flat, Flat, set_field),
]


NAMES = [
    *("model that remembers", "dataclass with an index", "list for a tuple", "pydantic dataclass with an index"),
    *("index in a slot", "optional", "inside", "another object", "attribute", "attribute inside", "of a model"),
    *("field of a model", "field"),
]


def state(value: Any) -> Any:
    """Return what an object shows of itself, and an attribute that is no field."""
    first = value[0] if isinstance(value, tuple) else value
    return repr(value), repr(getattr(first, "memo", None))


def decorated(cache: Cache, kind: Any, make: Callable[[], Any]) -> Any:
    """Return a cached function of a type."""

    async def load(redis: Redis, x: int) -> Any:
        return make()

    load.__annotations__["return"] = kind
    return cache.cached("sharing:{x}")(load)


@pytest.mark.parametrize(("kind", "make", "change"), CASES, ids=NAMES)
async def test_a_kept_value_is_as_it_was_loaded(
    observed: None, cache: Cache, gated: GatedClient, kind: Any, make: Callable[[], Any], change: Callable[[Any], None]
) -> None:
    """Whatever the callers of a near function do to their answers, also to the one that is kept."""
    get = decorated(cache, kind, make)

    async def changed() -> None:
        change(await get(gated, 1))

    await warm(cache.runtime.store(gated), gated, "sharing:1", changed)
    await changed()
    assert state(await get(gated, 1)) == state(make())
    assert get.stats.near > 0


@pytest.mark.parametrize(("kind", "make", "change"), CASES, ids=NAMES)
async def test_followers_of_a_load_get_what_was_loaded(
    client: Redis, gated: GatedClient, kind: Any, make: Callable[[], Any], change: Callable[[Any], None]
) -> None:
    """Whatever the others do to theirs, and the caller that has loaded."""
    get = decorated(Cache(timeout=5), kind, make)
    gate = gated.gates.before("fill")
    first = asyncio.create_task(get(gated, 1))
    await gate.reached()
    one, two = await asyncio.gather(get(client, 1), get(client, 1))
    gate.open()
    change(await first)
    change(one)
    assert state(two) == state(make())
    assert get.stats.joins == 2


@pytest.mark.parametrize("kind", [Frozen, tuple[Frozen, ...]])
async def test_what_cannot_hold_more_is_kept_as_it_is(
    observed: None, cache: Cache, gated: GatedClient, kind: Any
) -> None:
    """All callers get the very object."""
    get = decorated(cache, kind, lambda: Frozen() if kind is Frozen else (Frozen(),))
    await warm(cache.runtime.store(gated), gated, "sharing:1", lambda: get(gated, 1))
    assert await get(gated, 1) is await get(gated, 1)
