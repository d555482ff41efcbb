"""Bugs that can be put into fastrdb, one mechanism taken out each, to see that the run catches them.

They are seeded in the processes of a run only. Most change one line of a Lua script; all that is known here of
fastrdb's insides is in this module.
"""

from __future__ import annotations

import hashlib
import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fastrdb.transport.scripts import Script

Setter = Callable[[Any, str, Any], None]
"""`setattr`, or one that can undo it."""
Apply = Callable[[Setter], None]


@dataclass(frozen=True, slots=True)
class Bug:
    """One mechanism less. `needs` are the settings without which it does no harm."""

    what: str
    apply: Apply
    needs: Mapping[str, Any] = field(default_factory=dict)


class NoSuchPlaceError(RuntimeError):
    """The place of a seeded bug is not there: fastrdb has changed, and this module has to follow."""


def seed(name: str, put: Setter = setattr) -> None:
    """Put a bug into this process."""
    BUGS[name].apply(put)


def _lua(script: str, old: str, new: str) -> Apply:
    """Change a line of a script, wherever the script is kept."""

    def apply(put: Setter) -> None:
        found = 0
        for module in [module for name, module in sorted(sys.modules.items()) if name.startswith("fastrdb.")]:
            for name, value in list(vars(module).items()):
                if isinstance(value, Script) and value.name == script and old in value.text:
                    text = value.text.replace(old, new)
                    put(module, name, Script(script, text, hashlib.sha1(text.encode()).hexdigest()))
                    found += 1
        if not found:
            raise NoSuchPlaceError(f"{script}.lua: {old}")

    return apply


def _python(module: str, path: str, new: Any) -> Apply:
    """Replace what a dotted path inside a module leads to."""

    def apply(put: Setter) -> None:
        owner: Any = importlib.import_module(module)
        *parents, name = path.split(".")
        try:
            for parent in parents:
                owner = getattr(owner, parent)
            getattr(owner, name)
        except AttributeError:
            raise NoSuchPlaceError(f"{module}: {path}") from None
        put(owner, name, new)

    return apply


def _everywhere(module: str, name: str, new: Any) -> Apply:
    """Replace a function in its module, and wherever it was imported to."""

    def apply(put: Setter) -> None:
        old = getattr(importlib.import_module(module), name, None)
        owners = [owner for at, owner in sorted(sys.modules.items()) if at.startswith("fastrdb.")]
        found = [owner for owner in owners if old is not None and vars(owner).get(name) is old]
        if not found:
            raise NoSuchPlaceError(f"{module}: {name}")
        for owner in found:
            put(owner, name, new)

    return apply


def _all(*applies: Apply) -> Apply:
    def apply(put: Setter) -> None:
        for each in applies:
            each(put)

    return apply


# --- what takes the place of a mechanism


def _nothing(*arguments: Any, **options: Any) -> None:
    """Do nothing."""


def _false(*arguments: Any) -> bool:
    return False


async def _fit(session: object, since: int) -> None:
    """Let every snapshot be young enough."""


def _join_by_key(put: Setter) -> None:
    """Whoever misses joins any load of that key in this process, whatever the lease says."""
    from fastrdb.loading.load import Loading  # noqa: PLC0415
    from fastrdb.protocol import Busy  # noqa: PLC0415

    acquire: Any = Loading._acquire
    latest: dict[str, str] = {}

    async def join(loading: Any, tokens: dict[str, str]) -> Any:
        joined, asked = dict[str, Any](), dict[str, str]()
        for key, token in tokens.items():
            other = latest.get(key)
            if other is not None and other in loading._flights.by_token:
                joined[key] = Busy(other)
            else:
                latest[key] = asked[key] = token
        return joined | (await acquire(loading, asked) if asked else {})

    put(Loading, "_acquire", join)


def _end_although_unknown(put: Setter) -> None:
    """An outcome that nobody knows counts as a rollback: the barriers come down."""
    import asyncio  # noqa: PLC0415

    from fastrdb.protocol.intent import Intent  # noqa: PLC0415

    tasks = set()

    def abandon(intent: Any) -> None:
        task = asyncio.get_running_loop().create_task(intent.end(False))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    put(Intent, "abandon", abandon)


def _read_while_owed(put: Setter) -> None:
    """What is owed is repaired, and nobody waits for that."""
    from fastrdb.protocol.store import Store  # noqa: PLC0415

    bypass_reason: Any = Store.bypass_reason

    def owing_is_nothing(store: Any, client: Any) -> str | None:
        reason: str | None = bypass_reason(store, client)
        return None if store.has_pending else reason

    put(Store, "bypass_reason", owing_is_nothing)


_LEASE = "if not may_fill(lease, held) then return 0 end"
_RACY = {"faults": ("slow-load", "slow-commit")}
_SNAPSHOT = {"database": "postgresql", "isolation": "REPEATABLE READ"}

BUGS: dict[str, Bug] = {
    "no-barrier": Bug(
        "a writer bars nothing before its COMMIT",
        _lua("begin", "redis.call('ZADD', barriers, 'GT', ms(now + barrier_ms), ARGV[i])", ""),
        _RACY,
    ),
    "barrier-unasked": Bug(
        "a reader takes its lease without asking for barriers",
        _lua("acquire", "if is_barred then", "if false then"),
        _RACY,
    ),
    "fill-without-lease": Bug("a reader stores although its lease is lost", _lua("fill", _LEASE, ""), _RACY),
    "put-without-lease": Bug(
        "a writer stores although its lease is lost",
        _lua("end", _LEASE, ""),
        {"faults": ("stall",), "style": "through"},
    ),
    "leases-survive": Bug(
        "a writer's sweep deletes entries and leaves leases", _lua("begin", "redis.call('DEL', lease)", ""), _RACY
    ),
    "entries-survive": Bug(
        "a writer's sweep deletes leases and leaves entries",
        _lua("begin", "local deleted = redis.call('UNLINK', key)", "local deleted = 0"),
    ),
    "lease-not-indexed": Bug(
        "a lease is not in the index, so a sweep does not find it",
        _lua("acquire", "put_in_index(index, expiry, entry, tonumber(lease_ms))", ""),
    ),
    "all-barriers-down": Bug(
        "the end of one writer takes down the barriers of all, and none looks whether its own stood until then",
        _all(
            # Not the one that bars nothing, or it would be noticed.
            _lua(
                "end", "redis.call('ZREM', barriers, ARGV[i])", "redis.call('ZREMRANGEBYSCORE', barriers, 0, '(+inf')"
            ),
            _lua("end", "stood = stood and deadline and tonumber(deadline) > now", ""),
        ),
        {"faults": ("stall", "slow-load", "slow-commit")},
    ),
    "after-commit": Bug(
        "Redis is told of a write only when it is committed",
        _python("fastrdb.transactions.listeners", "_begin_works", _nothing),
        {"faults": ("stall",)},
    ),
    "no-prefixes": Bug(
        "a function's prefixes are not put on the transactions inside it",
        _everywhere("fastrdb.transactions.scope", "targets_around", list),
        {"faults": ("stall",), "style": "inside"},
    ),
    "unknown-is-rollback": Bug(
        "after a COMMIT whose outcome is unknown the barriers come down",
        _end_although_unknown,
        {"database": "postgresql", "faults": ("late-commit",), "barrier": 5.0},
    ),
    "join-by-key": Bug("a miss joins a load in flight without the token of its lease", _join_by_key, _RACY),
    "own-writes": Bug(
        "a session that has written in its open transaction reads the cache, and fills it",
        _everywhere("fastrdb.transactions.rules", "wrote", _false),
    ),
    "old-snapshot": Bug(
        "what was loaded from a snapshot older than the lease is stored",
        _everywhere("fastrdb.transactions.rules", "why_not_stored", _fit),
        _SNAPSHOT,
    ),
    "identity-map": Bug(
        "a load is answered by the session's identity map",
        _all(
            _python("fastrdb.transactions.scope", "RunningLoad._hide_identity_maps", _nothing),
            _everywhere("fastrdb.transactions.scope", "fresh_reads", _nothing),
        ),
    ),
    "snapshot-believed": Bug(
        "what a restarted server has is taken for its own",
        _all(
            _lua("acquire", "return redis.call('ZSCORE', trusted, id) and true", "return true"),
            _lua("fill", "return redis.call('ZSCORE', trusted, id) and true", "return true"),
            _python("fastrdb.protocol.trust", "Trust.distrust", _nothing),
        ),
        {"faults": ("snapshot",)},
    ),
    "no-repair": Bug(
        "what Redis missed is never made up for",
        _python("fastrdb.protocol.intent", "Repairs.add", _nothing),
        {"faults": ("black-hole",)},
    ),
    "read-while-owed": Bug(
        "a process that owes Redis an invalidation reads the cache all the same",
        _read_while_owed,
        {"faults": ("black-hole",)},
    ),
}
