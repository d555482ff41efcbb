"""One run from start to end: servers, database, processes, faults, the quiet time, and the check."""

from __future__ import annotations

import asyncio
import json
import random
import signal
from collections import Counter
from collections.abc import Callable
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from itertools import count
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic
from typing import Any

from benchmarks.consistency import database, followed, logs, outside, servers, workers
from benchmarks.consistency.control import Control, Orders, Plan, Sentence
from benchmarks.consistency.faults import FAULTS, Happened, Stage, play
from benchmarks.consistency.rules import History, Outage, Rules
from benchmarks.consistency.servers import Servers
from benchmarks.consistency.settings import HEARTBEAT, Settings
from benchmarks.consistency.tally import Tally
from benchmarks.consistency.workload import BLOCK, Workload

_CONTEXT = get_context("forkserver")
_LEFT_ALONE = 0.2
"""Seconds at most between two tries of a server that has not answered."""
_LATE = 600.0
"""Seconds that processes may take to be ready, and to end, on a busy machine."""


class RunError(RuntimeError):
    """The run itself went wrong: a process ended that should not have."""


@dataclass(slots=True)
class Outcome:
    """What came out of a run."""

    settings: Settings
    tally: Tally
    faults: list[Happened]
    outages: list[Outage]
    diverged: list[str] = field(default_factory=list)
    keys: int = 0
    committed: int = 0
    stats: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    cpu: float = 0.0
    """Seconds of processor time that the processes took, those that were killed left out."""
    said: list[logs.Said] = field(default_factory=list)
    """What the processes said in their logs, in its order; kept where something was wrong."""

    @property
    def wrong(self) -> int:
        """How many answers, keys and errors no contract allows."""
        answers = sum(number for kind, number in self.tally.kinds.items() if kind.wrong)
        return answers + len(self.diverged) + sum(self.failures("cache").values())

    def failures(self, side: str) -> dict[str, int]:
        """Give the errors that callers got from one side, the cache or the database, by name."""
        return {name: number for name, number in self.counts.items() if name.startswith(side)}

    @property
    def bypassed(self) -> float:
        """The share of reads that went past the cache, by its own count."""
        asked = sum(self.stats[name] for name in ("hits", "misses", "bypasses", "unavailable"))
        return self.stats["bypasses"] / max(1, asked)


class Crew:
    """The processes of a run."""

    def __init__(self, plan: Plan, control: Control, addresses: Servers) -> None:
        self.plan, self.control, self._servers = plan, control, addresses
        self._numbers = count(1)
        self.living: dict[int, tuple[str, Any]] = {}
        self.killed = 0

    def start(self, kind: str, *, detour: bool) -> None:
        """Start one more."""
        number = next(self._numbers)
        address = self._servers.detour if detour else self._servers.address
        orders = Orders(self.plan, self.control, number, address)
        process = _CONTEXT.Process(target=workers.main, args=(kind, orders), daemon=True)
        process.start()
        self.living[number] = (kind, process)

    async def ready(self) -> None:
        """Wait until all readers and writers have connected. Raises RunError."""
        end = monotonic() + _LATE
        places = [
            self.plan.folder / f"{number}.ready" for number, (kind, _) in self.living.items() if kind != "watcher"
        ]
        while not all(place.exists() for place in places):
            if monotonic() > end:
                raise RunError("processes that do not begin")
            self.check()
            await asyncio.sleep(0.05)

    async def kill_a_writer(self) -> None:
        """End one at its next COMMIT, and start another in its place."""
        if await self._killed_a_writer("kill"):
            self.start_a_writer()

    async def kill_a_writer_late(self) -> bool:
        """End one between its next COMMIT and end; False if the run is over before."""
        return await self._killed_a_writer("kill late")

    def start_a_writer(self) -> None:
        """Start one more."""
        self.start("writer", detour=False)

    async def _killed_a_writer(self, sentence: Sentence) -> bool:
        """End one; False if the run is over before."""
        number = self._a_writer()
        kind, process = self.living.pop(number)
        if not await self._punished(number, sentence, lambda: not process.is_alive()):
            self.living[number] = (kind, process)
            return False
        if process.exitcode != -signal.SIGKILL:
            raise RunError(f"{kind} {number} ended with {process.exitcode} before it was killed")
        self.killed += 1
        return True

    def kill_watchers(self, number: int | None) -> None:
        """End so many, the one that has lived longest first, which leads; None for all."""
        watchers = [each for each, (kind, _) in self.living.items() if kind == "watcher"]
        for each in watchers[:number]:
            _, process = self.living.pop(each)
            process.kill()
            process.join()
            self.killed += 1

    def start_watchers(self) -> None:
        """Start as many as are missing."""
        for _ in range(outside.WATCHERS - sum(kind == "watcher" for kind, _ in self.living.values())):
            self.start("watcher", detour=False)

    async def stall_a_writer(self) -> bool:
        """Have one stand still at its next COMMIT; True as soon as it does."""
        number = self._a_writer()
        return await self._punished(number, "stall", lambda: self.control.sentence(number) is None)

    async def delay_a_commit(self) -> None:
        """Have the next COMMIT of one arrive when its caller has been cancelled."""
        number = self._a_writer()
        await self._punished(number, "delay", lambda: self.control.sentence(number) is None)

    def _a_writer(self) -> int:
        """The one that has lived longest."""
        return next(number for number, (kind, _) in self.living.items() if kind == "writer")

    async def _punished(self, number: int, sentence: Sentence, done: Callable[[], bool]) -> bool:
        """Wait until it has happened, for as long as the run lasts."""
        self.control.condemn(number, sentence)
        try:
            while not done():
                if monotonic() > self.control.ends:
                    return False
                await asyncio.sleep(0.01)
        finally:
            self.control.pardon()
        return True

    async def wait(self) -> None:
        """Wait until all have ended by themselves. Raises RunError."""
        while any(process.is_alive() for kind, process in self.living.values() if kind != "watcher"):
            if monotonic() > self.control.audit + _LATE:
                raise RunError(f"processes that do not end: {sorted(self.living)}")
            self.check()
            await asyncio.sleep(0.05)
        self.check()

    def check(self) -> None:
        """Raise RunError if one has ended with an error."""
        for number, (kind, process) in self.living.items():
            if process.exitcode:
                log = self.plan.folder / f"{number}.log"
                text = log.read_text()[-2000:] if log.exists() else ""
                raise RunError(f"{kind} {number} ended with {process.exitcode}: {text}")

    def end(self) -> None:
        """End those that are left."""
        for _, process in self.living.values():
            process.kill()
            process.join()


def run(settings: Settings, tell: Callable[[str], None] = lambda _: None) -> Outcome:
    """Do a run; `tell` hears how far it is. Raises SettingsError and RunError."""
    with TemporaryDirectory(prefix="fastrdb-run-") as name:
        folder = Path(name)
        _CONTEXT.set_forkserver_preload(["benchmarks.consistency.workers"])
        workload = Workload.of(settings.seconds, settings.rate, spread=settings.spread)
        with (
            database.temporary(settings.database, folder) as url,
            servers.started(cluster=settings.cluster, sentinel=settings.sentinel) as running,
        ):
            tell("preparing the database")
            asyncio.run((followed if settings.auto else database).create(url, workload.total))
            if settings.outside:
                asyncio.run(outside.install(url))
            return asyncio.run(_run(Plan(settings, workload, url, folder), running, tell))


async def _run(plan: Plan, running: Servers, tell: Callable[[str], None]) -> Outcome:
    settings, control, outages = plan.settings, Control(_CONTEXT, plan.settings), list[Outage]()
    proxied = any(FAULTS[name].proxied for name in settings.faults)
    async with AsyncExitStack() as stack:
        if proxied:
            await stack.enter_async_context(running.proxied())
        crew = Crew(plan, control, running)
        stack.callback(crew.end)
        if settings.outside:
            crew.start_watchers()
        for kind, number in (("writer", settings.writers), ("reader", settings.readers)):
            for place in range(number):
                crew.start(kind, detour=proxied and place % 2 == 1)
        await crew.ready()
        control.begin()
        tell(f"running for {settings.seconds:g} s")
        chance, times = random.Random(settings.seed), (settings.repair, settings.barrier)
        stage = Stage(running, control, crew, chance, *times, outages, settings.allowed)
        playing = asyncio.create_task(play(stage, settings.faults, control.ends))
        while monotonic() < control.ends:
            crew.check()
            await asyncio.sleep(0.1)
        done = await playing
        tell(f"quiet for {settings.quiet:g} s, then every key is read")
        await crew.wait()
    outcome = await _checked(plan, done, outages, tell)
    outcome.counts["killed"] = crew.killed
    return outcome


async def _checked(plan: Plan, done: list[Happened], outages: list[Outage], tell: Callable[[str], None]) -> Outcome:
    """Judge all that was written down."""
    tell("checking")
    settings = plan.settings
    committed = await database.committed(plan.url)
    rules = Rules(
        outages if settings.on_error == "bypass" and not settings.outside else (),
        round(settings.repair * 1e9),
        round(HEARTBEAT * 1e9) if settings.near else 0,
        round((settings.timeout + _LEFT_ALONE) * 1e9),
        round(settings.allowed * 1e9),
    )
    if not any(plan.folder.glob("*.reads")):
        raise RunError("nobody has read anything")
    history = History(logs.writes(sorted(plan.folder.glob("*.writes")), committed), rules)
    outcome = Outcome(settings, Tally(), done, outages, committed=sum(each.attempt > 0 for each in committed))
    diverged: set[str] = set()
    seen: set[str] = set()
    for path in sorted(plan.folder.glob("*.reads")):
        for source, kind, reads in logs.answers(path, int(path.stem)):
            if source != "audit":
                outcome.tally.take(history, reads, source)
                continue
            key = f"{kind} {reads[0].row // BLOCK if kind == 'block' else reads[0].row}"
            seen.add(key)
            if any(history.diverges(read) for read in reads):
                diverged.add(key)
    outcome.diverged, outcome.keys = sorted(diverged), len(seen)
    for path in plan.folder.glob("*.json"):
        report = json.loads(path.read_text())
        outcome.counts.update(report["counts"])
        outcome.cpu += report["cpu"]
        if report["kind"] == "reader":
            outcome.stats.update(report["stats"])
    if outcome.wrong:
        outcome.said = sorted(line for path in plan.folder.glob("*.log") for line in logs.said(path, int(path.stem)))
    return outcome
