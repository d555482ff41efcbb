"""Takes a line out of a method, to see whether a test notices."""

from __future__ import annotations

import inspect
import sys
import textwrap
from typing import Any, NamedTuple

import pytest


class Mutant(NamedTuple):
    """A method, and what stands in the place of a part of its source."""

    owner: Any
    method: str
    old: str
    new: str

    def __str__(self) -> str:
        return f"{self.owner.__name__}.{self.method}: {self.new.strip() or 'without'} {self.old.strip()}"

    def let_loose(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Put it in the place of what it was."""
        function = inspect.getattr_static(self.owner, self.method)
        source = textwrap.dedent(inspect.getsource(function))
        assert self.old in source, f"{self.old!r} is not in {self.method}"
        scope: dict[str, Any] = {}
        exec(  # the project's own source
            compile(f"from __future__ import annotations\n{source.replace(self.old, self.new)}", "<mutant>", "exec"),
            vars(sys.modules[function.__module__]),
            scope,
        )
        monkeypatch.setattr(self.owner, self.method, scope[self.method])


def name(each: Any) -> str:
    """Name a mutant or the test that notices it, for the id of a test."""
    return str(each) if isinstance(each, Mutant) else str(each.__name__)
