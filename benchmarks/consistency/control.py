"""What the controller shares with its processes: the plan of the run, and a few numbers in memory, without locks.

A lock would stay held by a process that is killed.
"""

from __future__ import annotations

import ctypes
import math
from dataclasses import dataclass
from multiprocessing.context import BaseContext
from pathlib import Path
from time import monotonic
from typing import Any, Literal

from benchmarks.consistency.address import Address
from benchmarks.consistency.settings import Settings
from benchmarks.consistency.workload import Workload


@dataclass(frozen=True, slots=True)
class Plan:
    """What every process is told."""

    settings: Settings
    workload: Workload
    url: str
    folder: Path


Sentence = Literal["kill", "stall", "delay", "kill late"]
_SENTENCES: dict[int, Sentence] = {1: "kill", 2: "stall", 3: "delay", 4: "kill late"}


class Control:
    """When the run is, what is to happen to which process at its next COMMIT, and whether loads may end.

    Moments are seconds of CLOCK_MONOTONIC.
    """

    def __init__(self, context: BaseContext, settings: Settings) -> None:
        self._began: Any = context.RawValue(ctypes.c_double, math.inf)
        self._seconds, self._quiet = settings.seconds, settings.quiet
        self._victim: Any = context.RawValue(ctypes.c_longlong, -1)
        self._sentence: Any = context.RawValue(ctypes.c_int, 0)
        self._unwell: Any = context.RawValue(ctypes.c_double, 0.0)
        self._late: Any = context.RawValue(ctypes.c_double, 0.0)
        self._holds: Any = context.RawValue(ctypes.c_bool, False)

    def begin(self) -> None:
        """Begin: all processes are ready."""
        self._began.value = monotonic()

    @property
    def began(self) -> float:
        """When it began; infinity before."""
        return float(self._began.value)

    @property
    def ends(self) -> float:
        """When writers and readers stop."""
        return self.began + self._seconds

    @property
    def audit(self) -> float:
        """From when on nothing that was begun can be in force: whatever is read must equal the database."""
        return self.ends + self._quiet

    def condemn(self, process: int, sentence: Sentence) -> None:
        """Have it happen to a process: its end, a standstill, or a COMMIT that arrives late."""
        self._sentence.value = next(code for code, name in _SENTENCES.items() if name == sentence)
        self._victim.value = process

    def pardon(self) -> None:
        """Have it happen to nobody."""
        self._victim.value = -1

    def sentence(self, process: int) -> Sentence | None:
        """Tell a process what happens to it now. No end while it may owe Redis something, which would be lost."""
        if self._victim.value != process:
            return None
        sentence = _SENTENCES[self._sentence.value]
        return None if sentence in ("kill", "kill late") and not self.calm else sentence

    @property
    def holds_loads(self) -> bool:
        """Whether loads that have read do not end for now."""
        return bool(self._holds.value)

    @holds_loads.setter
    def holds_loads(self, held: bool) -> None:
        self._holds.value = held

    def unwell(self, until: float) -> None:
        """From now on until this moment, Redis may have missed something."""
        self._unwell.value = until

    def late(self, until: float) -> None:
        """Note a COMMIT that arrives later than its caller waits: until this moment its process must see to it.

        If the process ended before, and Redis had been restarted in between, what was loaded since would stay. The
        guarantees say so, so a run makes no such case.
        """
        self._late.value = max(self._late.value, until)

    @property
    def calm(self) -> bool:
        """Whether Redis has been within reach for long enough, and no COMMIT is on its way."""
        return bool(monotonic() > max(self._unwell.value, self._late.value))


@dataclass(frozen=True, slots=True)
class Orders:
    """What one process is told."""

    plan: Plan
    control: Control
    number: int
    address: Address

    def path(self, kind: str) -> Path:
        """Give the file of this process for a kind of thing."""
        return self.plan.folder / f"{self.number}.{kind}"
