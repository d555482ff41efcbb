"""From keys to their values: lease, load, fill. One key is the case of many with one.

Each key has a lease, a flight and a fill of its own. A caller loads what is its own to load first, and only then waits
for what others load: no two callers wait for each other.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from time import monotonic
from traceback import format_tb
from typing import Any, Protocol, cast

from fastrdb.errors import CacheUnavailableError, FastRDBError, SessionInUseError
from fastrdb.events import Counted
from fastrdb.protocol import Barred, Busy, Fill, Granted, Hit
from fastrdb.protocol import Outcome as Answer
from fastrdb.runtime import DISABLED
from fastrdb.singleflight import Flight, Watch
from fastrdb.transactions import (
    WROTE,
    RunningCall,
    RunningLoad,
    apart,
    is_followed,
    missing_row,
    next_order,
    running,
    sync_session,
    unreachable,
    why_not_stored,
)

from .entry import CACHE_IF, MISS, NOT_THERE, CallContext, Entries, Reading
from .tagging import Tags, begin_tags, end_tags, hand_on, written
from .verifying import own_session
from .waiting import NESTED, Waiting

logger = logging.getLogger("fastrdb")

LOST = "the lease was lost: a write came between"
BARRED = "a write to it is being committed"

_Answers = Mapping[str, Answer | CacheUnavailableError]
_NO_WATCHES: dict[str, Watch] = {}  # shared, and stays empty, as the next one
_NO_TAGS: Tags = {}
_MAY_BE_MAPPED = ("%schema=", "%h")  # in keys: a schema_translate_map, and the digest of what is too long


class Loader(Protocol):
    """Loads what is not in Redis."""

    async def __call__(self, positions: list[int], session: Any = None, /) -> Sequence[Any]:
        """Return the values for these positions, in their order; None for what is not there.

        A `session` takes the place of the caller's: the load is a reload in the background.
        """
        ...


class Loading(Reading):
    """One call's way from keys to their values.

    Args:
        entries, call, asked, many: as of every `Reading`.
        load: what runs for keys without an entry.
        refresh: entries in Redis do not count.
        background: no caller waits for the values: see `reload`.
    """

    __slots__ = (
        *("load", "refresh", "background", "_flights", "_granted", "_watches", "_deadline", "_renewing"),
        *("_begun", "_notes", "_tags", "asked_at"),
    )

    def __init__(
        self,
        entries: Entries,
        call: CallContext,
        asked: Sequence[str],
        load: Loader,
        *,
        many: bool = True,
        refresh: bool = False,
        background: bool = False,
    ) -> None:
        super().__init__(entries, call, asked, many=many)
        self.load, self.refresh, self.background = load, refresh, background
        self._flights = entries.cache.here().flights
        self._watches = _NO_WATCHES
        self._deadline = asyncio.get_running_loop().time() + entries.policy.wait
        self._tags, self.asked_at = _NO_TAGS, next_order() if entries.tagged or refresh else 0
        self._begun, self._notes = 0.0, cast("Sequence[str]", ())

    async def resolve(self, reason: str | None = None, *, look: bool = True) -> list[Any]:
        """Return the values in the order of the keys. With `reason`, go past the cache; with `look`, read it first.

        Raises what the load raises, unless `fail_safe` has an entry instead.
        """
        try:
            if reason is not None:
                await self.alone("bypass", dict.fromkeys(self.missing(), reason))
            elif look:
                await self._look()
            while missing := [key for key, value in self.values.items() if value is MISS]:
                await self._round(missing)
        except Exception as error:
            falls_back = self.entries.policy.timed and not self.refresh and unreachable(error)
            if not falls_back or not await self.fall_back(type(error).__name__):
                raise
        finally:
            for watch in self._watches.values():
                watch.close()
        return [*map(self.values.__getitem__, self.asked)]

    async def alone(self, kind: Counted, why: Mapping[str, str]) -> None:
        """Load these keys for this caller only, and count an event of this `kind` for each, with `why`."""
        for key, reason in why.items():
            self.entries.counters.count(kind, key, reason)
            if reason == self.entries.unstorable:
                self.entries.counters.unstored(key, reason)
        if why and self.call.tags_now is not None:
            hand_on(self.call.declared(self.asked))
        if why and self.refresh and kind == "unavailable":
            self.call.store.miss(self.call.client, why, "a refresh")
        elif self.refresh and not {WROTE, DISABLED} & {*why.values()}:  # what is written waits for COMMIT
            await self._drop_old(why)
        if why:
            with RunningCall(self.entries.plan.function, self.entries.plan.session_name, self.call.session):
                await self._load(why)

    # --- in place of an entry

    async def _look(self) -> None:
        entries, policy = self.entries, self.entries.policy
        try:
            await self.look()
        except CacheUnavailableError as error:
            await self.alone("unavailable", dict.fromkeys(self.missing(), str(error)))
            return
        for key in self.early:  # one key: many are never reloaded early
            found, self.values[key] = self.values[key], MISS
            if not policy.background:
                await self.reload([key])
            if self.values[key] is MISS:
                self.values[key] = found
                entries.counters.count("hit", key)
        if policy.background and (aging := [*self.stale, *self.early]):
            client, store = self.call.client, self.call.store
            alone = replace(self.call, session=None, budget=store.budget(client, aging))
            again = Loading(entries, alone, self.asked, self.load, many=self.many, background=True)
            again.seen, again.early = self.seen, self.early
            entries.cache.reload(store, aging, again.in_background)

    async def in_background(self, keys: Sequence[str]) -> None:
        """Reload, as a part of no call. What goes wrong is logged and counted; nothing is raised."""
        entries = self.entries
        with apart():
            try:
                await self.reload(keys)
            except Exception as error:  # noqa: BLE001  # the log and the hook have it
                if missing_row(error):
                    return
                function, kind = entries.plan.function, type(error).__name__
                kind = f"{kind}: {error}" if isinstance(error, FastRDBError) else kind  # other texts may hold values
                for key in keys:
                    entries.counters.count("failed", key, kind)
                logger.warning("%s: a reload in the background failed: %s", function, kind)
                # Without the text of the error: a database's quotes the values of its statement.
                logger.debug("%s: %s\n%s", function, kind, "".join(format_tb(error.__traceback__)))

    async def reload(self, keys: Sequence[str]) -> None:
        """Replace the entries that were `seen`, where no other caller does: there is the old value until then."""
        session = self.call.session
        if session is not None and await why_not_stored(session, next_order()) is not None:
            return  # what it loads could not be stored
        await self._leased(keys, self._replace)

    async def _replace(self, answers: _Answers, leases: dict[str, Flight]) -> None:
        granted, count = list[str](), self.entries.counters.count
        for key, answer in answers.items():
            if isinstance(answer, CacheUnavailableError):
                count("unavailable", key, str(answer))
            elif isinstance(answer, Hit):
                await self._answered(key, answer.raw)
            elif isinstance(answer, Granted):
                granted.append(key)
                if key in self.early:
                    count("early", key)
        if granted:
            await self._lead(granted, leases)

    # --- what there is not

    async def _round(self, keys: Sequence[str]) -> None:
        """Load what is this caller's to load, then wait for others; what is missing then needs another round."""
        answers = await self._leased(keys, self._take_or_lead)
        if failed := {key: str(each) for key, each in answers.items() if isinstance(each, CacheUnavailableError)}:
            await self.alone("unavailable", failed)
        if busy := {key: each for key, each in answers.items() if isinstance(each, Busy)}:
            self._watches = self._watches or {}
            late = await Waiting(self, self._flights, self._watches, self._deadline).wait_for(busy)
            await self.alone("bypass", late)
            await self._drop_old(late)

    async def _take_or_lead(self, answers: _Answers, leases: dict[str, Flight]) -> None:
        granted, barred = list[str](), list[str]()
        for key, answer in answers.items():
            if isinstance(answer, Busy):
                continue
            if isinstance(answer, Hit):
                if running.get() is not None and is_followed():
                    await self.alone("bypass", {key: NESTED})
                else:
                    await self._answered(key, answer.raw)
                continue
            if key in self._watches:
                self._watches[key].close()
            if isinstance(answer, Granted):
                granted.append(key)
            elif isinstance(answer, Barred):
                barred.append(key)
        if granted:
            await self._lead([*granted, *barred], leases)
        elif barred:
            await self.alone("bypass", dict.fromkeys(barred, BARRED))

    async def _answered(self, key: str, raw: bytes) -> None:
        """Take an entry that has come meanwhile."""
        value = await self.entries.value(self.call, key, raw, many=self.many)
        if value is not MISS:
            if key in self._watches:
                self._watches[key].saw(raw)
            self.entries.counters.count("hit", key)
            self.values[key] = value

    async def _leased(
        self, keys: Sequence[str], use: Callable[[_Answers, dict[str, Flight]], Coroutine[Any, Any, None]]
    ) -> _Answers:
        """Ask for leases, use the answers, and give back what is left of the leases at the end."""
        # Before `acquire`: a caller that finds a lease of this call has to find its flight.
        tokens = [secrets.token_hex(16) for _ in keys]
        flights = dict(zip(keys, map(self._flights.open, tokens), strict=True))
        leases = flights
        try:
            answers = await self._acquire(dict(zip(keys, tokens, strict=True)))
            leases = {}  # no comprehension: with one, a crowd that waits holds cells for its variables
            for key, answer in answers.items():
                if isinstance(answer, Granted | CacheUnavailableError):
                    leases[key] = flights[key]
            await use(answers, leases)
            return answers
        finally:  # without an answer, too: the server may have granted them all the same
            for flight in flights.values():
                flight.close()
            if leases:
                left = {key: flight.token for key, flight in leases.items()}
                self.entries.cache.background(self.call.store.release(self.call.client, left))

    async def _acquire(self, tokens: dict[str, str]) -> _Answers:
        call, left, tagged = self.call, self.call.budget.left, self.entries.tagged
        self._begun = monotonic()  # before Redis begins to count the time of the leases
        try:
            answers = await call.store.acquire(
                call.client, tokens, budget=call.budget, refresh=self.refresh, seen=self.seen, tagged=tagged
            )
        except CacheUnavailableError as error:
            return dict.fromkeys(tokens, error)
        if any(isinstance(answer, Busy) for answer in answers.values()):  # the call waits for others: `wait` bounds it
            call.budget.left = left  # mechanism: budget-spares-waiting
        self._granted = {key: answer for key, answer in answers.items() if isinstance(answer, Granted)}
        return answers

    async def _lead(self, keys: Sequence[str], leases: dict[str, Flight]) -> None:
        """Load `keys`, those with leases first; answer followers, and store. What is not stored stays in `leases`."""
        entries, count = self.entries, self.entries.counters.count
        for key in keys[len(leases) :]:
            count("bypass", key, BARRED)
        later, pause = asyncio.get_running_loop().call_later, self.call.store.renewal_s
        self._renewing = later(pause, self._renew, leases, entries.cache.lease - pause)
        try:
            error, why = await self._load_under_lease(keys, leases)
        finally:
            self._renewing.cancel()
        fills = []
        for key, flight in leases.items():
            value = None if error is not None else self.values[key]
            if error is not None:
                raw, reason, outcome = entries.failed(error, why, many=self.many, of_several=len(keys) > 1)
            else:
                raw, reason, outcome = entries.made(value, why, many=self.many)
            flight.settle(outcome)
            if reason is not None:
                meant = reason in (CACHE_IF, NOT_THERE) or reason in self._notes
                entries.counters.unstored(key, reason, meant=meant, size=None if raw is None else len(raw))
            elif raw is not None:
                granted = self._granted[key]
                tags = self._tags.get(key, ())
                fills.append(Fill(key, granted.lease, raw, entries.ttl_ms(value), tags, granted.since))
        if fills:
            await self._store(fills, leases)
        if leases and (error is None or (missing_row(error) and len(keys) == 1)):
            await self._drop_old(leases)
        if error is not None:
            raise error

    def _renew(self, leases: Mapping[str, Flight], left: float) -> None:
        """Renew the leases now and then, for `left` seconds, so that other processes go on waiting for this load."""
        store, later = self.call.store, asyncio.get_running_loop().call_later
        tokens = {key: flight.token for key, flight in leases.items()}
        self.entries.cache.background(store.renew(self.call.client, tokens))
        if left > 0:
            self._renewing = later(store.renewal_s, self._renew, leases, left - store.renewal_s)

    async def _load_under_lease(
        self, keys: Sequence[str], leases: Mapping[str, Flight]
    ) -> tuple[Exception | None, str | None]:
        """Load; return the error, and why the result must not be stored."""
        own: AbstractAsyncContextManager[Any] = own_session(self.entries) if self.background else nullcontext()
        plan, error = self.entries.plan, None
        async with own as session:
            if session is not None:
                self.call = replace(self.call, session=sync_session(session))
            tokens = [flight.token for flight in leases.values()]
            given = (plan.function, plan.session_name, self.call.session, tokens)
            async with RunningLoad(*given, follows=self.entries.follows) as load:
                if self.entries.tagged:
                    self._tags = self.call.declared(self.asked)
                    begin_tags(self._tags, load, leases.values())
                own_or_none = None if session is None else self.call.session
                self._notes, others = load.notes, partial(self.call.other_keys, self.asked, own_or_none)
                changing = self.call.may_change(background=self.background) or plan.default_may_change
                changing = changing or load.schemas is not None or any(map(self.asked[0].__contains__, _MAY_BE_MAPPED))
                other = others() if changing else None
                for flight in leases.values():
                    flight.is_connected, flight.started = load.is_connected, load.since
                try:
                    await self._load(keys, session)
                except SessionInUseError:
                    raise  # each follower has a session of its own
                except Exception as raised:  # noqa: BLE001  # raised again when followers have their answer
                    error = raised
                if changing:
                    other = other or others()
            if self.entries.tagged:
                self.entries.note_reads(self.call.client, load)
                self._tags, self.entries.coarse = end_tags(self.asked, self._tags, load), tuple(load.coarse)
            return error, load.why_not_stored or other

    async def _load(self, keys: Collection[str], session: Any = None) -> None:
        """Run the function."""
        entries, at = self.entries, {key: at for at, key in enumerate(self.asked)}
        with entries.counters.loading(keys):
            loaded = await self.load([at[key] for key in keys], session)
        for key, value in zip(keys, loaded, strict=True):
            self.values[key] = None if value is None and self.many else entries.codec.convert(value)

    async def _store(self, fills: list[Fill], leases: dict[str, Flight]) -> None:
        counters, lease, begun = self.entries.counters, self.entries.cache.lease, monotonic()
        try:
            stored = await self.call.store.fill(self.call.client, fills, self.call.budget)
        except CacheUnavailableError as error:
            for key, *_ in fills:
                counters.count("unavailable", key, str(error))
            return
        seconds, slow = monotonic() - begun, begun - self._begun >= lease
        for (key, _, raw, ttl_ms, *_), done in zip(fills, stored, strict=True):
            if done is True:
                flight = leases.pop(key)
                if self.entries.tagged:
                    flight.stored()
                    if not self.refresh and key not in self.seen:
                        counters.stored(key, raw, ttl_ms)
                counters.count("fill", key, seconds=seconds, size=len(raw))
                counters.latest = None
            elif slow:
                counters.unstored(key, f"the load took longer than lease={lease:g} (seconds): a longer one covers it")
            else:
                counters.unstored(key, LOST if done is False else written(done), meant=True)
                if done is not False:
                    counters.refused(key, written(done))

    async def _drop_old(self, left: Collection[str]) -> None:
        """Delete entries in whose place nothing was stored: the database gave another value."""
        if self.refresh and left:
            await self.call.store.invalidate_soon(self.call.client, keys=left)
        elif self.background:
            with suppress(CacheUnavailableError):
                for key in left:
                    await self.call.store.discard(self.call.client, key, self.seen[key].raw)
