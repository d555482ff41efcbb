"""The suite itself: what its smoke test covers."""

from __future__ import annotations

from tests.conftest import SMOKE, TESTS
from tests.project.test_structure import ORDER
from tests.support.source.modules import PACKAGE


def test_smoke_test_covers_each_package() -> None:
    """Each name in `SMOKE` exists, and each package with tests of its own has a place there."""
    assert [name for name in sorted(SMOKE) if not (TESTS / name).exists()] == []
    packages = {name for name in ORDER if (PACKAGE / name).is_dir() and (TESTS / name).is_dir()}
    assert packages - {name.partition("/")[0] for name in SMOKE} == set()
