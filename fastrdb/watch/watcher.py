"""The watcher: invalidates what any program commits to a database, each change at least once."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Self

from fastrdb.errors import CacheUnavailableError, OptionError
from fastrdb.inference import OWN_STATEMENTS
from fastrdb.keys import Image
from fastrdb.options import Seconds, seconds

from .failure import kind_of
from .journal import SILENT_S, Journal, ages
from .mysql import MySQLSource
from .postgres import PostgresSource
from .source import ChangeSource, NotInstalledError, Poll
from .sqlite import SQLiteSource
from .telemetry import Telemetry

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

    from fastrdb.cache import Cache

_BUSY_S: Final = 0.005
"""The pause after a poll that has found changes."""
_BEAT_S: Final = 0.5
"""The longest time between two heartbeats of a watcher that finds nothing."""
_CLEAN_S: Final = 1.0
_RETRY_S: Final = 1.0
_LAST_STEP_S: Final = 1.0  # the longest that a watcher goes on that is cancelled
_NAMES: Final = 64
"""An invalidation of more names drops whole tables."""
_START_S: Final = 5.0
"""The longest time that the block of a watcher waits for the first poll: a database that is away keeps no application
from starting."""
_REMIND_S: Final = 300.0
"""The pause between two looks of a watcher that waits at the one that leads."""


class Watcher:
    """A task that invalidates what any program writes to a database: psql, a migration, another service, a trigger.

    Any number of watchers may run for one database: one leads, and the others take over when it ends. Use it in a
    process of its own (`fastrdb watch run`), or inside an application:

        async with Watcher(engine, cache):
            ...

    A position is stored only after its changes are invalidated in Redis. If the watcher dies in between, the next one
    invalidates them again. If changes may have been lost, everything is invalidated once.

    Args:
        engine: an `AsyncEngine` of the database, where `fastrdb watch install` was run.
        cache: a `Cache` with a client of its own.
        every: the pause between polls that find nothing, in seconds or as a timedelta.

    Raises:
        OptionError: naming the parameter.
    """

    def __init__(self, engine: AsyncEngine | ChangeSource, cache: Cache, *, every: Seconds = 0.02) -> None:
        if cache.redis is None:
            raise OptionError("Watcher: the cache needs a client of its own: Cache(redis)")
        self.source: ChangeSource = engine if isinstance(engine, ChangeSource) else source_of(engine)
        self.cache = cache
        self.every = seconds(every, name="every", owner="Watcher")
        self.journal = Journal(cache, self.source.name)
        self.leads = False
        self.found = 0
        """The number of changes that this watcher has invalidated."""
        self._position: str | None = None
        self._beaten = self._cleaned = 0.0
        self._covered: float | None = None
        """The moment, by the clock of the event loop, up to which all commits are in Redis."""
        self._look_again: float | None = None
        """The next time to look at the watcher that leads, by the clock of the event loop; None: this one leads."""
        self._task: asyncio.Task[None] | None = None
        self._begun = asyncio.Event()
        self._telemetry = Telemetry(cache, self.source.name)

    # --- one step

    async def poll(self) -> Poll | None:
        """Poll once, and invalidate what was found. Return None while another watcher leads.

        Raises the errors of the database and of Redis. After an error or a cancellation the position is the old one,
        and the call may be repeated.
        """
        if not self.leads:
            if not await self.source.lead(self.cache.namespace):
                return None
            await self._begin()
        # Before the poll: what is committed while it runs is not in Redis when it ends.
        now = asyncio.get_running_loop().time()
        moment = await self.journal.clock() if now - self._beaten >= _BEAT_S else None
        poll = await self.source.poll(self._position, self._invalidate)
        if poll.lost:
            self._telemetry.lost(poll.lost)
            await self._invalidate([Image(None)])
        await self._record(poll, moment)
        if moment is not None:
            self._beaten = now
        self.found += poll.found
        since, self._covered = self._covered, now
        self._telemetry.polled(poll, None if since is None else asyncio.get_running_loop().time() - since)
        return poll

    async def _begin(self) -> None:
        """Begin at the position where the last watcher ended."""
        self._position = await self.journal.position()
        age = (await ages(self.cache)).get(self.source.name)
        self._covered = None if age is None else asyncio.get_running_loop().time() - age
        self.leads, self._look_again = True, None
        self._telemetry.leads()

    def _end(self, reason: str) -> None:
        if self.leads:
            self.leads = False
            self._telemetry.leads_no_more(reason)

    async def _wait(self) -> None:
        """Report for which watcher this one waits: at once, and then seldom, if its heartbeat is not in this Redis."""
        now, begins = asyncio.get_running_loop().time(), self._look_again is None
        if self._look_again is not None and now < self._look_again:
            return
        self._look_again = now + (SILENT_S if begins else _REMIND_S)
        age = (await ages(self.cache)).get(self.source.name)
        late = not begins and (age is None or age > SILENT_S)
        if begins or late:
            state = await self.source.status(None, (), self.cache.namespace)
            self._telemetry.waits(state.leader or "another watcher", age, late=late)

    async def _record(self, poll: Poll, moment: int | None) -> None:
        if poll.position != self._position or moment is not None:
            await self.journal.save(poll.position, moment)
        self._position = poll.position
        if poll.lost:
            await self.source.mark(poll.position)
        now = asyncio.get_running_loop().time()
        if now - self._cleaned >= _CLEAN_S:
            self._cleaned = now
            await self.source.clean(poll.position)

    async def _invalidate(self, images: Sequence[Image]) -> None:
        for part in _portions(images):
            if await self.cache.runtime.delete(self.cache.redis, images=part) is None:
                raise CacheUnavailableError("invalidate", "Redis has missed an invalidation")
            self._telemetry.passed_on(image.table for image in part)

    # --- the loop

    async def run(self) -> None:
        """Poll until the task is cancelled, then close the source. Retry after errors; log each kind of an outage once.

        A cancellation waits for the end of the present poll, at most a second.

        Raises:
            OptionError: at the start nothing is installed, or a setting of the database rules out watching. Or the
                outbox is read for another namespace.
        """
        try:
            pause = 0.0
            while True:
                await asyncio.sleep(pause)
                pause = await self._whole_step()
                self._begun.set()
        finally:
            self._end("the watcher ends")
            await asyncio.shield(self.source.close())

    async def _whole_step(self) -> float:
        """Take a step, and let it end if the watcher is cancelled.

        A statement that is cut off may leave a SQLite file locked until its connection is collected. And before Python
        3.12 `asyncio.wait_for`, which redis-py uses, swallows a cancellation that comes late.
        """
        step = asyncio.create_task(self._step())
        try:
            return await asyncio.shield(step)
        except asyncio.CancelledError:
            await asyncio.wait({step}, timeout=_LAST_STEP_S)
            raise
        finally:
            step.cancel()
            await asyncio.wait({step})

    async def _step(self) -> float:
        """Poll once; return the pause before the next poll, in seconds."""
        try:
            poll = await self.poll()
            if poll is None:
                await self._wait()
        except Exception as error:  # a watcher that ends leaves stale entries
            if isinstance(error, OptionError) and not (isinstance(error, NotInstalledError) and self._begun.is_set()):
                self._telemetry.refused(error)
                raise
            self._telemetry.failed(error)
            self._end(kind_of(error))
            with suppress(Exception):
                await self.source.close()
            return _RETRY_S
        self._telemetry.works()
        if poll is None:
            return _RETRY_S
        return _BUSY_S if poll.found else self.every

    async def __aenter__(self) -> Self:
        """Start, and wait for the end of the first poll, at most `_START_S`.

        Raises:
            OptionError: nothing is installed, or a setting of the database rules out watching.
        """
        self._begun.clear()
        self._task, begun = asyncio.create_task(self.run()), asyncio.create_task(self._begun.wait())
        try:
            await asyncio.wait({self._task, begun}, timeout=_START_S, return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.__aexit__()
            raise
        finally:
            begun.cancel()
        if self._task.done():
            await self.__aexit__()  # raises what has ended the task
        return self

    async def __aexit__(self, *exc: object) -> None:
        task, self._task = self._task, None
        if task is not None:
            task.cancel()
            await asyncio.wait({task})  # `await task` would take a cancellation of the caller for the task's own
            if not task.cancelled():
                task.result()


def _portions(images: Sequence[Image]) -> Iterator[list[Image]]:
    """Yield the images in order, in portions of at most `_NAMES` names: more would drop whole tables."""
    part, names = list[Image](), set[str]()
    for image in images:
        more = names.union(image.names())
        if part and len(more) > _NAMES:
            yield part
            part, more = [], set(image.names())
        part.append(image)
        names = more
    if part:
        yield part


def source_of(engine: Any) -> ChangeSource:
    """Return the source for an `AsyncEngine`, by its dialect. A cache with `auto=True` does not follow its statements.

    Raises:
        OptionError: there is no source for this database.
    """
    dialect, engine = engine.dialect.name, engine.execution_options(**{OWN_STATEMENTS: True})
    if dialect == "postgresql":
        return PostgresSource(engine)
    if dialect == "sqlite":
        return SQLiteSource(engine)
    if dialect in ("mysql", "mariadb"):
        return MySQLSource(engine)
    raise OptionError(f"watch: databases are PostgreSQL, MariaDB, MySQL and SQLite, and this is {dialect}")
