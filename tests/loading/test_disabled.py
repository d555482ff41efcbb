"""`cache.disabled()`: which calls go past the cache inside the block, and which are not affected."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any
from unittest.mock import AsyncMock

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, OptionError, Stats, cached, default_cache
from fastrdb.testing import GatedClient, Gates
from tests.support.servers.databases import Database
from tests.support.world.items import Item, Loader
from tests.support.world.world import world


@pytest.fixture
async def cache(gated: GatedClient) -> AsyncIterator[Cache]:
    """Return a cache on the gated client."""
    async with Cache(gated) as made:
        yield made


def item_loader(cache: Cache) -> tuple[Any, Loader]:
    """Return a cached function and the loader that counts its loads."""
    loader = Loader()

    @cache.cached("item:{number}")
    async def load(number: int, db: AsyncSession | None = None) -> Item:
        return loader.item(number)

    return load, loader


async def test_nothing_is_read_and_nothing_is_stored(cache: Cache, gated: GatedClient) -> None:
    """Inside, the function runs each time, and Redis is not asked; afterwards the entry is there as it was."""
    load, loader = item_loader(cache)
    await load(1)
    gated.log.clear()
    with cache.disabled():
        loader.name = "b"
        assert [(await load(1)).name, (await load(2)).name, (await load.refresh(1)).name] == ["b", "b", "b"]
        assert loader.calls == 4
        assert (await load.explain(1)).reasons == ("the cache is disabled",)
    assert gated.names() == []
    assert load.stats == Stats(misses=1, loads=4, fills=1, bypasses=3)
    assert (await load(1)).name == "a"


async def test_what_is_invalidated_is_invalidated_all_the_same(cache: Cache, client: Redis) -> None:
    """Others go on reading, so no write may leave them an old entry."""
    load, loader = item_loader(cache)

    @cache.invalidates("item:{number}")
    async def change(number: int) -> None:
        loader.name = "b"

    await load(1)
    await load(2)
    with cache.disabled():
        await change(1)
        await load.invalidate(number=2)
    assert await client.exists("item:1", "item:2") == 0
    assert (await load(1)).name == "b"


async def test_what_is_put_is_only_invalidated(sqlite: Database, client: Redis) -> None:
    """A write inside that would store its value deletes the entry instead."""
    async with world(sqlite, client) as w:
        assert await w.one.read() == "old"
        with w.one.cache.disabled():
            await w.one.save("new")
        assert await w.keys("item:*") == set()
        await w.fair()


async def test_other_tasks_are_not_affected(cache: Cache) -> None:
    """Two requests at once: one goes past the cache, the other one hits; a task started inside goes past it too."""
    load, loader = item_loader(cache)
    gates = Gates()
    gate = gates.before("inside")
    await load(1)

    async def past() -> int:
        with cache.disabled():
            await gates.arrive("inside")
            await asyncio.create_task(load(1))
            return loader.calls

    task = asyncio.create_task(past())
    await gate.reached()
    await load(1)
    assert (load.stats.hits, loader.calls) == (1, 1)
    gate.open()
    assert await task == 2


async def test_a_task_that_outlives_it_is_not_left_without_a_cache(cache: Cache) -> None:
    """A task that was started inside uses the cache again when the block is over."""
    load, _ = item_loader(cache)
    gates = Gates()
    gate = gates.before("later")
    await load(1)

    async def later() -> None:
        await gates.arrive("later")
        await load(1)

    with cache.disabled():
        task = asyncio.create_task(later())
        await gate.reached()
    gate.open()
    await task
    assert load.stats.hits == 1


async def test_nested_blocks_end_one_by_one(cache: Cache) -> None:
    """The outer one holds until its own end."""
    load, _ = item_loader(cache)
    await load(1)
    with cache.disabled():
        with pytest.raises(ZeroDivisionError), cache.disabled():
            raise ZeroDivisionError
        await load(1)
        assert load.stats.hits == 0
    await load(1)
    assert load.stats.hits == 1


async def test_another_cache_is_not_affected(cache: Cache, client: Redis) -> None:
    """Each cache has a switch of its own; the decorators' is `default_cache`."""
    load, _ = item_loader(cache)

    @cached("number")
    async def number(redis: Redis) -> int:
        return 1

    for _ in range(2):
        await number(client)
        await load(1)
    with default_cache.disabled():
        await number(client)
        await load(1)
    assert (number.stats.hits, number.stats.bypasses) == (1, 1)
    assert load.stats.hits == 2


async def test_what_is_kept_in_the_process_is_not_read_either(client: Redis) -> None:
    """A near cache is switched off with its cache, for the same callers, and is there again afterwards."""
    async with Cache(client, near=True) as cache:
        load, loader = item_loader(cache)
        while not load.stats.near:
            await load(1)
        calls, near = loader.calls, load.stats.near
        with cache.disabled():
            await load(1)
        assert (loader.calls, load.stats.near) == (calls + 1, near)
        await load(1)
        assert (loader.calls, load.stats.near) == (calls + 1, near + 1)


async def test_without_any_redis() -> None:
    """Where there is no client, or a mock of one, functions just run, and writes too."""
    cache = Cache()
    load, _ = item_loader(cache)

    @cache.invalidates("item:*")
    async def change() -> str:
        return "changed"

    @cache.cached("number")
    async def number(redis: Redis) -> int:
        return 1

    with pytest.raises(OptionError, match="no Redis"):
        await load(1)
    with cache.disabled():
        assert (await load(1)).name == "a"
        assert await change() == "changed"
        assert await number(AsyncMock(spec=Redis)) == 1
