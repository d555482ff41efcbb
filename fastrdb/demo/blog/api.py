"""The routes of the blog. The tenant comes from a header; in a service of yours, from the login.

REDIS_URL=redis://localhost:6379 uvicorn --factory fastrdb.demo.blog.api:create_app
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from fastrdb.demo.blog.cache import cache
from fastrdb.demo.blog.models import Base
from fastrdb.demo.blog.schemas import (
    AuthorIn,
    AuthorOut,
    CommentIn,
    CommentOut,
    Headline,
    PostIn,
    PostOut,
    PostPage,
)
from fastrdb.demo.blog.services import Blog
from fastrdb.integrations.fastapi import CacheStatus, Session, add_handlers, cached_response, lifespan

routes = APIRouter()
Tenant = Annotated[int, Header(alias="X-Tenant")]
Page = Annotated[int, Query(ge=1, le=1_000)]


def get_blog(db: Session, tenant: Tenant) -> Blog:
    """Return the blog of the caller's tenant."""
    return Blog(db, tenant)


Mine = Annotated[Blog, Depends(get_blog)]

# --- authors


@routes.get("/authors/{author_id}")
async def read_author(blog: Mine, author_id: int) -> AuthorOut:
    """Return an author."""
    return await blog.authors.get(author_id)


@routes.get("/authors")
async def read_authors(blog: Mine, ids: Annotated[list[int], Query(alias="id", max_length=100)]) -> list[AuthorOut]:
    """Return several authors, in one round trip to Redis."""
    return list((await blog.authors.get_many(ids)).values())


@routes.post("/authors", status_code=201)
async def add_author(blog: Mine, author: AuthorIn) -> AuthorOut:
    """Add an author."""
    return await blog.add_author(author)


@routes.put("/authors/{author_id}/name")
async def rename_author(blog: Mine, author_id: int, name: str) -> AuthorOut:
    """Rename an author, which changes all of the author's posts."""
    return await blog.rename_author(author_id, name)


@routes.delete("/authors/{author_id}", status_code=204, response_model=None)
async def delete_author(blog: Mine, author_id: int) -> None:
    """Delete an author with posts and comments."""
    await blog.delete_author(author_id)


@routes.get("/authors/{author_id}/posts")
async def read_posts(blog: Mine, author_id: int, page: Page = 1) -> list[Headline]:
    """Return one page of an author's posts."""
    return await blog.posts_of(author_id, page)


# --- posts


@routes.get("/tags/{tag}/posts")
async def read_tag(blog: Mine, tag: str, page: Page = 1) -> list[Headline]:
    """Return one page of the posts with a tag."""
    return await blog.posts_with(tag, page)


@routes.get("/posts/{post_id}")
@cached_response(max_age=0)
@cache.cached("{tenant}:post:{post_id}:page", exp=600, negative_exp=30)
async def read_post(db: Session, tenant: Tenant, post_id: int) -> PostPage:
    """Return all about one post. A hit is the stored JSON, with an `ETag`; a write to any part of it makes a miss."""
    blog = Blog(db, tenant)
    post = await blog.posts.get(post_id)
    comments, count = await blog.comments_on(post_id), await blog.count_of(post.author.id)
    return PostPage(post=post, comments=comments, posts_of_author=count)


@routes.post("/posts", status_code=201)
async def write_post(blog: Mine, post: PostIn) -> PostOut:
    """Write a post."""
    return await blog.write_post(post)


@routes.put("/posts/{post_id}/tags")
async def tag_post(blog: Mine, post_id: int, tags: list[str]) -> PostOut:
    """Replace the tags of a post."""
    return await blog.tag_post(post_id, tags)


@routes.delete("/posts/{post_id}", status_code=204, response_model=None)
async def delete_post(blog: Mine, post_id: int) -> None:
    """Delete a post with its comments."""
    if not await blog.delete_post(post_id):
        raise HTTPException(404, "There is no such post.")


@routes.post("/posts/{post_id}/comments", status_code=201)
async def comment(blog: Mine, post_id: int, given: CommentIn) -> CommentOut:
    """Comment on a post."""
    return await blog.comment(post_id, given)


# --- the application


def create_app(database: AsyncEngine | None = None) -> FastAPI:
    """Return the application on a database; by default on that of `DATABASE_URL`, whose missing tables are created."""
    engine = database or create_async_engine(os.environ.get("DATABASE_URL", "sqlite+aiosqlite:///blog.db"))

    @asynccontextmanager
    async def tables(_: FastAPI) -> AsyncIterator[None]:
        await create_tables(engine)
        yield

    app = FastAPI(title="Blog", lifespan=lifespan(cache, database=engine, also=tables))
    app.include_router(routes)
    add_handlers(app)
    app.add_middleware(CacheStatus, cache=cache)
    return app


async def create_tables(engine: AsyncEngine) -> None:
    """Create the tables that are missing. SQLite has to be asked for foreign keys on each connection."""
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", _with_foreign_keys)
        await engine.dispose()
    async with engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)


def _with_foreign_keys(connection: Any, _: Engine) -> None:
    connection.execute("PRAGMA foreign_keys=ON")
