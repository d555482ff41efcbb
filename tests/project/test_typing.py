"""Types survive decoration: mypy and pyright, both from this interpreter, agree with `tests/typing`.

`facts` is full of `assert_type` and must pass. In `errors` each line with the remark `# error` must be refused, and no
other line may be.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.source.checkers import Complaint, mypy, pyright
from tests.support.source.editor import editor

FILES = ("facts.py", "errors.py")
Checker = Callable[..., list[Complaint]]

pytestmark = pytest.mark.timeout(300)  # a first run has no cache of the libraries' types


@pytest.fixture(scope="module", params=[mypy, pyright], ids=lambda checker: checker.__name__)
def complaints(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[Complaint]:
    """Return the errors of each checker in copies of both files, since the project's own run leaves one out."""
    folder = tmp_path_factory.mktemp("typing")
    copies = [shutil.copy(ROOT / "tests" / "typing" / name, folder / name) for name in FILES]
    checker: Checker = request.param
    return checker(*map(str, copies))


def test_facts_hold(complaints: list[Complaint]) -> None:
    """A call has the declared type, with `schema=` the schema's; so do methods, extras and `FastRDB`."""
    assert [each for each in complaints if each.name == "facts.py"] == []


def test_errors_are_found(complaints: list[Complaint]) -> None:
    """Wrong arguments, options and uses of results are refused: on the lines that say so, and nowhere else."""
    lines = (ROOT / "tests" / "typing" / "errors.py").read_text().splitlines()
    expected = {number for number, line in enumerate(lines, 1) if line.endswith("# error")}
    assert len(expected) > 30
    assert {each.line for each in complaints if each.name == "errors.py"} == expected


HOVERED = """
from fastrdb import cached

@cached("user:{number}")
async def get_user(number: int) -> int:
    \"\"\"Return the number of a user.\"\"\"
    return number

class Users:
    @cached("named:{number}")
    async def get(self, number: int) -> int:
        \"\"\"Return one named user.\"\"\"
        return number

get_user
Users().get
"""


def test_editor_shows_the_docstring(tmp_path: Path) -> None:
    """Over a cached function and over a method of an instance, with the function's own parameters and result."""
    file = tmp_path / "hovered.py"
    file.write_text(HOVERED, "utf-8")
    with editor(file) as opened:
        for line, said in (("get_user", "Return the number of a user."), ("Users().get", "Return one named user.")):
            shown = opened.hover(line)
            assert "Cached[(number: int), int]" in shown
            assert shown.endswith(said)
