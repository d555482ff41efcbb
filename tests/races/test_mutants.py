"""The races are worth something: with one mechanism taken out, the race that it is there for is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis

import fastrdb.transactions.rules
from fastrdb.loading.load import Loading
from fastrdb.protocol.store import Busy
from tests.races.mechanisms import label, without
from tests.races.scenarios import commits as scenarios_commits
from tests.races.scenarios import fills as scenarios
from tests.races.scenarios import sessions as scenarios_sessions
from tests.races.seams import Change
from tests.support.servers import databases
from tests.support.servers.databases import Database, ServerDatabase
from tests.support.world.world import Scenario, World, pooled, world


@pytest.fixture
async def w(sqlite: Database, client: Redis) -> AsyncIterator[World]:
    """Give a world on SQLite."""
    async with world(sqlite, client) as made:
        yield made


async def lost(race: Coroutine[Any, Any, None]) -> None:
    """The race ends with somebody being answered wrongly."""
    with pytest.raises(AssertionError):
        await race


SCRIPTS: dict[Change, list[Scenario]] = {
    without("lease-check", script="fill"): [
        scenarios.stale_fill,
        scenarios.lease_expired,
        scenarios.zombie_fill,
        scenarios.zombie_acquire,
        scenarios_commits.result_prefix,
    ],
    without("barrier-set"): [
        scenarios.refill_before_commit,
        scenarios_commits.hidden_session,
        scenarios_commits.connection_outside,
    ],
    without("barrier-check"): [
        scenarios.refill_before_commit,
        scenarios.window_after_commit,
        scenarios.zombie_acquire,
    ],
    without("sweep-deletes-leases"): [scenarios.stale_fill, scenarios.joiner],
    without("sweep-deletes-entries"): [scenarios.window_after_commit, scenarios_commits.raises_after_its_commit],
    without("lease-check", script="end"): [scenarios_sessions.put_against_a_writer],
    without("release-checks-token"): [scenarios.release_spares_others],
    without("own-lease-granted-again"): [scenarios.lost_reply],
}


@pytest.mark.parametrize(
    ("change", "race"),
    [
        pytest.param(change, race, id=f"{change}: {race.__name__}")
        for change, races in SCRIPTS.items()
        for race in races
    ],
)
async def test_scripts(w: World, monkeypatch: pytest.MonkeyPatch, change: Change, race: Scenario) -> None:
    """One line of Lua less, and the race is lost."""
    w.change(change, monkeypatch)
    await lost(race(w))


async def test_the_end_of_one_writer_takes_all_barriers_down(
    postgresql: Database, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Barriers that are not told apart by token: two writers on one prefix."""
    async with world(postgresql, client) as made:
        made.change(without("barriers-told-apart"), monkeypatch)
        await lost(scenarios.two_writers(made))


async def test_joining_by_key(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds a load of the same key under way joins it, whatever the key's lease says."""
    acquire = Loading._acquire

    async def join_any(loading: Loading, tokens: dict[str, str]) -> Any:
        others = [token for token in loading._flights.by_token if token not in tokens.values()]
        return dict.fromkeys(tokens, Busy(others[0])) if others else await acquire(loading, tokens)

    without("join-by-token", join_any).apply(monkeypatch.setattr)
    await lost(scenarios.joiner(w))


async def test_without_rule_1(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that has written reads the cache and fills it."""
    without("rule-1-own-writes").apply(monkeypatch.setattr)
    await lost(scenarios_sessions.own_writes(w))


@pytest.mark.parametrize(
    "race",
    [
        scenarios_sessions.old_snapshot,
        scenarios_sessions.old_snapshot_ended_inside,
        scenarios_sessions.old_snapshot_of_a_leader,
    ],
    ids=lambda race: race.__name__,
)
async def test_without_rule_2(
    postgresql_server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch, race: Scenario
) -> None:
    """What was loaded from an old snapshot is stored."""
    without("rule-2-old-snapshot").apply(monkeypatch.setattr)
    without("rule-2-statements").apply(monkeypatch.setattr)
    await postgresql_server.clear()
    async with (
        databases.opened(postgresql_server.url, isolation_level="REPEATABLE READ") as database,
        world(database, client) as made,
    ):
        await lost(race(made))


async def test_rule_2_asked_after_the_load_only(
    postgresql_server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By then the function may have ended the transaction that it has loaded from."""
    why_not_stored, asked = fastrdb.transactions.rules.why_not_stored, []

    async def late(session: Any, since: int) -> str | None:
        asked.append(since)
        return await why_not_stored(session, since) if asked.count(since) > 1 else None

    without("rule-2-old-snapshot", late).apply(monkeypatch.setattr)
    without("rule-2-statements").apply(monkeypatch.setattr)
    await postgresql_server.clear()
    async with (
        databases.opened(postgresql_server.url, isolation_level="REPEATABLE READ") as database,
        world(database, client) as made,
    ):
        await lost(scenarios_sessions.old_snapshot_ended_inside(made))


@pytest.mark.parametrize(
    "race",
    [
        scenarios_sessions.identity_map,
        scenarios_sessions.identity_map_by_get,
        scenarios_sessions.identity_map_by_relationship,
    ],
    ids=lambda race: race.__name__,
)
async def test_without_rule_3(w: World, monkeypatch: pytest.MonkeyPatch, race: Scenario) -> None:
    """The identity map answers a load."""
    without("rule-3-identity-lookup").apply(monkeypatch.setattr)
    without("rule-3-fresh-reads").apply(monkeypatch.setattr)
    await lost(race(w))


@pytest.mark.parametrize(
    "race",
    [
        scenarios.refill_before_commit,
        scenarios.deleted_before_commit,
        scenarios_sessions.put_before_a_writer,
        scenarios_commits.hidden_session,
        scenarios_commits.connection_inside,
        scenarios_commits.older_hidden_session,
        scenarios_sessions.savepoint_that_commits,
    ],
    ids=lambda race: race.__name__,
)
async def test_telling_redis_after_the_commit(w: World, monkeypatch: pytest.MonkeyPatch, race: Scenario) -> None:
    """Nothing is done before COMMIT, all of it when the commit is known."""
    without("begin-before-commit").apply(monkeypatch.setattr)
    with pytest.raises((AssertionError, TimeoutError)):
        await race(w)


@pytest.mark.parametrize(
    ("change", "race"),
    [
        (without("call-covers-commits"), scenarios_commits.hidden_session),
        (without("call-covers-commits"), scenarios_commits.connection_inside),
        (without("older-transaction-covered"), scenarios_commits.older_hidden_session),
        (without("older-transaction-covered"), scenarios_commits.connection_outside),
        (without("all-sessions-of-a-transaction"), scenarios_commits.joined_and_open),
        (without("only-writes-carry"), scenarios_commits.read_only_commit),
        (without("savepoints-counted"), scenarios_sessions.savepoint_that_commits),
    ],
    ids=label,
)
async def test_following_commits(w: World, monkeypatch: pytest.MonkeyPatch, change: Change, race: Scenario) -> None:
    """One way less for a commit to be noticed."""
    change.apply(monkeypatch.setattr)
    await lost(race(w))


async def test_savepoints_that_are_rolled_back(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put in them is stored at the commit."""
    without("undone-puts-dropped").apply(monkeypatch.setattr)
    await lost(scenarios_sessions.savepoint_rolled_back(w))


@pytest.mark.parametrize(
    "race",
    [scenarios_commits.autocommit, scenarios_commits.autocommit_put, scenarios_commits.autocommit_by_hand],
    ids=lambda race: race.__name__,
)
async def test_taking_autocommit_for_a_transaction(
    sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch, race: Scenario
) -> None:
    """Nothing is done before the statement."""
    without("autocommit-noticed").apply(monkeypatch.setattr)
    async with (
        databases.opened(sqlite.engine.url, isolation_level="AUTOCOMMIT") as database,
        world(database, client) as made,
    ):
        await lost(race(made))


async def test_leaving_the_transaction_open(sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cancelled before its COMMIT is not rolled back: it is still there for the next one."""
    without("cancelled-is-undone").apply(monkeypatch.setattr)
    async with pooled(sqlite) as database, world(database, client) as made:
        await lost(scenarios.cancelled_before_commit(made, made.two.client.after("begin")))


async def test_beginning_once(sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier that has run out is not set again."""
    async with (
        databases.opened(sqlite.engine.url, isolation_level="AUTOCOMMIT") as database,
        world(database, client, barrier=10_000) as made,
    ):
        await lost(scenarios_commits.autocommit_again(made, monkeypatch))
