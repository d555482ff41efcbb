"""`Cache(auto=True)`: statements of a load that run in another context, which has no copy of the load's own."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import Context
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import func, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache
from fastrdb.testing import Gate
from tests.support.servers.databases import Database
from tests.support.waiting import until

from .tables import Base, Club, Person

NAME = select(Person.name).where(Person.id == 1)
Work = Callable[[], Awaitable[Any]]


@pytest.fixture
async def filled(database: Database) -> Database:
    """Prepare each database in turn, with one person in one club."""
    await database.create(Base)
    async with database.sessions() as db:
        db.add(Club(id=1, name="club"))
        await db.flush()
        db.add(Person(id=1, club_id=1, number=101, name="old"))
        await db.commit()
    return database


@pytest.fixture
async def queue() -> AsyncIterator[asyncio.Queue[tuple[Work, asyncio.Future[Any]]]]:
    """Return a queue whose worker was started by the test, in no load."""
    work: asyncio.Queue[tuple[Work, asyncio.Future[Any]]] = asyncio.Queue()

    async def worker() -> None:
        while True:
            do, answer = await work.get()
            answer.set_result(await do())

    task = asyncio.create_task(worker())
    yield work
    task.cancel()


async def apart(do: Work) -> Any:
    """Run it in a task that has no copy of this context."""

    async def run() -> Any:
        return await do()

    return await asyncio.create_task(run(), context=Context())


async def rename(database: Database, name: str = "new") -> None:
    """Change the person's name, and commit."""
    async with database.sessions() as db:
        await db.execute(update(Person).where(Person.id == 1).values(name=name))
        await db.commit()


def shapes(database: Database, queue: Any) -> dict[str, Callable[[AsyncSession], Awaitable[str]]]:
    """Return loads of the person's name by statements of other contexts."""

    async def by_a_session_of_its_own() -> Any:
        async with database.sessions() as db:
            return (await db.scalars(NAME)).one()

    async def of_a_worker(db: AsyncSession) -> str:
        answer = asyncio.get_running_loop().create_future()
        await queue.put((by_a_session_of_its_own, answer))
        return str(await answer)

    async def with_its_session(db: AsyncSession) -> str:
        clubs = (await db.scalars(select(func.count()).select_from(Club))).one()
        return f"{clubs} {await apart(lambda: db.scalar(NAME))}"

    async def with_its_connection(db: AsyncSession) -> str:
        async with database.engine.connect() as connection:
            clubs = await connection.scalar(select(func.count()).select_from(Club))
            return f"{clubs} {await apart(lambda: connection.scalar(NAME))}"

    async def inside_of_another_load(db: AsyncSession) -> str:
        return f"<{await with_its_session(db)}>"

    return {
        "of a worker": of_a_worker,
        "with its session": with_its_session,
        "with its connection": with_its_connection,
        "inside of another load": inside_of_another_load,
    }


@pytest.mark.parametrize("name", shapes(None, None))  # type: ignore[arg-type]
async def test_statements_of_another_context_are_followed(
    filled: Database, following: Cache, queue: Any, name: str
) -> None:
    """The answer after the commit is that of the database."""
    shape = shapes(filled, queue)[name]

    @following.cached("other:name")
    async def cached(db: AsyncSession) -> str:
        return await shape(db)

    @following.cached("other:around")
    async def around(db: AsyncSession) -> str:
        return await cached(db)

    asked = around if name == "inside of another load" else cached
    async with filled.sessions() as db:
        before = await asked(db)
    async with filled.sessions() as db:
        assert (await asked.explain(db)).state == "hit"
    await rename(filled)
    async with filled.sessions() as db:
        assert await asked(db) == before.replace("old", "new") != before


async def test_a_load_without_a_query_may_have_read_anything(
    filled: Database, following: Cache, queue: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """Unless it says what it reads; `explain` and the log have the reason."""
    shape = shapes(filled, queue)["of a worker"]

    @following.cached("other:unseen")
    async def unseen(db: AsyncSession) -> str:
        return await shape(db)

    @following.cached("other:declared", depends_on=[Club])
    async def declared(db: AsyncSession) -> str:
        return await shape(db)

    @following.cached("other:none", depends_on=[])
    async def none(db: AsyncSession) -> str:
        return "none"

    async with filled.sessions() as db:
        assert [await each(db) for each in (unseen, declared, none)] == ["old", "old", "none"]
        explained = await unseen.explain(db)
        assert explained.depends_on == ("anything",)
        assert explained.coarse == ("anything: no query of the load was seen",)
        assert (await declared.explain(db)).depends_on == ("clubs (any row)",)
        assert (await none.explain(db)).depends_on == ()
    assert "no query of the load was seen" in caplog.text


async def test_a_caller_after_a_commit_gets_no_earlier_answer(filled: Database, following: Cache, queue: Any) -> None:
    """A load whose query was not seen counts as one that reads from its beginning."""
    shape = shapes(filled, queue)["of a worker"]
    gate: Gate = Gate()

    @following.cached("other:slow")
    async def slow(db: AsyncSession) -> str:
        found = await shape(db)
        await gate.hold()
        return found

    async def follows() -> bool:
        flights = following.runtime.here().flights.by_token.values()
        return any(flight._followers or flight._late for flight in flights)

    async with filled.sessions() as db, filled.sessions() as other:
        first = asyncio.create_task(slow(db))
        await gate.reached()
        await rename(filled)
        second = asyncio.create_task(slow(other))
        await until(follows)
        gate.open()
        assert (await first, await second) == ("old", "new")


async def test_objects_that_were_loaded_before_do_not_answer(client: Redis, filled: Database) -> None:
    """Statements of another context are answered by the database, as those of the load are."""
    async with Cache(client) as cache, filled.sessions() as db:

        @cache.cached("other:object")
        async def person(db: AsyncSession) -> str:
            async def read() -> str:
                return (await db.scalars(select(Person).where(Person.id == 1))).one().name

            return str(await apart(read))

        loaded = await db.get_one(Person, 1)
        await db.commit()
        await rename(filled)
        assert loaded.name == "old"
        assert await person(db) == "new"


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
async def test_a_task_that_outlives_a_call_has_not_declared_its_writes(filled: Database, following: Cache) -> None:
    """A statement that cannot be read counts as any write again once the call has ended."""
    over = asyncio.Event()

    @following.cached("outlived:name")
    async def cached(db: AsyncSession) -> str:
        return str(await db.scalar(NAME))

    async def later() -> None:
        await over.wait()
        async with filled.sessions() as db:
            await db.execute(text("WITH q AS (SELECT 1 AS id) UPDATE people SET name = 'new' WHERE id IN q"))
            await db.commit()

    @following.invalidates(touches=[Club])
    async def begin(db: AsyncSession) -> asyncio.Task[None]:
        return asyncio.create_task(later())

    async with filled.sessions() as db:
        task = await begin(db)
    async with filled.sessions() as db:
        assert await cached(db) == "old"
    over.set()
    await task
    async with filled.sessions() as db:
        assert await cached(db) == "new"
