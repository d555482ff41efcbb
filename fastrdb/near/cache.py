"""The near cache: entries kept in this process, and until when each may answer. Pure: no I/O, no task.

1. An entry is kept only with the token that was put down before its value was asked for. Whatever changes the key
   takes entry and token away, so a value that was on its way meanwhile is not kept.
2. An entry answers only while every channel of changes is known to be alive. An entry is kept only if every channel
   would report its changes. When a channel is lost, all entries are dropped: its last reports may be missing.
3. What this process invalidates goes before it is sent, and nothing is kept under it until it has been. Its own echo is
   a push like any other.

`tracking` has the channel to a server.
"""

from __future__ import annotations

import math
import os
from contextlib import contextmanager
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING, Any
from weakref import WeakSet, WeakValueDictionary

import cachebox

from fastrdb.errors import OptionError
from fastrdb.options import Seconds, seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

_OVERHEAD = 256
"""Bytes that an entry takes besides key and JSON: the objects around them, and its place in the cache."""


@dataclass(frozen=True)
class Near:
    """Bounds of a near cache: how much a process keeps of each server, and how long an entry may answer.

    Args:
        entries: how many.
        bytes: how many of keys and JSON; the object of a frozen model, which is kept instead, may take more.
        ttl: seconds after which an entry is read from Redis again, even if it has not changed.
        heartbeat: the longest, in seconds, that an entry may be out of date when the tracking connection has died
            without a word. The server is asked for a sign of life three times as often.

    Raises:
        OptionError: naming the option.
    """

    entries: int = 10_000
    bytes: int = 64 * 2**20
    ttl: Seconds = 60.0
    heartbeat: Seconds = 1.0

    def __post_init__(self) -> None:
        for name in ("entries", "bytes"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise OptionError(f"Near: {name}={value!r} must be a whole number, and at least 1")
        for name in ("ttl", "heartbeat"):
            object.__setattr__(self, name, seconds(getattr(self, name), name=name, owner="Near"))


class Kept:
    """An entry: its JSON, or the object itself, which is `owner`'s alone.

    Two functions can share a key and differ in the type of their results: an object is for the owner that made it.
    """

    __slots__ = ("head", "owner", "size", "until", "value")

    def __init__(self, value: Any, owner: object | None, until: float, size: int, head: str) -> None:
        self.value = value
        self.owner = owner
        self.until = until
        self.size = size
        self.head = head


class Token:
    """Put down for a key before its value is asked for. It goes with its reader: a cancelled one leaves none."""

    __slots__ = ("__weakref__", "head", "key", "since")

    def __init__(self, key: str, head: str, since: float) -> None:
        self.key = key
        self.head = head
        self.since = since


class Channel:
    """A source of reports about changed keys: which keys, and until when the source is known to be alive."""

    __slots__ = ("_near", "heads", "until")

    def __init__(self, near: NearCache) -> None:
        self._near = near
        self.heads: tuple[str, ...] = ()
        self.until = -math.inf

    def open(self, until: float, heads: Iterable[str] = ("",)) -> None:
        """Report, from now on, all keys that begin with one of `heads`."""
        self.heads = tuple(heads)
        self.alive(until)

    def alive(self, until: float) -> None:
        """Extend the time until which reports are complete, by the near cache's clock."""
        self.until = until
        self._near.settle()

    def lost(self) -> None:
        """Drop all entries, because a change may not have been reported."""
        self.heads = ()
        self.alive(-math.inf)
        self._near.clear()  # mechanism: near-dropped-on-loss


class NearCache:
    """Entries that one process keeps of one namespace on one server (or cluster), for one event loop.

    Attributes:
        before: the namespace with its colon: names in Redis begin with it, keys here are without it.
        heartbeat: seconds that a channel counts as alive after a sign of life.
        clock: gives the time in seconds.
        valid_until: until when entries may answer, by `clock`.
    """

    __slots__ = (
        *("_bytes", "_channels", "_count", "_cut", "_groups", "_kept", "_shut", "_size", "_tokens", "_ttl"),
        *("__weakref__", "before", "clock", "heartbeat", "valid_until"),
    )

    def __init__(self, near: Near, *, before: bytes = b"", clock: Callable[[], float] = monotonic) -> None:
        self.before, self.clock = before, clock
        self.heartbeat = seconds(near.heartbeat, name="heartbeat", owner="Near")
        self._ttl = seconds(near.ttl, name="ttl", owner="Near")
        self._count, self._bytes, self._cut = near.entries, near.bytes, len(before.decode())
        self._kept: cachebox.LRUCache[str, Kept] = cachebox.LRUCache(0)  # its order is used; the bounds are kept here
        self._size = 0
        # Keys by the head of their pattern: a prefix is looked for where it can be only.
        self._groups: dict[str, set[str]] = {}
        self._tokens: WeakValueDictionary[str, Token] = WeakValueDictionary()
        self._channels: list[Channel] = []
        self._shut: list[tuple[tuple[bytes, ...], frozenset[bytes]]] = []
        self.valid_until = -math.inf
        _of_this_process.add(self)

    def __len__(self) -> int:
        return len(self._kept)

    # --- reading

    def lookup(self, key: str) -> Kept | None:
        """Return the entry of `key`, if there is one that may answer now."""
        kept: Kept | None = self._kept.get(key)
        if kept is not None:
            now = self.clock()
            if now < kept.until and now < self.valid_until:  # mechanism: near-signs-of-life
                return kept
        return None

    def begin(self, key: str, head: str = "") -> Token | None:
        """Return the token for `keep`, or None if the value could not be kept. Call this before the command is sent.

        Of several readers of a key it is the last one's that counts. `head` is what the key's pattern begins with.
        """
        now = self.clock()
        if now >= self.valid_until or not all(
            key.startswith(channel.heads)
            for channel in self._channels  # mechanism: near-key-tracked
        ):
            return None
        if self._shut:
            name = self.before + key.encode()
            if any(name in names or name.startswith(heads) for heads, names in self._shut):
                return None
        token = self._tokens[key] = Token(key, head if key.startswith(head) else "", now)
        return token

    def keep(self, token: Token, value: Any, owner: object | None = None, *, size: int, ttl_ms: int) -> bool:
        """Keep what was read, unless it may have changed since `begin`; return True if it is kept.

        Args:
            token: what `begin` gave.
            value: the entry's JSON; or with `owner` the object made of it, which no caller may change.
            owner: whose object it is.
            size: bytes of the JSON.
            ttl_ms: the reply of PTTL, read with the value: milliseconds, -1 for an entry that does not expire.
        """
        key = token.key
        if self._tokens.get(key) is not token or ttl_ms < -1:  # mechanism: near-token-check
            return False
        self._drop(key)
        size += len(key) + _OVERHEAD
        if size > self._bytes:
            return False
        ttl = self._ttl if ttl_ms < 0 else min(self._ttl, ttl_ms / 1000)  # mechanism: near-entry-ttl
        # From `begin` on: the server has measured the rest of its life after that.
        self._kept.insert(key, Kept(value, owner, token.since + ttl, size, token.head))
        self._groups.setdefault(token.head, set()).add(key)
        self._size += size
        while len(self._kept) > self._count or self._size > self._bytes:
            self._account(*self._kept.popitem())
        return True

    # --- changes

    def pushed(self, names: Iterable[bytes] | None) -> None:
        """Drop the entries of these names in Redis, which the server reports as changed; None: all entries."""
        if names is None:
            self.clear()  # mechanism: near-flush
            return
        for name in names:
            self._drop(self._key(name))

    @contextmanager
    def shut(self, heads: Iterable[bytes] = (), names: Iterable[bytes] = ()) -> Iterator[None]:
        """Around an invalidation of this process: what it reaches is gone before it is sent, and not kept meanwhile.

        When it has been answered, a later read sees what it did. Heads and names are those in Redis.
        """
        reach = tuple(heads), frozenset(names)
        self._shut.append(reach)
        try:
            if self._kept or self._tokens:
                self._drop_reached(*reach)
            yield
        finally:
            self._shut.remove(reach)

    def cancel(self) -> None:
        """Keep nothing that is on its way."""
        self._tokens.clear()

    def clear(self) -> None:
        """Drop everything, and what is on its way."""
        self._kept.clear()
        self._groups.clear()
        self._size = 0
        self._tokens.clear()

    # --- channels

    def channel(self) -> Channel:
        """Add a channel, on which all entries depend: none answers until it is open."""
        made = Channel(self)
        self._channels.append(made)
        made.lost()
        return made

    def part(self, channel: Channel) -> None:
        """Remove a channel whose entries are dropped already."""
        self._channels.remove(channel)
        self.settle()

    def settle(self) -> None:
        """Compute anew until when entries may answer."""
        self.valid_until = min((channel.until for channel in self._channels), default=-math.inf)

    def _key(self, name: bytes) -> str:
        """Return the key of a name in Redis.

        A name that is no UTF-8 is neither a key of the cache nor a part of one.
        """
        return name.decode("utf-8", "surrogateescape")[self._cut :]

    def _drop(self, key: str) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._account(key, kept)
        self._tokens.pop(key, None)  # mechanism: near-change-takes-token

    def _account(self, key: str, kept: Kept) -> None:
        """Subtract an entry that is no longer kept from the counts."""
        self._groups[kept.head].discard(key)
        self._size -= kept.size

    def _drop_reached(self, heads: Iterable[bytes], names: Iterable[bytes]) -> None:
        for name in names:
            self._drop(self._key(name))
        if under := tuple(map(self._key, heads)):
            # A prefix may have a filter, which is not asked: more is dropped, never less.
            for key in [key for each in (*self._under(under), self._tokens) for key in each if key.startswith(under)]:
                self._drop(key)

    def _under(self, heads: tuple[str, ...]) -> Iterator[set[str]]:
        """Return the groups that may hold keys under one of `heads`: one of the two heads begins with the other."""
        for group, keys in self._groups.items():
            if group.startswith(heads) or any(head.startswith(group) for head in heads):
                yield keys


_of_this_process: WeakSet[NearCache] = WeakSet()


def _forked() -> None:
    """Drop all entries in a child process, whose parent gets the pushes. No loop of the parent's may use these here."""
    for near in list(_of_this_process):
        near.channel()  # that is never opened


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
