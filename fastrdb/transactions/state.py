"""What is bound to a database transaction: the facts known of it, and the work to do around its commit.

Plain records and the places where they are kept; `transactions` fills them in as SQLAlchemy tells what happens.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Connection, StaticPool
from sqlalchemy.orm import Session

from fastrdb.keys import Prefix

_INFO, _UNDONE = "fastrdb", "fastrdb.undone"  # the places in Session.info: of the State, and beyond transactions


class Work(Protocol):
    """What a transaction will do to the cache: see `intent.Intent`."""

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The event loop that it belongs to: elsewhere it must not be awaited, begun, ended or abandoned."""
        ...

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


class Phase(Enum):
    """How far a transaction has come."""

    OPEN = auto()
    PREPARED = auto()  # the first of two phases is on its way, or done
    SENT = auto()  # COMMIT is on its way
    COMMITTED = auto()  # COMMIT has returned
    UNDONE = auto()  # rolled back, or COMMIT answered with an error
    LOST = auto()  # something that commits was sent, and nobody will say what became of it


@dataclass(slots=True, eq=False)
class Transaction:
    """One transaction of one connection. `order` tells which of two things came first."""

    order: int
    phase: Phase = Phase.OPEN
    wrote: bool = False  # what is neither committed nor rolled back
    called: bool = False  # functions that may have written
    undone: int = 0  # the point at which something that it wrote was last rolled back, as `next_order` gives it
    published: bool = False  # something is committed: by COMMIT, by itself, or implicitly
    autocommit: bool = False  # what it published was committed by itself, and so will be all that follows
    loose: bool = False  # ended by hand: from then on, statements may commit by themselves
    twophase: bool = False
    savepoints: int = 0  # open ones, where SQLite was given no BEGIN before the first: its release commits
    users: list[ref[Session]] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)  # those that no session ends: of calls, and of sessions that joined

    @property
    def sessions(self) -> list[Session]:
        """The sessions whose open transaction this is: several, where they were joined to one connection."""
        return [session for user in self.users if (session := user()) is not None]

    @property
    def settled(self) -> bool:
        """True if no COMMIT is to come."""
        return self.autocommit or self.over

    @property
    def over(self) -> bool:
        """True if it has ended, or nobody knows what becomes of it."""
        return self.phase not in (Phase.OPEN, Phase.PREPARED, Phase.SENT)

    def undo(self) -> None:
        """Something that it wrote is rolled back: what was read of it was never committed."""
        self.undone = next_order()
        for session in self.sessions:
            session.info[_UNDONE] = self.undone

    def leave(self, session: Session) -> None:
        """The session's transaction has ended, whatever becomes of this one."""
        self.users = [user for user in self.users if user() is not session]

    def take_works(self) -> list[Work]:
        """The works that end with this transaction: not those that another one, still open, has to do as well."""
        taken, self.works = self.works, []
        held = [work for _, other in _known() if not other.settled for work in other.works] if taken else []
        return [work for work in taken if work not in held]


@dataclass(slots=True, eq=False)
class State:
    """The open root transaction of one session."""

    connections: list[Connection] = field(default_factory=list)
    works: dict[Hashable, Work] = field(default_factory=dict)
    targets: list[Targets] = field(default_factory=list)  # those that have joined
    tried: list[Transaction] = field(default_factory=list)  # those for which something that commits was sent
    committed: bool = False  # the session said so
    wrote: bool = False  # in a transaction for which it was sent
    declared: bool = False  # by a function that writes, however it did

    @property
    def autocommitted(self) -> bool:
        """True if a part is committed already."""
        return any(transaction.published for transaction in self.tried)

    def attempt(self, transaction: Transaction) -> None:
        """Something that commits is sent."""
        self.wrote = self.wrote or transaction.wrote
        if transaction not in self.tried:
            self.tried.append(transaction)

    def outcome(self) -> bool | None:
        """Whether anything has been committed, now that it has ended; None if that will never be known."""
        phases = {transaction.phase for transaction in self.tried}
        if Phase.LOST in phases or (Phase.SENT in phases and not self.committed):
            return None
        return self.committed or self.autocommitted


@dataclass(slots=True, eq=False)
class Targets:
    """What a call invalidates: every commit made inside of the call carries these prefixes and keys.

    `make` gives a new intent, of which `owner` has one in each transaction. Tasks that the call has started carry the
    prefixes and keys even after the call has ended. `carried`: a commit of what was written has carried them.
    """

    owner: Hashable
    make: Callable[[], Work]
    prefixes: list[Prefix]
    keys: list[str]
    carried: bool = False
    works: dict[Transaction, Work] = field(default_factory=dict)  # of transactions without a session
    seen: WeakSet[Session] = field(default_factory=WeakSet)  # the sessions that were used or joined

    def join(self, session: Session) -> None:
        """Put the prefixes and keys on a session's open transaction."""
        intent_on(session, self.owner, self.make).add(self.prefixes, self.keys)
        self.seen.add(session)
        state = state_of(session)
        if self not in state.targets:
            state.targets.append(self)

    def meet(self, transaction: Transaction) -> None:
        """Join a transaction that writes or commits inside of the call; it may be older than the call."""
        for session in transaction.sessions:
            self.join(session)
        if not transaction.sessions and transaction not in self.works:
            # What is over is forgotten: a task that the call has started may go on, and write, for ever.
            self.works = {found: work for found, work in self.works.items() if not found.over}
            work = self.works[transaction] = self.make()
            work.add(self.prefixes, self.keys)
            transaction.works.append(work)

    def add(self, prefixes: Iterable[Prefix], keys: Iterable[str]) -> bool:
        """Add to each transaction whose COMMIT is to come. Return True if one of them wrote without a session."""
        for session in self.seen:
            if self in state_of(session).targets:
                intent_on(session, self.owner, self.make).add(prefixes, keys)
        left = [work for transaction, work in self.works.items() if not transaction.settled]
        for work in left:
            work.add(prefixes, keys)
        return bool(left)


_orders = itertools.count(1)
_transactions: WeakKeyDictionary[Connection, Transaction] = WeakKeyDictionary()


def next_order() -> int:
    """A point in the order of things: a transaction of a greater `order` began after it."""
    return next(_orders)


def new_transaction(connection: Connection, *, twophase: bool = False) -> Transaction:
    """A transaction begins."""
    made = _common(connection) or Transaction(next_order(), twophase=twophase)
    _transactions[connection] = made
    return made


def _common(connection: Connection) -> Transaction | None:
    """The transaction that is open already, where a pool gives the same connection to all, as for SQLite in memory."""
    pool = connection.engine.pool
    if not isinstance(pool, StaticPool):
        return None
    others = (found for other, found in _known() if other.engine.pool is pool)
    return next((found for found in others if found.phase is Phase.OPEN), None)


def _known() -> list[tuple[Connection, Transaction]]:
    """All that there are. Other threads begin and end theirs meanwhile: so nobody loops over the dictionary itself."""
    connections = [connection for each in _transactions.keyrefs() if (connection := each()) is not None]
    return [(each, found) for each in connections if (found := _transactions.get(each)) is not None]


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


def undone_since(session: Session, since: int) -> bool:
    """True if something that the session wrote was undone after the point `since`."""
    return int(session.info.get(_UNDONE, 0)) > since


def outer_connection(session: Session) -> Connection | None:
    """The connection with a transaction of its own that the session was made to join."""
    bind = session.bind
    return bind if isinstance(bind, Connection) and bind.in_transaction() else None


def intent_on(session: Session, owner: Hashable, make: Callable[[], Work]) -> Work:
    """The one `Work` of `owner` on the session's open transaction, or one on the outer transaction if only that is."""
    outer = None if session.in_transaction() else outer_connection(session)
    transaction = transaction_of(outer) if outer is not None else None
    if transaction is not None:
        made = make()
        transaction.works.append(made)
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
