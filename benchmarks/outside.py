"""The cost of watching PostgreSQL: `python -m benchmarks.outside`, with a server of its own and a Redis on 6379."""

from __future__ import annotations

import asyncio
import secrets
import statistics
import time
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import URL, NullPool, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from fastrdb import Cache
from fastrdb.watch import Watcher, source_of
from tests.support.servers import postgresql

EVERY_S = 0.02
TABLES = ("plain", "seen")
STATEMENTS = {
    "one row": ("UPDATE {} SET v = v + 1 WHERE id = :at", 600),
    "500 rows": ("UPDATE {} SET v = v + 1 WHERE id BETWEEN 501 AND 1000 AND :at > 0", 60),
}


async def overhead(engine: AsyncEngine) -> None:
    """Print the time and the WAL of a commit with triggers, as ratios to a table without. They take turns."""
    async with engine.connect() as connection:
        for kind, (statement, times) in STATEMENTS.items():
            took: dict[str, list[float]] = {table: [] for table in TABLES}
            wal: dict[str, list[int]] = {table: [] for table in TABLES}
            for number in range(times):
                for table in TABLES:
                    before = await wal_position(connection)
                    start = time.perf_counter()
                    await connection.execute(text(statement.format(table)), {"at": 1 + number % 500})
                    await connection.commit()
                    took[table].append(time.perf_counter() - start)
                    wal[table].append(await wal_position(connection) - before)
            times_as_long = statistics.median(took["seen"]) / statistics.median(took["plain"])
            as_much_wal = statistics.median(wal["seen"]) / statistics.median(wal["plain"])
            print(f"{kind}: {times_as_long:.2f} times as long, {as_much_wal:.2f} times the WAL")


async def wal_position(connection: Any) -> int:
    """Return how many bytes of WAL the server has written."""
    found = await connection.scalar(text("SELECT CAST(pg_current_wal_insert_lsn() - '0/0' AS bigint)"))
    await connection.commit()
    return int(found)


async def delay(engine: AsyncEngine) -> None:
    """Print how long after a commit its change is in Redis, in poll intervals."""
    async with Redis() as client, Cache(client, namespace=f"outside{secrets.token_hex(4)}") as cache:
        watcher, took = Watcher(engine, cache, every=EVERY_S), list[float]()
        async with watcher, engine.connect() as connection:
            while await watcher.journal.position() is None:  # noqa: ASYNC110
                await asyncio.sleep(EVERY_S)
            for number in range(1, 201):
                await asyncio.sleep(secrets.randbelow(30) / 1000)
                found = watcher.found
                await connection.execute(text("UPDATE seen SET v = v + 1 WHERE id = :at"), {"at": number})
                await connection.commit()
                start = time.perf_counter()
                while watcher.found == found:  # noqa: ASYNC110  # the watcher has no hook
                    await asyncio.sleep(0.0005)
                took.append((time.perf_counter() - start) / EVERY_S)
        await watcher.journal.forget()
    print(f"from COMMIT to Redis: {statistics.median(took):.2f} poll intervals in the median")


async def main(url: URL) -> None:
    """Make two tables, one of them watched, and measure both."""
    engine = create_async_engine(url, poolclass=NullPool)
    async with engine.begin() as connection:
        for table in TABLES:
            await connection.execute(text(f"CREATE TABLE {table} (id int PRIMARY KEY, org_id int, v int DEFAULT 0)"))
            await connection.execute(text(f"INSERT INTO {table} SELECT g, g % 50 FROM generate_series(1, 2000) g"))
    source = source_of(engine)
    await source.run(await source.install_sql(["seen"]))
    await overhead(engine)
    await delay(engine)
    await engine.dispose()


if __name__ == "__main__":
    binaries = postgresql.find_binaries()
    if binaries is None:
        raise SystemExit("no initdb and pg_ctl")
    with postgresql.started(binaries) as address:
        asyncio.run(main(address))
