"""The page of `--serve`: a button for each route, and what each answer cost; its parts are served beside the routes."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, MutableMapping
from contextvars import ContextVar
from importlib.resources import files
from time import perf_counter
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, Request
from fastapi.responses import HTMLResponse
from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine

from fastrdb.demo import race, story
from fastrdb.demo.cache import get_redis
from fastrdb.demo.outside import command
from fastrdb.demo.rows import generated

ADA = "/users/ada@example.com"
EXAMPLES: dict[tuple[str, str], tuple[str, Any]] = {
    ("post", "/users/"): ("/users/", {"email": "ada@example.com", "name": "Ada Lovelace"}),
    ("get", "/users/{email}"): (ADA, None),
    ("put", "/users/{email}"): (ADA, {"name": "Ada King"}),
    ("delete", "/users/{email}"): (ADA, None),
    ("get", "/users/"): ("/users/?page=1&limit=3&order_by=id&ascending=false", None),
    ("post", "/users/bulk"): (
        "/users/bulk",
        [{"email": f"{name}@example.com", "name": name} for name in ("bob", "eve")],
    ),
    ("get", "/followed/{email}"): ("/followed/ada@example.com", None),
}
"""The path and the body that the page offers for each route, in its order."""

pages = APIRouter(include_in_schema=False)


@pages.get("/")
async def start() -> HTMLResponse:
    """Return the page."""
    return HTMLResponse(files("fastrdb.demo").joinpath("page.html").read_text("utf-8"))


@pages.get("/demo/routes")
async def routes() -> list[dict[str, Any]]:
    """Return a request to try for each route."""
    return [
        {"method": method, "path": path, "body": body, "what": f"{method.upper()} {route}"}
        for (method, route), (path, body) in EXAMPLES.items()
    ]


@pages.get("/demo/outside")
async def outside(request: Request) -> str:
    """Return a command that changes the table in another shell."""
    return command(request.app.state.engine)


@pages.get("/demo/keys")
async def keys() -> list[dict[str, Any]]:
    """Return the entries in Redis: name, TTL in seconds, and a digest that changes with the value."""
    async with get_redis() as redis:
        found = [key for key in await story.keys_on(redis) if not story.is_own(key)]
    return [
        {"name": key.name, "ttl": key.ttl, "digest": hashlib.sha256((key.value or "").encode()).hexdigest()[:16]}
        for key in found
    ]


@pages.post("/demo/race/{how}")
async def run_race(how: Literal["by_hand", "with_fastrdb"]) -> dict[str, Any]:
    """Run the race once, and return its moments in order and its outcome."""
    play = race.by_hand if how == "by_hand" else race.with_fastrdb
    email = generated(2)[how == "by_hand"]["email"]
    async with get_redis() as redis:
        played = await play(redis, email, new=f"New Name {perf_counter():.0f}")
    return {**dataclasses.asdict(played), "stale": played.stale}


_statements: ContextVar[list[int] | None] = ContextVar("fastrdb_demo_statements", default=None)


class Cost:
    """ASGI middleware that says in each response how long it took and how many SQL statements it needed."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: MutableMapping[str, Any], receive: Any, send: Callable[[Any], Any]) -> None:
        """Answer one request."""
        counted, began = [0], perf_counter()

        async def answer(message: Any) -> None:
            if message["type"] == "http.response.start":
                taken = f"{1000 * (perf_counter() - began):.1f}"
                own = [(b"x-milliseconds", taken.encode()), (b"x-sql-statements", str(counted[0]).encode())]
                message["headers"] = [*message.get("headers", ()), *own]
            await send(message)

        token = _statements.set(counted)
        try:
            await self._app(scope, receive, answer)
        finally:
            _statements.reset(token)


def count_statements(engine: AsyncEngine) -> None:
    """Count each statement of an engine for the request that sends the statement."""
    event.listen(engine.sync_engine, "before_cursor_execute", _count)


def _count(*_: Any) -> None:
    counted = _statements.get()
    if counted is not None:
        counted[0] += 1


def add_page(app: FastAPI) -> None:
    """Add the page and its parts to an application."""
    app.include_router(pages)
    app.add_middleware(Cost)
