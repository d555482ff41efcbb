"""Redis goes away and comes back: reads and writes go on, and nothing stale is left when it is there again."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Iterator

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession

from fastrdb.errors import CacheUnavailableError
from fastrdb.testing import TcpProxy
from fastrdb.testing.server import EmbeddedServer
from tests.support.servers.databases import Database
from tests.support.world.world import PATIENT, Process, World, pooled, world

DEADLINE = 0.25


@pytest.fixture
def stoppable() -> Iterator[EmbeddedServer]:
    """Provide a server of this test's own that keeps its data."""
    with EmbeddedServer(save=True) as started:
        yield started


@pytest.fixture
async def own(stoppable: EmbeddedServer) -> AsyncIterator[Redis]:
    """Provide a client of that server."""
    async with Redis(port=stoppable.port) as client:
        yield client


async def repaired(*processes: Process) -> None:
    """Wait until Redis has taken what it missed."""
    for process in processes:
        while process.store.has_pending:
            await process.store.aclose(PATIENT)


async def test_commit_missed_while_redis_restarts_leaves_nothing_stale(
    sqlite: Database, stoppable: EmbeddedServer, own: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """Reads and writes go on without Redis; when it is back with its old data, nothing of that is answered."""
    caplog.set_level(logging.INFO, "fastrdb")
    async with world(sqlite, own, timeout=DEADLINE) as w:
        await w.fair()
        stoppable.stop()
        assert await w.one.read() == "old"
        assert w.one.get.stats.unavailable == 1
        await w.one.write("new")
        assert await w.one.read() == "new"
        await w.one.write("newer")
        assert await w.one.read() == "newer"
        stoppable.start()
        assert await w.one.read() == "newer"
        await repaired(w.one)
        while w.one.store.obstacles:  # until all is invalidated: the other process would find the old data, too
            assert await w.one.read() == "newer"
        await w.fair()
        assert not await own.exists("item:1"), "the old data would be answered when the barrier of the repair lapses"
        await w.lapse_barriers()
        await w.fair()
        assert await own.get("item:1") == b'{"id":1,"name":"newer"}'
    messages = [record.message for record in caplog.records if record.name == "fastrdb"]
    assert len([message for message in messages if "invalidation" in message]) == 2, messages
    assert len(set(messages)) == len(messages) <= 7, messages  # likewise of the breaker, and of the data that came back


async def test_barrier_when_redis_stops_before_the_end_keeps_the_key_empty(
    sqlite: Database, stoppable: EmbeddedServer, own: Redis
) -> None:
    """The commit stands and no caller gets an error; the barrier that came through keeps the key empty."""
    async with world(sqlite, own, timeout=DEADLINE) as w:
        await w.fair()
        w.two.client.fail_with(RedisConnectionError("gone"), on="end")
        await w.two.save("new")
        assert await w.truth() == "new"
        await w.fair()
        assert not await own.exists("item:1")
        await w.lapse_barriers()
        await w.client.delete("fastrdb:lease:{item:1}")
        await w.fair()
        assert await own.exists("item:1")


async def test_fill_in_flight_while_a_write_is_missed_leaves_nothing_stale(
    sqlite: Database, stoppable: EmbeddedServer, own: Redis
) -> None:
    """A reader holds a lease that the missed write could not take from it: the repair deletes what it stores."""
    async with world(sqlite, own, timeout=DEADLINE) as w:
        gate = w.two.gates.after("load")
        reader = asyncio.create_task(w.two.read())
        await gate.reached()
        w.one.client.fail_with(RedisConnectionError("gone"))
        await w.one.write("new")
        gate.open()
        assert await reader == "old"
        w.one.client.heal()
        await repaired(w.one)
        await w.fair()


async def test_commit_with_on_error_raise_is_rolled_back(
    sqlite: Database, stoppable: EmbeddedServer, own: Redis
) -> None:
    """With on_error="raise" a commit that Redis misses is rolled back; the session and its connection stay usable."""
    async with pooled(sqlite) as database, world(database, own, timeout=DEADLINE, on_error="raise") as w:
        await w.fair()
        stoppable.stop()
        async with database.sessions() as db:
            with pytest.raises(CacheUnavailableError):
                await rename(w, db, "never")
            await db.rollback()
            await w.one.by_text(db, "other")
            await db.rollback()
        assert await w.truth() == "old"
        assert await w.one.read() == "old"
        stoppable.start()
        await w.fair()
        async with database.sessions() as db:
            await rename(w, db, "new")
        await w.fair()
        await w.quiet()


async def rename(w: World, db: AsyncSession, name: str) -> None:
    """Write and commit."""
    await w.one.rename(db, w.one.client, 1, name)
    await db.commit()


async def test_connection_with_on_error_raise_is_rolled_back(sqlite: Database, own: Redis) -> None:
    """A connection without a session, whose commit failed so, does not carry its changes into the next one."""
    async with world(sqlite, own, timeout=DEADLINE, on_error="raise") as w:

        @w.one.cache.invalidates("item*")
        async def write(redis: object, connection: AsyncConnection) -> None:
            await w.one.by_text(connection, "never")
            await connection.commit()

        async with sqlite.engine.connect() as connection:
            w.one.client.fail_with(RedisConnectionError("gone"), on="begin")
            with pytest.raises(CacheUnavailableError):
                await write(w.one.client, connection)
            w.one.client.heal()
            await connection.rollback()
            await connection.commit()
        assert await w.truth() == "old"


async def test_call_into_a_black_hole_costs_one_deadline(
    sqlite: Database, server: EmbeddedServer, client: Redis
) -> None:
    """Redis neither answers nor ends: a call costs its deadline more, and no longer than that."""
    async with (
        TcpProxy(server.port) as proxy,
        Redis(port=proxy.port, retry=Retry(NoBackoff(), 3)) as own,
        world(sqlite, own, timeout=DEADLINE) as w,
    ):
        await w.fair()
        proxy.drop()
        assert await w.one.read() == "old"
        assert w.one.cache.stats().unavailable == 1, "one wait"
        await w.one.write("new")
        before = w.one.cache.stats()
        assert await w.one.read() == "new"
        found = w.one.cache.stats()
        assert (found.bypasses, found.unavailable) == (before.bypasses + 1, before.unavailable), "not even asked"
        proxy.heal()
        proxy.cut()
        await repaired(w.one)
        await w.fair()
