"""A decorated function is inspected, copied and pickled as the function itself would be."""

from __future__ import annotations

import copy
import functools
import inspect
import pickle
import typing
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.routing import APIRoute
from redis.asyncio import Redis

from fastrdb import OptionError, cached, cached_list, cached_many, invalidates
from fastrdb.cache import Cache
from tests.support.world.items import Item, Row


class Users:
    """Methods of each kind, and a decorator of each kind."""

    table = "users"

    @cached("user:{number}")
    async def get(self, redis: Redis, number: int) -> int:
        """Return a number."""
        return number

    @cached("user:row:{number}", schema=Item)
    async def row(self, number: int) -> Row:
        """Return a row."""
        return Row(id=number, name="a")

    @cached("user:outside:{number}", schema=Item)
    @classmethod
    async def outside(cls, redis: Redis, number: int) -> Row | None:
        """Return a row or None."""
        return Row(id=number, name=cls.table)

    @classmethod
    @cached("user:inside:{cls.table}:{number}", schema=Item)
    async def inside(cls, redis: Redis, number: int) -> Row:
        """Return a row."""
        return Row(id=number, name=cls.table)

    @cached("user:static:{number}")
    @staticmethod
    async def static_outside(redis: Redis, number: int) -> int:
        """Return a number."""
        return number

    @staticmethod
    @cached("user:static:{number}:inside")
    async def static_inside(redis: Redis, number: int) -> int:
        """Return a number."""
        return number

    @invalidates("user:*")
    async def rename(self, redis: Redis, number: int) -> int:
        """Return a number."""
        return number


@cached("item:{number}", schema=Item, shared=True)
async def one(number: int) -> Row | None:
    """Return a row or None."""
    return Row(id=number, name="a")


@cached_list("items:{page}", schema=Item)
async def listed(page: int) -> Sequence[Row]:
    """Return rows."""
    return [Row(id=page, name="a")]


@cached_list("items:{page}:untyped", schema=Item)
async def untyped(page: int):  # type: ignore[no-untyped-def]
    """Declare nothing."""
    return [Row(id=page, name="a")]


@cached_many("item:{numbers}", schema=Item, shared=True)
async def mapped(numbers: list[int]) -> dict[int, Row]:
    """Return rows by number."""
    return {number: Row(id=number, name="a") for number in numbers}


@cached_many("item:{numbers}", schema=Item, shared=True)
async def in_order(numbers: list[int]) -> Sequence[Row | None]:
    """Return rows in the order of the numbers."""
    return [Row(id=number, name="a") for number in numbers]


@cached("plain:{number}")
async def plain(redis: Redis, number: int) -> int:
    """Return a number."""
    return number


@invalidates("plain:*")
async def write(redis: Redis, number: int) -> int:
    """Return a number."""
    return number


METHODS: dict[str, Callable[[], Any]] = {
    "bound": lambda: Users().get,
    "of the class": lambda: Users.get,
    "classmethod outside": lambda: Users.outside,
    "classmethod inside": lambda: Users.inside,
    "classmethod of an instance": lambda: Users().inside,
    "static outside": lambda: Users.static_outside,
    "static inside": lambda: Users.static_inside,
    "invalidates": lambda: Users().rename,
    "invalidates, of the class": lambda: Users.rename,
    "function": lambda: plain,
    "function that invalidates": lambda: write,
}


@pytest.mark.parametrize("name", METHODS)
def test_copies_and_pickles_are_the_same_function(name: str) -> None:
    """A copy, a deep copy and a pickle of any decorated function or method have its cache and its class."""
    function = METHODS[name]()
    for made in (copy.copy(function), copy.deepcopy([function])[0], pickle.loads(pickle.dumps(function))):
        assert type(made) is type(function)
        assert made.__qualname__ == function.__qualname__
        assert type(getattr(made, "__self__", None)) is type(getattr(function, "__self__", None))


def bound(method: Any) -> Any:
    """Return the instance that a method is bound to."""
    return method.__self__


def test_a_deep_copy_of_a_method_belongs_to_a_copy_of_its_instance() -> None:
    """A copy is bound to the same instance, and a deep copy to a copy."""
    users = Users()
    assert bound(copy.copy(users.get)) is users
    both = copy.deepcopy((users, users.get))
    assert bound(both[1]) is both[0] is not users


RETURNS: dict[str, tuple[Callable[[], Any], Any]] = {
    "one or none": (lambda: one, Item | None),
    "list": (lambda: listed, list[Item]),
    "list, undeclared": (lambda: untyped, list[Item]),
    "mapping": (lambda: mapped, dict[int, Item]),
    "in order": (lambda: in_order, list[Item | None]),
    "method": (lambda: Users().row, Item),
    "method of the class": (lambda: Users.row, Item),
    "classmethod outside": (lambda: Users.outside, Item | None),
    "classmethod inside": (lambda: Users.inside, Item),
    "plain": (lambda: plain, int),
    "plain method": (lambda: Users().get, int),
    "static": (lambda: Users.static_outside, int),
    "invalidates": (lambda: Users().rename, int),
}


@pytest.mark.parametrize("name", RETURNS)
def test_hints_and_signature_say_what_a_call_returns(name: str) -> None:
    """With `schema=`, the return annotation is the schema; all other annotations are the function's."""
    function, expected = RETURNS[name][0](), RETURNS[name][1]
    hints = typing.get_type_hints(function)
    assert hints["return"] == expected
    signature = inspect.signature(function)
    assert {*signature.parameters} - {"self", "cls"} == {*hints} - {"return"}
    if signature.return_annotation is not inspect.Signature.empty:
        assert signature.return_annotation in (expected, expected.__name__ if isinstance(expected, type) else expected)


def test_the_annotations_of_a_method_are_its_own() -> None:
    """The wrapper has no attributes of its own among them, and `schema=` changes none of the function itself."""
    assert list(Users().get.__annotations__) == ["redis", "number", "return"]
    assert one.__annotations__["return"] == Item | None
    assert one.__wrapped__.__annotations__["return"] == "Row | None"


def test_functions_with_a_schema_can_be_routes() -> None:
    """FastAPI takes the schema as the model of the response, of functions and bound methods alike."""
    app, found = FastAPI(), dict[str, Any]()
    users = Users()
    functions: dict[str, Any] = {"one": one, "listed": listed, "untyped": untyped, "method": users.row}
    for name, function in functions.items():
        app.get(f"/{name}/{{number}}")(function)
        route = app.routes[-1]
        assert isinstance(route, APIRoute)
        found[name] = route.response_model
    assert found == {"one": Item | None, "listed": list[Item], "untyped": list[Item], "method": Item}


async def asynchronous(value: Any) -> bool:
    """Return a bool, and a coroutine first."""
    return bool(value)


class Asynchronous:
    """An object that is called, and answers with a coroutine."""

    async def __call__(self, value: Any) -> bool:
        """Return a bool, and a coroutine first."""
        return bool(value)


@pytest.mark.parametrize("option", ["cache_if", "session_factory", "hook"])
@pytest.mark.parametrize("function", [asynchronous, Asynchronous()], ids=["function", "object"])
def test_async_functions_are_refused_where_no_call_awaits_them(option: str, function: Any) -> None:
    """A coroutine is always true, and nothing that it would do is done."""
    options = {option: function}
    with pytest.raises(OptionError, match=f"{option}=.* is async, and is not awaited"):
        Cache(**options) if option == "hook" else cached("item:{number}", **options)(plain.__wrapped__)


async def test_what_an_async_function_would_refuse_is_not_stored(client: Redis) -> None:
    """A lambda hides that it gives a coroutine: then the result is not stored, and the reason says so."""
    reasons: list[str] = []
    cache = Cache(client, hook=lambda event: reasons.append(event.reason) if event.kind == "unstored" else None)

    refuse: Any = asynchronous

    @cache.cached("hidden:{number}", cache_if=lambda value: refuse(value=value))
    async def hidden(number: int) -> int:
        return number

    assert await hidden(1) == 1
    assert await client.get(hidden.key(1)) is None
    assert len(reasons) == 1
    assert "cache_if is async" in reasons[0]


async def test_wrapper_with_another_default_declares_it(client: Redis) -> None:
    """A call without the argument is not a call with the default of the inner function then."""

    async def page(redis: Redis, limit: int = 10) -> int:
        return limit

    @functools.wraps(page)
    async def wrapper(*args: Any, **kwargs: Any) -> int:
        kwargs.setdefault("limit", 50)
        return await page(*args, **kwargs)

    signature = inspect.signature(page)
    limit = signature.parameters["limit"].replace(default=50)
    wrapper.__signature__ = signature.replace(parameters=[signature.parameters["redis"], limit])  # type: ignore[attr-defined]
    read = cached("page")(wrapper)
    assert [await read(client), await read(client, limit=10), await read(client, limit=50)] == [50, 10, 50]
    assert read.stats.hits == 1
