"""Shows the rows: as a table in the terminal, as Markdown, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import groupby
from typing import Any

from benchmarks.field import KINDS
from benchmarks.rows import HEADS, Row

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
