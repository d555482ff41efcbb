"""A commit that fails, a rollback, a session that is closed: nothing was published, and the barrier is removed."""

from __future__ import annotations

import pytest

from tests.races.mechanisms import label
from tests.races.scenarios import commits, sessions
from tests.support.world.world import Scenario, World


@pytest.mark.parametrize(
    "race",
    [
        commits.closed_without_commit,
        commits.joined_and_rolled_back,
        commits.raises_before_the_commit,
        sessions.savepoint_rolled_back,
        sessions.put_rolled_back,
    ],
    ids=label,
)
async def test_rollback_leaves_what_is_committed(everywhere: World, race: Scenario) -> None:
    """Every answer is what is committed, and no barrier is left."""
    await race(everywhere)
