"""Which sessions a task uses, so that a call finds those that it does not name.

A function may change an object of a session that it reaches through its instance, or through nothing but the object;
the session's flush, and its commit, come when the call is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy import event
from sqlalchemy.orm import ORMExecuteState, Session, SessionTransaction

from .state import Scope, scopes

_used: WeakKeyDictionary[asyncio.Task[Any], WeakSet[Session]] = WeakKeyDictionary()


def changed(session: Session) -> bool:
    """True if it has changes that no statement has told the database of."""
    return bool(session.new or session.deleted or session.dirty)


def join_changed(scope: Scope) -> None:
    """Put the prefixes of a call on the sessions that have changes when it is over; more than its own at worst."""
    for session in {*scope.seen, *used_here()}:
        if session.in_transaction() and changed(session):
            scope.join(session)


def used_here() -> Iterable[Session]:
    """The sessions that this task has used."""
    task = _task()
    return _used.get(task, ()) if task is not None else ()


@event.listens_for(Session, "after_transaction_create")
def _on_transaction(session: Session, transaction: SessionTransaction) -> None:
    if transaction.parent is None:  # also begun by the change of an attribute
        _use(session)


@event.listens_for(Session, "do_orm_execute")
def _on_execute(state: ORMExecuteState) -> None:
    _use(state.session)


def _use(session: Session) -> None:
    task = _task()
    if task is not None:
        _used.setdefault(task, WeakSet()).add(session)
    for scope in scopes():  # tasks that the call has started know it, too
        scope.seen.add(session)


def _task() -> asyncio.Task[Any] | None:
    try:
        return asyncio.current_task()
    except RuntimeError:  # no loop is running
        return None
