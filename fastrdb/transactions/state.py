"""What is known of transactions and sessions, and the intents that are bound to their commits.

Plain records, and the places that hold these. `listeners` fills them in as SQLAlchemy reports what happens.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any, Protocol
from weakref import WeakKeyDictionary, WeakSet, ref

from sqlalchemy import Connection, StaticPool
from sqlalchemy.orm import Session

from fastrdb.inference import Change, Verb
from fastrdb.keys import Image, Prefix
from fastrdb.protocol import Intent

STATE, _UNDONE = "fastrdb", "fastrdb.undone"  # in Session.info: of its open transaction, and of all its transactions
_orders = itertools.count(1)
_unclaimed = [0]  # when there was a write with no call around
_transactions: WeakKeyDictionary[Connection, Transaction] = WeakKeyDictionary()


def next_order() -> int:
    """Return a point in the order of events: a transaction with a greater `order` began after it."""
    return next(_orders)


class Phase(Enum):
    """Stage of a transaction."""

    OPEN = auto()
    PREPARED = auto()  # the first of two phases has been sent
    SENT = auto()  # COMMIT has been sent
    COMMITTED = auto()  # COMMIT has returned
    UNDONE = auto()  # rolled back, or COMMIT answered with an error
    OUTCOME_UNKNOWN = auto()  # a statement that commits was sent, and its outcome will never be known


class Follower(Protocol):
    """A cache that invalidates what the writes of this process change."""

    @property
    def reads_rows(self) -> bool:
        """True if rows are read under a lock before an UPDATE or DELETE."""
        ...

    @property
    def effects(self) -> Mapping[str, frozenset[str]]:
        """The tables that are written besides a table, by name in lower case."""
        ...

    @property
    def views(self) -> Mapping[str, frozenset[str]]:
        """The tables that a view is made of, where the catalog does not say, by name in lower case."""
        ...

    @property
    def quiet(self) -> Mapping[str, frozenset[str]]:
        """For each table the columns whose UPDATE reaches nothing."""
        ...

    def is_untracked(self) -> bool:
        """Return True where another program reports the writes."""
        ...

    def tag_columns(self, table: str) -> Collection[str]:
        """Return the columns of a table that entries are tagged by, as far as this process has seen."""
        ...

    def intent(self) -> tuple[Hashable, Callable[[], Intent]] | None:
        """Return the owner of an intent in this thread, and how it is made; None where no event loop can do it."""
        ...


@dataclass(slots=True)
class Written:
    """The writes of one open transaction, as far as caches follow these.

    Attributes:
        changes: those that no intent has yet, each with the caches that invalidate because of it.
        counts: for each table, kind of change and set of caches that followed, how many changes there were.
        latest: the statement that is running, and its changes.
        doubtful: functions were called that may have written anywhere.
    """

    changes: list[tuple[Change | Image, tuple[Follower, ...]]] = field(default_factory=list)
    counts: dict[tuple[str, Verb, frozenset[Follower]], int] = field(default_factory=dict)
    latest: tuple[Any, list[Change]] | None = None
    doubtful: bool = False


@dataclass(slots=True, eq=False)
class Transaction:
    """One transaction of one connection."""

    order: int
    phase: Phase = Phase.OPEN
    wrote: bool = False  # what is neither committed nor rolled back
    called: bool = False  # functions of the database that may have written
    undone: int = 0  # the order of the last rollback of something that it wrote
    published: bool = False  # a part is committed: by COMMIT, by itself, or implicitly
    autocommit: bool = False  # each statement commits by itself
    loose: bool = False  # controlled by hand: from then on, each statement may commit by itself
    twophase: bool = False
    savepoints: int = 0  # open ones, where SQLite was given no BEGIN before the first: its release commits
    users: list[ref[Session]] = field(default_factory=list)
    intents: list[Intent] = field(default_factory=list)  # those that no session ends
    targets: list[Targets] = field(default_factory=list)  # those that have joined it without a session
    written: Written | None = None  # what caches follow of it: see `follow`
    followed: dict[Hashable, Intent] = field(default_factory=dict)  # the intents of these caches, by owner

    @property
    def sessions(self) -> list[Session]:
        """The sessions whose open transaction this is: several, if joined to one connection."""
        return [session for user in self.users if (session := user()) is not None]

    @property
    def ending(self) -> bool:
        """True if the statements that follow are parts of its COMMIT, or of the ROLLBACK of a two-phase one."""
        return self.phase in (Phase.PREPARED, Phase.SENT) or (self.twophase and self.phase is Phase.UNDONE)

    @property
    def over(self) -> bool:
        """True if it has ended, or its outcome will never be known."""
        return self.phase not in (Phase.OPEN, Phase.PREPARED, Phase.SENT)

    @property
    def settled(self) -> bool:
        """True if no COMMIT is to come."""
        return self.autocommit or self.over

    def all_intents(self) -> list[Intent]:
        """Return its own intents, and those of its sessions."""
        return [*self.intents, *(each for session in self.sessions for each in state_of(session).intents.values())]

    def widen(self) -> None:
        """Before a commit: add what the calls that have not returned may name by their results."""
        for targets in self.targets:
            if (targets.wide or targets.wide_images) and self in targets.intents:
                targets.intents[self].add(targets.wide, (), targets.wide_images)
        for session in self.sessions:
            state_of(session).widen()

    def undo(self) -> None:
        """Note that something that it wrote is rolled back: what was read of it was never committed."""
        self.undone = next_order()
        for session in self.sessions:
            session.info[_UNDONE] = self.undone

    def detach(self, session: Session) -> None:
        """Note that the session's transaction has ended, whatever becomes of this one."""
        self.users = [user for user in self.users if user() is not session]

    def take_intents(self) -> list[Intent]:
        """Remove and return the intents that end with this transaction.

        An intent that another open transaction also has ends with the last of them.
        """
        taken, self.intents = self.intents, []
        held = [each for _, other in _known() if not other.settled for each in other.intents] if taken else []
        return [each for each in taken if each not in held]


@dataclass(slots=True, eq=False)
class SessionState:
    """The open root transaction of one session."""

    connections: list[Connection] = field(default_factory=list)
    intents: dict[Hashable, Intent] = field(default_factory=dict)
    targets: list[Targets] = field(default_factory=list)  # those that are in `intents`
    sent: list[Transaction] = field(default_factory=list)  # those for which something that commits was sent
    committed: bool = False  # the session has reported it
    wrote: bool = False  # in a transaction of `sent`
    declared: bool = False  # a function that writes has run in it, whatever its statements were

    @property
    def autocommitted(self) -> bool:
        """True if a part is committed already."""
        return any(transaction.published for transaction in self.sent)

    def widen(self) -> None:
        """Do so for the calls that have joined the session."""
        for targets in self.targets:
            if targets.wide or targets.wide_images:
                self.intents[targets.owner].add(targets.wide, (), targets.wide_images)

    def outcome(self) -> bool | None:
        """Return whether anything was committed, now that it has ended; None if that will never be known."""
        phases = {transaction.phase for transaction in self.sent}
        if Phase.OUTCOME_UNKNOWN in phases or (Phase.SENT in phases and not self.committed):
            return None
        return self.committed or self.autocommitted


@dataclass(slots=True, eq=False)
class Targets:
    """Targets of a call that invalidates: every commit made inside of the call carries these prefixes and keys.

    `make` returns a new intent, of which `owner` has one in each transaction. Tasks that the call has started carry the
    prefixes and keys even after the call has ended. `carried`: a commit of what was written has carried them.
    `wide` are prefixes for all that the result of the call may name. A commit carries them only while there is none.
    `images` are rows that the call says it writes, and `wide_images` those that its result may name.
    """

    owner: Hashable
    make: Callable[[], Intent]
    prefixes: list[Prefix]
    keys: list[str]
    wide: list[Prefix] = field(default_factory=list)
    images: list[Image] = field(default_factory=list)
    wide_images: list[Image] = field(default_factory=list)
    carried: bool = False
    since: int = field(default_factory=next_order)
    intents: dict[Transaction, Intent] = field(default_factory=dict)  # of transactions without a session
    seen: WeakSet[Session] = field(default_factory=WeakSet)  # the sessions that were used or joined

    @property
    def covered(self) -> bool:
        """True if it was carried, and nothing was written in the meantime that may be a part of the call."""
        return self.carried and _unclaimed[0] < self.since

    def join(self, session: Session) -> None:
        """Put the prefixes and keys on a session's open transaction."""
        state = state_of(session)
        if self in state.targets:
            return
        self.seen.add(session)
        intent = intent_on(session, self.owner, self.make)
        intent.add(self.prefixes, self.keys, self.images)
        if session.in_transaction():
            state.targets.append(self)
        else:
            intent.add(self.wide, (), self.wide_images)

    def meet(self, transaction: Transaction) -> None:
        """Join a transaction that writes or commits inside of the call; it may be older than the call."""
        sessions = transaction.sessions
        for session in sessions:
            self.join(session)
        if not sessions and transaction not in self.intents:
            # Forget what is over: a task that the call has started may go on writing for ever.
            self.intents = {found: intent for found, intent in self.intents.items() if not found.over}
            intent = self.intents[transaction] = self.make()
            intent.add(self.prefixes, self.keys, self.images)
            transaction.intents.append(intent)
            transaction.targets.append(self)

    def add(self, prefixes: Iterable[Prefix], keys: Iterable[str], images: Sequence[Image] = ()) -> bool:
        """Add to each transaction whose COMMIT is to come. Return True if one of them wrote without a session."""
        for session in self.seen:
            state: SessionState | None = session.info.get(STATE)
            if state is not None and self in state.targets:
                intent_on(session, self.owner, self.make).add(prefixes, keys, images)
        left = [intent for transaction, intent in self.intents.items() if not transaction.settled]
        for intent in left:
            intent.add(prefixes, keys, images)
        return bool(left)


# --- transactions of connections


def new_transaction(connection: Connection, *, twophase: bool = False) -> None:
    """Note that a transaction begins."""
    shared = _shared(connection) if isinstance(connection.engine.pool, StaticPool) else None
    _transactions[connection] = shared or Transaction(next(_orders), twophase=twophase)


def _shared(connection: Connection) -> Transaction | None:
    """Return the open transaction of a pool that gives the same connection to all, as for SQLite in memory."""
    pool = connection.engine.pool
    others = (found for other, found in _known() if other.engine.pool is pool)
    return next((found for found in others if found.phase is Phase.OPEN), None)


def _known() -> list[tuple[Connection, Transaction]]:
    """Return all that there are. Other threads change the dictionary meanwhile, so it must not be iterated itself."""
    connections = [connection for each in _transactions.keyrefs() if (connection := each()) is not None]
    return [(each, found) for each in connections if (found := _transactions.get(each)) is not None]


transaction_of = _transactions.get
"""Return the latest transaction of a connection, if SQLAlchemy began one, else None."""


# --- sessions


def write_unclaimed() -> None:
    """Note a write with no call around: it may be that of a call which has another thread or task write for it."""
    _unclaimed[0] = next_order()


def state_of(session: Session) -> SessionState:
    """Return the state of the session's root transaction; make it where there is none."""
    state: SessionState | None = session.info.get(STATE)
    if state is None:
        state = session.info[STATE] = SessionState()
    return state


def take_state(session: Session) -> SessionState | None:
    """Remove and return the state of a root transaction that has ended; the next one gets a new one."""
    state: SessionState | None = session.info.pop(STATE, None)
    return state


def undone_since(session: Session, since: int) -> bool:
    """Return True if something that the session wrote was undone after the point `since`."""
    return int(session.info.get(_UNDONE, 0)) > since


def changed(session: Session) -> bool:
    """Return True if it has changes that no statement has sent to the database."""
    return bool(session.new or session.deleted or session.dirty)


def outer_connection(session: Session) -> Connection | None:
    """Return the connection with a transaction of its own that the session was made to join."""
    bind = session.bind
    return bind if isinstance(bind, Connection) and bind.in_transaction() else None


def connections_of(session: Session) -> list[Connection]:
    """Return the connections that the session's open transaction uses, a joined outer one among them."""
    state: SessionState | None = session.info.get(STATE)
    found = list(state.connections) if state is not None else []
    outer = session.bind
    if isinstance(outer, Connection) and outer.in_transaction() and outer not in found:
        found.append(outer)
    return found


def intent_on(session: Session, owner: Hashable, make: Callable[[], Intent]) -> Intent:
    """Return the one intent of `owner` on the session's open transaction, or a new one if only an outer is open."""
    outer = None if session.in_transaction() else outer_connection(session)
    transaction = transaction_of(outer) if outer is not None else None
    if transaction is not None:
        intent = make()
        transaction.intents.append(intent)
        return intent
    intents = state_of(session).intents
    if owner not in intents:
        intents[owner] = make()
    return intents[owner]
