"""Two tasks that use one session at once get an error with its name, before the second has touched the database."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from fastrdb import Cache, FastRDB, SessionInUseError
from tests.races.mechanisms import without
from tests.support.servers.databases import statements
from tests.support.world.world import Item, ItemOut, World, spawn


class ItemIn(BaseModel):
    id: int
    name: str
    owner_id: int = 1


def refusal(function: str, other: str, parameter: str | None = "db") -> Any:
    """Expect the error that names both functions, and the parameter."""
    name = f"parameter '{parameter}'" if parameter is not None else "its session"
    return pytest.raises(SessionInUseError, match=rf"{function}: {name} is in use by a call of \S*{other} in another")


async def second_miss(w: World) -> None:
    """Miss a second time, while the first call is loading with the same session."""
    gate = w.one.gates.before("load")
    async with w.one.database.sessions() as db:
        first = spawn(w.one.get(db, w.one.client, 1))
        await gate.reached()
        with statements(w.database) as asked, refusal("get", "get") as caught:
            await w.one.get(db, w.one.client, 2)
        assert asked == []
        assert (caught.value.parameter, caught.value.function) == ("db", caught.value.other)
        gate.open()
        assert (await first).name == "old"
        assert (await w.one.get(db, w.one.client, 2)).name == "old", "nothing of it is left"
    assert w.one.get.stats.fills == 2
    await w.quiet()


async def test_second_miss_is_refused(w: World) -> None:
    """The first goes on, and so does the session after it."""
    await second_miss(w)


async def test_second_miss_is_not_refused_when_sessions_are_not_claimed(
    w: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The test above fails when a session's users are not looked at."""
    without("session-claimed").apply(monkeypatch.setattr)
    with pytest.raises(pytest.fail.Exception):
        await second_miss(w)


async def test_two_misses_at_once_answer_one_caller(w: World) -> None:
    """Of two that are gathered, one is answered: whichever had its lease first."""
    async with w.one.database.sessions() as db:
        calls = [w.one.get(db, w.client, number) for number in (1, 2)]
        found = await asyncio.gather(*calls, return_exceptions=True)
    assert sorted(type(each).__name__ for each in found) == ["ItemOut", "SessionInUseError"]
    await w.quiet()


async def test_hits_need_no_session(w: World) -> None:
    """Any number of them at once, and while another call loads with it."""
    await w.one.read(1)
    async with w.one.database.sessions() as db:
        assert len(await asyncio.gather(*(w.one.get(db, w.one.client, 1) for _ in range(5)))) == 5
        gate = w.one.gates.before("load")
        load = spawn(w.one.get(db, w.one.client, 2))
        await gate.reached()
        assert (await w.one.get(db, w.one.client, 1)).name == "old"
        gate.open()
        await load
    assert w.one.get.stats.hits == 6


async def test_joining_caller_needs_no_session(w: World) -> None:
    """Several misses of one key with one session: one loads, the others wait for it."""
    async with w.one.database.sessions() as db:
        found = await asyncio.gather(*(w.one.get(db, w.one.client, 1) for _ in range(5)))
    assert [each.name for each in found] == ["old"] * 5
    assert w.one.get.stats.loads == 1


async def test_caller_of_a_refused_load_starts_over(w: World) -> None:
    """The error is the leader's own: a caller that joined it has a session of its own."""
    gate = w.one.gates.before("load")
    async with w.one.database.sessions() as db:
        first = spawn(w.one.get(db, w.one.client, 1))
        await gate.reached()
        granted = w.one.client.after("acquire")
        refused = spawn(w.one.get(db, w.one.client, 2))
        await granted.reached()
        asked = w.one.client.after("acquire")
        follower = spawn(w.one.read(2))
        await asked.reached()
        asked.open()
        granted.open()
        with refusal("get", "get"):
            await refused
        gate.open()
        await first
    assert await follower == "old"
    await w.quiet()


async def test_calls_inside_of_a_call(w: World) -> None:
    """A cached function that calls another with its session: in its own task, or in one that it waits for."""

    @w.one.cache.cached("inner:{item_id}")
    async def inner(db: AsyncSession, redis: object, item_id: int) -> str:
        return (await db.scalars(select(Item.name).where(Item.id == item_id))).one()

    @w.one.cache.cached("outer")
    async def outer(db: AsyncSession, redis: object) -> list[str]:
        first = await inner(db, redis, 1)
        return [first, await asyncio.get_running_loop().create_task(inner(db, redis, 2))]

    @w.one.cache.cached("both")
    async def both(db: AsyncSession, redis: object) -> list[str]:
        found = await asyncio.gather(inner(db, redis, 1), inner(db, redis, 2), return_exceptions=True)
        raise next(each for each in found if isinstance(each, Exception))

    async with w.one.database.sessions() as db:
        assert await outer(db, w.one.client) == ["old", "old"]
        await w.one.cache.invalidate("inner:*", redis=w.client)
        with refusal("inner", "inner"):
            await both(db, w.client)
    assert (inner.stats.fills, outer.stats.fills) == (3, 1)
    await w.quiet()


async def test_call_that_outlives_the_one_around_it(w: World) -> None:
    """A task that a call has started and not waited for uses the session until it is over, and no longer."""
    gate = w.one.gates.before("load")
    tasks = []

    @w.one.cache.cached("hasty")
    async def hasty(db: AsyncSession, redis: object) -> int:
        tasks.append(spawn(w.one.get(db, redis, 1)))
        await gate.reached()
        return 1

    async with w.one.database.sessions() as db:
        await hasty(db, w.one.client)
        with refusal("get", "get"):
            await w.one.get(db, w.one.client, 2)
        gate.open()
        await tasks[0]
        assert (await w.one.get(db, w.one.client, 2)).name == "old"


async def test_write_while_another_task_loads(w: World) -> None:
    """And the other way round."""
    gate = w.one.gates.before("load")
    async with w.one.database.sessions() as db:
        load = spawn(w.one.get(db, w.one.client, 1))
        await gate.reached()
        with refusal("rename", "get"):
            await w.one.rename(db, w.one.client, 1, "new")
        gate.open()
        await load
        gate = w.at_commit()
        change = spawn(w.one.change(db, w.one.client, 1, "new"))
        await gate.reached()
        with refusal("get", "change"):
            await w.one.get(db, w.one.client, 2)
        gate.open()
        await change
    await w.fair()


async def test_without_redis(w: World) -> None:
    """It does not depend on the cache being well: a load that goes past it is a load."""

    @Cache(timeout=0.05).cached("item:{item_id}", shared=True, schema=ItemOut)
    async def get(db: AsyncSession, redis: object, item_id: int) -> Item:
        await w.one.gates.arrive("load")
        return (await db.execute(select(Item).where(Item.id == item_id))).scalar_one()

    gate = w.one.gates.before("load")
    async with w.one.database.sessions() as db, Redis(port=1) as nobody:
        first = spawn(get(db, nobody, 1))
        await gate.reached()
        with refusal("get", "get"):
            await get(db, nobody, 2)
        gate.open()
        assert (await first).name == "old"


async def test_connection_given_as_a_session_is_refused(w: World) -> None:
    """The same for what is no session, with an error at its first statement."""

    @w.one.cache.cached("name:{item_id}")
    async def name(db: AsyncConnection, redis: object, item_id: int) -> str:
        found = (await db.execute(select(Item.name).where(Item.id == item_id))).scalar_one()
        await w.one.gates.leave("load")
        return str(found)

    gate = w.one.gates.after("load")
    async with w.one.database.engine.connect() as db:
        first = spawn(name(db, w.one.client, 1))
        await gate.reached()
        with statements(w.database) as asked, refusal("name", "name"):
            await name(db, w.one.client, 2)
        assert asked == []
        gate.open()
        assert await first == "old"
        assert await name(db, w.one.client, 2) == "old"


async def test_many_ids(w: World) -> None:
    """A function that takes many ids loads with its session, too."""

    @w.one.cache.cached_many("name:{ids}")
    async def names(db: AsyncSession, redis: object, ids: list[int]) -> list[str | None]:
        await w.one.gates.arrive("load")
        return [(await db.scalars(select(Item.name).where(Item.id == each))).one() for each in ids]

    gate = w.one.gates.before("load")
    async with w.one.database.sessions() as db:
        first = spawn(names(db, w.one.client, [1]))
        await gate.reached()
        with refusal("names", "names"):
            await names(db, w.one.client, [2])
        gate.open()
        assert await first == ["old"]
        assert await names(db, w.one.client, [1, 2]) == ["old", "old"]
    await w.quiet()


async def test_the_crud_class(w: World) -> None:
    """Two writes at once, and a read while a write is going on."""
    crud = FastRDB[Item, ItemIn, ItemIn, ItemOut](Item, ItemOut, "crud:{id}", "cruds:{page}:{limit}", cache=w.one.cache)
    async with w.one.database.sessions() as db:
        gate = w.at_commit()
        first = spawn(crud.create(db, w.one.client, ItemIn(id=3, name="a")))
        await gate.reached()
        with refusal("", "FastRDB\\[Item\\]"):
            await crud.create(db, w.one.client, ItemIn(id=4, name="a"))
        with refusal("", "FastRDB\\[Item\\]"):
            await crud.get(db, w.one.client, id=1)
        gate.open()
        assert (await first).name == "a"
        assert (await crud.create(db, w.one.client, ItemIn(id=4, name="a"))).id == 4


async def test_tasks_with_own_sessions_do_not_disturb_each_other(w: World) -> None:
    """Tasks with a session each do not disturb each other, whatever each does."""

    async def one(number: int) -> str:
        async with w.one.database.sessions() as db:
            found: ItemOut = await w.one.get(db, w.one.client, 1 + number % 2)
            await db.execute(update(Item).where(Item.id == 0).values(name="none"))
            return found.name

    assert await asyncio.gather(*(one(number) for number in range(8))) == ["old"] * 8
