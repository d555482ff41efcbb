"""Follows the transactions of SQLAlchemy, and binds work to their commits.

SQLAlchemy tells of a transaction in pieces: the engine that a connection begins or commits, the session that its
root has ended. Here they are put together: which connections a session's open transaction uses, since when, whether
it wrote, and which `Work` must be begun before COMMIT and ended when its outcome is known. What follows from that for
reading and filling is decided in `session`; what the work does is the store's.

The listeners sit on the classes, because a session must be known to have written before fastrdb first meets it.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import re
from collections.abc import Callable, Coroutine, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Protocol
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection, Engine, event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.orm import Session, SessionTransaction
from sqlalchemy.util import await_only
from sqlalchemy.util.concurrency import in_greenlet

from .prefixes import Prefix

_log = logging.getLogger("fastrdb")
_INFO = "fastrdb"  # the place of the State in Session.info


class Work(Protocol):
    """What a transaction will do to the cache: see `store.Intent`."""

    def add(self, prefixes: Iterable[Prefix] = ..., keys: Iterable[str] = ...) -> None:
        """More to invalidate."""

    def put(self, key: str, raw: bytes, ttl_ms: int) -> None:
        """An entry to store when the transaction has committed."""

    def distrust(self) -> None:
        """A part of the transaction has been undone: what was put may never be committed."""

    async def begin(self) -> None:
        """Before COMMIT: nothing that is about to be stale may stay or come back."""

    async def end(self, committed: bool) -> None:
        """The outcome is known."""

    def abandon(self) -> None:
        """The outcome will never be known."""


@dataclass(slots=True, eq=False)
class Transaction:
    """One transaction of one connection. `order` tells which of two things came first."""

    order: int
    wrote: bool = False
    session: ref[Session] | None = None
    inherited: list[Work] = field(default_factory=list)  # of sessions that were joined to it


@dataclass(slots=True, eq=False)
class State:
    """The open root transaction of one session."""

    connections: list[Connection] = field(default_factory=list)
    works: dict[Hashable, Work] = field(default_factory=dict)
    scopes: list[Scope] = field(default_factory=list)
    attempts: int = 0  # connections on which COMMIT was about to be sent
    committed: bool = False  # the session said so
    refused: bool = False  # the database answered COMMIT with an error
    autocommitted: bool = False  # something was written that no COMMIT follows


@dataclass(slots=True, eq=False)
class Scope:
    """A call of a function that invalidates: every commit made inside it carries its prefixes and keys."""

    owner: Hashable
    make: Callable[[], Work]
    prefixes: list[Prefix]
    keys: list[str]
    carried: bool = False  # by a commit inside the call
    direct: Work | None = None  # for commits of connections without a session

    def join(self, state: State) -> None:
        """Put the prefixes on a session's open transaction."""
        work_on(state, self.owner, self.make).add(self.prefixes, self.keys)
        if self not in state.scopes:
            state.scopes.append(self)

    def direct_work(self) -> Work:
        """The work for a connection that no session uses."""
        if self.direct is None:
            self.direct = self.make()
            self.direct.add(self.prefixes, self.keys)
        return self.direct

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While inside, transactions that begin in this context (this task and those it starts) join."""
        token = _scopes.set((*_scopes.get(), self))
        try:
            yield
        finally:
            _scopes.reset(token)


_orders = itertools.count(1)
_transactions: WeakKeyDictionary[Connection, Transaction] = WeakKeyDictionary()
_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("fastrdb_scopes", default=())
_ending: set[asyncio.Task[None]] = set()  # the loop itself holds tasks weakly


def mark() -> int:
    """A point in the order of things: a transaction of a greater `order` began after it."""
    return next(_orders)


def transaction_of(connection: Connection) -> Transaction | None:
    """The latest transaction of `connection`, if it is one that SQLAlchemy began."""
    return _transactions.get(connection)


def state_of(session: Session) -> State:
    """The state of the session's root transaction, made where there is none."""
    state: State | None = session.info.get(_INFO)
    if state is None:
        state = session.info[_INFO] = State()
    return state


def work_on(state: State, owner: Hashable, make: Callable[[], Work]) -> Work:
    """The one `Work` of `owner` on this transaction."""
    work = state.works.get(owner)
    if work is None:
        work = state.works[owner] = make()
    return work


def connections_of(session: Session) -> list[Connection]:
    """The connections that the session's open transaction uses, a joined outer one among them."""
    state: State | None = session.info.get(_INFO)
    found = list(state.connections) if state is not None else []
    if isinstance(session.bind, Connection) and session.bind not in found and session.bind.in_transaction():
        found.append(session.bind)
    return found


def autocommits(connection: Connection) -> bool:
    """True if each statement commits by itself. SQLAlchemy has no public word for what the engine was set to."""
    if connection._is_autocommit_isolation():
        return True
    driver = connection.connection.driver_connection if connection.dialect.name == "sqlite" else None
    return driver is not None and driver.isolation_level is None and not driver.in_transaction


async def settled() -> None:
    """Wait until the work that ends in the background of this event loop has ended."""
    loop = asyncio.get_running_loop()
    while mine := [task for task in _ending if task.get_loop() is loop]:
        await asyncio.wait(mine)


# --- what a statement is

_READS = ("SELECT", "SAVEPOINT", "RELEASE", "ROLLBACK TO", "VALUES", "SHOW", "EXPLAIN")
_CHANGES = re.compile(r"\b(INSERT|UPDATE|DELETE|MERGE|REPLACE|INTO)\b", re.IGNORECASE)


def writes(statement: str, context: Any) -> bool:
    """True unless the statement surely changes nothing: text that begins with anything but SELECT counts as a write."""
    if context is not None and (context.isinsert or context.isupdate or context.isdelete):
        return True
    words = statement.lstrip(" \t\r\n(").upper()
    if words.startswith("WITH"):
        return _CHANGES.search(statement) is not None
    return not words.startswith(_READS)


# --- engines and connections


@event.listens_for(Engine, "begin")
def _on_begin(connection: Connection) -> None:
    _transactions[connection] = Transaction(next(_orders))


@event.listens_for(Engine, "rollback")
def _on_rollback(connection: Connection) -> None:
    transaction = _transactions.get(connection)
    if transaction is not None:
        transaction.wrote = False
    if transaction is not None and transaction.inherited:
        inherited, transaction.inherited = transaction.inherited, []
        _finish(_end(inherited, committed=False), inherited)


@event.listens_for(Engine, "commit")
def _on_commit(connection: Connection) -> None:
    """The last point before the DBAPI's COMMIT and after the flush; an error or a cancellation here aborts it."""
    transaction = _transactions.get(connection)
    if transaction is None:
        return
    _begin_works(connection, transaction)
    session = transaction.session() if transaction.session is not None else None
    if session is not None:
        state_of(session).attempts += 1
    # Joined sessions have ended and nobody will be told of this COMMIT's outcome: their barriers lapse.
    for work in transaction.inherited:
        work.abandon()
    transaction.inherited = []
    transaction.wrote = False


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
    transaction = _transactions.get(connection)
    if transaction is None or (transaction.wrote and not transaction.session and not _scopes.get()):
        return
    if not writes(statement, context):
        return
    transaction.wrote = True
    session = transaction.session() if transaction.session is not None else None
    if (_scopes.get() or (session is not None and state_of(session).works)) and autocommits(connection):
        _begin_works(connection, transaction)
        if session is not None:
            state_of(session).autocommitted = True


@event.listens_for(Engine, "handle_error")
def _on_error(context: ExceptionContext) -> None:
    """An error that the database itself gave as its answer to COMMIT: it has rolled back, and that is known."""
    connection = context.connection
    transaction = _transactions.get(connection) if connection is not None else None
    session = transaction.session() if transaction is not None and transaction.session is not None else None
    if session is None or context.sqlalchemy_exception is None or context.is_disconnect:
        return
    state = state_of(session)
    state.refused = state.attempts == 1 and len(state.connections) == 1
    _distrust(state)  # PostgreSQL answers the COMMIT of a failed transaction with a ROLLBACK, and no error


@event.listens_for(Engine, "rollback_savepoint")
def _on_rollback_savepoint(connection: Connection, name: str, context: None) -> None:
    transaction = _transactions.get(connection)
    session = transaction.session() if transaction is not None and transaction.session is not None else None
    if session is not None:
        _distrust(state_of(session))


def _distrust(state: State) -> None:
    for work in state.works.values():
        work.distrust()


def _begin_works(connection: Connection, transaction: Transaction) -> None:
    session = transaction.session() if transaction.session is not None else None
    works = list(transaction.inherited)
    if session is not None:
        works += state_of(session).works.values()
    else:
        works += [scope.direct_work() for scope in _scopes.get()]
    if works and in_greenlet():  # a synchronous engine cannot wait for Redis; its scope is invalidated by hand
        for work in works:
            await_only(work.begin())
        for scope in _scopes.get() if session is None else ():
            scope.carried = True


# --- sessions


@event.listens_for(Session, "after_begin")
def _on_session_begin(session: Session, root: SessionTransaction, connection: Connection) -> None:
    state = state_of(session)
    if connection not in state.connections:
        state.connections.append(connection)
    transaction = _transactions.get(connection)
    if transaction is not None:
        transaction.session = ref(session)
    for scope in _scopes.get():
        scope.join(state)


@event.listens_for(Session, "after_commit")
def _on_session_commit(session: Session) -> None:
    # Also fires when a savepoint is released. Only a flag: an error here would leave the session stuck.
    if not session.in_nested_transaction():
        state_of(session).committed = True


@event.listens_for(Session, "after_transaction_end")
def _on_session_end(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is not None:
        return
    state: State | None = session.info.pop(_INFO, None)
    if state is None or not state.works:
        return
    works = list(state.works.values())
    outer = [found for c in state.connections if c.in_transaction() and (found := _transactions.get(c))]
    if outer:  # joined to a transaction that is still open: nothing is committed yet, whatever the session says
        outer[0].inherited += works
    elif state.committed or state.autocommitted:
        covered = state.attempts > 0 or state.autocommitted
        _finish(_end(works, committed=True, covered=covered), works)
    elif state.attempts and not state.refused:
        _log.warning("the outcome of a COMMIT is unknown: its barrier is left to lapse")
        for work in works:
            work.abandon()
        return
    else:
        _finish(_end(works, committed=False), works)
        return
    for scope in state.scopes:
        scope.carried = True


async def _end(works: list[Work], *, committed: bool, covered: bool = True) -> None:
    for work in works:
        try:
            if committed and not covered:  # it had no connection: what was written went some other way
                await work.begin()
            await work.end(committed)
        except Exception:  # the database has committed: nobody may be told otherwise
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
    if not works:
        ending.close()
        return
    task = loop.create_task(ending)
    _ending.add(task)
    task.add_done_callback(_ending.discard)
    if in_greenlet():
        await_only(asyncio.shield(task))
