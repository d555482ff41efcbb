"""Invalidate: the path of one call of a function that writes.

Its prefixes are on the session before the function runs, so that a commit inside the function carries them, and stay
there until the root transaction ends. What is known only afterwards, and what no commit carried, is done by hand.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from fastrdb.keys import RESULT, CallPlan, Prefix
from fastrdb.runtime import Runtime
from fastrdb.transactions import RunningCall, Targets, has_transaction, leave, sync_session

from .enlist import enlist


class Invalidation:
    """One function that writes: its plan and counters, in one cache."""

    __slots__ = ("cache", "plan", "counters")

    def __init__(self, cache: Runtime, plan: CallPlan) -> None:
        self.cache = cache
        cache.owned |= plan.reaches.heads
        self.plan = plan
        self.counters = cache.counters(plan.function)

    async def run(self, function: Callable[[], Awaitable[Any]], *calls: dict[str, Any]) -> Any:
        """What `function()` gives; when that is committed, nothing older than it is in the cache.

        `calls` are the arguments by name; of several, which are done in one, Redis and session are the first one's.
        """
        plan, values = self.plan, calls[0]
        client = self.cache.client(plan, values)
        if client is None:
            return await function()
        store = self.cache.store(client)
        session = sync_session(plan.session(values))
        before = plan.reaches.prefixes_before(calls), plan.reaches.keys_before(calls)
        targets = Targets(store, lambda: store.intent(client), *before)
        if session is not None and has_transaction(session):
            targets.join(session)
        try:
            with RunningCall(plan.function, plan.session_name, session, targets):
                result = await function()
        finally:
            ending = leave(targets)
        if ending is not None:
            await asyncio.shield(ending)
        known = [{**each, RESULT: result} for each in calls]
        await self._follow(targets, session, client, plan.reaches.prefixes_after(known), plan.reaches.keys_after(known))
        return result

    async def _follow(
        self, targets: Targets, session: Any, client: Any, prefixes: list[Prefix], keys: list[str]
    ) -> None:
        """After a commit only what was not known by then is left; one that is still to come takes all along."""
        heads = [prefix.head for prefix in (*targets.prefixes, *prefixes)]
        self.counters.tell("invalidation", ", ".join([*heads, *targets.keys]))
        added = targets.add(prefixes, keys)
        if (session is not None and has_transaction(session)) or not (targets.carried or added):
            every = [*targets.prefixes, *prefixes], [*targets.keys, *keys]
            await enlist(self.cache, client, session, *every, writes=not targets.carried)
        if targets.carried and (prefixes or keys):
            await enlist(self.cache, client, None, prefixes, keys)
