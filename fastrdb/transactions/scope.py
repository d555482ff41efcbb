"""What goes on inside of a call: which session it uses, alone; and for a load, which transactions its statements see.

A call need not name its session: it may open one of its own, or be handed a connection. So what a load may have seen
is not asked of the session only, but of each transaction in which a statement ran while it went on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from typing import Self
from weakref import WeakKeyDictionary

from sqlalchemy import Connection
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from fastrdb.errors import SessionInUseError

from .drivers import ask_level, has_written, known_level
from .rules import READ_BACK, UNTOLD, WROTE, older, unfit
from .state import Transaction, connections_of, mark
from .state import apart as apart_from_scopes
from .uses import changed

_USES = "fastrdb.uses"  # in Session.info
_users: WeakKeyDictionary[Connection, list[Use]] = WeakKeyDictionary()
_inside: ContextVar[Use | None] = ContextVar("fastrdb_inside", default=None)


class Use:
    """A call of `function` with a session, from the start of the block to its end. Nobody else may use it meanwhile.

    SQLAlchemy forbids two tasks to use one session at once, and notices it by chance. Calls inside of this one, in its
    task or in tasks that it has started, are a part of it.
    """

    __slots__ = ("function", "parameter", "session", "active", "_around", "_claimed", "_token")

    def __init__(self, function: str, parameter: str | None, session: Session | None) -> None:
        self.function = function
        self.parameter = parameter
        self.session = session
        self.active = False  # tasks that it has started may outlive it
        self._around: Use | None = None
        self._claimed: list[list[Use]] = []

    def __enter__(self) -> Self:
        self._around = _inside.get()
        if self.session is not None:
            self.claim(self.session.info.setdefault(_USES, []))
        self._token = _inside.set(self)
        self.active = True
        return self

    def __exit__(self, *exc: object) -> None:
        self.active = False
        _inside.reset(self._token)
        for users in self._claimed:
            users.remove(self)
        self._claimed.clear()

    def claim(self, users: list[Use]) -> None:
        """Be one of these. Raises SessionInUseError if one of them is in a task that is no part of this one's."""
        for other in users:
            if not self._is_inside(other) and not other._is_inside(self):
                raise SessionInUseError(self.function, self.parameter, other.function)
        users.append(self)
        self._claimed.append(users)

    def sees(self, connection: Connection, transaction: Transaction) -> None:
        """A statement is about to run inside of it."""
        users = _users.setdefault(connection, [])
        if self not in users:
            self.claim(users)

    def _is_inside(self, other: Use) -> bool:
        around: Use | None = self
        while around is not None and around is not other:
            around = around._around
        return around is other


class Load(Use):
    """A load: it knows why what it gives must not be stored, or shared."""

    __slots__ = ("since", "_reason", "_seen")

    def __init__(self, function: str, parameter: str | None, session: Session | None) -> None:
        super().__init__(function, parameter, session)
        self.since = mark()
        self._reason: str | None = None
        self._seen: dict[Transaction, Connection] = {}

    async def unfit(self) -> str | None:
        """Why not, or None. To be asked before the load, too: after it, the session's transaction may be over."""
        if self.session is not None and (reason := await unfit(self.session, self.since)) is not None:
            return reason
        for transaction, connection in self._seen.items():
            if self._reason is None:
                self._reason = await self._unpublished(transaction, connection)
        return self._reason

    def sees(self, connection: Connection, transaction: Transaction) -> None:
        """Rule 2, for a transaction of a session that nobody has named: asked before its first statement."""
        super().sees(connection, transaction)
        if transaction in self._seen or self._is_own(connection):
            return
        self._seen[transaction] = connection
        try:
            level = known_level(connection) or ask_level(connection)
            self._reason = self._reason or older(connection, transaction, level, self.since)
        except Exception as error:  # noqa: BLE001  # the driver's own
            self._reason = f"{UNTOLD}: {error}"

    def _is_own(self, connection: Connection) -> bool:
        """True if `unfit` asks of it by way of the session."""
        return self.session is not None and connection in connections_of(self.session)

    async def _unpublished(self, transaction: Transaction, connection: Connection) -> str | None:
        """Rule 1 likewise: why its statements may have seen what was not committed by the end of the load."""
        if transaction.wrote or any(changed(session) for session in transaction.sessions):
            return WROTE
        if transaction.undone > self.since:
            return READ_BACK
        if transaction.called and not connection.closed:
            try:
                return WROTE if await greenlet_spawn(has_written, connection) else None
            except Exception as error:  # noqa: BLE001  # the driver's own
                return f"{UNTOLD}: {error}"
        return None


def statement_begins(connection: Connection, transaction: Transaction) -> None:
    """Tell the calls that this code runs inside of."""
    use = _inside.get()
    while use is not None:
        if use.active:
            use.sees(connection, transaction)
        use = use._around


def rollback_begins(connection: Connection, transaction: Transaction) -> None:
    """Whether functions of the database that were called have written: asked while it can be, if a call wants to know.

    Most have not, and who opens a session to read ends it by a rollback.
    """
    if transaction.called and not transaction.wrote and _inside.get() is not None:
        with suppress(Exception):  # the driver's own: then they may have
            transaction.called = has_written(connection)


@contextmanager
def apart() -> Iterator[None]:
    """While inside, this code runs inside of none of the calls around it: it is nobody's part."""
    token = _inside.set(None)
    try:
        with apart_from_scopes():
            yield
    finally:
        _inside.reset(token)
