"""`FastRDB` on a cache that follows: each write reaches its entries, and drops only what shows its rows."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import pytest
import sqlalchemy as sa
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from fastrdb import Cache, FastRDB
from tests.races.mechanisms import without
from tests.support.servers.databases import Database


class Base(DeclarativeBase):
    pass


class Org(Base):
    __tablename__ = "orgs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str] = mapped_column(sa.String(40))
    members: Mapped[list[Member]] = relationship(order_by="Member.id")


class Member(Base):
    __tablename__ = "members"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    org_id: Mapped[int] = mapped_column(sa.ForeignKey("orgs.id"))
    name: Mapped[str] = mapped_column(sa.String(40))


class Seat(Base):
    __tablename__ = "seats"
    room: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    taken: Mapped[bool] = mapped_column(default=False)


class Out(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class MemberOut(Out):
    id: int
    org_id: int
    name: str


class SeatOut(Out):
    room: int
    number: int
    taken: bool


class OrgOut(Out):
    id: int
    name: str
    members: list[MemberOut]


class World:
    """Three orgs with two members each, two rooms with two seats each, and a `FastRDB` of each model."""

    def __init__(self, database: Database, client: Redis, cache: Cache) -> None:
        self.database, self.client = database, client
        self.members = FastRDB[Member, Any, Any, MemberOut](
            Member, MemberOut, "member:{id}", "members:{org_id}:{page}:{limit}", cache=cache
        )
        self.seats = FastRDB[Seat, Any, Any, SeatOut](
            Seat, SeatOut, "seat:{room}:{number}", "seats:{page}:{limit}", cache=cache
        )
        self.orgs = FastRDB[Org, Any, Any, OrgOut](
            Org, OrgOut, "org:{id}", "orgs:{page}:{limit}", cache=cache, options=[selectinload(Org.members)]
        )

    async def answers(self, *redis: None) -> dict[str, Any]:
        """Return all answers, each by a session of its own; given None as `redis`, without the cache."""
        found: dict[str, Any] = {}
        one, seats, orgs = self.members, self.seats, self.orgs
        for n in range(1, 8):
            found[f"member {n}"] = await self._ask(one.get_or_none, *redis, id=n)
        for pair in ([1, 2], [3, 4], [5, 6]):
            found[f"many {pair}"] = await self._ask(one.get_many, *redis, id=pair)
        for org in (1, 2, 3):
            found[f"page {org}"] = await self._ask(one.get_page, *redis, org_id=org)
            found[f"list {org}"] = await self._ask(one.get_multi, *redis, org_id=org, order_by="name")
            found[f"exists {org}"] = await self._ask(one.exists, *redis, org_id=org)
            found[f"count {org}"] = await self._ask(one.count, *redis, org_id=org)
            found[f"org {org}"] = await self._ask(orgs.get_or_none, *redis, id=org)
        for room in (1, 2):
            found[f"seats {room}"] = await self._ask(seats.get_page, *redis, room=room)
            for number in (1, 2):
                found[f"seat {room}:{number}"] = await self._ask(seats.get_or_none, *redis, room=room, number=number)
        return found

    async def _ask(self, method: Callable[..., Awaitable[Any]], *redis: None, **filters: Any) -> Any:
        async with self.database.sessions() as db:
            return await method(db, *redis, **filters)

    async def entries(self) -> set[str]:
        """Return the keys of all entries."""
        keys: list[Any] = await self.client.keys()
        return {key.decode() for key in keys if not key.startswith(b"fastrdb:")}

    async def dropped(self, write: Callable[[World, AsyncSession], Awaitable[Any]]) -> set[str]:
        """Write, check each answer, and return the keys of the entries that the write has deleted."""
        await self.answers()
        before = await self.entries()
        async with self.database.sessions() as db:
            await write(self, db)
            await db.commit()
        gone = before - await self.entries()
        assert await self.answers() == await self.answers(None)
        return gone


@pytest.fixture
def cache(following: Cache) -> Cache:
    """Return a cache that follows."""
    return following


@pytest.fixture
async def world(database: Database, client: Redis, cache: Cache) -> World:
    """Return the world on each database in turn, whose process has met the columns that entries are tagged by."""
    await database.create(Base)
    async with database.sessions() as db:
        db.add_all([Org(id=n, name=f"org {n}") for n in (1, 2, 3)])
        await db.flush()
        db.add_all([Member(id=n, org_id=(n + 1) // 2, name=f"member {n}") for n in range(1, 7)])
        db.add_all([Seat(room=room, number=number) for room in (1, 2) for number in (1, 2)])
        await db.commit()
    made = World(database, client, cache)
    await made.answers()
    async with database.sessions() as db:
        await renamed(made, db)
        await db.commit()
    return made


# --- writes of others


async def renamed(w: World, db: AsyncSession) -> None:
    """Change a name by the ORM."""
    (await db.get_one(Member, 1)).name += "!"


async def moved(w: World, db: AsyncSession) -> None:
    """Move a row to another parent by the ORM."""
    (await db.get_one(Member, 1)).org_id = 2


async def updated_in_bulk(w: World, db: AsyncSession) -> None:
    """Change rows of one parent in one statement."""
    await db.execute(sa.update(Member).where(Member.org_id == 1).values(name="all alike"))


async def moved_in_bulk(w: World, db: AsyncSession) -> None:
    """Move a row in one statement."""
    await db.execute(sa.update(Member).where(Member.id == 1).values(org_id=2))


async def inserted(w: World, db: AsyncSession) -> None:
    """Insert a row that was asked for before it was there."""
    await db.execute(sa.insert(Member).values(id=7, org_id=1, name="new"))


async def deleted(w: World, db: AsyncSession) -> None:
    """Delete a row in one statement."""
    await db.execute(sa.delete(Member).where(Member.id == 2))


async def written_as_text(w: World, db: AsyncSession) -> None:
    """Change a row by a text."""
    await db.execute(text("UPDATE members SET name = 'text' WHERE id = 1"))


# --- writes by the class itself


async def crud_created(w: World, db: AsyncSession) -> None:
    """Insert two rows."""
    await w.members.create_multi(db, instances=[{"id": n, "org_id": 1, "name": "new"} for n in (7, 8)])


async def crud_updated(w: World, db: AsyncSession) -> None:
    """Change a row."""
    await w.members.update(db, obj_in={"name": "another"}, id=1)


async def crud_updated_without_redis(w: World, db: AsyncSession) -> None:
    """Change a row past the cache: its commit is followed all the same."""
    await w.members.update(db, None, {"name": "another"}, id=1)


async def crud_moved(w: World, db: AsyncSession) -> None:
    """Move a row."""
    await w.members.update(db, obj_in={"org_id": 2}, id=1)


async def crud_upserted(w: World, db: AsyncSession) -> None:
    """Change a row by upsert, and insert another."""
    await w.members.upsert(db, obj_in={"id": 1, "org_id": 1, "name": "upserted"})
    await w.members.upsert(db, obj_in={"id": 7, "org_id": 1, "name": "upserted"})


async def crud_updated_many(w: World, db: AsyncSession) -> None:
    """Change the rows of one parent."""
    await w.members.update_multi(db, obj_in={"name": "alike"}, org_id=1)


async def crud_deleted_many(w: World, db: AsyncSession) -> None:
    """Delete the rows of one parent."""
    await w.members.delete_multi(db, org_id=1)


async def crud_in_the_callers_transaction(w: World, db: AsyncSession) -> None:
    """Change a row twice, once by the class, in a transaction of the caller."""
    async with db.begin():
        await w.members.update(db, obj_in={"name": "first"}, id=1)
        await db.execute(sa.update(Member).where(Member.id == 1).values(name="second"))


async def crud_seat_taken(w: World, db: AsyncSession) -> None:
    """Change a row with a composite key."""
    await w.seats.update(db, obj_in={"taken": True}, room=1, number=2)


Write = Callable[[World, AsyncSession], Awaitable[None]]


def shown(members: Sequence[int], *orgs: int) -> set[str]:
    """Return the keys of the entries that show these members, and the lists and numbers of these orgs."""
    found = {f"member:{n}" for n in members}
    for org in orgs:
        found |= {f"org:{org}", f"members:{org}:1:10", f"members:{org}:1:10?order_by=name"}
        found |= {f"members:%:members:{number}?org_id={org}" for number in ("count", "exists")}
    return found


BY_OTHERS: list[tuple[Write, set[str]]] = [
    (renamed, shown([1], 1)),
    (moved, shown([1], 1, 2)),
    (updated_in_bulk, shown([1, 2], 1)),
    (moved_in_bulk, shown([1], 1, 2)),
    (inserted, shown([], 1)),
    (deleted, shown([2], 1)),
]
BY_ITSELF: list[tuple[Write, set[str]]] = [
    (crud_created, shown([], 1)),
    (crud_updated, shown([1], 1)),
    (crud_updated_without_redis, shown([1], 1)),
    (crud_moved, shown([1], 1, 2)),
    (crud_upserted, shown([1], 1)),
    (crud_updated_many, shown([1, 2], 1)),
    (crud_deleted_many, shown([1, 2], 1)),
    (crud_in_the_callers_transaction, shown([1], 1)),
    (crud_seat_taken, {"seat:1:2", "seat:2:2", "seats:1:10?room=1", "seats:%:seats:count?room=1"}),
]
"""A composite key is known by one of its columns: the other room's seat with this number goes, too."""
ON_SERVERS = (moved, crud_moved, crud_upserted)


@pytest.mark.parametrize(
    ("database", "write", "expected"),
    [
        pytest.param(name, write, expected, id=f"{name}-{write.__name__}")
        for name in ("sqlite", "postgresql", "mariadb")
        for write, expected in (*BY_OTHERS, *BY_ITSELF)
        if name == "sqlite" or write in ON_SERVERS
    ],
    indirect=["database"],
)
async def test_a_write_drops_what_shows_its_rows(world: World, write: Write, expected: set[str]) -> None:
    """No answer is old, and no other entry goes: not the pages of another parent, nor other rows."""
    assert await world.dropped(write) == expected


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
@pytest.mark.parametrize("write", [crud_created, crud_updated, crud_moved, crud_upserted, crud_updated_many])
async def test_a_write_stores_nothing_itself(world: World, write: Write) -> None:
    """Only a load shows which rows an answer depends on, so the next `get` stores the row."""
    await world.answers()
    before = await world.entries()
    async with world.database.sessions() as db:
        await write(world, db)
    assert (await world.entries()) < before


async def written_and_changed_by_another(w: World) -> None:
    """Update a row by the class, and then with others by a statement that does not name its key."""
    await w.answers()
    async with w.database.sessions() as db:
        await crud_updated(w, db)
    async with w.database.sessions() as db:
        await updated_in_bulk(w, db)
        await db.commit()
    assert await w.answers() == await w.answers(None)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_what_was_written_is_not_stale_when_another_changes_it(world: World) -> None:
    """Each entry is found by its tags, so by each column's value that a writer names."""
    await written_and_changed_by_another(world)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_row_that_its_write_stored_would_be_stale(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A value that is written through has no tags: no other writer would find it."""
    without("followed-unput").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError, match="another"):
        await written_and_changed_by_another(world)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_text_drops_the_entries_of_its_table(world: World) -> None:
    """Its rows are not known; no other table is reached."""
    gone = await world.dropped(written_as_text)
    assert gone == shown([*range(1, 7)], 1, 2, 3)


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_prefixes_are_invalidated_besides(world: World, cache: Cache, client: Redis) -> None:
    """`invalidate_pattern_prefix` is for keys of other functions, and for the class's own writes alone."""
    crud = FastRDB[Member, Any, Any, MemberOut](
        Member, MemberOut, "m:{id}", "ms:{page}:{limit}", invalidate_pattern_prefix="other:{org_id}:*", cache=cache
    )

    @cache.cached("other:{org_id}:all", auto=False)
    async def other(db: AsyncSession, org_id: int) -> int:
        return org_id

    async with world.database.sessions() as db:
        await other(db, 1)
        await other(db, 2)
        await crud.update(db, obj_in={"name": "new"}, id=1)
    assert not await client.exists("other:1:all")
    assert await client.exists("other:2:all")


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_without_auto_prefixes_do_all(world: World, cache: Cache, client: Redis) -> None:
    """With `auto=False` its own writes reach its entries by their keys, and those of others do not."""
    crud = FastRDB[Member, Any, Any, MemberOut](
        Member, MemberOut, "m:{id}", "ms:{page}:{limit}", cache=cache, auto=False
    )
    async with world.database.sessions() as db:
        await crud.get(db, id=1)
        await crud.get_multi(db)
        await renamed(world, db)
        await db.commit()
        assert await client.exists("m:1")
        assert await client.exists("ms:1:10")
        await crud.update(db, obj_in={"name": "new"}, id=1)
    assert not await client.exists("ms:1:10")
