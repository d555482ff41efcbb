"""Projects of somebody else's, whose tests run in a process of their own with the pytest plugin."""

from __future__ import annotations

import os
from importlib.metadata import entry_points
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
INSTALLED = any(found.name == "fastrdb" for found in entry_points(group="pytest11"))


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Give a project of somebody else's, which sees this fastrdb, and makes errors of warnings."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    pytester.makeini("[pytest]\nfilterwarnings =\n    error\n    ignore::pytest.PytestDeprecationWarning")
    return pytester


def run_file(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run what is there with the plugin, found as users' runs find it where this checkout is installed."""
    plugin = () if INSTALLED else ("-p", "_fastrdb_pytestplugin")
    return project.runpytest_subprocess(*plugin, "-p", "no:cacheprovider", *arguments)
