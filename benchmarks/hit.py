"""What a hit costs: a decorated call against the `GET` and `validate_json` that one would write by hand."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from pydantic import TypeAdapter
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.catalogue import UserOut, database, user
from benchmarks.harness import Row, Sizes, interleaved
from fastrdb import Cache

CALLERS = 64


async def rows(sizes: Sizes, client: Redis) -> list[Row]:
    """Measure one caller alone, and 64 at once."""
    cache = Cache()
    adapter = TypeAdapter(UserOut)

    @cache.cached("user:{number}")
    async def get_user(db: AsyncSession, redis: Redis, number: int) -> UserOut:
        return user(number)

    async with database() as sessions, sessions() as db:
        await get_user(db, client, 1)

        async def bare(number: int) -> UserOut:
            raw = await client.get("user:1")
            return adapter.validate_json(raw or b"")

        async def decorated(number: int) -> UserOut:
            return await get_user(db, client, 1)

        alone = await interleaved(sizes, decorated, bare)
        together = await interleaved(_fewer(sizes), at_once(decorated), at_once(bare))
    assert get_user.stats.loads == 1
    return [
        alone.row("hit, one caller", "GET + validate_json", aim=1.15),
        together.row(f"hits, {CALLERS} callers at once", f"{CALLERS} x GET + validate_json"),
    ]


def at_once(action: Callable[[int], Awaitable[object]]) -> Callable[[int], Awaitable[object]]:
    """Make one call of many at once."""

    async def calls(number: int) -> object:
        return await asyncio.gather(*(action(number) for _ in range(CALLERS)))

    return calls


def _fewer(sizes: Sizes) -> Sizes:
    return Sizes(sizes.rounds, max(1, sizes.calls // CALLERS), sizes.many)
