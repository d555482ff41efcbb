"""The tutorial's database: the models' base, the sessions, and `async_get_db`."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager

from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import DeclarativeBase, MappedAsDataclass

from fastrdb.demo.resources import resource


class Base(MappedAsDataclass, DeclarativeBase):
    """The base of all models."""


local_session = async_sessionmaker(class_=AsyncSession, expire_on_commit=False, autoflush=False)


@asynccontextmanager
async def open_database(url: str) -> AsyncIterator[AsyncEngine]:
    """Open sessions on the database at `url` for the block; missing tables are made."""
    async_engine = create_async_engine(url)
    before = local_session.kw.get("bind")
    try:
        async with async_engine.begin() as connection:
            await connection.run_sync(Base.metadata.create_all)
        local_session.configure(bind=async_engine)
        yield async_engine
    finally:
        local_session.configure(bind=before)
        await async_engine.dispose()


@resource
async def async_get_db() -> AsyncGenerator[AsyncSession, None]:
    """Yield a session, closed in the end: for `Depends(async_get_db)` and for `async with async_get_db() as db`."""
    async with local_session() as session:
        yield session
