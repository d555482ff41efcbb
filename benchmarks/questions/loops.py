"""Which event loop runs, and what uvloop changes: the same calls on both loops of one process, round by round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from importlib import import_module
from time import perf_counter

from benchmarks.catalogue import Query, one_user
from benchmarks.comparison import Entrant, enter, idle_sessions
from benchmarks.contestants.field import NOT_INSTALLED, opened
from benchmarks.harness import Sizes, Timings
from benchmarks.machine import installed
from benchmarks.report import Row, absent
from fastrdb.testing.server import EmbeddedServer

LOOPS = ("asyncio", "uvloop")
NAMES = ("fastrdb", "bare")
WARM = 3


def runner(loop: str) -> asyncio.Runner:
    """A runner of coroutines on this loop.

    Raises:
        SystemExit: uvloop is asked for and not installed.
    """
    if loop != "uvloop":
        return asyncio.Runner()
    if installed("uvloop") is None:
        raise SystemExit("uvloop is not installed")
    factory: Callable[[], asyncio.AbstractEventLoop] = import_module("uvloop").new_event_loop
    return asyncio.Runner(loop_factory=factory)


async def rows(sizes: Sizes) -> list[Row]:
    """Hits of one caller and of many, on both loops."""
    found = []
    for callers in (1, sizes.crowds[0]):
        case = f"hits of {callers:,} on both loops"
        if installed("uvloop") is None:
            found.append(absent("loops", case, "uvloop", NOT_INSTALLED))
            continue
        timings, loads = await asyncio.to_thread(_measured, sizes, callers)
        for name in NAMES:
            before, side = (f"{name}, {loop}" for loop in LOOPS)
            for each, ratio in ((before, None), (side, timings.ratio(side, before))):
                row = Row(
                    "loops", case, each, timings.median(each), ratio=ratio, note="than on asyncio" if ratio else ""
                )
                found.append(replace(row, loads=f"{loads[each]:,} of {timings.calls[each]:,}", void=loads[each] > 0))
    return found


def _measured(sizes: Sizes, callers: int) -> tuple[Timings, dict[str, int]]:
    """Run both loops by turns, in a thread that has no loop of its own; give times, and loads, which should be none."""
    repeat = sizes.calls if callers == 1 else 1
    with EmbeddedServer() as server, ExitStack() as stack:
        sides = {loop: _Side(stack.enter_context(runner(loop)), server.port, callers) for loop in LOOPS}
        timings = Timings([f"{name}, {loop}" for name in NAMES for loop in LOOPS])
        for number in range(-WARM, sizes.rounds):
            for loop in LOOPS if number % 2 else reversed(LOOPS):
                for name in NAMES:
                    seconds = sides[loop].timed(name, repeat)
                    if number >= 0:
                        timings.times[f"{name}, {loop}"].append(seconds / repeat / callers)
                        timings.calls[f"{name}, {loop}"] += repeat * callers
        for side in sides.values():
            side.close()
    return timings, {f"{name}, {loop}": sides[loop].loads(name) for name in NAMES for loop in LOOPS}


class _Side:
    """One loop, with contestants that have their entries already."""

    def __init__(self, running: asyncio.Runner, port: int, callers: int) -> None:
        self._running = running
        self._callers = callers
        self._stack = AsyncExitStack()
        self._entrants = running.run(self._open(port))

    async def _open(self, port: int) -> dict[str, Entrant]:
        field = await self._stack.enter_async_context(opened(port, NAMES))
        self._client = field.client
        self._sessions = await self._stack.enter_async_context(idle_sessions(self._callers))
        entrants = {entrant.name: entrant for entrant in enter(field, "loops", one_user)}
        for entrant in entrants.values():
            for number, db in enumerate(self._sessions):
                await entrant.call(db, field.client, number)
        self._before = {name: entrant.loads.count for name, entrant in entrants.items()}
        return entrants

    def timed(self, name: str, repeat: int) -> float:
        """Seconds that so many rounds of hits take."""
        return self._running.run(self._timed(self._entrants[name].call, repeat))

    async def _timed(self, call: Query, repeat: int) -> float:
        client, sessions = self._client, self._sessions
        start = perf_counter()
        for _ in range(repeat):
            if self._callers == 1:
                await call(sessions[0], client, 0)
            else:
                await asyncio.gather(*(call(db, client, number) for number, db in enumerate(sessions)))
        return perf_counter() - start

    def loads(self, name: str) -> int:
        """How often the function ran since it had its entries."""
        return self._entrants[name].loads.count - self._before[name]

    def close(self) -> None:
        """Close what was opened on the loop."""
        self._running.run(self._stack.aclose())
