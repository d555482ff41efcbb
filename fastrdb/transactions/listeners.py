"""Follows the transactions of SQLAlchemy, and binds work to their commits.

SQLAlchemy tells of a transaction in pieces: the engine that a connection begins or commits, the session that its
root has ended. Here they are put together: which connections a session's open transaction uses, since when, whether
it wrote, and which `Work` must be begun before COMMIT and ended when its outcome is known. What follows from that for
reading and filling is decided in `session`; what the work does is the store's.

The listeners sit on the classes, because a session must be known to have written before fastrdb first meets it.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction
from sqlalchemy.util import await_only

from .commits import watch
from .drivers import autocommits, level_is_set, sqlite_driver, stream_begins
from .finish import abandon, can_wait, end_own, finish, undo
from .finish import settled as settled
from .scope import fresh_reads, rollback_begins, statement_begins, targets_around
from .sql import Does, effect, sets_isolation
from .state import Phase, Transaction, Work, new_transaction, state_of, take_state, transaction_of
from .uses import changed, use

_log = logging.getLogger("fastrdb")


# --- engines and connections


@event.listens_for(Engine, "begin")
def _on_begin(connection: Connection) -> None:
    new_transaction(connection)


@event.listens_for(Engine, "begin_twophase")
def _on_begin_twophase(connection: Connection, xid: Any) -> None:
    new_transaction(connection, twophase=True)


@event.listens_for(Engine, "rollback")
def _on_rollback(connection: Connection) -> None:
    transaction = transaction_of(connection)
    if transaction is None:
        return
    rollback_begins(connection, transaction)
    _undone(transaction)  # others may go on in it, where a pool gives the same connection to all
    transaction.wrote = transaction.called = False
    if transaction.phase in (Phase.OPEN, Phase.PREPARED):
        transaction.phase = Phase.UNDONE
        end_own(transaction, committed=transaction.published)


@event.listens_for(Engine, "rollback_twophase")
def _on_rollback_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
    _on_rollback(connection)


@event.listens_for(Engine, "commit")
def _on_commit(connection: Connection) -> None:
    """The last point before the DBAPI's COMMIT and after the flush; an error or a cancellation here aborts it."""
    transaction = transaction_of(connection)
    if transaction is None:
        return
    try:
        _begin_works(transaction)
    except BaseException:
        undo(connection, transaction)
        raise
    _send(connection, transaction)


@event.listens_for(Engine, "prepare_twophase")
def _on_prepare_twophase(connection: Connection, xid: Any) -> None:
    """What fails here is rolled back; after PREPARE it could only be left, and hold its locks."""
    transaction = transaction_of(connection)
    if transaction is not None:
        _begin_works(transaction)
        transaction.phase = Phase.PREPARED


@event.listens_for(Engine, "commit_twophase")
def _on_commit_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
    transaction = transaction_of(connection)
    if transaction is None:
        return
    try:
        _begin_works(transaction)  # again, for the barriers may be about to lapse
    except BaseException as error:
        if not is_prepared or not isinstance(error, Exception):
            undo(connection, transaction, lambda: connection.dialect.do_rollback_twophase(connection, xid, is_prepared))
            raise
        _log.exception("the cache could not be told again of a commit that is prepared")
    _send(connection, transaction)


@event.listens_for(Engine, "before_cursor_execute")
def _on_statement(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> None:
    transaction = transaction_of(connection)
    if transaction is None or transaction.phase in (Phase.PREPARED, Phase.SENT):  # then it is a part of that COMMIT
        return
    statement_begins(connection, transaction)
    if connection.dialect.name == "sqlite" and context is not None and context.execution_options.get("stream_results"):
        stream_begins(connection, context)
    does = _effect(connection, statement, context)
    if Does.CALLS in does:
        transaction.called = True
    if Does.UNDOES in does:
        _undone(transaction)
    elif Does.WRITES in does:
        _distrust(transaction)  # what was put before this may be what it changes
    if Does.WRITES in does:
        _on_write(connection, transaction, statement, does)


def _effect(connection: Connection, statement: str, context: Any) -> Does:
    if context is not None and (context.isinsert or context.isupdate or context.isdelete):
        return Does.WRITES
    does = effect(statement, connection.dialect.name)
    return (
        does | Does.WRITES if Does.CALLS in does and targets_around() else does
    )  # it is what that call has said it does


def _on_write(connection: Connection, transaction: Transaction, statement: str, does: Does) -> None:
    transaction.wrote = True
    if transaction.phase is not Phase.LOST:
        transaction.phase = Phase.OPEN  # again, where a pool gives the same connection to all, and another has ended it
    transaction.loose = transaction.loose or Does.LEAVES in does
    if sets_isolation(statement):
        level_is_set(connection)
    for targets in targets_around():
        targets.meet(transaction)
    if transaction.users or transaction.works:
        transaction.autocommit = transaction.autocommit or autocommits(connection)
        if transaction.autocommit or transaction.loose or Does.COMMITS in does:
            _publish(transaction)


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
            _publish(transaction)


@event.listens_for(Engine, "rollback_savepoint")
def _on_rollback_savepoint(connection: Connection, name: str, context: None) -> None:
    transaction = transaction_of(connection)
    if transaction is not None:
        transaction.savepoints = max(0, transaction.savepoints - 1)
        _undone(transaction)


@event.listens_for(Engine, "handle_error")
def _on_error(context: ExceptionContext) -> None:
    connection = context.connection
    transaction = transaction_of(connection) if connection is not None else None
    if connection is None or transaction is None:
        return
    _distrust(transaction)  # PostgreSQL answers the COMMIT of a failed transaction with a ROLLBACK, and no error
    answered = context.sqlalchemy_exception is not None and not context.is_disconnect
    if transaction.phase is Phase.SENT and answered and not transaction.twophase:
        transaction.phase = Phase.UNDONE
        driver = sqlite_driver(connection)
        if driver is not None and driver.in_transaction:  # a COMMIT that found the database locked can be sent again
            undo(connection, transaction)
        end_own(transaction, committed=transaction.published)
    elif transaction.phase is Phase.SENT or (transaction.published and not answered):
        transaction.phase = Phase.LOST
        abandon(transaction.take_works())


def _undone(transaction: Transaction) -> None:
    _distrust(transaction)
    if transaction.wrote or transaction.called:
        transaction.undo()


def _distrust(transaction: Transaction) -> None:
    for work in _works(transaction):
        work.distrust()


def _works(transaction: Transaction) -> list[Work]:
    return [
        *transaction.works,
        *(work for session in transaction.sessions for work in state_of(session).works.values()),
    ]


def _begin_works(transaction: Transaction) -> None:
    if not transaction.sessions:
        for targets in targets_around():
            targets.meet(transaction)
    for work in _works(transaction):
        if can_wait(work):
            await_only(work.begin())


def _send(connection: Connection, transaction: Transaction) -> None:
    watch(connection, transaction, _on_committed)
    transaction.phase = Phase.SENT
    _attempt(transaction)


def _publish(transaction: Transaction) -> None:
    """What is about to be sent commits by itself."""
    _begin_works(transaction)
    transaction.published = True
    _attempt(transaction)


def _attempt(transaction: Transaction) -> None:
    for session in transaction.sessions:
        state_of(session).attempt(transaction)
    if transaction.wrote and not transaction.sessions:
        for targets in targets_around():  # the calls around a connection without a session: what was written is covered
            work = targets.works.get(transaction)
            targets.carried = targets.carried or (work is not None and can_wait(work))


def _on_committed(transaction: Transaction) -> None:
    transaction.phase = Phase.COMMITTED
    transaction.published = True
    transaction.wrote = transaction.called = False
    end_own(transaction, committed=True)


# --- sessions


@event.listens_for(Session, "after_transaction_create")
def _on_session_transaction(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:  # also begun by the change of an attribute
        _use(session)


@event.listens_for(Session, "do_orm_execute")
def _on_orm_execute(state: ORMExecuteState) -> None:
    _use(state.session)
    if not state.is_select or state.is_column_load or changed(state.session):  # never over unflushed changes
        return
    if fresh_reads():
        state.update_execution_options(populate_existing=True)


def _use(session: Session) -> None:
    use(session)
    for targets in targets_around():  # tasks that the call has started know it, too
        targets.seen.add(session)


@event.listens_for(Session, "after_begin")
def _on_session_begin(session: Session, root: SessionTransaction, connection: Connection) -> None:
    state = state_of(session)
    if connection not in state.connections:
        state.connections.append(connection)
    transaction = transaction_of(connection)
    if transaction is not None and session not in transaction.sessions:
        transaction.users.append(ref(session))
    for targets in targets_around():
        targets.join(session)


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
    for (
        found
    ) in outer:  # joined to a transaction that is still open: nothing is committed yet, whatever the session says
        found.works += works
    ended = outer or _end_session(works, state.outcome())
    if ended and all(map(can_wait, works)):
        for targets in state.targets:
            targets.carried = targets.carried or bool(outer) or state.wrote


def _end_session(works: list[Work], committed: bool | None) -> bool:
    """The session's transaction has ended for good; gives whether it is known to have committed."""
    if committed is not None:
        finish(works, committed=committed)
        return committed
    _log.warning("the outcome of a COMMIT is unknown: its barrier is left to lapse")
    abandon(works)
    return False
