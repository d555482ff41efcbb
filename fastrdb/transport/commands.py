"""Commands and Lua scripts: their names, their keys, and the hash slots of a Redis Cluster. Sends nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

from redis.crc import key_slot
from redis.exceptions import AskError

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


SLOTS = 16384


def hash_tag(name: bytes) -> bytes:
    """Return the part of a name that decides its slot: between its first brace and the next one that closes, if any."""
    opened = name.find(b"{")
    closed = name.find(b"}", opened + 1) if opened >= 0 else -1
    return name[opened + 1 : closed] if closed > opened + 1 else name


def slot_of(name: bytes) -> int:
    """Return the slot of a key."""
    return int(key_slot(name))


@cache
def tags() -> Sequence[bytes]:
    """Return a hash tag for each slot."""
    # CRC is linear: four letters that differ in 2, 4, 4 and 4 bits give each slot once.
    found = {slot_of(tag): tag for tag in map(bytes, product(b"@ABC", *[b"@ABCDEFGHIJKLMNO"] * 3))}
    return [found[slot] for slot in range(SLOTS)]


def key_of(command: Command) -> bytes | None:
    """Return the key by which a command finds its server; None if any server will do."""
    name, *rest = command
    if name in ("EVALSHA", "EVAL"):
        key = rest[2] if rest[1] else None
    else:
        key = rest[0] if rest and name not in _KEYLESS else None
    return key if isinstance(key, bytes) else None


_KEYLESS = ("PING", "INFO", "SCAN", "ASKING")


def redirected(slots: Sequence[int], replies: Sequence[Any]) -> list[int]:
    """Return which commands to send again: those redirected, and those behind them for the same slot, in order."""
    moved: set[int] = set()
    again = []
    for at, (slot, reply) in enumerate(zip(slots, replies, strict=True)):
        if isinstance(reply, AskError) or slot in moved:
            moved.add(slot)
            again.append(at)
    return again
