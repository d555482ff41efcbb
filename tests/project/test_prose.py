"""Docstrings, comments, messages and pages are plain: `python -m tests.support.source.prose PATH` lists what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.source.prose import faults


def places() -> list[Path]:
    """Return the packages of the library and of its tests, the modules beside these, and the pages."""
    found = [each for root in ("fastrdb", "tests") for each in sorted((ROOT / root).iterdir())]
    code = [each for each in found if each.suffix == ".py" or (each / "__init__.py").exists()]
    return [*code, ROOT / "README.md", ROOT / "fastrdb" / "docs"]


@pytest.mark.parametrize("place", places(), ids=lambda place: str(place.relative_to(ROOT)))
def test_prose_is_plain(place: Path) -> None:
    """Each docstring begins as it should, a subject has a name, and a sentence has at most 25 words."""
    assert not faults(place)
