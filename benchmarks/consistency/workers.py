"""The processes of a run. Each is a loop of its own over its own connections, and writes down what it saw and did."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack, suppress
from contextvars import ContextVar
from itertools import count
from time import monotonic, monotonic_ns, process_time, sleep
from typing import Any, TypeVar

from redis.exceptions import RedisError
from sqlalchemy import Connection, event, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from benchmarks.consistency import database, outside, seeded_bugs
from benchmarks.consistency.address import HOST
from benchmarks.consistency.control import Orders
from benchmarks.consistency.logs import Formatter, Log, Step
from benchmarks.consistency.peers import subject_of
from benchmarks.consistency.rules import PROCESS_BITS
from benchmarks.consistency.settings import GATHERING, LATE, STALL
from benchmarks.consistency.subjects import Attempt, Subject, noting, source_of
from benchmarks.consistency.workload import BLOCK
from fastrdb import CacheUnavailableError, FastRDBError
from fastrdb.testing import TcpProxy

T = TypeVar("T")
CANCELLED = 0.02
"""The share of calls that are cancelled, where the faults say so."""
REUSED = 20
_READ_MS, _WRITE_MS = 3, 10
_FAILURES = (SQLAlchemyError, FastRDBError, RedisError, OSError)


class Worker(ABC):
    """What readers and writers have in common."""

    def __init__(
        self, orders: Orders, engine: AsyncEngine, subject: Subject, log: Log, proxy: TcpProxy | None = None
    ) -> None:
        self.orders, self.plan, self.settings = orders, orders.plan, orders.plan.settings
        self.proxy = proxy
        """In front of the database, if there is one."""
        self.workload, self.subject, self.log, self.engine = self.plan.workload, subject, log, engine
        self.chance = random.Random(f"{self.settings.seed}:{orders.number}")
        self.counts: Counter[str] = Counter()
        self.stats: dict[str, int] = {}
        level = self.settings.isolation or ("REPEATABLE READ" if self.settings.database == "mariadb" else None)
        self.snapshots = level not in (None, "READ COMMITTED", "AUTOCOMMIT")

    @property
    def elapsed(self) -> float:
        """Seconds since the run began."""
        return monotonic() - self.orders.control.began

    @property
    def over(self) -> bool:
        """Whether it is time to stop."""
        return monotonic() >= self.orders.control.ends

    def pace(self) -> database.Pace:
        """Tell how long loads take now: those of the last check, when all is quiet, are no part of the run."""
        if self.over:
            return database.Pace.QUICK
        return database.Pace.HELD if self.orders.control.holds_loads else database.Pace.AS_THE_FAULTS_SAY

    def session(self) -> AsyncSession:
        """Give a session, as a request has one."""
        return AsyncSession(self.engine, expire_on_commit=False)

    async def ask(
        self, db: AsyncSession, row: int, kind: str, *, opened: int | None = None, audit: bool = False
    ) -> None:
        """Read a row, or something that it is part of, and write down what the answer was.

        `opened` is when the session may have taken its snapshot, and loaded the objects that it holds. What is loaded
        may be as old as the snapshot; and past the cache as old as the objects: so does the function without a cache.
        """
        started = monotonic_ns()
        with noting() as notes:
            answer = await self.subject.ask(db, kind, row)
        ended = monotonic_ns()
        source = "audit" if audit else source_of(notes)
        if opened is not None and "load" in notes and (self.snapshots or source in ("bypass", "unavailable")):
            started = opened
        self.log.answer(source, kind, answer, started, ended)

    def unlucky(self, fault: str) -> bool:
        """Tell whether this call is to be cancelled: one in so many, if that is one of the faults."""
        return fault in self.settings.faults and self.chance.random() < CANCELLED

    async def cancelled(self, work: Coroutine[Any, Any, T], fault: str, longest_ms: float) -> T | None:
        """Do it, and cancel it on the way; it may be done by then."""
        task = asyncio.create_task(work)
        await asyncio.sleep(self.chance.random() * longest_ms / 1000)
        task.cancel()
        try:
            return await task
        except asyncio.CancelledError:
            self.counts[fault] += 1
            return None

    async def block_the_loop(self) -> None:
        """Now and then let nothing else run, for up to three times what a call waits for Redis."""
        while "loop-stall" in self.settings.faults and not self.over:
            await asyncio.sleep(0.5 + self.chance.random())
            sleep(self.chance.random() * 3 * self.settings.timeout)  # noqa: ASYNC251  # what it is for
            self.counts["loop-stall"] += 1

    @abstractmethod
    async def run(self) -> None:
        """Do what the process is there for."""

    def failed(self, error: Exception) -> None:
        """Count what a caller got instead of an answer. From the database it may come, from the cache it may not."""
        side = "database" if isinstance(error, SQLAlchemyError) else "cache"
        self.counts[f"{side}: {type(error).__name__}"] += 1


class Reader(Worker):
    """Many callers that read, one session each; and all keys once more when everything is quiet."""

    async def run(self) -> None:
        """Read until the end; then wait, and read everything."""
        await asyncio.gather(*(self._caller() for _ in range(self.settings.callers)))
        self.stats = self.subject.stats()
        await asyncio.sleep(max(0.0, self.orders.control.audit - monotonic()))
        await self._audit()

    async def _caller(self) -> None:
        while not self.over:
            try:
                async with self.session() as db:  # serves a few calls, each with a transaction of its own
                    for _ in range(REUSED):
                        await self._call(db)
            except _FAILURES as error:
                self.failed(error)

    async def _call(self, db: AsyncSession) -> None:
        if self.unlucky("cancel"):
            await self.cancelled(self._fresh(), "cancel", _READ_MS)
        elif self.chance.random() < 0.01:
            await self._long()
        else:
            await self._one(db)
            if db.in_transaction():
                await db.rollback()

    async def _fresh(self) -> None:
        async with self.session() as db:
            await self._one(db)

    async def _one(self, db: AsyncSession) -> None:
        row = self.workload.read(self.chance, self.elapsed)
        kinds = self.subject.kinds
        await self.ask(db, row, self.chance.choices(list(kinds), list(kinds.values()))[0])

    async def _long(self) -> None:
        """A few reads of the same rows in one open transaction: of its snapshot, and with its identity map."""
        rows = [self.workload.read(self.chance, self.elapsed) for _ in range(2)]
        async with self.session() as db:
            opened = monotonic_ns()
            held = [
                await db.get(self.subject.model, row) for row in rows
            ]  # a user's objects, which the session gives again
            for _ in range(3):
                for row in rows:
                    await self.ask(db, row, "row", opened=opened)
                await asyncio.sleep(self.chance.random() * 0.06)
            del held

    async def _audit(self) -> None:
        rows = iter(
            [
                (row, kind)
                for kind in self.subject.kinds
                for row in range(0, self.workload.total, BLOCK if kind == "block" else 1)
            ]
        )

        async def caller() -> None:
            for row, kind in rows:
                async with self.session() as db:
                    await self.ask(db, row, kind, audit=True)

        await asyncio.gather(*(caller() for _ in range(self.settings.callers)))


_told: ContextVar[Callable[[], None]] = ContextVar("told", default=lambda: None)
_committed: ContextVar[Callable[[], None]] = ContextVar("committed", default=lambda: None)


class Writer(Worker):
    """A few callers that write, each at its pace, and read back some of what they wrote."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self._numbers = count((self.orders.number << PROCESS_BITS) + 1)
        self._reads = Log(self.orders.path("reads"), buffered=False)
        event.listen(self.engine.sync_engine, "commit", self._before_commit)
        self._listen_behind_commit()

    async def run(self) -> None:
        """Write until the end."""
        # A process that stands still is late with all that it had sent to Redis: that would be an outage of its own.
        callers = 1 if {"stall", "lost-barriers", "kill-under-loads"} & set(self.settings.faults) else CALLERS
        await asyncio.gather(
            *(self._caller(self.settings.writers * callers / self.settings.rate) for _ in range(callers))
        )

    async def _caller(self, pause: float) -> None:
        due = monotonic() + self.chance.random() * pause
        while not self.over:
            await asyncio.sleep(max(0.0, due - monotonic()))
            due = max(due + pause, monotonic())
            try:
                rows = await self._attempt(next(self._numbers))
                if rows and self.chance.random() < 0.3:
                    await self._read_back(rows[0])
            except CacheUnavailableError as error:
                if self.settings.on_error == "raise":
                    self.counts["refused"] += 1
                else:
                    self.failed(error)
            except _FAILURES as error:
                self.failed(error)

    async def _attempt(self, number: int) -> list[int] | None:
        """Write, in a task of its own, which may be cancelled; then find out what has become of it."""
        task = asyncio.create_task(self._write(number))
        if self.unlucky("cancel-writes"):
            asyncio.get_running_loop().call_later(self.chance.random() * _WRITE_MS / 1000, task.cancel)
        try:
            return await task
        except asyncio.CancelledError:
            self.counts["cancel-writes"] += 1
            await self._find_out(number)
            return None

    async def _write(self, number: int) -> list[int]:
        world = "auto" if self.settings.auto else "by hand"
        style = self.settings.style or self.workload.style(self.chance, world)
        row = self.workload.write(self.chance, self.elapsed)
        rows = [row]
        if style == "together":
            rows = sorted({row, self.workload.write(self.chance, self.elapsed)})

        def step(kind: Step) -> Callable[..., None]:
            return lambda *_: self.log.step(kind, number, monotonic_ns())

        if self.settings.protocol == "fastrdb":  # the others tell Redis when they have committed
            _told.set(step("told"))
        _committed.set(step("committed"))

        async with self.subject.session(self.engine, style) as db:
            await self.subject.write(db, Attempt(number, step("begun")), rows, style)
            if style != "undone":
                step("acked")()
        self.counts["undone" if style == "undone" else "written"] += 1
        return rows

    async def _find_out(self, number: int) -> None:
        """Look whether a write is committed of which nobody was told; from then on it is known."""
        await asyncio.sleep(LATE if self.proxy is not None else 2 * database.SLOW_SECONDS)
        async with self.session() as db:
            if await database.made(db, number):
                self.log.step("committed", number, monotonic_ns())

    async def _read_back(self, row: int) -> None:
        started = monotonic_ns()
        async with self.session() as db:
            with noting() as notes:
                answer = await self.subject.ask(db, "row", row)
        self._reads.answer(source_of(notes), "row", answer, started, monotonic_ns())

    def _before_commit(self, _: Connection) -> None:
        """fastrdb has told Redis of the COMMIT that comes next, the database knows nothing yet."""
        _told.get()()
        if self.orders.control.sentence(self.orders.number) == "delay":
            self.orders.control.pardon()
            self._delay()
        elif self.orders.control.sentence(self.orders.number) == "kill late":
            self.orders.control.holds_loads = True
            sleep(GATHERING)
        elif self.chance.random() < 0.5:
            self._suffer()

    def _listen_behind_commit(self) -> None:
        """Have a COMMIT call `_after_commit` when the driver returns.

        fastrdb puts its own call around this one, so what it does then comes later. Listeners of the session come too
        late: fastrdb has told Redis of the end before these are called.
        """
        dialect = self.engine.sync_engine.dialect
        do_commit = dialect.do_commit

        def commit(dbapi_connection: Any) -> None:
            do_commit(dbapi_connection)
            self._after_commit()

        dialect.do_commit = commit  # type: ignore[method-assign]

    def _after_commit(self) -> None:
        """The database has committed, the cache does not know yet."""
        _committed.get()()
        if self.orders.control.sentence(self.orders.number) == "kill late":
            os.kill(os.getpid(), signal.SIGKILL)
        self._suffer()

    def _suffer(self) -> None:
        control = self.orders.control
        match control.sentence(self.orders.number):
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "stall":
                control.pardon()
                sleep(STALL)  # all of the process stands still, as in a long collection of garbage

    def _delay(self) -> None:
        """What is sent to the database from now on arrives later; this caller has given up long before."""
        task = asyncio.current_task()
        if self.proxy is None or task is None:
            return
        loop = asyncio.get_running_loop()
        self.orders.control.late(monotonic() + LATE + self.orders.plan.settings.repair)
        self.proxy.hold()
        loop.call_later(_WRITE_MS / 1000, task.cancel)
        loop.call_later(LATE, self.proxy.heal)


CALLERS = 2
"""Writers at once in each process."""
KINDS: dict[str, type[Worker]] = {"reader": Reader, "writer": Writer}


def main(kind: str, orders: Orders) -> None:
    """Be a process of the run."""
    handler = logging.FileHandler(orders.path("log"))
    handler.setFormatter(Formatter())
    logging.getLogger().addHandler(handler)
    logging.getLogger("fastrdb").setLevel(logging.DEBUG)
    if orders.plan.settings.bug is not None:
        seeded_bugs.seed(orders.plan.settings.bug)
    asyncio.run(outside.watch(orders) if kind == "watcher" else _main(kind, orders))


async def _main(kind: str, orders: Orders) -> None:
    settings, url, proxy = orders.plan.settings, make_url(orders.plan.url), None
    async with AsyncExitStack() as stack:
        if kind == "writer" and "late-commit" in settings.faults:
            proxy = await stack.enter_async_context(TcpProxy(url.port or 0, url.host or HOST))
            url = url.set(host=HOST, port=proxy.port)
        slow = "slow-commit" in settings.faults
        engine = database.engine(url, settings.isolation, size=settings.callers + 2, pool=settings.pool, slow=slow)
        subject = subject_of(settings, kind)(settings, orders.address)
        await subject.ready()
        try:
            with Log(orders.path("reads" if kind == "reader" else "writes"), buffered=kind == "reader") as log:
                worker = KINDS[kind](orders, engine, subject, log, proxy)
                orders.path("ready").touch()
                while monotonic() < orders.control.began:  # noqa: ASYNC110  # shared memory wakes nobody
                    await asyncio.sleep(0.01)
                database.pace.set(worker.pace)
                blocking = asyncio.create_task(worker.block_the_loop())
                await worker.run()
                await blocking
        finally:
            with suppress(*_FAILURES):
                await subject.aclose(settings.quiet)
            await engine.dispose()
    report = {"kind": kind, "stats": worker.stats, "counts": worker.counts, "cpu": process_time()}
    orders.path("json").write_text(json.dumps(report))
