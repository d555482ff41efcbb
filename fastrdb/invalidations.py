"""Invalidate: the path of one call of a function that writes.

Its prefixes are on the session before the function runs, so that a commit inside the function carries them, and stay
there until the root transaction ends. What is known only afterwards, and what no commit carried, is done by hand.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from .cache import BaseCache
from .calls import CallPlan
from .prefixes import Prefix
from .session import has_transaction, sync_session
from .transactions import Scope, state_of, work_on


class Invalidation:
    """One function that writes: its plan and counters, in one cache."""

    __slots__ = ("cache", "plan", "counters")

    def __init__(self, cache: BaseCache, plan: CallPlan) -> None:
        self.cache = cache
        self.plan = plan
        self.counters = cache.counters(plan.function)

    async def run(self, function: Callable[[], Awaitable[Any]], values: dict[str, Any]) -> Any:
        """What `function()` gives; when that is committed, nothing older than it is in the cache."""
        plan = self.plan
        client = self.cache.client(plan, values)
        if client is None:
            return await function()
        store = self.cache.store(client)
        session = sync_session(plan.session(values))
        scope = Scope(store, lambda: store.intent(client), plan.prefixes_before(values), plan.keys_before(values))
        if session is not None and has_transaction(session):
            scope.join(state_of(session))
        try:
            with scope.entered():
                result = await function()
        except BaseException:
            if scope.direct is not None:  # a commit may or may not have been among what it did
                scope.direct.abandon()
            raise
        if scope.direct is not None:
            await self.cache.shielded(scope.direct.end(committed=True))
        await self._follow(scope, session, client, plan.prefixes_after(values, result), plan.keys_after(values, result))
        return result

    async def _follow(
        self, scope: Scope, session: Any, client: Any, prefixes: list[Prefix], keys: list[str]
    ) -> None:
        self.counters.tell("invalidation", ", ".join([*(p.head for p in [*scope.prefixes, *prefixes]), *scope.keys]))
        open_one = session is not None and has_transaction(session)
        if open_one:
            work_on(state_of(session), scope.owner, scope.make).add(
                [*scope.prefixes, *prefixes], [*scope.keys, *keys]
            )
        if scope.carried:  # it has committed already: only what was not known by then is left
            if prefixes or keys:
                await self.cache.delete(client, prefixes, keys)
        elif not open_one:
            await self.cache.delete(client, [*scope.prefixes, *prefixes], [*scope.keys, *keys])
