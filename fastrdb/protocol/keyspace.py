"""Names of the protocol's keys in Redis, and what an invalidation reaches. Pure.

On one server there is one shard: an index, its expiry, barriers, trusted ids. On a cluster there are sixteen. An entry
belongs to one of them by a hash of its name; the keys of a shard lie in one slot, which is another than the entry's.
The lease of an entry lies in the entry's slot, and so does the roster, the list of all entries and leases of a slot.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar
from zlib import crc32

from fastrdb.transport import SLOTS, Budget, hash_tag, slot_of, tags

if TYPE_CHECKING:
    from fastrdb.keys import Prefix

EXACTLY = b"="
"""The filter of a target that is one key. No glob of a prefix reads like this: globs end in `*` or `$`."""
TAG = b"\0"
"""What a target begins with that is a name of tags, and its filter. No name of an entry begins so."""
COMPLETE = b"\0"
"""A member of each complete index. An index without it was lost. See common.lua."""
INCOMPLETE = b"\0\0"
"""What members begin with that only say that there is an index."""
NO_BARRIER = b"0" * 32 + b"\0\n"
"""A barrier that covers no key. Where it is missing, barriers were lost."""
GONE = -2
"""The reply of PTTL for a key that does not exist."""
SHARDS = 16
"""With more, each write of a prefix has more shards to ask; with fewer, some masters of a large cluster have none."""
_VARIANTS = (b"?%", b"&%")
_BYTES_PER_CALL = 256 * 1024
_FIRST_KEY = b"\1"  # index members before this are no keys

T = TypeVar("T")


class Range(NamedTuple):
    """The part of an index that a target reaches: arguments of begin.lua and fence.lua."""

    start: bytes
    stop: bytes
    head: bytes
    filter: bytes

    def behind(self, key: bytes) -> Range:
        """Return the rest of the range, behind `key`."""
        return self._replace(start=b"(" + key)


class Target(NamedTuple):
    """The keys that an invalidation reaches, by names in Redis: all under a head that pass a filter, or one key."""

    head: bytes
    filter: bytes = b""

    @property
    def exact(self) -> bool:
        """Return whether the target is one key."""
        return self.filter == EXACTLY

    @property
    def name(self) -> bytes:
        """Return the name of tags that the target is."""
        return self.head[len(TAG) :]

    def barrier(self, token: str) -> bytes:
        """Return the member of the barriers that bars this target; no key has a newline."""
        return b"%s%s\n%s" % (token.encode(), self.head, self.filter)

    def range(self) -> Range:
        """Return the whole range of the index under the head."""
        if self.filter == TAG:
            after = _successor(self.name)
            return Range(b"[" + (self.name or _FIRST_KEY), b"(" + after if after else b"+", self.name, TAG)
        after = _successor(self.head)
        return Range(b"[" + (self.head or _FIRST_KEY), b"(" + after if after else b"+", self.head, self.filter)


def common(targets: Collection[Target]) -> Target:
    """Return the target that is all under the common head of some: the target reaches more, and never less."""
    first, last = min(target.head for target in targets), max(target.head for target in targets)
    same = (at for at, (one, other) in enumerate(zip(first, last, strict=False)) if one != other)
    return Target(first[: next(same, len(first))])  # what the first and the last share, all share


def divide(targets: Iterable[Target]) -> tuple[list[Target], list[bytes]]:
    """Return the targets that are ranges, and the names of those that are one key."""
    wide, keys = list[Target](), list[bytes]()
    for target in targets:
        if target.filter == EXACTLY:
            keys.append(target.head)
        else:
            wide.append(target)
    return wide, keys


def named(names: Iterable[str]) -> list[Target]:
    """Return the targets that are names of tags."""
    return [Target(TAG + name.encode(), TAG) for name in names]


def _successor(head: bytes) -> bytes:
    """Return the first byte string behind all that begin with `head`; empty if there is none."""
    cut = head.rstrip(b"\xff")
    return cut[:-1] + bytes([cut[-1] + 1]) if cut else b""


@dataclass(frozen=True, slots=True)
class Shard:
    """Names of the keys of one shard."""

    index: bytes
    expiry: bytes
    barriers: bytes
    trusted: bytes
    tags: bytes
    tagged: bytes
    ended: bytes
    columns: bytes

    @classmethod
    def under(cls, head: str | bytes) -> Shard:
        """Return the shard whose keys begin with `head`."""
        text = head if isinstance(head, bytes) else head.encode()
        return cls(*(text + part.encode() for part in cls.__slots__))

    @property
    def all(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Return the names that a reader's scripts take, in their order."""
        return self.index, self.expiry, self.barriers, self.trusted

    @property
    def work(self) -> tuple[bytes, bytes, bytes]:
        """Return the names that a writer's scripts take."""
        return self.index, self.expiry, self.barriers

    @property
    def of_tags(self) -> tuple[bytes, bytes, bytes, bytes]:
        """Return the names of the keys of tags."""
        return self.tags, self.tagged, self.ended, self.columns


class Keyspace:
    """Names of the keys of one namespace on one server.

    Attributes:
        before: the namespace with its colon; names of entries begin with it.
        leases: what names of leases begin with.
        shards: the one shard.
        healing: name of the lock of the process that deletes untrusted data.
        watch: name of the hash of positions and heartbeats of watchers.
    """

    def __init__(self, namespace: str) -> None:
        self.room = f"fastrdb:{namespace}:" if namespace else "fastrdb:"
        self.before = f"{namespace}:".encode() if namespace else b""
        self.leases, self.healing = f"{self.room}lease:".encode(), f"{self.room}healing".encode()
        self.watch = f"{self.room}watch".encode()
        self.shards: Sequence[Shard] = [Shard.under(self.room)]

    def entry(self, key: str) -> bytes:
        """Return the name of the entry of `key`."""
        return self.before + key.encode()

    def lease(self, entry: bytes) -> bytes:
        """Return the name of an entry's lease: in the same slot, by the entry's own hash tag or by a new one."""
        tagged = b"{" in entry and hash_tag(entry) is not entry
        return self.leases + (entry if tagged else b"{%s}" % entry)

    def shard(self, entry: bytes) -> Shard:
        """Return the shard of an entry."""
        return self.shards[0]

    def places(self, target: Target) -> Sequence[Shard]:
        """Return the shards that a target concerns: a single key its own, a prefix all of them."""
        return (self.shard(target.head),) if target.exact else self.shards

    def under(self, prefix: Prefix) -> Target:
        """Return what `prefix` reaches."""
        scoped = prefix.under(self.before.decode()) if self.before else prefix
        return Target(scoped.head.encode(), scoped.filter.encode())

    def exactly(self, key: str) -> Target:
        """Return the target that is one key."""
        return Target(self.entry(key), EXACTLY)

    def targets(self, prefixes: Iterable[Prefix], keys: Iterable[str]) -> list[Target]:
        """Return what prefixes and keys reach, each target once."""
        return [*dict.fromkeys([*map(self.under, prefixes), *map(self.exactly, keys)])]

    def shown(self, reached: tuple[bytes, bytes]) -> str:
        """Return a target or range as events have it: a key, or a head with `*`; of tags the table only."""
        head, filter_ = reached
        if filter_ == TAG:
            return head.strip(TAG).partition(b":")[0].decode("utf-8", "replace") or "*"
        of_key = head[-2:] in _VARIANTS
        head = head[:-2] if of_key else head
        return head.removeprefix(self.before).decode("utf-8", "replace") + ("" if of_key or filter_ == EXACTLY else "*")

    def known(self, heads: Iterable[str]) -> list[bytes]:
        """Return what names of entries begin with: the namespace, or those of the `heads` of patterns with a text."""
        return [self.before] if self.before else sorted(head.encode() for head in heads if head)

    @property
    def everything(self) -> Target:
        """Return the target that is all of the namespace."""
        return Target(self.before)


class ClusterKeyspace(Keyspace):
    """Names of the keys of one namespace on a cluster."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        step = SLOTS // SHARDS
        # In the middle of each sixteenth of the slots: spread over the masters, however many there are.
        middles = (tags()[step * number + step // 2] for number in range(SHARDS))
        self.shards = [Shard.under(b"%s{%s}:" % (self.room.encode(), tag)) for tag in middles]

    def lease(self, entry: bytes) -> bytes:
        """Return the name of an entry's lease, in the entry's slot."""
        if b"}" in entry and hash_tag(entry) is entry:  # new braces around the entry would end too early
            bare = entry.replace(b"{", b"%7B").replace(b"}", b"%7D")
            return b"%s{%s}%s" % (self.leases, tags()[slot_of(entry)], bare)
        return super().lease(entry)

    def shard(self, entry: bytes) -> Shard:
        """Return the shard of an entry."""
        return self.shards[crc32(entry) % SHARDS]

    def in_slot(self, entry: bytes) -> tuple[bytes, bytes, bytes]:
        """Return the keys in an entry's slot: the entry, its lease, the roster."""
        return entry, self.lease(entry), self.roster(slot_of(entry))

    def roster(self, slot: int) -> bytes:
        """Return the name of the list of all entries and leases of a slot."""
        return b"%s{%s}:roster" % (self.room.encode(), tags()[slot])


def lists(*each: Sequence[Any]) -> list[Any]:
    """Return lists as a script reads them: the length of each, then its items, a tuple's parts one by one."""
    arguments: list[Any] = []
    for items in each:
        arguments.append(len(items))
        for item in items:
            arguments.extend(item if isinstance(item, tuple) else (item,))
    return arguments


def portions(items: Sequence[T], size: int, budget: Budget | None = None) -> Iterator[Sequence[T]]:
    """Cut items into portions of `size`, each with the timeout."""
    for at in range(0, len(items), size):
        if at and budget is not None:
            budget.renew()
        yield items[at : at + size]


def batches(size: int, *each: Sequence[Any], budget: Budget | None = None) -> Iterator[list[list[Any]]]:
    """Cut lists into calls of at most `size` items and about 256 KiB, in the order of all, each with the timeout.

    An item is of bytes, or a tuple of bytes.
    """
    call: list[list[Any]] = [[] for _ in each]
    count = weight = 0
    for at, items in enumerate(each):
        for item in items:
            cost = len(item) if type(item) is bytes else sum(map(len, item))
            if count and (count == size or weight + cost > _BYTES_PER_CALL):
                yield call
                call, count, weight = [[] for _ in each], 0, 0
                if budget is not None:
                    budget.renew()
            call[at].append(item)
            count, weight = count + 1, weight + cost
    if count:
        yield call
