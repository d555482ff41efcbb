"""A session that has written in its open transaction neither reads the cache nor fills it."""

from __future__ import annotations

import pytest

from tests.races.scenarios import sessions
from tests.support.world.world import World


@pytest.mark.parametrize("how", ["update", "attribute", "text"])
async def test_own_writes_are_seen_by_their_session_only(everywhere: World, how: str) -> None:
    """A statement, a change that is not flushed yet, and a statement given as text, each rolled back in the end."""
    await sessions.own_writes(everywhere, how)
