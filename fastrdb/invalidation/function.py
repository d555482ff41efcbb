"""One call of a function that invalidates.

Its prefixes are on the session before the function runs, so that a commit inside of the function carries them. These
stay there until the root transaction ends. What only the result names is covered by wider prefixes in commits before.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any

from fastrdb.keys import VARIANTS, BoundCall, CallPlan, Image, Prefix
from fastrdb.orm import Declared
from fastrdb.registry import Registered
from fastrdb.runtime import Runtime, as_coroutine_of
from fastrdb.transactions import (
    RunningCall,
    Targets,
    count_as_written,
    has_transaction,
    leave,
    meet,
    schema_maps,
    session_of,
    sync_session,
)

from .enlist import enlist


class Invalidation:
    """One function that writes: its plan and counters, in one cache."""

    __slots__ = ("cache", "plan", "counters", "registered", "named_run", "touches")

    def __init__(self, cache: Runtime, plan: CallPlan, registered: Registered, touches: Declared | None = None) -> None:
        self.touches = touches
        self.cache, self.registered = cache, registered
        cache.owned |= plan.templates.heads
        self.plan = plan
        self.counters = registered.counters
        self.named_run = as_coroutine_of(self.run, plan.function)

    async def run(self, function: Callable[[], Awaitable[Any]], call: BoundCall) -> Any:
        """Return the result of `function()`. Once that is committed, nothing older than it is in the cache.

        An error or a cancellation of the function passes through; what it has
        committed by then is invalidated.
        """
        plan, calls = self.plan, (call.arguments,)
        if not self.registered.written:
            self.cache.registry.first_write(self.registered)
        client = self.cache.client(plan, call)
        if client is None:
            return await function()
        store, session, templates = self.cache.store(client, plan), sync_session(call.session), plan.templates
        targets = Targets(
            store,
            partial(store.intent, client, self.counters),
            *templates.before(calls),
            templates.before_result(calls),
        )
        if self.touches is not None:
            self._touch(targets, self.touches, call.arguments, session)
        own = session_of(call.session) if session is None else session  # of a connection: one that has joined it
        if session is not None and has_transaction(session):
            targets.join(session)
        elif session is None and own is not None:
            meet(targets, own)
        try:
            with RunningCall(plan.function, plan.session_name, session, targets):
                result = await function()
        finally:
            if session is None and own is not None:
                meet(targets, own)  # its transaction may have begun meanwhile
            if own is not None and not targets.carried:
                count_as_written(own)
            ending = leave(targets)
        if ending is not None:
            await asyncio.shield(ending)
        targets.wide, targets.wide_images, images = [], [], list[Image]()  # the result is known
        if self.touches is not None and self.touches.of_result:
            given = {**call.arguments, "result": result}
            images = self.touches.images(given, schemas=() if session is None else schema_maps(session))
        await self._follow(targets, session, client, *templates.after(calls, result), images)
        return result

    def _touch(self, targets: Targets, touches: Declared, arguments: Mapping[str, Any], session: Any) -> None:
        """Note the rows that the call says it writes; until its result is known, the whole tables if it names them."""
        schemas = () if session is None else schema_maps(session)
        if touches.of_result:
            targets.wide_images = touches.whole(schemas)
        else:
            targets.images = touches.images(arguments, schemas=schemas)

    async def _follow(
        self,
        targets: Targets,
        session: Any,
        client: Any,
        prefixes: list[Prefix],
        keys: list[str],
        images: list[Image],
    ) -> None:
        """Invalidate what no commit has carried: with the commits that are to come, or now if there are none."""
        single = [*targets.keys, *keys]
        variants = tuple(f"{key}{mark}" for key in single for mark in VARIANTS)  # of single keys: not worth telling
        heads = [each.head for each in (*targets.prefixes, *prefixes) if not each.head.startswith(variants)]
        self.counters.count("invalidation", ", ".join([*heads, *targets.keys]))
        added = targets.add(prefixes, keys, images)
        if (session is not None and has_transaction(session)) or not (targets.covered or added):
            every = [*targets.prefixes, *prefixes], [*targets.keys, *keys]
            images = [*targets.images, *images]
            await enlist(self.cache, client, session, *every, images=images, counters=self.counters)
