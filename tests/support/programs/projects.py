"""Projects of users, whose tests run with the pytest plugin: in this process, since one of their own starts slowly."""

from __future__ import annotations

import os

import pytest

from tests.support import ROOT

PLUGIN = "fastrdb.testing.plugin"


@pytest.fixture
def project(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """Write a user's project, which sees this fastrdb, and makes errors of warnings."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
    pytester.makeini("[pytest]\nfilterwarnings =\n    error\n    ignore::pytest.PytestDeprecationWarning")
    return pytester


def run_file(project: pytest.Pytester, *arguments: str) -> pytest.RunResult:
    """Run what is there with the plugin."""
    return project.runpytest_inprocess("-p", PLUGIN, "-p", "no:cacheprovider", *arguments)
