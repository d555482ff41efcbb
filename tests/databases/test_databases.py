"""The races of the protocol on real databases, at every isolation level: one table of what is expected where."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis

from tests.races.scenarios import commits as scenarios_commits
from tests.races.scenarios import fills as scenarios
from tests.races.scenarios import levels as scenarios_levels
from tests.races.scenarios import sessions as scenarios_sessions
from tests.support.servers.databases import Database
from tests.support.world import levels as places
from tests.support.world.levels import BY_NAME, PLACES, Place
from tests.support.world.world import World, world

Race = Callable[[World, Place], Coroutine[Any, Any, None]]


def everywhere(place: Place) -> bool:
    """Return True: the race exists at every level."""
    return True


def in_transactions(place: Place) -> bool:
    """Return whether a race around a later COMMIT exists there."""
    return not place.autocommits


def with_savepoints(place: Place) -> bool:
    """Return whether a race around a savepoint exists there."""
    return place.savepoints != "none"


def plain(race: Callable[[World], Coroutine[Any, Any, None]]) -> Race:
    """Return a race that goes the same way everywhere."""

    async def run(w: World, place: Place) -> None:
        await race(w)

    return run


# What a row promises holds at each place where it is played; how it comes about stands in `places.PLACES`:
#
#   place                          old snapshot (R4)        savepoint released (R7)    rolled back around it
#   postgresql READ COMMITTED      reads new, stored        waits for COMMIT           old
#   postgresql REPEATABLE READ     reads old, not stored    waits for COMMIT           old
#   postgresql SERIALIZABLE        reads old, not stored    waits for COMMIT           old
#   mariadb REPEATABLE READ        reads old, not stored    waits for COMMIT           old
#   mariadb READ COMMITTED         reads new, stored        waits for COMMIT           old
#   sqlite DELETE, WAL             reads new, stored        is the COMMIT              new
#   sqlite WAL BEGIN               reads old, not stored    waits for COMMIT           old
#   sqlite DELETE BEGIN            the writer is locked out waits for COMMIT           old
#   AUTOCOMMIT                     reads new, stored        none; sqlite: the COMMIT   new
TABLE: list[tuple[str, Race, Callable[[Place], bool]]] = [
    ("R1 stale fill", scenarios_levels.stale_fill, everywhere),
    ("R2 refill before COMMIT", plain(scenarios.refill_before_commit), in_transactions),
    ("R2 told before COMMIT", plain(scenarios.deleted_before_commit), everywhere),
    ("R3 window after COMMIT", plain(scenarios.window_after_commit), everywhere),
    ("R4 old snapshot", scenarios_levels.old_snapshot, everywhere),
    ("R5 identity map", plain(scenarios_sessions.identity_map), everywhere),
    ("R5 Session.get", plain(scenarios_sessions.identity_map_by_get), everywhere),
    ("R5 relationship", plain(scenarios_sessions.identity_map_by_relationship), everywhere),
    ("R6 own writes", scenarios_levels.own_writes, in_transactions),
    ("R7 savepoint", scenarios_levels.savepoint, with_savepoints),
    ("R7 rolled back around it", scenarios_levels.savepoint_then_rollback, with_savepoints),
    ("R8 savepoint rolled back", plain(scenarios_sessions.savepoint_rolled_back), with_savepoints),
    ("R9 lease expired", plain(scenarios.lease_expired), lambda place: place.sees != "locks"),
    ("R14 joiner", plain(scenarios.joiner), lambda place: place.sees != "locks"),
    ("C22 missing row", scenarios_levels.missing_row, everywhere),
    ("C22 error", scenarios_levels.error_not_cached, in_transactions),
    ("put", plain(scenarios_sessions.put_before_a_writer), in_transactions),
    ("put against a writer", plain(scenarios_sessions.put_against_a_writer), in_transactions),
    ("put rolled back", plain(scenarios_sessions.put_rolled_back), in_transactions),
    ("joined", plain(scenarios_commits.joined), in_transactions),
    ("joined, rolled back", plain(scenarios_commits.joined_and_rolled_back), in_transactions),
    ("hidden session", plain(scenarios_commits.hidden_session), in_transactions),
    ("connection", plain(scenarios_commits.connection_outside), in_transactions),
    ("statement by statement", plain(scenarios_commits.autocommit), lambda place: place.autocommits),
    ("put, statement by statement", plain(scenarios_commits.autocommit_put), lambda place: place.autocommits),
    ("by hand, statement by statement", plain(scenarios_commits.autocommit_by_hand), lambda place: place.autocommits),
]


@pytest.fixture(params=[place.name for place in PLACES])
def place(request: pytest.FixtureRequest) -> Place:
    """Provide each place in turn."""
    return BY_NAME[request.param]


@pytest.fixture
def empty(request: pytest.FixtureRequest, place: Place) -> Database:
    """Provide the empty database of that place."""
    opened: Database = request.getfixturevalue(place.server)
    return opened


@pytest.fixture
async def w(empty: Database, place: Place, client: Redis) -> AsyncIterator[World]:
    """Provide a world at a place."""
    locks = {"connect_args": {"timeout": 0.05}} if place.sees == "locks" else {}
    async with places.opened(place, empty.engine.url, **locks) as database, world(database, client) as made:
        yield made


def rows() -> list[Any]:
    """Return each race at each place where it exists."""
    return [
        pytest.param(place.name, race, id=f"{name}: {place.name}")
        for name, race, there in TABLE
        for place in PLACES
        if there(place)
    ]


@pytest.mark.parametrize(("place", "race"), rows(), indirect=["place"])
async def test_races(w: World, place: Place, race: Race) -> None:
    """No caller is answered with anything older than what was committed, nor with what never was."""
    await race(w, place)
