"""What a hit costs one caller: a decorated call against the `GET` and `validate_json` that one would write by hand."""

from __future__ import annotations

from benchmarks.catalogue import one_user
from benchmarks.comparison import Case, hits
from benchmarks.contestants.field import opened
from benchmarks.harness import Sizes
from benchmarks.report import Limit, Row
from fastrdb.testing.server import EmbeddedServer

KEYS = 100


async def rows(sizes: Sizes) -> list[Row]:
    """One call after the other, over 100 keys."""
    case = Case("hit", "hit, one caller", {"bare": Limit("ratio", bar=1.10, aim=1.0)})
    with EmbeddedServer() as server:
        async with opened(server.port) as field:
            return await hits(case, field, one_user, rounds=sizes.rounds, calls=sizes.calls, keys=KEYS)
