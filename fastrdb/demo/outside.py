"""A route that follows writes from outside: another program changes the table, and the entry is gone."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends
from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from fastrdb import Cache
from fastrdb.demo.database import async_get_db
from fastrdb.demo.models import User
from fastrdb.demo.schemas import UserResponse
from fastrdb.watch import Watcher, source_of


class Outside:
    """A cache that follows all writes, with a route of its own."""

    def __init__(self, redis_url: str) -> None:
        self.client = Redis.from_url(redis_url)
        self.cache = cache = Cache(self.client, auto=True)
        self.router = APIRouter(prefix="/followed", tags=["followed"])

        @cache.cached("followed:{email}", exp=600, schema=UserResponse)
        async def read_followed(db: Annotated[AsyncSession, Depends(async_get_db)], email: str) -> User | None:
            return (await db.scalars(select(User).where(User.email == email))).one_or_none()

        self.router.get("/{email}")(read_followed)

    @asynccontextmanager
    async def watching(self, engine: AsyncEngine) -> AsyncIterator[None]:
        """Watch the database inside of the application. A service would run `fastrdb watch run` beside it."""
        own = create_async_engine(engine.url)  # so that a count of the other one's statements has no polls
        try:
            source = source_of(own)
            await source.run(await source.install_sql())
            async with self.client, self.cache, Watcher(source, self.cache):
                yield
        finally:
            await own.dispose()


def command(engine: AsyncEngine) -> str:
    """Return a command for another shell."""
    sql = "UPDATE users SET name = 'Grace' WHERE email = 'ada@example.com'"
    return f'sqlite3 {engine.url.database} "{sql}"'
