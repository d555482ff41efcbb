"""What is bound to a database transaction: the facts known of it, and the work to do around its commit.

Plain records and the places where they are kept; `transactions` fills them in as SQLAlchemy tells what happens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Protocol
from weakref import WeakKeyDictionary, ref

from sqlalchemy import Connection
from sqlalchemy.orm import Session

from .prefixes import Prefix

_INFO = "fastrdb"  # the place of the State in Session.info


class Work(Protocol):
    """What a transaction will do to the cache: see `intent.Intent`."""

    @property
    def pending(self) -> bool:
        """Whether something was added that `begin` has not covered yet."""
        ...

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
    unsettled: bool = True  # what it wrote is neither committed nor rolled back
    savepoints: int = 0  # open ones, where SQLite was given no BEGIN before the first: its release commits
    users: list[ref[Session]] = field(default_factory=list)
    inherited: list[Work] = field(default_factory=list)  # of sessions and calls that have ended before it

    @property
    def sessions(self) -> list[Session]:
        """The sessions whose open transaction this is: several, where they were joined to one connection."""
        return [session for user in self.users if (session := user()) is not None]

    def leave(self, session: Session) -> None:
        """The session's transaction has ended, whatever becomes of this one."""
        self.users = [user for user in self.users if user() is not session]


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
    wrote: bool = False  # on a connection on which COMMIT was about to be sent


@dataclass(slots=True, eq=False)
class Scope:
    """A call of a function that invalidates: every commit made inside it carries its prefixes and keys."""

    owner: Hashable
    make: Callable[[], Work]
    prefixes: list[Prefix]
    keys: list[str]
    carried: bool = False  # by a commit of what was written
    direct: Work | None = None  # for commits of connections without a session
    unowned: list[Transaction] = field(default_factory=list)  # such connections' transactions that wrote

    def join(self, session: Session) -> None:
        """Put the prefixes on a session's open transaction."""
        work_on(session, self.owner, self.make).add(self.prefixes, self.keys)
        state = state_of(session)
        if self not in state.scopes:
            state.scopes.append(self)

    def meet(self, transaction: Transaction) -> None:
        """A transaction writes inside the call; it may be older than the call."""
        for session in transaction.sessions:
            self.join(session)
        if not transaction.sessions and transaction not in self.unowned:
            self.unowned.append(transaction)

    def direct_work(self) -> Work:
        """The work for connections that no session uses."""
        if self.direct is None:
            self.direct = self.make()
            self.direct.add(self.prefixes, self.keys)
        return self.direct

    def hand_over(self) -> bool:
        """Leave the work to the transactions without a session that are still open; False if there are none."""
        left = [transaction for transaction in self.unowned if transaction.unsettled]
        for transaction in left:
            transaction.inherited.append(self.direct_work())
        return bool(left)

    @contextmanager
    def entered(self) -> Iterator[None]:
        """While inside, transactions that begin or write in this context (this task and those it starts) join."""
        token = _scopes.set((*_scopes.get(), self))
        try:
            yield
        finally:
            _scopes.reset(token)


_orders = itertools.count(1)
_transactions: WeakKeyDictionary[Connection, Transaction] = WeakKeyDictionary()
_scopes: ContextVar[tuple[Scope, ...]] = ContextVar("fastrdb_scopes", default=())


def mark() -> int:
    """A point in the order of things: a transaction of a greater `order` began after it."""
    return next(_orders)


def scopes() -> tuple[Scope, ...]:
    """The calls that this code runs inside of."""
    return _scopes.get()


@contextmanager
def apart() -> Iterator[None]:
    """While inside, this code runs inside of none of the calls around it: it is nobody's part."""
    token = _scopes.set(())
    try:
        yield
    finally:
        _scopes.reset(token)


def new_transaction(connection: Connection) -> Transaction:
    """A transaction begins."""
    made = _transactions[connection] = Transaction(mark())
    return made


def transaction_of(connection: Connection) -> Transaction | None:
    """The latest transaction of `connection`, if it is one that SQLAlchemy began."""
    return _transactions.get(connection)


def state_of(session: Session) -> State:
    """The state of the session's root transaction, made where there is none."""
    state: State | None = session.info.get(_INFO)
    if state is None:
        state = session.info[_INFO] = State()
    return state


def take_state(session: Session) -> State | None:
    """The state of a root transaction that has ended; the next one gets a new one."""
    state: State | None = session.info.pop(_INFO, None)
    return state


def outer_connection(session: Session) -> Connection | None:
    """The connection with a transaction of its own that the session was made to join."""
    bind = session.bind
    return bind if isinstance(bind, Connection) and bind.in_transaction() else None


def work_on(session: Session, owner: Hashable, make: Callable[[], Work]) -> Work:
    """The one `Work` of `owner` on the session's open transaction, or one on the outer transaction if only that is."""
    outer = None if session.in_transaction() else outer_connection(session)
    transaction = transaction_of(outer) if outer is not None else None
    if transaction is not None:
        made = make()
        transaction.inherited.append(made)
        return made
    works = state_of(session).works
    work = works.get(owner)
    if work is None:
        work = works[owner] = make()
    return work


def connections_of(session: Session) -> list[Connection]:
    """The connections that the session's open transaction uses, a joined outer one among them."""
    state: State | None = session.info.get(_INFO)
    found = list(state.connections) if state is not None else []
    outer = outer_connection(session)
    if outer is not None and outer not in found:
        found.append(outer)
    return found
