"""The races are worth something: with one mechanism taken out, the race that it is there for is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import Connection

import fastrdb.loading.entry
import fastrdb.loading.function
import fastrdb.protocol.leases
import fastrdb.protocol.sweep
import fastrdb.transactions.drivers
import fastrdb.transactions.listeners
import fastrdb.transactions.rules
import fastrdb.transactions.scope
from fastrdb.loading.load import Loading
from fastrdb.protocol.store import Busy
from fastrdb.transactions.scope import RunningLoad
from fastrdb.transactions.state import Targets, Transaction
from tests.races.scenarios import commits as scenarios_commits
from tests.races.scenarios import fills as scenarios
from tests.races.scenarios import sessions as scenarios_sessions
from tests.support.servers import databases
from tests.support.servers.databases import Database, ServerDatabase
from tests.support.world.world import Mutation, Scenario, World, pooled, world


@pytest.fixture
async def w(sqlite: Database, client: Redis) -> AsyncIterator[World]:
    """Give a world on SQLite."""
    async with world(sqlite, client) as made:
        yield made


async def lost(race: Coroutine[Any, Any, None]) -> None:
    """The race ends with somebody being answered wrongly."""
    with pytest.raises(AssertionError):
        await race


LEASE_CHECK = "if redis.call('GET', lease) ~= token then return 0 end"
BARRIER_UP = "redis.call('ZADD', barriers, 'GT', deadline, ARGV[i])"
SCRIPTS: dict[str, tuple[Mutation, list[Scenario]]] = {
    "a fill asks for no lease": (
        Mutation(fastrdb.protocol.leases, "_FILL", LEASE_CHECK, ""),
        [
            scenarios.stale_fill,
            scenarios.lease_expired,
            scenarios.zombie_fill,
            scenarios.zombie_acquire,
            scenarios_commits.result_prefix,
        ],
    ),
    "begin sets no barrier": (
        Mutation(fastrdb.protocol.sweep, "_BEGIN", BARRIER_UP, ""),
        [scenarios.refill_before_commit, scenarios_commits.hidden_session, scenarios_commits.connection_outside],
    ),
    "acquire asks for no barrier": (
        Mutation(fastrdb.protocol.leases, "_ACQUIRE", "if closed then", "if false then"),
        [scenarios.refill_before_commit, scenarios.window_after_commit, scenarios.zombie_acquire],
    ),
    "begin leaves leases": (
        Mutation(fastrdb.protocol.sweep, "_BEGIN", "redis.call('DEL', lease)", ""),
        [scenarios.stale_fill, scenarios.joiner],
    ),
    "begin leaves entries": (
        Mutation(fastrdb.protocol.sweep, "_BEGIN", "local deleted = redis.call('UNLINK', key)", "local deleted = 0"),
        [scenarios.window_after_commit, scenarios_commits.raises_after_its_commit],
    ),
    "write-through asks for no lease": (
        Mutation(fastrdb.protocol.sweep, "_END", LEASE_CHECK, ""),
        [scenarios_sessions.put_against_a_writer],
    ),
    "release asks for no token": (
        Mutation(
            fastrdb.protocol.leases, "_RELEASE", "if token_in(redis.call('GET', lease)) ~= token then return 0 end", ""
        ),
        [scenarios.release_spares_others],
    ),
    "the own lease is another's": (
        Mutation(fastrdb.protocol.leases, "_ACQUIRE", "if holder and holder ~= token then", "if holder then"),
        [scenarios.lost_reply],
    ),
}


@pytest.mark.parametrize(
    ("mutation", "race"),
    [
        pytest.param(mutation, race, id=f"{name}: {race.__name__}")
        for name, (mutation, races) in SCRIPTS.items()
        for race in races
    ],
)
async def test_scripts(w: World, monkeypatch: pytest.MonkeyPatch, mutation: Mutation, race: Scenario) -> None:
    """One line of Lua less, and the race is lost."""
    mutation(monkeypatch, w)
    await lost(race(w))


async def test_the_end_of_one_writer_takes_all_barriers_down(
    postgresql: Database, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Barriers that are not told apart by token: two writers on one prefix."""
    async with world(postgresql, client) as made:
        old = "redis.call('ZREM', barriers, ARGV[i])"
        Mutation(fastrdb.protocol.sweep, "_END", old, "redis.call('ZREMRANGEBYSCORE', barriers, '-inf', '(+inf')")(
            monkeypatch, made
        )
        await lost(scenarios.two_writers(made))


async def test_joining_by_key(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who finds a load of the same key under way joins it, whatever the key's lease says."""
    acquire = Loading._acquire

    async def join_any(loading: Loading, tokens: dict[str, str]) -> Any:
        others = [token for token in loading._flights.by_token if token not in tokens.values()]
        return dict.fromkeys(tokens, Busy(others[0])) if others else await acquire(loading, tokens)

    monkeypatch.setattr(Loading, "_acquire", join_any)
    await lost(scenarios.joiner(w))


async def test_without_rule_1(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A session that has written reads the cache and fills it."""
    for module in (fastrdb.loading.entry, fastrdb.loading.function, fastrdb.transactions.rules):
        monkeypatch.setattr(module, "wrote", lambda session: False)
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

    async def fit(session: object, since: int) -> None:
        return None

    monkeypatch.setattr(fastrdb.transactions.scope, "why_not_stored", fit)
    monkeypatch.setattr(RunningLoad, "before_statement", lambda *_: None)
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

    monkeypatch.setattr(fastrdb.transactions.scope, "why_not_stored", late)
    monkeypatch.setattr(RunningLoad, "before_statement", lambda *_: None)
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
    monkeypatch.setattr(RunningLoad, "_hide_identity_maps", lambda load: None)
    monkeypatch.setattr(fastrdb.transactions.listeners, "fresh_reads", lambda: False)
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
    monkeypatch.setattr(fastrdb.transactions.listeners, "_begin_works", lambda transaction: None)
    with pytest.raises((AssertionError, TimeoutError)):
        await race(w)


def _not_inside(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fastrdb.transactions.listeners, "targets_around", list)


def _no_meeting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Targets, "meet", lambda targets, transaction: None)


def _one_session(monkeypatch: pytest.MonkeyPatch) -> None:
    several: Any = Transaction.sessions
    monkeypatch.setattr(Transaction, "sessions", property(lambda transaction: several.fget(transaction)[-1:]))


def _always_carried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Targets, "carried", property(lambda targets: True, lambda targets, value: None))


def _no_savepoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Transaction, "savepoints", property(lambda transaction: 0, lambda transaction, value: None))


@pytest.mark.parametrize(
    ("mutate", "race"),
    [
        (_not_inside, scenarios_commits.hidden_session),
        (_not_inside, scenarios_commits.connection_inside),
        (_no_meeting, scenarios_commits.older_hidden_session),
        (_no_meeting, scenarios_commits.connection_outside),
        (_one_session, scenarios_commits.joined_and_open),
        (_always_carried, scenarios_commits.read_only_commit),
        (_no_savepoints, scenarios_sessions.savepoint_that_commits),
    ],
)
async def test_following_commits(
    w: World, monkeypatch: pytest.MonkeyPatch, mutate: Callable[[pytest.MonkeyPatch], None], race: Scenario
) -> None:
    """One way less for a commit to be noticed."""
    mutate(monkeypatch)
    await lost(race(w))


async def test_savepoints_that_are_rolled_back(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """What was put in them is stored at the commit."""
    monkeypatch.setattr(fastrdb.transactions.listeners, "_distrust", lambda state: None)
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

    def never(connection: Connection) -> bool:
        return False

    for module in (fastrdb.transactions.listeners, fastrdb.transactions.drivers):
        monkeypatch.setattr(module, "autocommits", never)
    async with (
        databases.opened(sqlite.engine.url, isolation_level="AUTOCOMMIT") as database,
        world(database, client) as made,
    ):
        await lost(race(made))


async def test_leaving_the_transaction_open(sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is cancelled before its COMMIT is not rolled back: it is still there for the next one."""
    monkeypatch.setattr(fastrdb.transactions.listeners, "undo", lambda connection, transaction: None)
    async with pooled(sqlite) as database, world(database, client) as made:
        await lost(scenarios.cancelled_before_commit(made, made.two.client.after("begin")))


async def test_beginning_once(sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A barrier that has run out is not set again."""
    async with (
        databases.opened(sqlite.engine.url, isolation_level="AUTOCOMMIT") as database,
        world(database, client, barrier=10_000) as made,
    ):
        await lost(scenarios_commits.autocommit_again(made, monkeypatch))
