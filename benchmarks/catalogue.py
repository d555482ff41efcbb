"""What is read in the benchmarks: a table of users, the answer made of a row, and the functions that get it.

A function comes in two forms: `query`, as the tutorial has it, for whoever is asynchronous, and `blocking`, which does
the same work, for a cache that is not. Both note that they ran.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import create_engine, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

ROWS = 1_000
SINCE = datetime(2024, 1, 1, tzinfo=UTC)

Query = Callable[[AsyncSession, Redis, int], Coroutine[Any, Any, Any]]


class Base(DeclarativeBase):
    """All mapped classes here."""


class User(Base):
    """A row of seven columns."""

    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]
    email: Mapped[str]
    city: Mapped[str]
    age: Mapped[int]
    active: Mapped[bool]
    since: Mapped[datetime]


class UserOut(BaseModel, from_attributes=True):
    """What a caller gets of it: seven fields."""

    id: int
    name: str
    email: str
    city: str
    age: int
    active: bool
    since: datetime


class FrozenUser(BaseModel, frozen=True):
    """The same, never changed: one object may serve all callers."""

    id: int
    name: str
    email: str
    city: str
    age: int
    active: bool
    since: datetime


def fields(number: int) -> dict[str, Any]:
    """Give the row of a number, without a database."""
    name, email = f"user {number}", f"user{number}@example.com"
    city, age = "Basel", 30 + number % 40
    return {"id": number, "name": name, "email": email, "city": city, "age": age, "active": True, "since": SINCE}


def user(number: int) -> UserOut:
    """Give the answer for a number, without a database."""
    return UserOut(**fields(number))


class Loads:
    """How often a function ran. Threads may note it too."""

    def __init__(self) -> None:
        self._noted: list[None] = []

    def note(self) -> None:
        """One more."""
        self._noted.append(None)

    @property
    def count(self) -> int:
        """How often so far."""
        return len(self._noted)


@dataclass(frozen=True, slots=True)
class Task:
    """A function to put a cache on."""

    query: Query
    blocking: Callable[[int], Any]
    shape: Any
    """What it gives, for those who decode by hand."""
    loads: Loads


def one_user() -> Task:
    """A load that costs nothing: a model made in memory."""
    loads = Loads()

    def blocking(number: int) -> UserOut:
        loads.note()
        return user(number)

    async def get_user(db: AsyncSession, redis: Redis, number: int) -> UserOut:
        return blocking(number)

    return Task(get_user, blocking, UserOut, loads)


def page_of(size: int) -> Task:
    """A list of so many users."""
    loads = Loads()

    def blocking(number: int) -> list[UserOut]:
        loads.note()
        return [user(number * size + each) for each in range(size)]

    async def list_users(db: AsyncSession, redis: Redis, number: int) -> list[UserOut]:
        return blocking(number)

    return Task(list_users, blocking, list[UserOut], loads)


def slow_user(seconds: float) -> Task:
    """A load that takes its time, as a report does."""
    loads = Loads()

    def blocking(number: int) -> UserOut:
        loads.note()
        time.sleep(seconds)
        return user(number)

    async def get_user(db: AsyncSession, redis: Redis, number: int) -> UserOut:
        loads.note()
        await asyncio.sleep(seconds)
        return user(number)

    return Task(get_user, blocking, UserOut, loads)


@dataclass(frozen=True, slots=True)
class Database:
    """Sessions on a SQLite file with `ROWS` users."""

    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]
    blocking: sessionmaker[Session]

    def selected_user(self) -> Task:
        """A `SELECT` by key, on the caller's session, or on one of its own for a cache that blocks."""
        loads, sessions = Loads(), self.blocking

        def blocking(number: int) -> UserOut:
            loads.note()
            with sessions() as db:
                return UserOut.model_validate(db.execute(select(User).where(User.id == number % ROWS)).scalar_one())

        async def get_user(db: AsyncSession, redis: Redis, number: int) -> UserOut:
            loads.note()
            found = await db.execute(select(User).where(User.id == number % ROWS))
            return UserOut.model_validate(found.scalar_one())

        return Task(get_user, blocking, UserOut, loads)


@asynccontextmanager
async def database() -> AsyncIterator[Database]:
    """Give sessions on a SQLite file of its own, filled."""
    with TemporaryDirectory() as folder:
        file = Path(folder) / "users.sqlite"
        engine, blocking = create_async_engine(f"sqlite+aiosqlite:///{file}"), create_engine(f"sqlite:///{file}")
        try:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
                await connection.execute(insert(User), [fields(number) for number in range(ROWS)])
            sessions = async_sessionmaker(engine, expire_on_commit=False)
            yield Database(engine, sessions, sessionmaker(blocking, expire_on_commit=False))
        finally:
            await engine.dispose()
            blocking.dispose()
