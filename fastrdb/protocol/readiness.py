"""Whether a cache can do its work: found out by doing a little of it, on a key of its own."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastrdb.errors import CacheUnavailableError

from .interface import Granted

if TYPE_CHECKING:
    from fastrdb.transport import Client

    from .trust import Trust

_PROBE = "fastrdb:ready:"


@dataclass(frozen=True, slots=True)
class Readiness:
    """Facts for a readiness probe. The record is true if the cache can be used.

    Attributes:
        reachable: Redis has answered within the timeout.
        refused: what Redis has refused to do, and why, such as a command that an ACL forbids; "" for nothing.
        pending: why entries are not read for now, such as an invalidation that Redis has missed; "" for no reason.
        policy: the eviction policy of the server, such as `noeviction`; "" if the server does not say it.
        unreachable: why Redis was not reached; "" if it was.
        evicts: the policy may evict the index, as `allkeys-lru` may. The cache works with it, at a cost: see the
            guarantees.
    """

    reachable: bool
    refused: str
    pending: str
    policy: str
    unreachable: str = ""
    evicts: bool = False

    def __bool__(self) -> bool:
        return self.reachable and not self.refused and not self.pending


async def readiness(store: Any, client: Client, trust: Trust, fill: Any) -> Readiness:
    """Read, take a lease, store an entry and delete it. May be repeated; what a cancelled call leaves lapses."""
    key, token = f"{_PROBE}{secrets.token_hex(8)}", secrets.token_hex(16)
    try:
        await store.get_many(client, [key])
    except CacheUnavailableError as error:
        return Readiness(False, "", "", trust.policy, str(error), trust.evicts)
    try:
        answers = await store.acquire(client, {key: token})
        if isinstance(answer := answers[key], Granted):
            await store.fill(client, [fill(key, answer.lease, b"null", 1000)])
        await store.release(client, {key: token})
        await store.invalidate(client, keys=[key])
    except CacheUnavailableError as error:
        return Readiness(True, str(error), "", trust.policy, evicts=trust.evicts)
    return Readiness(True, "", store.bypass_reason(client) or "", trust.policy, evicts=trust.evicts)
