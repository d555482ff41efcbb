"""One version of fastrdb in a process of its own: runs the cases of `versions` when told to.

    python -m benchmarks.questions.versions_side CHECKOUT PORT

Imports `fastrdb` from CHECKOUT and uses public names only, so that any two versions can be compared. Reads a line
`CASE CALLS` from its standard input and writes the seconds per call to its standard output.
"""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.catalogue import Database, User, UserOut, database, fields, one_user, user

if TYPE_CHECKING:
    from fastrdb import Cache, FastRDB

Timed = Callable[[int], Awaitable[float]]
"""Makes so many calls and returns the seconds per call."""

KEYS = 100
CROWD = 64
"""Callers at once on distinct keys."""
STAMPEDE = 200
"""Callers at once on one key that is not there."""
OTHERS = 2_000
"""Entries under other prefixes while a prefix is invalidated."""
LIFE_S = 3_600
NEAR_TRIES = 200


class Change(BaseModel):
    """Input of an update."""

    name: str | None = None


class Clock:
    """Adds up the time spent inside its `with` blocks."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextmanager
    def running(self) -> Iterator[None]:
        """Count the time of this block."""
        start = perf_counter()
        yield
        self.seconds += perf_counter() - start


class Cases:
    """The cases on one server, with what each of them has prepared."""

    def __init__(self, cache: Cache, client: Redis, db: Database) -> None:
        self.cache, self.client, self.db = cache, client, db
        self.unused = count()

    def cached(self, head: str, **options: Any) -> Any:
        """Return a cached function of a number whose load costs nothing."""
        return self.cache.cached(f"{head}:{{number}}", exp=LIFE_S, **options)(one_user().query)

    async def hit(self) -> Timed:
        """Read one of 100 entries, one caller."""
        call, client = self.cached("hit"), self.client
        async with self.db.sessions() as db:
            for number in range(KEYS):
                await call(db, client, number)

        async def timed(calls: int) -> float:
            async with self.db.sessions() as db:
                start = perf_counter()
                for number in range(calls):
                    await call(db, client, number % KEYS)
                return (perf_counter() - start) / calls

        return timed

    async def near_hit(self) -> Timed:
        """Read one of 100 entries that the process holds itself."""
        call, client, longer = self.cached("near", near=True), self.client, 20
        async with self.db.sessions() as db:
            for _ in range(NEAR_TRIES):
                before = call.stats.near
                for number in range(KEYS):
                    await call(db, client, number)
                if call.stats.near - before == KEYS:
                    break
                await asyncio.sleep(0.01)
            else:
                raise AssertionError("no near hits")

        async def timed(calls: int) -> float:
            async with self.db.sessions() as db:
                start = perf_counter()
                for number in range(calls * longer):
                    await call(db, client, number % KEYS)
                return (perf_counter() - start) / calls / longer

        return timed

    async def miss(self) -> Timed:
        """Load for nothing and store, each call with a session of its own."""
        return self._misses(self.cached("miss"))

    async def miss_select(self) -> Timed:
        """Load by a SELECT and store, each call with a session of its own."""
        return self._misses(self.cache.cached("select:{number}", exp=LIFE_S)(self.db.selected_user().query))

    def _misses(self, call: Any) -> Timed:
        async def timed(calls: int) -> float:
            before, start = call.stats.fills, perf_counter()
            for _ in range(calls):
                async with self.db.sessions() as db:
                    await call(db, self.client, next(self.unused))
            seconds = perf_counter() - start
            assert call.stats.fills - before == calls, "not every miss was stored"
            return seconds / calls

        return timed

    async def stampede(self) -> Timed:
        """Ask for a key that is not there by 200 callers at once; a load yields once."""
        loads = 0

        @self.cache.cached("stampede:{number}", exp=LIFE_S)
        async def call(db: AsyncSession, redis: Redis, number: int) -> UserOut:
            nonlocal loads
            loads += 1
            await asyncio.sleep(0)
            return user(number)

        sessions = [self.db.sessions() for _ in range(STAMPEDE)]

        async def timed(calls: int) -> float:
            nonlocal loads
            rounds, loads, clock = max(1, calls // 20), 0, Clock()
            for number in (next(self.unused) for _ in range(rounds)):
                with clock.running():
                    await asyncio.gather(*(call(db, self.client, number) for db in sessions))
            assert loads == rounds, f"{loads} loads in {rounds} stampedes"
            return clock.seconds / rounds

        return timed

    async def prefix(self) -> Timed:
        """Invalidate 100 entries by their prefix among 2,000 others."""
        others, call = self.cached("others"), self.cached("prefix")
        async with self.db.sessions() as db:
            for number in range(OTHERS):
                await others(db, self.client, number)

        async def timed(calls: int) -> float:
            rounds, clock = max(1, calls // 20), Clock()
            for _ in range(rounds):
                async with self.db.sessions() as db:
                    for number in range(KEYS):
                        await call(db, self.client, number)
                with clock.running():
                    await self.cache.invalidate("prefix:*", redis=self.client)
                assert not await self.client.exists("prefix:0", f"prefix:{KEYS - 1}")
            return clock.seconds / rounds

        return timed

    async def crowd(self) -> Timed:
        """Read 64 entries by 64 callers at once."""
        call = self.cached("crowd")
        sessions = [self.db.sessions() for _ in range(CROWD)]
        for number, db in enumerate(sessions):
            await call(db, self.client, number)

        async def timed(calls: int) -> float:
            rounds = max(1, calls // 5)
            before, start = call.stats.hits, perf_counter()
            for _ in range(rounds):
                await asyncio.gather(*(call(db, self.client, number) for number, db in enumerate(sessions)))
            seconds = perf_counter() - start
            assert call.stats.hits - before == rounds * CROWD
            return seconds / rounds / CROWD

        return timed

    async def commit(self) -> Timed:
        """Update a row and commit in a function under `@invalidates`."""

        @self.cache.invalidates("commit:{number}")
        async def rename(db: AsyncSession, redis: Redis, number: int) -> None:
            await db.execute(update(User).where(User.id == number).values(name=f"name {next(self.unused)}"))
            await db.commit()

        async def timed(calls: int) -> float:
            start = perf_counter()
            for number in range(calls):
                async with self.db.sessions() as db:
                    await rename(db, self.client, number % KEYS)
            return (perf_counter() - start) / calls

        return timed

    async def crud_update(self) -> Timed:
        """Update a row by `FastRDB.update`."""
        crud = self._crud("update")

        async def timed(calls: int) -> float:
            start = perf_counter()
            for number in range(calls):
                async with self.db.sessions() as db:
                    change = Change(name=f"name {next(self.unused)}")
                    await crud.update(db, self.client, change, id=number % KEYS)
            return (perf_counter() - start) / calls

        return timed

    async def create_multi(self) -> Timed:
        """Create rows by `FastRDB.create_multi`, ten times as many in one call as other cases have calls."""
        crud, ids = self._crud("create"), count(1_000_000)

        async def timed(calls: int) -> float:
            rows = [fields(next(ids)) for _ in range(calls * 10)]
            async with self.db.sessions() as db:
                start = perf_counter()
                await crud.create_multi(db, self.client, rows)
                return (perf_counter() - start) / len(rows)

        return timed

    def _crud(self, head: str) -> FastRDB[Any, Any, Any, Any]:
        from fastrdb import FastRDB  # noqa: PLC0415 - of the version that `main` has put first

        return FastRDB(User, UserOut, f"{head}:{{id}}", f"{head}:page:{{page}}", LIFE_S, cache=self.cache)


async def serve(port: int) -> None:
    """Run cases until the standard input ends."""
    from fastrdb import Cache  # noqa: PLC0415 - of the version that `main` has put first

    prepared: dict[str, Timed] = {}
    async with Redis(port=port) as client, Cache(timeout=5) as cache, database() as db:
        cases = Cases(cache, client, db)
        while line := await asyncio.to_thread(sys.stdin.readline):
            name, calls = line.split()
            if name not in prepared:
                prepared[name] = await getattr(cases, name)()
            gc.collect()
            print(await prepared[name](int(calls)), flush=True)


def main() -> None:
    """Import the version of CHECKOUT, and serve."""
    checkout, port = Path(sys.argv[1]).resolve(), int(sys.argv[2])
    sys.path.insert(0, str(checkout))
    import fastrdb  # noqa: PLC0415 - only now, from that version

    assert Path(fastrdb.__file__).is_relative_to(checkout), f"{fastrdb.__file__} is not of {checkout}"
    asyncio.run(serve(port))


if __name__ == "__main__":
    main()
