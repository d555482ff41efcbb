"""The table that is read in the benchmarks, and the answer made of its rows."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

from pydantic import BaseModel
from sqlalchemy import insert
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

ROWS = 1_000
SINCE = datetime(2024, 1, 1, tzinfo=UTC)


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


def user(number: int) -> UserOut:
    """Give the answer for a number, without a database."""
    name = f"user {number}"
    email = f"user{number}@example.com"
    return UserOut(id=number, name=name, email=email, city="Basel", age=30 + number % 40, active=True, since=SINCE)


@asynccontextmanager
async def database() -> AsyncIterator[async_sessionmaker[AsyncSession]]:
    """Give sessions on a SQLite file of its own, filled."""
    with TemporaryDirectory() as folder:
        engine = create_async_engine(f"sqlite+aiosqlite:///{Path(folder) / 'users.sqlite'}")
        try:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
                await connection.execute(insert(User), [user(number).model_dump() for number in range(ROWS)])
            yield async_sessionmaker(engine, expire_on_commit=False)
        finally:
            await engine.dispose()
