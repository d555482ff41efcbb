"""A load that writes, reads what it wrote and does not commit it: its result is used, and not stored."""

from __future__ import annotations

import pytest

from tests.guarantees.conftest import Opens
from tests.races.mechanisms import label
from tests.races.scenarios import hidden, sessions
from tests.support.servers.databases import ServerDatabase
from tests.support.world.world import Scenario, World


@pytest.mark.parametrize("how", ["rollback", "savepoint"])
async def test_uncommitted_load_on_the_given_session_is_not_stored(
    postgresql_server: ServerDatabase, opens: Opens, how: str
) -> None:
    """The load rolls back its transaction, or a savepoint, before it returns."""
    async with opens(postgresql_server) as w:
        await sessions.undone_in_the_load(w, how)


@pytest.mark.parametrize("race", [*hidden.UNDONE, hidden.in_a_thread], ids=label)
async def test_uncommitted_load_elsewhere_is_not_stored(w: World, race: Scenario) -> None:
    """The load writes in a session, a connection or a thread that the call does not name."""
    await race(w)


@pytest.mark.parametrize("level", ["READ COMMITTED", "REPEATABLE READ"])
async def test_uncommitted_load_at_each_level_is_not_stored(
    postgresql_server: ServerDatabase, opens: Opens, level: str
) -> None:
    """The same on PostgreSQL, in one world after the other."""
    for race in hidden.UNDONE:
        async with opens(postgresql_server, isolation_level=level) as w:
            await race(w)


async def test_uncommitted_load_on_mariadb_is_not_stored(mariadb_server: ServerDatabase, opens: Opens) -> None:
    """The same in MariaDB's REPEATABLE READ."""
    for race in hidden.UNDONE:
        async with opens(mariadb_server) as w:
            await race(w)
