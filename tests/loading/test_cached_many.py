"""`cached_many`: a function that takes ids is called with those only that are not in Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Iterable, Mapping, Sequence
from typing import Annotated, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from sqlalchemy import insert, select, update
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from fastrdb import (
    Cache,
    Event,
    KeyValueError,
    OptionError,
    PatternError,
    SchemaError,
    Stats,
    cached,
    cached_many,
    no_store,
)
from fastrdb.cache import default_cache
from fastrdb.keys import MISSING, ResultShape, inspect_function
from fastrdb.keys.signature import IdList
from fastrdb.testing import GatedClient, Gates
from tests.races.mechanisms import without
from tests.support.servers.databases import Database
from tests.support.world.items import Base, Frozen, Item, Row

DEAD = ConnectionRefusedError("nobody listens")


class Table:
    """Stands for a table of items 1 to 9; notes what it was asked for."""

    def __init__(self) -> None:
        self.asked: list[Any] = []
        self.name = "a"
        self.missing: set[int] = set()
        self.error: Exception | None = None
        self.gates = Gates()
        self.caches = [default_cache]

    async def load(self, ids: Collection[int]) -> dict[int, Item]:
        """Return the items that the table has."""
        self.asked.append(ids)
        await self.gates.arrive("load")
        if self.error is not None:
            raise self.error
        name = self.name
        await self.gates.leave("load")
        return {number: Item(id=number, name=name) for number in ids if number not in self.missing}


class Shop:
    """Functions over one table, in a process of its own."""

    def __init__(self, table: Table, client: Any, **options: Any) -> None:
        self.table, self.client = table, client
        self.heard: list[Event] = []
        self.cache = Cache(hook=self.heard.append)
        table.caches.append(self.cache)
        settings: Any = {"exp": 600, **options}
        many: Any = self.cache.cached_many("item:{ids}", **settings, shared=True)

        @many  # type: ignore[untyped-decorator]
        async def by_id(redis: Redis, ids: list[int]) -> dict[int, Item]:
            return await table.load(ids)

        @many  # type: ignore[untyped-decorator]
        async def in_order(redis: Redis, ids: Sequence[int]) -> list[Item | None]:
            found = await table.load(ids)
            return [found.get(number) for number in ids]

        self.by_id: Any = by_id
        self.in_order: Any = in_order

    async def get(self, *numbers: int) -> list[str | None]:
        """Return the names by `in_order`."""
        found: list[Item | None] = await self.in_order(self.client, list(numbers))
        return [None if item is None else item.name for item in found]

    @property
    def stats(self) -> Stats:
        """The counts of `in_order`."""
        found: Stats = self.in_order.stats
        return found

    async def settled(self) -> None:
        """Wait for what runs in the background."""
        await asyncio.gather(*self.cache.runtime.here().reloads.values())


@pytest.fixture
async def table(client: Redis) -> AsyncIterator[Table]:
    """Return a table. Background tasks end before the client is closed."""
    made = Table()
    yield made
    made.gates.open_all()
    for cache in made.caches:
        await cache.aclose()


def items(*numbers: int) -> dict[int, Item]:
    """Return the expected items, by id."""
    return {number: Item(id=number, name="a") for number in numbers}


# --- what is asked and what is answered


async def test_only_what_is_missing_is_asked_for(client: Redis, gated: GatedClient, table: Table) -> None:
    """One round trip for all hits, one call for all misses, and all of it in the order of the ids."""
    await Shop(table, client).get(9)  # the server knows the scripts by now
    table.asked.clear()
    shop = Shop(table, gated)
    assert await shop.by_id(gated, [3, 1]) == items(3, 1)
    assert gated.names() == ["MGET", *["acquire"] * 2, *["fill"] * 2]
    gated.log.clear()
    found = await shop.by_id(gated, [1, 2, 3, 4])
    assert list(found.items()) == list(items(1, 2, 3, 4).items())
    assert table.asked == [[3, 1], [2, 4]]
    gated.log.clear()
    assert await shop.by_id(gated, [4, 3, 2, 1]) == items(1, 2, 3, 4)
    assert gated.names() == ["MGET"]
    assert shop.by_id.stats == Stats(hits=6, misses=4, loads=4, fills=4)
    assert await client.get("item:1") == b'{"id":1,"name":"a"}'


async def test_nothing_asked_is_nothing_called(gated: GatedClient, table: Table) -> None:
    """Neither the function nor Redis."""
    shop = Shop(table, gated)
    assert await shop.by_id(gated, []) == {}
    assert await shop.in_order(gated, ids=()) == []
    assert await shop.by_id(None, []) == {}
    assert (table.asked, gated.log) == ([], [])


async def test_what_is_asked_for_twice_is_loaded_once(client: Redis, table: Table) -> None:
    """And answered twice, on a miss as on a hit."""
    shop = Shop(table, client)
    for _ in range(2):
        assert await shop.get(2, 1, 2, 2) == ["a"] * 4
        assert list(await shop.by_id(client, [2, 1, 2])) == [2, 1]
    assert table.asked == [[2, 1]]


@pytest.mark.parametrize("redis", [True, False], ids=["redis", "None"])
async def test_an_id_that_was_not_asked_for_is_left_out(client: Redis, table: Table, redis: bool) -> None:
    """A hit could not give it either."""

    @cached_many("item:{ids}")
    async def generous(redis: Redis | None, ids: list[int]) -> Mapping[int, Item]:
        return await table.load([*ids, 9])

    for _ in range(2):
        assert await generous(client if redis else None, [1]) == items(1)


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
async def test_ids_arrive_in_what_they_were_given_in(client: Redis, table: Table, kind: Any) -> None:
    """A list stays a list, and a set a set; each answer belongs to its id."""
    shop = Shop(table, client)
    await shop.get(5)
    assert await shop.in_order(client, kind([7, 5, 6])) == [Item(id=n, name="a") for n in kind([7, 5, 6])]
    assert table.asked[-1] == kind([7, 6])
    assert type(table.asked[-1]) is kind


async def test_any_other_iterable_arrives_as_a_list(client: Redis, table: Table) -> None:
    """A generator can be read once only."""
    shop = Shop(table, client)
    assert await shop.by_id(client, (n for n in (1, 2))) == items(1, 2)
    assert await shop.by_id(client, {2: "b", 3: "c"}.keys()) == items(2, 3)
    assert table.asked == [[1, 2], [3]]


async def test_missing_ids_are_left_out_or_none(client: Redis, table: Table) -> None:
    """The answer is in the function's own form, and the next call loads again."""
    shop = Shop(table, client)
    table.missing = {2}
    for _ in range(2):
        assert await shop.by_id(client, [1, 2, 3]) == items(1, 3)
        assert await shop.get(1, 2, 3) == ["a", None, "a"]
    assert table.asked == [[1, 2, 3], [2], [2], [2]]
    assert sorted(await client.keys("item:*")) == [b"item:1", b"item:3"]
    table.missing = set()
    assert await shop.get(2) == ["a"]


async def test_missing_ids_are_stored_with_negative_exp(client: Redis, table: Table) -> None:
    """For as long as `negative_exp` says; an insert that invalidates them ends it (C22)."""
    shop = Shop(table, client, negative_exp=5)
    table.missing = {2}
    for _ in range(2):
        assert await shop.by_id(client, [1, 2]) == items(1)
        assert await shop.get(1, 2) == ["a", None]
    assert table.asked == [[1, 2]]
    assert 0 < await client.pttl("item:2") <= 5000
    table.missing = set()
    await shop.cache.invalidate("item:*", redis=client)
    assert await shop.get(1, 2) == ["a", "a"]


async def test_a_mapping_that_may_hold_none_holds_every_id(client: Redis, table: Table) -> None:
    """Left out or None: the answer is the same on a miss and on a hit."""

    @cached_many("item:{ids}", negative_exp=5)
    async def maybe(redis: Redis | None, ids: list[int]) -> dict[int, Item | None]:
        return {**dict.fromkeys(ids[:1]), **await table.load(ids)}

    table.missing = {1, 2}
    for redis in (client, client, None):
        assert await maybe(redis, [1, 2, 3]) == {1: None, 2: None, **items(3)}
    assert len(table.asked) == 2


async def test_rows_become_the_schema(sqlite: Database, client: Redis) -> None:
    """On a miss as on a hit, by id and in a list, and with `redis=None`."""
    await sqlite.create(Base)

    @cached_many("row:{ids}", schema=Item, shared=True)
    async def by_id(db: AsyncSession, redis: Redis | None, ids: list[int]) -> dict[int, Row]:
        return {row.id: row for row in await db.scalars(select(Row).where(Row.id.in_(ids)))}

    @cached_many("row:{ids}", schema=Item, shared=True)
    async def in_order(db: AsyncSession, redis: Redis | None, ids: list[int]) -> Sequence[Row | None]:
        return [await db.get(Row, number) for number in ids]

    async with sqlite.sessions() as db:
        await db.execute(insert(Row), [{"id": n, "name": "a"} for n in (1, 2)])
        await db.commit()
        for redis in (client, client, None):
            found = await by_id(db, redis, [2, 1, 3])
            assert list(found.items()) == list(items(2, 1).items())
            assert await in_order(db, redis, [2, 3, 1]) == [Item(id=2, name="a"), None, Item(id=1, name="a")]
    assert by_id.stats.hits == 2


async def test_redis_none_just_runs_the_function(table: Table) -> None:
    """With every id once, and the same answer."""
    shop = Shop(table, None)

    @cached_many("item:{ids}")
    async def optional(redis: Redis | None, ids: list[int]) -> dict[int, Item]:
        return await table.load(ids)

    assert await optional(None, [2, 1, 2]) == items(2, 1)
    assert table.asked == [[2, 1]]
    assert optional.stats == Stats()
    assert await shop.get(2, 1, 2) == ["a"] * 3


async def test_without_redis_everything_is_asked_for(table: Table, unused_tcp_port: int) -> None:
    """The function runs at once, and no call raises."""
    async with Redis(port=unused_tcp_port, retry=None) as dead:  # type: ignore[arg-type]
        shop = Shop(table, dead)
        assert await shop.get(1, 2) == ["a", "a"]
        assert table.asked == [[1, 2]]
        assert shop.stats == Stats(loads=2, unavailable=2)
        await shop.cache.aclose()


@pytest.mark.parametrize("command", ["MGET", "acquire", "fill"])
async def test_redis_that_goes_away_costs_no_answer(gated: GatedClient, table: Table, command: str) -> None:
    """Whichever command it misses: one call of the function, and no lease is left."""
    shop = Shop(table, gated)
    gated.fail_with(ConnectionError("cut"), times=1, on=command)
    assert await shop.get(1, 2) == ["a", "a"]
    assert table.asked == [[1, 2]]
    assert shop.stats.unavailable == 2
    await shop.cache.aclose()
    assert await gated.keys("fastrdb:lease:*") == []


# --- sharing entries with `cached`


async def test_entries_are_those_of_a_cached_function(client: Redis, table: Table) -> None:
    """With the same pattern: either finds what the other has stored, other arguments included."""

    @cached("item:{number}", shared=True)
    async def one(redis: Redis, number: int, deep: bool = False) -> Item:
        raise LookupError(number)

    @cached_many("item:{numbers}", shared=True)
    async def many(redis: Redis, numbers: list[int], deep: bool = False) -> dict[int, Item]:
        return await table.load(numbers)

    assert many.key(numbers=3, deep=True) == one.key(number=3, deep=True) == "item:3?deep=true"
    await many(client, [1, 2])
    await many(client, [1], deep=True)
    assert await one(client, 2) == Item(id=2, name="a")
    assert await one(client, 1, deep=True) == Item(id=1, name="a")
    await one.invalidate(redis=client, number=1)
    await many(client, [1, 2])
    assert table.asked == [[1, 2], [1], [1]]


async def test_keys_are_hidden_as_those_of_single_calls(client: Redis, table: Table) -> None:
    """Under `hash_keys`, too: the entries are shared."""
    async with Cache(client, hash_keys=b"secret") as cache:

        @cache.cached("item:{number}", shared=True)
        async def one(number: int) -> Item:
            raise LookupError(number)

        @cache.cached_many("item:{numbers}", shared=True)
        async def many(numbers: list[int]) -> dict[int, Item]:
            return await table.load(numbers)

        await many([1, 2])
        assert await one(2) == Item(id=2, name="a")
        assert many.key(numbers=2) == one.key(number=2) != "item:2"
        await many.invalidate(numbers=[1])
        assert await client.keys("item:*") == [one.key(number=2).encode()]


async def test_a_cache_that_is_off_asks_the_function(client: Redis, table: Table) -> None:
    """For all ids, and stores nothing."""
    shop = Shop(table, client)
    await shop.get(1)
    with shop.cache.disabled():
        assert await shop.get(1, 2) == ["a", "a"]
    assert table.asked == [[1], [1, 2]]
    assert await client.keys("item:*") == [b"item:1"]


async def test_what_is_known_to_be_missing_is_so_for_both(client: Redis, table: Table) -> None:
    """A row that `cached` did not find is missing here; None that is stored here is None there."""

    @cached("item:{number}", negative_exp=5, shared=True)
    async def strict(redis: Redis, number: int) -> Item:
        raise NoResultFound("none")

    @cached("item:{number}", negative_exp=5, shared=True)
    async def maybe(redis: Redis, number: int) -> Item | None:
        raise LookupError(number)

    shop = Shop(table, client, negative_exp=5)
    with pytest.raises(NoResultFound):
        await strict(client, 1)
    assert await shop.by_id(client, [1]) == {}
    table.missing = {2}
    assert await shop.by_id(client, [1, 2]) == {}
    assert table.asked == [[2]]
    assert await maybe(client, 2) is None
    with pytest.raises(NoResultFound):
        await strict(client, 2)
    assert strict.stats == Stats(misses=2, loads=2, fills=2)


@given(numbers=st.lists(st.integers() | st.booleans() | st.none() | st.text(max_size=4), max_size=6))
def test_keys_are_those_of_single_calls(numbers: list[Any]) -> None:
    """Whatever the ids are, also against what is declared."""

    @cached("item:{number}:of:{shop}", shared=True)
    async def one(redis: Redis, number: int, shop: str, tag: str = "") -> Item:
        raise LookupError(number)

    @cached_many("item:{numbers}:of:{shop}", shared=True)
    async def many(redis: Redis, numbers: Sequence[int], shop: str, tag: str = "") -> list[Item]:
        raise LookupError(numbers)

    for number in numbers:
        assert many.key(None, number, "s", tag="t") == one.key(None, number, "s", tag="t")


async def test_an_attribute_of_each_element(client: Redis) -> None:
    """A dotted placeholder reads it of the element."""

    @cached_many("frozen:{them.id}")
    async def load(redis: Redis, them: tuple[Frozen, ...]) -> dict[Frozen, str]:
        return {each: str(each.id) for each in them}

    assert load.key(them=Frozen(id=3)) == "frozen:3"
    assert await load(client, (Frozen(id=1), Frozen(id=2))) == {Frozen(id=1): "1", Frozen(id=2): "2"}
    assert sorted(await client.keys("frozen:*")) == [b"frozen:1", b"frozen:2"]


# --- methods, options


async def test_on_methods(client: Redis, table: Table) -> None:
    """Of an instance, of a class, static: bound like every function."""

    class Repository:
        redis = client

        @cached_many("method:{ids}")
        async def method(self, ids: list[int]) -> dict[int, Item]:
            return await table.load(ids)

        @classmethod
        @cached_many("class:{ids}")
        async def of_class(cls, redis: Redis, ids: list[int]) -> dict[int, Item]:
            return await table.load(ids)

        @cached_many("static:{ids}")
        @staticmethod
        async def static(redis: Redis, ids: list[int]) -> dict[int, Item]:
            return await table.load(ids)

    repository = Repository()
    for _ in range(2):
        assert await repository.method([1, 2]) == items(1, 2)
        assert await Repository.of_class(client, [1]) == items(1)
        assert await repository.static(client, ids=[1]) == items(1)
    assert len(table.asked) == 3
    assert repository.method.key(3) == "method:3"
    await repository.method.invalidate([1])
    assert await client.keys("method:*") == [b"method:2"]


async def test_cache_if_and_jitter_are_for_each(client: Redis, table: Table) -> None:
    """Each entry has a life of its own; what is not to be stored is not, and the rest is."""
    shop = Shop(table, client, jitter=0.5, cache_if=lambda item: item.id != 2)
    table.missing = {3}
    assert await shop.get(*range(1, 8)) == ["a", "a", None, "a", "a", "a", "a"]
    lives = [await client.pttl(f"item:{n}") for n in (1, 4, 5, 6, 7)]
    assert len(set(lives)) > 3
    assert all(300_000 <= life <= 600_000 for life in lives)
    assert await client.exists("item:2", "item:3") == 0
    assert shop.stats.unstored == 2


async def test_ignored_parameters_are_in_no_key(client: Redis, table: Table) -> None:
    """As for `cached`."""

    @cached_many("item:{ids}", ignore=("trace",))
    async def load(redis: Redis, ids: list[int], trace: object) -> dict[int, Item]:
        return await table.load(ids)

    await load(client, [1], object())
    await load(client, [1], object())
    assert table.asked == [[1]]


# --- what it carries


async def test_invalidate_deletes_many(sqlite: Database, client: Redis, table: Table) -> None:
    """At once, or when the session's open transaction commits."""
    await sqlite.create(Base)

    @cached_many("item:{ids}")
    async def load(db: AsyncSession, redis: Redis, ids: list[int]) -> dict[int, Item]:
        return await table.load(ids)

    async with sqlite.sessions() as db:
        await load(db, client, [1, 2, 3])
        await load.invalidate(redis=client, ids={1})
        assert sorted(await client.keys("item:*")) == [b"item:2", b"item:3"]
        await db.execute(insert(Row).values(id=1, name="a"))
        await load.invalidate(db, client, [2])
        assert await client.exists("item:2")
        await db.commit()
        assert await client.keys("item:*") == [b"item:3"]
    assert load.stats.invalidations == 2
    await load.invalidate(redis=None, ids=[3])
    assert await client.exists("item:3")


async def test_refresh_loads_all(client: Redis, table: Table) -> None:
    """Whatever is there, and stores it."""
    shop = Shop(table, client)
    await shop.get(1)
    table.name = "b"
    assert await shop.get(1, 2) == ["a", "b"]
    assert [item.name for item in await shop.in_order.refresh(client, [1, 2])] == ["b", "b"]
    assert await shop.get(1, 2) == ["b", "b"]
    assert await shop.in_order.refresh(None, [1]) == [Item(id=1, name="b")]


async def test_refresh_of_what_is_not_there(client: Redis, table: Table) -> None:
    """Once a refresh has found nothing, no call gets the old value; other entries stay."""
    shop = Shop(table, client)
    await shop.get(1, 2)
    table.missing.add(1)
    assert [item and item.id for item in await shop.in_order.refresh(client, [1, 2])] == [None, 2]
    assert await client.keys("item:*") == [b"item:2"]
    assert await shop.get(1, 2) == [None, "a"]


async def test_put_and_explain_are_about_one(sqlite: Database, client: Redis) -> None:
    """As `key` is."""
    await sqlite.create(Base)

    @cached_many("row:{ids}", schema=Item)
    async def load(db: AsyncSession, redis: Redis, ids: list[int]) -> dict[int, Row]:
        return {row.id: row for row in await db.scalars(select(Row).where(Row.id.in_(ids)))}

    async with sqlite.sessions() as db:
        await db.execute(insert(Row).values(id=1, name="a"))
        await load.put(Item(id=1, name="a"), db, client, 1)
        await db.commit()
        assert (await load.explain(db, client, 1)).state == "hit"
        assert (await load.explain(db, client, 2)).state == "miss"
        assert await load(db, client, [1]) == items(1)
    assert load.stats.hits == 1


@pytest.mark.parametrize("value", [[1], {1}, (1,), frozenset[int]()])
def test_one_is_not_a_list(table: Table, value: Any) -> None:
    """`key` names one entry: a list is a mistake, and says so."""
    shop = Shop(table, None)
    with pytest.raises(TypeError, match=r"by_id: 'ids' is one of them here, not"):
        shop.by_id.key(ids=value)


async def test_the_type_of_elements_may_be_left_open(client: Redis) -> None:
    """Each value says itself what it is; a tuple may be one of them."""

    @cached_many("any:{things}")
    async def load(redis: Redis, things: list) -> dict[Any, str]:  # type: ignore[type-arg]
        return {thing: str(thing) for thing in things}

    assert await load(client, [1, "1", (1, 2)]) == {1: "1", "1": "1", (1, 2): "(1, 2)"}
    assert len({load.key(things=thing) for thing in (1, "1", (1, 2))}) == 3
    with pytest.raises(TypeError, match="'things' is one of them"):
        load.key(things=[1])


async def test_elements_may_be_tuples(client: Redis) -> None:
    """A declared tuple is one element."""

    @cached_many("cell:{cells}")
    async def load(redis: Redis, cells: list[tuple[int, int]]) -> dict[tuple[int, int], int]:
        return {cell: sum(cell) for cell in cells}

    assert await load(client, [(1, 2), (3, 4)]) == {(1, 2): 3, (3, 4): 7}
    assert await client.get(load.key(cells=(1, 2))) == b"3"


# --- what is wrong


@pytest.mark.parametrize("value", ["12", b"12", 3, None, {1: 2}])
async def test_what_is_no_list_is_refused(client: Redis, table: Table, value: Any) -> None:
    """Before any I/O, naming function and parameter."""
    shop = Shop(table, client)
    with pytest.raises(TypeError, match=r"by_id\(\): 'ids' must be a list, not"):
        shop.by_id(client, value)
    with pytest.raises(TypeError, match=r"'ids' must be a list"):
        await shop.by_id.invalidate(redis=client, ids=value)


def test_an_id_without_a_canonical_form_is_refused(table: Table) -> None:
    """Naming the parameter."""
    shop = Shop(table, None)
    with pytest.raises(KeyValueError, match=r"by_id: parameter 'ids' of type builtins\.object"):
        shop.by_id(None, [object()])


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        (
            "item:{number}",
            r"'\{number\}' must be a parameter that is a list of ids, .* 'ids', 'tags'",
        ),
        ("item", r"'\{ids\}' must be a parameter that is a list of ids"),
        ("item:{ids}:{tags}", "ids and tags are both lists; one of them must be the ids"),
        ("item:{idss}", r"there is no parameter 'idss'"),
        ("item:{ids", "a single '{'"),
    ],
)
def test_the_pattern_must_name_one_list(pattern: str, message: str) -> None:
    """The error names the function and the parameters."""

    async def load(redis: Redis, ids: list[int], tags: set[str], number: int) -> dict[int, Item]:
        raise LookupError(ids, tags, number)

    with pytest.raises(PatternError, match=message) as caught:
        cached_many(pattern)(load)
    assert "load" in str(caught.value)


def test_a_function_without_a_list_says_so() -> None:
    """There is nothing to take apart."""

    async def load(redis: Redis, number: int) -> dict[int, Item]:
        raise LookupError(number)

    with pytest.raises(PatternError, match=r"load.*the function has no list"):
        cached_many("item:{number}")(load)


@pytest.mark.parametrize("returns", [Item, set[Item], dict, list, int, dict[int, Item] | None, tuple[Item, ...]])
def test_other_shapes_are_refused(returns: Any) -> None:
    """A mapping with two types, or a list with one."""

    async def load(redis: Redis, ids: list[int]) -> Any:
        raise LookupError(ids)

    load.__annotations__["return"] = returns
    with pytest.raises(SchemaError, match=r"load: it returns .*dict\[int, User\]"):
        cached_many("item:{ids}")(load)


def test_a_return_type_is_demanded() -> None:
    """Also with `schema=`: a list and a mapping are read differently."""

    async def load(redis: Redis, ids: list[int]):  # type: ignore[no-untyped-def]
        raise LookupError(ids)

    for options in ({}, {"schema": Item}):
        with pytest.raises(OptionError, match="load: declare what it returns"):
            cached_many("item:{ids}", **options)(load)  # type: ignore[call-overload]


def test_the_values_must_have_a_json_form() -> None:
    """As for `cached`: the value's type is looked at."""

    async def load(redis: Redis, ids: list[int]) -> dict[int, Row]:
        raise LookupError(ids)

    with pytest.raises(SchemaError, match=r"load: Row is a mapped SQLAlchemy class.*schema="):
        cached_many("item:{ids}")(load)


async def load_of_session(db: AsyncSession, redis: Redis, ids: list[int]) -> dict[int, Item]:
    """Stand for a query function."""
    raise LookupError(ids)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"early": 1}, "early=1: cached_many reloads nothing early"),
        ({"exp": 0}, "exp=0"),
        ({"expiry": 1}, "cached_many has no option expiry"),
        ({"ignore": ("ids",)}, "'ids' is ignored"),
        ({"ignore": ("idds",)}, "ignore names 'idds'"),
        ({"stale": 5}, "parameter 'db'"),
        ({"session_factory": async_sessionmaker()}, "there are none without stale="),
    ],
)
def test_impossible_options_are_refused(options: dict[str, Any], message: str) -> None:
    """At decoration, by name."""
    with pytest.raises((OptionError, PatternError), match=f"load_of_session.*{message}"):
        cached_many("item:{ids}", **options)(load_of_session)


def test_only_coroutine_functions_are_decorated() -> None:
    """As for `cached`."""

    def load(redis: Redis, ids: list[int]) -> dict[int, Item]:
        raise LookupError(ids)

    with pytest.raises(OptionError, match=r"@cached_many on .*load: not a coroutine function"):
        cached_many("item:{ids}")(load)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("returns", "gives", "message"),
    [
        (dict[int, Item], [1], "load gave list where a mapping is declared"),
        (list[Item], [], "load gave 0 values for 2 ids"),
        (list[Item], None, "load gave 0 values for 2 ids"),
    ],
)
async def test_an_answer_of_another_shape_is_an_error(
    client: Redis, table: Table, returns: Any, gives: Any, message: str
) -> None:
    """Nothing is stored, and no lease is left."""

    async def load(redis: Redis, ids: list[int]) -> Any:
        return gives

    load.__annotations__["return"] = returns
    with pytest.raises(SchemaError, match=message):
        await cached_many("item:{ids}")(load)(client, [1, 2])
    await default_cache.aclose()
    assert await client.keys("*item:*") == []


@pytest.mark.parametrize(
    ("declared", "element"),
    [
        (list[int], int),
        (Sequence[str], str),
        (Iterable[int], int),
        (set[int], int),
        (tuple[int, ...], int),
        (Annotated[list[int], "ids"], int),
        (list[int] | None, int),
        (list[list[int]], list[int]),
        (list, MISSING),
        (tuple, MISSING),
    ],
)
def test_what_takes_a_list(declared: Any, element: Any) -> None:
    """Every annotation that says so, whatever it is wrapped in."""

    async def load(ids: Any) -> dict[int, Item]:
        raise LookupError(ids)

    load.__annotations__["ids"] = declared
    found = IdList.of(inspect_function(load, "test"), {"ids"}, "test")
    assert (found.parameter, found.declared) == ("ids", element)


def test_shapes() -> None:
    """Mappings and lists have different annotations."""
    assert ResultShape.of(Mapping[int, Item], "f").mapping
    assert ResultShape.of(Annotated[dict[int, Item], "x"], "f").value is Item
    assert not ResultShape.of(Sequence[Item], "f").mapping


# --- what others load


async def waiting(gated: GatedClient, call: Any, leases: int) -> asyncio.Task[Any]:
    """Start a caller that asks for so many leases, and let it find them taken."""
    gates = [gated.after("acquire") for _ in range(leases)]
    for gate in gates:
        gate.open()
    task = asyncio.create_task(call)
    for gate in gates:
        await gate.reached()
    for _ in range(20):  # from here on it needs nothing but its turn to join the load
        await asyncio.sleep(0)
    return task


async def test_overlapping_ids_are_loaded_once(client: Redis, gated: GatedClient, table: Table) -> None:
    """Each caller loads what no other loads yet, and waits for the rest; each id is loaded once."""
    first, shop = Shop(table, client), Shop(table, gated)
    gate = table.gates.before("load")
    calls = [asyncio.create_task(first.get(1, 2))]
    await gate.reached()
    calls.append(await waiting(gated, shop.get(2, 3), 2))
    calls.append(await waiting(gated, shop.get(3, 1), 2))
    gate.open()
    assert await asyncio.gather(*calls) == [["a", "a"]] * 3
    assert table.asked == [[1, 2], [3]]
    assert first.stats.fills + shop.stats.fills == 3


async def test_here_the_load_itself_is_joined(client: Redis, gated: GatedClient, table: Table) -> None:
    """In one process, a follower gets the result before it is in Redis."""
    shop = Shop(table, gated)
    gate, fill = table.gates.before("load"), gated.before("fill")
    first = asyncio.create_task(shop.get(1, 2))
    await gate.reached()
    second = await waiting(gated, shop.get(2, 1), 2)
    gate.open()
    await fill.reached()
    assert await second == ["a", "a"]
    assert await client.keys("item:*") == []
    fill.open()
    await first
    assert (table.asked, shop.stats.joins) == ([[1, 2]], 2)


async def test_here_others_hear_that_there_is_nothing(client: Redis, gated: GatedClient, table: Table) -> None:
    """A missing id is missing for all followers."""
    shop = Shop(table, gated)
    table.missing = {1}
    gate = table.gates.before("load")
    first = asyncio.create_task(shop.get(1))
    await gate.reached()
    second = await waiting(gated, shop.by_id(gated, [1]), 1)
    gate.open()
    assert (await first, await second) == ([None], {})
    assert table.asked == [[1]]


async def test_what_is_the_leader_s_only_is_loaded_by_each(client: Redis, gated: GatedClient, table: Table) -> None:
    """It said that its result must not be stored: for others it may be another one."""

    @default_cache.cached_many("item:{ids}")
    async def many(redis: Any, ids: list[int]) -> dict[int, Item]:
        no_store("a preview")
        return await table.load(ids)

    gate = table.gates.before("load")
    first = asyncio.create_task(many(client, [1]))
    await gate.reached()
    second = await waiting(gated, many(gated, [1]), 1)
    gate.open()
    assert await first == await second == items(1)
    assert table.asked == [[1], [1]]
    assert await client.keys("item:*") == []


async def test_a_caller_after_wait_loads_and_does_not_store(client: Redis, table: Table) -> None:
    """`wait` bounds it; the lease is another's still."""
    slow, quick = Shop(table, client), Shop(table, client, wait=0)
    gate = table.gates.before("load")
    first = asyncio.create_task(slow.get(1))
    await gate.reached()
    assert await quick.get(1, 2) == ["a", "a"]
    assert table.asked == [[1], [2], [1]]
    assert (quick.stats.fills, quick.stats.bypasses) == (1, 1)
    gate.open()
    await first


async def test_single_calls_and_many_share_their_loads(client: Redis, gated: GatedClient, table: Table) -> None:
    """The second caller joins; a row that was not there is missing for both."""

    @default_cache.cached("item:{number}", shared=True)
    async def one(redis: Any, number: int) -> Item | None:
        return (await table.load([number])).get(number)

    @default_cache.cached_many("item:{ids}", shared=True)
    async def many(redis: Any, ids: list[int]) -> dict[int, Item]:
        return await table.load(ids)

    table.missing = {2}
    gate = table.gates.before("load")
    first = asyncio.create_task(many(client, [1, 2]))
    await gate.reached()
    joined = [await waiting(gated, one(gated, number), 1) for number in (1, 2)]
    gate.open()
    assert await first == items(1)
    assert await asyncio.gather(*joined) == [Item(id=1, name="a"), None]
    assert table.asked == [[1, 2]]
    gate = table.gates.before("load")
    single = asyncio.create_task(one(client, 3))
    await gate.reached()
    follower = await waiting(gated, many(gated, [3]), 1)
    gate.open()
    assert (await single, await follower) == (Item(id=3, name="a"), items(3))
    assert table.asked == [[1, 2], [3]]
    assert (one.stats.joins, many.stats.joins) == (2, 1)


async def test_a_follower_of_an_absent_row_answers_in_its_own_form(
    client: Redis, gated: GatedClient, table: Table
) -> None:
    """A function that raises for a missing row raises."""

    @default_cache.cached("item:{number}", shared=True)
    async def one(redis: Any, number: int) -> Item:
        raise NoResultFound("none")

    @default_cache.cached_many("item:{ids}", shared=True)
    async def many(redis: Any, ids: list[int]) -> dict[int, Item]:
        return await table.load(ids)

    table.missing = {1}
    gate = table.gates.before("load")
    first = asyncio.create_task(many(client, [1]))
    await gate.reached()
    single = await waiting(gated, one(gated, 1), 1)
    gate.open()
    assert await first == {}
    with pytest.raises(NoResultFound, match="none"):
        await single
    assert one.stats == Stats(misses=1, bypasses=1, loads=1)


async def test_a_missing_row_that_another_did_not_find_is_missing(
    client: Redis, gated: GatedClient, table: Table
) -> None:
    """The other raises NoResultFound, and this one knows what that means."""

    @default_cache.cached("item:{number}", shared=True)
    async def one(redis: Any, number: int) -> Item:
        await table.load([number])
        raise NoResultFound("none")

    @default_cache.cached_many("item:{ids}", shared=True)
    async def many(redis: Any, ids: list[int]) -> dict[int, Item]:
        return await table.load(ids)

    gate = table.gates.before("load")
    single = asyncio.create_task(one(client, 1))
    await gate.reached()
    follower = await waiting(gated, many(gated, [1]), 1)
    gate.open()
    with pytest.raises(NoResultFound):
        await single
    assert await follower == {}
    assert table.asked == [[1]]


@pytest.mark.parametrize("ids", [(1,), (1, 2)], ids=["one", "several"])
async def test_an_error_reaches_followers(
    client: Redis, gated: GatedClient, table: Table, ids: tuple[int, ...]
) -> None:
    """Of one id it is theirs, too; of several it may be another id's, and each asks for its own, all at once."""
    shop = Shop(table, gated)
    table.error = ValueError("broken")
    gate = table.gates.before("load")
    calls: list[Any] = [asyncio.create_task(shop.get(*ids))]
    await gate.reached()
    calls += [await waiting(gated, shop.get(1), 1) for _ in range(3)]
    gate.open()
    found = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(error) for error in found] == [ValueError] * 4
    assert len(table.asked) == (1 if len(ids) == 1 else 4)
    await shop.cache.aclose()
    assert await client.keys("*item:*") == []


async def test_a_caller_that_waits_has_loaded_its_own_ids(client: Redis, gated: GatedClient, table: Table) -> None:
    """A caller loads and stores its own ids before it waits for another's load."""
    holder, shop = Shop(table, client), Shop(table, gated)
    gate = table.gates.before("load")
    first = asyncio.create_task(holder.get(2))
    await gate.reached()
    between = await waiting(gated, shop.get(1, 2), 2)
    assert await shop.get(1) == ["a"]
    assert not between.done()
    gate.open()
    assert await between == ["a", "a"]
    assert await first == ["a"]
    assert table.asked == [[2], [1]]


async def test_a_cancelled_leader_of_many_leaves_the_load_to_a_follower(
    client: Redis, gated: GatedClient, table: Table
) -> None:
    """One of the followers loads what is missing."""
    shop = Shop(table, gated)
    gate = table.gates.before("load")
    first = asyncio.create_task(shop.get(1, 2))
    await gate.reached()
    second = await waiting(gated, shop.get(2, 3), 2)
    assert await shop.get(3) == ["a"]  # its own is stored, and it waits for the rest
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert await second == ["a", "a"]
    assert table.asked == [[1, 2], [3], [2]]
    await shop.cache.aclose()
    assert await client.keys("fastrdb:lease:*") == []


async def test_a_cancelled_acquire_gives_its_leases_back(client: Redis, gated: GatedClient, table: Table) -> None:
    """The server had granted them."""
    shop = Shop(table, gated)
    gate = gated.after("acquire")
    call = asyncio.create_task(shop.get(1, 2))
    await gate.reached()
    assert len(await client.keys("fastrdb:lease:*")) == 2
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    await shop.cache.aclose()
    assert await client.keys("fastrdb:lease:*") == []
    assert shop.cache.runtime.here().flights.by_token == {}


# --- races with writers


async def test_an_invalidation_during_the_load_wins(client: Redis, table: Table) -> None:
    """Of the ids that it reaches: what was read before it is not stored after it."""
    shop = Shop(table, client)
    gate = table.gates.after("load")
    call = asyncio.create_task(shop.get(1, 2))
    await gate.reached()
    await Cache(client).invalidate(keys=["item:1"])
    gate.open()
    assert await call == ["a", "a"]
    assert await client.keys("item:*") == [b"item:2"]
    assert (shop.stats.fills, shop.stats.unstored) == (1, 1)


async def test_the_invalidation_s_mutant(client: Redis, table: Table, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the lease in between, the old value would be stored."""
    without("lease-check", script="fill").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await test_an_invalidation_during_the_load_wins(client, table)


async def test_barred_ids_are_loaded_and_not_stored(sqlite: Database, client: Redis) -> None:
    """A write to one of them is being committed: the others are stored."""
    await sqlite.create(Base)
    cache = Cache(client)

    @cache.cached_many("row:{ids}", schema=Item)
    async def load(db: AsyncSession, ids: list[int]) -> dict[int, Row]:
        return {row.id: row for row in await db.scalars(select(Row).where(Row.id.in_(ids)))}

    async with sqlite.sessions() as db:
        await db.execute(insert(Row), [{"id": n, "name": "a"} for n in (1, 2)])
        await db.commit()
        intent = cache.runtime.store(client).intent(client)
        intent.add(keys=["row:1"])
        await intent.begin()
        assert await load(db, [1, 2]) == items(1, 2)
        await intent.end(committed=True)
    assert await client.keys("row:*") == [b"row:2"]
    assert load.stats.bypasses == 1
    await cache.aclose()


async def test_a_session_that_has_written_goes_past_the_cache(sqlite: Database, client: Redis) -> None:
    """It neither reads nor fills; and what it has written is there when it has committed."""
    await sqlite.create(Base)
    cache = Cache(client)

    @cache.cached_many("row:{ids}", schema=Item)
    async def load(db: AsyncSession, ids: list[int]) -> dict[int, Row]:
        return {row.id: row for row in await db.scalars(select(Row).where(Row.id.in_(ids)))}

    @cache.invalidates("row:*")
    async def rename(db: AsyncSession, name: str) -> None:
        await db.execute(update(Row).values(name=name))

    async with sqlite.sessions() as db:
        await db.execute(insert(Row).values(id=1, name="a"))
        await db.commit()
        await load(db, [1])
        await rename(db, "b")
        assert (await load(db, [1]))[1].name == "b"
        assert await client.get("row:1") == b'{"id":1,"name":"a"}'
        await db.commit()
        assert (await load(db, [1]))[1].name == "b"
        assert load.stats.bypasses == 1
    await cache.aclose()


async def test_an_old_object_of_the_session_does_not_answer(sqlite: Database, client: Redis) -> None:
    """The stored value comes from the database, and not from the identity map."""
    await sqlite.create(Base)
    cache = Cache(client)

    @cache.cached_many("row:{ids}", schema=Item)
    async def load(db: AsyncSession, ids: list[int]) -> dict[int, Row]:
        return {number: row for number in ids if (row := await db.get(Row, number)) is not None}

    async with sqlite.sessions() as db, sqlite.sessions() as other:
        db.add(Row(id=1, name="a"))
        await db.commit()
        await other.execute(update(Row).values(name="b"))
        await other.commit()
        assert (await load(db, [1]))[1].name == "b"
    await cache.aclose()


# --- stale, fail_safe


async def age(client: Redis, left_ms: int, *numbers: int) -> None:
    """Shorten the life of these entries, as if time had passed."""
    for number in numbers:
        assert await client.pexpire(f"item:{number}", left_ms)


async def test_stale_values_at_once_and_one_reload_behind_them(client: Redis, table: Table) -> None:
    """All that are past `exp` are reloaded in one call; what is missing is loaded by the caller."""
    shop = Shop(table, client, stale=60)
    await shop.get(1, 2, 3)
    table.name = "b"
    await age(client, 30_000, 1, 2)
    gate = table.gates.before("load")
    task = asyncio.create_task(shop.get(1, 2, 3))
    await gate.reached()
    assert await task == ["a", "a", "a"]
    assert await shop.get(2, 1) == ["a", "a"]
    gate.open()
    await shop.settled()
    assert table.asked == [[1, 2, 3], [1, 2]]
    assert await shop.get(1, 2, 3) == ["b", "b", "a"]
    assert shop.stats == Stats(misses=3, loads=5, fills=5, hits=4, stale=4)
    assert await client.pttl("item:1") > 650_000


async def test_a_stale_entry_that_was_invalidated_is_not_stored_again(client: Redis, table: Table) -> None:
    """R19 for many: the reload has lost its lease."""
    shop = Shop(table, client, stale=60)
    await shop.get(1, 2)
    await age(client, 30_000, 1, 2)
    gate = table.gates.after("load")
    assert await shop.get(1, 2) == ["a", "a"]
    await gate.reached()
    await Cache(client).invalidate(keys=["item:1"])
    gate.open()
    await shop.settled()
    assert await client.keys("item:*") == [b"item:2"]


async def test_one_process_reloads(client: Redis, table: Table) -> None:
    """The others find the leases taken, or the entries renewed."""
    shops = [Shop(table, client, stale=60) for _ in range(3)]
    await shops[0].get(1, 2)
    await age(client, 30_000, 1, 2)
    for shop in shops:
        assert await shop.get(1, 2) == ["a", "a"]
    for shop in shops:
        await shop.settled()
    assert table.asked == [[1, 2]] * 2


async def test_what_the_reload_does_not_find_goes(client: Redis, table: Table) -> None:
    """The old value is served no longer; without `negative_exp` nothing takes its place."""
    shop = Shop(table, client, stale=60)
    await shop.get(1, 2)
    await age(client, 30_000, 1, 2)
    table.missing = {1}
    assert await shop.get(1, 2) == ["a", "a"]
    await shop.settled()
    assert await client.keys("item:*") == [b"item:2"]
    assert await shop.get(1, 2) == [None, "a"]


async def test_an_error_of_a_reload_is_an_event(client: Redis, table: Table) -> None:
    """Of each id, and not raised."""
    shop = Shop(table, client, stale=60)
    await shop.get(1, 2)
    await age(client, 30_000, 1, 2)
    table.error = ValueError("broken")
    assert await shop.get(1, 2) == ["a", "a"]
    await shop.settled()
    assert shop.stats.failed == 2
    assert await client.keys("fastrdb:lease:*") == []
    assert await shop.get(1) == ["a"]


async def test_the_reload_has_a_session_of_its_own(sqlite: Database, client: Redis) -> None:
    """From `session_factory`."""
    await sqlite.create(Base)
    cache, used = Cache(client), list[AsyncSession]()

    @cache.cached_many("row:{ids}", schema=Item, stale=60, session_factory=sqlite.sessions)
    async def load(db: AsyncSession, ids: list[int]) -> dict[int, Row]:
        used.append(db)
        return {row.id: row for row in await db.scalars(select(Row).where(Row.id.in_(ids)))}

    async with sqlite.sessions() as db:
        await db.execute(insert(Row), [{"id": n, "name": "a"} for n in (1, 2)])
        await db.commit()
        await load(db, [1, 2])
        await client.pexpire("row:1", 30_000)
        assert await load(db, [1, 2]) == items(1, 2)
        await asyncio.gather(*cache.runtime.here().reloads.values())
        assert [session is db for session in used] == [True, False]
    assert not used[1].in_transaction()
    assert await client.pttl("row:1") > 60_000
    await cache.aclose()


async def test_the_old_values_help_when_the_database_is_away(client: Redis, table: Table) -> None:
    """If all that is missing can be served; one that cannot makes it an error."""
    shop = Shop(table, client, fail_safe=60)
    await shop.get(1, 2, 3)
    await age(client, 30_000, 1, 2)
    table.error = DEAD
    assert await shop.get(1, 2, 3) == ["a", "a", "a"]
    assert shop.stats.stale == 2
    assert await client.pttl("item:1") <= 30_000
    with pytest.raises(ConnectionRefusedError):
        await shop.get(1, 4)
    table.error, table.name = None, "b"
    assert await shop.get(1, 2, 3) == ["b", "b", "a"]


async def test_what_is_not_answered_is_not_counted(client: Redis, table: Table) -> None:
    """One id that cannot be served makes the call an error, and no caller has seen the others."""
    shop = Shop(table, client, fail_safe=60)
    await shop.get(1, 2)
    await age(client, 30_000, 1, 2)
    table.error = DEAD
    with pytest.raises(ConnectionRefusedError):
        await shop.get(1, 2, 4)
    assert (shop.stats.hits, shop.stats.stale) == (0, 0)


async def test_a_refresh_that_fails_says_so(client: Redis, table: Table) -> None:
    """A caller that asks for a load never gets the old entry, as with a single call."""
    shop = Shop(table, client, fail_safe=60)
    await shop.get(1)
    table.error = DEAD
    with pytest.raises(ConnectionRefusedError):
        await shop.in_order.refresh(client, [1])
    assert await client.get("item:1") is not None


async def test_a_value_that_came_meanwhile_is_a_hit(client: Redis, table: Table) -> None:
    """Another process could reach the database."""
    shop, other = Shop(table, client, fail_safe=60), Shop(Table(), client)
    table.error = DEAD
    gate = table.gates.before("load")
    call = asyncio.create_task(shop.get(1))
    await gate.reached()
    await client.delete("fastrdb:lease:{item:1}")
    other.table.name = "b"
    await other.get(1)
    await client.pexpire("item:1", 90_000)
    gate.open()
    assert await call == ["b"]
    assert (shop.stats.hits, shop.stats.stale) == (1, 0)
    await other.cache.aclose()


@pytest.mark.parametrize("how", ["a session that has written", "no Redis"])
async def test_without_a_look_at_the_cache_the_error_is_raised(sqlite: Database, gated: GatedClient, how: str) -> None:
    """It may have written what is not in Redis; or Redis is away, too."""
    await sqlite.create(Base)

    @default_cache.cached_many("item:{ids}", fail_safe=60)
    async def load(db: AsyncSession, redis: Any, ids: list[int]) -> dict[int, Item]:
        if asked:
            if how == "no Redis":
                gated.fail_with(ConnectionError("cut"), on="MGET")
                gated.fail_with(ConnectionError("cut"), on="GET")
            else:
                await db.execute(insert(Row).values(id=1, name="a"))
            raise DEAD
        asked.append(ids)
        return items(*ids)

    asked: list[list[int]] = []
    async with sqlite.sessions() as db:
        await load(db, gated, [1, 2])
        await age(gated, 30_000, 1, 2)
        with pytest.raises(ConnectionRefusedError):
            await load(db, gated, [1, 2])
    gated.heal()
    await default_cache.aclose()


async def test_fail_safe_after_an_invalidation_raises(client: Redis, table: Table) -> None:
    """The error is raised."""
    shop = Shop(table, client, fail_safe=60)
    await shop.get(1)
    await age(client, 30_000, 1)
    table.error = DEAD
    gate = table.gates.before("load")
    call = asyncio.create_task(shop.get(1))
    await gate.reached()
    await Cache(client).invalidate("item:*")
    gate.open()
    with pytest.raises(ConnectionRefusedError):
        await call


async def test_equal_ids_of_two_types_are_answered_and_not_stored(client: Redis) -> None:
    """The mapping has one value for both, and the function may give two."""

    @Cache(client).cached_many("kind:{ids}")
    async def kinds(ids: list[int]) -> dict[int, str]:
        return {each: type(each).__name__ for each in ids}

    assert await kinds([1, True]) == {1: "bool"}
    assert await client.keys("kind:*") == []
    assert await kinds([1]) == {1: "int"}
    assert await kinds([True]) == {1: "bool"}
