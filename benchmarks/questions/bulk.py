"""What the cache adds to a bulk write: `FastRDB.create_multi` with Redis, without, and the same work by hand.

By hand: the rows added to a session, committed, and one pipeline of `SET`s. It does not invalidate any list.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import func, select

from benchmarks.catalogue import Database, User, UserOut, database, fields
from benchmarks.comparison import Case, table
from benchmarks.contestants.base import HOST, LIFE
from benchmarks.harness import Round, Sizes, Unused, interleaved
from benchmarks.report import Row
from fastrdb import Cache, FastRDB
from fastrdb.testing.server import EmbeddedServer

ROUNDS = 4
"""Each round writes all rows, so there are so many times fewer of them."""
OURS, PAST, HAND = "fastrdb", "fastrdb, redis=None", "session.add_all, pipeline of SET"
Crud = FastRDB[User, BaseModel, BaseModel, UserOut]


async def rows(sizes: Sizes) -> list[Row]:
    """So many new rows in one transaction, on SQLite."""
    case = Case("bulk", f"create {sizes.bulk:,} rows, a row")
    with EmbeddedServer() as server:
        async with Redis(host=HOST, port=server.port) as client, Cache() as cache, database() as db:
            crud: Crud = FastRDB(User, UserOut, "bulk:{id}", "bulk:page:{page}:limit:{limit}", LIFE, cache=cache)
            sides: dict[str, Round] = {
                OURS: partial(_ours, crud, db, client),
                PAST: partial(_ours, crud, db, None),
                HAND: partial(_by_hand, db, client),
            }
            draw = Unused()
            draw.take(await _rows(db))
            for calls in sides.values():
                await calls(draw.take(sizes.bulk))
            rounds, before = max(3, sizes.rounds // ROUNDS), await _rows(db)
            timings = await interleaved(sides, rounds=rounds, calls=sizes.bulk, draw=draw.take)
            assert await _rows(db) == before + rounds * len(sides) * sizes.bulk
            assert await client.exists("bulk:0", f"bulk:{before}") > 0, "nothing was stored"
    return table(case, {}, timings, {})


async def _ours(crud: Crud, db: Database, client: Redis | None, numbers: Sequence[int]) -> None:
    async with db.sessions() as session:
        found = await crud.create_multi(session, client, [fields(number) for number in numbers])
    assert len(found) == len(numbers)


async def _by_hand(db: Database, client: Redis, numbers: Sequence[int]) -> None:
    async with db.sessions() as session:
        users = [User(**fields(number)) for number in numbers]
        session.add_all(users)
        await session.commit()
        found = [UserOut.model_validate(user) for user in users]
    async with client.pipeline(transaction=False) as pipeline:
        for answer in found:
            pipeline.set(f"hand:{answer.id}", answer.model_dump_json(), px=LIFE * 1000)
        await pipeline.execute()


async def _rows(db: Database) -> int:
    async with db.sessions() as session:
        return (await session.execute(select(func.count()).select_from(User))).scalar_one()
