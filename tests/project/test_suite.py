"""The suite itself: what its smoke test covers, and that no test depends on the speed of the machine."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from tests.conftest import SMOKE, TESTS
from tests.project.test_structure import ORDER
from tests.support.source.modules import PACKAGE

MAY_SLEEP = {"support/waiting.py", "protocol/test_growth.py"}
"""The polls that other tests use, and a test that needs the server's own clock."""
CLOCKS = {"time", "monotonic", "perf_counter", "process_time"}


def test_smoke_test_covers_each_package() -> None:
    """Each name in `SMOKE` exists, and each package with tests of its own has a place there."""
    assert [name for name in sorted(SMOKE) if not (TESTS / name).exists()] == []
    packages = {name for name in ORDER if (PACKAGE / name).is_dir() and (TESTS / name).is_dir()}
    assert packages - {name.partition("/")[0] for name in SMOKE} == set()


def sleeps(tree: ast.AST) -> Iterator[int]:
    """Yield the lines in which a real clock is slept by, other than for one turn of the event loop."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or ast.unparse(node.func) not in ("asyncio.sleep", "time.sleep"):
            continue
        if ast.unparse(node.args[0]) != "0":
            yield node.lineno


def timed_assertions(tree: ast.AST) -> Iterator[int]:
    """Yield the lines of assertions that read a clock."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Assert):
            calls = (each.func for each in ast.walk(node.test) if isinstance(each, ast.Call))
            if any(isinstance(each, ast.Attribute) and each.attr in CLOCKS for each in calls):
                yield node.lineno


def test_no_test_hopes_for_an_order_or_measures_time() -> None:
    """Gates, counts and clocks of the test's own decide, which a busy machine does not change."""
    found = []
    for file in sorted(TESTS.rglob("*.py")):
        name, tree = file.relative_to(TESTS).as_posix(), ast.parse(file.read_text())
        lines = [*(() if name in MAY_SLEEP else sleeps(tree)), *timed_assertions(tree)]
        found += [f"{name}:{line}" for line in lines]
    assert found == []


def test_rule_finds_sleeps_and_timed_assertions() -> None:
    """Each of the two searches finds an example."""
    tree = ast.parse("await asyncio.sleep(0)\nawait asyncio.sleep(0.1)\ntime.sleep(x)\nassert loop.time() - began < 1")
    assert (sorted(sleeps(tree)), list(timed_assertions(tree))) == ([2, 3], [4])
