"""One line of the answer: a figure, how fastrdb compares with it, what was asked for, and whether that is reached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import Literal, NamedTuple

Unit = Literal["s", "/s", "B", "loads", "calls"]


class Ratio(NamedTuple):
    """The median, over rounds, of one time divided by another; and between what half of the rounds lie."""

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, times: Sequence[float], others: Sequence[float]) -> Ratio:
        """Divide the times of each round: what else the machine did meanwhile hit both alike."""
        ratios = [one / other for one, other in zip(times, others, strict=True)]
        low, _, high = quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        return cls(median(ratios), low, high)

    @property
    def text(self) -> str:
        """Such as `1.08x slower (1.05-1.11)` or `11.3x faster (10.9-11.6)`."""
        if self.value >= 1:
            return f"{_figure(self.value)}x slower ({_figure(self.low)}-{_figure(self.high)})"
        return f"{_figure(1 / self.value)}x faster ({_figure(1 / self.high)}-{_figure(1 / self.low)})"


@dataclass(frozen=True, slots=True)
class Limit:
    """What is asked of a row: the bar must be reached, the aim is hoped for.

    "ratio": at most this many times the other's time. "speed": at least this many times faster than the other.
    "value": the row's own figure is at most this, in its unit.
    """

    of: Literal["ratio", "speed", "value"]
    bar: float | None = None
    aim: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    question: str
    case: str
    contestant: str
    value: float | None = None
    """Seconds per call, calls per second, bytes, loads or calls; None: `note` says why there is no figure."""
    unit: Unit = "s"
    ratio: Ratio | None = None
    """The time of fastrdb (or of what `note` names) divided by this contestant's."""
    limit: Limit | None = None
    loads: str = ""
    void: bool = False
    """The calls were not what the question is about."""
    note: str = ""
    at: int | None = None
    """How many keys there were, for a plot over them."""

    @property
    def figure(self) -> str:
        """The value with its unit."""
        return "" if self.value is None else _with_unit(self.value, self.unit)

    def verdict(self, asked: Literal["bar", "aim"]) -> str:
        """What is asked for, and whether it is reached."""
        limit = self.limit
        wanted: float | None = None if limit is None else getattr(limit, asked)
        if limit is None or wanted is None:
            return ""
        if limit.of == "value":
            text, found = f"<= {_with_unit(wanted, self.unit)}", self.value
        else:
            text = f">= {wanted:g}x" if limit.of == "speed" else f"<= {wanted:g}x"
            found = None if self.ratio is None else self.ratio.value
        if self.void or found is None:
            return f"{text} not measured"
        reached = 1 / found >= wanted if limit.of == "speed" else found <= wanted
        return f"{text} {'met' if reached else 'MISSED'}"

    def cells(self) -> tuple[str, ...]:
        """The line as text, in the order of `HEADS`."""
        notes = [self.note] if self.note else []
        if self.void:
            notes.append("VOID: hits that loaded, or misses that did not")
        return (
            self.case,
            self.contestant,
            self.figure,
            "" if self.ratio is None else self.ratio.text,
            self.verdict("bar"),
            self.verdict("aim"),
            self.loads,
            "; ".join(notes),
        )


HEADS = ("question", "contestant", "figure", "fastrdb is", "bar", "aim", "loads of calls", "note")


def absent(question: str, case: str, contestant: str, note: str) -> Row:
    """The line of one who cannot take part."""
    return Row(question, case, contestant, note=note)


def _figure(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def _with_unit(value: float, unit: Unit) -> str:
    if unit == "s":
        return duration(value)
    if unit == "loads":
        return f"{value:,.0f} load{'' if value == 1 else 's'}"
    return f"{value:,.0f}{unit}" if unit == "/s" else f"{value:,.0f} {unit}"


def duration(seconds: float) -> str:
    """Seconds as text."""
    for scale, name in ((1.0, "s"), (1e-3, "ms"), (1e-6, "µs")):
        if seconds >= scale:
            return f"{seconds / scale:.3g} {name}"
    return f"{seconds * 1e6:.2f} µs"
