"""What a miss costs: a decorated call against `GET`, load and `SET` by hand.

The ratio depends on the load: with one that costs nothing it shows the protocol's two scripts against one SET, with a
query it shows what a caller notices. Both are in the table.
"""

from __future__ import annotations

from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from benchmarks.catalogue import ROWS, User, UserOut, database, user
from benchmarks.harness import Row, Sizes, Timings, interleaved
from fastrdb import Cache

LIFE = 3600


async def rows(sizes: Sizes, client: Redis) -> list[Row]:
    """Measure with a query as the load, and with none."""
    async with database() as sessions:
        queried = await _queried(sizes, client, sessions)
    free = await _free(sizes, client)
    return [
        queried.row("miss, load: session and SELECT by key (SQLite)", "GET + load + SET", aim=1.6),
        free.row("miss, load: nothing (a model made in memory)", "GET + load + SET"),
    ]


async def _queried(sizes: Sizes, client: Redis, sessions: async_sessionmaker[AsyncSession]) -> Timings:
    """Each call has a session of its own, as a request has."""
    cache = Cache()

    async def load(db: AsyncSession, number: int) -> UserOut:
        found = await db.execute(select(User).where(User.id == number % ROWS))
        return UserOut.model_validate(found.scalar_one())

    @cache.cached("queried:{number}", exp=LIFE)
    async def get_user(db: AsyncSession, redis: Redis, number: int) -> UserOut:
        return await load(db, number)

    async def decorated(number: int) -> object:
        async with sessions() as db:
            return await get_user(db, client, number)

    async def bare(number: int) -> object:
        async with sessions() as db:
            key = f"bare:queried:{number}"
            if (raw := await client.get(key)) is not None:
                return UserOut.model_validate_json(raw)
            value = await load(db, number)
            await client.set(key, value.model_dump_json(), px=LIFE * 1000)
            return value

    timings = await interleaved(sizes, decorated, bare)
    await cache.aclose()
    assert get_user.stats.fills == get_user.stats.misses > 0
    return timings


async def _free(sizes: Sizes, client: Redis) -> Timings:
    cache = Cache()

    @cache.cached("free:{number}", exp=LIFE)
    async def get_user(redis: Redis, number: int) -> UserOut:
        return user(number)

    async def decorated(number: int) -> object:
        return await get_user(client, number)

    async def bare(number: int) -> object:
        key = f"bare:free:{number}"
        if (raw := await client.get(key)) is not None:
            return UserOut.model_validate_json(raw)
        value = user(number)
        await client.set(key, value.model_dump_json(), px=LIFE * 1000)
        return value

    timings = await interleaved(sizes, decorated, bare)
    await cache.aclose()
    assert get_user.stats.fills == get_user.stats.misses > 0
    return timings
