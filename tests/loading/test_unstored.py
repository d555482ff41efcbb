"""A result that is not stored: the log says why, once for each cause; `explain` and the counts say it, too."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, no_store
from fastrdb.testing import Gate
from tests.support.servers.databases import Database
from tests.support.waiting import until
from tests.support.world.items import Base, Item, Row


async def unlike(number: int) -> Item:
    """Return another type than declared."""
    return {"id": number, "name": "secret"}  # type: ignore[return-value]


async def row(number: int) -> Item:
    """Return a row, without `schema=`."""
    return Row(id=number, name="secret")  # type: ignore[return-value]


async def rows(number: int) -> list[Item]:
    """Return rows, without `schema=`."""
    return [Row(id=number, name="secret")]  # type: ignore[list-item]


@dataclass
class Record:
    """A dataclass, which pydantic does not make of a row."""

    id: int


async def record(number: int) -> Record | None:
    """Return a row in place of a dataclass."""
    return Row(id=number, name="secret")  # type: ignore[return-value]


async def large(number: int) -> str:
    """Return more than `max_bytes`."""
    return "secret" * 100


async def noted(number: int) -> int:
    """Say that this result is not for others."""
    no_store("a preview")
    return number


async def plain(number: int) -> int:
    """Return the number."""
    return number


CAUSES: dict[str, tuple[Any, dict[str, Any], int, str]] = {
    "type": (unlike, {}, logging.WARNING, "dict comes back as Item"),
    "row": (row, {}, logging.WARNING, "the function returns a row of Row, and declares Item: give schema=Item"),
    "rows": (rows, {}, logging.WARNING, "the function returns a row of Row, and declares Item: give schema=Item"),
    "record": (record, {}, logging.WARNING, "declares Record: make that of the row before you return it"),
    "size": (large, {}, logging.WARNING, "the entry is larger than max_bytes, 100 bytes"),
    "no_store": (noted, {}, logging.INFO, "a preview"),
    "cache_if": (plain, {"cache_if": lambda number: number < 0}, logging.INFO, "cache_if"),
}


@pytest.mark.parametrize("cause", CAUSES)
async def test_cause_is_said_once_and_counted(client: Redis, caplog: pytest.LogCaptureFixture, cause: str) -> None:
    """The line names the function and the cause, and never a value."""
    function, options, level, reason = CAUSES[cause]
    cache = Cache(client, max_bytes=100)
    load = cache.cached("thing:{number}", **options)(function)
    with caplog.at_level(logging.INFO, logger="fastrdb"):
        for number in (1, 2, 2):
            await load(number)
    (record,) = caplog.records
    assert record.levelno == level
    assert record.getMessage().startswith(f"{load.__qualname__}: a result is not stored: ")
    assert reason in record.getMessage()
    assert "secret" not in record.getMessage()
    (info,) = cache.functions()
    ((told, count),) = info.unstored.items()
    assert (count, load.stats.unstored) == (3, 3)
    assert (await load.explain(3)).reasons == (f"the latest result was not stored: {told} (3 in all)",)
    assert [found.what for found in cache.check() if "stored" in found.what] == [
        f"none of its results was stored: {told} (3 times)"
    ]


async def test_result_of_a_caller_that_does_not_wait_counts(client: Redis) -> None:
    """Callers of a function whose results have no entry load side by side; each result is one that is not stored."""
    cache = Cache(client)
    load = cache.cached("thing:{number}")(unlike)
    await load(0)
    gate = Gate()

    async def held(number: int) -> Item:
        await gate.hold()
        return await unlike(number)

    slow: Any = cache.cached("slow:{number}")(held)
    slow.query.unstorable = "dict comes back as Item"
    leader = asyncio.create_task(slow(1))
    await gate.reached()
    follower = asyncio.create_task(slow(1))
    await until(lambda: _bypassed(slow))
    gate.open()
    await asyncio.gather(leader, follower)
    assert slow.stats.unstored == 2
    await client.script_flush()  # the lease of the first call is given back late: its script is sent once more
    for number in (2, 2):
        await load(number)
    assert load.stats.unstored == 3
    assert sum(cache.functions()[0].unstored.values()) == 3


async def _bypassed(function: Any) -> bool:
    return bool(function.stats.bypasses)


async def test_call_that_has_just_ended_is_not_another_caller(client: Redis) -> None:
    """The lease goes back in the background: `explain()` right behind the call waits for that."""
    cache = Cache(client)
    picky = cache.cached("number:{number}", cache_if=lambda value: False)(plain)
    for number in range(3):
        await picky(number)
        assert (await picky.explain(number)).reasons == (
            f"the latest result was not stored: cache_if ({number + 1} in all)",
        )


async def test_stored_result_ends_the_reason(client: Redis) -> None:
    """`explain` of a function that stores again has none; the counts stay."""
    cache = Cache(client)
    load = cache.cached("thing:{number}", cache_if=lambda number: number > 1)(plain)
    await load(1)
    await load(2)
    assert (await load.explain(3)).reasons == ()
    assert cache.functions()[0].unstored == {"cache_if": 1}


async def test_load_slower_than_its_lease_says_so(client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """A longer `lease` is what helps, and the line says that; a write that comes between is no such thing."""
    cache = Cache(client, lease=0.05)

    async def lapsed() -> bool:
        return not await client.exists("fastrdb:lease:{thing:1}")

    @cache.cached("thing:{number}")
    async def load(number: int) -> int:
        await until(lapsed)
        return number

    await load(1)
    (record,) = caplog.records
    assert "the load took longer than lease=0.05 (seconds): a longer one covers it" in record.getMessage()


async def test_old_snapshot_says_so(client: Redis, postgresql: Database, caplog: pytest.LogCaptureFixture) -> None:
    """A session in REPEATABLE READ that has read before stores nothing."""
    cache = Cache(client)
    await postgresql.create(Base)

    @cache.cached("row:{number}", schema=Item)
    async def load(db: AsyncSession, number: int) -> Row | None:
        return (await db.scalars(select(Row).where(Row.id == number))).one_or_none()

    async with postgresql.engine.connect() as connection:
        await connection.execution_options(isolation_level="REPEATABLE READ")
        async with AsyncSession(connection) as db:
            await db.execute(select(1))
            for _ in range(2):
                await load(db, 1)
    (record,) = caplog.records
    assert "snapshot" in record.getMessage()
