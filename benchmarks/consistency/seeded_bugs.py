"""Bugs that can be put into fastrdb, one mechanism taken out each, to see that the run catches them.

They are seeded in the processes of a run only. Which mechanisms there are, and where, is in `tests.races.mechanisms`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import Any

from sqlalchemy import inspect
from sqlalchemy.orm import attributes

from fastrdb.protocol import Busy, Timed
from fastrdb.transactions.state import transaction_of
from tests.races.mechanisms import original, without
from tests.races.seams import Change, Put


@dataclass(frozen=True, slots=True)
class Bug:
    """One mechanism less, or several that make up for each other. `needs`: settings without which it does no harm."""

    what: str
    changes: tuple[Change, ...]
    needs: Mapping[str, Any] = field(default_factory=dict)


def seed(name: str, put: Put = setattr) -> None:
    """Put a bug into this process."""
    for change in BUGS[name].changes:
        change.apply(put)


async def _skip_some(watcher: Any, images: Sequence[Any]) -> None:
    """Take one change in twenty for none."""
    await _hand_over(watcher, [image for image in images if _chance.random() > 0.05])


async def _hand_over_later(watcher: Any, images: Sequence[Any]) -> None:
    """Let the position be stored first."""

    async def later() -> None:
        await asyncio.sleep(0.1)
        await _hand_over(watcher, images)

    task = asyncio.get_running_loop().create_task(later())
    _ending.add(task)
    task.add_done_callback(_ending.discard)


async def _read_behind_the_last(source: Any, position: str | None, images: Any) -> Any:
    """Take it that what was open at the last poll is not committed later."""
    mark, _, since = (position or "").partition(" ")
    if since:
        last = since.split(":")[1]
        position = f"{mark} {last}:{last}:"
    return await _poll(source, position, images)


async def _trust_in_any_case(bound: Any, client: Any) -> None:
    """Ask nobody whether a watcher is alive."""
    bound._health.discard(bound)


_hand_over = original("changes-handed-over")
_poll = original("outbox-by-snapshot")
_chance = Random()
_acquire = original("join-by-token")
_bypass_reason = original("blockers-respected")
_look = original("look-before-write")
_latest: dict[str, str] = {}
_ending = set[asyncio.Task[None]]()


async def _join_by_key(loading: Any, tokens: dict[str, str]) -> Any:
    """Join any load of a key in this process, whatever the lease says."""
    joined, asked = dict[str, Any](), dict[str, str]()
    for key, token in tokens.items():
        other = _latest.get(key)
        if other is not None and other in loading._flights.by_token:
            joined[key] = Busy(other)
        else:
            _latest[key] = asked[key] = token
    return joined | (await _acquire(loading, asked) if asked else {})


def _end_although_unknown(intent: Any) -> None:
    """Take an outcome that nobody knows for a rollback: the barriers come down."""
    task = asyncio.get_running_loop().create_task(intent.end(False))
    _ending.add(task)
    task.add_done_callback(_ending.discard)


def _read_while_owed(store: Any, client: Any) -> str | None:
    """Read although repairs are still to be done."""
    reason: str | None = _bypass_reason(store, client)
    return None if store.has_pending else reason


def _forget_old_values(connection: Any, context: Any, change: Any, following: Iterable[Any]) -> None:
    """Take it that the rows had no other values before than those that WHERE and SET say."""
    for column in _columns(change, following):
        change.looked[column] = change.new.get(column) or frozenset(["-1"])


def _believe_the_session(connection: Any, context: Any, change: Any, following: Iterable[Any]) -> None:
    """Take the values before from the objects of the session; look only where it has none."""
    following = list(following)
    transaction = transaction_of(connection)
    sessions = transaction.sessions if transaction is not None else ()
    for found in [each for session in sessions for each in session.identity_map.values()]:
        table, key = inspect(found).mapper.local_table.name, inspect(found).identity
        if table == change.table and {str(key[0])} == change.old.get("id"):
            for column in _columns(change, following):
                gone = attributes.get_history(found, column).deleted
                change.looked[column] = frozenset([str(gone[0] if gone else getattr(found, column))])
            return
    _look(connection, context, change, following)


async def _read_without_tags(entries: Any, call: Any, keys: Iterable[str]) -> list[Timed | None]:
    """Find entries for a load, and say nothing of what they depend on."""
    found = await call.store.get_tagged(call.client, list(keys))
    return [None if each is None or each.raw is None else Timed(each.raw, each.ttl_ms) for each in found]


def _columns(change: Any, following: Iterable[Any]) -> set[str]:
    """Give the columns of which the statement does not say the values before."""
    columns = {str(column) for each in following for column in each.tag_columns(change.table)}
    return columns - set(change.old)


_RACY = {"faults": ("slow-load", "slow-commit")}
_AUTO: dict[str, Any] = {"auto": True, **_RACY}
_LONG: dict[str, Any] = {"auto": True, "faults": ("long-load",)}
"""Loads that last longer than writers, which begin, commit and end meanwhile."""
_SNAPSHOT = {"database": "postgresql", "isolation": "REPEATABLE READ"}

_OUTSIDE: dict[str, Any] = {"auto": True, "outside": True, "watched": 2.0}

BUGS: dict[str, Bug] = {
    "no-barrier": Bug("a writer bars nothing before its COMMIT", (without("barrier-set"),), _RACY),
    "barrier-unasked": Bug("a reader takes its lease without asking for barriers", (without("barrier-check"),), _RACY),
    "fill-without-lease": Bug(
        "a reader stores although its lease is lost", (without("lease-check", script="fill"),), _RACY
    ),
    "put-without-lease": Bug(
        "a writer stores although its lease is lost",
        (without("lease-check", script="end"),),
        {"faults": ("stall",), "style": "through"},
    ),
    "leases-survive": Bug(
        "a writer's sweep deletes entries and leaves leases", (without("sweep-deletes-leases"),), _RACY
    ),
    "entries-survive": Bug("a writer's sweep deletes leases and leaves entries", (without("sweep-deletes-entries"),)),
    "lease-not-indexed": Bug("a lease is not in the index, so a sweep does not find it", (without("lease-indexed"),)),
    "all-barriers-down": Bug(
        "the end of one writer takes down the barriers of all, and none looks whether its own stood until then",
        (without("barriers-distinguished"), without("barriers-stood")),
        {"faults": ("stall", "slow-load", "slow-commit")},
    ),
    "after-commit": Bug(
        "Redis is told of a write only when it is committed",
        (without("begin-before-commit"),),
        {"faults": ("stall",)},
    ),
    "no-prefixes": Bug(
        "a function's prefixes are not put on the transactions inside it",
        (without("call-covers-commits"),),
        {"faults": ("stall",), "style": "inside"},
    ),
    "unknown-is-rollback": Bug(
        "after a COMMIT whose outcome is unknown the barriers come down",
        (without("unknown-outcome", _end_although_unknown),),
        {"database": "postgresql", "faults": ("late-commit",), "barrier": 5.0},
    ),
    "join-by-key": Bug(
        "a miss joins a load in flight without the token of its lease",
        (without("join-by-token", _join_by_key),),
        _RACY,
    ),
    "own-writes": Bug(
        "a session that has written in its open transaction reads the cache, and fills it",
        (without("rule-1-own-writes"),),
    ),
    "old-snapshot": Bug(
        "what was loaded from a snapshot older than the lease is stored",
        (without("rule-2-old-snapshot"),),
        _SNAPSHOT,
    ),
    "identity-map": Bug(
        "a load is answered by the session's identity map",
        (without("rule-3-identity-lookup"), without("rule-3-fresh-reads")),
    ),
    "snapshot-believed": Bug(
        "what a restarted server has is taken for its own",
        (without("same-server"), without("greeting-judged")),
        {"faults": ("snapshot",)},
    ),
    "no-repair": Bug("what Redis missed is never made up for", (without("repairs"),), {"faults": ("black-hole",)}),
    "no-stamp": Bug("a writer that ends leaves no stamp on its tags", (without("stamp-set"),), _LONG),
    "stamps-unasked": Bug("a fill looks at no stamp of its tags", (without("tag-stamps"),), _LONG),
    "tags-unbarred": Bug(
        "a fill looks at no barrier on its tags",
        (without("tag-barriers"),),
        {"auto": True, "faults": ("stall", "slow-commit")},  # what is read before a COMMIT is stored before the end
    ),
    "lapsed-forgotten": Bug(
        "a barrier that has lapsed while a load was under way counts for no fill",
        (without("lapsed-barriers"),),
        {"auto": True, "faults": ("kill-under-loads",), "writers": 1, "rate": 12.0, "barrier": 1.0},
    ),
    "tags-not-indexed": Bug("an entry is not found by its tags", (without("tag-indexed"),), _AUTO),
    "columns-unnamed": Bug(
        "a writer names only the columns that its process has seen in use", (without("columns-in-use-named"),), _AUTO
    ),
    "told-early": Bug(
        "callers that asked late get what a load has read, although it was not stored",
        (without("late-followers"),),
        {**_LONG, "readers": 1, "callers": 16, "rate": 40.0},  # only callers of one process join each other's loads
    ),
    "no-look": Bug(
        "what rows were before a statement counts only as far as the statement says it",
        (without("look-before-write", _forget_old_values),),
        _AUTO,
    ),
    "history-trusted": Bug(
        "the session is asked what rows were before a statement, and not the database",
        (without("look-before-write", _believe_the_session),),
        {"auto": True, "style": "kept"},
    ),
    "nested-without-tags": Bug(
        "what is found in the cache by a load gives it no tags",
        (without("nested-hits-tagged", _read_without_tags),),
        _AUTO,
    ),
    "change-skipped": Bug(
        "a watcher takes one change in twenty for none", (without("changes-handed-over", _skip_some),), _OUTSIDE
    ),
    "position-first": Bug(
        "a watcher stores its position before Redis has the changes",
        (without("changes-handed-over", _hand_over_later),),
        {**_OUTSIDE, "faults": ("watcher-killed",)},
    ),
    "outbox-by-last": Bug(
        "a watcher reads what began after its last poll, and not what was open then",
        (without("outbox-by-snapshot", _read_behind_the_last),),
        {**_OUTSIDE, "database": "postgresql", "faults": ("slow-commit",)},
    ),
    "watched-unasked": Bug(
        "entries are read however old the heartbeat of the watcher is",
        (without("heartbeat-checked", _trust_in_any_case),),
        {**_OUTSIDE, "faults": ("watchers-killed",)},
    ),
    "read-while-owed": Bug(
        "a process that owes Redis an invalidation reads the cache all the same",
        (without("blockers-respected", _read_while_owed),),
        {"faults": ("black-hole",)},
    ),
}
