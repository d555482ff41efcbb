"""The near cache together with options of time, and with many keys at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, FastRDB, Stats
from fastrdb.testing import GatedClient
from tests.near import test_functions as whole
from tests.support.servers.databases import Database
from tests.support.world.items import Base, Item, Row

pytestmark = pytest.mark.usefixtures("observed")


class Point(BaseModel, frozen=True):
    x: int
    name: str


def timed(cache: Cache, **options: Any) -> Any:
    """Return a function with options of time, and entries that are kept here."""

    decorate: Any = cache.cached("point:{x}", exp=600, **options)

    @decorate  # type: ignore[untyped-decorator]
    async def get(x: int) -> Point:
        return Point(x=x, name="a")

    return get


async def test_what_is_kept_here_ends_with_its_exp(cache: Cache, gated: GatedClient, client: Redis) -> None:
    """Not with its life in Redis, which is longer."""
    get = timed(cache, stale=60)
    await get(1)
    await client.pexpire("point:1", 90_000)  # half a minute is left of exp
    store = cache.runtime.store(gated)
    await whole.warm(store, client, "point:1", lambda: get(1))
    kept = store.near.lookup("point:1")
    assert kept is not None
    assert 0 < kept.until - store.near.clock() <= 30
    sent, before = len(gated.log), get.stats.near
    assert await get(1) == Point(x=1, name="a")
    assert len(gated.log) == sent
    assert get.stats.near - before == 1


async def test_what_is_stale_is_not_kept_here(cache: Cache, gated: GatedClient, client: Redis) -> None:
    """It is served until the reload is done, and the new value is kept."""
    get = timed(cache, stale=60)
    store = cache.runtime.store(gated)
    await whole.warm(store, client, "point:1", lambda: get(1))
    await client.pexpire("point:1", 30_000)
    await whole.told(store, client, "point:mark")
    gate = gated.before("acquire")
    assert await get(1) == Point(x=1, name="a")
    assert store.near.lookup("point:1") is None
    await gate.reached()
    gate.open()
    await asyncio.gather(*cache.runtime.here().reloads.values())
    assert get.stats.stale == 1
    await whole.told(store, client, "point:mark")
    await get(1)
    assert store.near.lookup("point:1") is not None


async def test_a_session_that_has_written_is_not_answered_from_here(
    cache: Cache, gated: GatedClient, client: Redis, sqlite: Database
) -> None:
    """As without options of time."""
    await sqlite.create(Base)

    @cache.cached("row:{number}", schema=Item, fail_safe=60)
    async def get(db: AsyncSession, number: int) -> Row:
        return (await db.execute(select(Row).where(Row.id == number))).scalar_one()

    async with sqlite.sessions() as db:
        await db.execute(insert(Row).values(id=1, name="a"))
        await db.commit()
        await whole.warm(cache.runtime.store(gated), client, "row:1", lambda: get(db, 1))
        await db.execute(update(Row).values(name="b"))
        assert (await get(db, 1)).name == "b"
        await db.rollback()
        assert (await get(db, 1)).name == "a"
    assert get.stats.bypasses == 1


@pytest.mark.parametrize("options", [{}, {"stale": 60}], ids=["plain", "timed"])
async def test_many_are_kept_here(cache: Cache, gated: GatedClient, client: Redis, options: dict[str, Any]) -> None:
    """Keys that are kept here are answered from here, and Redis is asked for the rest only."""
    asked: list[list[int]] = []

    async def load(ids: list[int]) -> dict[int, Point]:
        asked.append(ids)
        return {number: Point(x=number, name="a") for number in ids}

    get: Any = cache.cached_many("point:{ids}", **options)(load)

    store = cache.runtime.store(gated)
    await whole.warm(store, client, "point:1", lambda: get([1, 2]))
    before = get.stats
    gated.log.clear()
    first, second = await get([2, 1]), await get([1, 2])
    assert list(first) == [2, 1]
    assert first[1] == second[1]
    assert first[1].model_fields_set is not second[1].model_fields_set  # a frozen model lets these be changed
    assert gated.log == []
    assert get.stats.near - before.near == 4
    assert (await get([1, 3]))[3] == Point(x=3, name="a")
    assert gated.log[0][1] == ("GET", b"point:3")
    await Cache(client).invalidate("point:2")
    await whole.told(store, client, "point:mark")
    await get([1, 2])
    assert asked == [[1, 2], [3], [2]]


async def test_get_many_is_answered_from_here(
    cache: Cache, gated: GatedClient, client: Redis, sqlite: Database
) -> None:
    """`get_many` is answered from what `get` has kept, and the other way round."""
    await sqlite.create(Base)
    crud = FastRDB[Row, Any, Any, Item](Row, Item, pattern="row:{id}", list_pattern="rows", cache=cache)
    async with sqlite.sessions() as db:
        await db.execute(insert(Row), [{"id": n, "name": "a"} for n in (1, 2)])
        await db.commit()
        await whole.warm(cache.runtime.store(gated), client, "row:1", lambda: crud.get_many(db, id=[1, 2]))
        gated.log.clear()
        assert (await crud.get(db, id=1)).name == "a"
        assert await crud.get_many(db, id=[2, 1]) == [Item(id=2, name="a"), Item(id=1, name="a")]
        assert gated.log == []
        await crud.update(db, obj_in={"name": "b"}, id=1)
        assert await crud.get_many(db, id=[2, 1]) == [Item(id=2, name="a"), Item(id=1, name="b")]


async def test_past_the_near_cache_nothing_changes(gated: GatedClient) -> None:
    """A cache without one keeps nothing, whatever is read."""
    async with Cache(gated) as cache:

        @cache.cached_many("point:{ids}", stale=60)
        async def get(ids: list[int]) -> dict[int, int]:
            return {number: number for number in ids}

        await get([1, 2])
        await get([1, 2])
        assert get.stats == Stats(misses=2, loads=2, fills=2, hits=2)
        assert len(cache.runtime.store(gated).near) == 0
