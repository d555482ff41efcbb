"""The races of a cache that follows writes: what a row was before a statement, and what a load finds in the cache.

Each fails with an AssertionError when the mechanism that it is about is taken out: `test_mutants` takes it out.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache
from tests.support.servers.databases import Database
from tests.support.world.world import Base, Item, Owner


class Followed:
    """A database in which item 1 is of owner 1, and the functions of a cache that follows writes."""

    def __init__(self, database: Database, cache: Cache) -> None:
        self.database = database

        @cache.cached("followed:owner:{owner_id}")
        async def names(db: AsyncSession, owner_id: int) -> list[str]:
            return list(await db.scalars(select(Item.name).where(Item.owner_id == owner_id)))

        @cache.cached("followed:item:{item_id}")
        async def name(db: AsyncSession, item_id: int) -> str:
            return (await db.scalars(select(Item.name).where(Item.id == item_id))).one()

        @cache.cached("followed:card:{item_id}")
        async def card(db: AsyncSession, item_id: int) -> str:
            await db.scalars(select(Owner.id).where(Owner.id == item_id))  # without a query, any commit drops the entry
            return f"<{await name(db, item_id)}>"

        self.names, self.name, self.card = names, name, card

    async def create(self) -> None:
        """Make the tables and the rows."""
        await self.database.create(Base)
        async with self.database.sessions() as db:
            db.add_all([Owner(id=1, name="one"), Owner(id=2, name="two")])
            await db.flush()
            db.add(Item(id=1, name="old", owner_id=1))
            await db.commit()

    async def ask(self, function: Any, number: int) -> Any:
        """Return the answer to a caller with a session of its own."""
        async with self.database.sessions() as db:
            return await function(db, number)

    async def write(self, **values: object) -> None:
        """Change the item by a statement of its own, and commit."""
        async with self.database.sessions() as db:
            await db.execute(update(Item).where(Item.id == 1).values(**values))
            await db.commit()


async def moved_since_it_was_loaded(w: Followed) -> None:
    """Rename a row by a session that loaded it before another one moved it: the list that it is in by now goes."""
    async with w.database.sessions() as db:
        loaded = await db.get_one(Item, 1)
        await db.commit()
        assert [await w.ask(w.names, owner) for owner in (1, 2)] == [["old"], []]
        await w.write(owner_id=2)
        assert [await w.ask(w.names, owner) for owner in (1, 2)] == [[], ["old"]]
        loaded.name = "new"
        await db.commit()
    assert await w.ask(w.names, 2) == ["new"]


async def found_by_a_load(w: Followed) -> None:
    """Write a row whose entry was a hit inside of a load: the entry of that load goes, too."""
    assert await w.ask(w.name, 1) == "old"
    assert await w.ask(w.card, 1) == "<old>"
    await w.write(name="new")
    assert await w.ask(w.card, 1) == "<new>"
