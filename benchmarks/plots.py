"""Draws the rows: bars for each case, and lines where something grows with the number of keys."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.machine import installed
from benchmarks.report import Row

OURS, OTHERS = "#c2410c", "#94a3b8"
LINES = ("#c2410c", "#334155", "#0e7490", "#7c3aed", "#65a30d", "#a16207")
KINDS = ("svg", "png")
AXES = {unit: unit for unit in ("loads", "calls", "entries")} | {"s": "time", "/s": "calls a second", "B": "bytes"}


def draw(rows: Sequence[Row], folder: Path) -> list[Path]:
    """Draw a picture for each question into `folder`, as SVG and PNG; none without matplotlib."""
    if installed("matplotlib") is None:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for question, found in groupby(rows, key=lambda row: row.question):
        own = [row for row in found if row.value is not None]
        grown = [row for row in own if row.at is not None]
        bars = [row for row in own if row.at is None]
        for name, part, picture in ((f"{question}-growth", grown, _lines), (question, bars, _bars)):
            if part:
                figure = picture(part)
                for kind in KINDS:
                    written.append(folder / f"{name}.{kind}")
                    figure.savefig(written[-1], dpi=150)
    return written


def _bars(rows: Sequence[Row]) -> Any:
    """One panel for each case, its bars from zero, each with its figure."""
    cases = [(case, list(group)) for case, group in groupby(rows, key=lambda row: row.case)]
    heights = [len(group) + 1.5 for _, group in cases]
    figure: Any = import_module("matplotlib.figure").Figure((8, 0.28 * sum(heights) + 0.3), layout="constrained")
    panels = figure.subplots(len(cases), 1, squeeze=False, height_ratios=heights)[:, 0]
    for panel, (case, group) in zip(panels, cases, strict=True):
        names, values = [row.contestant for row in group], [row.value or 0.0 for row in group]
        colours = [OURS if name.startswith("fastrdb") else OTHERS for name in names]
        drawn = panel.barh(range(len(group)), values, color=colours, height=0.7)
        panel.bar_label(drawn, [row.figure for row in group], padding=3, fontsize=8)
        panel.set_yticks(range(len(group)), names, fontsize=8)
        panel.invert_yaxis()
        panel.set_xlim(0, max(values) * 1.18 or 1)  # they may all be 0: calls that failed
        panel.set_xticks([])
        panel.set_title(f"{case} ({AXES[group[0].unit]})", loc="left", fontsize=9)
        panel.spines[["top", "right", "bottom"]].set_visible(False)
    return figure


def _lines(rows: Sequence[Row]) -> Any:
    """Time over the number of keys, both logarithmic."""
    figure: Any = import_module("matplotlib.figure").Figure((8, 4.5), layout="constrained")
    axes = figure.subplots()
    for name, colour in zip(dict.fromkeys(row.contestant for row in rows), LINES, strict=False):
        line = [row for row in rows if row.contestant == name]
        axes.plot([row.at for row in line], [row.value for row in line], "o-", color=colour)
        axes.annotate(
            name, (line[-1].at, line[-1].value), xytext=(6, 0), textcoords="offset points", fontsize=8, color=colour
        )
    axes.set(xscale="log", yscale="log", xlabel="keys in the server", ylabel="seconds")
    axes.margins(x=0.2)
    axes.set_title("invalidating 100 keys by their prefix", loc="left", fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    return figure
