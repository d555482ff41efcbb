"""The whole project passes its own checkers: `mypy --strict`, pyright, ruff."""

from __future__ import annotations

import pytest

from tests.support.source.checkers import mypy, pyright, run

pytestmark = pytest.mark.timeout(300)  # a first run has no cache of the libraries' types


def test_mypy_strict_is_clean() -> None:
    """Package, tests and benchmarks have no type error under `mypy --strict`."""
    assert mypy() == []


def test_pyright_is_clean() -> None:
    """Package, tests and benchmarks have no type error under pyright."""
    assert pyright() == []


def test_ruff_is_clean() -> None:
    """No rule of the project's own list is broken."""
    done = run("ruff", "check", "--output-format", "concise")
    assert done.returncode == 0, done.stdout
