"""Runs mypy, pyright and ruff from the tests' own interpreter, and reads their reports.

A checker reads the libraries' types first, which takes longer than any file of the project: one run is for all files.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from typing import NamedTuple

from tests.support import ROOT

_MYPY_LINE = re.compile(r"^(?P<file>[^:]+):(?P<line>\d+): error: (?P<text>.*)$", re.MULTILINE)


class Complaint(NamedTuple):
    """One error that a checker found: in this file, as the checker writes it, and on this line, counted from 1."""

    file: str
    line: int
    text: str


def run(*command: str) -> subprocess.CompletedProcess[str]:
    """Run a module of this interpreter in the project's root."""
    return subprocess.run(
        [sys.executable, "-m", *command], cwd=ROOT, capture_output=True, text=True, check=False, timeout=1200
    )


def mypy(*files: str) -> list[Complaint]:
    """Return the complaints of mypy, strict, about these files and folders."""
    done = run("mypy", "--strict", "--no-error-summary", "--no-color-output", *files)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    lines = _MYPY_LINE.finditer(done.stdout)
    return [Complaint(found["file"], int(found["line"]), found["text"]) for found in lines]


def pyright(*files: str) -> list[Complaint]:
    """Return the complaints of pyright about these files and folders."""
    done = run("pyright", "--pythonpath", sys.executable, "--outputjson", *files)
    assert done.returncode in {0, 1}, done.stdout + done.stderr
    report = json.loads(done.stdout[done.stdout.index("{") :])
    assert report["summary"]["filesAnalyzed"] > 0
    return [
        Complaint(found["file"], found["range"]["start"]["line"] + 1, found["message"])
        for found in report["generalDiagnostics"]
        if found["severity"] == "error"
    ]
