"""A write stores only what a read of the database gives after its commit."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from sqlalchemy import event, func, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, ORMExecuteState, Session, mapped_column, with_loader_criteria

from fastrdb import FastRDB
from tests.support.servers.databases import Database


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    value: Mapped[int] = mapped_column(default=0)
    deleted: Mapped[bool] = mapped_column(default=False)


class Stamped(Base):
    """The database fills in a value when a row changes."""

    __tablename__ = "stamped"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    deleted: Mapped[bool] = mapped_column(default=False)
    changed: Mapped[datetime | None] = mapped_column(onupdate=func.now())


class ItemOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    value: int
    deleted: bool


class StampedOut(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    deleted: bool
    changed: datetime | None


Crud = FastRDB[Item, Any, Any, ItemOut]
Course = Callable[[Crud, AsyncSession, Redis], Coroutine[Any, Any, object]]


def crud_of() -> Crud:
    """Return the class under test."""
    return FastRDB(Item, ItemOut, "item:{id}", "items:{page}:{limit}")


# --- rows that a session hides


class Hiding(Session):
    """A session that hides deleted rows from every SELECT."""


class HidingRows(Session):
    """A session that hides them as SQLAlchemy's manual shows it: not when it loads columns of a known row again."""


@event.listens_for(Hiding, "do_orm_execute")
def _hide(state: ORMExecuteState) -> None:
    if state.is_select:
        for model in (Item, Stamped):
            state.statement = state.statement.options(with_loader_criteria(model, model.deleted.is_(False)))


@event.listens_for(HidingRows, "do_orm_execute")
def _hide_rows(state: ORMExecuteState) -> None:
    if not state.is_column_load and not state.is_relationship_load:
        _hide(state)


async def created(crud: Crud, db: AsyncSession, client: Redis) -> object:
    """Insert a row that is hidden from the start."""
    return await crud.create(db, client, {"id": 2, "deleted": True})


async def created_beside_another(crud: Crud, db: AsyncSession, client: Redis) -> object:
    """Insert one that is hidden, and one that is not."""
    return await crud.create_multi(db, client, [{"id": 2, "deleted": True}, {"id": 3}])


async def updated(crud: Crud, db: AsyncSession, client: Redis) -> object:
    """Hide a row."""
    await crud.create(db, client, {"id": 2})
    return await crud.update(db, client, {"deleted": True}, id=2)


async def updated_with_others(crud: Crud, db: AsyncSession, client: Redis) -> object:
    """Hide several."""
    await crud.create_multi(db, client, [{"id": 2}, {"id": 4}])
    return await crud.update_multi(db, client, {"deleted": True}, value=0)


async def upserted(crud: Crud, db: AsyncSession, client: Redis) -> object:
    """Hide a row by upsert."""
    await crud.create(db, client, {"id": 2})
    return await crud.upsert(db, client, {"id": 2, "deleted": True})


@pytest.mark.parametrize("session", [Hiding, HidingRows])
@pytest.mark.parametrize("course", [created, created_beside_another, updated, updated_with_others, upserted])
async def test_row_hidden_from_its_session_is_not_stored(
    sqlite: Database, client: Redis, course: Course, session: type[Session]
) -> None:
    """A read by the same kind of session finds nothing, with a cache as without."""
    await sqlite.create(Base)
    crud = crud_of()
    async with AsyncSession(sqlite.engine, sync_session_class=session) as db:
        await course(crud, db, client)
        assert await crud.get_or_none(db, None, id=2) is None
        assert await crud.get_or_none(db, client, id=2) is None
        assert await client.get("item:2") is None


async def test_row_that_is_shown_is_stored(sqlite: Database, client: Redis) -> None:
    """Else the test above would prove nothing."""
    await sqlite.create(Base)
    async with AsyncSession(sqlite.engine, sync_session_class=Hiding) as db:
        await created_beside_another(crud_of(), db, client)
    assert await client.get("item:3") is not None


async def test_hidden_row_is_answered_with_what_the_database_fills_in(sqlite: Database, client: Redis) -> None:
    """The answer of a write that hides its row has all of its values."""
    await sqlite.create(Base)
    crud: FastRDB[Stamped, Any, Any, StampedOut] = FastRDB(Stamped, StampedOut, "s:{id}", "ss:{page}:{limit}")
    async with AsyncSession(sqlite.engine, sync_session_class=HidingRows) as db:
        await crud.create(db, client, {"id": 1})
        answer = await crud.update(db, client, {"deleted": True}, id=1)
        assert (answer.deleted, answer.changed is not None) == (True, True)
        assert await crud.get_or_none(db, client, id=1) is None


# --- rows that the COMMIT changes

FUNCTION = """CREATE OR REPLACE FUNCTION raise_value() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN UPDATE item SET value = value + 1000 WHERE value < 1000; RETURN NULL; END $$"""
TRIGGER = "CREATE CONSTRAINT TRIGGER later AFTER INSERT OR UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION raise_value()"
DEFERRED = TRIGGER.replace("FOR EACH ROW", "DEFERRABLE INITIALLY DEFERRED FOR EACH ROW")
DEFERRABLE = TRIGGER.replace("FOR EACH ROW", "DEFERRABLE INITIALLY IMMEDIATE FOR EACH ROW")


async def inserted_one(crud: Crud, db: AsyncSession, client: Redis) -> object:
    """Insert the row."""
    return await crud.create(db, client, {"id": 1, "value": 5})


async def inserted_many(crud: Crud, db: AsyncSession, client: Redis) -> object:
    """Insert it among others."""
    return await crud.create_multi(db, client, [{"id": 1, "value": 5}, {"id": 2, "value": 6}])


async def changed_one(crud: Crud, db: AsyncSession, client: Redis) -> object:
    """Change it."""
    await crud.create(db, client, {"id": 1, "value": 2000})
    return await crud.update(db, client, {"value": 5}, id=1)


async def changed_by_upsert(crud: Crud, db: AsyncSession, client: Redis) -> object:
    """Change it by upsert."""
    await crud.create(db, client, {"id": 1, "value": 2000})
    return await crud.upsert(db, client, {"id": 1, "value": 5})


async def _read_after(postgresql: Database, client: Redis, course: Course, *statements: str) -> tuple[ItemOut, ItemOut]:
    """Run the course, and return what a read gives then, and what is true."""
    await postgresql.create(Base)
    crud = crud_of()
    async with postgresql.engine.begin() as connection:
        for statement in (FUNCTION, *statements):
            await connection.execute(text(statement))
    async with postgresql.sessions() as db:
        await course(crud, db, client)
    async with postgresql.sessions() as db:
        return await crud.get(db, client, id=1), await crud.get(db, None, id=1)


@pytest.mark.parametrize("course", [inserted_one, inserted_many, changed_one, changed_by_upsert])
async def test_what_a_deferred_trigger_changes_is_not_stored(
    postgresql: Database, client: Redis, course: Course
) -> None:
    """The row is read before the COMMIT, and the trigger runs in it."""
    found, true = await _read_after(postgresql, client, course, DEFERRED.format("item"))
    assert found == true
    assert true.value == 1005


async def test_what_a_trigger_deferred_for_one_transaction_changes_is_not_stored(
    postgresql: Database, client: Redis
) -> None:
    """SET CONSTRAINTS defers a trigger that does not begin so."""

    async def course(crud: Crud, db: AsyncSession, client: Redis) -> object:
        await db.execute(text("SET CONSTRAINTS ALL DEFERRED"))
        return await inserted_one(crud, db, client)

    found, true = await _read_after(postgresql, client, course, DEFERRABLE.format("item"))
    assert found == true
    assert true.value == 1005


async def test_what_a_deferred_trigger_of_another_table_changes_is_not_stored(
    postgresql: Database, client: Redis
) -> None:
    """A trigger may change the rows of any table."""

    async def course(crud: Crud, db: AsyncSession, client: Redis) -> object:
        db.add(Stamped(id=1))
        return await inserted_one(crud, db, client)

    found, true = await _read_after(postgresql, client, course, DEFERRED.format("stamped"))
    assert found == true
    assert true.value == 1005


async def test_rows_are_stored_without_deferred_triggers(postgresql: Database, client: Redis) -> None:
    """Else the tests above would prove nothing. A trigger that runs at once is done before the row is read."""
    found, true = await _read_after(postgresql, client, inserted_one, TRIGGER.format("item"))
    assert found == true
    assert true.value == 1005
    assert await client.get("item:1") is not None
