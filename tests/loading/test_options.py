"""What the options of a cached function do: schema, exp, jitter, negative_exp, cache_if, ignore, wait, namespace."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, OptionError, SchemaError, cached, cached_list, default_cache
from fastrdb.testing import GatedClient
from tests.support.servers.databases import Database
from tests.support.world.items import Base, Frozen, Item, Loader, Row


@pytest.fixture
async def database(sqlite: Database) -> Database:
    """Return a database with two rows."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        await db.execute(insert(Row), [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}])
        await db.commit()
    return sqlite


async def twice(database: Database, load: Any, *args: Any) -> tuple[Any, Any]:
    """Return the answers of a miss and of a hit, each in a session of its own."""
    async with database.sessions() as db:
        first = await load(db, *args)
    async with database.sessions() as db:
        second = await load(db, *args)
    assert load.stats.hits == 1
    return first, second


# --- schema


async def test_rows_become_the_schema_on_a_miss_as_on_a_hit(database: Database, client: Redis) -> None:
    """Never the ORM object: the type does not depend on luck."""

    @cached("row:{number}", schema=Item)
    async def load(db: AsyncSession, redis: Redis, number: int) -> Row:
        return (await db.execute(select(Row).where(Row.id == number))).scalar_one()

    miss, hit = await twice(database, load, client, 1)
    assert type(miss) is type(hit) is Item
    assert miss == hit == Item(id=1, name="a")


@pytest.mark.parametrize(("number", "expected"), [(1, Item(id=1, name="a")), (9, None)])
async def test_a_row_or_none_becomes_the_schema_or_none(
    database: Database, client: Redis, number: int, expected: Item | None
) -> None:
    """None is a value, and cached like one."""

    @cached("row:{number}", schema=Item)
    async def load(db: AsyncSession, redis: Redis, number: int) -> Row | None:
        return await db.get(Row, number)

    assert await twice(database, load, client, number) == (expected, expected)


async def test_lists_and_sequences_of_rows_become_lists(database: Database, client: Redis) -> None:
    """With `schema=` that of one item, under `cached` and `cached_list` alike."""

    @cached("rows", schema=Item)
    async def rows(db: AsyncSession, redis: Redis) -> Sequence[Row]:
        return (await db.scalars(select(Row).order_by(Row.id))).all()

    @cached_list("rows:{page}", schema=Item)
    async def page(db: AsyncSession, redis: Redis, page: int = 1) -> list[Row]:
        return list((await db.scalars(select(Row).order_by(Row.id))).all())

    expected = [Item(id=1, name="a"), Item(id=2, name="b")]
    assert await twice(database, rows, client) == (expected, expected)
    assert await twice(database, page, client) == (expected, expected)
    assert await client.get("rows") == b'[{"id":1,"name":"a"},{"id":2,"name":"b"}]'


async def test_a_row_that_does_not_fit_is_an_error_not_an_entry(database: Database, client: Redis) -> None:
    """It names the function and what does not fit."""

    @cached("row:{number}", schema=Item)
    async def load(db: AsyncSession, redis: Redis, number: int) -> Any:
        return "no row"

    async with database.sessions() as db:
        with pytest.raises(SchemaError, match=r"load: the result, str, does not fit"):
            await load(db, client, 1)
    assert await client.keys("row:*") == []
    assert await client.keys("fastrdb:lease:*") == []


async def test_redis_none_converts_too() -> None:
    """Past the cache the type is the same."""

    @cached("row:{number}", schema=Item)
    async def load(redis: Redis | None, number: int) -> Row:
        return Row(id=number, name="a")

    assert await load(None, 1) == Item(id=1, name="a")


# --- exp, jitter


@pytest.mark.parametrize(
    ("options", "least", "most"),
    [
        ({}, 3_590_000, 3_600_000),
        ({"exp": 60}, 59_000, 60_000),
        ({"exp": timedelta(minutes=2)}, 119_000, 120_000),
        ({"exp": 100, "jitter": 0.5}, 49_000, 100_000),
    ],
    ids=["default", "seconds", "timedelta", "jitter"],
)
async def test_entries_live_as_long_as_exp_says(client: Redis, options: Any, least: int, most: int) -> None:
    """`exp` in seconds or as timedelta, an hour where it is not given; `jitter` only shortens it."""

    decorate: Any = cached("item:{number}", **options)

    @decorate  # type: ignore[untyped-decorator]
    async def load(redis: Redis, number: int) -> int:
        return number

    lives, begun = [], monotonic()
    for number in range(10):
        await load(client, number)
        lives.append(await client.pttl(f"item:{number}"))
    waited_ms = (monotonic() - begun) * 1000
    assert all(least - waited_ms < life <= most for life in lives)
    if "jitter" in options:
        assert len(set(lives)) > 5


# --- negative_exp


def absent(**options: Any) -> tuple[Any, Loader]:
    """Return a function that finds nothing, and the list of its loads."""
    loader = Loader()

    decorate: Any = cached("item:{number}", exp=60, **options)

    @decorate  # type: ignore[untyped-decorator]
    async def load(redis: Redis, number: int) -> Item | None:
        loader.calls += 1
        if number == 0:
            return None
        raise NoResultFound("No row was found when one was required")

    return load, loader


async def test_none_lives_as_long_as_negative_exp(client: Redis) -> None:
    """Without it, as long as any value."""
    short, _ = absent(negative_exp=5)
    await short(client, 0)
    assert 0 < await client.pttl("item:0") <= 5000
    await client.flushall()
    usual, _ = absent()
    await usual(client, 0)
    assert 5000 < await client.pttl("item:0") <= 60_000


async def test_a_missing_row_is_stored_with_negative_exp(client: Redis) -> None:
    """The same error with the same text, without a load, as long as `negative_exp` says."""
    load, loader = absent(negative_exp=timedelta(seconds=5))
    for _ in range(3):
        with pytest.raises(NoResultFound, match=r"^No row was found when one was required$"):
            await load(client, 1)
    assert loader.calls == 1
    assert 0 < await client.pttl("item:1") <= 5000
    assert load.stats.fills == 1


async def test_a_missing_row_is_asked_for_again_otherwise(client: Redis) -> None:
    """Without `negative_exp` an error is never stored; the lease is given back."""
    load, loader = absent()
    for _ in range(2):
        with pytest.raises(NoResultFound):
            await load(client, 1)
    assert loader.calls == 2
    assert await client.keys("item:*") == []


async def test_other_errors_are_never_stored(client: Redis) -> None:
    """Only a missing row is a fact about the database."""
    loader = Loader()

    @cached("item:{number}", negative_exp=5)
    async def load(redis: Redis, number: int) -> Item | None:
        loader.calls += 1
        raise ValueError(number)

    for _ in range(2):
        with pytest.raises(ValueError, match="1"):
            await load(client, 1)
    await default_cache.aclose()
    assert loader.calls == 2
    assert await client.keys("*item:1*") == []


# --- cache_if, ignore


async def test_cache_if_decides_what_is_stored(client: Redis) -> None:
    """A refused result is answered all the same, and counted."""
    loader = Loader()

    @cached("item:{number}", cache_if=lambda item: item.id > 1)
    async def load(redis: Redis, number: int) -> Item:
        return loader.item(number)

    for number in (1, 2):
        await load(client, number)
        await load(client, number)
    assert loader.calls == 3
    assert await client.keys("item:*") == [b"item:2"]
    assert load.stats.unstored == 2


async def test_an_ignored_parameter_makes_no_difference(client: Redis) -> None:
    """One entry for all its values, whatever their type."""
    loader = Loader()

    @cached("item:{number}", ignore=("trace",))
    async def load(redis: Redis, number: int, trace: object = None) -> Item:
        return loader.item(number)

    await load(client, 1, trace=object())
    await load(client, 1, object())
    assert loader.calls == 1
    assert load.key(number=1) == load.key(number=1, trace=object()) == "item:1"


# --- wait, sharing


async def test_a_caller_with_wait_0_loads_for_itself(client: Redis, gated: GatedClient) -> None:
    """With `wait=0` another process's load is not waited for; the result is not stored."""
    loader = Loader()

    def decorated() -> Any:
        @Cache().cached("item:{number}", wait=0)
        async def load(redis: Any, number: int) -> Item:
            return loader.item(number)

        return load

    here, elsewhere = decorated(), decorated()  # two caches know as little of each other as two processes
    gate = gated.gates.before("fill")
    first = asyncio.create_task(here(gated, 1))
    await gate.reached()
    assert (await elsewhere(client, 1)).id == 1
    assert (loader.calls, elsewhere.stats.bypasses, elsewhere.stats.fills) == (2, 1, 0)
    gate.open()
    await first


@pytest.mark.parametrize(("model", "shared"), [(Item, False), (Frozen, True)])
async def test_callers_share_a_value_only_if_it_is_immutable(
    client: Redis, gated: GatedClient, model: Any, shared: bool
) -> None:
    """A follower gets a value of its own; of a frozen model the values of the fields are shared."""

    async def load(redis: Any, number: int) -> Any:
        return model(id=number) if model is Frozen else model(id=number, name="a")

    load.__annotations__["return"] = model
    decorated = cached("item:{number}")(load)
    gate = gated.gates.before("fill")
    first = asyncio.create_task(decorated(gated, 10**9))
    await gate.reached()
    others = await asyncio.gather(decorated(client, 10**9), decorated(client, 10**9))
    gate.open()
    values = [await first, *others]
    assert values[0] == values[1] == values[2]
    assert decorated.stats.joins == 2
    assert (values[0].id is values[1].id) is (values[1].id is values[2].id) is shared
    assert vars(values[0]) is not vars(values[1])
    assert values[0].model_fields_set is not values[1].model_fields_set


# --- namespace


@pytest.mark.parametrize("namespace", ["fastrdb", "a:b", "a*", "ä", "a b", "{a}"])
def test_a_namespace_that_cannot_be(namespace: str) -> None:
    """Refused are characters with a meaning in keys, and the beginning of fastrdb's own keys."""
    with pytest.raises(OptionError, match="namespace"):
        Cache(namespace=namespace)


async def test_namespaces_share_nothing(client: Redis) -> None:
    """Keys and bookkeeping are apart; an invalidation of one leaves the other alone."""
    loader = Loader()
    one, two = Cache(client, namespace="one"), Cache(client, namespace="two")

    def decorated(cache: Cache) -> Any:
        @cache.cached("item:{number}")
        async def load(number: int) -> Item:
            return loader.item(number)

        return load

    first, second = decorated(one), decorated(two)
    await first(1)
    await second(1)
    assert loader.calls == 2
    assert {b"one:item:1", b"two:item:1", b"fastrdb:one:index", b"fastrdb:two:index"} <= set(await client.keys("*"))
    await one.invalidate("*")
    assert await client.keys("*:item:*") == [b"two:item:1"]


@pytest.mark.parametrize("text", ["item:1", "mine:item:1"])
async def test_a_key_is_known_with_its_namespace_and_without(client: Redis, text: str) -> None:
    """As `key()` gives it, and as its pattern has it."""
    async with Cache(client, namespace="mine") as cache:

        @cache.cached("item:{number}")
        async def load(number: int) -> int:
            return number

        await load(1)
        assert load.key(1) == "mine:item:1"
        await cache.invalidate(keys=[text])
        assert await client.exists("mine:item:1") == 0


# --- what the session reads


async def test_the_schema_translate_map_is_part_of_the_key(sqlite: Database, client: Redis) -> None:
    """Two tenants with a schema each ask the same question of different tables."""
    loader = Loader()

    @cached("item:{number}")
    async def load(db: AsyncSession, redis: Redis, number: int) -> Item:
        return loader.item(number)

    plain = AsyncSession(sqlite.engine)
    maps = [{None: "one"}, {None: "two"}]
    tenants = [AsyncSession(sqlite.engine.execution_options(schema_translate_map=each)) for each in maps]
    keys = [load.key(db, client, 1) for db in (plain, *tenants)]
    assert keys[0] == "item:1"
    assert len(set(keys)) == 3
    for db in (plain, *tenants):
        await load(db, client, 1)
        await db.close()
    assert loader.calls == 3
