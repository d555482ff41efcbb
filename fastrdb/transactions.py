"""Follows the transactions of SQLAlchemy, and binds work to their commits.

SQLAlchemy tells of a transaction in pieces: the engine that a connection begins or commits, the session that its
root has ended. Here they are put together: which connections a session's open transaction uses, since when, whether
it wrote, and which `Work` must be begun before COMMIT and ended when its outcome is known. What follows from that for
reading and filling is decided in `session`; what the work does is the store's.

The listeners sit on the classes, because a session must be known to have written before fastrdb first meets it.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Coroutine
from typing import Any
from weakref import ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from .works import State, Transaction, Work, new_transaction, scopes, state_of, take_state, transaction_of

_log = logging.getLogger("fastrdb")
_ending: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


def autocommits(connection: Connection) -> bool:
    """True if each statement commits by itself. SQLAlchemy has no public word for what the engine was set to."""
    if connection._is_autocommit_isolation():
        return True
    driver = sqlite_driver(connection)
    return driver is not None and driver.isolation_level is None and not driver.in_transaction


def sqlite_driver(connection: Connection) -> Any:
    """The driver's connection to SQLite, which knows whether there is a transaction; None for other databases."""
    return connection.connection.driver_connection if connection.dialect.name == "sqlite" else None


async def settled() -> None:
    """Wait until the work that ends in the background of this event loop has ended."""
    loop = asyncio.get_running_loop()
    while mine := [task for task in _ending if task.get_loop() is loop]:
        await asyncio.wait(mine)


# --- what a statement is

_READS = ("SELECT", "SAVEPOINT", "RELEASE", "ROLLBACK TO", "VALUES", "SHOW")
_CHANGES = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|REPLACE|INTO)\b", re.IGNORECASE)


def writes(statement: str, context: Any) -> bool:
    """True unless the statement surely changes nothing: text that begins with anything but SELECT counts as a write."""
    if context is not None and (context.isinsert or context.isupdate or context.isdelete):
        return True
    words = statement.lstrip(" \t\r\n(")[:16].upper()
    if words.startswith(("WITH", "EXPLAIN")):
        return _CHANGES.search(statement) is not None
    return not words.startswith(_READS)


# --- engines and connections


@event.listens_for(Engine, "begin")
def _on_begin(connection: Connection) -> None:
    new_transaction(connection)


@event.listens_for(Engine, "rollback")
def _on_rollback(connection: Connection) -> None:
    transaction = transaction_of(connection)
    if transaction is None:
        return
    transaction.unsettled = transaction.wrote = False
    if transaction.inherited:
        inherited, transaction.inherited = transaction.inherited, []
        _finish(_end(inherited, committed=False), inherited)


@event.listens_for(Engine, "commit")
def _on_commit(connection: Connection) -> None:
    """The last point before the DBAPI's COMMIT and after the flush; an error or a cancellation here aborts it."""
    transaction = transaction_of(connection)
    if transaction is None:
        return
    try:
        _begin_works(transaction)
    except BaseException:
        _undo(connection)
        raise
    for session in transaction.sessions:
        state = state_of(session)
        state.attempts += 1
        state.wrote = state.wrote or transaction.wrote
    _carry(transaction)
    # What they are of has ended, and nobody will be told of this COMMIT's outcome: their barriers lapse.
    for work in transaction.inherited:
        work.abandon()
    transaction.inherited = []
    transaction.unsettled = transaction.wrote = False


@event.listens_for(Engine, "commit_twophase")
def _on_commit_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
    _on_commit(connection)


@event.listens_for(Engine, "rollback_twophase")
def _on_rollback_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
    _on_rollback(connection)


@event.listens_for(Engine, "before_cursor_execute")
def _on_statement(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> None:
    transaction = transaction_of(connection)
    if transaction is None or not writes(statement, context):
        return
    transaction.wrote = True
    if not transaction.users and not scopes():
        return
    for session in transaction.sessions:
        _distrust(state_of(session))  # what was put before this may be what it changes
    for scope in scopes():
        scope.meet(transaction)
    if autocommits(connection):
        _on_autocommit(transaction)


def _on_autocommit(transaction: Transaction) -> None:
    """What is about to be written commits by itself."""
    for session in transaction.sessions:
        state_of(session).autocommitted = True
    _begin_works(transaction)
    _carry(transaction)
    transaction.unsettled = False


@event.listens_for(Engine, "savepoint")
def _on_savepoint(connection: Connection, name: str) -> None:
    transaction = transaction_of(connection)
    driver = sqlite_driver(connection)
    if transaction is not None and (transaction.savepoints or (driver is not None and not driver.in_transaction)):
        transaction.savepoints += 1


@event.listens_for(Engine, "release_savepoint")
def _on_release_savepoint(connection: Connection, name: str, context: None) -> None:
    transaction = transaction_of(connection)
    if transaction is not None and transaction.savepoints:
        transaction.savepoints -= 1
        if not transaction.savepoints and transaction.wrote:
            _on_autocommit(transaction)


@event.listens_for(Engine, "handle_error")
def _on_error(context: ExceptionContext) -> None:
    """An error that the database itself gave as its answer to COMMIT: it has rolled back, and that is known."""
    transaction = transaction_of(context.connection) if context.connection is not None else None
    if transaction is None or context.sqlalchemy_exception is None or context.is_disconnect:
        return
    for session in transaction.sessions:
        state = state_of(session)
        state.refused = state.attempts == 1 and len(state.connections) == 1
        _distrust(state)  # PostgreSQL answers the COMMIT of a failed transaction with a ROLLBACK, and no error


@event.listens_for(Engine, "rollback_savepoint")
def _on_rollback_savepoint(connection: Connection, name: str, context: None) -> None:
    transaction = transaction_of(connection)
    if transaction is None:
        return
    transaction.savepoints = max(0, transaction.savepoints - 1)
    for session in transaction.sessions:
        _distrust(state_of(session))


def _distrust(state: State) -> None:
    for work in state.works.values():
        work.distrust()


def _begin_works(transaction: Transaction) -> None:
    sessions = transaction.sessions
    works = [*transaction.inherited, *(work for session in sessions for work in state_of(session).works.values())]
    if not sessions:
        works += [scope.direct_work() for scope in scopes()]
    if works and in_greenlet():  # a synchronous engine cannot wait for Redis; it is told when it has committed
        for work in works:
            await_only(work.begin())


def _carry(transaction: Transaction) -> None:
    """The calls around a COMMIT of a connection without a session: what was written is covered."""
    if transaction.wrote and not transaction.sessions and in_greenlet():
        for scope in scopes():
            scope.carried = True


def _undo(connection: Connection) -> None:
    """Roll back what is not committed because its listener failed. SQLAlchemy takes it for committed or refused by
    then, and would give the connection back to its pool with the transaction open, for the next COMMIT to publish."""
    try:
        connection.dialect.do_rollback(connection.connection)
    except BaseException:
        connection.invalidate()
        raise


# --- sessions


@event.listens_for(Session, "after_begin")
def _on_session_begin(session: Session, root: SessionTransaction, connection: Connection) -> None:
    state = state_of(session)
    if connection not in state.connections:
        state.connections.append(connection)
    transaction = transaction_of(connection)
    if transaction is not None and session not in transaction.sessions:
        transaction.users.append(ref(session))
    for scope in scopes():
        scope.join(session)


@event.listens_for(Session, "after_commit")
def _on_session_commit(session: Session) -> None:
    # Also fires when a savepoint is released. Only a flag: an error here would leave the session stuck.
    if not session.in_nested_transaction():
        state_of(session).committed = True


@event.listens_for(Session, "after_transaction_end")
def _on_session_end(session: Session, transaction: SessionTransaction) -> None:
    state = take_state(session) if transaction.parent is None else None
    if state is None:
        return
    used = [(c, found) for c in state.connections if (found := transaction_of(c)) is not None]
    for _, found in used:
        found.leave(session)
    works = list(state.works.values())
    if not works:
        return
    outer = [found for c, found in used if c.in_transaction()]
    if outer:  # joined to a transaction that is still open: nothing is committed yet, whatever the session says
        outer[0].inherited += works
    elif state.committed or state.autocommitted:
        _finish(_end(works, committed=True), works)
    elif state.attempts and not state.refused:
        _log.warning("the outcome of a COMMIT is unknown: its barrier is left to lapse")
        for work in works:
            work.abandon()
        return
    else:
        _finish(_end(works, committed=False), works)
        return
    if outer or state.wrote or state.autocommitted:
        for scope in state.scopes:
            scope.carried = True


async def _end(works: list[Work], *, committed: bool) -> None:
    for work in works:
        try:
            if committed and work.pending:  # no COMMIT of a connection came before
                await work.begin()
            await work.end(committed)
        except Exception:  # noqa: BLE001  # the database has committed: nobody may be told otherwise
            _log.exception("the cache could not be told of a commit: its barrier is left to lapse")
            work.abandon()


def _finish(ending: Coroutine[Any, Any, None], works: list[Work]) -> None:
    """Run `ending` to its end whatever becomes of the caller, and wait for it where one can wait."""
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:  # a session that is closed outside of any loop, by the garbage collector say
        ending.close()
        for work in works:
            work.abandon()
        return
    task = loop.create_task(ending)
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    if in_greenlet():
        await_only(asyncio.shield(task))
