"""A command that is sent twice: what was made under the first grant of a lease is not stored under a second one."""

from __future__ import annotations

import pytest

from tests.races.mechanisms import label
from tests.races.scenarios import fills
from tests.support.world.world import Scenario, World


@pytest.mark.parametrize(
    "race", [fills.lost_reply, fills.late_copy, fills.zombie_acquire, fills.zombie_fill], ids=label
)
async def test_lost_reply_leaves_nothing_stale(everywhere: World, race: Scenario) -> None:
    """An acquire whose reply was lost is granted again; one that arrives after a writer, or a late fill, is not."""
    await race(everywhere)
