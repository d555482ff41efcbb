"""No clock of a client decides anything: times are kept by the server, or by a clock that is never set."""

from __future__ import annotations

import ast
import time
from pathlib import Path

import pytest

import fastrdb
from tests.races.mechanisms import label
from tests.races.scenarios import commits as scenarios_commits
from tests.races.scenarios import fills as scenarios
from tests.support.world.world import Scenario, World

PACKAGE = Path(fastrdb.__file__).parent
WALL = {"time", "time_ns", "now", "utcnow", "today", "localtime", "gmtime"}
SHOWN = {"doctor.py", "spans.py", "publishing.py"}
"""Files that show the time of day to people or to a collector of spans, and decide nothing by it."""
RACES: list[Scenario] = [
    scenarios.stale_fill,
    scenarios.refill_before_commit,
    scenarios.window_after_commit,
    scenarios.lease_expired,
    scenarios.followers,
    scenarios_commits.hidden_session,
]


def asks_the_wall(text: str) -> list[int]:
    """Return the lines that ask a clock that can be set. (A loop's own `time()` is monotonic.)"""
    found = []
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Attribute) and node.attr in WALL and isinstance(node.value, ast.Name):
            if node.value.id in {"time", "datetime", "date"}:
                found.append(node.lineno)
        elif isinstance(node, ast.ImportFrom) and node.module == "time":
            found += [node.lineno for alias in node.names if alias.name in WALL]
    return sorted(found)


def test_nothing_asks_a_clock_that_can_be_set() -> None:
    """Neither `time.time()` nor `datetime.now()` is used, except in the demo and to show a time."""
    files = [file for file in PACKAGE.rglob("*.py") if "demo" not in file.parts and file.name not in SHOWN]
    assert {str(file): lines for file in files if (lines := asks_the_wall(file.read_text()))} == {}


def test_it_would_be_found() -> None:
    """However it is spelt."""
    assert asks_the_wall("import time\ntime.time()\nfrom time import time_ns\ndatetime.now()\nloop.time()") == [2, 3, 4]


@pytest.mark.parametrize("step", [-3600.0, 3600.0], ids=["an hour back", "an hour ahead"])
@pytest.mark.parametrize("race", RACES, ids=label)
async def test_the_clock_is_set_during_a_race(
    w: World, race: Scenario, step: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """C25: each time that it is asked, it is a step further off."""
    real, asked = time.time, [0]

    def unsteady() -> float:
        asked[0] += 1
        return real() + step * asked[0]

    monkeypatch.setattr(time, "time", unsteady)
    await race(w)
