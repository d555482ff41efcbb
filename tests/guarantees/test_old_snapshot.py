"""A load whose snapshot is older than the lease is used, and not stored."""

from __future__ import annotations

import pytest

from tests.races.mechanisms import label
from tests.races.scenarios import hidden, sessions
from tests.support.world.world import Scenario, World


@pytest.mark.parametrize(
    "race", [sessions.old_snapshot, sessions.old_snapshot_ended_inside, sessions.old_snapshot_of_a_leader], ids=label
)
async def test_old_snapshot_of_the_given_session_is_not_stored(on_one_snapshot: World, race: Scenario) -> None:
    """The transaction of the session that the call was given began before the write."""
    await race(on_one_snapshot)


@pytest.mark.parametrize("race", hidden.SNAPSHOTS, ids=label)
async def test_old_snapshot_from_elsewhere_is_not_stored(on_one_snapshot: World, race: Scenario) -> None:
    """The load uses a session, a connection or a task that the call does not name."""
    await race(on_one_snapshot)
