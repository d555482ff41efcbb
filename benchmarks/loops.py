"""Which event loop runs, and what uvloop changes: the same calls on both loops of one process, round by round."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import AsyncExitStack, ExitStack
from importlib import import_module
from time import perf_counter
from typing import Any

from benchmarks.catalogue import one_user
from benchmarks.comparison import enter, idle_sessions
from benchmarks.field import NOT_INSTALLED, opened
from benchmarks.harness import Sizes, Timings
from benchmarks.machine import installed
from benchmarks.rows import Row, absent
from fastrdb.embedded import EmbeddedServer

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
    cases = {f"uvloop, hits of {callers:,}": callers for callers in (1, sizes.crowds[0])}
    if installed("uvloop") is None:
        return [absent("loops", case, "uvloop", NOT_INSTALLED) for case in cases]
    found = []
    for case, callers in cases.items():
        timings = await asyncio.to_thread(_measured, sizes, callers)
        for name in NAMES:
            on = {loop: f"{name}, {loop}" for loop in LOOPS}
            ratio, note = timings.ratio(on["uvloop"], on["asyncio"]), "than on asyncio"
            found.append(Row("loops", case, on["asyncio"], timings.median(on["asyncio"])))
            found.append(Row("loops", case, on["uvloop"], timings.median(on["uvloop"]), ratio=ratio, note=note))
    return found


def _measured(sizes: Sizes, callers: int) -> Timings:
    """Run both loops by turns, in a thread that has no loop of its own."""
    repeat = sizes.calls if callers == 1 else 1
    with EmbeddedServer() as server, ExitStack() as stack:
        running, sides = {}, {}
        for loop in LOOPS:
            running[loop] = stack.enter_context(runner(loop))
            sides[loop] = running[loop].run(_opened(server.port, callers))
        timings = Timings([f"{name}, {loop}" for name in NAMES for loop in LOOPS])
        for number in range(-WARM, sizes.rounds):
            for loop in LOOPS if number % 2 else reversed(LOOPS):
                for name, calls in sides[loop][1].items():
                    seconds = running[loop].run(_timed(calls, repeat))
                    if number >= 0:
                        timings.times[f"{name}, {loop}"].append(seconds / repeat / callers)
        for loop in LOOPS:
            running[loop].run(sides[loop][0].aclose())
    return timings


async def _opened(port: int, callers: int) -> tuple[AsyncExitStack, dict[str, Callable[[], Any]]]:
    """Give what must be closed, and for each contestant a function that makes one round's calls, all of them hits."""
    stack = AsyncExitStack()
    field = await stack.enter_async_context(opened(port, NAMES))
    sessions = await stack.enter_async_context(idle_sessions(callers))
    sides: dict[str, Callable[[], Any]] = {}
    for entrant in enter(field, "loops", one_user):
        for number, db in enumerate(sessions):
            await entrant.call(db, field.client, number)

        async def calls(call: Any = entrant.call) -> None:
            if callers == 1:
                await call(sessions[0], field.client, 0)
            else:
                await asyncio.gather(*(call(db, field.client, number) for number, db in enumerate(sessions)))

        sides[entrant.name] = calls
    return stack, sides


async def _timed(calls: Callable[[], Any], repeat: int) -> float:
    start = perf_counter()
    for _ in range(repeat):
        await calls()
    return perf_counter() - start
