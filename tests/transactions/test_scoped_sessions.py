"""An `async_scoped_session` does wherever an `AsyncSession` does: one for each task, or whatever it goes by."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session

from fastrdb import FastRDB
from tests.support.world.world import Item, ItemOut, World, spawn

Scoped = async_scoped_session[AsyncSession]


@pytest.fixture
async def scoped(w: World) -> AsyncIterator[Scoped]:
    """Yield the session of the request: the only one, in these tests."""
    made = async_scoped_session(w.database.sessions, lambda: "request")
    yield made
    await made.remove()


async def test_reads(w: World, scoped: Scoped) -> None:
    """A miss, a hit, one after a commit; and the proxy is in no key."""
    assert (await w.one.get(scoped, w.one.client, 1)).name == "old"
    assert (await w.one.get(db=scoped, redis=w.one.client, item_id=1)).name == "old"
    await w.two.write("new")
    assert (await w.one.get(scoped, w.one.client, 1)).name == "new"
    assert (w.one.get.stats.hits, w.one.get.stats.fills) == (1, 2)
    assert w.one.get.key(scoped, w.one.client, 1) == "item:1"


async def test_commit_through_the_proxy(w: World, scoped: Scoped) -> None:
    """Its own task sees a write until the commit, and all tasks see it afterwards; the barrier stands before it."""
    assert await w.two.read() == "old"
    await w.one.rename(scoped, w.one.client, 1, "new")
    assert (await w.one.get(scoped, w.one.client, 1)).name == "new"
    assert await w.two.read() == "old"
    gate = w.at_commit()

    async def commit(session: AsyncSession) -> None:
        await session.commit()

    committing = spawn(commit(scoped()))
    await gate.reached()
    assert await w.two.read() == "old"
    assert not await w.client.exists("item:1")
    gate.open()
    await committing
    await w.fair()
    await w.one.rename(scoped, w.one.client, 1, "newer")
    await scoped.commit()
    await w.fair()
    assert await w.truth() == "newer"


async def test_rollback_through_the_proxy(w: World, scoped: Scoped) -> None:
    """Nothing is sent to Redis, and nothing of it is stored."""
    await w.one.rename(scoped, w.one.client, 1, "never")
    assert (await w.one.get(scoped, w.one.client, 1)).name == "never"
    await scoped.rollback()
    assert "begin" not in w.one.client.names()
    assert (await w.one.get(scoped, w.one.client, 1)).name == "old"
    await w.fair()


async def test_extras(w: World, scoped: Scoped) -> None:
    """`invalidate`, `refresh`, `put` and `explain` take it, too."""
    get, client = w.one.get, w.one.client
    assert (await get.refresh(scoped, client, 1)).name == "old"
    assert (await get.explain(scoped, client, 1)).state == "hit"
    await scoped.execute(update(Item).where(Item.id == 1).values(name="new"))
    await get.put(ItemOut(id=1, name="new"), scoped, client, 1)
    assert (await get.explain(scoped, client, 1)).state == "bypass"
    await scoped.commit()
    assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'
    await scoped.execute(select(Item.id))
    await get.invalidate(scoped, client, 1)
    assert await w.client.exists("item:1")
    await scoped.commit()
    assert not await w.client.exists("item:1")


async def test_many_ids(w: World, scoped: Scoped) -> None:
    """A function of many ids."""

    @w.one.cache.cached_many("item:{ids}", schema=ItemOut, shared=True)
    async def get_many(db: Scoped, redis: object, ids: list[int]) -> list[Item | None]:
        return [await db.get(Item, one) for one in ids]

    for _ in range(2):
        assert [item.name for item in await get_many(scoped, w.one.client, [1, 2]) if item] == ["old", "old"]
    assert get_many.stats.hits == 2


async def test_an_instance_that_has_one(w: World, scoped: Scoped) -> None:
    """`self.db` in a repository."""

    class Items:
        def __init__(self, db: Scoped) -> None:
            self.db = db
            self.redis = w.one.client

        @w.one.cache.cached("item:{item_id}", shared=True, schema=ItemOut)
        async def get(self, item_id: int) -> Item:
            return (await self.db.execute(select(Item).where(Item.id == item_id))).scalar_one()

        @w.one.cache.invalidates("item:{item_id}")
        async def rename(self, item_id: int, name: str) -> None:
            await self.db.execute(update(Item).where(Item.id == item_id).values(name=name))

    items = Items(scoped)
    assert [(await items.get(1)).name for _ in range(2)] == ["old", "old"]
    await items.rename(1, "new")
    assert (await items.get(1)).name == "new"
    assert await w.two.read() == "old"
    await scoped.commit()
    assert (await items.get(1)).name == await w.two.read() == "new"


async def test_tasks_at_once(w: World) -> None:
    """Each task has its own session, so no task is in the other's way."""
    scoped = async_scoped_session(w.database.sessions, asyncio.current_task)

    async def one(number: int) -> str:
        try:
            found: ItemOut = await w.one.get(scoped, w.one.client, number)
            return found.name
        finally:
            await scoped.remove()

    assert await asyncio.gather(*(one(number) for number in (1, 2, 1, 2))) == ["old"] * 4


async def test_every_method_of_crud(w: World, scoped: Scoped) -> None:
    """The whole class, over one proxy, each write seen by the next read."""
    crud = FastRDB[Item, Any, Any, ItemOut](
        Item, ItemOut, "crud:{id}", "cruds:{page}:{limit}", invalidate_pattern_prefix="crud:*", cache=w.one.cache
    )
    db, redis = scoped, w.one.client
    assert (await crud.create(db, redis, {"id": 3, "name": "a", "owner_id": 1})).name == "a"
    assert (await crud.get(db, redis, id=3)).name == "a"
    assert (await crud.update(db, redis, {"name": "b"}, id=3)).name == "b"
    assert (await crud.get(db, redis, id=3)).name == "b"
    assert (await crud.upsert(db, redis, {"id": 3, "name": "c", "owner_id": 1})).name == "c"
    assert (await crud.upsert(db, redis, {"id": 4, "name": "d", "owner_id": 1})).name == "d"
    assert [item and item.name for item in await crud.get_many(db, redis, id=[3, 9, 4])] == ["c", None, "d"]
    assert len(await crud.create_multi(db, redis, [{"id": 5, "name": "e", "owner_id": 1}])) == 1
    assert [item.id for item in await crud.get_multi(db, redis)] == [1, 2, 3, 4, 5]
    assert (await crud.get_page(db, redis, limit=2, page=2)).total == await crud.count(db, redis) == 5
    assert len(await crud.update_multi(db, redis, {"name": "f"}, owner_id=1)) == 5
    assert await crud.exists(db, redis, name="f")
    assert await crud.delete_multi(db, redis, name="f", id=5) == 1
    await crud.delete(db, redis, id=4)
    assert await crud.get_or_none(db, redis, id=4) is None
    assert [item.id for item in await crud.get_multi(db, redis)] == [1, 2, 3]


async def test_crud_in_the_callers_transaction(w: World, scoped: Scoped) -> None:
    """`scoped.begin()` is the caller's, and its rollback takes all back."""
    crud = FastRDB[Item, Any, Any, ItemOut](Item, ItemOut, "crud:{id}", "cruds:{page}:{limit}", cache=w.one.cache)
    async with scoped.begin() as transaction:
        await crud.update(scoped, w.one.client, {"name": "never"}, id=1)
        assert (await crud.get(scoped, w.one.client, id=1)).name == "never"
        await transaction.rollback()
    assert (await crud.get(scoped, w.one.client, id=1)).name == "old"
    await scoped.commit()
    async with scoped.begin():
        await crud.update(scoped, w.one.client, {"name": "new"}, id=1)
    assert (await crud.get(scoped, w.one.client, id=1)).name == await w.truth() == "new"
