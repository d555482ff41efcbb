"""What the store's keys are called in Redis, what an invalidation reaches, and the Lua scripts. Sends nothing."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple, Protocol

Argument = bytes | str | int
Command = Sequence[Argument]

EXACTLY = b"="
"""The filter of a target that is one key. No Lua pattern of a prefix reads so: they begin with ^."""


FIRST = b"\1"
"""Members of the index that come before this are no keys: see common.lua."""


class Reach(Protocol):
    """What is used of a Prefix: its literal head, and the Lua patterns of which a key under it must match one."""

    @property
    def head(self) -> str:
        """The text that every key under it begins with."""
        ...

    @property
    def filter(self) -> str:
        """Patterns over the whole key, one a line; "" where the head alone decides."""
        ...

    def under(self, head: str, /) -> Reach:
        """Give the same with `head` put in front."""
        ...

    def matches(self, key: str, /) -> bool:
        """Tell whether it reaches this key."""
        ...


class Range(NamedTuple):
    """The part of the index that a target reaches, and how far a sweep has come: the arguments of begin.lua."""

    start: bytes
    stop: bytes
    head: bytes
    filter: bytes


class Target(NamedTuple):
    """What an invalidation reaches, in Redis's own names: all keys under a head that pass a filter, or one key."""

    head: bytes
    filter: bytes = b""

    @property
    def exact(self) -> bool:
        """Whether it is one key."""
        return self.filter == EXACTLY

    def barrier(self, token: str) -> bytes:
        """Give the member that stands for it in the set of barriers; a newline never occurs in a key."""
        return b"%s%s\n%s" % (token.encode(), self.head, self.filter)

    def range(self) -> Range:
        """Give the whole range of the index under the head."""
        after = successor(self.head)
        return Range(b"[" + (self.head or FIRST), b"(" + after if after else b"+", self.head, self.filter)


def successor(head: bytes) -> bytes:
    """Give the first byte string behind all that begin with `head`; empty if there is none."""
    cut = head.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else b""


class Names:
    """What the keys of one namespace are called in Redis."""

    def __init__(self, namespace: str) -> None:
        room = f"fastrdb:{namespace}:" if namespace else "fastrdb:"
        self.before = f"{namespace}:".encode() if namespace else b""
        self.index, self.expiry, self.barriers = (f"{room}{part}".encode() for part in ("index", "expiry", "barriers"))
        self.server, self.healing = f"{room}server".encode(), f"{room}healing".encode()
        self.shared = (self.index, self.expiry, self.barriers)
        self.leases = f"{room}lease:".encode()

    def entry(self, key: str) -> bytes:
        """Give the name of the entry of `key`."""
        return self.before + key.encode()

    def lease(self, entry: bytes) -> bytes:
        """Give the name of an entry's lease: in the same cluster slot, by the entry's own hash tag or by a new one."""
        opened = entry.find(b"{")
        closed = entry.find(b"}", opened + 1) if opened >= 0 else -1
        return self.leases + (entry if closed > opened + 1 else b"{%s}" % entry)

    def under(self, prefix: Reach) -> Target:
        """Give what `prefix` reaches."""
        scoped = prefix.under(self.before.decode()) if self.before else prefix
        return Target(scoped.head.encode(), scoped.filter.encode())

    def exactly(self, key: str) -> Target:
        """Give the one key."""
        return Target(self.entry(key), EXACTLY)

    def known(self, heads: Iterable[str]) -> list[bytes]:
        """Give what names of entries begin with, for sure: the namespace, or such of the heads as say something."""
        return [self.before] if self.before else sorted(head.encode() for head in heads if head)

    @property
    def everything(self) -> Target:
        """All of the namespace."""
        return Target(self.before)


SHARED = ("common", "server", "cluster")
"""What is in `lua/` only to be put in front of others."""


@dataclass(frozen=True, slots=True)
class Script:
    """A file of `lua/`, with what it shares with others in front."""

    name: str
    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        """Read `lua/<name>.lua`."""
        folder = resources.files("fastrdb.protocol") / "lua"
        shared = ("common", "cluster" if name.startswith(("slot_", "shard_", "look")) else "server")
        text = "".join(folder.joinpath(f"{part}.lua").read_text("utf-8") for part in (*shared, name))
        return cls(name, text, hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest())


class Call(NamedTuple):
    """One run of a script."""

    script: Script
    keys: Sequence[bytes]
    arguments: Sequence[Argument]

    def known(self) -> tuple[Argument, ...]:
        """Give the command for a server that has the script."""
        return ("EVALSHA", self.script.sha, len(self.keys), *self.keys, *self.arguments)

    def whole(self) -> tuple[Argument, ...]:
        """Give the command that brings the script along, and leaves it there."""
        return ("EVAL", self.script.text, len(self.keys), *self.keys, *self.arguments)


def lists(*each: Sequence[Any]) -> list[Any]:
    """Give lists as a script reads them: the length of each, then its items, a tuple's parts one by one."""
    arguments: list[Any] = []
    for items in each:
        arguments.append(len(items))
        for item in items:
            arguments.extend(item if isinstance(item, tuple) else (item,))
    return arguments
