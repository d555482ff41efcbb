"""Replacing an entry that was seen: by the caller itself, or in the background with a session of its own.

An ordinary miss with an ordinary lease, which keeps out what became stale meanwhile. But it waits for nobody: whoever
holds the lease does the same, and there is the old value until then.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from inspect import Parameter, signature
from typing import Any

from fastrdb.errors import CacheUnavailableError, OptionError
from fastrdb.protocol import Barred, Busy, Granted, Hit, Timed
from fastrdb.transactions import apart, missing_row, next_order, sync_session, why_not_stored

from .entry import MISS, Call, Entries
from .misses import Loaded, Miss

logger = logging.getLogger("fastrdb")


class Refresh(Miss):
    """One caller's load in place of whatever entry there is."""

    __slots__ = ()

    def __init__(self, query: Entries, call: Call) -> None:
        super().__init__(query, call, refresh=True)

    async def _fill(self, loaded: Loaded) -> bool:
        stored = await super()._fill(loaded)
        if not stored and (loaded.error is None or missing_row(loaded.error)):
            await self.query.forget(self.call, [self.call.key])
        return stored


class Reload(Miss):
    """One caller's attempt to replace an entry; `early`: its `exp` is not over yet."""

    __slots__ = ("seen", "early")

    def __init__(self, query: Entries, call: Call, seen: Timed, *, early: bool) -> None:
        super().__init__(query, call, seen_ms=seen.ttl_ms)
        self.seen = seen
        self.early = early

    async def attempt(self) -> Any:
        """The new value; or MISS, where it is not for this caller to load, or Redis does not answer."""
        session = self.call.session
        if session is not None and await why_not_stored(session, next_order()) is not None:
            return MISS  # what it loads could not be stored
        query, key = self.query, self.call.key
        with self.state.flights.open(self.token) as mine:  # before `acquire`: who finds our lease finds our flight
            try:
                outcome = await self._acquire()
            except CacheUnavailableError as error:
                query.counters.tell("unavailable", key, str(error))
                return MISS
            match outcome:
                case Granted():
                    if self.early:
                        query.counters.tell("early", key)
                    return await self._lead(mine)
                case Hit(raw):
                    value = await query.read(self.call, raw)
                    if value is not MISS:
                        query.counters.tell("hit", key)
                    return value
                case Busy() | Barred():
                    return MISS


class Background(Reload):
    """A reload that is nobody's call: `run` again, with a session of its own if it takes one."""

    __slots__ = ("run",)

    def __init__(self, query: Entries, call: Call, seen: Timed, run: partial[Any], *, early: bool) -> None:
        super().__init__(
            query, replace(call, session=None, patience=call.store.patience(call.client)), seen, early=early
        )
        self.run = run

    async def reload(self, keys: list[str]) -> None:
        """Load and store; raises nothing. `keys` are its one key."""
        with in_background(self.query, *keys):
            await self.attempt()

    async def _load(self) -> Loaded:
        async with own_session(self.query) as session:
            if session is not None:
                run = with_argument(self.run, str(self.query.plan.session_name), session)
                self.call = replace(self.call, session=sync_session(session), run=run)
            return await super()._load()

    async def _fill(self, loaded: Loaded) -> bool:
        stored = await super()._fill(loaded)
        if not stored and (loaded.error is None or missing_row(loaded.error)):
            # The database has said something else, or that there is nothing: no more of the old value then.
            with suppress(CacheUnavailableError):
                await self.call.store.discard(self.call.client, self.call.key, self.seen.raw)
        return stored


@contextmanager
def in_background(query: Entries, *keys: str) -> Iterator[None]:
    """What is done inside is part of no call. What goes wrong is logged, and told to the hook."""
    with apart():
        try:
            yield
        except Exception as error:
            if not missing_row(error):
                for key in keys:
                    query.counters.tell("failed", key, f"{type(error).__name__}: {error}")
                function, kind = query.plan.function, type(error).__name__
                logger.warning("%s: a reload in the background failed: %s", function, kind)
                # A database's error quotes what it was asked for: no more of it than who debugs wants to see.
                logger.debug("%s: %s", function, kind, exc_info=error)


@asynccontextmanager
async def own_session(query: Entries) -> AsyncIterator[Any]:
    """A session from `session_factory` for a function that takes one; else None. Raises OptionError if it is none."""
    factory = query.policy.session_factory
    if factory is None:
        yield None
        return
    async with factory() as session:
        if sync_session(session) is None:
            raise OptionError(f"{query.plan.function}: session_factory gave {session!r}, which is not an AsyncSession")
        yield session


def with_argument(call: partial[Any], name: str, value: object) -> partial[Any]:
    """The call with another value for one of its parameters."""
    declared = signature(call.func)
    bound = declared.bind(*call.args, **call.keywords)
    if declared.parameters[name].kind is Parameter.POSITIONAL_ONLY:
        bound.apply_defaults()  # what stands before it cannot be left out
    bound.arguments[name] = value
    return partial(call.func, *bound.args, **bound.kwargs)
