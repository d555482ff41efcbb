"""A load whose arguments or tables are not those that its key names answers its own caller, and is not stored."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.pool import StaticPool

from fastrdb import Cache
from fastrdb.testing import Gates
from tests.races.mechanisms import without

SCHEMA_MAP = "schema_translate_map"


class Base(DeclarativeBase):
    """The tables of this module."""


class Owner(Base):
    """A row that a caller gives as an argument."""

    __tablename__ = "owner"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
async def cache(client: Redis) -> AsyncIterator[Cache]:
    """Return a cache that does not wait for itself."""
    async with Cache(client, timeout=5) as made:
        yield made


@pytest.fixture
async def sessions() -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    """Return sessions of a database in memory, with one row."""
    engine = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
    made = async_sessionmaker(engine)
    async with made() as db:
        db.add(Owner(id=1))
        await db.commit()
    yield made
    await engine.dispose()


async def outdated(client: Redis, cache: Cache) -> None:
    """End the `exp` of all entries: the 60 s of `stale` begin."""
    for key in await client.keys("total*"):
        await client.pexpire(key, 60_000)


def summing(cache: Cache, **options: Any) -> Any:
    """Return a cached function of a list."""

    @cache.cached("total", **options, shared=True)  # type: ignore[untyped-decorator]
    async def total(ids: list[int]) -> int:
        return sum(ids)

    return total


async def test_list_that_changes_before_the_load_begins_is_not_stored(cache: Cache) -> None:
    """Its caller gets what the function makes of it; the next call with the old list loads."""
    total, batch = summing(cache), [1, 2]
    task = asyncio.create_task(total(batch))
    batch.clear()
    assert await task == 0
    assert await total([1, 2]) == 3
    assert total.stats.fills == 1


async def test_list_that_changes_while_it_is_loaded_is_not_stored(cache: Cache) -> None:
    """The function may have read the list before or after."""
    gates = Gates()

    @cache.cached("total", shared=True)
    async def total(ids: list[int]) -> int:
        await gates.arrive("load")
        return sum(ids)

    batch, gate = [1, 2], gates.before("load")
    task = asyncio.create_task(total(batch))
    await gate.reached()
    batch.append(3)
    gate.open()
    assert await task == 6
    assert await total([1, 2]) == 3


async def test_list_of_ids_that_changes_is_not_stored(cache: Cache) -> None:
    """Under the key of each id there is its own value."""

    @cache.cached_many("square:{ids}")
    async def squares(ids: list[int], powers: list[int]) -> dict[int, int]:
        return {number: number ** sum(powers) for number in ids}

    powers = [2]
    task = asyncio.create_task(squares([3], powers))
    powers.append(1)
    assert await task == {3: 27}
    assert await squares([3], [2]) == {3: 9}


async def test_function_that_empties_its_list_of_ids_is_answered(cache: Cache) -> None:
    """A list of values fits the ids that the function was asked for."""

    @cache.cached_many("square:{ids}")
    async def squares(ids: list[int]) -> list[int]:
        found = []
        while ids:
            found.append(ids.pop(0) ** 2)
        return found

    assert await squares([1, 2, 3]) == [1, 4, 9]
    assert await squares([1, 2, 3]) == [1, 4, 9]


async def test_refresh_with_a_list_that_changes_is_not_stored(cache: Cache) -> None:
    """The old entry goes, as for each refresh that stores nothing."""
    total, batch = summing(cache), [1, 2]
    await total(batch)

    @cache.cached("total", shared=True)
    async def changing(ids: list[int]) -> int:
        ids.append(3)
        return sum(ids)

    assert await changing.refresh(batch) == 6
    assert await total([1, 2]) == 3


async def test_reload_with_a_list_that_has_changed_is_not_stored(client: Redis, cache: Cache) -> None:
    """The caller goes on with its list when it has the old value."""
    total, batch = summing(cache, exp=60, stale=60), [1, 2]
    await total(batch)
    await outdated(client, cache)
    assert await total(batch) == 3
    batch.clear()
    await cache.aclose()
    assert await total([1, 2]) == 3


@pytest.mark.parametrize("where", ["engine", "connection"])
async def test_reload_in_other_tables_than_the_callers_is_not_stored(
    client: Redis, cache: Cache, sessions: async_sessionmaker[AsyncSession], where: str
) -> None:
    """A session of the factory has no schema_translate_map, and that of a tenant is in the key."""

    @cache.cached("total", exp=60, stale=60, session_factory=sessions)
    async def schema(db: AsyncSession) -> str:
        options = (await db.connection()).sync_connection.get_execution_options()  # type: ignore[union-attr]
        return str((options.get(SCHEMA_MAP) or {None: "of all"})[None])

    async def ask(tenant: str) -> str:
        options: Any = {SCHEMA_MAP: {None: tenant}}
        bind = sessions.kw["bind"]
        async with sessions(bind=bind.execution_options(**options) if where == "engine" else bind) as db:
            if where == "connection":
                await db.connection(execution_options=options)
            return str(await schema(db))

    assert await ask("red") == "red"
    await outdated(client, cache)
    assert await ask("red") == "red"
    await cache.aclose()
    assert await ask("red") == "red"
    assert await ask("blue") == "blue"


async def test_object_that_the_load_expires_is_stored(cache: Cache, sessions: async_sessionmaker[AsyncSession]) -> None:
    """A commit inside of the function expires the argument; its key was right when the load began."""

    @cache.cached("owner:{owner.id}")
    async def get(db: AsyncSession, owner: Owner) -> int:
        await db.commit()
        return 1

    async with sessions() as db:
        owner = await db.get_one(Owner, 1)
        assert await get(db, owner) == 1
        assert get.stats.fills == 1


async def test_argument_that_changes_without_the_mechanism_is_stored(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another caller gets what was made of the changed list."""
    without("keys-made-again").apply(monkeypatch.setattr)
    total, batch = summing(cache), [1, 2]
    task = asyncio.create_task(total(batch))
    batch.clear()
    await task
    assert await total([1, 2]) == 0


@dataclass
class Point:
    """An id that can change."""

    x: int


async def test_id_that_changes_is_not_stored(cache: Cache) -> None:
    """The list of ids is copied, and its elements are not."""

    @cache.cached_many("square:{points}")
    async def squares(points: list[Point]) -> list[int]:
        return [point.x**2 for point in points]

    point = Point(1)
    task = asyncio.create_task(squares([point]))
    point.x = 2
    assert await task == [4]
    assert await squares([Point(1)]) == [1]


async def test_default_that_changes_is_not_stored(cache: Cache) -> None:
    """A default that is not given is an argument, too."""
    numbers = [1]

    @cache.cached("total")
    async def total(of: list[int] = numbers) -> int:
        return sum(of)

    call = total()
    numbers.append(2)
    assert await call == 3
    numbers.pop()
    assert await total() == 1
    assert await total() == 1
    assert (total.stats.hits, total.stats.fills) == (1, 1)
