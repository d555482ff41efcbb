"""Bugs that can be put into fastrdb, one mechanism taken out each, to see that the run catches them.

They are seeded in the processes of a run only. Which mechanisms there are, and where, is in `tests.races.mechanisms`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fastrdb.protocol import Busy
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


_acquire = original("join-by-token")
_bypass_reason = original("blockers-respected")
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


_RACY = {"faults": ("slow-load", "slow-commit")}
_SNAPSHOT = {"database": "postgresql", "isolation": "REPEATABLE READ"}

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
    "read-while-owed": Bug(
        "a process that owes Redis an invalidation reads the cache all the same",
        (without("blockers-respected", _read_while_owed),),
        {"faults": ("black-hole",)},
    ),
}
