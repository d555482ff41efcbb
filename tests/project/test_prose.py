"""Docstrings, comments and messages are plain: `python -m tests.support.source.prose PATH` lists what is not."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import ROOT
from tests.support.source.prose import faults


def places() -> list[Path]:
    """Return the packages of the library and of its tests, and the modules beside these packages."""
    found = [each for root in ("fastrdb", "tests") for each in sorted((ROOT / root).iterdir())]
    return [each for each in found if each.suffix == ".py" or (each / "__init__.py").exists()]


@pytest.mark.parametrize("place", places(), ids=lambda place: str(place.relative_to(ROOT)))
def test_prose_is_plain(place: Path) -> None:
    """Each docstring begins as it should, a subject has a name, and a sentence has at most 25 words."""
    assert not faults(place)
