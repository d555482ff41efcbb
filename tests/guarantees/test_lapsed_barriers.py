"""Barriers that lapse, or are lost with their server, before COMMIT is done: their writer deletes once more."""

from __future__ import annotations

from tests.support.world.stores import lapse_barriers
from tests.support.world.world import World, spawn


async def test_lapsed_barriers_make_the_writer_delete_again(everywhere: World) -> None:
    """A reader stores the old row before COMMIT; the entry is gone when the writer has ended."""
    w = everywhere
    gate = w.at_commit()
    writer = spawn(w.two.write("new"))
    await gate.reached()
    await lapse_barriers(w.client)
    assert await w.one.read() == "old"
    assert await w.client.exists("item:1")
    gate.open()
    await writer
    await w.fair()


async def test_lapsed_barriers_make_the_writer_delete_leases_again(everywhere: World) -> None:
    """A reader that loaded the old row before COMMIT cannot store it when the writer has ended."""
    w = everywhere
    at_commit, after_load = w.at_commit(), w.one.gates.after("load")
    writer = spawn(w.two.write("new"))
    await at_commit.reached()
    await lapse_barriers(w.client)
    reader = spawn(w.one.read())
    await after_load.reached()
    at_commit.open()
    await writer
    after_load.open()
    assert await reader == "old"
    await w.fair()
