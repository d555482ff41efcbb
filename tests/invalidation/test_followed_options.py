"""`Cache(auto=True)` with the other options of cached functions: on one server and on a cluster, near cache or not."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, no_store
from tests.support.servers.databases import Database
from tests.support.waiting import until

from .tables import Base, Club, Person

ALWAYS = 1e15  # XFetch's beta: every hit is early
AWAY = ConnectionRefusedError("nobody listens")


class World:
    """One process: a cache that follows, and the names of people. Each call has a session of its own."""

    def __init__(self, database: Database, client: Any, cache: Cache) -> None:
        self.database, self.client, self.cache = database, client, cache
        self.loads = 0
        self.error: Exception | None = None

    def cached(self, **options: Any) -> Callable[[], Awaitable[str | None]]:
        """Return a call of a function with these options that gives the name of person 1."""
        decorate: Any = self.cache.cached("name:{person_id}", exp=600, **options)

        @decorate  # type: ignore[untyped-decorator]
        async def name_of(db: AsyncSession, person_id: int) -> str | None:
            self.loads += 1
            if self.error is not None:
                raise self.error
            return (await db.scalars(select(Person.name).where(Person.id == person_id))).one_or_none()

        self.function: Any = name_of
        return lambda: self.ask(name_of, 1)

    async def ask(self, function: Any, *arguments: Any) -> Any:
        """Call a function with a session of its own."""
        async with self.database.sessions() as db:
            return await function(db, *arguments)

    async def write(self, name: str, person_id: int = 1) -> None:
        """Rename a person, and say nothing to the cache."""
        async with self.database.sessions() as db:
            (await db.get_one(Person, person_id)).name = name
            await db.commit()

    async def write_unseen(self, name: str) -> None:
        """Rename a person by the driver alone, as another program does."""
        async with self.database.engine.connect() as connection:
            driver: Any = (await connection.get_raw_connection()).driver_connection
            await driver.execute("UPDATE people SET name = ? WHERE id = 1", (name,))
            await driver.commit()

    async def age(self, left_s: float) -> None:
        """Shorten the life of the entry in Redis, as if time had passed; this process keeps no other one."""
        assert await self.client.pexpire("name:1", round(left_s * 1000))
        self.cache.runtime.store(self.client).near.clear()

    async def settled(self) -> None:
        """Wait for what runs in the background."""
        here = self.cache.runtime.here()
        await asyncio.gather(*here.reloads.values())
        await asyncio.gather(*here.tasks)


@pytest.fixture(params=[False, True], ids=["redis", "near"])
async def cache(request: pytest.FixtureRequest, client_of_each: Any) -> AsyncIterator[Cache]:
    """Return a cache that follows."""
    async with Cache(client_of_each, auto=True, near=request.param, timeout=5) as made:
        yield made


@pytest.fixture(params=["client", "cluster_client"])
def client_of_each(request: pytest.FixtureRequest) -> Any:
    """Return a client of one server, and of a cluster."""
    if request.param == "cluster_client":
        request.getfixturevalue("cluster").flush()
    return request.getfixturevalue(request.param)


@pytest.fixture
async def w(sqlite: Database, client_of_each: Any, cache: Cache) -> World:
    """Return a world with two people, whose process has met the columns in use."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        db.add(Club(id=1, name="club"))
        await db.flush()
        db.add_all([Person(id=n, club_id=1, number=n, name="old") for n in (1, 2)])
        await db.commit()
    made = World(sqlite, client_of_each, cache)

    @cache.cached("first:{person_id}")
    async def first(db: AsyncSession, person_id: int) -> str:
        return (await db.get_one(Person, person_id)).name

    await made.ask(first, 2)
    await made.write("old", 2)
    return made


async def stale(w: World) -> None:
    """Write when exp is over, and after a reload: the old entry is not served, and the new one has tags."""
    get = w.cached(stale=60, session_factory=w.database.sessions)
    assert await get() == "old"
    await w.age(30)
    assert await get() == "old"
    await w.settled()
    assert w.loads == 2
    await w.write("new")
    assert await get() == "new"
    await w.age(30)
    await w.write("newer")
    assert await get() == "newer"


async def early(w: World) -> None:
    """Write after an early reload, whose entry has tags."""
    get = w.cached(early=ALWAYS, session_factory=w.database.sessions)
    for _ in range(2):
        assert await get() == "old"
        await w.settled()
    assert w.loads > 1
    await w.write("new")
    assert await get() == "new"
    await w.settled()


async def fail_safe(w: World) -> None:
    """Lose the database after a write: the answer from before the write does not stand in for it."""
    get = w.cached(fail_safe=60)
    assert await get() == "old"
    await w.age(30)
    w.error = AWAY
    assert await get() == "old"
    await w.write("new")
    with pytest.raises(ConnectionRefusedError):
        await get()


async def many(w: World) -> None:
    """Write one of two ids: those that one statement has loaded go together, those that were loaded alone stay."""
    asked: list[list[int]] = []

    @w.cache.cached_many("many:{ids}")
    async def names(db: AsyncSession, ids: list[int]) -> dict[int, str]:
        asked.append(ids)
        found = await db.execute(select(Person.id, Person.name).where(Person.id.in_(ids)))
        return {each.id: each.name for each in found}

    await w.ask(names, [1])
    await w.ask(names, [1, 2])
    await w.write("new")
    assert await w.ask(names, [1, 2]) == {1: "new", 2: "old"}
    await w.write("newer", 2)
    assert await w.ask(names, [1, 2]) == {1: "new", 2: "newer"}
    assert asked == [[1], [2], [1], [2]]
    await w.write("all", 2)
    await w.write("all")
    assert await w.ask(names, [1, 2]) == {1: "all", 2: "all"}
    await w.write("one")
    assert await w.ask(names, [1, 2]) == {1: "one", 2: "all"}
    assert asked[4:] == [[1, 2], [1, 2]]


async def put(w: World) -> None:
    """Put a value, of which no statement says the rows: the entry goes, and the next call loads."""
    get = w.cached()
    assert await get() == "old"
    async with w.database.sessions() as db:
        (await db.get_one(Person, 1)).name = "new"
        await db.flush()
        await w.function.put("put", db, 1)
        await db.commit()
    assert await get() == "new"
    await w.write("newer")
    assert await get() == "newer"


async def refresh(w: World) -> None:
    """Refresh after a write that was not seen: the new entry has tags."""
    get = w.cached()
    assert await get() == "old"
    await w.write_unseen("unseen")
    assert await get() == "old"
    assert await w.ask(w.function.refresh, 1) == "unseen"
    assert await get() == "unseen"
    await w.write("new")
    assert await get() == "new"


async def unstored(w: World) -> None:
    """Write what a load has read that is not stored."""

    @w.cache.cached("unstored:{person_id}")
    async def name_of(db: AsyncSession, person_id: int) -> str:
        no_store("for a test")
        return (await db.get_one(Person, person_id)).name

    assert await w.ask(name_of, 1) == "old"
    await w.write("new")
    assert await w.ask(name_of, 1) == "new"
    assert name_of.stats.fills == name_of.stats.refused == 0


async def nested(w: World) -> None:
    """Write what an inner entry depends on, which was a hit, from this process, or is gone since."""
    inner = w.cached()

    @w.cache.cached("card:{person_id}")
    async def card(db: AsyncSession, person_id: int) -> str:
        return f"<{await w.function(db, person_id)}>"

    async def is_kept_here() -> bool:
        await inner()
        return bool(w.function.stats.near)

    if w.cache.runtime.near_by_default:
        await until(is_kept_here)
    for number in range(3):
        await inner()
        assert await w.ask(card, 1) == ("<old>" if not number else f"<new {number}>")
        assert (await w.ask(card.explain, 1)).depends_on == ("people where id = 1",)
        if number:
            await w.client.delete("name:1")  # it expires before the outer one
        await w.write(f"new {number + 1}")
        assert await w.ask(card, 1) == f"<new {number + 1}>"


@pytest.mark.parametrize(
    "scenario", [stale, early, fail_safe, many, put, refresh, unstored, nested], ids=lambda each: each.__name__
)
async def test_a_followed_write_reaches_the_entries_of_each_option(
    w: World, scenario: Callable[[World], Awaitable[None]]
) -> None:
    """No answer after the commit is older."""
    await scenario(w)


async def test_what_this_process_keeps_goes_with_the_commit(w: World) -> None:
    """The near cache has the entry, and the call behind the commit loads."""
    get = w.cached(near=True)

    async def is_kept_here() -> bool:
        await get()
        return bool(w.function.stats.near)

    await until(is_kept_here)
    await w.write("new")
    assert await get() == "new"
    assert w.loads == 2


async def test_results_for_nothing_and_refused_are_counted(w: World, caplog: pytest.LogCaptureFixture) -> None:
    """`same`: the entry went, and has come back as it was. `refused`: the row was written while it was loaded."""
    get = w.cached()
    assert await get() == "old"
    for name in ("old", "new"):
        await w.write("between")
        await w.write(name)
        assert await get() == name
    assert w.function.stats.same == 1

    @w.cache.cached("busy:{number}")
    async def busy(db: AsyncSession, number: int) -> str:
        found = (await db.get_one(Person, 1)).name
        await db.rollback()
        await w.write(f"busy {number}")
        return found

    with caplog.at_level("WARNING", "fastrdb"):
        for number in range(30):
            await w.ask(busy, number)
    stats = busy.stats
    assert stats.refused == stats.unstored == 30
    assert busy.stats.fills == 0
    (said,) = [each for each in caplog.messages if "results were not stored" in each]
    assert "busy: 20 of 20 results were not stored, because people." in said
