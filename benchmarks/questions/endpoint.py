"""How many requests a second the blog of `fastrdb/demo/blog` answers, with a cache and without.

fastrdb is measured with the application as it is: routing, the header `Cache-Status`, a tenant, a session for each
request, and a cache that follows every write. The other caches are on a function that does the same reads, in a route
with the same path. The application is called by ASGI in this process, without an HTTP client, a parser and a socket:
these would take the larger part of the time, on each side alike.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from fastapi import Depends, FastAPI
from redis.asyncio import Redis
from sqlalchemy import create_engine, insert, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session

from benchmarks.catalogue import Loads, Query, Task
from benchmarks.comparison import Case, enter, table
from benchmarks.contestants.fastapi_cache import FastapiCache
from benchmarks.contestants.field import USUAL, Field, opened
from benchmarks.harness import Known, Round, Sizes, interleaved
from benchmarks.report import Row
from fastrdb.demo.blog.api import create_app
from fastrdb.demo.blog.cache import cache
from fastrdb.demo.blog.models import Author, Base, Comment, Post, Tag, Tenant, post_tags
from fastrdb.demo.blog.schemas import AuthorOut, PostPage
from fastrdb.demo.blog.services import Blog
from fastrdb.testing import isolated
from fastrdb.testing.server import EmbeddedServer

WITHOUT, OURS = "no cache", "fastrdb"
FEWER = 2
"""A request takes so much longer than a call that there are so many times fewer rounds."""
OK = 200
TENANT = 1
AUTHORS = 100
"""Each has one post with a tag and two comments. Authors and posts have the keys from 1 on."""
WAIT_S = 300
"""The longest wait for a connection to the database. 64 callers without a cache share 15."""
ROW, PAGE = "/authors/{number}", "/posts/{number}"
NAMES = (*USUAL[1:], "cashews, client_side")
"""The others, by their names in the field."""


async def rows(sizes: Sizes) -> list[Row]:
    """Measure an author, a `SELECT` by key on SQLite, and the page of a post, which takes five: one caller, and many.

    The page is compared with no cache only: the others have no function for what it is made of.
    """
    found: list[Row] = []
    with EmbeddedServer() as server:
        async with blog() as town, opened(server.port, NAMES) as field, isolated(cache, redis=field.client):
            for callers in (1, sizes.crowds[0]):
                for path in (ROW, PAGE):
                    found += await _measured(sizes, town, field, path, callers)
    return found


@dataclass(frozen=True, slots=True)
class Town:
    """The blog on a SQLite file of its own, and the functions that read from it without a cache."""

    engine: AsyncEngine
    file: Path

    def author(self) -> Task:
        """Return the read of an author, in both forms."""
        loads, engine = Loads(), create_engine(f"sqlite:///{self.file}")

        def blocking(number: int) -> AuthorOut:
            loads.note()
            with Session(engine) as db:
                query = select(Author).where(Author.id == number, Author.tenant_id == TENANT)
                return AuthorOut.model_validate(db.scalars(query).one())

        async def read(db: AsyncSession, redis: Redis, number: int) -> AuthorOut:
            loads.note()
            with cache.disabled():
                return await Blog(db, TENANT).authors.get(number)

        return Task(read, blocking, AuthorOut, loads)

    def page(self) -> Task:
        """Return the reads of a post's page."""
        loads = Loads()

        async def read(db: AsyncSession, redis: Redis, number: int) -> PostPage:
            loads.note()
            with cache.disabled():
                blog = Blog(db, TENANT)
                post = await blog.posts.get(number)
                comments, count = await blog.comments_on(number), await blog.count_of(post.author.id)
                return PostPage(post=post, comments=comments, posts_of_author=count)

        return Task(read, NotImplemented, PostPage, loads)


@asynccontextmanager
async def blog() -> AsyncIterator[Town]:
    """Yield the blog with one tenant."""
    keys = range(1, AUTHORS + 1)
    owned = {"tenant_id": TENANT}
    tables: dict[Any, list[dict[str, Any]]] = {
        Tenant: [{"id": TENANT, "name": "one"}],
        Author: [{"id": key, **owned, "email": f"{key}@example.com", "name": f"author {key}"} for key in keys],
        Tag: [{"id": 1, **owned, "name": "sea"}],
        Post: [{"id": key, **owned, "author_id": key, "title": f"post {key}", "body": "text " * 40} for key in keys],
        post_tags: [{"post_id": key, "tag_id": 1} for key in keys],
        Comment: [{**owned, "post_id": key, "reader": name, "text": "well"} for key in keys for name in ("cy", "di")],
    }
    with TemporaryDirectory() as folder:
        engine = create_async_engine(
            f"sqlite+aiosqlite:///{(file := Path(folder) / 'blog.sqlite')}", pool_timeout=WAIT_S
        )
        try:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
                for name, filled in tables.items():
                    await connection.execute(insert(name), filled)
            yield Town(engine, file)
        finally:
            await engine.dispose()


async def _measured(sizes: Sizes, town: Town, field: Field, path: str, callers: int) -> list[Row]:
    task = town.author if path == ROW else town.page
    plain = task()
    others, loads = {WITHOUT: _application(town, field.client, path, plain)}, {WITHOUT: plain.loads}
    if path == ROW:
        _add_others(town, field, f"endpoint-{callers}", others, loads)
    app = create_app(town.engine)
    async with app.router.lifespan_context(app):
        applications = {OURS: app, **others}
        return await _compared(sizes, field, path, callers, applications, loads)


async def _compared(
    sizes: Sizes, field: Field, path: str, callers: int, applications: dict[str, FastAPI], loads: dict[str, Loads]
) -> list[Row]:
    at, known = _at(path), Known(max(callers, 20))
    sides: dict[str, Round] = {name: partial(requests, each, at, callers) for name, each in applications.items()}
    for name, app in applications.items():
        await requests(app, at, 1, range(max(callers, 20)))  # alone, so that a busy machine stores each entry, too
        answer, right = [await request(each, at(0)) for each in (app, applications[WITHOUT])]
        assert answer == right, f"{name}: {answer!r}"
    before = {name: each.count for name, each in loads.items()}
    ours = cache.stats().misses  # not its loads: those of the other sides, under `disabled`, are among them
    calls = sizes.calls if callers == 1 else callers
    timings = await interleaved(sides, rounds=max(3, sizes.rounds // FEWER), calls=calls, draw=known.take)
    ran = {OURS: cache.stats().misses - ours, **{name: each.count - before[name] for name, each in loads.items()}}
    void = {name for name in ran if ran[name] != (timings.calls[name] if name == WITHOUT else 0)}
    what = "FastAPI" if path == ROW else "FastAPI, a page of five SELECTs"
    case = Case("endpoint", f"{what}, {callers} caller{'s' if callers > 1 else ''}", unit="/s")
    return table(case, field.absent, timings, ran, void)


def _add_others(
    town: Town, field: Field, topic: str, applications: dict[str, FastAPI], loads: dict[str, Loads]
) -> None:
    """Add an application for each other cache, and the count of its loads."""
    for entrant in enter(field, topic, town.author):
        applications[entrant.name] = _application(town, field.client, ROW, town.author(), entrant.call)
        loads[entrant.name] = entrant.loads
    for name, contestant in field.contestants.items():
        if isinstance(contestant, FastapiCache):  # it goes on the endpoint, not on a function that the endpoint calls
            own, decorate = town.author(), partial(contestant.endpoint, head=topic)
            applications[name], loads[name] = _application(town, field.client, ROW, own, decorate=decorate), own.loads


def _application(
    town: Town,
    client: Redis,
    path: str,
    task: Task,
    call: Query | None = None,
    decorate: Callable[[Any], Any] = lambda function: function,
) -> FastAPI:
    sessions, read_by = async_sessionmaker(town.engine, expire_on_commit=False), call or task.query

    async def session() -> AsyncIterator[AsyncSession]:
        async with sessions() as opened:
            yield opened

    async def shared() -> Redis:
        return client

    a_session: Any = Depends(session)
    the_client: Any = Depends(shared)

    async def read(number: int, db: AsyncSession = a_session, redis: Redis = the_client) -> Any:
        return await read_by(db, redis, number)

    read.__annotations__["return"] = task.shape  # fastapi-cache2 decodes by it
    app = FastAPI()
    app.get(path)(decorate(read))
    return app


def _at(path: str) -> Callable[[int], str]:
    """Return a function of a number from 0 on, which returns the path of a row."""
    return lambda number: path.format(number=number + 1)


async def requests(app: FastAPI, path: Callable[[int], str], callers: int, numbers: Sequence[int]) -> None:
    """Ask for the path of each number: one after the other, or all at once where there are several callers."""
    if callers == 1:
        for number in numbers:
            await request(app, path(number))
    else:
        await asyncio.gather(*(request(app, path(number)) for number in numbers))


async def request(app: FastAPI, path: str) -> bytes:
    """Send one request as a server would hand it over; return the body of its answer."""
    parts: list[bytes] = []
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "root_path": "",
        "query_string": b"",
        "headers": [(b"host", b"localhost"), (b"accept", b"application/json"), (b"x-tenant", b"1")],
        "client": ("127.0.0.1", 1),
        "server": ("127.0.0.1", 80),
    }

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            assert message["status"] == OK, message
        parts.append(message.get("body", b""))

    await app(scope, receive, send)
    return b"".join(parts)
