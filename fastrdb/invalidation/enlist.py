"""Bind an invalidation to the commit that makes it due; without a transaction, invalidate now.

Functions decorated with @invalidates, `invalidate` and `put` of cached functions, and FastRDB all come through here.
Transactions that begin inside of a call of @invalidates are joined by `fastrdb.transactions`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from fastrdb.keys import Image, Prefix
from fastrdb.runtime import Runtime, is_disabled
from fastrdb.transactions import has_transaction, intent_on, partly_committed, state_of, wrote

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from fastrdb.events import Counters


class Put(NamedTuple):
    """An entry to store once the transaction that wrote its row is committed."""

    key: str
    raw: bytes
    ttl_ms: int
    tags: tuple[str, ...] = ()


async def enlist(
    cache: Runtime,
    client: Any,
    session: Session | None,
    prefixes: Iterable[Prefix] = (),
    keys: Iterable[str] = (),
    puts: Iterable[Put] = (),
    *,
    writes: bool = False,
    counters: Counters | None = None,
    images: Sequence[Image] = (),
) -> int | None:
    """Invalidate prefixes, keys and what images reach, and store `puts`, when the open transaction commits.

    Nothing is sent until then. Without an open transaction, invalidate all of them now, the keys of `puts` included;
    this goes on if the caller is cancelled, and may raise CacheUnavailableError if the cache has on_error="raise".

    A put only invalidates its key if another writer may have changed the row since: the session has not written, or a
    part of the transaction is committed already. The same holds while the cache is disabled.

    Return the number of entries deleted; None if that is to come.

    With `writes`, the session counts as having written until its transaction ends, whatever its statements were.
    """
    keys, puts = list(keys), list(puts)
    if session is None or not has_transaction(session):
        return await cache.delete(client, list(prefixes), [*keys, *(put.key for put in puts)], counters, images)
    store, state = cache.store(client), state_of(session)
    state.declared |= writes
    intent = intent_on(session, store, partial(store.intent, client, counters))
    ended = state.autocommitted or (puts and not session.in_transaction() and partly_committed(session))
    if puts and (is_disabled(cache) or ended or not wrote(session)):
        keys, puts = [*keys, *(put.key for put in puts)], []
    intent.add(prefixes, keys, images)
    for put in puts:
        intent.put(*put)
    return None
