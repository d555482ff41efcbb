"""Cached methods of a generic class: each subclass says what the type variables of the result stand for."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from fastrdb import Cache, OptionError, SchemaError

Model = TypeVar("Model")
Out = TypeVar("Out")
T = TypeVar("T")


class Author(BaseModel):
    """A value of one subclass."""

    id: int


class Book(BaseModel):
    """A value of another subclass."""

    id: int
    title: str = "a"


class Page(BaseModel, Generic[T]):
    """A generic model around what a subclass returns."""

    rows: list[T]


def repositories(cache: Cache) -> Any:
    """Return a generic class with a cached method of each kind, and subclasses of it, through several levels."""

    class Repo(Generic[Model, Out]):
        out: Any

        @cache.cached("one:{number}", version="auto")
        async def get(self, number: int) -> Out:
            """Return one."""
            made: Out = self.out(id=number)
            return made

        @cache.cached("maybe:{number}")
        async def maybe(self, number: int) -> Out | None:
            return None if number < 0 else await self.get(number)

        @cache.cached_list("list:{number}")
        async def several(self, number: int) -> list[Out]:
            return [self.out(id=number)]

        @cache.cached_many("many:{numbers}")
        async def many(self, numbers: list[int]) -> dict[int, Out]:
            return {number: self.out(id=number) for number in numbers}

        @cache.cached("page:{number}")
        async def page(self, number: int) -> Page[Out]:
            return Page[self.out](rows=[self.out(id=number)])  # type: ignore[name-defined]

        @classmethod
        @cache.cached("inner:{number}")
        async def inner(cls, number: int) -> Out:
            made: Out = cls.out(id=number)
            return made

        @cache.cached("outer:{number}")
        @classmethod
        async def outer(cls, number: int) -> Out:
            made: Out = cls.out(id=number)
            return made

    class Middle(Repo[T, Book]):
        pass

    class Authors(Repo[Any, "Author"]):
        out = Author

    class Books(Middle[int]):
        out = Book

    class Novels(Books):
        pass

    return Repo, Authors, Books, Novels


async def test_each_subclass_gets_values_of_its_type(client: Redis) -> None:
    """On a miss as on a hit, with keys apart, whichever way the method is found."""
    repo, *subclasses = repositories(Cache(client))
    page: Any = Page
    for cls in subclasses:
        own, one = cls(), cls.out(id=1)
        for _ in range(2):
            assert [await own.get(1), await repo.get(own, 1), await cls.get(own, 1)] == [one, one, one]
            assert [await own.maybe(1), await own.maybe(-1)] == [one, None]
            assert [await own.several(1), await own.many([1, 2])] == [[one], {1: one, 2: cls.out(id=2)}]
            assert [await own.page(1), await cls.inner(1), await cls.outer(1)] == [page[cls.out](rows=[one]), one, one]
        assert own.get.stats.loads == 1
        assert own.get.stats.hits == 6
        assert f"?%class={cls.__module__}." in own.get.key(1)
    keys = {cls().get.key(1) for cls in subclasses}
    assert len(keys) == len(subclasses)
    assert subclasses[0]().get.key(1).partition("%v=")[2] != subclasses[1]().get.key(1).partition("%v=")[2]


async def test_invalidation_reaches_the_entries_of_all_subclasses(client: Redis) -> None:
    """A prefix, and a method's own `invalidate`."""
    cache = Cache(client)
    _, authors, books, _ = repositories(cache)
    await authors().get(1)
    await books().get(1)
    assert await cache.invalidate("one:1*") == 2
    await authors().get(1)
    assert await authors().get.invalidate(1) == 1


def test_registry_names_the_method_and_each_subclass_in_use() -> None:
    """The method is there from the beginning, so that a prefix which reaches its keys is no mistake."""
    cache = Cache()

    @cache.invalidates("one:*")
    async def write() -> None:
        return None

    repo, authors, _, _ = repositories(cache)
    assert authors().get.query.plan.function == f"{authors.__qualname__}.get"
    names = [info.function for info in cache.functions() if info.pattern == "one:{number}"]
    assert names == [f"{repo.__qualname__}.get", f"{authors.__qualname__}.get"]
    assert not [each for each in cache.check() if "one:" in each.what]


def test_method_keeps_its_name_and_docstring() -> None:
    """On the generic class, and on an instance of a subclass."""
    repo, authors, _, _ = repositories(Cache())
    assert (repo.get.__name__, repo.get.__doc__, authors().get.__doc__) == ("get", "Return one.", "Return one.")


@pytest.mark.parametrize("way", ["call", "key", "unfilled", "subclass"])
async def test_type_that_no_class_fills_is_refused(client: Redis, way: str) -> None:
    """The message says where to decorate instead."""
    repo, *_ = repositories(Cache(client))

    class Loose(repo):  # type: ignore[misc, valid-type]
        out = Author

    calls = {
        "call": lambda: repo().get(1),
        "key": lambda: repo.get.key(1),
        "unfilled": lambda: repo[int, Author]().get(1),
        "subclass": lambda: Loose().get(1),
    }
    name = Loose.__qualname__ if way == "subclass" else repo.__qualname__
    with pytest.raises(SchemaError) as caught:
        calls[way]()
    said = "the type of its value, Out, is left open; decorate in the subclass, or give schema="
    assert str(caught.value) == f"{name}.get: {said}"


def test_variable_that_the_class_does_not_have_is_refused_with_the_class() -> None:
    """No subclass could fill it. Python 3.11 puts an error of its own around."""
    with pytest.raises((SchemaError, RuntimeError)) as caught:

        class Repo(Generic[Model]):
            @Cache().cached("one:{number}")
            async def get(self, number: int) -> Out:
                raise NotImplementedError

    error = caught.value if isinstance(caught.value, SchemaError) else caught.value.__cause__
    assert "Repo.get: the type of its value, Out, is left open" in str(error)


def test_options_and_pattern_are_checked_with_the_generic_class() -> None:
    """No subclass is needed for that."""
    with pytest.raises(OptionError, match="exp"):

        class Repo(Generic[Out]):
            @Cache().cached("one:{number}", exp=-1)
            async def get(self, number: int) -> Out:
                raise NotImplementedError


def test_one_key_for_all_subclasses_is_refused() -> None:
    """Else each subclass would delete the entries of the others, of another type."""
    with pytest.raises(OptionError, match=r"Repo\.get: shared=True gives all subclasses .* such as \{self\.name\}"):

        class Repo(Generic[Out]):
            @Cache().cached("one:{number}", shared=True)
            async def get(self, number: int) -> Out:
                raise NotImplementedError


async def test_one_and_many_share_entries_in_each_subclass(client: Redis) -> None:
    """`cached` and `cached_many` over the same ids, with the subclass's name in both patterns."""
    cache = Cache(client)

    class Repo(Generic[Out]):
        name = ""
        out: Any

        @cache.cached("{self.name}:{number}", shared=True)
        async def get(self, number: int) -> Out:
            raise NotImplementedError

        @cache.cached_many("{self.name}:{numbers}", shared=True)
        async def many(self, numbers: list[int]) -> dict[int, Out]:
            return {number: self.out(id=number) for number in numbers}

    class Authors(Repo[Author]):
        name, out = "author", Author

    class Books(Repo[Book]):
        name, out = "book", Book

    assert [await Authors().many([1]), await Books().many([1])] == [{1: Author(id=1)}, {1: Book(id=1)}]
    assert [await Authors().get(1), await Books().get(1)] == [Author(id=1), Book(id=1)]
    assert Authors().get.key(1) == "author:1"
