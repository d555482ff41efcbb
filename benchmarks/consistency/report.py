"""What a run has found, as text, as JSON, and as a plot of how old the wrong answers were."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from importlib import import_module
from pathlib import Path
from typing import Any

from benchmarks.consistency.rules import Kind, Read, process_of
from benchmarks.consistency.run import Outcome
from benchmarks.consistency.settings import HEARTBEAT, Settings
from benchmarks.consistency.tally import EDGES

_BEFORE = 2_500_000_000
"""Nanoseconds. What the processes said in their logs for so long before a wrong answer is shown with it."""


def lines(outcome: Outcome) -> list[str]:
    """Give the report."""
    tally, stats = outcome.tally, outcome.stats
    given = [
        _headline(outcome.settings),
        (
            f"reads {tally.answers:,} of {tally.rows:,} rows; writes {outcome.committed:,} versions committed; "
            f"processor time {outcome.cpu:.1f} s"
        ),
        f"answers from: {_counted(tally.sources)}",
        f"faults: {_counted(_faults(outcome)) or 'none'}",
    ]
    found = [_figure(outcome, kind, _MEANING[kind]) for kind in _shown(outcome)]
    found.append(f"{'keys diverged':<28}{len(outcome.diverged):>10,} of {outcome.keys:,} read when all was quiet")
    if not outcome.wrong:
        found.append(f"none of {tally.answers:,}: with 95 % confidence fewer than {tally.bound:.3g} per million (3/N)")
    if stats:
        found.append(
            f"bypassed reads {outcome.bypassed:.3%}; loads {stats['loads']:,}, fills {stats['fills']:,}, not stored "
            f"{stats['unstored']:,}, Redis unavailable {stats['unavailable']:,}"
        )
    return [*given, *found, *_ages(outcome), *_failures(outcome), *_examples(outcome), *_keys(outcome)]


_MEANING = {
    Kind.STALE: "a newer version had been acknowledged before the read began",
    Kind.BEHIND: "a newer version's COMMIT had been answered before the read began",
    Kind.FUTURE: "a version that was not committed",
    Kind.MISSED: "stale, and the newer commits were made while Redis was out of reach (README: not guaranteed)",
    Kind.BOUND: "out of date for no longer than commits from outside may take",
    Kind.NEAR: f"out of date by at most {HEARTBEAT:g} s, which a near cache may be",
}


def _headline(settings: Settings) -> str:
    near = " with a near cache" if settings.near else ""
    bug = f", with the bug {settings.bug!r}" if settings.bug else ""
    servers = "a cluster of three" if settings.cluster else "one server"
    servers = "a master and a replica with sentinels" if settings.sentinel else servers
    if settings.outside:
        near += f", written from outside, {'watched' if settings.watched else 'bound'}={settings.allowed:g}"
    where = settings.database + (f" at {settings.isolation}" if settings.isolation else "")
    return (
        f"{settings.protocol}{near}{bug}: {settings.seconds:g} s on {servers} and {where}, {settings.readers} readers "
        f"of {settings.callers} callers, {settings.writers} writers, on_error={settings.on_error!r}"
    )


def _shown(outcome: Outcome) -> list[Kind]:
    near = [Kind.NEAR] if outcome.settings.near else []
    missed = [Kind.MISSED] if outcome.settings.on_error == "bypass" and not outcome.settings.outside else []
    bound = [Kind.BOUND] if outcome.settings.outside else []
    return [Kind.STALE, Kind.BEHIND, Kind.FUTURE, *missed, *near, *bound]


def _figure(outcome: Outcome, kind: Kind, meaning: str) -> str:
    tally = outcome.tally
    if kind is Kind.STALE and outcome.settings.near:
        meaning += f" (from the near cache: {HEARTBEAT:g} s before)"
    return f"{kind.value:<28}{tally.kinds[kind]:>10,} = {tally.per_million(kind):,.1f} per million: {meaning}"


def _counted(counts: Any) -> str:
    return ", ".join(f"{name} {number:,}" for name, number in counts.items())


def _faults(outcome: Outcome) -> dict[str, int]:
    names = ("cancel", "cancel-writes", "loop-stall")
    counted = {name: outcome.counts[name] for name in names if outcome.counts[name]}
    return Counter(fault.name for fault in outcome.faults) | counted


def _examples(outcome: Outcome) -> Iterator[str]:
    """Show wrong answers, each with what happened before it ended, and with the commits that it lacks."""
    for kind, age, source, read, newer in outcome.tally.examples:
        yield f"  {kind.value} by {age / 1e6:.3f} ms, {source}: {read}"
        before = [fault for fault in outcome.faults if fault.start < read.ended][-2:]
        away = [outage for outage in outcome.outages if outage.start < read.ended][-2:]
        parts = [f"{fault.name} {_ago(fault.start, read)}" for fault in before]
        parts += [f"out of reach {_ago(outage.start, read)} to {_ago(outage.end, read)}" for outage in away]
        yield f"    {', '.join(parts)}"
        for write in newer[-3:]:
            moments = {"begun": write.begun, "told": write.told, "committed": write.committed, "acked": write.acked}
            text = ", ".join(f"{name} {_ago(moment, read)}" for name, moment in moments.items() if moment)
            yield f"    lacks version {write.version} of process {process_of(write.attempt)}: {text}"
        for line in outcome.said:
            if read.started - _BEFORE < line.moment < read.ended:
                yield f"    process {line.process} {_ago(line.moment, read)}: {line.text[:200]}"


def _ago(moment: int, read: Read) -> str:
    return f"{(moment - read.started) / 1e6:+.1f} ms"


def _failures(outcome: Outcome) -> list[str]:
    failed = {**outcome.failures("cache"), **outcome.failures("database")}
    refused = [f"commits refused: {outcome.counts['refused']:,}"] if outcome.counts["refused"] else []
    return [*refused, *([f"calls that raised, {_counted(failed)}"] if failed else [])]


def _keys(outcome: Outcome) -> list[str]:
    return [f"  diverged: {', '.join(outcome.diverged[:10])}"] if outcome.diverged else []


def _ages(outcome: Outcome) -> list[str]:
    """Give a histogram of ages for each kind of wrong answer."""
    shown = []
    for kind, ages in outcome.tally.ages.items():
        if kind is Kind.FUTURE:
            continue
        most = max(ages.values())
        shown.append(f"{kind.value}, by age (oldest {outcome.tally.oldest[kind] / 1e9:.3g} s):")
        for place in range(min(ages), max(ages) + 1):
            bar = "#" * round(40 * ages[place] / most)
            shown.append(f"  {edge(place):>10} {ages[place]:>9,} {bar}")
    return shown


def edge(place: int) -> str:
    """Name a class of ages."""
    if place == len(EDGES):
        return f"> {EDGES[-1]:g} s"
    return f"<= {EDGES[place]:g} s" if EDGES[place] >= 1 else f"<= {EDGES[place] * 1000:g} ms"


def facts(outcome: Outcome) -> dict[str, Any]:
    """Give the report as JSON takes it."""
    tally = outcome.tally
    return {
        "settings": asdict(outcome.settings),
        "reads": tally.answers,
        "rows": tally.rows,
        "committed": outcome.committed,
        "found": {kind.name.lower(): tally.kinds[kind] for kind in Kind if kind is not Kind.FINE},
        "per_million": {kind.name.lower(): tally.per_million(kind) for kind in Kind if kind is not Kind.FINE},
        "bound_per_million": None if outcome.wrong else tally.bound,
        "diverged": outcome.diverged,
        "keys": outcome.keys,
        "bypassed": outcome.bypassed,
        "stats": outcome.stats,
        "sources": tally.sources,
        "wrong_sources": tally.wrong_sources,
        "faults": _faults(outcome),
        "happened": [list(fault) for fault in outcome.faults],
        "counts": outcome.counts,
        "cpu": outcome.cpu,
        "outages": [[outage.start, outage.end] for outage in outcome.outages],
        "ages": {
            kind.name.lower(): [{"up_to": edge(place), "answers": ages[place]} for place in sorted(ages)]
            for kind, ages in tally.ages.items()
        },
        "examples": list(_examples(outcome)),
    }


def plot(outcome: Outcome, file: Path) -> None:
    """Draw how old wrong answers were. ImportError without matplotlib."""
    figure: Any = import_module("matplotlib.figure").Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    places = range(len(EDGES) + 1)
    base = [0.0] * len(places)
    for kind in (Kind.STALE, Kind.BEHIND, Kind.MISSED, Kind.NEAR, Kind.BOUND):
        ages = outcome.tally.ages.get(kind)
        if ages:
            heights = [1e6 * ages[place] / outcome.tally.answers for place in places]
            axes.bar(places, heights, bottom=base, label=kind.value)
            base = [low + height for low, height in zip(base, heights, strict=True)]
    if any(base):
        axes.legend()
    else:
        axes.text(0.5, 0.5, f"none of {outcome.tally.answers:,} reads", transform=axes.transAxes, ha="center")
    axes.set_xticks(places, [edge(place) for place in places], rotation=60)
    axes.set_xlabel("how long a newer version had been committed")
    axes.set_ylabel("reads per million")
    axes.set_title(f"{outcome.settings.protocol}: staleness by age, {outcome.tally.answers:,} reads")
    figure.savefig(file, dpi=120)
