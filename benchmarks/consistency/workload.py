"""Which row comes next. Pure: of the settings, the time that has passed, and a random number generator.

Hot rows are read and written all the time. Cold rows come up one after the other, are written a few times while they
are young, and are only read from then on: an invalidation that was lost on one of them shows for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

BLOCK = 8
"""Rows of a block: they are also read together, as a list."""
ByHand = Literal["inside", "outside", "through", "together", "undone"]
Followed = Literal["undone", "flush", "kept", "come-or-go", "label", "bulk", "sweep", "upsert", "text"]
Style = ByHand | Followed
STYLES: dict[str, dict[Style, int]] = {
    "by hand": {"inside": 35, "outside": 30, "through": 20, "together": 10, "undone": 5},
    "auto": {
        "flush": 15,
        "kept": 25,
        "come-or-go": 15,
        "label": 15,
        "bulk": 10,
        "sweep": 3,
        "upsert": 6,
        "text": 6,
        "undone": 5,
    },
}
"""The ways to write, and how often each is taken."""


@dataclass(frozen=True, slots=True)
class Workload:
    """The rows of a run: `hot` ones from 0 on, then cold ones, of which `pace` come up each second."""

    hot: int
    pace: float = 0.0
    young: int = 0
    """So many cold rows are written at a time."""
    total: int = 0

    @classmethod
    def of(cls, seconds: float, rate: float, *, spread: bool) -> Workload:
        """Give the rows for a run of `seconds` with `rate` writes a second."""
        if spread:
            return cls(10_000, total=10_000)
        pace, young, hot = rate / 6, BLOCK * 4, BLOCK * 2  # half of the writes on cold rows: three for each
        rows = hot + young + int(pace * (seconds + 5))
        return cls(hot, pace, young, rows + -rows % BLOCK)

    def write(self, chance: Random, elapsed: float) -> int:
        """Give a row to write: hot or young."""
        if not self.young or chance.random() < 0.5:
            return chance.randrange(self.hot)
        return self._young(chance, elapsed)

    def read(self, chance: Random, elapsed: float) -> int:
        """Give a row to read: hot, young, or one that nobody writes any more."""
        kind = chance.random()
        if not self.young or kind < 0.4:
            return chance.randrange(self.hot)
        if kind < 0.75:
            return self._young(chance, elapsed)
        return chance.randrange(self.hot, max(self.hot, self._first(elapsed)) + 1)

    def style(self, chance: Random, world: str = "by hand") -> Style:
        """Give a way to write."""
        return chance.choices(list(STYLES[world]), list(STYLES[world].values()))[0]

    def blocks(self) -> range:
        """Give the numbers of all blocks."""
        return range(self.total // BLOCK)

    def _first(self, elapsed: float) -> int:
        return min(self.hot + int(elapsed * self.pace), self.total - self.young)

    def _young(self, chance: Random, elapsed: float) -> int:
        return self._first(elapsed) + chance.randrange(self.young)


def block_of(row: int) -> int:
    """Give the block that a row is in."""
    return row // BLOCK
