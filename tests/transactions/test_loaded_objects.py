"""A load leaves the caller's objects as before: loaded attributes stay loaded."""

from __future__ import annotations

from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import inspect, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import defer, joinedload, undefer

from fastrdb.transactions import scope
from tests.races.mechanisms import without
from tests.support.world.world import Item, Owner, World


def cached(w: World, *options: Any, end: bool = False) -> Any:
    """Return a cached function that loads item 1 with these loader options, and may end the transaction."""

    @w.one.cache.cached("item:{item_id}:name", shared=True)
    async def name(db: AsyncSession, redis: Redis, item_id: int) -> str:
        found = (await db.scalars(select(Item).options(*options).where(Item.id == item_id))).one().name
        if end:
            await db.rollback()
        return found

    return name


async def test_relationship_of_the_caller_s_object_stays_loaded_on_a_miss(w: World) -> None:
    """The statement of the load does not load it, and would unload it."""
    async with w.one.database.sessions() as db:
        item = (await db.scalars(select(Item).options(joinedload(Item.owner)).where(Item.id == 1))).one()
        assert await cached(w)(db, w.one.client, 1) == "old"
        assert item.owner.name == "old"


async def test_column_of_the_caller_s_object_stays_loaded_on_a_miss(w: World) -> None:
    """So it is with a column that the load defers."""
    async with w.one.database.sessions() as db:
        item = (await db.scalars(select(Item).options(undefer(Item.owner_id)).where(Item.id == 1))).one()
        assert await cached(w, defer(Item.owner_id))(db, w.one.client, 1) == "old"
        assert item.owner_id == 1


async def test_object_of_the_caller_has_what_the_load_has_read(w: World) -> None:
    """An attribute that the load reads is as new as the load."""
    async with w.one.database.sessions() as db:
        item = (await db.scalars(select(Item).options(joinedload(Item.owner)).where(Item.id == 1))).one()
        await db.commit()
        await w.two.write("new")
        await w.client.flushall()
        assert await cached(w)(db, w.one.client, 1) == "new"
        assert (item.name, item.owner.name) == ("new", "old")


async def test_rows_of_a_text_are_as_new_as_the_load(w: World) -> None:
    """Objects of the session would stand for them."""

    @w.one.cache.cached("item:{item_id}:name", shared=True)
    async def name(db: AsyncSession, redis: Redis, item_id: int) -> str:
        rows = select(Item).from_statement(text("SELECT * FROM item WHERE id = 1"))
        found: str = (await db.scalars(rows)).one().name
        return found

    async with w.one.database.sessions() as db:
        item = await db.get_one(Item, 1)
        await db.commit()
        await w.two.write("new")
        await w.client.flushall()
        assert await name(db, w.one.client, 1) == item.name == "new"


async def test_object_that_the_load_has_expired_stays_expired(w: World) -> None:
    """A rollback in the load is one: nothing of before it comes back."""
    async with w.one.database.sessions() as db:
        item = (await db.scalars(select(Item).options(joinedload(Item.owner)).where(Item.id == 1))).one()
        assert await cached(w, end=True)(db, w.one.client, 1) == "old"
        assert {"name", "owner"} <= inspect(item).unloaded


async def test_object_that_the_caller_has_not_loaded_whole_stays_so(w: World) -> None:
    """Nothing is restored that was not there."""
    async with w.one.database.sessions() as db:
        item = (await db.scalars(select(Item).where(Item.id == 1))).one()
        owner = await db.get_one(Owner, 1)
        assert await cached(w)(db, w.one.client, 1) == "old"
        assert inspect(item).unloaded == {"owner"}
        assert inspect(owner).unloaded == set()


async def many_objects(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load in a session that holds more objects than may be copied."""
    monkeypatch.setattr(scope, "MOST_OBJECTS", 0)
    name = cached(w)
    async with w.one.database.sessions() as db:
        item = (await db.scalars(select(Item).where(Item.id == 1))).one()
        assert await name(db, w.one.client, 1) == "old"
        assert name.stats.fills == 0
        assert item.name == "old"


async def test_session_with_very_many_objects_stores_nothing(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A copy of all objects for each miss would take too long. The next call in a session without them stores."""
    await many_objects(w, monkeypatch)
    name = cached(w)
    async with w.one.database.sessions() as db:
        assert await name(db, w.one.client, 1) == "old"
    assert name.stats.fills == 1


async def test_objects_are_copied_without_the_mechanism(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them, whatever their number."""
    without("objects-bounded").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await many_objects(w, monkeypatch)
