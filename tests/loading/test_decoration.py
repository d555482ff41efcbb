"""All that can be wrong is said when a function is decorated, naming the function and the option or parameter."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from typing import Any, TypeVar, cast

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from fastrdb import Cache, OptionError, PatternError, SchemaError, cached, cached_list, invalidates
from tests.support.world.items import Item, Row


async def load(redis: Redis, number: int) -> Item:
    """Stand for a query function."""
    raise LookupError(number)


async def untyped(redis: Redis, number: int):  # type: ignore[no-untyped-def]
    """Declare nothing."""
    raise LookupError(number)


async def row(redis: Redis, number: int) -> Row:
    """Return what has no JSON form."""
    raise LookupError(number)


def sync(redis: Redis, number: int) -> Item:
    """Return no coroutine."""
    raise LookupError(number)


async def generator(redis: Redis, number: int) -> AsyncIterator[Item]:
    """Yield several values."""
    yield Item(id=number, name="a")


DECORATORS = [cached("item:{number}"), cached_list("items:{number}"), invalidates("item:*")]


@pytest.mark.parametrize("decorator", DECORATORS, ids=["cached", "cached_list", "invalidates"])
@pytest.mark.parametrize(
    "function", [sync, generator, Item, lambda redis, number: None], ids=lambda function: function.__name__
)
def test_only_coroutine_functions_are_decorated(decorator: Callable[[Any], Any], function: Any) -> None:
    """A sync function, an async generator, a class and a lambda are refused by name."""
    name = function.__qualname__
    with pytest.raises(OptionError) as caught:
        decorator(function)
    assert name in str(caught.value)
    assert isinstance(caught.value, TypeError)


def test_what_is_to_be_done_with_a_generator_or_a_property_is_said() -> None:
    """Both are declared with `async def`, which is the advice for all others."""
    with pytest.raises(OptionError, match=r"generator: an async generator; return a list in place of `yield`$"):
        cast("Any", cached("item:{number}"))(generator)

    class Named:
        @property
        async def name(self) -> str:
            return "Ann"

    with pytest.raises(OptionError, match=r"@cached on .*Named\.name: a property; put @property above @cached$"):
        cached("name:{self.name}")(Named.__dict__["name"])


def test_a_result_type_is_demanded() -> None:
    """Without one nothing can be read back; `schema=` does as well."""
    with pytest.raises(OptionError, match="untyped: declare what it returns, or give schema="):
        cached("item:{number}")(untyped)
    cached("item:{number}", schema=Item)(untyped)
    cached_list("item:{number}", schema=Item)(untyped)
    invalidates("item:*")(untyped)


def test_a_mapped_class_needs_a_schema() -> None:
    """An ORM row has no JSON form; the message says what helps."""
    with pytest.raises(SchemaError, match=r"row: Row is a mapped SQLAlchemy class.*schema="):
        cached("row:{number}")(row)
    cached("row:{number}", schema=Item)(row)


WRONG_OPTIONS: list[tuple[str, Any]] = [
    ("exp", 0),
    ("exp", -1),
    ("exp", True),
    ("exp", "60"),
    ("exp", None),
    ("exp", float("nan")),
    ("exp", float("inf")),
    ("exp", timedelta(0)),
    ("negative_exp", 0),
    ("negative_exp", False),
    ("jitter", 1),
    ("jitter", -0.1),
    ("jitter", True),
    ("jitter", "0.5"),
    ("wait", -1),
    ("wait", True),
    ("cache_if", 3),
    ("stale", -1),
    ("stale", True),
    ("stale", float("nan")),
    ("fail_safe", "1"),
    ("fail_safe", timedelta(seconds=-1)),
    ("early", -0.1),
    ("early", float("inf")),
    ("early", float("nan")),
    ("early", True),
    ("early", "1"),
    ("session_factory", 3),
    ("near", object),
]


@pytest.mark.parametrize(("option", "value"), WRONG_OPTIONS, ids=[f"{name}={value!r}" for name, value in WRONG_OPTIONS])
def test_impossible_options_are_refused(option: str, value: Any) -> None:
    """The error is both TypeError and ValueError, and names function, option and value."""
    with pytest.raises(OptionError) as caught:
        cached("item:{number}", **{option: value})(load)
    assert "load" in str(caught.value)
    assert f"{option}=" in str(caught.value)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "options", [{"stale": 0}, {"fail_safe": 0}, {"early": 0.0}, {"near": None}, {"near": False}, {"wait": 0}]
)
def test_options_that_change_nothing_are_taken(options: dict[str, Any]) -> None:
    """The defaults of options may be written out."""
    cached("item:{number}", **options)(load)


def test_unknown_options_are_refused() -> None:
    """A slip of the pen is no option."""
    with pytest.raises(OptionError, match="load: cached has no option expiry, tll"):
        cached("item:{number}", expiry=5, tll=1)(load)  # type: ignore[call-overload]


@pytest.mark.parametrize("where", ["pattern", "prefix", "keys"])
def test_unknown_placeholders_are_refused(where: str) -> None:
    """The error names the function, the placeholder, and what there is."""
    decorators: dict[str, Any] = {
        "pattern": cached("item:{nmber}"),
        "prefix": invalidates("item:{nmber}:*"),
        "keys": invalidates(keys=["item:{nmber}"]),
    }
    with pytest.raises(PatternError, match=r"load.*'\{nmber\}'.*'number'") as caught:
        decorators[where](load)
    assert isinstance(caught.value, ValueError)


@pytest.mark.parametrize(
    "pattern", ["", "item:*", "item {number}", "fastrdb:{number}", "item:{redis}", "item:{number.x()}"]
)
def test_impossible_patterns_are_refused(pattern: str) -> None:
    """Empty, globs, spaces, the bookkeeping's own names, the call's Redis, a call."""
    with pytest.raises(PatternError, match="load"):
        cached(pattern)(load)


def test_ignored_parameters_must_exist_and_be_out_of_the_pattern() -> None:
    """`ignore` is checked both ways."""
    with pytest.raises(OptionError, match=r"load.*'numbr'.*'number'"):
        cached("item:{number}", ignore=("numbr",))(load)
    with pytest.raises(PatternError, match=r"load.*'number' is ignored"):
        cached("item:{number}", ignore=("number",))(load)


def test_an_invalidation_of_nothing_is_refused() -> None:
    """Neither prefix nor keys: a mistake. An empty prefix is said on purpose."""
    with pytest.raises(OptionError, match="load: invalidates needs a prefix, keys or touches"):
        invalidates()(load)
    invalidates(prefix="")(load)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"near": object()}, "near="),
        ({"on_error": "ignore"}, "on_error='ignore'"),
        ({"namespace": "a:b"}, "namespace='a:b'"),
        ({"namespace": "a*"}, "namespace="),
        ({"timeout": 0}, "timeout=0"),
        ({"lease": -1}, "lease=-1"),
        ({"barrier": True}, "barrier=True"),
        ({"redis": "redis://localhost"}, "redis is a str, and must be a client of redis.asyncio"),
    ],
)
def test_settings_of_a_cache_are_checked(options: dict[str, Any], message: str) -> None:
    """When it is made, by name."""
    with pytest.raises(OptionError) as caught:
        Cache(**options)
    assert message in str(caught.value)


def test_another_librarys_cluster_is_refused_by_name() -> None:
    """Only redis-py's is known: said when the cache is made, not by wrong answers."""

    class RedisCluster:
        pass

    with pytest.raises(OptionError, match=r"RedisCluster, which is synchronous; use redis\.asyncio\.RedisCluster$"):
        Cache(RedisCluster())  # type: ignore[arg-type]


def test_a_synchronous_client_is_refused() -> None:
    """It would block the loop."""
    import redis  # noqa: PLC0415

    with pytest.raises(OptionError, match=r"is synchronous; use redis\.asyncio\.Redis$"):
        Cache(redis.Redis())  # type: ignore[arg-type]


class Named(BaseModel):
    """A result of a function that invalidates."""

    id: int

    @property
    def title(self) -> str:
        """Return another attribute."""
        return str(self.id)


@pytest.mark.parametrize("options", [{"prefix": "user:{result.idd}"}, {"keys": ["user:{result.idd}"]}], ids=str)
def test_attribute_that_the_result_lacks_is_refused(options: Any) -> None:
    """A placeholder with a typo would cut the prefix, and everything would go."""

    async def write() -> Named | None:
        return None

    with pytest.raises(PatternError, match=r"write: 'user:\{result\.idd\}': Named has no 'idd'; it has: id$"):
        Cache().invalidates(**options)(write)
    assert Cache().invalidates("user:{result.id}:{result.title}")(write) is not write


S = TypeVar("S")
Bounded = TypeVar("Bounded", bound=BaseModel)


@pytest.mark.parametrize(("kind", "name"), [(S, "S"), (Bounded, "Bounded"), (list[S], "S"), (S | None, "S")], ids=str)  # type: ignore[valid-type]
def test_type_that_is_left_open_is_refused(kind: Any, name: str) -> None:
    """Of a function, nothing can fill it: each call would load."""

    async def get(number: int) -> Any:
        return None

    get.__annotations__["return"] = kind
    with pytest.raises(SchemaError) as caught:
        Cache().cached("item:{number}")(get)
    said = f"the type of its value, {name}, is left open; decorate in the subclass, or give schema="
    assert str(caught.value) == f"{get.__qualname__}: {said}"
    assert Cache().cached("item:{number}", schema=Item)(get) is not get
