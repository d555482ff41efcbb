"""The cost of `fastrdb watch` for writers, and how long after a commit its change is in Redis.

Two tables that are alike take turns, and only one of them is watched. The servers of databases are private ones. The
cache of another question follows all writes of this process, and does not here, since the writer is another program.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter

from redis.asyncio import Redis
from sqlalchemy import URL, Column, Integer, MetaData, NullPool, Table, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from benchmarks.contestants.base import HOST
from benchmarks.harness import Known, Sizes, interleaved
from benchmarks.report import Limit, Ratio, Row, Unit
from fastrdb import Cache
from fastrdb.demo.blog.cache import cache as blog
from fastrdb.testing.server import EmbeddedServer
from fastrdb.watch import ChangeSource, Watcher, source_of
from fastrdb.watch.mysql_outbox import MySQLOutbox
from tests.support.servers import mariadb, postgresql

EVERY_S = 0.02
"""The poll interval that is the default."""
ROWS, MANY, LIFE = 1_000, 500, 3_600
TABLES = ("plain", "seen")
SEEN = Table("seen", MetaData(), Column("id", Integer, primary_key=True))
ONE = "commit of one row"
WRITES = {
    ONE: "UPDATE {} SET v = v + 1 WHERE id = :at",
    f"commit of {MANY} rows in one statement": f"UPDATE {{}} SET v = v + 1 WHERE id >= {ROWS - MANY} AND :at >= 0",
}
LIMITS = {
    "postgresql": (Limit("ratio", bar=1.5), Limit("ratio", bar=3.5)),
    "mariadb, outbox": (Limit("ratio", bar=2.0), Limit("ratio", bar=12.0)),
    "sqlite": (Limit("ratio", bar=2.0), Limit("ratio", bar=12.0)),
}
_BYTES = text("SELECT CAST(pg_current_wal_insert_lsn() - '0/0' AS bigint)")


async def rows(sizes: Sizes) -> list[Row]:
    """Measure each kind of database that there is a server for."""
    found: list[Row] = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        redis = stack.enter_context(EmbeddedServer())
        stack.enter_context(blog.untracked())
        urls = {"sqlite": make_url(f"sqlite+aiosqlite:///{folder / 'rows.sqlite'}")}
        if (binaries := postgresql.find_binaries()) is not None:
            urls["postgresql"] = stack.enter_context(postgresql.started(binaries))
        if (others := mariadb.find_binaries()) is not None:
            server = stack.enter_context(mariadb.started(others, **mariadb.BINLOG))
            urls |= {"mariadb, outbox": server, "mariadb, binary log": server}
        for name in ("postgresql", "mariadb, binary log", "mariadb, outbox", "sqlite"):
            if name not in urls:
                found.append(Row("outside", name, "fastrdb", note="no server here"))
                continue
            engine = await _made(urls[name])
            async with _installed(engine, name) as source, Redis(host=HOST, port=redis.port) as client:
                if name in LIMITS:
                    found += await _writers(engine, name, sizes)
                found.append(await _delay(engine, source, name, client, sizes))
            await engine.dispose()
    return found


async def _made(url: URL) -> AsyncEngine:
    """Give an engine for a database that is there."""
    if url.get_backend_name() != "mariadb":
        return create_async_engine(url, poolclass=NullPool)
    server = create_async_engine(url, poolclass=NullPool)
    async with server.begin() as connection:
        await connection.execute(text("CREATE DATABASE IF NOT EXISTS outside"))
    return create_async_engine(url.set(database="outside"), poolclass=NullPool)


@asynccontextmanager
async def _installed(engine: AsyncEngine, name: str) -> AsyncIterator[ChangeSource]:
    """Make two tables, and watch the second one."""
    async with engine.begin() as connection:
        for table in TABLES:
            await connection.execute(text(f"DROP TABLE IF EXISTS {table}"))
            await connection.execute(text(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, v INTEGER)"))
            await connection.execute(text(f"INSERT INTO {table} VALUES (:id, 0)"), [{"id": n} for n in range(ROWS)])
    source = MySQLOutbox(engine, "outside") if name == "mariadb, outbox" else source_of(engine)
    await source.run(await source.install_sql(["seen"]))
    try:
        yield source
    finally:
        await source.run(await source.uninstall_sql())


async def _writers(engine: AsyncEngine, name: str, sizes: Sizes) -> list[Row]:
    """Compare a table that is watched with one that is not: the time of a commit, and on PostgreSQL its WAL."""
    found: list[Row] = []
    async with engine.connect() as connection:
        for (kind, statement), limit in zip(WRITES.items(), LIMITS[name], strict=True):
            wal: dict[str, list[float]] = {table: [] for table in TABLES}
            sides = {
                table: partial(
                    _commits, connection, statement.format(table), wal[table] if name == "postgresql" else None
                )
                for table in TABLES
            }
            known = Known(ROWS // 2).take
            for commits in sides.values():
                await commits(known(3))
            calls = sizes.calls if kind == ONE else max(2, sizes.calls // 10)
            timings = await interleaved(sides, rounds=sizes.rounds, calls=calls, draw=known)
            found += _compared(f"{name}: {kind}", timings.times, limit)
            if name == "postgresql":
                found += _compared(f"{name}: WAL of a {kind}", wal, Limit("ratio", bar=1.02), unit="B")
    return found


async def _commits(
    connection: AsyncConnection, statement: str, wal: list[float] | None, numbers: Sequence[int]
) -> None:
    before = await connection.scalar(_BYTES) if wal is not None else 0
    for number in numbers:
        await connection.execute(text(statement), {"at": number})
        await connection.commit()
    if wal is not None:
        wal.append((int(await connection.scalar(_BYTES) or 0) - int(before or 0)) / len(numbers))
        await connection.rollback()


def _compared(case: str, figures: Mapping[str, Sequence[float]], limit: Limit, unit: Unit = "s") -> list[Row]:
    plain, seen = (figures[table] for table in TABLES)
    ratio = Ratio.of(seen, plain)
    return [
        Row("outside", case, "not watched", median(plain), unit),
        Row("outside", case, "fastrdb, watched", median(seen), unit, ratio=ratio, limit=limit, note="than not watched"),
    ]


async def _is_behind(watcher: Watcher) -> bool:
    position = await watcher.journal.position()
    return position is None or bool((await watcher.source.status(position)).waiting)


async def _delay(engine: AsyncEngine, source: ChangeSource, name: str, client: Redis, sizes: Sizes) -> Row:
    """Time how long after the return of COMMIT an entry is gone."""
    took = list[float]()
    async with Cache(client, namespace=f"outside{secrets.token_hex(4)}") as cache, engine.connect() as connection:

        @cache.cached("seen:{number}", depends_on=[SEEN], exp=LIFE)
        async def seen(number: int) -> int:
            return number

        async with Watcher(source, cache, every=EVERY_S) as watcher:
            # What the writers before have left would invalidate as well.
            while await _is_behind(watcher):  # noqa: ASYNC110  # the watcher has no hook
                await asyncio.sleep(EVERY_S)
            for number in range(sizes.calls):
                await seen(number)
                await asyncio.sleep(secrets.randbelow(30) / 1000)
                await connection.execute(text("UPDATE seen SET v = v + 1 WHERE id = :at"), {"at": number})
                await connection.commit()
                start = perf_counter()
                while await client.exists(seen.key(number=number)):  # noqa: ASYNC110
                    await asyncio.sleep(0.001)
                took.append(perf_counter() - start)
    ratio = Ratio.of(took, [EVERY_S] * len(took))
    case, limit = f"{name}: from COMMIT to the entry gone", Limit("ratio", bar=1.5)
    return Row("outside", case, "fastrdb", median(took), ratio=ratio, limit=limit, note="than the poll interval, 20 ms")
