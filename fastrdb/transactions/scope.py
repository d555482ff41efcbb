"""The call that is running: its function, its session, what it loads or invalidates, and the call around it.

One context variable holds the innermost call; each call holds its parent. Tasks that a call starts inherit the chain.
A call need not name its session: it may open one of its own, or be given a connection. So a load checks each
transaction in which its statements ran. A write joins each transaction that writes or commits inside of it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Any, Literal, Self
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import Connection
from sqlalchemy.orm import InstanceState, Session
from sqlalchemy.orm.attributes import set_committed_value

from fastrdb.errors import SessionInUseError

from .rules import (
    OTHER_SCHEMAS,
    READ_BACK,
    UNNAMED_SCHEMAS,
    WROTE,
    ask_level,
    has_written,
    known_level,
    older,
    schema_map,
    unanswered,
    unnamed_schemas,
    why_not_stored,
    why_unpublished,
)
from .state import STATE, Targets, Transaction, changed, connections_of, next_order

MOST_OBJECTS = 1000
TOO_MANY_OBJECTS = f"the session holds more than {MOST_OBJECTS:,} objects, any of which may answer the load"
_CALLS = "fastrdb.calls"  # in Session.info: the calls that use the session
_calls_on: WeakKeyDictionary[Connection, list[RunningCall]] = WeakKeyDictionary()
_used: WeakKeyDictionary[asyncio.Task[object] | asyncio.AbstractEventLoop, WeakSet[Session]] = WeakKeyDictionary()
running: ContextVar[RunningCall | None] = ContextVar("fastrdb_running", default=None)
"""The innermost call, whose `parent`s are around it."""


class RunningCall:
    """A call of `function` with `session`, for as long as the block lasts. `parameter` names the session in errors.

    SQLAlchemy forbids two tasks to use one session at once, but notices only some of these. Entering the block raises
    SessionInUseError if a call in an unrelated task uses the session. Calls inside of this one, in its task or in
    tasks that it has started, may use the session. `targets` are what the call invalidates, if it does.
    """

    __slots__ = ("function", "parameter", "session", "targets", "parent", "active", "_claimed", "_token")

    def __init__(
        self, function: str, parameter: str | None, session: Session | None, targets: Targets | None = None
    ) -> None:
        self.function = function
        self.parameter = parameter
        self.session = session
        self.targets = targets
        self.parent: RunningCall | None = None
        self.active = False  # tasks that the call has started may outlive it
        self._claimed: list[list[RunningCall]] = []

    def __enter__(self) -> Self:
        self.parent = running.get()
        if self.session is not None:
            self._claim(self.session.info.setdefault(_CALLS, []))
        self._token = running.set(self)
        self.active = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.active = False
        running.reset(self._token)
        for calls in self._claimed:
            calls.remove(self)
        self._claimed.clear()

    def _claim(self, calls: list[RunningCall]) -> None:
        """Become one of the calls that use a session or connection. Raise SessionInUseError if another task does."""
        for other in calls:
            if not self._is_inside(other) and not other._is_inside(self):
                raise SessionInUseError(self.function, self.parameter, other.function)
        calls.append(self)
        self._claimed.append(calls)

    def _is_inside(self, other: RunningCall) -> bool:
        call: RunningCall | None = self
        while call is not None and call is not other:
            call = call.parent
        return call is not None

    def before_statement(self, connection: Connection, transaction: Transaction) -> None:
        """Note that a statement is about to run for the call. Raise SessionInUseError as entering does."""
        calls = _calls_on.setdefault(connection, [])
        if self not in calls:
            self._claim(calls)


class RunningLoad(RunningCall):
    """A load under leases, whose result may be stored. Enter it with `async with`, after the leases were granted.

    Entering and leaving the block check what the session's transaction, and each other one that the load used, allow.
    Inside, statements are answered by the database, and not by what a session loaded long ago. `unfit` says why the
    result must not be stored or shared, or is None; it is final when the block is left without an error. `notes` are
    the reasons that the function gave by `no_store`. `tokens` are those of the leases. `asking` is the session
    that was used last, until a statement runs; True before any. With `follows`, each query adds its `tags`, and a
    sentence to `coarse` for each wide one. `reads` says whether a query was seen. `since` is when it was entered,
    and `schemas` the schema_translate_map by then.
    """

    __slots__ = (
        *("tokens", "follows", "tags", "coarse", "reads", "notes", "unfit", "asking"),
        *("since", "schemas", "_seen", "_held", "_loaded"),
    )

    def __init__(
        self,
        function: str,
        parameter: str | None,
        session: Session | None,
        tokens: Collection[str] = (),
        *,
        follows: bool = False,
    ) -> None:
        super().__init__(function, parameter, session)
        self.tokens, self.follows = tokens, follows
        self.tags = set[str]()
        self.coarse: dict[str, None] = {}
        self.reads = False
        self.notes: list[str] = []
        self.unfit: str | None = None
        self.asking: Session | Literal[True] | None = True
        self._seen: dict[Transaction, Connection] = {}
        self._held: dict[Session, bool] = {}
        self._loaded: dict[Session, list[tuple[InstanceState[Any], object, dict[str, Any]]]] = {}

    @property
    def why_not_stored(self) -> str | None:
        """The reason why the result must not be stored, or None."""
        return self.unfit or (self.notes[0] if self.notes else None)

    async def __aenter__(self) -> Self:
        self.since = next_order()
        self.schemas = None if self.session is None else schema_map(self.session)
        session = self.session  # here without a call, since each miss pays for this
        if session is not None and (session.in_transaction() or isinstance(session.bind, Connection)):
            await self._check()  # now, too: when the load is done, that transaction may be over
        if session is not None:
            self.finds_old(session)
        self.__enter__()
        return self

    async def __aexit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        try:
            if error is None:
                await self._check()
                if self.session is not None and schema_map(self.session) != self.schemas:
                    self.unfit = self.unfit or OTHER_SCHEMAS
        finally:
            self._held.clear()
            self._restore_loaded()
            self.__exit__()

    def is_connected(self) -> bool:
        """Return False if the load may be waiting for a connection to the database."""
        asking = self.session if self.asking is True else self.asking
        return bool(connections_of(asking)) if asking is not None else self.asking is None

    def add(self, tags: Iterable[str], coarse: Collection[str] = ()) -> None:
        """Add tags of what is read, and a sentence about each that is wide."""
        self.reads = True
        self.tags.update(tags)
        if coarse:
            self.coarse.update(dict.fromkeys(coarse))

    def keep_loaded(self, session: Session) -> bool:
        """Note what the caller's objects have loaded: populate_existing unloads what its statement does not load.

        Return False for more objects than can be copied in about a millisecond. The result is then not stored.
        """
        if session not in self._loaded:
            states = session.identity_map.all_states()
            if len(states) > MOST_OBJECTS:  # mechanism: objects-bounded
                self.unfit = self.unfit or TOO_MANY_OBJECTS
                return False
            found = [(state, instance, dict(state.dict)) for state in states if (instance := state.obj()) is not None]
            self._loaded[session] = found
        return True

    def _restore_loaded(self) -> None:
        for session, found in self._loaded.items():
            for state, instance, values in found:
                if state.session is session and not state.expired:
                    for name in values.keys() - state.dict.keys() - state.expired_attributes:
                        set_committed_value(instance, name, values[name])
        self._loaded.clear()

    def finds_old(self, session: Session) -> bool:
        """Return True if the session held objects when the load first used it: the rows of these may be old."""
        if session not in self._held:
            self._held[session] = len(session.identity_map) > 0
        return self._held[session]

    async def _check(self) -> None:
        if self.unfit is None and self.session is not None:
            self.unfit = await why_not_stored(self.session, self.since)
        for transaction, connection in self._seen.items():
            if self.unfit is None:
                self.unfit = await self._unpublished(transaction, connection)

    def before_statement(self, connection: Connection, transaction: Transaction) -> None:
        """Apply rule 2 to a transaction of a session that the call does not name, before its first statement."""
        super().before_statement(connection, transaction)
        self.asking = None
        if transaction in self._seen or self.session in transaction.sessions:
            return
        self._seen[transaction] = connection
        if unnamed_schemas(connection, self.schemas):
            self.unfit = self.unfit or UNNAMED_SCHEMAS
        try:
            level = known_level(connection) or ask_level(connection)
            self.unfit = self.unfit or older(connection, transaction, level, self.since)
        except Exception as error:  # noqa: BLE001  # the driver's own
            self.unfit = unanswered(error)

    def read_under(self, schemas: str) -> None:
        """Note that a cached function inside is read under a schema_translate_map: it may be a hit."""
        if schemas != self.schemas:
            self.unfit = self.unfit or UNNAMED_SCHEMAS

    async def _unpublished(self, transaction: Transaction, connection: Connection) -> str | None:
        """Apply rule 1 to such a transaction: say why its statements may have read what was never committed."""
        if transaction.wrote or any(changed(session) for session in transaction.sessions):
            return WROTE
        if transaction.undone > self.since:
            return READ_BACK
        return await why_unpublished(connection) if transaction.called and not connection.closed else None


# --- the chain of calls around the code that runs


def targets_around(*, active: bool = False) -> list[Targets]:
    """Return what the calls around this code invalidate, the innermost first; with `active`, of none that has ended."""
    found, call = list[Targets](), running.get()
    while call is not None:
        if call.targets is not None and (call.active or not active):
            found.append(call.targets)
        call = call.parent
    return found


def loads_around() -> list[RunningLoad]:
    """Return the loads around this code, the innermost first, those that have ended included."""
    found, call = list[RunningLoad](), running.get()
    while call is not None:
        if isinstance(call, RunningLoad):
            found.append(call)
        call = call.parent
    return found


def fresh_reads(session: Session | None = None) -> RunningLoad | None:
    """Return the load around this code, or of the session: no identity map may answer its statements (rule 3)."""
    call = running.get()
    while call is not None and not (isinstance(call, RunningLoad) and call.active):
        call = call.parent
    if call is None and session is not None:
        return next((each for each in session.info.get(_CALLS, ()) if isinstance(each, RunningLoad)), None)
    return call


def hides_identity_map(session: Session) -> bool:
    """Rule 3, for Session.get() and many-to-one loads, which read the map before any statement."""
    load = fresh_reads(session)
    return load is not None and load.finds_old(session)


_look_up = Session._identity_lookup


def _identity_lookup(session: Session, *args: Any, **options: Any) -> Any:
    if (running.get() is not None or session.info.get(_CALLS)) and hides_identity_map(session):  # the rest is not felt
        return None
    return _look_up(session, *args, **options)


Session._identity_lookup = _identity_lookup  # type: ignore[method-assign, assignment]  # there is no event of it


def is_loading() -> bool:
    """Return True inside of a load: its result may be stored for all, so no part of it may be as late as a push."""
    return running.get() is not None and fresh_reads() is not None


def is_followed() -> bool:
    """Return True inside of a load whose statements give it its tags."""
    return any(load.follows and load.active for load in loads_around())


def no_store(reason: str) -> None:
    """Called inside a cached function: this result is right for this caller, but must not be stored.

    The results of the cached functions around hold it, so no one of these is stored either.
    """
    for load in loads_around():
        load.notes.append(reason)


def read_under(session: Session | None) -> None:
    """Note in the loads around this code under which schema_translate_map a cached function is about to be read."""
    if running.get() is not None and session is not None and (schemas := schema_map(session)) is not None:
        for load in loads_around():
            load.read_under(schemas)


def leads(token: str) -> bool:
    """Return True inside of the load that holds this lease: waiting for it would be a deadlock.

    Two functions may share a key, and one of them may call the other.
    """
    return any(token in load.tokens for load in loads_around())


@contextmanager
def apart() -> Iterator[None]:
    """Detach the block from the calls around it."""
    token = running.set(None)
    try:
        yield
    finally:
        running.reset(token)


# --- for the listeners


def session_used(session: Session) -> None:
    """Note that this task, and the calls around it that write, use the session."""
    with suppress(RuntimeError):  # no event loop runs in this thread
        if (task := asyncio.current_task()) is not None:
            for user in (task, task.get_loop()):
                _used.setdefault(user, WeakSet()).add(session)
    call = running.get()
    while call is not None:
        if call.targets is not None:  # tasks that the call has started have used it, too
            call.targets.seen.add(session)
        if isinstance(call, RunningLoad):
            call.asking = session
            if call.active:
                call.finds_old(session)
        call = call.parent


def used_here(*, in_loop: bool = False) -> Iterable[Session]:
    """Return the sessions that this task has used; `in_loop`: those of all tasks of its event loop."""
    with suppress(RuntimeError):  # no event loop runs in this thread
        if (task := asyncio.current_task()) is not None:
            return _used.get(task.get_loop() if in_loop else task, ())
    return ()


def statement_begins(connection: Connection, transaction: Transaction) -> list[RunningCall]:
    """Note that a statement is about to run in the running calls, and return these. Raise SessionInUseError.

    Besides the calls around this code, these are the calls that use its connection, or a session on that. A load may
    have another context run a statement, such as a task or a thread without a copy of its own.
    """
    firsts: list[RunningCall | None] = [running.get(), *_calls_on.get(connection, ())]
    for user in transaction.users:
        session = user()
        state = None if session is None else session.info.get(STATE)
        if session is not None and state is not None and connection in state.connections:  # else on one of the pool's
            firsts += session.info.get(_CALLS, ())
    calls: list[RunningCall] = []
    for first in firsts:
        call = first
        while call is not None:
            if call.active and call not in calls:
                call.before_statement(connection, transaction)
                calls.append(call)
            call = call.parent
    return calls


def rollback_begins(connection: Connection, transaction: Transaction) -> None:
    """Ask whether functions of the database that were called have written, while it can be asked, for a call.

    Most have not, and a call that opens a session to read ends it by a rollback.
    """
    if transaction.called and not transaction.wrote and running.get() is not None:
        with suppress(Exception):  # the driver's own: then one may have
            transaction.called = has_written(connection)
