"""The JSON of entries, for answers that are that JSON itself.

Each distinct entry is decoded once by each process, so that nothing else than the function's own JSON is handed on.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from hashlib import sha256
from time import monotonic
from typing import TYPE_CHECKING, Any

from fastrdb.errors import CacheUnavailableError
from fastrdb.transactions import no_store
from fastrdb.values import DecodeError

from .policy import Decision

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from .entry import Entries

_MOST_KNOWN = 10_000  # about 2 MB


@dataclass(frozen=True, slots=True)
class Stored:
    """An entry as it lies in Redis.

    Attributes:
        key: its key, without the namespace.
        json: the value as JSON.
        digest: SHA-256 of `json`, in hexadecimal digits.
        ttl: the seconds left of its `exp`; infinite for an entry that never expires.
    """

    key: str
    json: bytes
    digest: str
    ttl: float


class Peeks:
    """The looks at the entries of one function, and when the `exp` of each entry that was decoded is over.

    An entry that is stored once more with the same bytes lives longer than is known here, never shorter: what is known
    is at most the shortest life that `jitter` leaves.
    """

    __slots__ = ("_entries", "_known")

    def __init__(self, entries: Entries) -> None:
        self._entries = entries
        self._known: dict[tuple[str, bytes], float] = {}

    async def peek(self, client: Any, session: Session | None, key: str) -> Stored | None:
        """Return the entry that a call would be answered with now; None if there is none, and if Redis is unwell."""
        entries, store = self._entries, self._entries.cache.store(client)
        if entries.bypass_reason(store, client, session) is not None:
            return None
        try:
            raw = await store.get(client, key)
            if raw is None:
                return None
            digest = sha256(raw)
            begun = monotonic()
            over = self._known.get((key, digest.digest()), 0.0)
            if over <= begun:
                (timed,) = await store.get_many(client, (key,), timed=True)
                if timed is None or timed.raw != raw:
                    return None
                negative = entries.codec.decode(raw) is None
                over = begun + entries.policy.left_ms(timed.ttl_ms, negative=negative) / 1000
                shortest = entries.policy.ttl_ms(negative=negative, random=1)
                least = begun + entries.policy.left_ms(shortest, negative=negative) / 1000
                self._note(key, digest.digest(), min(over, least))
        except (CacheUnavailableError, DecodeError):
            return None
        chance, left = 1 - random.random(), over - monotonic()
        if entries.policy.decide(left * 1000, load_ms=entries.pace.ms, random=chance) is not Decision.FRESH:
            return None
        no_store("it shows what peek() returned, and what that depends on is not known")  # to a load around this
        return Stored(key, raw, digest.hexdigest(), left)

    def _note(self, key: str, digest: bytes, over: float) -> None:
        if len(self._known) >= _MOST_KNOWN:
            del self._known[next(iter(self._known))]
        self._known[key, digest] = over
