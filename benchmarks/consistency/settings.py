"""What a run is told: one frozen record, which goes to every process."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from benchmarks.consistency.workload import STYLES, Style

Protocol = Literal["fastrdb", "naive", "cashews"]
DatabaseKind = Literal["sqlite", "postgresql", "mariadb"]
STALL = 0.8
"""Seconds for which a process stands still: longer than the deadline of an operation, shorter than the barrier."""
LATE = 2.5
"""Seconds by which a COMMIT is late: longer than drivers wait for a cancelled one, shorter than the barrier."""
GATHERING = 0.3
"""Seconds in which loads begin that are to end only when a barrier has lapsed; and for which they last longer still."""
HEARTBEAT = 1.0
"""Seconds by which an answer from a near cache may be out of date if the push channel dies silently."""


class SettingsError(ValueError):
    """A run that cannot be; the message names the option."""


@dataclass(frozen=True, slots=True)
class Settings:
    """One run. Durations are seconds."""

    seconds: float = 60.0
    protocol: Protocol = "fastrdb"
    database: DatabaseKind = "postgresql"
    isolation: str | None = None
    faults: tuple[str, ...] = ()
    readers: int = 2
    writers: int = 2
    callers: int = 8
    """Readers at once in each process."""
    rate: float = 120.0
    """Writes a second, of all processes together."""
    auto: bool = False
    """A cache that follows, and writers that invalidate nothing by hand."""
    outside: bool = False
    """Writers without a cache, and watchers."""
    watched: float | None = None
    """`Cache(watched=)`; None for no such bound."""
    bound: float = 3.0
    """With `outside` and without `watched`: an answer may be out of date for so long."""
    spread: bool = False
    """10,000 rows, all alike, instead of hot and cold ones."""
    near: bool = False
    cluster: bool = False
    sentinel: bool = False
    """A master and a replica, and three sentinels that watch them."""
    pool: int | None = None
    """Connections to the database of each process; None for enough."""
    on_error: Literal["bypass", "raise"] = "bypass"
    timeout: float = 0.25
    barrier: float = 5.0
    """Longest COMMIT that is covered."""
    lease: float = 5.0
    """Longest load that is covered."""
    repair: float = 2.0
    """So long after an outage what it made Redis miss must be in force again."""
    style: Style | None = None
    """The one way to write; None for all of them."""
    bug: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what makes no sense, before anything is started."""
        for name in ("seconds", "rate", "timeout", "barrier", "repair", "bound"):
            if getattr(self, name) <= 0:
                raise SettingsError(f"--{name} {getattr(self, name)}: must be more than 0")
        for name in ("readers", "writers", "callers", "pool"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise SettingsError(f"--{name} {getattr(self, name)}: must be at least 1")
        styles = tuple(STYLES["auto" if self.auto else "by hand"])
        if self.style not in (None, *styles):
            raise SettingsError(f"--style {self.style}: none of {', '.join(styles)}")
        if self.auto and (self.protocol != "fastrdb" or self.spread):
            raise SettingsError("--auto: is of fastrdb alone, and without --spread")
        self._check_outside()
        self._check_faults()
        if self.protocol != "fastrdb" and self.bug is not None:
            raise SettingsError(f"--seed-bug {self.bug}: bugs are seeded into fastrdb, not into {self.protocol}")
        if self.protocol == "naive" and self.near:
            raise SettingsError("--near: the naive protocol has no near cache")

    def _check_outside(self) -> None:
        """Refuse watchers where nothing is watched, and bounds without watchers."""
        if self.outside and not self.auto:
            raise SettingsError("--outside: needs --auto, which says what entries depend on")
        if self.watched is not None and (self.watched <= 0 or not self.outside):
            raise SettingsError(f"--watched {self.watched}: must be more than 0, and needs --outside")
        if not self.outside and (needing := {"watcher-killed", "watchers-killed"} & set(self.faults)):
            raise SettingsError(f"--faults {', '.join(sorted(needing))}: needs --outside")
        if self.watched is None and "watchers-killed" in self.faults:
            raise SettingsError("--faults watchers-killed: needs --watched, without which nothing bounds what is stale")

    def _check_faults(self) -> None:
        """Refuse faults that this database cannot have, or that would outlast the barrier."""
        if self.database == "mariadb" and "slow-commit" in self.faults:
            raise SettingsError(f"--faults slow-commit: no COMMIT can be made slow on {self.database}")
        if self.database == "sqlite" and "late-commit" in self.faults:
            raise SettingsError("--faults late-commit: sqlite has no network for a COMMIT to be late on")
        if self.sentinel and self.cluster:
            raise SettingsError("--sentinel --cluster: a cluster has no sentinels")
        if not self.sentinel and (needing := {"failover", "master-killed"} & set(self.faults)):
            raise SettingsError(f"--faults {', '.join(sorted(needing))}: needs --sentinel")
        if self.barrier < LATE + 1 and "late-commit" in self.faults:
            raise SettingsError(f"--barrier {self.barrier}: must be {LATE + 1} or more, for COMMIT is late by {LATE}")
        if self.barrier <= STALL and {"stall", "lost-barriers"} & set(self.faults):
            raise SettingsError(f"--barrier {self.barrier}: must be more than {STALL}, for which a writer stalls")

    @property
    def allowed(self) -> float:
        """Seconds for which an answer may be out of date."""
        if not self.outside:
            return 0.0
        return self.bound if self.watched is None else self.watched

    @property
    def quiet(self) -> float:
        """How long it takes until nothing that was begun can be in force any more."""
        return max(self.barrier, self.repair) + 1.0
