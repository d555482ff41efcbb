"""A reader's old value that arrives after a commit is not stored: its lease is gone."""

from __future__ import annotations

import asyncio
import random

import pytest
from redis.asyncio import Redis

from tests.races.mechanisms import label
from tests.races.scenarios import fills
from tests.support.servers.databases import Database
from tests.support.world.world import Scenario, World, spawn, world


@pytest.mark.parametrize(
    "race",
    [
        fills.stale_fill,
        fills.refill_before_commit,
        fills.window_after_commit,
        fills.deleted_before_commit,
        fills.joiner,
        fills.followers,
    ],
    ids=label,
)
async def test_old_value_after_a_commit_is_not_stored(everywhere: World, race: Scenario) -> None:
    """Every answer after the commit is the new value, whichever order the steps come in."""
    await race(everywhere)


async def test_old_value_beside_two_writers_is_not_stored(postgresql: Database, client: Redis) -> None:
    """The end of one writer leaves the barrier of the other."""
    async with world(postgresql, client) as w:
        await fills.two_writers(w)


@pytest.mark.parametrize("seed", range(40))
async def test_old_value_in_any_order_is_not_stored(w: World, seed: int) -> None:
    """Eight readers and a writer start at once, in any order: in the end the entry is what is committed."""
    chance = random.Random(seed)
    work = [w.one.read, w.two.read] * 4 + [lambda: w.one.write("new")]
    chance.shuffle(work)
    await asyncio.gather(*(spawn(each()) for each in work))
    await w.fair()
    assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'
    await w.quiet()
