"""What is wrong with an answer, told from the history of what was committed. Pure: no I/O, no clock.

Moments are nanoseconds of CLOCK_MONOTONIC, which all processes of one machine share. A version of a row is known to be
committed from the moment when COMMIT was answered, and acknowledged from the moment when the writer's call returned.
An answer is stale if a newer version of its row had been acknowledged before it was asked for. It is behind if a newer
one was only known to be committed by then: the contract's C1 forbids that too.

With `--auto` rows move, go and come back. A version says where its row is then, and an answer may say no more than that
a row is in a place, or is not: it is judged as the newest version that it fits.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate
from typing import NamedTuple

PROCESS_BITS = 32
PRESENT, ABSENT = (1 << 64) - 2, (1 << 64) - 1
"""In place of an attempt: the answer says that the row is in a place, or is not, and nothing else."""


def process_of(attempt: int) -> int:
    """Give the process that made a write: its number is in the upper half of the attempt's."""
    return attempt >> PROCESS_BITS


@dataclass(frozen=True, slots=True)
class Write:
    """One version of a row that the database has. `committed`, `acked` are None where nobody was told.

    `begun`: neither Redis nor the database had been told of the COMMIT before. `told`: Redis has been, or could not be;
    None for a cache that is told afterwards.
    """

    row: int
    version: int
    attempt: int
    begun: int
    told: int | None = None
    committed: int | None = None
    acked: int | None = None
    place: int | None = None
    """Where the row is from then on, with `--auto`."""

    @property
    def says(self) -> int:
        """Give what an answer has beside the attempt."""
        return self.version if self.place is None else self.place

    @property
    def known(self) -> int | None:
        """The first moment at which it was known to be committed."""
        return self.acked if self.committed is None else self.committed


class Read(NamedTuple):
    """One row of an answer. `started`: nothing that it may be made of was asked for before.

    `version`: with `--auto` the place that the answer says the row is in, or is not.
    """

    row: int
    version: int
    attempt: int
    started: int
    ended: int
    process: int = 0


@dataclass(frozen=True, slots=True)
class Outage:
    """Some process could not reach Redis from `start` to `end`."""

    start: int
    end: int


class Kind(Enum):
    """What is wrong with an answer, the worst first."""

    FUTURE = "from the future"
    STALE = "stale"
    BEHIND = "behind"
    MISSED = "while Redis missed a commit"
    NEAR = "within the heartbeat"
    BOUND = "within the bound"
    FINE = "fine"

    @property
    def wrong(self) -> bool:
        """Whether no contract allows it."""
        return self in (Kind.FUTURE, Kind.STALE, Kind.BEHIND)


ORDER = {kind: place for place, kind in enumerate(Kind)}


class Verdict(NamedTuple):
    """What is wrong, and for how long (ns) the answer had been out of date when it was asked for."""

    kind: Kind
    age: int = 0


FINE = Verdict(Kind.FINE)


class Timeline:
    """From when on which version of one row was known: moments, and the newest version known at each."""

    def __init__(self, known: Iterable[tuple[int, int]]) -> None:
        ordered = sorted(known)
        self._moments = [moment for moment, _ in ordered]
        self._newest = list(accumulate((version for _, version in ordered), max))

    def outdated(self, version: int, moment: int) -> int | None:
        """Give the first moment, not after `moment`, at which a newer version was known."""
        place = bisect_right(self._newest, version)
        if place == len(self._moments) or self._moments[place] > moment:
            return None
        return self._moments[place]


@dataclass(frozen=True, slots=True)
class Rules:
    """What the contract lets pass. Durations are nanoseconds.

    A commit that Redis could not be told of, being out of reach, is known to its own process only, until `repair` after
    the outage: others' answers are told apart as MISSED. So is one that began before its process could `notice` that
    the outage was over. With `outages` left empty nothing is. What a near cache answers may be out of date by
    `heartbeat`, as to the commits of other processes. With watchers any answer may be out of date by `bound`.
    """

    outages: Sequence[Outage] = ()
    repair: int = 0
    heartbeat: int = 0
    notice: int = 0
    bound: int = 0


class Fitting:
    """The versions of one row that fit an answer without an attempt."""

    def __init__(self, writes: Iterable[Write]) -> None:
        self._writes = sorted(writes, key=lambda write: write.version)
        begun = accumulate((write.begun for write in reversed(self._writes)), min)
        self._begun = list(begun)[::-1]  # the first of each version and of all that are newer

    def newest(self, moment: int) -> Write | None:
        """Give the newest one that may have been seen at a moment."""
        place = bisect_right(self._begun, moment)
        return self._writes[place - 1] if place else None


class History:
    """All that was committed, and what was said of it."""

    def __init__(self, writes: Iterable[Write], rules: Rules | None = None) -> None:
        self._rules = Rules() if rules is None else rules
        self._rows: dict[int, list[Write]] = {}
        self._attempts: dict[tuple[int, int], Write] = {}
        for write in writes:
            self._rows.setdefault(write.row, []).append(write)
            self._attempts[write.row, write.attempt] = write
        self._fitting: dict[tuple[int, int, int], Fitting] = {}
        self._acked = {row: Timeline((w.acked, w.version) for w in of if w.acked) for row, of in self._rows.items()}
        self._known = {row: Timeline((w.known, w.version) for w in of if w.known) for row, of in self._rows.items()}

    def judge(self, read: Read, *, near: bool = False) -> Verdict:
        """Say what is wrong with one row of an answer; `near`: the process has it from its own near cache."""
        write = self._meant(read)
        if write is None:
            return Verdict(Kind.FUTURE)
        known = self._known[read.row].outdated(write.version, read.started)
        if known is None:
            return FINE
        acked = self._acked[read.row].outdated(write.version, read.started)
        age = read.started - (known if acked is None else acked)
        if self._rules.bound and age <= self._rules.bound:
            return Verdict(Kind.BOUND, age)
        if near and self._rules.heartbeat and age <= self._rules.heartbeat and not self._own(read):
            return Verdict(Kind.NEAR, age)
        if self._missed(read):
            return Verdict(Kind.MISSED, age)
        return Verdict(Kind.BEHIND if acked is None else Kind.STALE, age)

    def answer(self, reads: Iterable[Read], *, near: bool = False) -> Verdict:
        """Say what is wrong with an answer of several rows: the worst of them counts, then the oldest."""
        verdicts = (self.judge(read, near=near) for read in reads)
        return min(verdicts, key=lambda verdict: (ORDER[verdict.kind], -verdict.age), default=FINE)

    def diverges(self, read: Read) -> bool:
        """Tell whether a row of an answer differs from its last version."""
        last = max(self._rows[read.row], key=lambda write: write.version)
        if read.attempt in (PRESENT, ABSENT):
            return (last.says == read.version) is (read.attempt == ABSENT)
        return last.attempt != read.attempt

    def _meant(self, read: Read) -> Write | None:
        """Give the version that an answer has of a row; None if there was none like it by then."""
        if read.attempt in (PRESENT, ABSENT):
            kind = (read.row, read.version, read.attempt)
            if kind not in self._fitting:
                self._fitting[kind] = Fitting(self._like(read))
            return self._fitting[kind].newest(read.ended)
        write = self._attempts.get((read.row, read.attempt))
        return write if write and write.says == read.version and write.begun <= read.ended else None

    def _like(self, read: Read) -> Iterator[Write]:
        """Give the versions of a row that are in a place, or are not."""
        for write in self._rows.get(read.row, ()):
            if (write.says == read.version) is (read.attempt == PRESENT):
                yield write

    def _missed(self, read: Read) -> bool:
        """Tell whether Redis may have missed each newer commit known by then, and may have missed it still.

        One that it surely heard of has deleted whatever was there, so what is older than that one is stale. The process
        that made a commit knows of it, so its own reads have no excuse.
        """
        return not self._own(read) and all(self._unheard(write, read.started) for write in self.newer(read))

    def _own(self, read: Read) -> bool:
        """Tell whether the process itself made a newer commit."""
        return any(process_of(write.attempt) == read.process for write in self.newer(read))

    def newer(self, read: Read) -> list[Write]:
        """Give the newer commits known by then."""
        meant = self._meant(read)
        rows = self._rows.get(read.row, ())
        version = meant.version if meant else read.version
        return [w for w in rows if w.version > version and w.known and w.known <= read.started]

    def _unheard(self, write: Write, moment: int) -> bool:
        told = write.told or write.acked or write.known or write.begun
        return any(
            write.begun <= outage.end + self._rules.notice
            and told >= outage.start
            and moment <= outage.end + self._rules.repair
            for outage in self._rules.outages
        )
