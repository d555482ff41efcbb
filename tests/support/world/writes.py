"""The ways in which SQLAlchemy's users write, and in which a transaction ends without a COMMIT."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import delete, func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Session

from tests.support.world.world import Item, Owner

Way = Callable[[AsyncSession], Awaitable[Any]]
TO_NEW = update(Item).where(Item.id == 1).values(name="new")


async def attribute(db: AsyncSession) -> None:
    """Set an attribute, without a flush."""
    (await db.get_one(Item, 1)).name = "new"


async def without_autoflush(db: AsyncSession) -> None:
    """Do the same in a session that does not flush before a read."""
    with db.no_autoflush:
        (await db.get_one(Item, 1)).name = "new"
        await db.flush()


async def merge(db: AsyncSession) -> None:
    """Merge an object from elsewhere."""
    await db.merge(Item(id=1, name="new", owner_id=1))


async def bulk_update(db: AsyncSession) -> None:
    """Update many rows by primary key."""
    await db.execute(update(Item), [{"id": 1, "name": "new"}, {"id": 2, "name": "old"}])


async def bulk_mappings(db: AsyncSession) -> None:
    """Update many rows in the older way, in synchronous code."""
    await db.run_sync(lambda session: session.bulk_update_mappings(Item, [{"id": 1, "name": "new"}]))


async def bulk_insert(db: AsyncSession) -> None:
    """Delete the row, and insert many."""
    await db.execute(delete(Item).where(Item.id == 1))
    await db.execute(insert(Item), [{"id": n, "name": "new", "owner_id": 1} for n in (1, 11, 12)])
    await db.execute(delete(Item).where(Item.id > 10))


async def replaced(db: AsyncSession) -> None:
    """Delete an object, and add another one."""
    await db.delete(await db.get_one(Item, 1))
    await db.flush()
    db.add(Item(id=1, name="new", owner_id=1))
    await db.flush()


async def synchronous(db: AsyncSession) -> None:
    """Write by code without asyncio."""

    def write(session: Session) -> None:
        item = session.query(Item).filter_by(id=1).with_for_update().one()
        item.name = "new"
        session.flush()

    await db.run_sync(write)


async def only_a_savepoint(db: AsyncSession) -> None:
    """Write in a savepoint, which is the only context that is opened by hand."""
    async with db.begin_nested():
        await db.execute(TO_NEW)


async def by_connection(db: AsyncSession) -> None:
    """Through the session's connection."""
    await (await db.connection()).execute(TO_NEW)


async def commented(db: AsyncSession) -> None:
    """Write by text that begins with a comment."""
    await db.execute(text("/* who */ -- why\n UPDATE item SET name = 'new' WHERE id = 1"))


async def locked(db: AsyncSession) -> None:
    """Lock the row first."""
    await db.execute(select(Item).where(Item.id == 1).with_for_update())
    await db.execute(TO_NEW)


async def cte(db: AsyncSession) -> None:
    """Write by a query that writes on its way."""
    await db.execute(text("WITH x AS (UPDATE item SET name = 'new' WHERE id = 1 RETURNING id) SELECT count(*) FROM x"))


async def core_cte(db: AsyncSession) -> None:
    """Do the same, built by SQLAlchemy."""
    changed = TO_NEW.returning(Item.id).cte("changed")
    (await db.execute(select(func.count()).select_from(changed))).all()


async def call(db: AsyncSession) -> None:
    """Write by a stored procedure."""
    await db.execute(text("CALL rename_item()"))


async def function(db: AsyncSession) -> None:
    """Write by a SELECT of a function that writes."""
    await db.execute(text("SELECT rename_item_too()"))


async def core_function(db: AsyncSession) -> None:
    """Do the same, built by SQLAlchemy."""
    await db.scalar(select(func.rename_item_too()))


async def locked_table(db: AsyncSession) -> None:
    """Lock the table first."""
    await db.execute(text("LOCK TABLE item IN SHARE ROW EXCLUSIVE MODE"))
    await db.execute(TO_NEW)


async def copied(db: AsyncSession) -> None:
    """Write by COPY, which only the driver itself has, unseen by SQLAlchemy."""
    connection = await db.connection()
    await connection.execute(select(Item.id))  # begins the driver's transaction
    driver: Any = (await connection.get_raw_connection()).driver_connection
    await driver.execute("DELETE FROM item WHERE id = 1")
    await driver.copy_records_to_table("item", records=[(1, "new", 1)], columns=["id", "name", "owner_id"])


async def trigger(db: AsyncSession) -> None:
    """Write by a trigger of another table."""
    await db.execute(update(Owner).where(Owner.id == 1).values(name="new"))


EVERYWHERE: list[Way] = [
    attribute,
    without_autoflush,
    merge,
    bulk_update,
    bulk_mappings,
    bulk_insert,
    replaced,
    synchronous,
    only_a_savepoint,
    by_connection,
    commented,
    locked,
]
POSTGRESQL: list[Way] = [
    *EVERYWHERE,
    cte,
    core_cte,
    call,
    function,
    core_function,
    locked_table,
    trigger,
]
POSTGRESQL_SET_UP = [
    "CREATE PROCEDURE rename_item() LANGUAGE sql AS $$ UPDATE item SET name = 'new' WHERE id = 1 $$",
    "CREATE FUNCTION rename_item_too() RETURNS void LANGUAGE sql AS $$ UPDATE item SET name = 'new' WHERE id = 1 $$",
    """CREATE FUNCTION on_owner() RETURNS trigger LANGUAGE plpgsql AS
    $$ BEGIN UPDATE item SET name = NEW.name WHERE owner_id = NEW.id AND id = 1; RETURN NULL; END $$""",
    "CREATE TRIGGER on_owner AFTER UPDATE ON owner FOR EACH ROW EXECUTE FUNCTION on_owner()",
]
