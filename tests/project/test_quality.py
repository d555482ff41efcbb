"""The whole project passes its own checkers: `mypy --strict`, pyright, ruff."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.source.checkers import Complaint, mypy, pyright, run

WHOLE = ("fastrdb", "tests", "benchmarks")
Checker = Callable[..., list[Complaint]]


@pytest.mark.timeout(1300)  # a first run has no cache of the libraries' types, and a busy machine takes its time
@pytest.mark.parametrize("checker", [mypy, pyright], ids=lambda checker: checker.__name__)
def test_types_are_clean_and_refuse_what_they_should(checker: Checker, tmp_path: Path) -> None:
    """Package, tests and benchmarks have no type error. `tests/typing/errors.py` has one on each line that says so.

    `tests/typing/facts.py` is full of `assert_type`: types survive decoration. The project's settings leave `errors.py`
    out, so the checker gets a copy.
    """
    errors = Path(shutil.copy(ROOT / "tests" / "typing" / "errors.py", tmp_path))
    expected = {number for number, line in enumerate(errors.read_text().splitlines(), 1) if line.endswith("# error")}
    assert len(expected) > 30
    complaints = checker(*WHOLE, str(errors))
    meant = [each for each in complaints if Path(each.file).name == errors.name]  # a cache has an earlier copy's folder
    assert [each for each in complaints if each not in meant] == []
    assert {each.line for each in meant} == expected


def test_ruff_is_clean() -> None:
    """No rule of the project's own list is broken."""
    done = run("ruff", "check", "--output-format", "concise")
    assert done.returncode == 0, done.stdout
