"""What Redis answers to the store: what is there, and whether the caller may load."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

GONE = -2
"""What PTTL says of a key that is not there."""


@dataclass(frozen=True, slots=True)
class Hit:
    """There is an entry by now: its bytes."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Granted:
    """The lease is the caller's: load, then fill or release."""


@dataclass(frozen=True, slots=True)
class Busy:
    """Another caller loads or writes this key: the token of its lease."""

    token: str


@dataclass(frozen=True, slots=True)
class Barred:
    """A writer that reaches this key is about to commit: load, and do not store."""


Outcome = Hit | Granted | Busy | Barred


@dataclass(frozen=True, slots=True)
class Timed:
    """An entry and what is left of its life in Redis: milliseconds, or -1 if it never expires."""

    raw: bytes
    ttl_ms: int


@dataclass(frozen=True, slots=True)
class Entry:
    """What Redis holds for a key. `ttl_ms` is None when there is no entry, and -1 when it never expires."""

    ttl_ms: int | None
    size: int
    leased: bool
    barred: bool


class Asked(NamedTuple):
    """A lease that is asked for. `old` says which entry does not answer instead: see `acquire.lua`."""

    entry: bytes
    token: str
    old: str | int


class Fill(NamedTuple):
    """An entry to be stored for `ttl_ms` where its lease holds the token."""

    entry: bytes
    token: str
    raw: bytes
    ttl_ms: int
