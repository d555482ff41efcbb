"""Keys of classes that inherit a cached method are apart; keys of two versions are apart; invalidation reaches all."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from fastrdb import Cache, OptionError

# --- classes


class Shelf:
    """A base class that knows its own name."""

    name = "shelf"


def shelves(cache: Cache, pattern: str = "{number}:book", **options: Any) -> Any:
    """Return a base class with a cached method, and two classes that inherit the method."""

    class Base(Shelf):
        @cache.cached(pattern, **options)  # type: ignore[untyped-decorator]
        async def get(self, number: int) -> str:
            return f"{self.name} {number}"

        @classmethod
        @cache.cached(f"class:{pattern.replace('self', 'cls')}", **options)  # type: ignore[untyped-decorator]
        async def of(cls, number: int) -> str:
            return f"{cls.name} {number}"

        @cache.cached_many(f"many:{pattern.replace('number', 'numbers')}", **options)  # type: ignore[untyped-decorator]
        async def several(self, numbers: list[int]) -> dict[int, str]:
            return {number: f"{self.name} {number}" for number in numbers}

    class First(Base):
        name = "first"

    class Second(Base):
        name = "second"

    return Base, First, Second


async def test_classes_that_inherit_a_method_have_keys_of_their_own(client: Redis) -> None:
    """Each gets its own answer; the class that defines the method has the key of the pattern."""
    base, first, second = shelves(Cache(client))
    for cls in (base, first, second):
        for _ in range(2):
            assert await cls().get(1) == await cls.of(1) == f"{cls.name} 1"
            assert await cls().several([1]) == {1: f"{cls.name} 1"}
            assert await base.get(cls(), 1) == f"{cls.name} 1"
    assert (base().get.key(1), base.of.key(1), base().several.key(1)) == ("1:book", "class:1:book", "many:1:book")
    assert first().get.key(1) == f"1:book?%class={first.__module__}.{first.__qualname__}"
    assert len(await client.keys("*1:book*")) == 9


@pytest.mark.parametrize(
    ("pattern", "options"), [("{self.name}:{number}", {}), ("{number}:shared", {"shared": True})], ids=str
)
async def test_pattern_that_names_the_instance_is_exact(client: Redis, pattern: str, options: dict[str, Any]) -> None:
    """There the pattern itself says what makes a difference; with `shared=True` nothing does."""
    base, first, _ = shelves(Cache(client), pattern, **options)
    assert await base().get(1) == "shelf 1"
    assert await first().get(1) == ("shelf 1" if options else "first 1")
    assert "%class" not in first().get.key(1)


async def test_class_that_is_made_anew_by_a_decorator_is_the_same(client: Redis) -> None:
    """`dataclass(slots=True)` returns another class than the one with the method."""
    cache = Cache(client)

    @dataclasses.dataclass(slots=True)
    class Repo:
        size: int = 1

        @cache.cached("slots:{number}")
        async def get(self, number: int) -> int:
            return number

    assert Repo().get.key(1) == "slots:1"
    assert await Repo().get(1) == 1


async def test_function_that_is_put_into_a_class_is_its_method(client: Redis) -> None:
    """The first class that has the function in its body has the keys of the pattern."""
    cache = Cache(client)

    async def get(self: Any, number: int) -> str:
        return f"{type(self).__name__} {number}"

    class Repo:
        read = cache.cached("put:{number}")(get)

    class Other(Repo):
        pass

    assert Repo().read.key(1) == "put:1"
    assert [await Repo().read(1), await Other().read(1)] == ["Repo 1", "Other 1"]


# --- versions


def versioned(cache: Cache, version: Any, **options: Any) -> Any:
    """Return a function with that version."""

    @cache.cached("thing:{number}", version=version, **options)  # type: ignore[untyped-decorator]
    async def load(number: int, kind: str = "") -> str:
        return f"{version} {number}"

    return load


async def test_versions_run_side_by_side(client: Redis) -> None:
    """Old and new code do not read each other's entries, and none is evicted."""
    old, new = versioned(Cache(client), 1), versioned(Cache(client), "2 b")
    for _ in range(2):
        assert [await old(1), await new(1)] == ["1 1", "2 b 1"]
    assert (old.key(1), new.key(1, kind="x")) == ("thing:1?%v=1", "thing:1?kind=x&%v=2%20b")
    assert (old.stats.hits, new.stats.hits) == (1, 1)


@pytest.mark.parametrize("way", ["function", "prefix", "whole prefix", "keys", "by hand", "key by hand"])
async def test_invalidation_reaches_all_versions(client: Redis, way: str) -> None:
    """A writer of either version deletes the entries of both, and of the time before there were versions."""
    cache = Cache(client)
    functions = [versioned(Cache(client), version) for version in (None, 1, 2)]
    for function in functions:
        await function(1)
        await function(1, kind="x")
    kinds: dict[str, Any] = {
        "prefix": {"prefix": "thing:*"},
        "whole prefix": {"prefix": "thing:{number}"},
        "keys": {"keys": ["thing:1"]},
    }
    if way in kinds:

        @cache.invalidates(**kinds[way])
        async def write(number: int) -> None:
            return None

        await write(1)
    elif way == "function":
        assert await functions[2].invalidate(1) == 3
    else:
        await (cache.invalidate("thing:*") if way == "by hand" else cache.invalidate(keys=["thing:1"]))
    left = await client.keys("thing:*")
    assert len(left) == (0 if "prefix" in way or way == "by hand" else 3)
    assert set(left) == set(await client.keys("thing:*kind=x*"))


async def test_version_of_the_schema_changes_with_a_field(client: Redis) -> None:
    """`"auto"` is the same for the same fields, whatever the name of the class, and another for another field."""

    class First(BaseModel):
        id: int

    class Second(BaseModel):
        id: int

    class Third(BaseModel):
        id: int
        name: str = ""

    def key(kind: Any) -> str:
        async def load(number: int) -> Any:
            return kind(id=number)

        load.__annotations__["return"] = kind
        made: str = Cache(client).cached("thing:{number}", version="auto")(load).key(1)
        return made

    assert key(First) == key(Second) != key(Third)
    assert len(key(First).partition("?%v=")[2]) == 8


@pytest.mark.parametrize("version", [True, "", 1.5, b"1"], ids=repr)
def test_version_must_be_a_text_or_a_number(version: Any) -> None:
    """A flag, an empty text and a fraction are mistakes."""
    with pytest.raises(OptionError, match=r'load: version=.* must be a text, a whole number, or "auto"'):
        versioned(Cache(), version)
