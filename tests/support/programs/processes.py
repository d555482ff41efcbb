"""What other processes do in the tests, each with an event loop, a database and a cache of its own."""

from __future__ import annotations

import asyncio
import os
import signal
from multiprocessing import get_context
from multiprocessing.synchronize import Barrier
from typing import Any, Literal, NoReturn

from redis.asyncio import Redis
from sqlalchemy import Connection, PoolProxiedConnection, event
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache
from tests.support.servers import databases
from tests.support.world.world import PATIENT, Process

LIMIT = 40.0  # seconds
# Forks of one process that has imported all this, and has nothing open: to import it takes longer than most tests.
_CONTEXT = get_context("forkserver")
_CONTEXT.set_forkserver_preload([__name__])
Moment = Literal["before", "after"]


def die() -> NoReturn:
    """End this process as the kernel would for want of memory."""
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("still alive")


def write_and_die(url: str, port: int, barrier: float, moment: Moment) -> None:
    """Write item 1, and be killed before the COMMIT, when Redis has the barrier, or after the COMMIT."""
    asyncio.run(_write_and_die(url, port, barrier, moment))


async def _write_and_die(url: str, port: int, barrier: float, moment: Moment) -> None:
    async with databases.opened(url) as database, Redis(port=port) as client:
        process = Process(database, client, barrier=barrier)
        if moment == "before":

            def before(connection: Connection) -> None:
                die()

            event.listen(database.engine.sync_engine, "commit", before)
        else:
            # Not the session's `after_commit`: by then fastrdb has ended what began before the COMMIT.
            dialect: Any = database.engine.sync_engine.dialect
            commit = dialect.do_commit

            def after(connection: PoolProxiedConnection) -> None:
                commit(connection)
                die()

            dialect.do_commit = after
        await process.write("new")


def call_together(port: int, callers: int, barrier: Barrier) -> None:
    """Call one cold key, so many at once, when all processes are there."""
    asyncio.run(_call_together(port, callers, barrier))


async def _call_together(port: int, callers: int, barrier: Barrier) -> None:
    async with Redis(port=port) as client, Cache(client, timeout=PATIENT) as cache:

        @cache.cached("cold", wait=PATIENT)
        async def cold(db: AsyncSession | None = None) -> int:
            load = int(await client.incr("loads"))
            while int(await client.get("callers") or 0) < callers * barrier.parties:
                await client.ping()  # until everybody has called
            return load

        async def call() -> int:
            await client.incr("callers")
            return await cold()

        await client.ping()
        await asyncio.to_thread(barrier.wait, LIMIT)
        assert await asyncio.gather(*(call() for _ in range(callers))) == [1] * callers


async def run(target: Any, *arguments: Any, count: int = 1) -> list[int | None]:
    """Run `target(*arguments)` in so many new processes, and return their exit codes."""
    processes = [_CONTEXT.Process(target=target, args=arguments, daemon=True) for _ in range(count)]
    for process in processes:
        process.start()
    try:
        await asyncio.gather(*(asyncio.to_thread(process.join, LIMIT) for process in processes))
        return [process.exitcode for process in processes]
    finally:
        for process in processes:
            process.kill()


def together(parties: int) -> Barrier:
    """Return the barrier at which processes wait for each other."""
    return _CONTEXT.Barrier(parties)
