"""A write of `FastRDB` that changes other rows of its model, too: by relationships, by events, by foreign keys."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from sqlalchemy import Column, ForeignKey, Integer, String, Table, event, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship

from fastrdb import Cache, FastRDB
from fastrdb.orm import Columns, columns
from tests.support.servers.databases import Database


class Base(DeclarativeBase):
    pass


class Owned(Base):
    __tablename__ = "owned"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    under: Mapped[int | None] = mapped_column(ForeignKey("owned.id"))
    below: Mapped[list[Owned]] = relationship(cascade="all, delete-orphan")


class Loose(Base):
    __tablename__ = "loose"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    under: Mapped[int | None] = mapped_column(ForeignKey("loose.id"))
    below: Mapped[list[Loose]] = relationship()


class Keyed(Base):
    __tablename__ = "keyed"
    id: Mapped[str] = mapped_column(String(9), primary_key=True)
    under: Mapped[str | None] = mapped_column(ForeignKey("keyed.id", ondelete="CASCADE", onupdate="CASCADE"))


class Part(Base):
    __tablename__ = "part"
    id: Mapped[int] = mapped_column(primary_key=True)
    maker: Mapped[int | None] = mapped_column(ForeignKey("maker.id", ondelete="SET NULL"))


class Wheel(Part):
    __tablename__ = "wheel"
    id: Mapped[int] = mapped_column(ForeignKey("part.id", ondelete="CASCADE"), primary_key=True)


class Animal(Base):
    __tablename__ = "animal"
    id: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(9))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "any"}  # noqa: RUF012  # as SQLAlchemy has it


class Dog(Animal):
    __mapper_args__ = {"polymorphic_identity": "dog"}  # noqa: RUF012


class Numbered(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int


Table(
    "maker",
    Base.metadata,
    Column("id", primary_key=True, type_=Wheel.__table__.c.id.type),
    Column("best", ForeignKey("part.id", ondelete="CASCADE", use_alter=True, name="best_part")),
)


class Node(BaseModel):
    model_config = ConfigDict(from_attributes=True)
    id: int | str
    under: int | str | None


def nodes(model: type[Base]) -> FastRDB[Any, Any, Any, Node]:
    """Return the class under test, with lists of what stands under a node."""
    return FastRDB(model, Node, "node:{id}", "nodes:{under}:{page}", cache=Cache())


async def planted(model: type[Base], db: AsyncSession, client: Redis, ids: Any) -> FastRDB[Any, Any, Any, Node]:
    """Return the class, for a table with one row under another, all of which is cached."""
    crud, (first, second) = nodes(model), ids
    await crud.create(db, client, {"id": first, "under": None})
    await crud.create(db, client, {"id": second, "under": first})
    assert await shown(crud, db, client, ids) == [first, first, [second], []]
    return crud


async def shown(crud: FastRDB[Any, Any, Any, Node], db: AsyncSession, client: Redis | None, ids: Any) -> list[Any]:
    """Return what is above the second node, by two ways, and what is below the first and below none but it."""
    first, second = ids
    one, [many] = await crud.get_or_none(db, client, id=second), await crud.get_many(db, client, id=[second])
    lists = [await crud.get_multi(db, client, under=above) for above in (first, None)]
    below, top = ([node.id for node in each if node.id != first] for each in lists)
    return [one and one.under, many and many.under, below, top]


async def test_rows_that_a_relationship_deletes(sqlite: Database, client: Redis) -> None:
    """With its parent goes the child, from its key and from the list that showed it."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        crud = await planted(Owned, db, client, (1, 2))
        await crud.delete(db, client, id=1)
        assert await shown(crud, db, client, (1, 2)) == [None, None, [], []]


async def test_rows_that_a_relationship_detaches(sqlite: Database, client: Redis) -> None:
    """Without a cascade the child stays, and is in another list."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        crud = await planted(Loose, db, client, (1, 2))
        await crud.delete(db, client, id=1)
        assert await shown(crud, db, client, (1, 2)) == [None, None, [], [2]]
        assert await crud.get(db, client, id=2) == Node(id=2, under=None)


@pytest.mark.parametrize("moment", ["before_flush", "after_flush_postexec", "before_commit"])
async def test_rows_that_an_event_changes(sqlite: Database, client: Redis, moment: str) -> None:
    """An event of the session may change any object before the flush, behind it, and as late as in the commit."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        crud = await planted(Loose, db, client, (1, 2))
        second = await db.get_one(Loose, 2)

        @event.listens_for(db.sync_session, moment)
        def move(session: Session, *_: object) -> None:
            if second.under is not None:  # else each flush would lead to another
                second.under = None

        await crud.create(db, client, {"id": 3, "under": 1})
        assert await shown(crud, db, client, (1, 2)) == [None, None, [3], [2]]


async def test_rows_that_the_caller_has_changed(sqlite: Database, client: Redis) -> None:
    """A write commits what is pending in the session, too."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        crud = await planted(Loose, db, client, (1, 2))
        (await db.get_one(Loose, 2)).under = None
        await crud.update(db, client, {"under": 3}, id=1)
        assert await shown(crud, db, client, (1, 2)) == [None, None, [], [2]]


@pytest.mark.parametrize("verb", ["delete", "update"])
async def test_rows_that_a_foreign_key_changes(postgresql: Database, client: Redis, verb: str) -> None:
    """The database acts by itself: which rows it changes, no object says."""
    await postgresql.create(Base)
    async with postgresql.sessions() as db:
        crud = await planted(Keyed, db, client, ("a", "b"))
        if verb == "delete":
            await crud.delete(db, client, id="a")
        else:
            await crud.update(db, client, {"id": "c"}, id="a")
        truth = await shown(crud, db, None, ("a", "b"))
        above = None if verb == "delete" else "c"
        assert truth[:3] == [above, above, []]
        assert await shown(crud, db, client, ("a", "b")) == truth


@pytest.mark.parametrize(
    ("model", "deleted", "updated"),
    [(Owned, set(), set()), (Keyed, {"id"}, {"id"}), (Part, {"id"}, set()), (Wheel, {"id"}, set())],
)
def test_columns_that_spread(model: type[Base], deleted: set[str], updated: set[str]) -> None:
    """Keys with an action count, those that come back by another table too, and not those of inheritance."""
    found = Columns(model)
    assert [found.spreading("ondelete"), found.spreading("onupdate")] == [deleted, updated]


def test_a_table_below_is_looked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many ways foreign keys lead there: 20 floors of two tables have a million."""
    floors = 20

    class Dense(DeclarativeBase):
        """The mapped class on top, and the tables below."""

    class Top(Dense):
        __tablename__ = "floor_0_0"
        id: Mapped[int] = mapped_column(primary_key=True)

    for floor in range(1, floors):
        for side in (0, 1):
            keys: list[Any] = [
                Column(f"up_{up}", ForeignKey(f"floor_{floor - 1}_{up}.id", ondelete="CASCADE"))
                for up in range(1 if floor == 1 else 2)
            ]
            Table(f"floor_{floor}_{side}", Dense.metadata, Column("id", Integer, primary_key=True), *keys)
    asked, acting = Counter[str](), columns._acting

    def counted(table: Any, action: str) -> Any:
        asked[table.name] += 1
        return acting(table, action)

    monkeypatch.setattr(columns, "_acting", counted)
    assert Columns(Top).spreading("ondelete") == set()
    assert max(asked.values()) <= 2  # once below each of the two tables of the first floor


async def test_numbers_of_classes_of_one_table(sqlite: Database, client: Redis) -> None:
    """Each class has numbers of its own, which a write of the other reaches."""
    await sqlite.create(Base)
    cache = Cache()
    every = FastRDB[Any, Any, Any, Numbered](Animal, Numbered, "animal:{id}", "pets:{page}", cache=cache, shared=True)
    dogs = FastRDB[Any, Any, Any, Numbered](Dog, Numbered, "dog:{id}", "pets:{kind}:{page}", cache=cache, shared=True)
    async with sqlite.sessions() as db:
        for crud, expected in ((every, [1, 0, False]), (dogs, [2, 1, False])):
            await crud.create(db, client, {})
            for _ in range(2):
                found = [
                    await every.count(db, client),
                    await dogs.count(db, client),
                    await dogs.exists(db, client, id=1),
                ]
                assert found == expected


async def test_an_update_does_not_wait_for_rows_with_foreign_keys(postgresql: Database, client: Redis) -> None:
    """Else two transactions that insert such rows, and then update the parent, would wait for each other."""
    await postgresql.create(Base)
    crud: FastRDB[Any, Any, Any, Any] = FastRDB(Loose, Numbered, "loose:{id}", "loose:{page}:{limit}")
    locks = list[str]()
    event.listen(
        postgresql.engine.sync_engine,
        "before_cursor_execute",
        lambda *args: locks.append(args[2].partition("FOR ")[2]) if "FOR " in args[2] else None,
    )
    async with postgresql.sessions() as one, postgresql.sessions() as other:
        await crud.create(one, client, {"id": 1})
        async with one.begin(), other.begin():
            other.add(Loose(id=2, under=1))
            await other.flush()
            await one.execute(text("SET LOCAL lock_timeout = 1"))  # an error, where it would wait
            await crud.update(one, client, {"under": None}, id=1)
        assert {*locks} == {"NO KEY UPDATE OF loose"}
        locks.clear()
        await crud.update(one, client, {"id": 3}, id=2)
        assert locks[0] == "UPDATE OF loose"
        locks.clear()
        await crud.delete(one, client, id=3)
        assert locks[0] == "UPDATE OF loose"
