"""Every way to write, and every way to end: the cache follows what the database does."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from tests.races.scenarios.commits import carried
from tests.support.world.world import World
from tests.support.world.writes import Way


async def rolled_back(w: World, way: Way) -> None:
    """Read in a session what it has written its way and roll it back, outside of any function that invalidates."""
    async with w.one.database.sessions() as db:
        await way(db)
        assert (await w.one.get(db, w.one.client, 1)).name == "new"
        assert not await w.client.exists("item:1"), "what is not committed is stored"
        await db.rollback()
    assert await w.truth() == "old"
    await w.fair()


async def committed(w: World, way: Way) -> None:
    """Write in a function that invalidates: Redis has the write before its COMMIT, which the caller sends."""

    @w.two.cache.invalidates("item:{item_id}")
    async def write(db: AsyncSession, redis: object, item_id: int) -> None:
        await way(db)

    assert await w.one.read() == "old"
    async with w.two.database.sessions() as db:
        await write(db, w.two.client, 1)
        assert (await w.two.get(db, w.two.client, 1)).name == "new"
        assert await w.client.get("item:1") == b'{"id":1,"name":"old"}'
        await carried(w, db.commit())
    assert await w.truth() == "new"
    await w.fair()
    await w.quiet()


async def hidden(w: World, way: Way) -> None:
    """Write in a session that was open before, and that the function does not name: the same."""
    async with w.two.database.sessions() as db:

        @w.two.cache.invalidates("item:{item_id}")
        async def write(redis: object, item_id: int) -> None:
            await way(db)

        await db.connection()
        await write(w.two.client, 1)
        await db.flush()
        assert await w.one.read() == "old"
        await carried(w, db.commit())
    assert await w.truth() == "new"
    await w.fair()
    await w.quiet()
