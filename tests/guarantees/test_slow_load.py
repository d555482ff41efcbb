"""A load that takes longer than `lease` is answered, not stored, and counted."""

from __future__ import annotations

import pytest

from tests.races.mechanisms import label
from tests.races.scenarios import fills
from tests.support.world.world import Scenario, World, spawn


@pytest.mark.parametrize("race", [fills.lease_expired, fills.release_spares_others], ids=label)
async def test_slow_load_spares_what_came_after_it(everywhere: World, race: Scenario) -> None:
    """The slow load neither replaces a newer entry nor gives back a newer lease."""
    await race(everywhere)


async def test_slow_load_is_answered_and_counted(w: World) -> None:
    """The value reaches its caller; `stats.unstored` counts it, and Redis has no entry."""
    gate = w.one.gates.after("load")
    reader = spawn(w.one.read())
    await gate.reached()
    await w.lapse(fills.LEASE)
    gate.open()
    assert await reader == "old"
    assert w.one.get.stats.unstored == 1
    assert not await w.client.exists("item:1")
