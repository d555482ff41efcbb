"""Ends intents after a transaction: shielded from cancellation, and without an error.

The database has committed by then, and an error would say that it has not.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from sqlalchemy import Connection
from sqlalchemy.orm import Session
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from fastrdb.protocol import Intent

from .rules import partly_committed
from .scope import used_here
from .state import STATE, Phase, SessionState, Targets, Transaction, changed, connections_of, transaction_of

_log = logging.getLogger("fastrdb")
_ending: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


async def drain() -> None:
    """Wait until the intents that end in the background of this event loop have ended."""
    loop = asyncio.get_running_loop()
    while mine := [task for task in list(_ending) if task.get_loop() is loop]:
        await asyncio.wait(mine)


def awaitable(intents: list[Intent]) -> list[Intent]:
    """Return those that this code can wait for: in a greenlet of the same event loop.

    A synchronous session cannot, be it in a thread or not. What its commit invalidates is done after the commit.
    """
    loop = _running_loop() if in_greenlet() else None
    return [intent for intent in intents if intent.loop is loop]


def abandon(intents: list[Intent]) -> None:
    """End intents of which the outcome will never be known."""
    for intent in _of_this_loop(intents, abandon):
        intent.abandon()


def undo(connection: Connection, transaction: Transaction, rollback: Callable[[], None] | None = None) -> None:
    """Roll back what is not committed because its listener failed, or its COMMIT.

    SQLAlchemy takes it for committed or refused by then. It would give the connection back to its pool with the
    transaction open, for the next COMMIT to publish.
    """
    transaction.phase = Phase.UNDONE
    for intent in transaction.all_intents():  # a session's may go on with what another connection has committed
        intent.distrust()
    try:
        rollback() if rollback is not None else connection.dialect.do_rollback(connection.connection)
    except BaseException:
        connection.invalidate()
        raise
    finally:
        finish(transaction.take_intents(), committed=transaction.published)


def meet(targets: Targets, given: Session) -> None:
    """Put the targets of a call on the open transaction of the connection that it is given, as a session on that."""
    if not partly_committed(given):
        for connection in connections_of(given):
            if (transaction := transaction_of(connection)) is not None:
                targets.meet(transaction)


def count_as_written(session: Session) -> None:
    """Count the open transaction as written: what a call writes through the driver is not seen."""
    state: SessionState | None = session.info.get(STATE)
    if state is not None:
        state.declared = True
    for connection in connections_of(session):
        if (transaction := transaction_of(connection)) is not None:
            transaction.wrote = True


def leave(targets: Targets) -> asyncio.Task[None] | None:
    """End what a call, which is over, has committed statement by statement, without a session.

    Its prefixes and keys go on the sessions that have changes by then; on more than its own at worst. The call may have
    changed an object, without a statement, of a session that only other tasks have used.
    """
    for session in {*targets.seen, *used_here(in_loop=True)}:
        if session.in_transaction() and changed(session):
            targets.join(session)
    over = [intent for found, intent in targets.intents.items() if found.autocommit and found.phase is Phase.OPEN]
    for found in targets.intents:
        found.intents = [intent for intent in found.intents if intent not in over]
    return finish(over, committed=True) if over else None


def finish(intents: list[Intent], *, committed: bool) -> asyncio.Task[None] | None:
    """End these, and wait for that where this code can wait. Return the task that ends those of this event loop."""
    mine = _of_this_loop(intents, partial(finish, committed=committed)) if intents else []
    if not mine:
        return None
    task = asyncio.get_running_loop().create_task(_end(mine, committed=committed))
    _ending.add(task)
    task.add_done_callback(partial(_ended, mine))
    if in_greenlet():
        await_only(asyncio.shield(task))
    return task


def _of_this_loop(intents: list[Intent], do: Callable[[list[Intent]], object]) -> list[Intent]:
    """Return those of the running loop. Have the other loops `do` it for theirs.

    A session may be used in a thread, or be closed there by the garbage collector.
    """
    here, mine = _running_loop(), list[Intent]()
    for intent in intents:
        if intent.loop is here:
            mine.append(intent)
            continue
        try:
            intent.loop.call_soon_threadsafe(do, [intent])
        except RuntimeError:  # it is closed
            intent.abandon()
    return mine


def _running_loop() -> asyncio.AbstractEventLoop | None:
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _ended(intents: list[Intent], task: asyncio.Task[None]) -> None:
    """Hand what a cancelled task has left to the repairs, which the end of an event loop waits for."""
    _ending.discard(task)
    if task.cancelled():
        for intent in intents:
            intent.abandon()


async def _end(intents: list[Intent], *, committed: bool) -> None:
    for intent in intents:
        try:
            if committed and intent.pending:  # no COMMIT of a connection came before
                await intent.begin()
            await intent.end(committed)
        except Exception:  # noqa: BLE001  # the database has committed: an error would deny it
            _log.exception(
                "fastrdb could not finish an invalidation after a COMMIT: its keys are not cached until its barrier "
                "has lapsed, and are then invalidated once more"
            )
            intent.abandon()
