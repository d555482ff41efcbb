"""The races prove something: with one mechanism taken out, the race that it decides is lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from redis.asyncio import Redis

import fastrdb.protocol.store
from benchmarks.consistency.seeded_bugs import seed
from fastrdb import Cache
from fastrdb.near.cache import NearCache
from fastrdb.protocol import Busy
from fastrdb.testing import EmbeddedServer
from tests.near import test_functions as whole
from tests.races.mechanisms import label, original, without
from tests.races.scenarios import commits, fills, near, reloads, sessions
from tests.races.scenarios.followed import Followed, found_by_a_load, moved_since_it_was_loaded
from tests.races.seams import Change
from tests.support.servers import databases
from tests.support.servers.databases import Database, ServerDatabase
from tests.support.world.near import Nearby, Observed, nearby, set_each
from tests.support.world.world import Scenario, World, pooled, world

Race = Callable[[Nearby], Coroutine[Any, Any, None]]
RaceOfFollowed = Callable[[Followed], Coroutine[Any, Any, None]]


async def lost(race: Coroutine[Any, Any, None]) -> None:
    """Expect the race to end with a wrong answer."""
    with pytest.raises(AssertionError):
        await race


def pairs(mutants: dict[Change, list[Any]]) -> list[Any]:
    """Return each change with each of its races, for `parametrize`."""
    return [
        pytest.param(change, race, id=f"{change}: {race.__name__}")
        for change, races in mutants.items()
        for race in races
    ]


# --- on SQLite


ON_SQLITE: dict[Change, list[Scenario]] = {
    without("lease-check", script="fill"): [
        fills.stale_fill,
        fills.lease_expired,
        fills.zombie_fill,
        fills.zombie_acquire,
        commits.result_prefix,
    ],
    without("lease-check", script="end"): [sessions.put_against_a_writer],
    without("lease-indexed"): [fills.stale_fill, fills.joiner],
    without("write-indexed"): [sessions.put_against_a_writer],
    without("barrier-set"): [fills.refill_before_commit, commits.hidden_session, commits.connection_outside],
    without("barrier-check"): [fills.refill_before_commit, fills.window_after_commit, fills.zombie_acquire],
    without("barriers-stood"): [fills.lapsed_barriers, fills.lapsed_barriers_during_a_load],
    without("second-sweep"): [fills.lapsed_barriers, fills.lapsed_barriers_during_a_load],
    without("repairs"): [fills.missed_commit],
    without("sweep-deletes-leases"): [fills.stale_fill, fills.joiner],
    without("sweep-deletes-entries"): [fills.window_after_commit, commits.raises_after_its_commit],
    without("release-checks-token"): [fills.release_spares_others],
    without("own-lease-granted-again"): [fills.lost_reply],
    without("lease-has-moment"): [fills.late_copy],
    without("verified-twice"): [reloads.verified_across_a_write],
    without("rule-1-own-writes"): [sessions.own_writes],
    without("changed-sessions-joined"): [commits.changed_in_another_task],
    without("call-covers-commits"): [commits.hidden_session, commits.connection_inside],
    without("older-transaction-covered"): [commits.older_hidden_session, commits.connection_outside],
    without("all-sessions-of-a-transaction"): [commits.joined_and_open],
    without("result-covered"): [commits.raises_before_its_result],
    without("only-writes-carry"): [commits.read_only_commit],
    without("savepoints-counted"): [sessions.savepoint_that_commits],
    without("undone-puts-dropped"): [sessions.savepoint_rolled_back],
}


@pytest.mark.parametrize(("change", "race"), pairs(ON_SQLITE))
async def test_race_is_lost(w: World, monkeypatch: pytest.MonkeyPatch, change: Change, race: Scenario) -> None:
    """A reader gets a wrong answer."""
    w.change(change, monkeypatch)
    await lost(race(w))


async def test_race_is_lost_when_any_load_is_joined(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """A load that began before a commit answers a call that came after it."""
    acquire = original("join-by-token")

    async def join(loading: Any, tokens: dict[str, str]) -> Any:
        others = [token for token in loading._flights.by_token if token not in tokens.values()]
        return dict.fromkeys(tokens, Busy(others[0])) if others else await acquire(loading, tokens)

    without("join-by-token", join).apply(monkeypatch.setattr)
    await lost(fills.joiner(w))


@pytest.mark.parametrize(
    "race",
    [sessions.identity_map, sessions.identity_map_by_get, sessions.identity_map_by_relationship],
    ids=label,
)
async def test_race_is_lost_when_the_identity_map_answers(
    w: World, monkeypatch: pytest.MonkeyPatch, race: Scenario
) -> None:
    """Rule 3: a load stores a row that its session loaded long ago."""
    without("rule-3-identity-lookup").apply(monkeypatch.setattr)
    without("rule-3-fresh-reads").apply(monkeypatch.setattr)
    await lost(race(w))


@pytest.mark.parametrize(
    "race",
    [
        fills.refill_before_commit,
        fills.deleted_before_commit,
        sessions.put_before_a_writer,
        commits.hidden_session,
        commits.connection_inside,
        commits.older_hidden_session,
        sessions.savepoint_that_commits,
    ],
    ids=label,
)
async def test_race_is_lost_when_redis_is_asked_after_commit(
    w: World, monkeypatch: pytest.MonkeyPatch, race: Scenario
) -> None:
    """The writer does nothing before COMMIT, and all of it afterwards."""
    without("begin-before-commit").apply(monkeypatch.setattr)
    with pytest.raises((AssertionError, TimeoutError)):
        await race(w)


async def test_race_is_lost_when_a_cancelled_transaction_stays_open(
    sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next COMMIT of the connection publishes what was cancelled."""
    without("cancelled-is-undone").apply(monkeypatch.setattr)
    async with pooled(sqlite) as database, world(database, client) as made:
        await lost(fills.cancelled_before_commit(made, made.two.client.after("begin")))


@pytest.mark.parametrize("race", [commits.autocommit, commits.autocommit_put, commits.autocommit_by_hand], ids=label)
async def test_race_is_lost_when_autocommit_counts_as_a_transaction(
    sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch, race: Scenario
) -> None:
    """The writer does nothing before a statement that commits by itself."""
    without("autocommit-noticed").apply(monkeypatch.setattr)
    async with autocommitting(sqlite) as database, world(database, client) as made:
        await lost(race(made))


async def test_race_is_lost_when_a_barrier_has_run_out(
    sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer sets the barrier again before its second statement, unless it takes the first one for standing."""
    async with autocommitting(sqlite) as database, world(database, client, barrier=10_000) as made:
        await lost(commits.autocommit_again(made, monkeypatch))


def autocommitting(sqlite: Database) -> Any:
    """Open the database again, in AUTOCOMMIT."""
    return databases.opened(sqlite.engine.url, isolation_level="AUTOCOMMIT")


# --- of a cache that follows writes


@pytest.fixture
async def f(sqlite: Database, following: Cache) -> Followed:
    """Provide rows, and a cache that follows what is written to them."""
    made = Followed(sqlite, following)
    await made.create()
    return made


@pytest.mark.parametrize("race", [moved_since_it_was_loaded, found_by_a_load], ids=label)
async def test_race_of_followed_writes_is_won(f: Followed, race: RaceOfFollowed) -> None:
    """An entry goes with what it shows, also where neither the session nor the function itself has read that."""
    await race(f)


@pytest.mark.parametrize(
    ("bug", "race"),
    [
        ("no-look", moved_since_it_was_loaded),
        ("history-trusted", moved_since_it_was_loaded),
        ("nested-without-tags", found_by_a_load),
    ],
    ids=label,
)
async def test_race_of_followed_writes_is_lost(
    f: Followed, monkeypatch: pytest.MonkeyPatch, bug: str, race: RaceOfFollowed
) -> None:
    """The look, and the tags of what a load finds, in the versions of the consistency run's seeded bugs."""
    seed(bug, monkeypatch.setattr)
    await lost(race(f))


# --- on PostgreSQL


async def test_race_is_lost_when_one_writer_removes_all_barriers(
    postgresql: Database, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two writers have one prefix, and the end of the first leaves the second without a barrier."""
    async with world(postgresql, client) as made:
        made.change(without("barriers-distinguished"), monkeypatch)
        await lost(fills.two_writers(made))


@pytest.mark.parametrize(
    "race", [sessions.old_snapshot, sessions.old_snapshot_ended_inside, sessions.old_snapshot_of_a_leader], ids=label
)
async def test_race_is_lost_when_an_old_snapshot_is_stored(
    postgresql_server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch, race: Scenario
) -> None:
    """Rule 2: a load stores what its REPEATABLE READ transaction sees."""
    without("rule-2-old-snapshot").apply(monkeypatch.setattr)
    without("rule-2-statements").apply(monkeypatch.setattr)
    await postgresql_server.clear()
    async with repeatable_read(postgresql_server) as database, world(database, client) as made:
        await lost(race(made))


async def test_race_is_lost_when_the_snapshot_is_checked_after_the_load_only(
    postgresql_server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The function may have ended by then the transaction that it loaded from."""
    check, asked = original("rule-2-old-snapshot"), []

    async def late(session: Any, since: int) -> Any:
        asked.append(since)
        return await check(session, since) if asked.count(since) > 1 else None

    without("rule-2-old-snapshot", late).apply(monkeypatch.setattr)
    without("rule-2-statements").apply(monkeypatch.setattr)
    await postgresql_server.clear()
    async with repeatable_read(postgresql_server) as database, world(database, client) as made:
        await lost(sessions.old_snapshot_ended_inside(made))


def repeatable_read(server: ServerDatabase) -> Any:
    """Open the database in REPEATABLE READ."""
    return databases.opened(server.url, isolation_level="REPEATABLE READ")


# --- of the near cache alone


@pytest.fixture
async def n(server: EmbeddedServer) -> AsyncIterator[Nearby]:
    """Provide a near cache that is on."""
    async with nearby(server) as made:
        yield made


_pushed = original("near-push")


def deaf(self: NearCache, names: Iterable[bytes] | None) -> None:
    """Ignore pushes, except for the marks by which the test waits for them."""
    _pushed(self, [] if names is None else [name for name in names if b"mark" in name])


@contextmanager
def drop_and_stay_open(self: NearCache, heads: Iterable[bytes] = (), names: Iterable[bytes] = ()) -> Iterator[None]:
    """Drop what an own invalidation reaches, and let it come back before Redis has done it."""
    for name in names:
        self._drop(name.decode())
    yield


@contextmanager
def drop_entries_only(self: NearCache, heads: Iterable[bytes] = (), names: Iterable[bytes] = ()) -> Iterator[None]:
    """Drop entries, and spare the tokens of values that are on their way."""
    for name in names:
        if (kept := self._kept.pop(name.decode(), None)) is not None:
            self._account(name.decode(), kept)
    yield


NEAR: dict[Change, list[Race]] = {
    without("near-token-check", "if key not in self._tokens:"): [near.aba],
    without("near-token-check"): [near.push_before_reply, near.aba, near.read_across_own_write],
    without("near-change-takes-token"): [near.push_before_reply],
    without("near-push", deaf): [near.foreign_write, near.flushed, near.expiry, near.storm],
    without("near-flush"): [near.flushed],
    without("near-signs-of-life"): [near.black_hole_down, near.black_hole_up, near.late_pushes],
    without("near-dropped-on-loss"): [near.killed, near.cut],
    without("near-entry-ttl"): [near.expiry],
    without("near-key-tracked"): [near.new_head],
    without("near-shut"): [near.own_write, near.read_during_own_write],
    without("near-shut", drop_and_stay_open): [near.read_during_own_write],
    without("near-shut", drop_entries_only): [near.read_across_own_write],
}


@pytest.mark.parametrize(("change", "race"), pairs(NEAR))
async def test_near_race_is_lost(n: Nearby, monkeypatch: pytest.MonkeyPatch, change: Change, race: Race) -> None:
    """A read of the near cache gives what is no longer in Redis."""
    change.apply(monkeypatch.setattr)
    await lost(race(n))


async def test_near_race_is_lost_when_own_pushes_are_ignored(n: Nearby, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process keeps what it wrote and takes the next push of that key for its own, which was another process's."""
    echoes: set[bytes] = set()

    async def write(self: Nearby, values: dict[str, bytes]) -> None:
        tokens = {key: self.near.begin(key) for key in values}
        echoes.update(key.encode() for key in values)
        await set_each(self.client, values)
        for key, value in values.items():
            self.keep(tokens[key], (value, -1))

    def pushed(self: NearCache, names: Iterable[bytes] | None) -> None:
        heard = [name for name in names or () if name not in echoes]
        echoes.difference_update(names or ())
        _pushed(self, heard)

    monkeypatch.setattr(Nearby, "write", write)
    without("near-push", pushed).apply(monkeypatch.setattr)
    await lost(near.own_and_foreign(n))


async def test_near_cache_is_off_when_pings_are_not_sent(n: Nearby, monkeypatch: pytest.MonkeyPatch) -> None:
    """After a heartbeat without a ping its entries are not used."""
    without("near-heartbeat", lambda *_: asyncio.get_running_loop().create_future()).apply(monkeypatch.setattr)
    n.tracking._task.cancel()  # type: ignore[union-attr]
    await n.near.until(lambda: not n.on)
    n.start()
    await n.opened()
    n.clock.advance(n.heartbeat)
    assert not n.on


# --- of two processes with near caches


@pytest.fixture
async def both_near(sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[World]:
    """Provide a world of two processes, each with a near cache."""
    monkeypatch.setattr(fastrdb.protocol.store, "NearCache", Observed)
    async with world(sqlite, client, near=True) as made:
        yield made


@pytest.mark.parametrize("kind", ["write", "save", "refresh", "invalidate", "cache.invalidate"])
async def test_near_race_is_lost_when_own_invalidations_wait_for_their_push(
    both_near: World, server: EmbeddedServer, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """A process reads what it has replaced itself."""
    without("near-shut").apply(monkeypatch.setattr)
    await lost(whole.test_ones_own_write_with_slow_pushes(both_near, server, kind))


async def test_near_race_is_lost_when_a_session_has_written(both_near: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rule 1: the near cache answers the session with another row than its own."""
    without("rule-1-own-writes").apply(monkeypatch.setattr)
    await lost(whole.test_a_session_that_has_written(both_near))


async def test_near_race_is_lost_when_the_server_has_other_data(
    both_near: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The near cache answers with what the old server had."""
    without("blockers-respected").apply(monkeypatch.setattr)
    await lost(whole.test_a_server_with_other_data(both_near))


async def test_near_race_is_lost_when_objects_have_no_owner(both_near: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two functions with one key return each other's objects."""

    def of_any_owner(entries: Any, kept: Any) -> Any:
        return kept.value

    without("near-owner", of_any_owner).apply(monkeypatch.setattr)
    async with Cache(both_near.one.client, near=True, timeout=5) as cache:
        await lost(whole.test_two_functions_one_key(cache, both_near.one.client))


async def test_near_race_is_lost_when_mutable_objects_are_shared(
    both_near: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The next caller gets what the one before has changed."""
    without("immutable-shared-only").apply(monkeypatch.setattr)
    async with Cache(both_near.one.client, near=True, timeout=5) as cache:
        await lost(whole.test_what_a_caller_changes_inside_is_its_own(cache, both_near.one.client))
