"""How fast this version of fastrdb is beside another: `python -m benchmarks versions --against CHECKOUT`.

Each version runs in a process of its own, on a server of its own, and answers the same cases by turns, round by round.
The figure is the median over rounds of the ratio within a round, so a busy machine slows both sides alike.
"""

from __future__ import annotations

import asyncio
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

from benchmarks.comparison import Case, table
from benchmarks.harness import Sizes, Timings
from benchmarks.report import Limit, Row
from fastrdb.testing.server import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]
THIS, OTHER = "fastrdb", "the other version"
NOT_SLOWER = Limit("speed", bar=0.97)
CASES: dict[str, tuple[str, Limit | None]] = {
    "hit": ("hit", NOT_SLOWER),
    "near_hit": ("near hit", NOT_SLOWER),
    "crowd": ("hits, 64 callers on distinct keys", Limit("speed", bar=1.15)),
    "miss": ("miss, load for nothing", None),
    "miss_select": ("miss, SELECT by key", None),
    "stampede": ("stampede, 200 callers of one key", NOT_SLOWER),
    "prefix": ("invalidation of 100 keys by prefix", NOT_SLOWER),
    "commit": ("commit under @invalidates", None),
    "crud_update": ("FastRDB.update", None),
    "create_multi": ("FastRDB.create_multi, a row", None),
}


async def rows(sizes: Sizes, against: Path, cases: Sequence[str]) -> list[Row]:
    """Return two rows for each case: this version, and how it compares with the one in `against`."""
    async with AsyncExitStack() as stack:
        sides = {THIS: await stack.enter_async_context(side(ROOT))}
        sides[OTHER] = await stack.enter_async_context(side(against))
        found = []
        for name in cases:
            text, limit = CASES[name]
            case = Case("versions", text, {OTHER: limit} if limit else {})
            found += table(case, {}, await _timings(sides, name, sizes), {})
    return found


async def _timings(sides: dict[str, Process], name: str, sizes: Sizes) -> Timings:
    """Time one case on both sides by turns; one round more comes first, which prepares and does not count."""
    timings = Timings(list(sides))
    for number in range(sizes.rounds + 1):
        for each in sorted(sides, reverse=number % 2 == 1):
            seconds = await _asked(sides[each], f"{name} {sizes.calls}\n")
            if number:
                timings.times[each].append(seconds)
                timings.calls[each] += sizes.calls
    return timings


async def _asked(process: Process, order: str) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(order.encode())
    if not (line := await process.stdout.readline()):
        raise RuntimeError(f"a version ended while it ran {order.strip()!r}; its error stands above")
    return float(line)


@asynccontextmanager
async def side(checkout: Path) -> AsyncIterator[Process]:
    """Start a process with the version in `checkout` and a server of its own; end both afterwards."""
    with EmbeddedServer() as server:
        arguments = ("-m", "benchmarks.questions.versions_side", str(checkout), str(server.port))
        process = await asyncio.create_subprocess_exec(sys.executable, *arguments, stdin=PIPE, stdout=PIPE, cwd=ROOT)
        try:
            yield process
        finally:
            if process.stdin is not None:
                process.stdin.close()
            await process.wait()
