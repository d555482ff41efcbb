"""How the store speaks to Redis: what its keys are called, its Lua scripts, one deadline and one error boundary.

Nothing here knows what the scripts are for. Replies are bytes whatever the client was told to decode, and whatever
goes wrong on the way (errors of the server, the network, the pool, the deadline) is a CacheUnavailableError.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from redis.exceptions import NoScriptError

from .deadlines import Deadlines
from .errors import CacheUnavailableError

if TYPE_CHECKING:
    from collections.abc import Sequence

Argument = bytes | str | int

EXACTLY = b"="
"""The filter of a target that is one key. No Lua pattern of a prefix reads so: they begin with ^."""


class Client(Protocol):
    """What is used of redis.asyncio.Redis, and of its relatives."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command; the result is awaited."""

    def pipeline(self, transaction: bool = ...) -> Any:
        """Collect commands to send at once."""


class Reach(Protocol):
    """What is used of a Prefix: its literal head, and the Lua patterns of which a key under it must match one."""

    @property
    def head(self) -> str:
        """The text that every key under it begins with."""
        ...

    @property
    def lua(self) -> str:
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
        return Range(b"[" + self.head if self.head else b"-", b"(" + after if after else b"+", self.head, self.filter)


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
        return Target(scoped.head.encode(), scoped.lua.encode())

    def exactly(self, key: str) -> Target:
        """Give the one key."""
        return Target(self.entry(key), EXACTLY)

    @property
    def everything(self) -> Target:
        """All of the namespace."""
        return Target(self.before)


@dataclass(frozen=True, slots=True)
class Script:
    """A file of `lua/`, with what all of them share in front."""

    name: str
    text: str
    sha: str

    @classmethod
    def load(cls, name: str) -> Script:
        """Read `lua/<name>.lua`."""
        folder = resources.files("fastrdb") / "lua"
        text = "".join(folder.joinpath(f"{part}.lua").read_text("utf-8") for part in ("common", name))
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


class Link:
    """Sends commands and scripts, each under a deadline of `timeout` seconds.

    Everything here may raise CacheUnavailableError. A command that was cancelled or timed out may still be executed:
    redis-py sends again what it got no reply to, so all that goes through here is at-least-once.
    """

    def __init__(self, timeout: float) -> None:
        self._deadlines = Deadlines(timeout)

    async def command(self, client: Client, *command: Argument) -> Any:
        """Send one command, and give its reply."""
        try:
            with self._deadlines.start():
                return await client.execute_command(*command, NEVER_DECODE=True)
        except Exception as error:
            raise _unavailable(str(command[0]), error) from error

    async def script(self, client: Client, script: Script, keys: Sequence[bytes], *arguments: Argument) -> Any:
        """Run a script, and give its result."""
        call = Call(script, keys, arguments)
        try:
            with self._deadlines.start():
                try:
                    return await client.execute_command(*call.known(), NEVER_DECODE=True)
                except NoScriptError:
                    return await client.execute_command(*call.whole(), NEVER_DECODE=True)
        except Exception as error:
            raise _unavailable(script.name, error) from error

    async def batch(self, client: Client, script: Script, calls: Sequence[Call]) -> list[Any]:
        """Run a script many times in one round trip; the first error is raised when all have been run."""
        try:
            with self._deadlines.start():
                replies = await _pipeline(client, [call.known() for call in calls])
                unknown = [at for at, reply in enumerate(replies) if isinstance(reply, NoScriptError)]
                if unknown:  # one brings the script along, the others find it there
                    first, *others = (calls[at] for at in unknown)
                    again = await _pipeline(client, [first.whole(), *(call.known() for call in others)])
                    for at, reply in zip(unknown, again, strict=True):
                        replies[at] = reply
        except Exception as error:
            raise _unavailable(script.name, error) from error
        for reply in replies:
            if isinstance(reply, Exception):
                raise _unavailable(script.name, reply) from reply
        return replies


async def _pipeline(client: Client, commands: Sequence[Sequence[Argument]]) -> list[Any]:
    async with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command, NEVER_DECODE=True)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
    return replies


def _unavailable(operation: str, error: Exception) -> CacheUnavailableError:
    """Translate an error; a deadline that has passed has no text of its own."""
    return CacheUnavailableError(operation, str(error) or type(error).__name__)
