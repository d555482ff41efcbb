"""How `Cache(auto=True)` compares with django-cacheops and django-cachalot, which follow the writes of Django's ORM.

Each has the application of `followed`, on a database of the same server and a Redis of its own. One user is changed;
how many of the entries have to be loaded anew? How long after the COMMIT are they gone? In a race, a reader loads
before the COMMIT and stores after all has been invalidated. Does the old answer stay?

django-cacheops has `keep_fresh` against this race, for its decorator `cached_as`. What is asked here is its default,
for queries. django-cachalot deletes nothing: an entry is older than the stamp of its table.

The others run in a process of their own. `FASTRDB_BENCH_DJANGO` names its Python; without it, it is this one.
"""

from __future__ import annotations

import asyncio
import json
import os
import sys
from asyncio.subprocess import PIPE
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from gc import collect
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any, NamedTuple

import redis
from redis.asyncio import Redis
from sqlalchemy import URL, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from benchmarks.contestants.base import HOST
from benchmarks.contestants.field import NOT_INSTALLED
from benchmarks.harness import Sizes
from benchmarks.questions.followed import LIFE, MOVES, PAGES, PER_ORG, USERS, Member, change, dropped_by, filled
from benchmarks.report import Limit, Row
from fastrdb import Cache
from fastrdb.testing.server import EmbeddedServer
from tests.support.servers import databases

OURS = "fastrdb, auto"
RIVALS = ("cacheops", "cachalot")
RACES = 5
VARIABLE = "FASTRDB_BENCH_DJANGO"
_SIDE = Path(__file__).with_name("rivals_side.py")


class Found(NamedTuple):
    """What came of one contestant."""

    entries: int
    dropped: float
    """Entries per write."""
    seconds: float
    """From the return of COMMIT until the last of them was gone, in the median."""
    stale: int
    """Races after which the old answer stayed."""


async def rows(sizes: Sizes) -> list[Row]:
    """Ask each of them in turn."""
    users, writes = min(USERS, 100 * sizes.calls), max(2, sizes.rounds // 4)
    ours = await _ours(users, writes)
    found = _rows(OURS, ours, {"stale": Limit("value", bar=0)})
    python = os.environ.get(VARIABLE, sys.executable)
    for rival in RIVALS:
        if await _has(python, rival):
            found += _rows(rival, await _theirs(python, rival, users, writes))
        else:
            found.append(Row("rivals", f"one user changed, of {ours.entries:,} entries", rival, note=NOT_INSTALLED))
    return found


def _rows(name: str, found: Found, limits: dict[str, Limit] | None = None) -> list[Row]:
    case, limit = f"one user changed, of {found.entries:,} entries", (limits or {}).get("stale")
    return [
        Row("rivals", case, name, found.dropped, "entries", note="dropped per write"),
        Row(
            "rivals", "from COMMIT until they are gone", name, found.seconds, note="" if found.seconds else "before it"
        ),
        Row("rivals", f"{RACES} races of a load and a write", name, found.stale, "entries", limit=limit, note="stale"),
    ]


async def _ours(users: int, writes: int) -> Found:
    with EmbeddedServer() as server:
        async with filled(users) as engine:
            found = await _measured(engine, server.port, users, writes)
            collect()  # a cache follows for as long as it lives, the end of the database, too
            return found


async def _measured(engine: AsyncEngine, port: int, users: int, writes: int) -> Found:
    async with Redis(host=HOST, port=port) as client:
        entries, dropped = await dropped_by(engine, Cache(client, timeout=5.0, auto=True), (), users, writes)
        collect()
        async with Cache(client, timeout=5.0, auto=True) as cache:
            seconds = await _delays(engine, cache, port, users, writes)
            stale = [await _race(engine, cache, number) for number in range(RACES)]
    return Found(entries, dropped / writes, median(seconds), sum(stale))


async def _delays(engine: AsyncEngine, cache: Cache, port: int, users: int, writes: int) -> list[float]:
    """Return for each write how long after the return of COMMIT its entry was still there; 0 if it was gone by then."""

    @cache.cached("delayed:{number}", exp=LIFE)
    async def name_of(db: AsyncSession, number: int) -> str:
        return (await db.scalars(select(Member.name).where(Member.number == number))).one()

    seconds = list[float]()
    with redis.Redis(host=HOST, port=port) as client:
        async with AsyncSession(engine, expire_on_commit=False) as db:
            for number in (7 * each % users for each in range(-1, writes)):
                key = name_of.key(number=number)
                await name_of(db, number)
                await db.rollback()
                there = client.exists(key)
                with _committed(engine, lambda key=key: client.exists(key)) as answers:  # type: ignore[misc]
                    await change(db, number)
                    ended = perf_counter()
                ((moment, stays),) = answers
                if there:  # the first entry of a column may not be stored
                    seconds.append(ended - moment if stays else 0.0)
    return seconds


@contextmanager
def _committed(engine: AsyncEngine, ask: Callable[[], Any]) -> Iterator[list[tuple[float, Any]]]:
    """Note when a COMMIT returns, and the answer to a question at that moment."""
    dialect, answers = engine.sync_engine.dialect, list[tuple[float, Any]]()
    commit = dialect.do_commit

    def noting(dbapi_connection: Any) -> None:
        commit(dbapi_connection)
        answers.append((perf_counter(), ask()))

    dialect.do_commit = noting  # type: ignore[method-assign]
    try:
        yield answers
    finally:
        dialect.do_commit = commit  # type: ignore[method-assign]


async def _race(engine: AsyncEngine, cache: Cache, number: int) -> bool:
    """Have a load read before a COMMIT, and end after it. Tell whether its answer stays."""
    loaded, told = asyncio.Event(), asyncio.Event()

    @cache.cached(f"raced{number}:{{number}}", exp=LIFE)
    async def name_of(db: AsyncSession, number: int) -> str:
        found = (await db.scalars(select(Member.name).where(Member.number == number))).one()
        loaded.set()
        await told.wait()
        return found

    async def ask(read: Callable[[AsyncSession, int], Awaitable[str]]) -> str:
        async with AsyncSession(engine) as db:
            return await read(db, number)

    reader = asyncio.create_task(ask(name_of))
    await loaded.wait()
    async with AsyncSession(engine, expire_on_commit=False) as db:
        await change(db, number)
    told.set()
    await reader
    return await ask(name_of) != await ask(name_of.__wrapped__)


async def _has(python: str, rival: str) -> bool:
    """Tell whether a Python has Django and this rival."""
    look = "import sys; from importlib.util import find_spec; sys.exit(not all(map(find_spec, sys.argv[1:])))"
    process = await asyncio.create_subprocess_exec(python, "-P", "-c", look, "django", rival)
    return await process.wait() == 0


async def _theirs(python: str, rival: str, users: int, writes: int) -> Found:
    variable, defaults = databases.SERVERS["postgresql"]
    with EmbeddedServer() as server, TemporaryDirectory() as folder, ExitStack() as stack:
        try:
            database = _of_django(stack.enter_context(databases.server_database(variable, defaults)).url)
        except databases.NoServerError:
            database = {"ENGINE": "django.db.backends.sqlite3", "NAME": str(Path(folder) / "users.sqlite")}
        given = {
            "rival": rival,
            "port": server.port,
            "database": database,
            "users": users,
            "per_org": PER_ORG,
            "pages": PAGES,
            "moves": MOVES,
            "writes": writes,
            "races": RACES,
        }
        process = await asyncio.create_subprocess_exec(python, "-P", str(_SIDE), json.dumps(given), stdout=PIPE)
        answer, _ = await process.communicate()
        if process.returncode:
            raise RuntimeError(f"{rival} ended with {process.returncode}; its error stands above")
    found = json.loads(answer)
    return Found(found["entries"], found["dropped"] / writes, median(found["seconds"]), found["stale"])


def _of_django(url: URL) -> dict[str, Any]:
    return {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": url.database,
        "USER": url.username,
        "PASSWORD": url.password,
        "HOST": url.host,
        "PORT": url.port,
    }
