"""Whole programs that use a cache, each in a process of its own.

`python -m tests.support.programs` imports what these programs need, and forks one for each line of its input: to import
takes longer than a program.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fastrdb import Cache, runtime

client: Redis
cache = Cache(timeout=5)
loads: list[int] = []


@cache.cached("n:{number}")
async def read(redis: Redis, number: int) -> int:
    """Load in one turn of the event loop."""
    loads.append(number)
    await asyncio.sleep(0)
    return number


@cache.invalidates("n:{number}")
async def write(redis: Redis, number: int) -> None:
    """Write without a database."""


def ends(*how: str) -> None:
    """Come to the end of the program in some way: with things closed, or calls in flight, or cancelled."""
    asyncio.run(_ends(how))


async def _ends(how: tuple[str, ...]) -> None:
    asyncio.get_running_loop().slow_callback_duration = 60  # a busy machine is no finding
    await asyncio.gather(*(read(client, number) for number in range(50)))
    await write(client, 1)
    tasks = [asyncio.create_task(read(client, number)) for number in range(100, 200)]
    if "flight" in how or "cancelled" in how:
        while len(loads) <= 50:  # noqa: ASYNC110  # until one of them loads
            await asyncio.sleep(0)
    else:
        await asyncio.gather(*tasks)
    if "cancelled" in how:
        for task in tasks:
            task.cancel()
    if "cache" in how:
        await cache.aclose()
    if "client" in how:
        await client.aclose()


def loops(closing: str) -> None:
    """Use a cache and a client of the module in one event loop after the other, more often than the pool is large."""
    for count in range(12):
        asyncio.run(_loop(count, closing))


async def _loop(count: int, closing: str) -> None:
    assert await asyncio.gather(*(read(client, number) for number in range(20))) == list(range(20))
    stats = cache.stats()
    assert (stats.loads, stats.unavailable) == (20, 0), stats
    if closing == "closed":
        await client.aclose()


def owes(_: str) -> None:
    """Commit in a loop that ends before Redis is back; the next loop repairs."""
    gone = Redis(port=1, retry=Retry(NoBackoff(), 0))
    asyncio.run(_miss(client, gone))
    store = asyncio.run(_made_up_for(client))
    assert not store, store


async def _miss(there: Redis, gone: Redis) -> None:
    await read(there, 1)
    kwargs, pool = there.connection_pool.connection_kwargs, gone.connection_pool
    pool.connection_kwargs["port"] = kwargs["port"]  # of the same server, as the cache sees it
    store = cache.runtime.store(gone)
    pool.connection_kwargs["port"] = 1
    assert store is cache.runtime.store(there)
    await store.invalidate_soon(gone, keys=["n:1"])
    assert store.has_pending


async def _made_up_for(there: Redis) -> bool:
    store = cache.runtime.store(there)
    assert store.has_pending
    assert await read(there, 1) == 1
    assert cache.stats().bypasses == 1
    await store.aclose(5)
    assert await there.exists("n:1") == 0
    return store.has_pending


def forks(when: str, hooked: str = "hooked") -> None:
    """Use the cache, fork, and use it in both processes at once."""
    limit = 30
    if hooked != "hooked":
        limit = 8
        runtime._runtimes.clear()
    signal.alarm(limit)
    if when == "running":
        asyncio.run(_fork_and_read(limit))
        return
    asyncio.run(_reads(50))
    child = _fork(lambda: asyncio.run(_reads(300)), limit)
    asyncio.run(_reads(300))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


async def _reads(count: int) -> None:
    assert await asyncio.gather(*(read(client, number) for number in range(5))) == list(range(5))
    hits = cache.stats().hits
    for number in range(count):
        assert await read(client, number % 5) == number % 5
    assert cache.stats().hits == hits + count, cache.stats()


async def _fork_and_read(limit: int) -> None:
    await _reads(50)
    await cache.runtime.store(client)._link.aclose()
    if os.environ.get("FASTRDB_HELD"):
        await _reads(1)  # there is a connection, which the child would use
    child = _fork(lambda: asyncio.new_event_loop().run_until_complete(_reads(300)), limit)
    await _reads(300)
    status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status[1]) == 0
    await client.aclose()


def _fork(work: Callable[[], Any], limit: int) -> int:
    """Do it in a child process that lives no longer than so many seconds, and give its id."""
    child = os.fork()
    if child:
        return child
    signal.alarm(limit)
    status = 1
    try:
        work()
        status = 0
    finally:
        sys.stdout.flush()
        os._exit(status)


def asked_for(limit: int) -> Any:
    """Return what a line asks for, in the process that is to do it; print how each one before it has ended."""
    for line in sys.stdin:
        asked = json.loads(line)
        child = os.fork()
        if not child:
            signal.alarm(limit)
            for stream, name in ((1, "stdout"), (2, "stderr")):
                os.dup2(os.open(asked[name], os.O_WRONLY | os.O_CREAT), stream)
            os.environ.update(asked["environment"])
            return asked
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    return None


if __name__ == "__main__" and (asked := asked_for(limit=40)):
    client = Redis(port=asked["port"], max_connections=10)
    programs: dict[str, Callable[..., None]] = {"ends": ends, "loops": loops, "owes": owes, "forks": forks}
    programs[asked["name"]](*asked["arguments"])
    print("the end")
