"""The tutorial's FastAPI application: six routes over `user_crud`, one that is watched, and a start page."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Query
from pydantic import EmailStr
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import PaginatedResponse
from fastrdb.demo.cache import get_redis, open_redis
from fastrdb.demo.crud import user_crud
from fastrdb.demo.database import async_get_db, open_database
from fastrdb.demo.outside import Outside
from fastrdb.demo.page import add_page, count_statements
from fastrdb.demo.rows import insert_users
from fastrdb.demo.schemas import UserCreate, UserResponse, UserUpdate
from fastrdb.integrations.fastapi import CacheStatus, add_handlers

Database = Annotated[AsyncSession, Depends(async_get_db)]
Client = Annotated[Redis, Depends(get_redis)]
Page = Annotated[int, Query(ge=1, le=1_000_000)]
Limit = Annotated[int, Query(ge=1, le=100)]

users = APIRouter(prefix="/users", tags=["users"])


@users.post("/", status_code=201)
async def create_user(user: UserCreate, redis: Client, db: Database) -> UserResponse:
    """Create a user."""
    return await user_crud.create(db=db, redis=redis, obj_in=user, email=user.email)


@users.post("/bulk", status_code=201)
async def create_users(users: list[UserCreate], redis: Client, db: Database) -> list[UserResponse]:
    """Create many users: all of them or none."""
    return await user_crud.create_multi(db=db, redis=redis, instances=users)


@users.get("/")
async def read_users(
    redis: Client,
    db: Database,
    page: Page = 1,
    limit: Limit = 10,
    order_by: str | None = None,
    ascending: bool = True,
) -> PaginatedResponse[UserResponse]:
    """Return one page of all users."""
    return await user_crud.get_page(db=db, redis=redis, limit=limit, page=page, order_by=order_by, ascending=ascending)


@users.get("/{email}")
async def read_user(email: EmailStr, redis: Client, db: Database) -> UserResponse:
    """Return one user."""
    return await user_crud.get(db=db, redis=redis, email=email)


@users.put("/{email}")
async def update_user(email: EmailStr, user: UserUpdate, redis: Client, db: Database) -> UserResponse:
    """Change a user: only the fields that are given."""
    return await user_crud.update(db=db, redis=redis, obj_in=user, email=email)


@users.delete("/{email}", status_code=204, response_model=None)
async def delete_user(email: EmailStr, redis: Client, db: Database) -> None:
    """Delete a user."""
    await user_crud.delete(db=db, redis=redis, email=email)


def create_app(database_url: str, redis_url: str, *, rows: int = 0) -> FastAPI:
    """Return the application on this database and this Redis; at its start `rows` generated users are inserted."""
    outside = Outside(redis_url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with open_database(database_url) as engine, open_redis(redis_url), user_crud.cache:
            count_statements(engine)
            async with async_get_db() as db:
                await insert_users(db, rows)
            app.state.engine = engine
            async with outside.watching(engine):
                yield

    # The pages of FastAPI load their scripts from the network: the start page stands in for them.
    app = FastAPI(title="Users of the tutorial", lifespan=lifespan, docs_url=None, redoc_url=None)
    app.include_router(users)
    app.include_router(outside.router)
    add_handlers(app)
    app.add_middleware(CacheStatus, cache=user_crud.cache)
    app.add_middleware(CacheStatus, cache=outside.cache)
    add_page(app)
    return app
