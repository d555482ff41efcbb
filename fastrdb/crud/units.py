"""Who commits: the transaction around one write."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

from sqlalchemy.exc import MultipleResultsFound, NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import SessionTransactionOrigin


def session_of(db: AsyncSession | async_scoped_session[AsyncSession]) -> AsyncSession:
    """The session itself."""
    return db() if isinstance(db, async_scoped_session) else db


def opened_by_caller(db: AsyncSession) -> bool:
    """True inside the caller's `begin()` or savepoint: then the commit is the caller's, too."""
    root = db.sync_session.get_transaction()
    return root is not None and (root.origin is SessionTransactionOrigin.BEGIN or db.in_nested_transaction())


@dataclass(frozen=True, slots=True)
class Unit:
    """A transaction: whether it `began` with the method, and whether the method `commits` it."""

    began: bool
    commits: bool


@asynccontextmanager
async def unit_of_work(db: AsyncSession) -> AsyncIterator[Unit]:
    """Commit at the end, unless the caller has opened the transaction: then flush only.

    After an error nothing of what was done inside can be committed any more, and the session stays usable: rolled back
    here, or by the caller whose transaction it is. Not finding the row to write changes nothing, so it takes back
    nothing that the caller has done before in a transaction that began by itself.
    """
    began = not db.in_transaction()
    commits = not opened_by_caller(db)
    try:
        await begin(db)
        yield Unit(began, commits)
        await (db.commit() if commits else db.flush())
    except (NoResultFound, MultipleResultsFound):
        if began:
            await roll_back(db)
        raise
    except BaseException:
        if commits:
            await roll_back(db)
        raise


async def begin(db: AsyncSession) -> None:
    """Have a transaction, also in a session that does not begin one by itself."""
    if not db.in_transaction() and not db.sync_session.autobegin:
        await db.begin()


async def roll_back(db: AsyncSession) -> None:
    """Roll back to the end, even if the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(_rolled_back(db))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _rolled_back(db: AsyncSession) -> None:
    try:
        await db.rollback()
    except Exception:  # noqa: BLE001  # the connection is gone, and the transaction with it: the first error counts
        await db.invalidate()
