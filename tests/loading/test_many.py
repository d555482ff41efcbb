"""Many keys at once: one MGET, one load of what is missing, stored under the same protocol."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, update
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, Stats, cached, default_cache, no_store
from fastrdb.loading.many import get_many
from fastrdb.testing import GatedClient
from tests.support.servers.databases import Database
from tests.support.world.items import Base, Item, Row
from tests.support.world.stores import members


class Batch:
    """A cached function, and a loader for many of its calls that notes what it was asked for."""

    def __init__(self, client: Any, **options: Any) -> None:
        decorate: Any = cached("item:{number}", **options)

        @decorate  # type: ignore[untyped-decorator]
        async def one(redis: Any, number: int) -> Item | None:
            return self.value(number)

        self.one: Any = one
        self.client = client
        self.asked: list[list[int]] = []
        self.missing: set[int] = set()

    def value(self, number: int) -> Item | None:
        """Return the row of that number."""
        return None if number in self.missing else Item(id=number, name="a")

    async def get(self, *numbers: int) -> list[Any]:
        """Ask for many."""
        query = self.one.query
        values = [query.plan.bind(None, (), {"redis": self.client, "number": number}) for number in numbers]

        async def load(positions: list[int], session: Any = None, /) -> Sequence[Any]:
            self.asked.append([numbers[at] for at in positions])
            return [self.value(numbers[at]) for at in positions]

        return await get_many(query, values, load)


def items(*numbers: int) -> list[Item]:
    """Return the expected items."""
    return [Item(id=number, name="a") for number in numbers]


async def test_answers_come_in_the_order_asked(client: Redis) -> None:
    """Hits and loads are in order; all missing ids are loaded at once."""
    batch = Batch(client)
    await batch.one(client, 2)
    await batch.one(client, 4)
    assert await batch.get(5, 4, 3, 2, 1) == items(5, 4, 3, 2, 1)
    assert batch.asked == [[5, 3, 1]]
    assert await batch.get(1, 2, 3, 4, 5) == items(1, 2, 3, 4, 5)
    assert len(batch.asked) == 1
    assert batch.one.stats == Stats(hits=7, misses=5, loads=5, fills=5)


async def test_what_it_stored_is_found_by_single_calls(client: Redis) -> None:
    """It is the same entry under the same key, indexed, and no lease is left."""
    batch = Batch(client)
    await batch.get(1, 2)
    before = batch.one.stats.loads
    assert await batch.one(client, 1) == Item(id=1, name="a")
    assert batch.one.stats.loads == before
    await default_cache.aclose()
    assert await client.keys("fastrdb:lease:*") == []
    assert await members(client, "index") == {b"item:1", b"item:2"}


async def test_what_is_asked_for_twice_is_answered_twice(client: Redis) -> None:
    """Each answer is a value of its own."""
    first, second = await Batch(client).get(1, 1)
    assert first == second == Item(id=1, name="a")


async def test_nothing_asked_is_nothing_loaded(client: Redis) -> None:
    """The loader decides what an empty answer is."""
    batch = Batch(client)
    assert await batch.get() == []


async def test_missing_rows_are_none_and_not_stored(client: Redis) -> None:
    """The rows may be there the next time."""
    batch = Batch(client)
    batch.missing = {2}
    assert await batch.get(1, 2) == [Item(id=1, name="a"), None]
    assert await client.keys("item:*") == [b"item:1"]
    batch.missing = set()
    assert await batch.get(1, 2) == items(1, 2)


async def test_an_entry_of_a_missing_row_is_none(client: Redis) -> None:
    """A negative entry of a single call answers here too."""
    await client.set("item:1", ' {"error": "NoResultFound", "message": "none"}')
    batch = Batch(client)
    assert await batch.get(1) == [None]
    assert batch.one.stats.corrupt == 0


async def test_broken_entries_are_loaded_and_replaced(client: Redis) -> None:
    """Counted like those of single calls."""
    batch = Batch(client)
    await client.set("item:1", "{")
    assert await batch.get(1) == items(1)
    assert batch.one.stats.corrupt == 1
    assert await client.get("item:1") == b'{"id":1,"name":"a"}'


async def test_cache_if_and_no_store_hold_here_too(client: Redis) -> None:
    """Answered, and not stored."""
    batch = Batch(client, cache_if=lambda item: item.id != 1)
    assert await batch.get(1, 2) == items(1, 2)
    assert await client.keys("item:*") == [b"item:2"]
    query = batch.one.query

    async def load(positions: list[int], session: Any = None, /) -> Sequence[Any]:
        no_store("a preview")
        return items(3)

    values = [query.plan.bind(None, (), {"redis": client, "number": 3})]
    assert await get_many(query, values, load) == items(3)
    assert await client.keys("item:3") == []


async def test_an_error_of_the_load_gives_the_leases_back(client: Redis) -> None:
    """The next caller need not wait for them to run out."""
    batch = Batch(client)
    query = batch.one.query

    async def load(positions: list[int], session: Any = None, /) -> Sequence[Any]:
        raise ValueError(positions)

    values = [query.plan.bind(None, (), {"redis": client, "number": 1})]
    with pytest.raises(ValueError, match=r"\[0\]"):
        await get_many(query, values, load)
    await default_cache.aclose()
    assert await client.keys("*item:1*") == []


async def test_what_another_caller_is_loading_is_not_loaded_again(client: Redis, gated: GatedClient) -> None:
    """Another caller holds the lease, has loaded, and is about to store: its value answers here too."""
    batch = Batch(client)
    gate = gated.gates.before("fill")
    single = asyncio.create_task(batch.one(gated, 1))
    await gate.reached()
    assert await batch.get(1, 2) == items(1, 2)
    assert batch.asked == [[2]]
    assert batch.one.stats.joins == 1
    assert await client.keys("item:*") == [b"item:2"]
    gate.open()
    await single
    assert await client.exists("item:1")


async def test_an_invalidation_during_the_load_wins(client: Redis) -> None:
    """A value that was read before the invalidation is not stored after it."""
    batch = Batch(client)
    query = batch.one.query

    async def load(positions: list[int], session: Any = None, /) -> Sequence[Any]:
        await Cache(client).invalidate("item:1")
        return items(1, 2)

    values = [query.plan.bind(None, (), {"redis": client, "number": number}) for number in (1, 2)]
    assert await get_many(query, values, load) == items(1, 2)
    assert await client.keys("item:*") == [b"item:2"]


async def test_an_entry_that_comes_meanwhile_answers(client: Redis, gated: GatedClient) -> None:
    """Another caller stores the entry between MGET and the leases: nothing is loaded."""
    batch = Batch(gated)
    gate = gated.gates.after("MGET")
    call = asyncio.create_task(batch.get(1))
    await gate.reached()
    await batch.one(client, 1)
    gate.open()
    assert await call == items(1)
    assert batch.asked == []


async def test_without_redis_everything_is_loaded(unused_tcp_port: int) -> None:
    """The function runs at once, and no call raises; `redis=None` does the same, uncounted."""
    async with Redis(port=unused_tcp_port, retry=None) as dead:  # type: ignore[arg-type]
        batch = Batch(dead)
        assert await batch.get(1, 2) == items(1, 2)
        assert batch.asked == [[1, 2]]
        assert batch.one.stats.unavailable > 0
    batch = Batch(None)
    assert await batch.get(1, 2) == items(1, 2)
    assert batch.one.stats == Stats()


async def test_a_session_that_has_written_goes_past_the_cache(sqlite: Database, client: Redis) -> None:
    """The session neither reads nor fills: its rows are not committed yet."""
    await sqlite.create(Base)

    @cached("row:{number}", schema=Item)
    async def one(db: AsyncSession, redis: Redis, number: int) -> Row | None:
        return await db.get(Row, number)

    query = one.query  # type: ignore[attr-defined]
    async with sqlite.sessions() as db:
        await db.execute(insert(Row).values(id=1, name="a"))
        await db.commit()
        assert (await one(db, client, 1)) == Item(id=1, name="a")
        await db.execute(update(Row).values(name="b"))

        async def load(positions: list[int], session: Any = None, /) -> Sequence[Any]:
            return [await db.get(Row, 1, populate_existing=True)]

        values = [query.plan.bind(None, (), {"db": db, "redis": client, "number": 1})]
        [found] = await get_many(query, values, load)
        assert found.name == "b"
        await db.rollback()
    assert await client.get("row:1") == b'{"id":1,"name":"a"}'
