"""Counts the calls that one use of fastrdb costs: a count of functions entered, which no busy machine changes."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterable
from pathlib import Path
from types import FrameType
from typing import Any

from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import String, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

import fastrdb
from fastrdb import Cache, FastRDB
from fastrdb.loading import CachedFunction
from tests.support.waiting import until

_PACKAGE = str(Path(fastrdb.__file__).parent) + "/"
_COMPREHENSIONS = {"<listcomp>", "<genexpr>", "<dictcomp>", "<setcomp>"}
_SUSPENDS = 0x20 | 0x80 | 0x200  # code flags of generators, coroutines and asynchronous generators


class Trace:
    """The calls of functions of fastrdb, as `module:function`. Comprehensions and resumed coroutines do not count."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self._suspended: dict[int, FrameType] = {}  # the frames themselves, so that no id is used twice

    def __call__(self, frame: FrameType, event: str, argument: object) -> None:
        """Note a call, when `sys.setprofile` reports one."""
        code = frame.f_code
        name = code.co_filename
        if event != "call" or code.co_name in _COMPREHENSIONS or not name.startswith((_PACKAGE, "<fastrdb")):
            return
        if code.co_flags & _SUSPENDS:
            if id(frame) in self._suspended:
                return
            self._suspended[id(frame)] = frame
        self.calls.append(f"{name.removeprefix(_PACKAGE)}:{code.co_qualname}")

    async def of(self, call: Callable[[], Awaitable[object]]) -> list[str]:
        """Return the calls that awaiting `call()` makes in this thread."""
        self.calls, self._suspended = [], {}
        sys.setprofile(self)
        try:
            await call()
        finally:
            sys.setprofile(None)
        return self.calls


class Base(DeclarativeBase):
    """The mapped classes of the flows."""


class User(Base):
    """A row with a unique key beside its primary one."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(100), unique=True)
    name: Mapped[str]


class Out(BaseModel, from_attributes=True):
    """A cached answer."""

    id: int
    email: str
    name: str


class Change(BaseModel):
    """Input of an update."""

    name: str | None = None


class Flows:
    """Eight flows on one server: each one is prepared by what it needs, then traced once."""

    def __init__(self, client: Redis, engine: AsyncEngine, cache: Cache, near_cache: Cache) -> None:
        self._client, self._engine = client, engine
        self._make = async_sessionmaker(engine, expire_on_commit=False)
        self._trace = Trace()
        self._decorate(cache, near_cache)

    def _decorate(self, cache: Cache, near_cache: Cache) -> None:
        """Define the functions; the near cache is of another `Cache`, so that its heartbeat is in no other flow."""

        async def load(db: AsyncSession, redis: Redis, email: str) -> User:
            return (await db.scalars(select(User).where(User.email == email))).one()

        self._get = cache.cached("user:{email}", exp=600, schema=Out)(load)
        self._near = near_cache.cached("near:{email}", exp=600, schema=Out, near=True)(load)
        self._stale = cache.cached("stale:{email}", exp=600, stale=600, schema=Out, session_factory=self._make)(load)

        @cache.cached_many("many:{ids}", exp=600, schema=Out)
        async def many(db: AsyncSession, redis: Redis, ids: list[int]) -> dict[int, User]:
            return {user.id: user for user in await db.scalars(select(User).where(User.id.in_(ids)))}

        @cache.invalidates("user:{email}")
        async def rename(db: AsyncSession, redis: Redis, email: str, name: str) -> None:
            await db.execute(update(User).where(User.email == email).values(name=name))
            await db.commit()

        self._many, self._rename = many, rename
        query: CachedFunction = self._stale.query  # type: ignore[attr-defined]
        self._counts_of_stale = query.counters.counts
        self._crud = FastRDB[User, Change, Change, Out](
            User, Out, "crud:{email}", "crud:page:{page}:limit:{limit}", 600, "crud:*", cache=cache
        )

    async def prepare(self) -> None:
        """Create the rows, and run each path once on another row: scripts, statements and connections are there."""
        async with self._engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
            await connection.execute(text("INSERT INTO users VALUES (1,'a@x','A'),(2,'b@x','B'),(3,'c@x','C')"))
        await self._do(self._get, "b@x")
        await self._do(self._rename, "b@x", "B1")
        await self._do(self._crud.update, Change(name="B2"), email="b@x")
        await self._do(self._crud.get, email="b@x")

    async def traced(self) -> dict[str, list[str]]:
        """Return the calls of each flow."""
        found = {"miss": await self._calls(self._get, "a@x"), "hit": await self._calls(self._get, "a@x")}
        await until(self._is_near)
        found["near"] = await self._calls(self._near, "a@x")
        found["commit"] = await self._calls(self._rename, "a@x", "A2")
        await self._do(self._crud.get, email="a@x")
        found["update"] = await self._calls(self._crud.update, Change(name="A3"), email="a@x")
        await self._client.delete("many:2", "many:3")  # of the flows before
        await self._do(self._many, [1])
        found["many"] = await self._calls(self._many, [1, 2, 3])
        await self._do(self._stale, "a@x")
        await self._client.pexpire("stale:a@x", 300_000)  # of 1,200 s: the first 600 are over
        found["stale"] = await self._calls(self._reloaded)
        return found

    async def _is_near(self) -> bool:
        await self._do(self._near, "a@x")
        return self._near.stats.near > 0

    async def _reloaded(self, db: AsyncSession, redis: Redis) -> None:
        """Get a stale answer, and wait for the reload behind it."""
        counts = self._counts_of_stale  # without a call: on a busy machine, it is asked more often
        before = counts["fill"]
        await self._stale(db, redis, "a@x")

        async def filled() -> bool:
            return counts["fill"] > before

        await until(filled)

    async def _do(self, function: Callable[..., Awaitable[object]], *args: Any, **values: Any) -> None:
        async with self._make() as db:
            await function(db, self._client, *args, **values)

    async def _calls(self, function: Callable[..., Awaitable[object]], *args: Any, **values: Any) -> list[str]:
        async with self._make() as db:
            return await self._trace.of(lambda: function(db, self._client, *args, **values))


def by_module(calls: Iterable[str]) -> str:
    """Return how many calls each module takes, the most first, for the message of a test that fails."""
    counts: dict[str, int] = {}
    for call in calls:
        module = call.partition(":")[0]
        counts[module] = counts.get(module, 0) + 1
    return ", ".join(f"{name} {count}" for name, count in sorted(counts.items(), key=lambda item: -item[1]))
