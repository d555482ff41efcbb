"""Barriers that lapse, or are lost with their server, before COMMIT is done: their writer deletes once more."""

from __future__ import annotations

import pytest

from tests.races.mechanisms import label
from tests.races.scenarios import fills
from tests.support.world.world import Scenario, World


@pytest.mark.parametrize("race", [fills.lapsed_barriers, fills.lapsed_barriers_during_a_load], ids=label)
async def test_lapsed_barriers_make_the_writer_delete_again(everywhere: World, race: Scenario) -> None:
    """An entry or a lease of a reader from before COMMIT is gone when the writer has ended."""
    await race(everywhere)
