"""What a hit on a list costs: the more is decoded, the less the cache itself matters."""

from __future__ import annotations

from functools import partial

from benchmarks.catalogue import page_of
from benchmarks.comparison import Case, hits
from benchmarks.contestants.field import opened
from benchmarks.harness import Sizes
from benchmarks.report import Row
from fastrdb.testing.server import EmbeddedServer

KEYS = 50


async def rows(sizes: Sizes) -> list[Row]:
    """Lists of 10 and of 100 users, one caller."""
    found = []
    for size in (10, 100):
        case = Case("lists", f"hit, list of {size}")
        task, calls = partial(page_of, size), max(3, sizes.calls // 2)
        with EmbeddedServer() as server:
            async with opened(server.port) as field:
                found += await hits(case, field, task, rounds=sizes.rounds, calls=calls, keys=KEYS)
    return found
