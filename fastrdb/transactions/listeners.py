"""Follows the transactions of SQLAlchemy, and begins and ends the intents that are bound to their commits.

SQLAlchemy reports a transaction in pieces: the engine that a connection begins or commits, the session that its root
has ended. This module puts the pieces together: which connections a session's open transaction uses, since when,
whether it wrote, and which intents begin before COMMIT and end when its outcome is known. `rules` decides what follows
for reading and filling.

The listeners sit on the classes, because a session must be known to have written before fastrdb first meets it.
"""

from __future__ import annotations

import logging
from typing import Any
from weakref import WeakSet, ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import Dialect, ExceptionContext
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction
from sqlalchemy.util import await_only

from fastrdb.inference import is_asking, transaction_begins, transaction_commits
from fastrdb.protocol import Intent

from .finish import abandon, awaitable, finish, undo
from .follow import attach, follow, followers, log_lost, lost
from .rules import (
    EVENT_SCHEMAS,
    GIVEN_MAP,
    autocommits,
    has_other_schemas,
    level_is_set,
    note_schemas,
    sqlite_driver,
    stream_begins,
)
from .scope import fresh_reads, no_store, rollback_begins, running, session_used, statement_begins, targets_around
from .sql import Effect, effect, releases, sets_isolation
from .state import Phase, Transaction, changed, new_transaction, state_of, take_state, transaction_of, write_unclaimed

_SENT = "fastrdb.sent"  # in `Connection.info`, which belongs to the driver's connection: the transaction of a COMMIT
_watched: WeakSet[Dialect] = WeakSet()
_log = logging.getLogger("fastrdb")


# --- engines and connections


@event.listens_for(Engine, "begin")
def _on_begin(connection: Connection) -> None:
    new_transaction(connection)
    if followers:
        transaction_begins(connection)


@event.listens_for(Engine, "begin_twophase")
def _on_begin_twophase(connection: Connection, xid: Any) -> None:
    new_transaction(connection, twophase=True)
    if followers:
        transaction_begins(connection)


@event.listens_for(Engine, "rollback")
def _on_rollback(connection: Connection) -> None:
    transaction = transaction_of(connection)
    if transaction is None:
        return
    rollback_begins(connection, transaction)
    _undone(transaction)  # others may go on in it, where a pool gives the same connection to all
    transaction.wrote = transaction.called = False
    transaction.written = None
    if transaction.phase in (Phase.OPEN, Phase.PREPARED):
        transaction.phase = Phase.UNDONE
        finish(transaction.take_intents(), committed=transaction.published)


@event.listens_for(Engine, "rollback_twophase")
def _on_rollback_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
    _on_rollback(connection)


@event.listens_for(Engine, "commit")
def _on_commit(connection: Connection) -> None:
    """Begin the intents, after the flush and at the last point before the DBAPI's COMMIT.

    An error or a cancellation here aborts the commit.
    """
    transaction = transaction_of(connection)
    if transaction is None:
        return
    try:
        _begin_intents(connection, transaction)
    except BaseException:
        undo(connection, transaction)
        raise
    _send(connection, transaction)


@event.listens_for(Engine, "prepare_twophase")
def _on_prepare_twophase(connection: Connection, xid: Any) -> None:
    """Begin the intents. An error here rolls back; after PREPARE the transaction could only be left with its locks."""
    transaction = transaction_of(connection)
    if transaction is not None:
        _begin_intents(connection, transaction)
        transaction.phase = Phase.PREPARED


@event.listens_for(Engine, "commit_twophase")
def _on_commit_twophase(connection: Connection, xid: Any, is_prepared: bool) -> None:
    transaction = transaction_of(connection)
    if transaction is None:
        return
    try:
        _begin_intents(connection, transaction)  # again, for the barriers may be about to lapse
    except BaseException as error:
        if not is_prepared or not isinstance(error, Exception):
            undo(connection, transaction, lambda: connection.dialect.do_rollback_twophase(connection, xid, is_prepared))
            raise
        _log.exception(
            "fastrdb could not renew its barriers before COMMIT PREPARED: if these lapse too early, an old "
            "value may be stored"
        )
    _send(connection, transaction)


@event.listens_for(Engine, "before_cursor_execute")
def _on_statement(
    connection: Connection, cursor: Any, statement: str, parameters: Any, context: Any, executemany: bool
) -> None:
    transaction = transaction_of(connection)
    if transaction is None or transaction.ending or (followers and is_asking(connection)):
        return
    calls = statement_begins(connection, transaction)
    options = {} if context is None else context.execution_options
    if GIVEN_MAP in options and has_other_schemas(connection, options):
        no_store(EVENT_SCHEMAS)
    if connection.dialect.name == "sqlite" and options.get("stream_results"):
        stream_begins(connection, context)
    if followers:
        follow(connection, transaction, statement, context, calls)
    if context is not None and (context.isinsert or context.isupdate or context.isdelete):
        _on_write(connection, transaction)
        return
    does = _effect(connection, statement, context)
    if does is Effect.CALLS:
        transaction.called = True
    if does is Effect.CONTROLS:
        transaction.loose = True
        _undone(transaction)
    # A call that invalidates declares what the functions of the database do that it calls.
    if does >= Effect.WRITES or (
        does is Effect.CALLS and (targets_around() or _calls_and_commits(connection, transaction))
    ):
        if sets_isolation(statement):
            level_is_set(connection)
        _on_write(connection, transaction)


def _effect(connection: Connection, statement: str, context: Any) -> Effect:
    name, is_text = connection.dialect.name, context is None or context.compiled is None or context.is_text
    return Effect.CONTROLS if is_text and releases(statement, name) else effect(statement, name)


def _calls_and_commits(connection: Connection, transaction: Transaction) -> bool:
    """Return True for functions that may write what caches follow, in a statement that commits by itself."""
    written = transaction.written
    pending = written is not None and (written.changes or written.doubtful)
    return bool(pending) and (transaction.loose or autocommits(connection))


def _on_write(connection: Connection, transaction: Transaction) -> None:
    transaction.wrote = True
    if lost and not followers:
        log_lost()
    _drop_values(transaction)  # what was put before this may be what it changes
    if transaction.phase is not Phase.OUTCOME_UNKNOWN:
        transaction.phase = Phase.OPEN  # again, where a pool gives the same connection to all, and another has ended it
    for targets in targets_around():
        targets.meet(transaction)
    if running.get() is None:
        write_unclaimed()
    if transaction.users or transaction.intents or transaction.written:
        transaction.autocommit = transaction.autocommit or autocommits(connection)
        if transaction.autocommit or transaction.loose:
            _publish(connection, transaction)


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
            _publish(connection, transaction)


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
    _drop_values(transaction)  # PostgreSQL answers the COMMIT of a failed transaction with a ROLLBACK, and no error
    answered = context.sqlalchemy_exception is not None and not context.is_disconnect
    if transaction.phase is Phase.SENT and answered and not transaction.twophase:
        transaction.phase = Phase.UNDONE
        driver = sqlite_driver(connection)
        if driver is not None and driver.in_transaction:  # a COMMIT that found the database locked can be sent again
            undo(connection, transaction)
        finish(transaction.take_intents(), committed=transaction.published)
    elif transaction.phase is Phase.SENT or (transaction.published and not answered):
        transaction.phase = Phase.OUTCOME_UNKNOWN
        abandon(transaction.take_intents())


def _undone(transaction: Transaction) -> None:
    """Note that a part of it is rolled back: nothing that was put before may be stored."""
    _drop_values(transaction)
    if transaction.wrote or transaction.called:
        transaction.undo()


def _drop_values(transaction: Transaction) -> None:
    for intent in transaction.all_intents():
        intent.distrust()


def _begin_intents(connection: Connection, transaction: Transaction) -> None:
    """Invalidate before something that commits is sent."""
    if not transaction.sessions:
        for targets in targets_around():
            targets.meet(transaction)
    transaction.widen()
    if transaction.written is not None:
        attach(connection, transaction)
    for intent in awaitable(transaction.all_intents()):
        await_only(intent.begin())


def _send(connection: Connection, transaction: Transaction) -> None:
    _watch(connection, transaction)
    transaction.phase = Phase.SENT
    _note_sent(transaction)


def _publish(connection: Connection, transaction: Transaction) -> None:
    """Prepare for a statement that commits by itself."""
    _begin_intents(connection, transaction)
    transaction.published = True
    _note_sent(transaction)


def _note_sent(transaction: Transaction) -> None:
    sessions = transaction.sessions
    for session in sessions:
        state = state_of(session)
        state.wrote = state.wrote or transaction.wrote
        if transaction not in state.sent:
            state.sent.append(transaction)
    if transaction.wrote and not sessions:
        for targets in targets_around():  # the calls around a connection without a session: what was written is covered
            intent = targets.intents.get(transaction)
            targets.carried = targets.carried or (intent is not None and bool(awaitable([intent])))


# --- the return of COMMIT, of which SQLAlchemy has no event
#
# Its `commit` event comes before, and its session's `after_commit` names no connection. So the dialect's own
# method is wrapped: each COMMIT of an engine passes through it.


def _watch(connection: Connection, transaction: Transaction) -> None:
    """Call `_on_committed` when the COMMIT that is about to be sent has returned."""
    connection.info[_SENT] = transaction
    dialect = connection.dialect
    if dialect in _watched:
        return
    _watched.add(dialect)
    do_commit, do_commit_twophase = dialect.do_commit, dialect.do_commit_twophase

    def commit(dbapi_connection: Any) -> None:
        do_commit(dbapi_connection)
        _on_committed(getattr(dbapi_connection, "info", {}))

    def commit_twophase(connection: Connection, xid: Any, is_prepared: bool = True, recover: bool = False) -> None:
        do_commit_twophase(connection, xid, is_prepared, recover)
        _on_committed(connection.info)

    dialect.do_commit = commit  # type: ignore[method-assign]
    dialect.do_commit_twophase = commit_twophase  # type: ignore[method-assign]


def _on_committed(info: dict[Any, Any]) -> None:
    if followers:
        transaction_commits(info)
    transaction: Transaction | None = info.pop(_SENT, None)
    if transaction is None:
        return
    transaction.phase = Phase.COMMITTED
    transaction.published = True
    transaction.wrote = transaction.called = False
    transaction.written = None
    if transaction.intents:
        finish(transaction.take_intents(), committed=True)


# --- sessions


@event.listens_for(Session, "after_transaction_create")
def _on_session_transaction(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:  # also begun by the change of an attribute
        session_used(session)


@event.listens_for(Session, "do_orm_execute", insert=True)  # before listeners that change the statement's options
def _on_orm_execute(execution: ORMExecuteState) -> None:
    session = execution.session
    if session.in_transaction():  # else one begins, which is reported
        session_used(session)
    reads = execution.is_select or execution.is_from_statement  # of a text, too
    if not reads or execution.is_column_load or (load := fresh_reads(session)) is None:
        return
    execution.update_execution_options(**note_schemas(execution.execution_options))
    if not changed(session) and load.keep_loaded(session):  # never over unflushed changes
        execution.update_execution_options(populate_existing=True)


@event.listens_for(Session, "after_begin")
def _on_session_begin(session: Session, root: SessionTransaction, connection: Connection) -> None:
    state = state_of(session)
    if connection not in state.connections:
        state.connections.append(connection)
    transaction = transaction_of(connection)
    if transaction is not None and (not transaction.users or session not in transaction.sessions):
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
    used = [(each, found) for each in state.connections if (found := transaction_of(each)) is not None]
    for _, found in used:
        found.detach(session)
    if not state.intents:
        return
    intents = list(state.intents.values())
    # Where an outer transaction is still open, nothing is committed yet, whatever the session says.
    outer = [found for connection, found in used if connection.in_transaction()]
    if outer:
        state.widen()
    for found in outer:
        found.intents += intents
    if (outer or (_end(intents, state.outcome()) and state.wrote)) and len(awaitable(intents)) == len(intents):
        for targets in state.targets:
            targets.carried = True


def _end(intents: list[Intent], committed: bool | None) -> bool:
    """End them with the outcome of their transaction, None if it will never be known. Return True if it committed."""
    if committed is None:
        _log.warning(
            "fastrdb: the outcome of a COMMIT is unknown: what it may have changed is not cached until the barrier "
            "has lapsed, and is then invalidated once more"
        )
        abandon(intents)
        return False
    finish(intents, committed=committed)
    return committed
