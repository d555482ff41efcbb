"""A cancelled caller, wherever the cancellation comes, ends no other call, leaves nothing behind and nothing stale."""

from __future__ import annotations

import asyncio
import gc
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy.util import await_only

from fastrdb.testing import Gate
from tests.races.scenarios import fills as scenarios
from tests.races.scenarios.fills import LEASE
from tests.support.programs.versions import Versions
from tests.support.servers.databases import Database
from tests.support.world.stores import members, names_in
from tests.support.world.world import World, pooled, spawn, world


@pytest.fixture
async def one_connection(sqlite: Database, client: Redis) -> AsyncIterator[World]:
    """Provide a world with one connection for all."""
    async with pooled(sqlite) as database, world(database, client) as made:
        yield made


async def cancelled(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended so."""
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_cancelled_leader_is_replaced_by_a_waiting_caller(w: World) -> None:
    """The leader's load ends with it; one of the callers that waited loads with its own session, for all others."""
    gate = w.one.gates.after("load")
    leader = spawn(w.one.read())
    await gate.reached()
    asked = [w.one.client.after("acquire") for _ in range(5)]
    followers = [spawn(w.one.read()) for _ in range(5)]
    for each in asked:
        await each.reached()
        each.open()
    await cancelled(leader)
    assert await asyncio.gather(*followers) == ["old"] * 5
    assert w.one.get.stats.loads == 2
    await w.quiet()


async def test_cancelled_follower_disturbs_no_other_caller(w: World) -> None:
    """A cancelled follower ends neither the load nor the other callers that wait for it."""
    gate = w.one.gates.after("load")
    calls = [spawn(w.one.read())]
    await gate.reached()
    asked = [w.one.client.after("acquire") for _ in range(2)]
    calls += [spawn(w.one.read()) for _ in asked]
    for each in asked:
        await each.reached()
        each.open()
    await cancelled(calls[1])
    gate.open()
    assert [await calls[0], await calls[2]] == ["old", "old"]
    assert w.one.get.stats.loads == w.one.get.stats.fills == 1
    await w.quiet()


@pytest.mark.parametrize("name", ["GET", "acquire", "fill"])
@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
async def test_cancelled_reader_at_each_command_leaves_nothing_behind(w: World, name: str, sent: bool) -> None:
    """Whatever it was that Redis was asked: the lease is given back, and the next caller loads and stores."""
    gate = w.one.client.after(name) if sent else w.one.client.before(name)
    reader = spawn(w.one.read())
    await gate.reached()
    await cancelled(reader)
    await w.quiet()
    await w.fair()
    assert await w.client.exists("item:1")


async def test_cancelled_fill_still_answers_waiting_callers(w: World) -> None:
    """The result is there when the fill begins: a caller that waited has the result, though its leader is gone."""
    gate, asked = w.one.gates.after("load"), w.one.client.after("acquire")
    leader = spawn(w.one.read())
    asked.open()
    await gate.reached()
    asked, filling = w.one.client.after("acquire"), w.one.client.before("fill")
    follower = spawn(w.one.read())
    await asked.reached()
    asked.open()
    gate.open()
    await filling.reached()
    await cancelled(leader)
    assert await follower == "old"
    assert w.one.get.stats.loads == 1
    await w.quiet()


@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
async def test_cancelled_before_commit_commits_nothing(one_connection: World, sent: bool) -> None:
    """Cancelled while Redis is asked: nothing is committed, nor by the next user of the connection."""
    gate = one_connection.two.client.after("begin") if sent else one_connection.two.client.before("begin")
    await scenarios.cancelled_before_commit(one_connection, gate)


@pytest.mark.parametrize("committed", [False, True])
async def test_cancelled_while_commit_is_sent_keeps_the_barrier(
    w: World, monkeypatch: pytest.MonkeyPatch, committed: bool
) -> None:
    """The commit may have happened or not: readers go past the cache until the barrier has lapsed."""
    assert await w.one.read() == "old"
    gate = Gate()
    dialect = w.database.engine.sync_engine.dialect
    do_commit = dialect.do_commit

    def hold(connection: Any) -> None:
        if committed:
            do_commit(connection)
        await_only(gate.hold())

    monkeypatch.setattr(dialect, "do_commit", hold)
    writer = spawn(w.two.write("new"))
    await gate.reached()
    monkeypatch.undo()
    await cancelled(writer)
    assert await w.truth() == ("new" if committed else "old")
    await w.fair()
    assert await members(w.client, "barriers")
    assert not await w.client.exists("item:1", LEASE)
    await w.lapse_barriers()
    await w.fair()
    assert await w.client.exists("item:1")


@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
async def test_cancelled_after_commit_is_invalidated(one_connection: World, sent: bool) -> None:
    """The row is committed; Redis gets the invalidation all the same, and connection and session are free again."""
    w = one_connection
    gate = w.two.client.after("end") if sent else w.two.client.before("end")
    writer = spawn(w.two.save("new"))
    await gate.reached()
    await cancelled(writer)
    gate.open()
    await w.quiet()
    assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'
    await w.fair()


async def test_session_after_a_cancelled_commit_can_be_used(w: World) -> None:
    """The session whose commit was cancelled, when the row was committed already, can be used on."""
    gate = w.two.client.before("end")
    async with w.two.database.sessions() as db:
        await w.two.rename(db, w.two.client, 1, "new")
        committing = spawn(db.commit())
        await gate.reached()
        await cancelled(committing)
        gate.open()
        await w.two.rename(db, w.two.client, 1, "newer")
        await db.commit()
    await w.fair()
    await w.quiet()


@pytest.mark.parametrize("sent", [False, True], ids=["before", "after"])
async def test_cancelled_invalidation_is_finished(w: World, sent: bool) -> None:
    """An invalidation outside of any transaction is finished."""
    value = "old"

    @w.one.cache.cached("plain")
    async def read(redis: object) -> str:
        return value

    @w.one.cache.invalidates("plain")
    async def write(redis: object) -> None:
        nonlocal value
        value = "new"

    assert await read(w.one.client) == "old"
    gate = w.one.client.after("begin") if sent else w.one.client.before("begin")
    writer = spawn(write(w.one.client))
    await gate.reached()
    await cancelled(writer)
    gate.open()
    await w.one.cache.aclose()
    assert await read(w.one.client) == "new"
    await w.quiet()


@pytest.mark.usefixtures("own_garbage")
async def test_ten_thousand_cancelled_reads(client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """Reads cancelled anywhere, beside writes: no answer older than an answered write, and nothing is left behind."""
    world = Versions(client, random.Random(1))
    outcomes: list[str] = []

    async def caller() -> None:
        for count in range(500):
            outcomes.append(await world.read_and_cancel())
            if count % 10 == 0:
                await world.write()

    await asyncio.gather(*(caller() for _ in range(20)))
    assert len(outcomes) == 10_000
    assert {outcome for outcome in outcomes if outcome.startswith("wrong")} == set()
    assert outcomes.count("cancelled") > 1000
    assert outcomes.count("right") > 1000
    for cache, (read, _) in zip(world.caches, world.functions, strict=True):
        await cache.aclose()
        assert not cache.runtime.here().flights.by_token
        for key, version in world.written.items():
            assert await read(client, key) == version
    gc.collect()
    assert not [record for record in caplog.records if record.name == "asyncio"]
    assert await names_in(client, "fastrdb:lease:*") == set()


async def test_cancelled_writers(postgresql: Database, client: Redis) -> None:
    """Readers and writers cancelled anywhere, on a database: what is cached in the end is what is committed."""
    async with world(postgresql, client) as w:
        await cancel_writers(w, random.Random(2))
        await w.one.cache.aclose()
        await w.two.cache.aclose()
        if await w.client.exists("item:1"):
            assert await w.truth() in await w.value("item:1")
        await w.lapse_barriers()
        for _ in await members(w.client, "barriers"):
            await w.one.write("last")  # adds a barrier, and removes two of those that were left to lapse
        await w.fair()
        await w.quiet()


async def cancel_writers(w: World, chance: random.Random) -> None:
    """Eight callers, each of which is cancelled again and again."""

    async def caller(number: int) -> None:
        process = chance.choice([w.one, w.two])
        for count in range(15):
            work: Any = process.write(f"{number}-{count}") if chance.random() < 0.3 else process.read()
            task = asyncio.create_task(work)
            for _ in range(chance.randrange(150)):
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    await asyncio.gather(*(caller(number) for number in range(8)))
