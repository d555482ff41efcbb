"""Barriers that are evicted, or deleted by hand: the next reader notices, and nothing is stored for a while."""

from __future__ import annotations

from tests.support.world.stores import lapse_barriers, lose
from tests.support.world.world import World, spawn


async def test_lost_barriers_keep_readers_from_storing(everywhere: World) -> None:
    """A reader between a writer's begin and its COMMIT loads the old row, and stores nothing."""
    w = everywhere
    gate = w.at_commit()
    writer = spawn(w.two.write("new"))
    await gate.reached()
    await lose(w.client, "barriers")
    assert await w.one.read() == "old"
    assert not await w.client.exists("item:1")
    gate.open()
    await writer
    await w.fair()
    await lapse_barriers(w.client)
    await w.fair()
    assert await w.client.exists("item:1")
