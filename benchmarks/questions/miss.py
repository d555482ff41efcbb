"""What a miss costs: a decorated call against `GET`, load and `SET` by hand.

The ratio depends on the load: with one that costs nothing it shows the lease and the index against one SET, with a
query it shows what a caller notices, and that is what the bar is for. Both are in the table.
"""

from __future__ import annotations

from benchmarks.catalogue import database, one_user
from benchmarks.comparison import Case, misses
from benchmarks.contestants.field import opened
from benchmarks.harness import Sizes
from benchmarks.report import Limit, Row
from fastrdb.testing.server import EmbeddedServer


async def rows(sizes: Sizes) -> list[Row]:
    """With a query as the load, and with none."""
    selecting = Case("miss", "miss, SELECT by key (SQLite)", {"bare": Limit("ratio", bar=1.5, aim=1.3)})
    free = Case("miss", "miss, load for nothing")
    found, calls = [], max(3, sizes.calls // 3)
    async with database() as db:
        for case, task in ((selecting, db.selected_user), (free, one_user)):
            with EmbeddedServer() as server:
                async with opened(server.port) as field:
                    found += await misses(case, field, task, db, rounds=sizes.rounds, calls=calls)
    return found
