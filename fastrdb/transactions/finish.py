"""The end of works: done to the last, whatever becomes of the caller, and never failing what the database has done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from .state import Phase, Targets, Transaction, Work
from .uses import changed, used_here

_log = logging.getLogger("fastrdb")
_ending: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


async def settled() -> None:
    """Wait until the work that ends in the background of this event loop has ended."""
    loop = asyncio.get_running_loop()
    while mine := [task for task in list(_ending) if task.get_loop() is loop]:
        await asyncio.wait(mine)


def can_wait(work: Work) -> bool:
    """True if this code can wait for it: in a greenlet of the event loop that it belongs to.

    A synchronous session cannot, be it in a thread or not. What its commit invalidates is done after it.
    """
    return in_greenlet() and work.loop is _here()


def abandon(works: list[Work]) -> None:
    """Nobody will ever know how these ended."""
    for work in _of_this_loop(works, abandon):
        work.abandon()


def end_own(transaction: Transaction, *, committed: bool) -> None:
    """End what no session ends."""
    if works := transaction.take_works():
        finish(works, committed=committed)


def undo(connection: Connection, transaction: Transaction, rollback: Callable[[], None] | None = None) -> None:
    """Roll back what is not committed because its listener failed, or its COMMIT. SQLAlchemy takes it for committed or
    refused by then, and would give the connection back to its pool with the transaction open, for the next COMMIT to
    publish."""
    transaction.phase = Phase.UNDONE
    try:
        rollback() if rollback is not None else connection.dialect.do_rollback(connection.connection)
    except BaseException:
        connection.invalidate()
        raise
    finally:
        end_own(transaction, committed=transaction.published)


def leave(targets: Targets) -> asyncio.Task[None] | None:
    """A call is over, and so is the work for what it committed statement by statement, without a session.

    Its prefixes and keys go on the sessions that have changes by then; on more than its own at worst.
    """
    for session in {*targets.seen, *used_here()}:
        if session.in_transaction() and changed(session):
            targets.join(session)
    over = [work for found, work in targets.works.items() if found.autocommit and found.phase is Phase.OPEN]
    for found in targets.works:
        found.works = [work for work in found.works if work not in over]
    return finish(over, committed=True) if over else None


def finish(works: list[Work], *, committed: bool) -> asyncio.Task[None] | None:
    """End these, and wait for it where one can wait."""
    mine = _of_this_loop(works, partial(finish, committed=committed))
    if not mine:
        return None
    task = asyncio.get_running_loop().create_task(_end(mine, committed=committed))
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    if in_greenlet():
        await_only(asyncio.shield(task))
    return task


def _of_this_loop(works: list[Work], do: Callable[[list[Work]], object]) -> list[Work]:
    """Give those that belong to the running loop; the others are handed to theirs, to `do` it there.

    A session may be used in a thread, or be closed there by the garbage collector.
    """
    for work in works:
        if work.loop is not _here():
            try:
                work.loop.call_soon_threadsafe(do, [work])
            except RuntimeError:  # it is closed
                work.abandon()
    return [work for work in works if work.loop is _here()]


def _here() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


async def _end(works: list[Work], *, committed: bool) -> None:
    for work in works:
        try:
            if committed and work.pending:  # no COMMIT of a connection came before
                await work.begin()
            await work.end(committed)
        except Exception:  # noqa: BLE001  # the database has committed: nobody may be told otherwise
            _log.exception("the cache could not be told of a commit: its barrier is left to lapse")
            work.abandon()
