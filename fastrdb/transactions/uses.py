"""Which sessions a task uses, so that a call finds those that it does not name.

A function may change an object of a session that it reaches through its instance, or through nothing but the object;
the session's flush, and its commit, come when the call is over.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from contextlib import suppress
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

from sqlalchemy.orm import Session

_used: WeakKeyDictionary[asyncio.Task[Any], WeakSet[Session]] = WeakKeyDictionary()


def changed(session: Session) -> bool:
    """True if it has changes that no statement has told the database of."""
    return bool(session.new or session.deleted or session.dirty)


def used_here() -> Iterable[Session]:
    """The sessions that this task has used."""
    try:
        task = asyncio.current_task()
    except RuntimeError:  # no loop is running
        return ()
    return _used.get(task, ()) if task is not None else ()


def use(session: Session) -> None:
    """Note that this task uses the session."""
    with suppress(RuntimeError):  # no loop is running
        if (task := asyncio.current_task()) is not None:
            _used.setdefault(task, WeakSet()).add(session)
