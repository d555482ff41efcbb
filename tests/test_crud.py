"""`FastRDB` with the tutorial's model and settings, on each database and a real Redis."""

from __future__ import annotations

from datetime import datetime

import pytest
import redis.asyncio
from pydantic import BaseModel, ConfigDict, EmailStr
from sqlalchemy import Boolean, DateTime, Integer, String, func
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column

from fastrdb import FastRDB
from tests.support.databases import Database

Redis = redis.asyncio.Redis


class Base(MappedAsDataclass, DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"

    id: Mapped[int] = mapped_column("id", Integer, primary_key=True, autoincrement=True, nullable=False, unique=True)
    email: Mapped[str] = mapped_column(String(255), unique=True, nullable=False)
    name: Mapped[str] = mapped_column(String(100), nullable=False)
    bio: Mapped[str | None] = mapped_column(String(500), nullable=True)
    created_at: Mapped[datetime] = mapped_column(DateTime, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime, server_default=func.now(), onupdate=func.now())
    is_active: Mapped[bool] = mapped_column(Boolean, default=True)


class UserCreate(BaseModel):
    email: EmailStr
    name: str
    bio: str | None = None
    is_active: bool = True


class UserUpdate(BaseModel):
    email: EmailStr | None = None
    name: str | None = None
    bio: str | None = None
    is_active: bool | None = None


class UserResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    name: str
    bio: str | None
    is_active: bool
    created_at: datetime
    updated_at: datetime


Crud = FastRDB[User, UserCreate, UserUpdate, UserResponse]


def make_crud(**changes: object) -> Crud:
    """Give the tutorial's `user_crud`, with counters of its own."""
    settings: dict[str, object] = {
        "pattern": "user:email:{email}",
        "list_pattern": "user:page:{page}:limit:{limit}",
        "invalidate_pattern_prefix": "todo:*",
        "exp": 6000,
    }
    return Crud(User, UserResponse, **{**settings, **changes})  # type: ignore[arg-type]


def user(name: str = "ann", **changes: object) -> UserCreate:
    """Give a user to create."""
    return UserCreate.model_validate({"email": f"{name}@example.com", "name": name, **changes})


@pytest.fixture
async def db(database: Database) -> AsyncSession:  # type: ignore[misc]
    """Give a session on each database in turn, with the table in it."""
    await database.create(Base)
    async with database.sessions() as session:
        yield session


async def test_create_then_get(db: AsyncSession, client: Redis) -> None:
    """What `create` answers is what `get` answers, and it is in Redis already."""
    crud = make_crud()
    made = await crud.create(db=db, redis=client, obj_in=user(), email="ann@example.com")
    assert await crud.get(db=db, redis=client, email="ann@example.com") == made
    assert (await client.get("user:email:ann@example.com")) is not None
    assert await crud.get_multi(db=db, redis=client, limit=10, page=1) == [made]
    assert await crud.count(db=db, redis=client) == 1
    upd = await crud.update(db=db, redis=client, obj_in=UserUpdate(name="Anna"), email="ann@example.com")
    assert upd.name == "Anna" and upd.email == "ann@example.com"
    assert await crud.get(db=db, redis=client, email="ann@example.com") == upd
    assert await crud.get_multi(db=db, redis=client) == [upd]
    assert (await crud.get_page(db, client)).data == [upd]
    print(sorted(await client.keys()))
    assert await crud.get_many(db, client, email=["x@y", "ann@example.com"]) == [None, upd]
    assert await crud.exists(db, client)
    up = await crud.upsert(db, client, user("bob"))
    up2 = await crud.upsert(db, client, user("bob", bio="x"))
    assert up.id == up2.id and up2.bio == "x"
    await crud.delete(db=db, redis=client, email="ann@example.com")
    assert await crud.get_or_none(db=db, redis=client, email="ann@example.com") is None
    assert await crud.get_multi(db=db, redis=client) == [up2]
    print(sorted(await client.keys()))
    made = await crud.create_multi(db, client, [user(f"u{n}") for n in range(30)])
    assert await crud.get_multi(db, client, limit=5, page=2, order_by="name", ascending=False, is_active=True)
    assert len(await crud.update_multi(db, client, {"bio": "z"}, is_active=True)) == 31
    assert await crud.delete_multi(db, client, is_active=True) == 31
    assert await crud.count(db) == 0
