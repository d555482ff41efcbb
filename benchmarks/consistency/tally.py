"""Adds verdicts up: figures of a run, and how old the wrong answers were. Memory does not grow with the answers."""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from benchmarks.consistency.rules import History, Kind, Read, Write

EDGES = tuple(step * 10**power for power in range(-4, 2) for step in (1, 2, 5))
"""Upper edges, in seconds, of the classes of age; what is older is in a last class without one."""
EXAMPLES = 10


class Example(NamedTuple):
    """One wrong answer."""

    kind: Kind
    age: int
    source: str
    read: Read
    newer: Sequence[Write]


@dataclass(slots=True)
class Tally:
    """What was found. Answers are counted once, by the worst of their rows."""

    answers: int = 0
    rows: int = 0
    kinds: Counter[Kind] = field(default_factory=Counter)
    sources: Counter[str] = field(default_factory=Counter)
    wrong_sources: Counter[str] = field(default_factory=Counter)
    ages: dict[Kind, Counter[int]] = field(default_factory=dict)
    oldest: dict[Kind, int] = field(default_factory=dict)
    examples: list[Example] = field(default_factory=list)

    def take(self, history: History, answer: Sequence[Read], source: str) -> None:
        """Judge one answer, and count it."""
        self.answers += 1
        self.rows += len(answer)
        self.sources[source] += 1
        near = source == "near"
        kind, age = history.answer(answer, near=near)
        if kind is Kind.FINE:
            return
        self.kinds[kind] += 1
        self.wrong_sources[source] += kind.wrong
        self.ages.setdefault(kind, Counter())[bisect_left(EDGES, age / 1e9)] += 1
        self.oldest[kind] = max(age, self.oldest.get(kind, 0))
        if kind.wrong and len(self.examples) < EXAMPLES:
            bad = next(read for read in answer if history.judge(read, near=near).kind is kind)
            self.examples.append(Example(kind, age, source, bad, history.newer(bad)))

    def per_million(self, kind: Kind) -> float:
        """Give the rate of one kind."""
        return 1e6 * self.kinds[kind] / max(1, self.answers)

    @property
    def bound(self) -> float:
        """The rate per million that is excluded with 95 % confidence by seeing none: 3/N."""
        return 3e6 / max(1, self.answers)
