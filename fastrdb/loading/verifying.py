"""`verify=`: a share of hits has the entry compared with the database, in the background.

So a write that no invalidation names is found before a user finds it. The order is: read the entry, load with a session
of its own, read the entry again. A write in between has deleted the entry before its COMMIT. So an entry is out of date
if it still stands at the second read, and differs from what was loaded. A miss has no entry at the first read, which
goes out before the miss asks for its lease.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from math import log, log1p
from random import random
from typing import TYPE_CHECKING, Any

from fastrdb.errors import CacheUnavailableError, OptionError
from fastrdb.runtime import as_coroutine_of, disabling, is_disabled
from fastrdb.transactions import apart, missing_row, sync_session
from fastrdb.values import DecodeError, is_missing

if TYPE_CHECKING:
    from fastrdb.protocol import Store

logger = logging.getLogger("fastrdb")

NO_ROW_LEFT, ROW_NOW = "the row is not there any more", "the row is there now"


class Verifying:
    """The hits of one function, `query`, of which a share is verified, one at a time. `way` answers a call."""

    def __init__(self, query: Any, way: Callable[..., Any], with_argument: Any) -> None:
        self._query, self._way, self._with_argument = query, way, with_argument
        self._busy = self._logged = False

    def answering(self) -> Callable[..., Any]:
        """Return what answers a call: nearly all by `way` itself. Each counts down to the next one that is verified."""
        way, chosen = self._way, as_coroutine_of(self._answer_chosen, self._query.plan.function)
        left = self._gap()

        def answer(client: Any, session: Any, key: str, function: Any, args: Any, kwargs: Any) -> Any:
            nonlocal left
            left -= 1
            if left > 0:
                return way(client, session, key, function, args, kwargs)
            left = self._gap()
            return chosen(client, session, key, function, args, kwargs)

        return answer

    def _gap(self) -> float:
        """Return, rounded up, how many calls it takes to the next one that is verified, if each has the same chance."""
        share = self._query.policy.verify
        return 0 if share >= 1 else log(1 - random()) / log1p(-share)

    def choose(self, client: Any, key: str, run: partial[Any]) -> None:
        """Verify the entry that a call was answered with, if that call is one of the share."""
        if self._gap() <= 1:
            self._begin(client, key, run)

    async def _answer_chosen(self, client: Any, session: Any, key: str, function: Any, args: Any, kwargs: Any) -> Any:
        self._begin(client, key, partial(function, *args, **kwargs))
        return await self._way(client, session, key, function, args, kwargs)

    def _begin(self, client: Any, key: str, run: partial[Any]) -> None:
        query = self._query
        if not self._busy and not is_disabled(query.cache):
            self._busy = True
            query.cache.background(self._verify(client, key, run))

    async def _verify(self, client: Any, key: str, run: partial[Any]) -> None:
        query = self._query
        try:
            # Cached functions inside of this one run, too: an old entry of theirs would confirm an old one here.
            with apart(), disabling(query.cache):
                await self._compare(query.cache.store(client, query.plan), client, key, run)
        except CacheUnavailableError:
            pass
        except Exception as error:  # noqa: BLE001  # no caller waits for it
            query.counters.count("failed", key, type(error).__name__)
            logger.debug("%s: an entry could not be verified: %s", query.plan.function, type(error).__name__)
        finally:
            self._busy = False

    async def _compare(self, store: Store, client: Any, key: str, run: partial[Any]) -> None:
        query = self._query
        raw = await store.get(client, key)
        if raw is None or not ((missing := is_missing(raw)) or self._is_readable(raw)):
            return
        async with own_session(query) as session:
            if session is not None:
                run = self._with_argument(run, str(query.plan.session_name), session)
            if query.keys_now(run, sync_session(session)) != (key,):
                return  # other tables than the caller's, or a list that has changed
            try:
                value = query.codec.convert(await run())
                wrong = ROW_NOW if missing else query.codec.verify(raw, value)
            except Exception as error:
                if not missing_row(error):
                    raise
                wrong = None if missing else NO_ROW_LEFT
        if await store.get(client, key) != raw:  # mechanism: verified-twice
            return
        if wrong is None:
            query.counters.count("verified", key)
            return
        await store.discard(client, key, raw)
        query.counters.count("wrong", key, wrong)
        if not self._logged:
            self._logged = True
            logger.warning(
                "%s: an entry was not what the database says (%s), and is deleted: a write that no invalidation names? "
                "Further ones are counted; the hook has their keys",
                query.plan.function,
                wrong,
            )

    def _is_readable(self, raw: bytes) -> bool:
        try:
            self._query.codec.decode(raw)
        except DecodeError:
            return False
        return True


@asynccontextmanager
async def own_session(entries: Any) -> AsyncIterator[Any]:
    """Open a session by `session_factory`, or yield None without one. Raises OptionError for what is no session."""
    factory = entries.policy.session_factory
    if factory is None:
        yield None
        return
    async with factory() as session:
        if sync_session(session) is None:
            function = entries.plan.function
            raise OptionError(
                f"{function}: session_factory gave {type(session).__qualname__}, which is not an AsyncSession"
            )
        yield session
