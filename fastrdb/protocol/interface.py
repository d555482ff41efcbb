"""What the protocol can do on Redis, whatever its topology, and the records that it returns.

Names of entries are those in Redis. Every method raises CacheUnavailableError when Redis does not do it.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping, MutableMapping, Sequence
from copy import copy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, Self

from fastrdb.transport import Budget, Client, RedisClient

if TYPE_CHECKING:
    from .keyspace import Keyspace, Target
    from .trust import Trust

DEAD_PER_FILL = 10
"""So many dead index members each fill or release removes: more than it adds, so that the index does not grow."""


@dataclass(frozen=True, slots=True)
class Hit:
    """There is an entry by now: its bytes."""

    raw: bytes


@dataclass(frozen=True, slots=True)
class Granted:
    """The caller has the lease: load, then fill with it, or release it. `since` goes with it into the fill."""

    lease: bytes = field(default=b"", compare=False)
    since: bytes = field(default=b"", compare=False)


@dataclass(frozen=True, slots=True)
class Busy:
    """Another caller loads this key: the token of its lease."""

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
    """The state of a key in Redis. `ttl_ms` is None if there is no entry, and -1 if it never expires."""

    ttl_ms: int | None
    size: int
    leased: bool
    barred: bool


class Ask(NamedTuple):
    """A lease that is asked for. `old` says which entry does not answer instead: see `answer` in common.lua."""

    entry: bytes
    token: str
    old: str | int = ""
    tagged: bool = False


class Write(NamedTuple):
    """An entry to be stored for `ttl_ms` milliseconds if its lease is still there. `tags` are its tags, one a line."""

    entry: bytes
    lease: bytes
    raw: bytes
    ttl_ms: int
    tags: bytes = b""
    since: bytes = b""


NamedRows = Sequence[tuple[bytes, bytes]]
"""The tables that a writer reaches by rows: `table:` for each, and the columns of it that the writer has named."""


@dataclass(slots=True)
class Sweep:
    """The work of a writer before its COMMIT; or by hand, when the write is committed: then there is no fence.

    Attributes:
        token: the writer's own, which its barriers and leases hold; "" by hand.
        fence: what to bar.
        targets: the prefixes and keys to delete.
        leases: the entries to take the lease of; each value is replaced by the lease.
        names: targets that are names of tags. A name that is not in the fence is stamped before anything is deleted.
        rows: the tables of which `names` name rows. Names of other columns in use are added.
        tags: those of the entries to be leased, one a line.
        again: spare the leases that this token has taken before.
    """

    token: str = ""
    fence: Sequence[Target] = ()
    targets: Sequence[Target] = ()
    leases: MutableMapping[bytes, bytes] = field(default_factory=dict)
    names: Sequence[Target] = ()
    rows: NamedRows = ()
    tags: Mapping[bytes, bytes] = field(default_factory=dict)
    again: bool = False


@dataclass(slots=True)
class Swept:
    """The work of a sweep: the entries that it deleted, and the names that it reached besides those given.

    Attributes:
        deleted: the number of entries.
        dropped: for the head and filter of each range the number of entries deleted there, as far as that is known.
        found: the entries that were found by tags.
        added: names of columns that are in use, and that the writer has not named.
    """

    deleted: int = 0
    dropped: Counter[tuple[bytes, bytes]] = field(default_factory=Counter)
    found: list[bytes] = field(default_factory=list)
    added: list[Target] = field(default_factory=list)


UNKNOWN = b"\0"
"""In place of a tag: whether a writer has reached an entry's tags is unknown, since something was lost."""


@dataclass(frozen=True, slots=True)
class Tagged:
    """An entry as a load reads it: with its tags, one a line, None if it has none."""

    raw: bytes | None
    ttl_ms: int
    tags: bytes | None


@dataclass(frozen=True, slots=True)
class Limits:
    """Times of the protocol, and the size of a portion.

    Attributes:
        timeout: seconds that a round trip may take.
        lease_ms: the longest load that is stored.
        fresh_ms: others wait no longer than this for a holder that does not renew its lease.
        barrier_ms: the longest COMMIT that is covered.
        chunk: how many index members one script reads, and how many scripts go at once.
    """

    timeout: float
    lease_ms: int
    fresh_ms: int
    barrier_ms: int
    chunk: int


class Backend(ABC):
    """The steps of readers and writers on one topology.

    A `budget` says how long the caller waits. It is renewed with each portion of much work: a portion that was answered
    is no silence of Redis.
    """

    link: RedisClient
    keyspace: Keyspace
    trust: Trust
    limits: Limits

    @abstractmethod
    async def get_many(
        self, client: Client, entries: Sequence[bytes], budget: Budget | None = None
    ) -> list[bytes | None]:
        """Return entries, read in one round trip."""

    @abstractmethod
    async def get_timed(
        self, client: Client, entries: Sequence[bytes], budget: Budget | None = None
    ) -> list[tuple[bytes | None, int]]:
        """Return entries, each with its PTTL, read in one round trip."""

    @abstractmethod
    async def acquire(self, client: Client, asks: Sequence[Ask], budget: Budget | None = None) -> list[Outcome]:
        """Ask for leases. A call that fails or is cancelled may have been granted them all the same."""

    @abstractmethod
    async def fill(self, client: Client, writes: Sequence[Write], budget: Budget | None = None) -> list[bool | bytes]:
        """Store under leases and give these back.

        Return of each True if it was stored, and False if the lease is another one by now. Else the tag that a writer
        has reached since the lease was granted, or UNKNOWN.
        """

    @abstractmethod
    async def release(self, client: Client, leases: Sequence[tuple[bytes, str]]) -> None:
        """Release leases, each of an entry if it holds the token. May be repeated."""

    @abstractmethod
    async def inspect(self, client: Client, entry: bytes) -> Entry:
        """Return what Redis holds, and change nothing."""

    @abstractmethod
    async def begin(self, client: Client, work: Sweep, budget: Budget) -> Swept:
        """Bar the fence, delete what the targets reach, take leases, in this order. May be repeated."""

    @abstractmethod
    async def end(
        self,
        client: Client,
        token: str,
        writes: Sequence[Write],
        released: Sequence[bytes],
        fence: Sequence[Target],
        budget: Budget,
        stamps: Sequence[bytes] = (),
    ) -> bool:
        """Fill under the own leases, give others back, stamp names of tags, remove barriers.

        Return whether all barriers stood until now.
        """

    def insisting(self) -> Self:
        """Return the same backend for work that is sent whatever the circuit breaker says."""
        other = copy(self)
        other.link = self.link.insisting()
        return other

    @abstractmethod
    def heal(self, client: Client) -> None:
        """Start deleting untrusted data in the background, unless this runs already."""

    @abstractmethod
    async def get_tagged(self, client: Client, entries: Sequence[bytes]) -> list[Tagged | None]:
        """Return entries, each with its tags of the same moment; None where the topology cannot."""

    async def delete(self, client: Client, targets: Sequence[Target]) -> Swept:
        """Delete what the targets reach, with the leases, and set no barriers."""
        return await self.begin(client, Sweep(targets=targets), self.link.budget(client))

    async def aclose(self) -> None:
        """Stop what runs in the background."""
        await self.trust.aclose()
