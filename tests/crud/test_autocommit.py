"""`FastRDB` where each statement commits by itself."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import Connection, event, text
from sqlalchemy.util import await_only

from fastrdb import Cache, FastRDB
from fastrdb.testing import Gate
from tests.races.mechanisms import without
from tests.support.servers.databases import Database
from tests.support.world import levels as places
from tests.support.world.levels import BY_NAME
from tests.support.world.world import PATIENT, Item, ItemOut, Owner, World, spawn, world


@pytest.fixture
async def w(database: Database, client: Redis) -> AsyncIterator[World]:
    """Yield a world on each database in which each statement commits by itself."""
    level = {"sqlite": "sqlite DELETE AUTOCOMMIT"}.get(database.name, f"{database.name} AUTOCOMMIT")
    async with places.opened(BY_NAME[level], database.engine.url) as opened, world(opened, client) as made:
        yield made


def crud(w: World) -> FastRDB[Item, Any, Any, ItemOut]:
    """Return the class under test, in a cache of its own."""
    return FastRDB(Item, ItemOut, "item:{id}", "items:{owner_id}:{page}", cache=Cache(timeout=PATIENT))


def after(w: World, verb: str) -> Gate:
    """Hold the writer when its next statement of that kind is done, and so is committed."""
    gate = Gate()

    def hold(c: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if statement.startswith(verb) and "false" not in statement and "0 = 1" not in statement:
            await_only(gate.hold())

    event.listen(w.database.engine.sync_engine, "after_cursor_execute", hold)
    return gate


async def inserted(w: World) -> None:
    """Read a list when the row is committed, and the method has not returned."""
    items = crud(w)

    async def names() -> list[str]:
        async with w.database.sessions() as db:
            found = await items.get_multi(db, w.client, owner_id=1, name="new")
            return [item.name for item in found]

    async def create() -> None:
        async with w.database.sessions() as db:
            await items.create(db, w.client, {"id": 3, "name": "new", "owner_id": 1})

    assert await names() == await names() == []
    gate = after(w, "INSERT")
    creating = spawn(create())
    await gate.reached()
    assert await names() == ["new"]
    gate.open()
    await creating
    assert await names() == await names() == ["new"]


async def updated(w: World) -> None:
    """Move a row into another list."""
    items = crud(w)

    async def ids() -> list[int]:
        async with w.database.sessions() as db:
            return [item.id for item in await items.get_multi(db, w.client, owner_id=2)]

    async def give_away() -> None:
        async with w.database.sessions() as db:
            await items.update(db, w.client, {"owner_id": 2}, id=1)

    async with w.database.sessions() as db:
        db.add(Owner(id=2, name="other"))
        await db.commit()
    assert await ids() == await ids() == []
    gate = after(w, "UPDATE")
    giving = spawn(give_away())
    await gate.reached()
    assert await ids() == [1]
    gate.open()
    await giving
    assert await ids() == [1]


@pytest.mark.parametrize("race", [inserted, updated], ids=lambda race: str(race.__name__))
async def test_lists(w: World, race: Any) -> None:
    """Lists are invalidated before the statement."""
    await race(w)


@pytest.mark.parametrize("race", [inserted, updated], ids=lambda race: str(race.__name__))
async def test_lists_told_afterwards(w: World, monkeypatch: pytest.MonkeyPatch, race: Any) -> None:
    """Invalidated when the row is known as the database has it, the lists are behind."""

    without("crud-lists-before-flush").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await race(w)


async def upserted(w: World, *, opened: bool = False) -> None:
    """Upsert a new row, the same again, and one that another writer inserts just before: without a savepoint."""
    items = crud(w)

    async def upsert(name: str, number: int = 3) -> str:
        async with w.database.sessions() as db:
            if opened:
                async with db.begin():
                    found = await items.upsert(db, w.client, {"id": number, "name": name, "owner_id": 1})
            else:
                found = await items.upsert(db, w.client, {"id": number, "name": name, "owner_id": 1})
            return found.name

    async def kept(number: int = 3) -> str:
        async with w.database.sessions() as db:
            return (await items.get(db, w.client, id=number)).name

    assert [await upsert("a"), await kept(), await kept()] == ["a"] * 3
    assert [await upsert("b"), await kept(), await kept()] == ["b"] * 3


async def overtaken(w: World) -> None:
    """Insert the row from another writer when `upsert` has found none: it is changed."""
    items = crud(w)
    gate = before_insert(w)

    async def upsert() -> str:
        async with w.database.sessions() as db:
            return (await items.upsert(db, w.client, {"id": 3, "name": "b", "owner_id": 1})).name

    upserting = spawn(upsert())
    await gate.reached()
    async with w.database.sessions() as db:
        await db.execute(text("INSERT INTO item (id, name, owner_id) VALUES (3, 'a', 1)"))
    gate.open()
    assert await upserting == "b"
    async with w.database.sessions() as db:
        assert (await items.get(db, w.client, id=3)).name == "b"
    assert await w.truth(3) == "b"


def before_insert(w: World) -> Gate:
    """Hold the caller that is about to insert by way of the ORM, once."""
    gate = Gate()

    def hold(c: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool) -> None:
        if context.isinsert and not gate.was_reached:
            await_only(gate.hold())

    event.listen(w.database.engine.sync_engine, "before_cursor_execute", hold)
    return gate


@pytest.mark.parametrize("opened", [False, True], ids=["by itself", "in the caller's transaction"])
async def test_upsert(w: World, opened: bool) -> None:
    """Where a database has no savepoints outside of transactions, none is needed: the statement stands for itself."""
    await upserted(w, opened=opened)


async def test_upsert_is_overtaken(w: World) -> None:
    """And what has failed has changed nothing."""
    await overtaken(w)
