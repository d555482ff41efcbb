"""After a failover the former master may answer for seconds: no process reads from it when a commit has succeeded."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.sentinel import SentinelConnectionPool
from redis.exceptions import ConnectionError as RedisConnectionError

from fastrdb import CacheUnavailableError
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.network.lines import Passing
from tests.support.programs.apps import App
from tests.support.servers.sentinels import follow, pair, synced
from tests.support.waiting import until
from tests.support.world.world import spawn

DEADLINE = 5.0
Address = tuple[str, int]


class Told:
    """One Sentinel: the master that it names, or no answer."""

    def __init__(self, master: Address) -> None:
        self.master: Address | None = master
        self.connection_pool = SimpleNamespace(connection_kwargs={})
        self.asked = asyncio.Event()  # by the process that heals: it asks all Sentinels

    async def sentinel_get_master_addr_by_name(self, service: str) -> Address:
        """Return the master."""
        self.asked.set()
        if self.master is None:
            raise RedisConnectionError("no answer")
        return self.master


class Manager:
    """In place of redis-py's `Sentinel`: the first Sentinel that answers names the master of a process."""

    def __init__(self, *sentinels: Told) -> None:
        self.sentinels = sentinels

    async def discover_master(self, service: str) -> Address:
        """Return the master that the first Sentinel names which answers."""
        for each in self.sentinels:
            if each.master is not None:
                return each.master
        raise RedisConnectionError("no Sentinel answers")


class Failover:
    """A master, a replica that is promoted without a word to the master, and processes with Sentinels of their own."""

    def __init__(self, stack: AsyncExitStack, monkeypatch: pytest.MonkeyPatch, former: int, new: int) -> None:
        self._stack = stack
        self.former, self.new = ("127.0.0.1", former), ("127.0.0.1", new)
        self.time, self.truth = Passing(monkeypatch), {1: "old"}

    async def process(self, *sentinels: Told, **settings: Any) -> App:
        """Return a process that asks these Sentinels, in this order."""
        pool = SentinelConnectionPool("main", Manager(*sentinels))
        client = await self._stack.enter_async_context(Redis(connection_pool=pool))
        app = App(self.truth, client, timeout=DEADLINE, **settings)
        await self._stack.enter_async_context(app.cache)
        self._stack.push_async_callback(pool.disconnect)
        return app

    async def promote(self) -> None:
        """Make the replica a master of its own; the former master goes on."""
        async with Redis(port=self.former[1]) as master, Redis(port=self.new[1]) as replica:
            await synced(master)
            await replica.replicaof("NO", "ONE")


@pytest.fixture
async def failover(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Failover]:
    """Provide a failover whose time can be put forward."""
    with ExitStack() as servers:
        master, replica = pair(servers)
        await follow(replica, master.port)
        async with AsyncExitStack() as stack:
            yield Failover(stack, monkeypatch, master.port, replica.port)


async def test_no_commit_succeeds_while_others_read_from_the_former_master(failover: Failover) -> None:
    """The writer's Sentinel names the new master, the reader's does not yet: the commit is refused until it does."""
    mine, theirs = Told(failover.former), Told(failover.former)
    writer = await failover.process(mine, theirs, on_error="raise")
    reader = await failover.process(theirs, mine)
    assert await writer.read() == await reader.read() == "old"
    await failover.promote()
    mine.master = failover.new
    failover.time.passes(1.1)
    assert await reader.read() == "old"
    with pytest.raises(CacheUnavailableError, match="former master"):
        await writer.write("new")
    healing = writer.store._backend.trust._task
    assert healing is not None
    await asyncio.wait({healing, spawn(theirs.asked.wait())}, return_when=asyncio.FIRST_COMPLETED)
    assert not healing.done()
    theirs.master = failover.new

    async def written() -> bool:
        try:
            await writer.write("new")
        except CacheUnavailableError:
            return False
        return True

    await until(written)
    assert await reader.read() == "new"
    await reader.healed()
    assert await reader.read() == await reader.read() == "new"


async def test_no_writer_deletes_on_the_former_master(failover: Failover) -> None:
    """A process that was connected there while others have healed the new master and read from it."""
    told = Told(failover.former)
    reader, writer = await failover.process(told), await failover.process(told, on_error="raise")
    assert await writer.read() == "old"
    await failover.promote()
    told.master = failover.new
    assert await reader.read() == "old"
    await reader.healed()
    assert await reader.read() == await reader.read() == "old"
    failover.time.passes(1.1)
    await writer.write("new")
    assert await reader.read() == "new"


async def test_without_an_answer_of_a_sentinel_calls_go_on_without_the_cache(failover: Failover) -> None:
    """Which server is the master is unknown then. When a Sentinel answers, the cache is used again."""
    told = Told(failover.former)
    app = await failover.process(told)
    assert await app.read() == await app.read() == "old"
    told.master = None
    failover.time.passes(1.1)
    failover.truth[1] = "new"
    assert await app.read() == "new"
    told.master = failover.former

    async def hit() -> bool:
        return bool(await app.read() == "old")

    await until(hit)


Test = Callable[[Failover], Awaitable[None]]


@pytest.mark.parametrize(
    ("change", "test"),
    [
        (without("former-master-left"), test_no_commit_succeeds_while_others_read_from_the_former_master),
        (without("unhealed-master-refused"), test_no_commit_succeeds_while_others_read_from_the_former_master),
        (without("sentinel-asked"), test_no_writer_deletes_on_the_former_master),
    ],
    ids=label,
)
async def test_race_is_lost(failover: Failover, monkeypatch: pytest.MonkeyPatch, change: Change, test: Test) -> None:
    """With one mechanism taken out, a process reads what another has replaced."""
    change.apply(monkeypatch.setattr)
    with pytest.raises((AssertionError, pytest.fail.Exception)):
        await test(failover)
