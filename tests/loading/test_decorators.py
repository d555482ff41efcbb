"""What is decorated stays what it was: function, method, class or static method, under any stack of decorators."""

from __future__ import annotations

import copy
import inspect
import pickle
import sys
from collections.abc import Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

import fastrdb
from fastrdb import Cache, OptionError, cached, invalidates
from fastrdb.events import Stats
from fastrdb.protocol import Store
from tests.support.servers.databases import Database
from tests.support.world.items import Item, Loader
from tests.support.world.stores import acquire, fill


def plain(loader: Loader, wrap: Callable[[Any], Any]) -> Any:
    """Return a decorated function whose loads can be counted."""

    @wrap
    async def load(redis: Redis, number: int, *, deep: bool = False) -> Item:
        """Load an item."""
        return loader.item(number)

    return load


@pytest.mark.parametrize("wrap", [cached("item:{number}"), invalidates("item:*")], ids=["cached", "invalidates"])
def test_signature_name_and_docstring_survive(wrap: Callable[[Any], Any]) -> None:
    """Frameworks inspect the function itself: FastAPI reads the signature, pytest the name."""
    load = plain(Loader(), wrap)
    assert load.__name__ == "load"
    assert load.__qualname__ == "plain.<locals>.load"
    assert load.__doc__ == "Load an item."
    assert load.__module__ == __name__
    assert list(inspect.signature(load).parameters) == ["redis", "number", "deep"]
    assert inspect.signature(load) == inspect.signature(load.__wrapped__)
    assert inspect.iscoroutinefunction(load)


async def test_the_function_itself_is_under_wrapped(client: Redis) -> None:
    """`__wrapped__` runs it without the cache."""
    loader = Loader()
    load = plain(loader, cached("item:{number}"))
    await load.__wrapped__(client, 1)
    await load.__wrapped__(client, 1)
    assert loader.calls == 2
    assert await client.keys("*") == []


@cached("top:{number}")
async def at_the_top(redis: Redis, number: int) -> int:
    """Return the number, in a function that can be found by its name."""
    return number


@invalidates("item:*")
async def writes_at_the_top(redis: Redis) -> None:
    """Return the number, in a function that can be found by its name."""


@pytest.mark.parametrize("function", [at_the_top, writes_at_the_top])
def test_copied_and_pickled_as_a_function(function: Any) -> None:
    """A copy of what holds it holds the same one; another process finds it by its name."""
    assert copy.copy(function) is function
    assert copy.deepcopy([function]) == [function]
    assert copy.deepcopy([function])[0] is function
    assert pickle.loads(pickle.dumps(function)) is function


async def test_an_instance_given_by_name(client: Redis) -> None:
    """`Class.method(self=instance)` is a call of Python's like any other; so is an argument that is called self."""

    class Named:
        redis = client

        @cached("named:{number}")
        async def load(self, number: int) -> int:
            return number

        @cached("another:{self}")
        async def other(this, redis: Redis, self: str) -> str:  # noqa: N805  # as one may
            return self

    named = Named()
    for _ in range(2):
        assert await Named.load(self=named, number=3) == 3
        assert await named.other(client, self="x") == "x"
    assert Named.load.stats.hits == Named.other.stats.hits == 1
    assert Named.load.key(self=named, number=3) == "named:3"
    await Named.load.invalidate(self=named, number=3)
    assert (await Named.load.explain(self=named, number=3)).state == "miss"
    assert await Named.load.refresh(self=named, number=3) == 3


class Shop:
    """One of each kind, in both orders of the decorators."""

    loader: Loader
    tenant = "t1"

    def __init__(self, redis: Redis | None = None) -> None:
        self.redis = redis

    @cached("shop:{self.tenant}:{number}")
    async def method(self, number: int) -> Item:
        """Load with an instance."""
        return self.loader.item(number)

    @classmethod
    @cached("shop:class:outside:{number}")
    async def class_outside(cls, redis: Redis, number: int) -> Item:
        """Load with the class."""
        return cls.loader.item(number)

    @cached("shop:class:inside:{number}")
    @classmethod
    async def class_inside(cls, redis: Redis, number: int) -> Item:
        """Load with the class."""
        return cls.loader.item(number)

    @staticmethod
    @cached("shop:static:outside:{number}")
    async def static_outside(redis: Redis, number: int) -> Item:
        """Load with neither."""
        return Shop.loader.item(number)

    @cached("shop:static:inside:{number}")
    @staticmethod
    async def static_inside(redis: Redis, number: int) -> Item:
        """Load with neither."""
        return Shop.loader.item(number)

    @invalidates("shop:{self.tenant}:{number}")
    async def rename(self, number: int, name: str) -> Item:
        """Write with an instance."""
        self.loader.name = name
        return self.loader.item(number)

    @invalidates("shop:class:*")
    @classmethod
    async def rename_all(cls, redis: Redis, name: str) -> str:
        """Write with the class."""
        cls.loader.name = name
        return cls.__name__


@pytest.fixture
def loader() -> Loader:
    """Set a new loader in the shop."""
    Shop.loader = Loader()
    return Shop.loader


KINDS = ["class_outside", "class_inside", "static_outside", "static_inside"]


def own_class(kind: str) -> tuple[type, ...]:
    """Return what extras need: since Python 3.13, `@classmethod` does not bind what it wraps."""
    return (Shop,) if kind == "class_outside" and sys.version_info >= (3, 13) else ()


@pytest.mark.parametrize("kind", KINDS)
async def test_class_and_static_methods_are_cached(kind: str, client: Redis, loader: Loader) -> None:
    """In both orders; called on the class and on an instance it is one entry, under one key."""
    by_class, by_instance = getattr(Shop, kind), getattr(Shop(), kind)
    first = await by_class(client, 1)
    assert await by_instance(redis=client, number=1) == first
    assert loader.calls == 1
    key = f"shop:{kind.replace('_', ':')}:1"
    assert by_class.key(number=1) == by_instance.key(*own_class(kind), client, 1) == key
    assert await client.exists(key)
    assert by_class.stats == by_instance.stats


@pytest.mark.parametrize("kind", KINDS)
async def test_class_and_static_methods_carry_the_extras(kind: str, client: Redis, loader: Loader) -> None:
    """`refresh` and `invalidate` bind like the call itself."""
    method = getattr(Shop, kind)
    assert (await method(client, 1)).name == "a"
    loader.name = "b"
    assert (await method.refresh(*own_class(kind), client, 1)).name == "b"
    assert (await method(client, 1)).name == "b"
    await method.invalidate(redis=client, number=1)
    assert (await method.explain(redis=client, number=1)).state == "miss"


async def test_a_method_takes_redis_from_its_instance(client: Redis, loader: Loader) -> None:
    """`self.redis` serves where the call has none; the instance itself is no part of the key."""
    shop, other = Shop(client), Shop(client)
    assert await shop.method(1) == await other.method(number=1)
    assert loader.calls == 1
    assert shop.method.key(1) == Shop.method.key(shop, 1) == "shop:t1:1"


async def test_a_placeholder_may_read_the_instance(client: Redis, loader: Loader) -> None:
    """`{self.tenant}` keeps the tenants apart."""
    shop, other = Shop(client), Shop(client)
    other.tenant = "t2"
    await shop.method(1)
    await other.method(1)
    assert loader.calls == 2
    assert sorted(await client.keys("shop:*")) == [b"shop:t1:1", b"shop:t2:1"]


async def test_a_method_called_through_its_class_is_the_same_call(client: Redis, loader: Loader) -> None:
    """`Shop.method(shop, 1)` finds what `shop.method(1)` has stored, and takes its Redis from `shop`."""
    shop = Shop(client)
    assert await shop.method(1) == await Shop.method(shop, 1)
    assert loader.calls == 1


async def test_extras_of_a_bound_method_know_the_instance(client: Redis, loader: Loader) -> None:
    """Keys need neither Redis nor instance."""
    shop = Shop(client)
    await shop.method(1)
    loader.name = "b"
    assert (await shop.method.refresh(1)).name == "b"
    assert (await shop.method.explain(1)).state == "hit"
    await shop.method.invalidate(1)
    assert (await shop.method.explain(1)).state == "miss"


async def test_a_method_that_writes_invalidates(client: Redis, loader: Loader) -> None:
    """Placeholders of its prefix read arguments and the instance."""
    shop = Shop(client)
    await shop.method(1)
    await shop.method(2)
    assert (await shop.rename(1, "b")).name == "b"
    assert (await shop.method(1)).name == "b"
    assert (await shop.method(2)).name == "a"


async def test_a_class_method_that_writes_invalidates(client: Redis, loader: Loader) -> None:
    """It still gets its class."""
    await Shop.class_inside(client, 1)
    assert await Shop.rename_all(client, "b") == "Shop"
    assert (await Shop.class_inside(client, 1)).name == "b"


@pytest.mark.parametrize("inner_first", [True, False], ids=["invalidates-outside", "cached-outside"])
async def test_both_decorators_stack_in_either_order(inner_first: bool, client: Redis) -> None:
    """The result is cached, and each call that runs the outer one invalidates; extras are there in both."""
    loader = Loader()
    pair: list[Any] = [cached("item:{number}"), invalidates("list:*")]

    def wrap(function: Any) -> Any:
        for decorator in pair if inner_first else reversed(pair):
            function = decorator(function)
        return function

    load = plain(loader, wrap)
    store = Store()
    await acquire(store, client, "list:1", "t")
    await fill(store, client, "list:1", "t", b"1", 60_000)
    assert await load(client, 1) == await load(client, number=1)
    assert loader.calls == 1
    assert await client.get("list:1") is None
    assert load.key(number=1) == "item:1"
    assert isinstance(load.stats, Stats)
    assert inspect.iscoroutinefunction(load)
    await load.invalidate(redis=client, number=1)
    await load(client, 1)
    assert loader.calls == 2


async def test_cached_twice_has_two_entries(client: Redis) -> None:
    """One function under two patterns: each cache has its own key."""
    loader = Loader()
    load = plain(loader, lambda function: cached("outer:{number}")(cached("inner:{number}")(function)))
    await load(client, 1)
    await load.invalidate(redis=client, number=1)
    await load(client, 1)
    assert loader.calls == 1
    assert {b"outer:1", b"inner:1"} <= set(await client.keys("*"))


async def test_the_session_of_the_instance_counts(client: Redis, sqlite: Database, loader: Loader) -> None:
    """`self.db` is seen: while its transaction has written, the cache is not asked."""

    class Repository:
        def __init__(self, db: AsyncSession) -> None:
            self.db = db
            self.redis = client

        @cached("repo:{number}")
        async def item(self, number: int) -> Item:
            """Load."""
            return loader.item(number)

    async with sqlite.sessions() as db:
        repository = Repository(db)
        await db.execute(text("CREATE TABLE t (i INTEGER)"))
        assert (await repository.item.explain(1)).state == "bypass"
        await repository.item(1)
        await repository.item(1)
        assert repository.item.stats.bypasses == 2


async def test_redis_none_just_runs_the_function() -> None:
    """No cache, no error, no key needed."""
    loader = Loader()
    load = plain(loader, cached("item:{number}"))
    write = plain(loader, invalidates("item:*"))
    await load(None, 1)
    await load(redis=None, number=1)
    await write(None, 1)
    assert loader.calls == 3
    assert (await load.explain(redis=None, number=1)).reasons == ("redis is None",)
    await load.invalidate(redis=None, number=1)
    await load.put(Item(id=1, name="a"), redis=None, number=1)
    assert load.stats == Stats()


async def test_the_caches_own_redis_is_the_last_resort(client: Redis) -> None:
    """A function without a Redis of its own uses that of its cache."""
    loader, cache = Loader(), Cache(client)

    @cache.cached("own:{number}")
    async def load(number: int) -> Item:
        return loader.item(number)

    assert await load(1) == await load(1)
    assert loader.calls == 1
    await load.invalidate(1)
    assert await client.keys("own:*") == []


async def test_no_redis_anywhere_is_a_clear_error() -> None:
    """It names the function, and the three places to put one."""

    @cached("lost:{number}")
    async def load(number: int) -> int:
        return number

    with pytest.raises(OptionError, match=r"load: no Redis: .*parameter `redis`.*attribute `redis`.*Cache\(redis="):
        await load(1)


async def test_wrong_arguments_are_the_functions_own_error(client: Redis) -> None:
    """A TypeError that names the function and the argument, as Python's."""
    load = plain(Loader(), cached("item:{number}"))
    with pytest.raises(TypeError, match=r"load\(\).*unexpected keyword argument 'depth'"):
        await load(client, 1, depth=2)
    with pytest.raises(TypeError, match=r"load\(\).*'number'"):
        await load(client)


def test_every_public_name_is_documented() -> None:
    """Exported names have docstrings."""
    assert [name for name in fastrdb.__all__ if not getattr(fastrdb, name).__doc__] == []
