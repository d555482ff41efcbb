"""`python -m benchmarks.consistency`: does anybody get an answer that is older than it may be?

Exits with 0 if fastrdb gave none (or, with a seeded bug, if it did and was caught), 1 otherwise, 2 for a run that could
not be. What other protocols give is a figure, and no failure.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.consistency import faults, report, seeded_bugs
from benchmarks.consistency.address import Address
from benchmarks.consistency.peers import SUBJECTS, subject_of
from benchmarks.consistency.run import Outcome, RunError, run
from benchmarks.consistency.settings import Settings, SettingsError
from benchmarks.consistency.workload import STYLES
from fastrdb import FastRDBError


def parser() -> argparse.ArgumentParser:
    """Give the command line."""
    made = argparse.ArgumentParser(prog="python -m benchmarks.consistency", description=__doc__)
    made.add_argument("--seconds", type=float, default=60.0, help="how long to read and write (60)")
    made.add_argument("--protocol", choices=list(SUBJECTS), default="fastrdb")
    made.add_argument("--faults", default="all", help=f"all, none, or some of: {', '.join(faults.FAULTS)}")
    made.add_argument("--database", choices=["sqlite", "postgresql", "mariadb"], default="postgresql")
    made.add_argument("--isolation", help='of the engine, e.g. "REPEATABLE READ"; the database\'s default otherwise')
    made.add_argument("--on-error", choices=["bypass", "raise"], default="bypass", help="Cache(on_error=...)")
    made.add_argument("--auto", action="store_true", help="Cache(auto=True): writers that invalidate nothing by hand")
    made.add_argument(
        "--outside", action="store_true", help="writers without a cache, and `fastrdb watch`; with --auto"
    )
    made.add_argument("--watched", type=float, help="with --outside: Cache(watched=), seconds, which is the bound then")
    made.add_argument("--bound", type=float, default=3.0, help="with --outside: seconds an answer may be old (3)")
    made.add_argument("--near", action="store_true", help="with a near cache")
    made.add_argument("--cluster", action="store_true", help="on a cluster of three masters")
    made.add_argument("--sentinel", action="store_true", help="a master and a replica, found by sentinels")
    made.add_argument("--pool", type=int, help="connections to the database of each process; enough otherwise")
    made.add_argument("--spread", action="store_true", help="10,000 rows, all alike: for the share of bypassed reads")
    made.add_argument("--readers", type=int, default=2, help="processes that read (2)")
    made.add_argument("--writers", type=int, default=2, help="processes that write (2)")
    made.add_argument("--callers", type=int, default=8, help="callers at once in each process that reads (8)")
    made.add_argument("--rate", type=float, default=120.0, help="writes a second, of all together (120; spread 100)")
    made.add_argument(
        "--style",
        choices=[style for styles in STYLES.values() for style in styles],
        help="the one way to write; all of them otherwise",
    )
    made.add_argument("--barrier", type=float, default=5.0, help="Cache(barrier=), seconds (5)")
    made.add_argument("--lease", type=float, default=5.0, help="Cache(lease=), seconds (5)")
    made.add_argument("--timeout", type=float, default=0.25, help="Cache(timeout=), seconds (0.25)")
    made.add_argument("--seed", type=int, default=0, help="of the random numbers (0)")
    made.add_argument("--seed-bug", metavar="NAME", help="take a mechanism out of fastrdb: the run must catch it")
    made.add_argument("--all-bugs", action="store_true", help="a run with each bug that can be seeded, and a table")
    made.add_argument("--list-bugs", action="store_true", help="name the bugs that can be seeded")
    made.add_argument("--json", type=Path, metavar="FILE", help="write the figures there")
    made.add_argument("--plot", type=Path, metavar="FILE", help="draw staleness by age there")
    return made


def settings_of(given: argparse.Namespace) -> Settings:
    """Give what the command line says; SettingsError for what cannot be, before anything is started."""
    names = (
        "seconds protocol auto outside watched bound database isolation on_error near cluster sentinel pool "
        "spread readers writers callers rate style barrier lease timeout seed"
    )
    try:
        chosen = faults.chosen(
            given.faults, given.database, sentinel=given.sentinel, watchers=_watchers(given.outside, given.watched)
        )
    except ValueError as error:
        raise SettingsError(str(error)) from None
    made = Settings(**{name: getattr(given, name) for name in names.split()}, faults=chosen, bug=given.seed_bug)
    if made.bug is not None:
        if made.bug not in seeded_bugs.BUGS:
            raise SettingsError(f"--seed-bug {made.bug}: none of {', '.join(seeded_bugs.BUGS)}")
        needs = dict(seeded_bugs.BUGS[made.bug].needs)
        needs["faults"] = tuple(dict.fromkeys([*made.faults, *needs.get("faults", ())]))
        made = replace(made, **needs)
    subject_of(made)(made, Address((1,), made.cluster))  # what this version refuses, it refuses now
    return made


def _watchers(outside: bool, watched: float | None) -> set[str]:
    """Give the faults of watchers that may be: all may die only where something bounds what is stale then."""
    if not outside:
        return set()
    return {"watcher-killed"} if watched is None else {"watcher-killed", "watchers-killed"}


def verdict(outcome: Outcome) -> tuple[str, int]:
    """Say whether that is as it should be, and the exit status."""
    if outcome.settings.bug is not None:
        return ("the bug was caught", 0) if outcome.wrong else ("the bug was NOT caught", 1)
    if outcome.settings.protocol != "fastrdb":
        return f"{outcome.settings.protocol}: {outcome.wrong:,} wrong answers and keys", 0
    return (f"FAILED: {outcome.wrong:,} wrong answers and keys", 1) if outcome.wrong else ("nothing wrong", 0)


def catch_all(given: argparse.Namespace) -> int:
    """Run with each seeded bug in turn, print a line for each; give 0 if all were caught.

    Each run has the faults that its bug needs, and no others: these would leave less time for them.
    """
    missed = 0
    given.faults = "none" if given.faults == "all" else given.faults
    print(f"{'bug':<24}{'reads':>9}{'wrong answers':>15}{'keys diverged':>15}{'':>3}")
    for name in seeded_bugs.BUGS:
        given.seed_bug = name
        outcome = run(settings_of(given))
        caught, _ = verdict(outcome)
        missed += not outcome.wrong
        answers, keys = outcome.wrong - len(outcome.diverged), len(outcome.diverged)
        print(f"{name:<24}{outcome.tally.answers:>9,}{answers:>15,}{keys:>15,}   {caught}", flush=True)
    print(f"{len(seeded_bugs.BUGS) - missed} of {len(seeded_bugs.BUGS)} were caught")
    return 1 if missed else 0


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, report; give the exit status."""
    given = parser().parse_args(arguments)
    if given.list_bugs:
        for name, bug in seeded_bugs.BUGS.items():
            print(f"{name:<22}{bug.what}")
        return 0
    if given.all_bugs:
        return catch_all(given)
    try:
        outcome = run(settings_of(given), lambda text: print(f"... {text}", file=sys.stderr, flush=True))
    except (SettingsError, FastRDBError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    text, status = verdict(outcome)
    print("\n".join([*report.lines(outcome), text]))
    if given.json is not None:
        given.json.write_text(json.dumps(report.facts(outcome) | {"verdict": text}, indent=2))
    if given.plot is not None:
        report.plot(outcome, given.plot)
    return status


if __name__ == "__main__":
    sys.exit(main())
