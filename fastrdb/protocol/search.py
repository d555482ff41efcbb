"""The way to find entries that the index does not know of: to look at all keys there are.

The index is one key. A server that is told to make room at any cost (`allkeys-*`) may evict it, and people delete keys
by hand. What says where it is whole lies in the index itself, so that each sweep sees in its own script whether it may
believe it. Where not, this is done instead, once: after that the index is whole again.

First all leases go, and then the entries that are reached. In one go over both, a lease that has yet to come could
become an entry where the search has been already. The model check refutes that order.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Collection, Sequence

from fastrdb.transport import Argument, Call, Client, Link, Names, Range, Script, lists

logger = logging.getLogger("fastrdb")

_SEARCH = Script.load("search")
_PARTS = {"leases": 1024, "entries": 256}
"""How many keys one script looks at, so that it takes a millisecond or so: the server itself sorts out the leases."""


class Search:
    """Looks at all keys of one server.

    `heads` is what the keys of this process's functions begin with, without the namespace; it may grow. It tells whose
    keys those are that the index does not know. In a namespace, all that lies in it is the cache's.
    """

    def __init__(self, link: Link, names: Names, heads: Collection[str]) -> None:
        self._link, self._names, self._heads = link, names, heads
        self._told = False

    async def delete(self, client: Client, ranges: Sequence[Range], spared: str, progress: Callable[[], None]) -> int:
        """Delete what the ranges reach, but those whose lease is held by the token `spared`; gives how many.

        On the way the index is made whole again, as far as it is known here which keys are entries. `progress` is
        called after each look.
        """
        if not self._told:
            self._told = True
            logger.warning("the index in Redis does not know all keys (it was lost, or is new): looking at all of them")
        reach = lists([(each.head, each.filter) for each in ranges], self._names.known(self._heads))
        token, deleted, longest = secrets.token_hex(16), 0, 0
        for part, count in _PARTS.items():  # mechanism: leases-before-entries
            cursor: bytes | int = 0
            while cursor != b"0":
                settings = (token, part, cursor, count, self._names.leases, self._names.before, spared, longest)
                cursor, longest, gone = await self._look(client, (*settings, *reach))
                deleted += gone
                progress()
        return deleted

    async def _look(self, client: Client, arguments: Sequence[Argument]) -> tuple[bytes, int, int]:
        """Look at some keys."""
        cursor, longest, deleted = await self._link.script(client, Call(_SEARCH, self._names.shared[:2], arguments))
        return cursor, longest, deleted
