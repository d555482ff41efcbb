"""Lua scripts, and commands that run them. Sends nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass

Argument = bytes | str | int
Command = Sequence[Argument]
_scripts: dict[str, Script] = {}
"""All scripts by their digests. A command holds the digest, since a crowd makes one command for each caller."""


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

    def __post_init__(self) -> None:
        _scripts[self.sha] = self

    def call(self, keys: Sequence[bytes], arguments: Sequence[Argument]) -> tuple[Argument, ...]:
        """Return the command that runs it on a server that has it."""
        return ("EVALSHA", self.sha, len(keys), *keys, *arguments)


def whole(command: Command) -> Command:
    """Return the command of `Script.call` that brings the script along, and leaves it there."""
    return ("EVAL", _scripts[str(command[1])].text, *command[2:])


def name_of(command: Command) -> str:
    """Return the name of a command, or of the script that it runs."""
    return _scripts[str(command[1])].name if command[0] == "EVALSHA" else str(command[0])
