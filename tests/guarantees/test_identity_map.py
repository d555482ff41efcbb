"""A load under a lease reads from the database, and not from an old row in its session's identity map."""

from __future__ import annotations

import pytest

from tests.guarantees.conftest import Opens
from tests.races.mechanisms import label
from tests.races.scenarios import hidden, sessions
from tests.support.servers.databases import ServerDatabase
from tests.support.world.world import Scenario, World


@pytest.mark.parametrize(
    "race",
    [
        sessions.identity_map,
        sessions.identity_map_by_get,
        sessions.identity_map_by_relationship,
        hidden.identity_map,
        hidden.identity_map_of_a_task,
        hidden.own_identity_map,
    ],
    ids=label,
)
async def test_identity_map_does_not_answer_a_load(everywhere: World, race: Scenario) -> None:
    """A SELECT, `session.get()`, a many-to-one relationship, and a session that the call does not name."""
    await race(everywhere)


async def test_identity_map_on_mariadb_does_not_answer_a_load(mariadb_server: ServerDatabase, opens: Opens) -> None:
    """The same for the session that the call does not name, in MariaDB's REPEATABLE READ."""
    async with opens(mariadb_server) as w:
        await hidden.identity_map(w)
