"""Where keys lie on a Redis Cluster, and what the store's own keys are called there. Pure.

An entry is where its name puts it. Its lease lies in the same slot, and so does the roster, which lists all entries and
leases of that slot. Index, expiry and barriers are cut into shards: a key belongs to one by a hash of its name, and the
three of a shard lie in one slot, which is another than the key's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from zlib import crc32

from redis.crc import key_slot

from .scripts import Command, Names

SLOTS = 16384
SHARDS = 16
"""More, and each write of a prefix has more to ask; fewer, and some masters of a large cluster have none to keep."""


@dataclass(frozen=True, slots=True)
class Shard:
    """The names of one shard's keys."""

    index: bytes
    expiry: bytes
    barriers: bytes
    histories: bytes

    @property
    def work(self) -> tuple[bytes, bytes, bytes]:
        """The keys that most scripts are about."""
        return self.index, self.expiry, self.barriers


def hash_tag(name: bytes) -> bytes:
    """The part of a name that says where it lies: between its first brace and the next one that closes, if any."""
    opened = name.find(b"{")
    closed = name.find(b"}", opened + 1) if opened >= 0 else -1
    return name[opened + 1 : closed] if closed > opened + 1 else name


def slot_of(name: bytes) -> int:
    """Return the slot of a key."""
    return int(key_slot(name))


@cache
def tags() -> Sequence[bytes]:
    """A hash tag for each slot."""
    # CRC is linear: four letters that differ in 2, 4, 4 and 4 bits give each slot once.
    found = {slot_of(tag): tag for tag in map(bytes, product(b"@ABC", *[b"@ABCDEFGHIJKLMNO"] * 3))}
    return [found[slot] for slot in range(SLOTS)]


def key_of(command: Command) -> bytes | None:
    """The key by which a command finds its server; None if any server will do."""
    name, *rest = command
    if name in ("EVALSHA", "EVAL"):
        key = rest[2] if rest[1] else None
    else:
        key = rest[0] if rest and name not in _KEYLESS else None
    return key if isinstance(key, bytes) else None


_KEYLESS = ("PING", "INFO", "SCAN", "ASKING")


class SlotNames(Names):
    """What the keys of one namespace are called on a cluster."""

    def __init__(self, namespace: str) -> None:
        super().__init__(namespace)
        self._room = self.leases.removesuffix(b"lease:")
        step = SLOTS // SHARDS
        # In the middle of each sixteenth of the slots: spread over the masters, however many there are.
        self.shards = [self._shard(tags()[step * number + step // 2]) for number in range(SHARDS)]

    def lease(self, entry: bytes) -> bytes:
        """Give the name of an entry's lease, in the entry's slot."""
        if b"}" in entry and hash_tag(entry) is entry:  # new braces around it would end too early
            bare = entry.replace(b"{", b"%7B").replace(b"}", b"%7D")
            return b"%s{%s}%s" % (self.leases, tags()[slot_of(entry)], bare)
        return super().lease(entry)

    def shard(self, entry: bytes) -> Shard:
        """Give the shard that an entry belongs to."""
        return self.shards[crc32(entry) % SHARDS]

    def in_slot(self, entry: bytes) -> tuple[bytes, bytes, bytes]:
        """Give what there is in an entry's slot: itself, its lease, the roster."""
        return entry, self.lease(entry), self.roster(slot_of(entry))

    def roster(self, slot: int) -> bytes:
        """Give the name of the list of all entries and leases of a slot."""
        return b"%s{%s}:roster" % (self._room, tags()[slot])

    def _shard(self, tag: bytes) -> Shard:
        parts = (b"index", b"expiry", b"barriers", b"histories")
        return Shard(*(b"%s{%s}:%s" % (self._room, tag, part) for part in parts))
