"""How many requests a second `cached_response` answers, against the same endpoint through the response model.

Both are hits of the same cached function, with the same dependency for a session, in one application. Every answer of
`cached_response` has its `ETag`. The application is called by ASGI in this process, as in `endpoint`.
"""

from __future__ import annotations

from functools import partial

from fastapi import FastAPI
from redis.asyncio import Redis

from benchmarks.catalogue import Loads, UserOut, user
from benchmarks.comparison import Case, table
from benchmarks.harness import Known, Sizes, interleaved
from benchmarks.questions.endpoint import FEWER, request, requests
from benchmarks.report import Limit, Row
from fastrdb import Cache
from fastrdb.integrations.fastapi import Session, cached_response, lifespan
from fastrdb.testing.server import EmbeddedServer

ITEMS = 100
KEYS = 20
CALLERS = 64
MODEL = "through the model"
LIMITS = {
    ("list", CALLERS): Limit("speed", bar=3),
    ("list", 1): Limit("speed", bar=2),
    ("row", CALLERS): Limit("ratio", bar=1),
    ("row", 1): Limit("ratio", bar=1),
}


async def rows(sizes: Sizes) -> list[Row]:
    """Measure a list of 100 rows and a single row: one caller, and 64."""
    found: list[Row] = []
    with EmbeddedServer() as server:
        async with Redis(port=server.port) as client, Cache(client) as cache:
            app, loads = _application(cache)
            async with lifespan(cache, database="sqlite+aiosqlite://")(app):
                for (kind, callers), limit in LIMITS.items():
                    found += await _measured(sizes, app, loads[kind], kind, callers, limit)
    return found


async def _measured(sizes: Sizes, app: FastAPI, loads: Loads, kind: str, callers: int, limit: Limit) -> list[Row]:
    paths = {"fastrdb": f"/stored/{kind}", MODEL: f"/model/{kind}"}
    for number in range(KEYS):
        answers = [await request(app, f"{path}/{number}") for path in paths.values()]
        assert answers[0] == answers[1], f"{kind} {number}"
    sides = {name: partial(requests, app, partial(str.format, f"{path}/{{}}"), callers) for name, path in paths.items()}
    before = loads.count
    calls = sizes.calls if callers == 1 else callers
    timings = await interleaved(sides, rounds=max(3, sizes.rounds // FEWER), calls=calls, draw=Known(KEYS).take)
    name = f"{'list of 100 rows' if kind == 'list' else 'a single row'}, {callers} caller{'s' if callers > 1 else ''}"
    case = Case("response", name, limits={MODEL: limit}, unit="/s")
    ran = loads.count - before
    return table(case, {}, timings, dict.fromkeys(sides, ran), set(sides) if ran else ())


def _application(cache: Cache) -> tuple[FastAPI, dict[str, Loads]]:
    """Return the application, and how often each function ran."""
    app, loads = FastAPI(), {"list": Loads(), "row": Loads()}

    @cache.cached_list("list:{number}")
    async def read_list(number: int, db: Session) -> list[UserOut]:
        loads["list"].note()
        return [user(each) for each in range(number, number + ITEMS)]

    @cache.cached("row:{number}")
    async def read_row(number: int, db: Session) -> UserOut:
        loads["row"].note()
        return user(number)

    app.get("/model/list/{number}")(read_list)
    app.get("/model/row/{number}")(read_row)
    app.get("/stored/list/{number}")(cached_response(read_list))
    app.get("/stored/row/{number}")(cached_response(read_row))
    return app, loads
