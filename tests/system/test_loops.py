"""One program with several event loops, and every kind of client that there is."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

from redis.asyncio import Redis

from fastrdb import Cache, cached, invalidates
from fastrdb.cache import default_cache
from fastrdb.testing import GatedClient
from fastrdb.testing.server import EmbeddedServer
from tests.support.servers.databases import Database
from tests.support.world.world import spawn, world

LOADS: list[int] = []


@cached("loops:{number}")
async def double(redis: Redis, number: int) -> int:
    """Double a number: a function at module level, with the cache that comes with the package."""
    LOADS.append(number)
    return number * 2


@invalidates("loops:{number}")
async def forget(redis: Redis, number: int) -> None:
    """Make it load again."""


async def rounds(port: int, meet: Barrier | None = None) -> list[int]:
    """Run misses, hits and invalidations in one loop, with a client of its own."""
    async with Redis(port=port) as client:
        if meet is not None:
            await asyncio.to_thread(meet.wait, 10)
        results = []
        for _ in range(20):
            results += await asyncio.gather(*(double(client, n) for n in range(5) for _ in range(3)))
            await forget(client, 1)
        await default_cache.aclose()
        assert not default_cache.runtime.here().flights.by_token
        return results


EXPECTED = [n * 2 for n in range(5) for _ in range(3)] * 20


def test_one_loop_after_the_other(server: EmbeddedServer) -> None:
    """A decorated function works in a new loop, whatever it kept of a closed one."""
    for _ in range(3):
        assert asyncio.run(rounds(server.port)) == EXPECTED


def test_two_loops_at_once(server: EmbeddedServer) -> None:
    """Two threads, each with a loop, share Redis and nothing else."""
    meet = Barrier(2)
    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(lambda: asyncio.run(rounds(server.port, meet))) for _ in range(2)]
        assert [each.result(30) for each in running] == [EXPECTED, EXPECTED]


def test_two_loops_at_once_with_one_client(server: EmbeddedServer) -> None:
    """A cache at module level, and a thread for each request: none is handed what belongs to the other's loop."""
    meet, client = Barrier(2), Redis(port=server.port)

    async def hits() -> list[int]:
        await double(client, 1)
        found = []
        for _ in range(20):
            await asyncio.to_thread(meet.wait, 10)
            found += await asyncio.gather(*(double(client, n) for n in range(5) for _ in range(3)))
        return found

    with ThreadPoolExecutor(2) as threads:
        running = [threads.submit(lambda: asyncio.run(hits())) for _ in range(2)]
        assert [each.result(30) for each in running] == [EXPECTED, EXPECTED]


async def test_what_redis_misses_in_one_loop_is_missed_in_all(client: Redis, server: EmbeddedServer) -> None:
    """A write in a thread with a loop of its own, which ends without Redis: no hit is older here."""
    cache, rows = Cache(), ["old"]

    @cache.cached("row:{number}")
    async def read(redis: Redis, number: int) -> str:
        return rows[-1]

    @cache.invalidates("row:{number}")
    async def write(redis: Redis, number: int) -> None:
        rows.append("new")

    async def without_redis() -> None:
        async with Redis(host="127.0.0.1", port=server.port) as own:
            broken = GatedClient(own)
            broken.fail_with(ConnectionError("away"))
            await write(broken, 1)

    assert await read(client, 1) == "old"
    await asyncio.to_thread(asyncio.run, without_redis())
    assert await read(client, 1) == "new"
    await cache.aclose()
    assert await read(client, 1) == "new"


async def test_every_protocol_and_decoding(sqlite: Database, resp: Redis, tmp_path: Path) -> None:
    """From miss to hit, write, write-through and race: the same for RESP2 and RESP3, decoded or not."""
    async with world(sqlite, resp) as w:
        assert await w.one.read() == await w.two.read() == "old"
        assert w.two.get.stats.hits == 1
        await w.one.write("new")
        await w.fair()
        await w.one.save("saved")
        assert await w.two.read() == "saved"
        assert w.two.get.stats.loads <= 1
        gate = w.one.gates.after("load")
        await w.one.get.invalidate(redis=resp, item_id=1)
        reader = spawn(w.one.read())
        await gate.reached()
        await w.two.write("newest")
        gate.open()
        assert await reader == "saved"
        await w.fair()
        async with sqlite.sessions() as db:
            explained = await w.one.get.explain(db, resp, 1)
        assert (explained.state, explained.reasons) == ("hit", ())
