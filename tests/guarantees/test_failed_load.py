"""A load that raises: all waiting callers get the error, unless it is about the leader's session; nothing is stored."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.exc import (
    IntegrityError,
    InvalidRequestError,
    MultipleResultsFound,
    NoResultFound,
    OperationalError,
    PendingRollbackError,
)
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache
from fastrdb.testing import GatedClient, Gates
from fastrdb.transactions.rules import session_s_own
from tests.support.network.lines import turns
from tests.support.servers.databases import Database
from tests.support.world.items import Base, Row

Call = Callable[[AsyncSession], Awaitable[str]]


def single(cache: Cache, gates: Gates) -> Call:
    """Return a function of one id."""

    @cache.cached("broken:{number}")
    async def name(db: AsyncSession, number: int) -> str:
        await gates.arrive("load")
        return (await db.scalars(select(Row.name).where(Row.id == number))).one()

    return lambda db: name(db, 1)


def many(cache: Cache, gates: Gates) -> Call:
    """Return a function that asks for one id of a list."""

    @cache.cached_many("broken:{numbers}")
    async def names(db: AsyncSession, numbers: list[int]) -> dict[int, str]:
        await gates.arrive("load")
        return {row.id: row.name for row in await db.scalars(select(Row).where(Row.id.in_(numbers)))}

    async def name(db: AsyncSession) -> str:
        return (await names(db, [1]))[1]

    return name


async def failed_flush(database: Database) -> AsyncSession:
    """Return a session whose flush has failed and was not rolled back."""
    session = database.sessions()
    session.add(Row(id=1, name="the same again"))
    with pytest.raises(IntegrityError):
        await session.flush()
    return session


async def closed_for_good(database: Database) -> AsyncSession:
    """Return a session that cannot be used any more."""
    session = AsyncSession(database.engine, close_resets_only=False)
    await session.close()
    return session


@pytest.mark.parametrize("kind", [single, many])
async def test_failed_load_raises_for_all_waiting_callers(sqlite: Database, gated: GatedClient, kind: Any) -> None:
    """Two callers share the load of a table that is not there, and its error; Redis has no entry."""
    gates, cache = Gates(), Cache(gated)
    call, gate = kind(cache, gates), gates.before("load")
    async with sqlite.sessions() as one, sqlite.sessions() as other:
        first = asyncio.create_task(call(one))
        await gate.reached()
        asked = gated.after("acquire")
        second = asyncio.create_task(call(other))
        await asked.reached()
        asked.open()
        await turns()
        gate.open()
        errors = await asyncio.gather(first, second, return_exceptions=True)
    assert isinstance(errors[0], OperationalError)
    assert errors[1] is errors[0]
    assert cache.stats().loads == 1
    assert not await gated.exists("broken:1")


@pytest.mark.parametrize("kind", [single, many])
@pytest.mark.parametrize(
    ("made", "error"), [(failed_flush, PendingRollbackError), (closed_for_good, InvalidRequestError)]
)
async def test_failed_load_of_a_broken_session_spares_other_callers(
    sqlite: Database, gated: GatedClient, kind: Any, made: Any, error: type[Exception]
) -> None:
    """The owner gets the error of its session; a caller that waited for its load gets an answer."""
    await sqlite.create(Base)
    async with sqlite.sessions() as session:
        session.add(Row(id=1, name="a"))
        await session.commit()
    gates, cache = Gates(), Cache(gated)
    call, broken, gate = kind(cache, gates), await made(sqlite), gates.before("load")
    first = asyncio.create_task(call(broken))
    await gate.reached()
    async with sqlite.sessions() as healthy:
        asked = gated.after("acquire")
        second = asyncio.create_task(call(healthy))
        await asked.reached()
        asked.open()
        await turns()
        gate.open()
        with pytest.raises(error):
            await first
        assert await second == "a"
    await broken.close()


@pytest.mark.parametrize("error", [NoResultFound("none"), MultipleResultsFound("two"), ValueError("x")])
def test_failed_load_by_the_database_is_shared(error: Exception) -> None:
    """A waiting caller would get the same error."""
    assert not session_s_own(error)
