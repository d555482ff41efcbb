"""An editor shows what a function says after its decoration. What the checkers say is in `test_quality`."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.source.editor import editor

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


@pytest.mark.timeout(300)  # the language server reads the libraries' types first
def test_editor_shows_the_docstring(tmp_path: Path) -> None:
    """Over a cached function and over a method of an instance, with the function's own parameters and result."""
    file = tmp_path / "hovered.py"
    file.write_text(HOVERED, "utf-8")
    with editor(file) as opened:
        for line, said in (("get_user", "Return the number of a user."), ("Users().get", "Return one named user.")):
            shown = opened.hover(line)
            assert "Cached[(number: int), int]" in shown
            assert shown.endswith(said)
