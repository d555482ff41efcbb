"""How many requests a second a FastAPI endpoint answers, with a cache and without.

The application is called by ASGI in this process: routing, dependencies, a session for each request, the endpoint and
the response are measured, and no HTTP client, parser or socket, which would be the larger part and are nobody's merit.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, MutableMapping, Sequence
from functools import partial
from typing import Any

from fastapi import Depends, FastAPI
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.catalogue import Database, Loads, Query, UserOut, database
from benchmarks.comparison import Case, enter, table
from benchmarks.contestants.fastapi_cache import FastapiCache
from benchmarks.contestants.field import USUAL, Field, opened
from benchmarks.harness import Known, Round, Sizes, interleaved
from benchmarks.report import Row
from fastrdb.testing.server import EmbeddedServer

WITHOUT = "no cache"
FEWER = 2
"""A request takes so much longer than a call that there are so many times fewer rounds."""
OK = 200
NAMES = ("fastrdb", "fastrdb, near", "bare", "cashews", "cashews, client_side", *USUAL[3:])


async def rows(sizes: Sizes) -> list[Row]:
    """`GET /users/{number}`, whose answer is a `SELECT` by key on SQLite: one caller, and many."""
    found: list[Row] = []
    async with database() as db:
        for callers in (1, sizes.crowds[0]):
            keys = max(callers, 20)
            with EmbeddedServer() as server:
                async with opened(server.port, NAMES) as field:
                    found += await _measured(sizes, db, field, callers, keys)
    return found


async def _measured(sizes: Sizes, db: Database, field: Field, callers: int, keys: int) -> list[Row]:
    applications, loads = _applications(db, field)
    sides: dict[str, Round] = {name: partial(requests, each, _path, callers) for name, each in applications.items()}
    for name, app in applications.items():
        await sides[name](range(keys))
        answer, right = [await request(each, _path(keys - 1)) for each in (app, applications[WITHOUT])]
        assert UserOut.model_validate_json(answer) == UserOut.model_validate_json(right), f"{name}: {answer!r}"
    before = {name: each.count for name, each in loads.items()}
    calls = sizes.calls if callers == 1 else callers
    rounds = max(3, sizes.rounds // FEWER)
    timings = await interleaved(sides, rounds=rounds, calls=calls, draw=Known(keys).take)
    ran = {name: each.count - before[name] for name, each in loads.items()}
    void = {name for name in ran if ran[name] != (timings.calls[name] if name == WITHOUT else 0)}
    case = Case("endpoint", f"FastAPI, {callers} caller{'s' if callers > 1 else ''}", unit="/s")
    return table(case, field.absent, timings, ran, void)


def _applications(db: Database, field: Field) -> tuple[dict[str, FastAPI], dict[str, Loads]]:
    """An application for each contestant and one for none, and how often the function of each ran."""
    plain = db.selected_user()
    applications, loads = {WITHOUT: _application(db, field.client, plain.query)}, {WITHOUT: plain.loads}
    for entrant in enter(field, "endpoint", db.selected_user):
        applications[entrant.name] = _application(db, field.client, entrant.call)
        loads[entrant.name] = entrant.loads
    for name, contestant in field.contestants.items():
        if isinstance(contestant, FastapiCache):  # it goes on the endpoint, not on a function that the endpoint calls
            own, decorate = db.selected_user(), partial(contestant.endpoint, head="endpoint")
            applications[name], loads[name] = _application(db, field.client, own.query, decorate), own.loads
    return applications, loads


def _application(
    db: Database, client: Redis, call: Query, decorate: Callable[[Any], Any] = lambda function: function
) -> FastAPI:
    async def session() -> AsyncIterator[AsyncSession]:
        async with db.sessions() as opened:
            yield opened

    async def shared() -> Redis:
        return client

    a_session: Any = Depends(session)
    the_client: Any = Depends(shared)

    async def read(number: int, db: AsyncSession = a_session, redis: Redis = the_client) -> UserOut:
        found: UserOut = await call(db, redis, number)
        return found

    app = FastAPI()
    app.get("/users/{number}")(decorate(read))
    return app


def _path(number: int) -> str:
    """Return the path of one user."""
    return f"/users/{number}"


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
        "headers": [(b"host", b"localhost"), (b"accept", b"application/json")],
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
