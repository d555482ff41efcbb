"""Tells when a COMMIT has returned, which SQLAlchemy has no event for.

Its `commit` event comes before, its session's `after_commit` knows nothing of connections. So the dialect's own method
is asked: the one place where each COMMIT of an engine goes through, and comes back from.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from sqlalchemy import Connection
from sqlalchemy.engine import Dialect

from .state import Transaction, transaction_of

_SENT = "fastrdb.sent"  # in `Connection.info`, which belongs to the driver's connection
_watched: WeakSet[Dialect] = WeakSet()


def watch(connection: Connection, transaction: Transaction, told: Callable[[Transaction], None]) -> None:
    """Have `told` called when the COMMIT that `connection` is about to send for `transaction` has returned."""
    connection.info[_SENT] = transaction
    dialect = connection.dialect
    if dialect in _watched:
        return
    _watched.add(dialect)
    do_commit, do_commit_twophase = dialect.do_commit, dialect.do_commit_twophase

    def commit(dbapi_connection: Any) -> None:
        do_commit(dbapi_connection)
        sent = getattr(dbapi_connection, "info", {}).pop(_SENT, None)
        if sent is not None:
            told(sent)

    def commit_twophase(connection: Connection, xid: Any, is_prepared: bool = True, recover: bool = False) -> None:
        do_commit_twophase(connection, xid, is_prepared, recover)
        if connection.info.pop(_SENT, None) is not None and (sent := transaction_of(connection)) is not None:
            told(sent)

    dialect.do_commit = commit  # type: ignore[method-assign]
    dialect.do_commit_twophase = commit_twophase  # type: ignore[method-assign]
