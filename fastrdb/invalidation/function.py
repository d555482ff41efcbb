"""One call of a function that invalidates.

Its prefixes are on the session before the function runs, so that a commit inside of the function carries them. They
stay there until the root transaction ends. What only the result names is covered by wider prefixes in commits before.
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

    async def run(self, function: Callable[[], Awaitable[Any]], values: dict[str, Any]) -> Any:
        """Return the result of `function()`. Once that is committed, nothing older than it is in the cache.

        `values` are its arguments by name. An error or a cancellation of the function passes through; what it has
        committed by then is invalidated.
        """
        plan, calls = self.plan, (values,)
        client = self.cache.client(plan, values)
        if client is None:
            return await function()
        store, session, reaches = self.cache.store(client), sync_session(plan.session(values)), plan.reaches
        targets = Targets(
            store,
            lambda: store.intent(client),
            reaches.prefixes_before(calls),
            reaches.keys_before(calls),
            reaches.prefixes_before_result(calls),
        )
        if session is not None and has_transaction(session):
            targets.join(session)
        try:
            with RunningCall(plan.function, plan.session_name, session, targets):
                result = await function()
        finally:
            ending = leave(targets)
        if ending is not None:
            await asyncio.shield(ending)
        targets.wide = []  # the result is known
        known = ({**values, RESULT: result},)
        await self._follow(targets, session, client, reaches.prefixes_after(known), reaches.keys_after(known))
        return result

    async def _follow(
        self, targets: Targets, session: Any, client: Any, prefixes: list[Prefix], keys: list[str]
    ) -> None:
        """Invalidate what no commit has carried: with the commits that are to come, or now if there are none."""
        heads = [prefix.head for prefix in (*targets.prefixes, *prefixes)]
        self.counters.tell("invalidation", ", ".join([*heads, *targets.keys]))
        added = targets.add(prefixes, keys)
        if (session is not None and has_transaction(session)) or not (targets.carried or added):
            every = [*targets.prefixes, *prefixes], [*targets.keys, *keys]
            await enlist(self.cache, client, session, *every, writes=not targets.carried)
