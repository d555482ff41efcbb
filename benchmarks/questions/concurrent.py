"""How many hits a second come out when callers are many, each on a key of its own."""

from __future__ import annotations

from benchmarks.catalogue import one_user
from benchmarks.comparison import Case, hits
from benchmarks.contestants.field import USUAL, opened
from benchmarks.harness import Sizes
from benchmarks.report import Limit, Row
from fastrdb.testing.server import EmbeddedServer

ASKED = {64: {"bare": Limit("speed", bar=6, aim=10)}}
NAMES = ("fastrdb", "bare", "bare, pooled", *USUAL[2:])


async def rows(sizes: Sizes) -> list[Row]:
    """Few and many callers at once, as many keys."""
    found = []
    for callers in sizes.crowds:
        case = Case("concurrent", f"hits, {callers:,} callers", ASKED.get(callers, {}), unit="/s")
        rounds = max(3, sizes.rounds if callers < 100 else sizes.rounds // 4)
        with EmbeddedServer() as server:
            async with opened(server.port, NAMES) as field:
                found += await hits(case, field, one_user, rounds=rounds, calls=callers, keys=callers, together=True)
    return found
