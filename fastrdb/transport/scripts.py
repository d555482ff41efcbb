"""Lua scripts, and commands that run them. Sends nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Argument = bytes | str | int
Command = Sequence[Argument]


@dataclass(frozen=True, slots=True)
class Script:
    """A Lua script. Its name is for errors, logs and tests."""

    name: str
    text: str
    sha: str

    @classmethod
    def of(cls, name: str, text: str) -> Script:
        """Return the script with its digest."""
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Call(NamedTuple):
    """One run of a script."""

    script: Script
    keys: Sequence[bytes]
    arguments: Sequence[Argument]

    def known(self) -> tuple[Argument, ...]:
        """Return the command for a server that has the script."""
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)

    def whole(self) -> tuple[Argument, ...]:
        """Return the command that brings the script along, and leaves it there."""
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.arguments)
