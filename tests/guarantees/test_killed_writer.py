"""Processes that are killed, and many processes at once."""

from __future__ import annotations

import signal

import pytest
from redis.asyncio import Redis

from fastrdb.testing.server import EmbeddedServer
from tests.races.scenarios.fills import LEASE
from tests.support.programs import processes
from tests.support.programs.processes import Moment
from tests.support.servers.databases import Database
from tests.support.waiting import until
from tests.support.world.stores import members
from tests.support.world.world import world


async def lapsed(client: Redis) -> None:
    """Wait until the server's clock has passed the deadline of every barrier."""
    barriers = await members(client, "barriers")
    deadline = max([await client.zscore("fastrdb:barriers", barrier) or 0.0 for barrier in barriers])

    async def over() -> bool:
        seconds, micros = await client.time()
        return bool(seconds * 1000 + micros // 1000 >= deadline)

    await until(over)


@pytest.mark.parametrize("moment", ["before", "after"])
async def test_writer_killed_at_its_commit_leaves_nothing_stale(
    sqlite: Database, server: EmbeddedServer, client: Redis, moment: Moment
) -> None:
    """Killed before COMMIT or before its end: nothing is stale, and what it barred is cached again when that lapses."""
    async with world(sqlite, client) as w:
        assert await w.one.read() == "old"
        url = sqlite.engine.url.render_as_string(hide_password=False)
        [code] = await processes.run(processes.write_and_die, url, server.port, 2.0, moment)
        assert code == -signal.SIGKILL
        assert await members(client, "barriers")  # the end was not sent
        assert await w.truth() == ("old" if moment == "before" else "new")
        assert not await client.exists("item:1")
        await w.fair()
        await lapsed(client)
        await w.fair()
        assert await client.exists("item:1")
        assert not await client.exists(LEASE)
        await w.two.write("newer")
        await w.fair()
        await w.quiet()
