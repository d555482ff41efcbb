"""The watcher: what it makes of changes in Redis, and what its death leaves behind."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from fastrdb import Cache, CacheUnavailableError, Heartbeat, Inspector, OptionError
from fastrdb.keys import ANYTHING, row_tag, table_tag
from fastrdb.protocol import Fill, Store
from fastrdb.testing import FaultyClient
from fastrdb.watch import Journal, Poll, Watcher, ages, columns_in_use, source_of
from fastrdb.watch import watcher as watcher_module
from fastrdb.watch.source import Images, NotInstalledError
from tests.support.waiting import until
from tests.watch.conftest import Watched

Entries = Mapping[str, tuple[str, ...]]


async def store_entries(client: Redis, entries: Entries, cache: Cache) -> None:
    """Store entries with tags, as loads do."""
    store: Store = cache.runtime.store(client)
    granted: dict[str, Any] = await store.acquire(client, dict.fromkeys(entries, "t" * 32), tagged=True)
    fills = [Fill(key, granted[key].lease, b"1", 60_000, tags, granted[key].since) for key, tags in entries.items()]
    assert await store.fill(client, fills) == [True] * len(fills)


def tag(table: str, column: str, value: Any) -> str:
    """Return a tag that there must be."""
    found = row_tag(table, column, value)
    assert found is not None
    return found


@pytest.fixture
def cache(client: Redis) -> Cache:
    """Return the cache of an application."""
    return Cache(client, on_error="raise")


async def test_a_change_deletes_what_depends_on_it_and_nothing_else(
    watched: Watched, client: Redis, cache: Cache
) -> None:
    """Where the triggers report values, the reach is that of rows."""
    await watched.install()
    watcher = Watcher(watched.source, cache)
    await watcher.poll()
    await store_entries(
        client,
        {
            "user:1": (tag("users", "id", 1),),
            "user:3": (tag("users", "id", 3),),
            "org:1": (tag("users", "org_id", 1),),
            "all": (table_tag("users"),),
            "orgs": (table_tag("orgs"),),
        },
        cache,
    )
    await watched.write("UPDATE users SET bio = 'new' WHERE id = 1")
    poll = await watcher.poll()
    assert poll is not None
    assert poll.found == 1
    assert sorted(await client.keys("[uoa]*")) == [b"orgs", b"user:3"]
    assert set(await columns_in_use(cache)) == {"users:id", "users:org_id"}


@pytest.mark.parametrize("watchable", ["postgresql"], indirect=True)
async def test_many_changes_of_one_poll_name_their_rows(watched: Watched, client: Redis, cache: Cache) -> None:
    """One invalidation of too many names would drop what depends on any row of the table."""
    await watched.install()
    watcher = Watcher(watched.source, cache)
    await watcher.poll()
    tags = {f"user:{number}": (tag("users", "id", number),) for number in (150, 999)}
    await store_entries(client, tags, cache)
    await watched.write(*(f"INSERT INTO users VALUES ({number}, 1, 'n{number}@x', '')" for number in range(100, 200)))
    await watcher.poll()
    assert await client.keys("user:*") == [b"user:999"]


@pytest.mark.parametrize("watchable", ["postgresql", "mariadb", "binlog", "mysql", "mysql_binlog"], indirect=True)
async def test_one_watcher_leads_and_another_takes_over(watched: Watched) -> None:
    """The lead is a lock of the session, which ends with its connection."""
    await watched.install()
    second = source_of(watched.database.engine)
    try:
        assert not await second.lead()
        assert (await second.status(None)).leader is not None
        await watched.source.close()
        await until(second.lead)
    finally:
        await second.close()


@pytest.mark.parametrize("watchable", ["postgresql", "mariadb", "binlog", "mysql", "mysql_binlog"], indirect=True)
async def test_of_two_watchers_one_leads_and_the_other_goes_on(watched: Watched, client: Redis, cache: Cache) -> None:
    """The second begins at the position of the first, so nothing is lost or invalidated twice."""
    await watched.install()
    first, second = Watcher(watched.source, cache), Watcher(source_of(watched.database.engine), cache)
    await first.poll()
    assert await second.poll() is None
    await watched.source.close()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    polls = list[Poll]()

    async def taken() -> bool:
        if (poll := await second.poll()) is not None:
            polls.append(poll)
        return bool(polls)

    await until(taken)
    await second.source.close()
    assert [(poll.lost, poll.found) for poll in polls] == [("", 1)]


@pytest.mark.parametrize("watchable", ["postgresql", "mariadb", "binlog", "mysql", "mysql_binlog"], indirect=True)
async def test_a_slow_transaction_is_not_skipped(watched: Watched) -> None:
    """Its row has the lower id, and is committed after the poll that has read a higher one."""
    await watched.install()
    async with watched.database.engine.connect() as slow, slow.begin():
        await slow.execute(text("UPDATE users SET bio = 'slow' WHERE id = 1"))
        await watched.write("UPDATE users SET bio = 'fast' WHERE id = 2")
        assert (await watched.changes())["users"]["id"] == {"2"}
        assert await watched.changes() == {}
    assert (await watched.changes())["users"]["id"] == {"1"}
    await watched.source.clean(str(watched.position))
    assert await watched.changes() == {}


async def test_the_first_watcher_invalidates_everything_and_the_next_goes_on(
    watched: Watched, client: Redis, cache: Cache
) -> None:
    """Changes before the first are not in the outbox; the second begins where the first ended, however long ago."""
    await watched.install()
    await store_entries(client, {"user:1": (tag("users", "id", 1),), "user:2": (tag("users", "id", 2),)}, cache)
    first = Watcher(watched.source, cache)
    assert (await first.poll()).lost  # type: ignore[union-attr]
    assert await client.keys("user:*") == []
    await watched.source.close()
    await store_entries(client, {"user:1": (tag("users", "id", 1),), "user:2": (tag("users", "id", 2),)}, cache)
    await watched.write("UPDATE users SET bio = 'while nobody watches' WHERE id = 1")
    second = Watcher(watched.source, cache)
    await until(watched.source.lead)
    poll = await second.poll()
    assert poll is not None
    assert (poll.lost, poll.found) == ("", 1)
    assert await client.keys("user:*") == [b"user:2"]


@pytest.mark.parametrize(
    "watchable", ["sqlite", "postgresql", "binlog", "mysql_binlog"], indirect=True
)  # an outbox is read once
async def test_a_watcher_killed_before_its_position_is_stored_repeats_the_change(
    watched: Watched, client: Redis, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between Redis and its own bookkeeping: the change is handed over twice, and never not at all."""
    await watched.install()
    watcher = Watcher(watched.source, cache)
    await watcher.poll()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    with monkeypatch.context() as patch:

        async def killed(self: Journal, position: str, moment: int | None) -> None:
            raise asyncio.CancelledError

        patch.setattr(Journal, "save", killed)
        with pytest.raises(asyncio.CancelledError):
            await watcher.poll()
    await watched.source.close()
    await store_entries(client, {"user:1": (tag("users", "id", 1),)}, cache)
    await until(watched.source.lead)  # the server ends the session after the client's close
    poll = await Watcher(watched.source, cache).poll()
    assert poll is not None
    assert poll.found == 1
    assert await client.keys("user:*") == []


async def test_without_redis_the_position_stays(watched: Watched, client: Redis, cache: Cache) -> None:
    """The change waits in the outbox until Redis has taken it."""
    await watched.install()
    faulty = FaultyClient(client)
    async with Cache(faulty) as own:
        watcher = Watcher(watched.source, own)
        await watcher.poll()
        before = await watcher.journal.position()
        await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
        faulty.fail_with(on="begin")
        with pytest.raises(CacheUnavailableError, match="Redis has missed"):
            await watcher.poll()
        assert await watcher.journal.position() == before
        faulty.heal()
        polls = list[Poll]()

        async def taken() -> bool:
            with contextlib.suppress(CacheUnavailableError):  # Redis is skipped for a while, where it has failed often
                if (poll := await watcher.poll()) is not None:
                    polls.append(poll)
            return bool(polls)

        await until(taken)
        assert [poll.found for poll in polls] == [1]


@pytest.mark.parametrize(
    "watchable", ["sqlite", "postgresql", "mariadb", "binlog", "mysql", "mysql_binlog"], indirect=True
)
async def test_a_watcher_without_redis_for_long_loses_nothing(watched: Watched, client: Redis, cache: Cache) -> None:
    """The position and the heartbeat stay; all changes are handed over when Redis answers again."""
    await watched.install()
    faulty = FaultyClient(client)
    async with Cache(faulty, on_error="raise") as own, Watcher(watched.source, own, every=0.005) as watcher:
        await until(partial(_began, watcher))
        tags = {f"user:{number}": (tag("users", "id", number),) for number in (1, 2, 3)}
        await store_entries(client, tags, cache)
        faulty.fail_with()
        await until(partial(_troubled, watcher))
        key = cache.runtime.store(client).keyspace.watch
        before = await client.hgetall(key)
        tries = len(faulty.log)
        for number in (1, 2):
            await watched.write(f"UPDATE users SET bio = 'x' WHERE id = {number}")

        async def tried_again() -> bool:
            return len(faulty.log) >= tries + 2

        await until(tried_again)
        assert await client.hgetall(key) == before
        assert len(await client.keys("user:*")) == 3
        faulty.heal()

        async def caught_up() -> bool:
            return await client.keys("user:*") == [b"user:3"]

        await until(caught_up)


async def _troubled(watcher: Watcher) -> bool:
    """Return whether the watcher has met a trouble, and does not lead."""
    return watcher._telemetry.is_troubled


async def _began(watcher: Watcher) -> bool:
    """Return whether a first poll is in Redis."""
    return await watcher.journal.position() is not None


async def test_a_watcher_runs_in_an_application_until_the_block_ends(
    watched: Watched, client: Redis, cache: Cache
) -> None:
    """Its heartbeat is in Redis, and the next watcher may lead at once."""
    await watched.install()
    watcher = Watcher(watched.source, cache, every=0.01)
    async with watcher:
        await until(partial(_began, watcher))
        assert list(await ages(cache)) == [watched.source.name]
    assert await Watcher(watched.source, cache).poll() is not None


@pytest.mark.parametrize("watchable", ["sqlite", "postgresql", "mariadb", "mysql"], indirect=True)
async def test_a_watcher_with_nothing_installed_fails_at_the_start(watched: Watched, cache: Cache) -> None:
    """The error says what to do, and the block does not begin."""
    watcher, begins = Watcher(watched.source, cache), False
    with pytest.raises(OptionError, match="run `fastrdb watch install`"):
        async with watcher:
            begins = True
    assert not begins
    await watched.install()
    async with watcher:
        assert await watcher.journal.position() is not None


@pytest.mark.parametrize("watchable", ["sqlite", "postgresql", "mariadb", "mysql"], indirect=True)
async def test_a_watcher_outlives_an_uninstallation(
    watched: Watched, client: Redis, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some migrations of MariaDB and SQLite need one, while applications with watchers run."""
    monkeypatch.setattr(watcher_module, "_RETRY_S", 0.01)
    await watched.install()
    await watched.source.close()
    async with Watcher(watched.database.engine, cache) as watcher:
        await watched.source.run(await watched.source.uninstall_sql())
        refused = asyncio.Event()

        def note(error: Exception) -> None:
            if isinstance(error, NotInstalledError):
                refused.set()

        monkeypatch.setattr(watcher._telemetry, "failed", note)
        await asyncio.wait_for(refused.wait(), 10)
        await watched.source.run(await watched.source.install_sql())
        await until(partial(_leads, watcher))
        await store_entries(client, {"user:1": (tag("users", "id", 1),)}, cache)
        await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
        await until(partial(_is_gone, client, "user:1"))


async def _leads(watcher: Watcher) -> bool:
    return watcher.leads


async def _is_gone(client: Redis, key: str) -> bool:
    return await client.get(key) is None


@pytest.mark.parametrize("watchable", ["sqlite"], indirect=True)
async def test_a_cancellation_at_the_end_of_the_block_is_not_swallowed(watched: Watched, cache: Cache) -> None:
    """At each moment until the block has ended; the watcher ends all the same."""
    await watched.install()
    for moment in range(8):
        watcher, reached = Watcher(watched.source, cache), asyncio.Event()

        async def block(watcher: Watcher = watcher, reached: asyncio.Event = reached) -> None:
            async with watcher:
                reached.set()

        task = asyncio.create_task(block())
        await reached.wait()
        background = watcher._task
        for _ in range(moment):
            await asyncio.sleep(0)
        had_ended = task.done()
        task.cancel()
        await asyncio.wait({task})
        assert task.cancelled() or had_ended, moment
        if background is not None:
            await asyncio.wait({background})


@pytest.mark.parametrize("watchable", ["sqlite"], indirect=True)
async def test_an_application_starts_while_its_database_is_away(
    watched: Watched, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The watcher tries on in the background; a first poll that takes long is not waited for, and not cut off."""
    await watched.install()
    original, go = watched.source.poll, asyncio.Event()

    async def away(position: str | None, images: Images) -> Poll:
        raise ConnectionRefusedError

    async def slow(position: str | None, images: Images) -> Poll:
        await go.wait()
        return await original(position, images)

    for poll in (away, slow):
        monkeypatch.setattr(watched.source, "poll", poll)
        monkeypatch.setattr(watcher_module, "_START_S", 0.05 if poll is slow else 60.0)
        go.clear()
        watcher = Watcher(watched.source, cache)
        async with watcher:
            assert await watcher.journal.position() is None
            monkeypatch.setattr(watched.source, "poll", original)
            go.set()
            await until(partial(_began, watcher))
        await watcher.journal.forget()


@pytest.mark.parametrize("watchable", ["sqlite"], indirect=True)
async def test_a_watcher_ends_although_a_library_has_swallowed_the_cancellation(
    watched: Watched, cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.12 `asyncio.wait_for` does so, where what it waits for ends at the same time."""
    await watched.install()
    original, reached = watched.source.poll, asyncio.Event()

    async def swallowing(position: str | None, images: Images) -> Poll:
        reached.set()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.Event().wait()
        return await original(position, images)

    watcher = Watcher(watched.source, cache)
    async with watcher:
        monkeypatch.setattr(watched.source, "poll", swallowing)
        await reached.wait()
        monkeypatch.setattr(watched.source, "poll", original)
    assert await watcher.journal.position() is not None


@pytest.mark.parametrize("watchable", ["postgresql"], indirect=True)
async def test_a_cache_that_follows_writes_does_not_follow_those_of_a_watcher(
    watched: Watched, client: Redis, cache: Cache
) -> None:
    """A watcher inside of an application deletes what it has read; that changes nothing that an entry depends on."""
    await watched.install()
    async with Cache(client, auto=True) as following:
        source = watched.source
        await watched.changes()
        with following.untracked():
            await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
        await watched.changes()
        await store_entries(client, {"any": (ANYTHING,)}, cache)
        await source.clean(str(watched.position))
        await source.mark(str(watched.position))
        await source.run(await source.install_sql())
        await watched.changes()
        assert await client.exists("any")
        await watched.write("UPDATE users SET bio = 'y' WHERE id = 1")
        assert not await client.exists("any")


async def test_entries_are_bypassed_while_no_watcher_is_alive(watched: Watched, client: Redis) -> None:
    """`watched` bounds how old an answer may be, also with the watcher dead."""
    cache, calls = Cache(client, watched=60), list[int]()

    @cache.cached("number:{number}")
    async def number(number: int) -> int:
        calls.append(number)
        return number

    store = cache.runtime.store(client)
    bound = store.watched
    assert bound is not None

    async def ask() -> bool:
        before = len(calls)
        assert await number(1) == 1
        return len(calls) > before

    await bound.check(client)
    assert await ask()
    journal = Journal(cache, "db")
    await journal.save("1", await journal.clock())
    await bound.check(client)
    await ask()
    assert not await ask()
    await client.hset(store.keyspace.watch, "db\0alive", "0")
    await bound.check(client)
    assert await ask()
    await cache.aclose()


async def test_explain_shows_the_heartbeat_and_whether_entries_are_bypassed_because_of_it(client: Redis) -> None:
    """It looks for itself: what it shows is what the next call meets."""
    async with Cache(client, watched=60) as cache, Cache(client) as unbound:

        @cache.cached("number:{number}", shared=True)
        async def number(number: int) -> int:
            return number

        @unbound.cached("number:{number}", shared=True)
        async def unwatched(number: int) -> int:
            return number

        journal = Journal(cache, "db")
        bypassed = ("bypass", ("the watcher of writes from outside is silent",))
        found = await number.explain(1)
        assert (found.state, found.reasons, found.watched) == (*bypassed, Heartbeat(None, 60.0))
        assert found.watched is not None
        assert found.watched.late
        assert (await unwatched.explain(1)).watched is None
        assert not [each for each in await Inspector(client).reasons("number:1") if "watcher" in each]

        await journal.save("1", await journal.clock())
        found = await number.explain(1)
        assert (found.state, found.watched is not None and found.watched.late) == ("miss", False)
        await number(1)
        assert (await number.explain(1)).state == "hit"

        await journal.save("1", await journal.clock() - 3_600_000)
        found = await number.explain(1)
        assert (found.state, found.reasons) == bypassed
        assert found.watched is not None
        assert found.watched.age is not None
        assert found.watched.age >= 3_600
        assert found.watched.late
        (line,) = [each for each in await Inspector(client).reasons("number:1") if "watcher" in each]
        assert line.startswith("the watcher of db is 3600.")


async def test_a_cache_without_a_client_cannot_watch(watched: Watched) -> None:
    """The error says what is missing."""
    with pytest.raises(OptionError, match="client of its own"):
        Watcher(watched.database.engine, Cache())


async def test_two_databases_have_a_position_each(client: Redis, cache: Cache) -> None:
    """One namespace may have watchers of several databases; the slowest bounds what is read."""
    for name, position in (("a", "1"), ("b", "2")):
        await Journal(cache, name).save(position, 1)
    assert (await Journal(cache, "a").position(), await Journal(cache, "b").position()) == ("1", "2")
    assert sorted(await ages(cache)) == ["a", "b"]
    assert await Journal(cache, "a").forget()
    assert not await Journal(cache, "a").forget()
    assert list(await ages(cache)) == ["b"]


async def test_a_heartbeat_is_of_the_moment_before_its_poll(watched: Watched, client: Redis, cache: Cache) -> None:
    """A commit in the middle of a poll is not in Redis when the poll ends, so a heartbeat of the end would be wrong."""
    await watched.install()
    watcher = Watcher(watched.source, cache)
    moments = list[int]()
    original = watched.source.poll

    async def slow(position: str | None, images: Images) -> Poll:
        poll = await original(position, images)
        started = await watcher.journal.clock()
        while (now := await watcher.journal.clock()) < started + 20:  # the time of Redis, and not of this machine
            moments.append(now)
        return poll

    watched.source.poll = slow  # type: ignore[method-assign]
    await watcher.poll()
    alive = int(await client.hget(cache.runtime.store(client).keyspace.watch, f"{watched.source.name}\0alive"))  # type: ignore[arg-type]
    assert alive <= moments[0]


async def test_entries_are_bypassed_without_another_check_when_the_heartbeat_is_too_old(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once, even if the process was stopped meanwhile: a timer would fire after the first reads."""
    cache = Cache(client, watched=60)
    store = cache.runtime.store(client)
    bound, journal, now = store.watched, Journal(cache, "db"), monotonic()
    assert bound is not None
    monkeypatch.setattr("fastrdb.protocol.watched.monotonic", lambda: now)
    await journal.save("1", await journal.clock() - 30_000)
    await bound.check(client)
    assert not store.obstacles
    monkeypatch.setattr("fastrdb.protocol.watched.monotonic", lambda: now + 31)
    assert store.obstacles
    assert bound in store.obstacles
    await cache.aclose()


async def test_a_watcher_needs_one_connection_of_the_pool(watched: Watched, cache: Cache) -> None:
    """The application may have taken the others for long, and polls must go on."""
    await watched.install()
    await watched.source.close()
    engine = create_async_engine(watched.database.engine.url, pool_size=1, max_overflow=0, pool_timeout=0.1)
    watcher = Watcher(engine, cache)
    await ended_lead(watcher)
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
    poll = await watcher.poll()
    assert poll is not None
    assert poll.found == 1
    await watcher.source.close()
    await engine.dispose()


@pytest.mark.parametrize("watchable", ["postgresql", "mariadb", "mysql"], indirect=True)
async def test_an_outbox_is_read_for_one_namespace(watched: Watched, client: Redis) -> None:
    """A watcher of another namespace would delete what the first has not read: it is refused, with what to do."""
    await watched.install()
    async with Cache(client, namespace="one") as one, Cache(client, namespace="two") as two:
        first = Watcher(watched.source, one)
        second = Watcher(source_of(watched.database.engine), two)
        await first.poll()
        assert await second.poll() is await second.poll() is None  # the session of an earlier leader may be ending
        with pytest.raises(OptionError, match=r"another namespace, and not for 'two'.*use its namespace"):
            await second.poll()
        await second.source.close()


@pytest.mark.parametrize("watchable", ["postgresql", "mariadb", "mysql"], indirect=True)
async def test_a_position_is_lost_after_the_outbox_was_read_for_another_namespace(
    watched: Watched, client: Redis
) -> None:
    """The other watcher has deleted changes that this one has not read, so everything is invalidated."""
    await watched.install()
    await watched.source.close()
    async with Cache(client, namespace="one") as one, Cache(client, namespace="two") as two:
        for cache, lost in ((one, True), (two, True), (one, True), (one, False)):
            watcher = Watcher(source_of(watched.database.engine), cache)
            poll = await ended_lead(watcher)
            assert bool(poll.lost) is lost
            await watcher.source.close()


async def ended_lead(watcher: Watcher) -> Poll:
    """Poll as soon as the session of an earlier leader has ended, which the server does after the client's close."""
    polls = list[Poll]()

    async def taken() -> bool:
        with contextlib.suppress(OptionError):
            if (poll := await watcher.poll()) is not None:
                polls.append(poll)
        return bool(polls)

    await until(taken)
    return polls[0]


@pytest.mark.parametrize("watchable", ["binlog", "mysql_binlog"], indirect=True)
async def test_a_binary_log_is_read_for_any_number_of_namespaces(watched: Watched, client: Redis) -> None:
    """No watcher deletes from the log, so each namespace has a leader and a position of its own."""
    async with Cache(client, namespace="one") as one, Cache(client, namespace="two") as two:
        watchers = [Watcher(source_of(watched.database.engine), cache) for cache in (one, two)]
        for watcher in watchers:
            await watcher.poll()
        await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
        for watcher in watchers:
            poll = await watcher.poll()
            assert poll is not None
            assert (poll.lost, poll.found) == ("", 1)
            await watcher.source.close()


@pytest.mark.parametrize("watchable", ["sqlite"], indirect=True)
async def test_a_watcher_of_sqlite_notices_that_another_one_has_deleted_what_it_has_not_read(watched: Watched) -> None:
    """Ids have no gaps, so a gap is a loss."""
    await watched.install()
    await watched.write("UPDATE users SET bio = 'x' WHERE id = 1", "UPDATE users SET bio = 'x' WHERE id = 2")
    await watched.write("DELETE FROM fastrdb_outbox WHERE id <= (SELECT min(id) + 1 FROM fastrdb_outbox)")
    assert "emptied" in (await watched.poll())[0].lost
    await watched.write("UPDATE users SET bio = 'y' WHERE id = 2")
    assert (await watched.changes())["users"]["id"] == {"2"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("postgresql+asyncpg://u:p@a/shop", "postgresql+asyncpg://u:p@b/shop"),
        ("postgresql+asyncpg://u:p@a/shop", "postgresql+asyncpg://u:p@a:6432/shop"),
        ("mysql+aiomysql://u:p@a/shop", "mysql+aiomysql://u:p@b/shop"),
        ("sqlite+aiosqlite:///a/shop.db", "sqlite+aiosqlite:///b/shop.db"),
    ],
)
def test_two_databases_have_two_names(one: str, other: str) -> None:
    """Two servers may have databases of one name; a position of one means nothing for the other."""
    pytest.importorskip("aiomysql") if "mysql" in one else None
    assert source_of(create_async_engine(one)).name != source_of(create_async_engine(other)).name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("postgresql+asyncpg://u:p@a/shop", "postgresql+psycopg://other@a:5432/shop"),
        ("mysql+aiomysql://u:p@a/shop", "mariadb+aiomysql://a:3306/shop?charset=utf8mb4"),
        ("sqlite+aiosqlite:///shop.db", f"sqlite+aiosqlite:///{Path('shop.db').absolute()}"),
    ],
)
def test_one_database_has_one_name(one: str, other: str) -> None:
    """Whatever driver, user or options stand in the address."""
    pytest.importorskip("aiomysql") if "mysql" in one else None
    assert source_of(create_async_engine(one)).name == source_of(create_async_engine(other)).name
