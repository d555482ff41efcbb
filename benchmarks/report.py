"""The answer: a line for each figure with what was asked of it, and a report as a table, as Markdown or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from statistics import median, quantiles
from typing import Any, Literal, NamedTuple

from benchmarks.contestants.field import KINDS

Unit = Literal["s", "/s", "B", "loads", "calls", "entries"]


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


WIDTH = 190
"""Columns of a table that does not go to a terminal."""


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run."""

    size: str
    machine: Mapping[str, str]
    rows: Sequence[Row]
    seconds: float

    @property
    def title(self) -> str:
        """What kind of run it is."""
        return f"fastrdb, {self.size} run of {self.seconds:.0f} s: medians of interleaved rounds"

    @property
    def surroundings(self) -> str:
        """The machine, and the version of everything."""
        return ", ".join(f"{name} {value}" for name, value in self.machine.items())

    @property
    def legend(self) -> list[str]:
        """What each contestant stores, and how it is set."""
        taking_part = {row.contestant for row in self.rows if row.value is not None}
        return [f"{name}: {kind.about}" for name, kind in KINDS.items() if name in taking_part]

    @property
    def summary(self) -> str:
        """How many bars and aims are met, and which bars are not."""
        parts = []
        for asked in ("bar", "aim"):
            verdicts = [verdict for row in self.rows if (verdict := row.verdict(asked))]
            met = [verdict for verdict in verdicts if verdict.endswith(" met")]
            parts.append(f"{len(met)} of {len(verdicts)} {asked}s met")
        return ", ".join(parts)

    def as_json(self) -> str:
        """Everything, for a program."""
        rows = [asdict(row) | {asked: row.verdict(asked) for asked in ("bar", "aim")} for row in self.rows]
        whole: dict[str, Any] = {"size": self.size, "seconds": self.seconds, "machine": dict(self.machine)}
        return json.dumps(whole | {"contestants": self.legend, "rows": rows}, indent=1)

    def as_markdown(self) -> str:
        """The table for a README."""
        lines = [f"{self.title}. {self.surroundings}.", "", "| " + " | ".join(HEADS) + " |", "|---" * len(HEADS) + "|"]
        for group in self._groups():
            lines += ["| " + " | ".join(cells) + " |" for cells in group]
        return "\n".join([*lines, "", f"{self.summary}.", "", *(f"- {line}" for line in self.legend)])

    def show(self) -> None:
        """Print the table, by rich where it is installed."""
        try:
            from rich.console import Console  # noqa: PLC0415 - an optional dependency
            from rich.table import Table  # noqa: PLC0415
        except ImportError:
            print(self.as_markdown())
            return
        table = Table(*HEADS, title=self.title, title_justify="left")
        for group in self._groups():
            for cells in group:
                table.add_row(*cells)
            table.add_section()
        console = Console()
        console = console if console.is_terminal else Console(width=WIDTH)
        console.print(self.surroundings, table, *self.legend, self.summary, sep="\n", highlight=False, markup=False)

    def _groups(self) -> Iterator[list[tuple[str, ...]]]:
        """The cells of each case; its name stands in the first row only."""
        for _, rows in groupby(self.rows, key=lambda row: (row.question, row.case)):
            first, *others = [row.cells() for row in rows]
            yield [first, *(("", *cells[1:]) for cells in others)]
