"""The invalidations of one function's entries, as far as its loads show: those for nothing, and those of the loads."""

from __future__ import annotations

import logging
from collections import OrderedDict
from time import monotonic

from fastrdb.events import Counters

logger = logging.getLogger("fastrdb")
_REMEMBERED = 1024
"""So many keys of each function are known by the digest of their latest entry."""
_MANY_REFUSED = 20


class Drops:
    """A function's latest entries, and what its loads say of writes.

    A result counts as the same if an entry with these bytes was stored under its key, which would still be there.
    """

    __slots__ = ("_filled", "_said")

    def __init__(self) -> None:
        self._filled: OrderedDict[str, tuple[int, float]] = OrderedDict()
        self._said = False

    def stored(self, counters: Counters, key: str, raw: bytes, ttl_ms: int) -> None:
        """Note an entry in whose place there was none."""
        now, digest = monotonic(), hash(raw)
        before, until = self._filled.pop(key, (0, 0.0))
        if before == digest and now < until:
            counters.tell("same", key)
        self._filled[key] = digest, now + ttl_ms / 1000
        if len(self._filled) > _REMEMBERED:
            self._filled.popitem(last=False)

    def refused(self, counters: Counters, key: str, reason: str) -> None:
        """Count a load that met a write. The log says once that most loads of a function do."""
        counters.tell("refused", key, reason)
        refused, stored = counters.counts["refused"], counters.counts["fill"]
        if refused >= _MANY_REFUSED and refused > stored and not self._said:
            self._said = True
            logger.warning(
                "%s: %d of %d results were not stored, because %s: with auto=False and a short exp more would be",
                *(counters.function, refused, refused + stored, reason),
            )
