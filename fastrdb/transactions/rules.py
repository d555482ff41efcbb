"""What the state of a session allows a cached call to do: read the cache, and fill it.

The five rules of the protocol, and nothing else. `transactions` knows the facts, `loads` asks.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import (
    DBAPIError,
    InterfaceError,
    InvalidRequestError,
    MultipleResultsFound,
    NoResultFound,
    OperationalError,
)
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import Session
from sqlalchemy.util import greenlet_spawn

from .drivers import ask_level, has_written, known_level, sqlite_driver, streams
from .state import Transaction, connections_of, state_of, transaction_of, undone_since
from .uses import changed

WROTE = "the session has written in its open transaction"
UNTOLD = "the database does not tell the state of the transaction"
READ_BACK = "the session has read what it had written, and rolled it back"
_CURRENT = ("READ COMMITTED", "AUTOCOMMIT")  # levels at which a statement sees all that is committed by then
_UNREACHABLE = (
    "08",
    "53",
    "57P",
)  # SQLSTATE: connection exception, insufficient resources, shutting down or not yet up


def sync_session(session: object) -> Session | None:
    """The `Session` inside an `AsyncSession` or a scoped one; None for what is not SQLAlchemy's."""
    if isinstance(session, AsyncSession):
        return session.sync_session
    if isinstance(session, async_scoped_session):
        found: Session = session().sync_session
        return found
    return None


def plain_session(session: object) -> Session | None:
    """The `Session` inside an `AsyncSession` under which statements read what they say; None for all else."""
    found = session.sync_session if isinstance(session, AsyncSession) else None
    return found if found is not None and schema_map(found) is None else None


def wrote(session: Session) -> bool:
    """Rule 1: True if its open transaction has written, flushed or not. Then the cache is neither read nor filled."""
    # Adding, changing and deleting objects begins one. This is `has_transaction`, without a call: it is felt on a hit.
    if not session.in_transaction() and (not isinstance(bind := session.bind, Connection) or not bind.in_transaction()):
        return False
    if changed(session) or state_of(session).declared:
        return True
    return any(found.wrote for c in connections_of(session) if (found := transaction_of(c)))


def has_transaction(session: Session) -> bool:
    """True if a commit may follow that what is done now must wait for."""
    return session.in_transaction() or (isinstance(session.bind, Connection) and session.bind.in_transaction())


async def why_not_stored(session: Session, since: int) -> str | None:
    """Rules 1 and 2: why what was loaded after the point `since` must not be stored, or None if it may.

    A transaction that was open at `since`, when the lease was granted, may look at an older snapshot.
    """
    if wrote(session):
        return WROTE
    if undone_since(session, since):
        return READ_BACK
    for connection in connections_of(session):
        if connection.closed:
            continue
        transaction = transaction_of(connection)
        try:
            level = known_level(connection)
            if level is None:
                level = await greenlet_spawn(ask_level, connection)
            if transaction is not None and transaction.called and await greenlet_spawn(has_written, connection):
                return WROTE
        except Exception as error:  # noqa: BLE001  # the driver's own: a failed transaction, say, answers nothing
            return f"{UNTOLD}: {error}"
        if (old := older(connection, transaction, level, since)) is not None:
            return old
    return None


def older(connection: Connection, transaction: Transaction | None, level: str, since: int) -> str | None:
    """Rule 2: why a statement on `connection` may be answered from before `since`."""
    if level == "READ UNCOMMITTED":
        return "READ UNCOMMITTED sees what may never be committed"
    driver = sqlite_driver(connection)
    if driver is not None and streams(connection, since):
        return "a result that is still being read holds an older snapshot"
    if level in _CURRENT or (transaction is not None and transaction.order > since):
        return None
    if driver is not None and not driver.in_transaction:  # it sends BEGIN late, or never: see sqlite3's manual
        return None
    return f"the session's snapshot ({level}) may be older than the lease"


def schema_map(session: Session) -> dict[str, str | None] | None:
    """Rule 5: the `schema_translate_map` of the session or of its engine, which decides what a statement reads."""
    options: Any = getattr(session, "execution_options", None)  # SQLAlchemy 2.1
    found = options.get("schema_translate_map") if options else None
    bind = session.bind
    if found is None and bind is not None and (own := bind.get_execution_options()):
        found = own.get("schema_translate_map")
    return dict(found) if found else None


def missing_row(error: BaseException) -> bool:
    """True for SQLAlchemy's NoResultFound, which `negative_exp` may cache."""
    return isinstance(error, NoResultFound)


def session_s_own(error: BaseException) -> bool:
    """True if it is about how a session was used, or left, and not about what is in the database.

    A session whose flush has failed, or one that is closed for good: whoever has another is not concerned.
    """
    return isinstance(error, InvalidRequestError) and not isinstance(error, NoResultFound | MultipleResultsFound)


def unreachable(error: BaseException) -> bool:
    """True if the database could not be reached: then `fail_safe` may fall back on an old value.

    That is: no connection to be had (an OSError of the driver, the pool's TimeoutError, an error before any statement
    was sent), or one that was lost. An answer of the database is none of these, whatever the class of its error: a
    missing column is an OperationalError on some of them.
    """
    if isinstance(error, OSError | PoolTimeout):
        return True
    if not isinstance(error, DBAPIError):  # the driver's own, which SQLAlchemy 2.0 does not translate when connecting
        return str(getattr(error, "sqlstate", "")).startswith(_UNREACHABLE)
    connecting = error.statement is None and (
        isinstance(error, OperationalError | InterfaceError) or type(error) is DBAPIError
    )
    return error.connection_invalidated or connecting


def no_result(message: str) -> NoResultFound:
    """The error of a row that is known to be missing."""
    return NoResultFound(message)
