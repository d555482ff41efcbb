"""Events of cached calls, for hooks, and the counters of each function.

Nothing here imports Redis or a session. Metrics and traces hang on a `Hook`; none is required.
"""

from __future__ import annotations

import logging
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass, field, fields
from time import monotonic
from typing import Literal, Protocol, get_args

logger = logging.getLogger("fastrdb")

UNANSWERED, REPAIRING = "Redis has not answered lately", "a commit that Redis has missed is being repaired"
"""Reasons of a bypass: Redis is away, or was."""

Counted = Literal[
    "near",  # answered from this process
    "hit",  # answered from Redis, within `exp`
    "miss",  # no entry
    "load",  # a load begins: the function is called
    "join",  # answered by another caller's load, after `seconds`
    "fill",  # the result was stored
    "unstored",  # the result was not stored; `reason` says why
    "bypass",  # the call went past the cache; `reason` says why
    "corrupt",  # an entry that cannot be read as the declared type
    "unavailable",  # Redis did not answer
    "invalidation",  # prefixes and keys were invalidated, or put on a transaction
    "outage",  # Redis does not answer: calls go on without it
    "recovery",  # Redis answers again
    "owed",  # an invalidation is pending: reads bypass the cache
    "repair",  # the pending invalidation is done
    "restart",  # Redis came back with other data: reads bypass the cache
    "healing",  # all of that data has been invalidated
    "stale",  # answered from Redis although `exp` is over; `reason` says why
    "early",  # a load began although `exp` is not over
    "failed",  # a load in the background raised; `reason` says what
    "deleted",  # an invalidation has deleted `count` entries under `key`: an event for each prefix, key and table
    "verified",  # an entry was compared with the database, and is the same
    "wrong",  # an entry was not what the database says, and was deleted; `reason` says where
    "refused",  # of those not stored: a row that the result depends on was written meanwhile; `reason` has the table
    "same",  # of those stored: the result is the one that was invalidated, so that was for nothing
    "lead",  # a watcher leads for the database `key`
    "lead_end",  # a watcher that led does so no more; `reason` says why
    "change",  # a watcher has passed on `count` changes of the database `key`, at most `seconds` after their commits
    "lost",  # changes of the database `key` may be missing, so that everything is invalidated; `reason` says why
]
Kind = Literal[
    Counted,
    "loaded",  # a load has ended, in the task in which it began; `reason` is the name of the error that it raised
]


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that happened in a call of a function. Times, sizes and counts make no two events unequal.

    One of the whole cache has the cache's class as its function, and no key; one of a watcher `Watcher` and a database.
    """

    function: str
    """The qualified name of the function."""
    kind: Kind
    """What happened: see `Kind`, which says what each kind means."""
    key: str
    """The key without the namespace. Of an invalidation: what its prefixes begin with, and its keys, with commas.

    Of deleted entries: the head of their prefix and `*`, their keys with commas, or the table that these depended on.
    """
    reason: str = ""
    """Why it happened, in words without any value; "" where there is nothing to say."""
    seconds: float | None = field(default=None, compare=False)
    """How long it took: a load, a wait for another caller's load, Redis, at most a change from outside; else None."""
    size: int | None = field(default=None, compare=False)
    """The size of the entry in bytes, where there is one."""
    count: int = field(default=1, compare=False)
    """How many: keys that were loaded by one call of the function, entries that were deleted, or changes."""


class Hook(Protocol):
    """A function that a `Cache` calls with its events. It must not block the event loop; an error is logged once.

    `Cache.hooks` get each event. `Cache.samplers` get one of 64 hits of each function, no near hit, and each other
    event: so a hit costs less. The number of hits is in `Cache.counts`.
    """

    def __call__(self, event: Event, /) -> None:
        """Take note of `event`."""


def context_without(leaving: Iterable[Callable[[], object]]) -> Context:
    """Return a copy of the running context, for work in the background, in which each of these was called."""
    context = copy_context()
    for leave in leaving:
        context.run(leave)
    return context


@dataclass(frozen=True, slots=True)
class Stats:
    """The number of events of each kind in this process, in the order of `Counted`; `+` adds two of them up.

    `dropped` has those that were deleted by what reached them: a prefix, or the table of a followed write. The greatest
    number comes first. It makes no two of them unequal.
    """

    near: int = 0
    hits: int = 0
    misses: int = 0
    loads: int = 0
    joins: int = 0
    fills: int = 0
    unstored: int = 0
    bypasses: int = 0
    corrupt: int = 0
    unavailable: int = 0
    invalidations: int = 0
    outages: int = 0
    recoveries: int = 0
    owed: int = 0
    repairs: int = 0
    restarts: int = 0
    healings: int = 0
    stale: int = 0
    early: int = 0
    failed: int = 0
    deleted: int = 0
    verified: int = 0
    wrong: int = 0
    refused: int = 0
    same: int = 0
    leads: int = 0
    lead_ends: int = 0
    changes: int = 0
    losses: int = 0
    dropped: Mapping[str, int] = field(default_factory=dict, compare=False)

    def __add__(self, other: Stats) -> Stats:
        counts = {name: getattr(self, name) + getattr(other, name) for name in _FIELDS.values()}
        return Stats(**counts, dropped=_most_first(Counter(self.dropped) + Counter(other.dropped)))

    def counts(self) -> dict[str, int]:
        """Return the number of events of each kind by its name here."""
        return {name: getattr(self, name) for name in _FIELDS.values()}


def _most_first(counter: Counter[str]) -> dict[str, int]:
    return dict(counter.most_common())


_FIELDS: dict[Counted, str] = dict(zip(get_args(Counted), [each.name for each in fields(Stats)][:-1], strict=True))


_INDEX = re.compile(r"\[\d+\]")
_MOST_CAUSES, _OTHERS = 20, "other causes"
_REMEMBERED = 1024
"""So many keys of each function are known by the digest of their latest entry."""
_MANY_REFUSED = 20
_MOST_PREFIXES, _ELSEWHERE = 50, "other prefixes"
_SAMPLED = 64
"""Samplers get one of so many hits. An event for each hit costs a tenth of the hit."""


class Counters:
    """The running counts of one decorated function, and the hooks that are called with its events.

    Attributes:
        hooks, samplers: the lists of the cache: what is added to them later is called as well.
        unsampled: so many hits more, and the samplers get one.
        causes: the reasons for which results were not stored, and how often.
        latest: the reason of the latest result, or None if it was stored.
        prefixes: of the function, each as what it begins with, whether placeholders follow, and its text.
        dropped: how many entries were deleted under each prefix, or for each table.
    """

    __slots__ = (
        *("function", "hooks", "samplers", "unsampled", "counts", "causes", "latest", "prefixes", "dropped"),
        *("_logged_hook", "_logged_refusals", "_filled"),
    )

    def __init__(self, function: str, hooks: Sequence[Hook] = (), samplers: Sequence[Hook] = ()) -> None:
        self.function = function
        self.hooks, self.samplers = hooks, samplers
        self.unsampled = 0
        self.counts: dict[Counted, int] = dict.fromkeys(_FIELDS, 0)
        self.causes: dict[str, int] = {}
        self.latest: str | None = None
        self._logged_hook = self._logged_refusals = False
        self._filled: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self.prefixes: Sequence[tuple[str, bool, str]] = ()
        self.dropped: dict[str, int] = {}

    def count(
        self,
        kind: Counted,
        key: str,
        reason: str = "",
        *,
        seconds: float | None = None,
        size: int | None = None,
        count: int = 1,
    ) -> None:
        """Count an event, and call the hooks with it, if there are any."""
        self.counts[kind] += count
        sampled = bool(self.samplers) and kind != "near" and (kind != "hit" or self.is_sample())
        if self.hooks or sampled:
            self._call(Event(self.function, kind, key, reason, seconds, size, count), sampled=sampled)

    def is_sample(self) -> bool:
        """Return whether the samplers get the hit that may follow. If none does, set `unsampled` to 0."""
        if self.unsampled:
            self.unsampled -= 1
            return False
        self.unsampled = _SAMPLED - 1
        return True

    def hit(self, key: str, seconds: float, size: int, *, sampled: bool) -> None:
        """Count a hit for which `is_sample` was asked before it was read."""
        self.counts["hit"] += 1
        self._call(Event(self.function, "hit", key, "", seconds, size), sampled=sampled)

    def deleted(self, key: str, count: int, seconds: float | None = None) -> None:
        """Count entries that one invalidation has deleted under one prefix, or by their keys."""
        self.counts["deleted"] += count
        if self.hooks or self.samplers:
            self._call(Event(self.function, "deleted", key, "", seconds, None, count))
        prefix, known, bare = key, -1, key.removesuffix("*")
        for head, goes_on, text in self.prefixes:
            if len(head) > known and (bare == head or (goes_on and bare.startswith(head))):
                prefix, known = text, len(head)
        if prefix not in self.dropped and len(self.dropped) >= _MOST_PREFIXES:
            prefix = _ELSEWHERE
        self.dropped[prefix] = self.dropped.get(prefix, 0) + count

    def unstored(self, key: str, reason: str, *, meant: bool = False, size: int | None = None) -> None:
        """Count a result that was not stored. The log gets each cause once, at INFO where that is `meant`."""
        self.count("unstored", key, reason, size=size)
        cause = _INDEX.sub("[...]", reason)
        if cause not in self.causes:
            if len(self.causes) == _MOST_CAUSES:
                cause = _OTHERS
            else:
                level = logging.INFO if meant else logging.WARNING
                logger.log(level, "%s: a result is not stored: %s; each cause is logged once", self.function, reason)
        self.latest = cause
        self.causes[cause] = self.causes.get(cause, 0) + 1

    def refused(self, key: str, reason: str) -> None:
        """Count a result that met a write. The log says once that most results of the function do."""
        self.count("refused", key, reason)
        refused, stored = self.counts["refused"], self.counts["fill"]
        if refused >= _MANY_REFUSED and refused > stored and not self._logged_refusals:
            self._logged_refusals = True
            logger.warning(
                "%s: %d of %d results were not stored, because %s: with auto=False and a short exp more would be",
                *(self.function, refused, refused + stored, reason),
            )

    def stored(self, key: str, raw: bytes, ttl_ms: int) -> None:
        """Note an entry in whose place there was none. Count it if the one before was the same, and is not over."""
        now, digest = monotonic(), hash(raw)
        before, until = self._filled.pop(key, (0, 0.0))
        if before == digest and now < until:
            self.count("same", key)
        self._filled[key] = digest, now + ttl_ms / 1000
        if len(self._filled) > _REMEMBERED:
            self._filled.popitem(last=False)

    def _call(self, event: Event, *, sampled: bool = True) -> None:
        for hook in (*self.hooks, *self.samplers) if sampled else tuple(self.hooks):
            try:
                hook(event)
            except Exception as error:  # noqa: BLE001  # no call and no invalidation may fail for a hook
                if not self._logged_hook:
                    self._logged_hook = True
                    logger.warning("the hook raises %s: this is logged once", type(error).__name__)

    @contextmanager
    def loading(self, keys: Collection[str]) -> Iterator[None]:
        """Report that the function is called for these keys, and then that the call is done."""
        for key in keys:
            self.count("load", key)
        begun, error = monotonic(), ""
        try:
            yield
        except BaseException as raised:
            error = type(raised).__name__
            raise
        finally:
            if self.hooks or self.samplers:
                key, seconds = next(iter(keys)), monotonic() - begun
                self._call(Event(self.function, "loaded", key, error, seconds, count=len(keys)))

    @staticmethod
    def total(each: Iterable[Counters]) -> Stats:
        """Return the sum of many."""
        return sum((counters.snapshot() for counters in each), Stats())

    @staticmethod
    def by_function(each: Iterable[Counters]) -> dict[str, Stats]:
        """Return the sum of those of each name."""
        found: dict[str, Stats] = {}
        for counters in each:
            found[counters.function] = found.get(counters.function, Stats()) + counters.snapshot()
        return found

    def snapshot(self) -> Stats:
        """Return a copy of the counts."""
        counts = {_FIELDS[kind]: count for kind, count in self.counts.items()}
        return Stats(**counts, dropped=_most_first(Counter(self.dropped)))
