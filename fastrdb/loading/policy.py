"""The options of a decorated function, checked once, and what follows for an entry. Pure: no clock, no chance.

Durations come in as seconds, `float` or `timedelta`, and are kept as milliseconds, the unit of Redis.

An entry is kept for longer than `exp` if `stale` or `fail_safe` ask for that. The entry has no time in it: its age
follows from its TTL in Redis, less the time that it is kept beyond `exp`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any

from fastrdb.errors import OptionError
from fastrdb.options import Seconds, seconds, share, synchronous

_WEIGHT = 1 / 8  # of the latest load in the running mean: that of TCP's estimate of round trips (RFC 6298)


class Decision(Enum):
    """The ways to treat an entry of some age."""

    FRESH = auto()
    """Within `exp`: serve the entry."""
    EARLY = auto()
    """Within `exp`, and this caller is chosen to reload the entry before `exp` ends."""
    STALE = auto()
    """Past `exp` and within `stale`: serve the entry, and have it reloaded in the background."""
    OVER = auto()
    """Past both: load. `fail_safe` may still fall back on the entry."""


@dataclass(frozen=True, slots=True)
class Policy:
    """The times that results of one function live, and the choice of those that are stored."""

    exp_ms: int
    jitter: float = 0.0
    negative_ms: int | None = None
    wait: float = 5.0
    cache_if: Callable[[Any], bool] | None = None
    stale_ms: int = 0
    fail_safe_ms: int = 0
    early: float = 0.0
    session_factory: Callable[[], Any] | None = None
    verify: float = 0.0

    @classmethod
    def of(
        cls,
        owner: str,
        *,
        exp: Seconds,
        jitter: float = 0.0,
        negative_exp: Seconds | None = None,
        wait: Seconds = 5.0,
        cache_if: Callable[[Any], bool] | None = None,
        stale: Seconds = 0,
        fail_safe: Seconds = 0,
        early: float = 0.0,
        session_factory: Callable[[], Any] | None = None,
        verify: float = 0.0,
    ) -> Policy:
        """Check the options of `owner`. Raises OptionError."""
        if not _number(jitter) or not 0 <= jitter < 1:
            raise OptionError(f"{owner}: jitter={jitter!r} must be a fraction of exp: 0 <= jitter < 1")
        if not _number(early) or not 0 <= early < math.inf:
            raise OptionError(f"{owner}: early={early!r} must be a number of at least 0: XFetch's beta, usually 1")
        made = cls(
            verify=share(verify, name="verify", owner=owner),
            exp_ms=_ms(seconds(exp, name="exp", owner=owner)),
            jitter=float(jitter),
            negative_ms=None if negative_exp is None else _ms(seconds(negative_exp, name="negative_exp", owner=owner)),
            wait=seconds(wait, name="wait", owner=owner, zero=True),
            cache_if=synchronous(cache_if, name="cache_if", owner=owner, use="a function of the result"),
            stale_ms=_ms(seconds(stale, name="stale", owner=owner, zero=True)),
            fail_safe_ms=_ms(seconds(fail_safe, name="fail_safe", owner=owner, zero=True)),
            early=float(early),
            session_factory=session_factory,
        )
        made._check_factory(owner)
        return made

    def _check_factory(self, owner: str) -> None:
        factory: object = self.session_factory
        if factory is None:
            return
        use = (
            "a function that returns an AsyncSession, or an async context manager of one: an async_sessionmaker, say, "
            "or an async generator function under contextlib.asynccontextmanager"
        )
        synchronous(factory, name="session_factory", owner=owner, use=use)
        if not self.stale_ms and not self.early and not self.verify:
            raise OptionError(
                f"{owner}: session_factory= is for loads in the background: there are none without stale=, early= or "
                "verify="
            )

    @property
    def timed(self) -> bool:
        """True if the age of an entry matters."""
        return bool(self.stale_ms or self.fail_safe_ms or self.early)

    @property
    def background(self) -> bool:
        """True if reloads run in the background, with a session of their own if the function takes one."""
        return self.stale_ms > 0 or self.session_factory is not None

    def ttl_ms(self, *, negative: bool, random: float) -> int:
        """Return for how many milliseconds to keep an entry. `random` in [0, 1) shortens `exp` by up to `jitter`."""
        whole = self.negative_ms if negative and self.negative_ms is not None else self.exp_ms
        return max(1, round(whole * (1 - self.jitter * random))) + self._beyond_ms(negative)

    def left_ms(self, ttl_ms: int, *, negative: bool) -> float:
        """Return what is left of an entry's `exp` when Redis keeps it for another `ttl_ms`; once over, at most 0."""
        return math.inf if ttl_ms < 0 else ttl_ms - self._beyond_ms(negative)

    def decide(self, left_ms: float, *, load_ms: float, random: float) -> Decision:
        """Return what to do with an entry that has `left_ms` of its `exp` left.

        `load_ms` is the time that a load takes, and `random` in (0, 1] decides which caller reloads early: XFetch, of
        Vattani et al., "Optimal probabilistic cache stampede prevention", VLDB 2015.
        """
        if left_ms > 0:
            return Decision.EARLY if left_ms <= -math.log(random) * self.early * load_ms else Decision.FRESH
        return Decision.STALE if left_ms > -self.stale_ms else Decision.OVER

    def falls_back(self, left_ms: float) -> bool:
        """Return whether the entry may be served because the database cannot be reached."""
        return left_ms > -self.fail_safe_ms

    def _beyond_ms(self, negative: bool) -> int:
        """Return how long an entry is kept past its `exp`. A negative entry is not: there is nothing to serve."""
        return 0 if negative and self.negative_ms is not None else max(self.stale_ms, self.fail_safe_ms)


class Pace:
    """The time that loads of one function take: a running mean in milliseconds, 0 before the first."""

    __slots__ = ("ms",)

    def __init__(self) -> None:
        self.ms = 0.0

    def took(self, ms: float) -> None:
        """Take another load into account."""
        self.ms = self.ms + (ms - self.ms) * _WEIGHT if self.ms else ms


def whole_ms(left_ms: float) -> int:
    """Return the rest of a life in whole milliseconds, -1 for one without end, as PTTL does."""
    return -1 if left_ms == math.inf else int(left_ms)


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _ms(number: float) -> int:
    return max(1, round(number * 1000)) if number else 0
