"""`stale`, `early`, `fail_safe`: old values at once, reloads before the end, and what helps when the database is away.

Time is never waited for: an entry's life in Redis is set to what it would be by then.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, select, update
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker

from fastrdb import Cache, Event, OptionError, Stats, cached, no_store
from fastrdb.cache import default_cache
from fastrdb.loading.function import with_argument
from fastrdb.testing import GatedClient, Gates
from tests.races.mechanisms import label, without
from tests.races.scenarios import reloads as scenarios_timed
from tests.races.seams import Change
from tests.support.servers.databases import Database
from tests.support.world.items import Base, Item, Loader, Row
from tests.support.world.world import Scenario, World, world

DEAD = ConnectionRefusedError("nobody listens")
ALWAYS = 1e15  # XFetch's beta: every hit is early, however fast the load before was


class Source(Loader):
    """Stands for a database that may be away, may have nothing, and may be held."""

    def __init__(self) -> None:
        super().__init__()
        self.error: Exception | None = None
        self.gates = Gates()
        self.caches = [default_cache]

    async def load(self, number: int) -> Item:
        """Return the item as it is now."""
        await self.gates.arrive("load")
        found = self.item(number)
        if self.error is not None:
            raise self.error
        await self.gates.leave("load")
        return found


class Shop:
    """One cached function, in a process of its own, and its events."""

    def __init__(self, source: Source, client: Redis, **options: Any) -> None:
        self.source, self.client = source, client
        self.heard: list[Event] = []
        self.cache = Cache(hook=self.heard.append)
        source.caches.append(self.cache)

        settings: Any = {"exp": 600, **options}
        decorate: Any = self.cache.cached("item:{number}", **settings)

        @decorate  # type: ignore[untyped-decorator]
        async def get(redis: Redis, number: int) -> Item:
            return await source.load(number)

        self.query: Any = get

    async def get(self) -> str:
        """Return the answer of one call."""
        found: Item = await self.query(self.client, 1)
        return found.name

    async def settled(self) -> None:
        """Wait for what runs in the background."""
        here = self.cache.runtime.here()
        await asyncio.gather(*here.reloads.values())
        await asyncio.gather(*here.tasks)  # what a reload leaves behind: it releases its lease

    @property
    def stats(self) -> Stats:
        """The counts of the function."""
        found: Stats = self.query.stats
        return found


@pytest.fixture
async def source(client: Redis) -> AsyncIterator[Source]:
    """Return a stand-in for a database. Background tasks end before the client is closed."""
    made = Source()
    yield made
    made.gates.open_all()
    for cache in made.caches:
        await cache.aclose()


async def age(client: Redis, left_ms: int, key: str = "item:1") -> None:
    """Shorten the life of the entry, as if time had passed."""
    assert await client.pexpire(key, left_ms)


# --- stale


@pytest.mark.parametrize("option", ["stale", "fail_safe"])
async def test_an_old_value_is_stored_in_no_entry_around(client: Redis, source: Source, option: str) -> None:
    """That entry would keep the old value for its own `exp`."""
    shop = Shop(source, client, **{option: 60})

    @shop.cache.cached("around")
    async def around(redis: Redis) -> str:
        return await shop.get()

    await shop.get()
    await age(client, 30_000)
    source.name, source.error = "b", DEAD if option == "fail_safe" else None
    assert await around(client) == "a"
    assert not await client.exists("around")
    source.error = None
    await shop.settled()
    assert await around(client) == "b"
    assert await client.exists("around")


async def test_the_old_value_at_once_and_the_new_one_behind_it(client: Redis, source: Source) -> None:
    """Past `exp` no call waits: the first one starts a reload, and later ones get the new value."""
    shop = Shop(source, client, stale=60)
    assert await shop.get() == "a"
    assert 650_000 < await client.pttl("item:1") <= 660_000
    source.name = "b"
    assert await shop.get() == "a"
    await age(client, 60_000)
    gate = source.gates.before("load")
    assert await shop.get() == "a"
    await gate.reached()
    assert [await shop.get() for _ in range(3)] == ["a"] * 3
    gate.open()
    await shop.settled()
    assert source.calls == 2
    assert await shop.get() == "b"
    assert 650_000 < await client.pttl("item:1") <= 660_000
    assert shop.stats == Stats(hits=2, misses=1, loads=2, fills=2, stale=4)
    assert await client.keys("fastrdb:lease:*") == []


@pytest.mark.parametrize(("left", "state"), [(60_500, "hit"), (59_999, "stale"), (1_000, "stale"), (0, "miss")])
async def test_exp_and_stale_end_where_they_say(client: Redis, source: Source, left: int, state: str) -> None:
    """Within `exp` a hit, then stale, and when that is over Redis has forgotten it."""
    shop = Shop(source, client, stale=60)
    await shop.get()
    await age(client, left)
    explained = await shop.query.explain(client, 1)
    await shop.get()
    await shop.settled()
    assert explained.state == state
    assert (shop.stats.hits, shop.stats.stale, shop.stats.misses) == {
        "hit": (1, 0, 1),
        "stale": (0, 1, 1),
        "miss": (0, 0, 2),
    }[state]


async def test_one_process_reloads_and_the_others_serve(client: Redis, source: Source) -> None:
    """Caches that share nothing but Redis: one load, and no caller waits for it."""
    shops = [Shop(source, client, stale=60) for _ in range(4)]
    await shops[0].get()
    source.name = "b"
    await age(client, 30_000)
    gate = source.gates.before("load")
    assert [await shop.get() for shop in shops for _ in range(2)] == ["a"] * 8
    await gate.reached()
    await asyncio.gather(*(shop.settled() for shop in shops[1:]))  # each has found the lease taken
    gate.open()
    await shops[0].settled()
    assert source.calls == 2
    assert [await shop.get() for shop in shops] == ["b"] * 4


async def test_a_late_reload_finds_the_entry_renewed(client: Redis, gated: GatedClient, source: Source) -> None:
    """Two have seen the old value, and one has replaced it before the other asks for the lease: one load."""
    slow, quick = Shop(source, gated, stale=60), Shop(source, client, stale=60)
    await quick.get()
    await age(client, 30_000)
    gate = gated.before("acquire")
    await slow.get()
    await gate.reached()
    await quick.get()
    await quick.settled()
    gate.open()
    await slow.settled()
    assert source.calls == 2
    assert slow.stats == Stats(stale=1, hits=1)


async def test_a_cancelled_caller_does_not_take_the_reload_along(client: Redis, source: Source) -> None:
    """It is the cache's: the caller may go when it has its answer."""
    shop = Shop(source, client, stale=60)
    await shop.get()
    source.name = "b"
    await age(client, 30_000)
    gate = source.gates.before("load")

    async def call() -> None:
        await shop.get()
        await asyncio.Event().wait()

    task = asyncio.create_task(call())
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    gate.open()
    await shop.settled()
    assert await client.get("item:1") == b'{"id":1,"name":"b"}'


async def test_closing_the_cache_waits_for_reloads(client: Redis, source: Source) -> None:
    """A running reload comes to its end, and its lease is given back."""
    shop = Shop(source, client, stale=60)
    await shop.get()
    source.name = "b"
    await age(client, 30_000)
    gate = source.gates.before("load")
    await shop.get()
    await gate.reached()
    closing = asyncio.create_task(shop.cache.aclose())
    await asyncio.sleep(0)
    assert not closing.done()
    gate.open()
    await closing
    assert await client.get("item:1") == b'{"id":1,"name":"b"}'
    assert shop.cache.runtime.here().reloads == {}


async def test_closing_the_cache_cuts_off_what_takes_too_long(client: Redis, source: Source) -> None:
    """Its session is closed and its lease given back; the old value stays."""
    shop = Shop(source, client, stale=60)
    await shop.get()
    await age(client, 30_000)
    gate = source.gates.before("load")
    await shop.get()
    await gate.reached()
    await shop.cache.aclose(limit=0)
    assert shop.cache.runtime.here().reloads == {}
    assert await client.keys("*item:1*") == [b"item:1"]


async def test_an_error_in_the_background_is_logged_and_not_raised(
    client: Redis, source: Source, caplog: pytest.LogCaptureFixture
) -> None:
    """Log and hook name the class of the error, whose text may hold values; the next call tries again."""
    shop = Shop(source, client, stale=60)
    await shop.get()
    await age(client, 30_000)
    source.error = ValueError("broken")
    with caplog.at_level(logging.DEBUG, logger="fastrdb"):
        assert await shop.get() == "a"
        await shop.settled()
    said, trace = (record for record in caplog.records if record.name == "fastrdb")
    assert said.message == f"{shop.query.__qualname__}: a reload in the background failed: ValueError"
    assert (said.levelno, trace.levelno) == (logging.WARNING, logging.DEBUG)
    assert f'File "{__file__}"' in trace.message
    assert "ValueError: broken" not in trace.message
    assert shop.heard[-2:] == [
        Event(shop.query.__qualname__, "loaded", "item:1", "ValueError"),
        Event(shop.query.__qualname__, "failed", "item:1", "ValueError"),
    ]
    assert await client.keys("fastrdb:lease:*") == []
    assert await shop.get() == "a"
    await shop.settled()
    assert source.calls == 3


@pytest.mark.parametrize("how", ["no row", "cache_if", "no_store"])
async def test_what_the_database_has_no_more_is_not_served_on(client: Redis, source: Source, how: str) -> None:
    """The reload found no row, or a value that must not be stored: the old one goes."""

    @cached("item:{number}", exp=600, stale=60, cache_if=lambda item: item.name != "secret")
    async def get(redis: Redis, number: int) -> Item:
        if how == "no_store" and source.calls:
            no_store("a preview")
        return await source.load(number)

    await get(client, 1)
    await age(client, 30_000)
    if how == "no row":
        source.error = NoResultFound("gone")
    elif how == "cache_if":
        source.name = "secret"
    assert (await get(client, 1)).name == "a"
    await asyncio.gather(*get.query.cache.here().reloads.values())  # type: ignore[attr-defined]
    assert get.stats.failed == 0
    assert await client.keys("item:*") == []


async def test_a_missing_row_found_in_the_background_is_stored_with_negative_exp(client: Redis, source: Source) -> None:
    """With `negative_exp`, and for that long only: what is not there has no second life."""
    shop = Shop(source, client, stale=60, negative_exp=5)
    await shop.get()
    await age(client, 30_000)
    source.error = NoResultFound("gone")
    await shop.get()
    await shop.settled()
    assert 0 < await client.pttl("item:1") <= 5000
    with pytest.raises(NoResultFound, match="gone"):
        await shop.get()
    assert source.calls == 2
    assert (await shop.query.explain(client, 1)).state == "hit"


async def test_a_reload_is_no_part_of_the_call_around_it(sqlite: Database, gated: GatedClient) -> None:
    """Started inside of a function that writes, its own commit says nothing of what that has written."""
    await sqlite.create(Base)
    seen: ContextVar[str] = ContextVar("seen")
    contexts: list[str] = []
    async with Cache(gated) as cache:

        @cache.cached("row:{number}", schema=Item, stale=60, session_factory=sqlite.sessions.begin)
        async def get(db: AsyncSession, number: int) -> Row:
            contexts.append(seen.get())
            return (await db.execute(select(Row).where(Row.id == number))).scalar_one()

        @cache.invalidates("other:*")
        async def write(db: AsyncSession) -> None:
            await get(db, 1)
            gated.log.clear()
            await asyncio.gather(*cache.runtime.here().reloads.values())
            assert gated.names() == ["acquire", "fill"]

        seen.set("request")
        async with sqlite.sessions() as db:
            await db.execute(insert(Row).values(id=1, name="a"))
            await db.commit()
            await get(db, 1)
        await age(gated, 30_000, "row:1")
        async with sqlite.sessions() as db:
            await write(db)
        assert (get.stats.fills, get.stats.failed) == (2, 0)
        assert contexts == ["request"] * 2  # what the caller has set is there all the same


# --- stale and sessions


@pytest.fixture
async def rows(sqlite: Database) -> Database:
    """Return a database with one row."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        await db.execute(insert(Row).values(id=1, name="a"))
        await db.commit()
    return sqlite


def session_factories(rows: Database) -> dict[str, Callable[[], Any]]:
    """Return a session factory of this kind."""

    @asynccontextmanager
    async def managed() -> AsyncIterator[AsyncSession]:
        async with rows.sessions() as db:
            yield db

    return {
        "async_sessionmaker": rows.sessions,
        "begin": rows.sessions.begin,
        "context manager": managed,
        "class": lambda: AsyncSession(rows.engine),
    }


@pytest.mark.parametrize("kind", ["async_sessionmaker", "begin", "context manager", "class"])
async def test_the_reload_has_a_session_of_its_own(rows: Database, client: Redis, kind: str) -> None:
    """From `session_factory`, and closed afterwards; the caller's is gone by then."""
    cache, used = Cache(client), list[AsyncSession]()

    @cache.cached("row:{number}", schema=Item, stale=60, session_factory=session_factories(rows)[kind])
    async def get(db: AsyncSession, number: int, *, upper: bool = False) -> Row:
        used.append(db)
        return (await db.execute(select(Row).where(Row.id == number))).scalar_one()

    each: list[dict[str, Any]] = [{"number": 1}, {"number": 1, "upper": True}]
    for arguments in each:
        async with rows.sessions() as db:
            await get(db, **arguments)
            await db.rollback()
            await db.execute(update(Row).values(name="b"))
            await db.commit()
        key = get.key(**arguments)
        await age(client, 30_000, key)
        async with rows.sessions() as db:
            assert (await get(db, **arguments)).name == "a"
        await asyncio.gather(*cache.runtime.here().reloads.values())
        assert await client.get(key) == b'{"id":1,"name":"b"}'
        assert used[-1] not in used[:-1]
        assert used[-1] is not db
        assert not used[-1].in_transaction()
        async with rows.sessions() as db:
            await db.execute(update(Row).values(name="a"))
            await db.commit()


async def test_a_session_that_is_none_is_logged(rows: Database, client: Redis) -> None:
    """The value of `session_factory` is checked when it is used: the error names the function."""
    heard = list[Event]()
    cache = Cache(client, hook=heard.append)

    class Nothing:
        async def __aenter__(self) -> int:
            return 3

        async def __aexit__(self, *exc: object) -> None:
            return None

    @cache.cached("row:{number}", schema=Item, stale=60, session_factory=Nothing)
    async def get(db: AsyncSession, number: int) -> Row:
        return (await db.execute(select(Row).where(Row.id == number))).scalar_one()

    async with rows.sessions() as db:
        await get(db, 1)
        await age(client, 30_000, "row:1")
        await get(db, 1)
    await asyncio.gather(*cache.runtime.here().reloads.values())
    assert heard[-1].kind == "failed"
    assert "get: session_factory gave int, which is not an AsyncSession" in heard[-1].reason


async def load(db: AsyncSession, redis: Redis, number: int) -> Item:
    """Stand for a query function."""
    raise LookupError(number)


async def sessionless(redis: Redis, number: int) -> Item:
    """Stand for a query function that opens its own session."""
    raise LookupError(number)


async def dependency() -> AsyncIterator[AsyncSession]:
    """Stand for what FastAPI would make a context manager of."""
    yield AsyncSession()


async def coroutine() -> AsyncSession:
    """Return a session."""
    return AsyncSession()


def test_a_caller_s_session_is_no_session_for_the_background() -> None:
    """Said at decoration, naming function and parameter."""
    with pytest.raises(OptionError, match=r"load: stale=5:.*parameter 'db'.*session_factory="):
        cached("item:{number}", stale=5)(load)
    cached("item:{number}", stale=5)(sessionless)
    cached("item:{number}", stale=5, session_factory=async_sessionmaker())(load)
    cached("item:{number}", early=1, fail_safe=5)(load)


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (sessionless, {"stale": 5, "session_factory": async_sessionmaker()}, "it has no parameter for a session"),
        (load, {"session_factory": async_sessionmaker()}, "there are none without stale=, early= or verify="),
        (load, {"stale": 5, "session_factory": dependency}, r"contextlib\.asynccontextmanager"),
        (load, {"stale": 5, "session_factory": coroutine}, "async, and is not awaited.*returns an AsyncSession"),
        (load, {"stale": 5, "session_factory": "db"}, "must be a function that returns an AsyncSession"),
    ],
)
def test_an_impossible_session_factory_is_refused(function: Any, options: dict[str, Any], message: str) -> None:
    """The error names the function, before anything is called."""
    with pytest.raises(OptionError, match=rf"(load|sessionless).*{message}"):
        cached("item:{number}", **options)(function)


async def test_a_session_in_the_instance_is_found_out_by_the_first_call(rows: Database, client: Redis) -> None:
    """Before anything is read: what an instance has is not known at decoration."""

    class Repository:
        def __init__(self, **own: Any) -> None:
            self.__dict__.update(own)

        @cached("item:{number}", stale=60)
        async def get(self, number: int) -> Item:
            return Item(id=number, name="a")

    async with rows.sessions() as db:
        with pytest.raises(OptionError, match=r"Repository\.get: stale=60:.*session_factory="):
            await Repository(redis=client, db=db).get(1)
    assert await client.keys("item:*") == []
    assert (await Repository(redis=client).get(1)).name == "a"


# --- early


async def test_an_early_caller_reloads_in_its_own_call(client: Redis, source: Source) -> None:
    """And gets what it has loaded; what the choice needs is how long a load took here before."""
    shop = Shop(source, client, early=ALWAYS)
    assert await shop.get() == "a"
    source.name = "b"
    assert await shop.get() == "b"
    assert await client.get("item:1") == b'{"id":1,"name":"b"}'
    assert shop.stats == Stats(misses=1, early=1, loads=2, fills=2)


async def test_a_process_without_loads_is_never_early(client: Redis, source: Source) -> None:
    """A process that does not know how long a load takes leaves it to others."""
    await Shop(source, client).get()
    shop = Shop(source, client, early=ALWAYS)
    assert [await shop.get() for _ in range(3)] == ["a"] * 3
    assert shop.stats == Stats(hits=3)


async def test_chance_decides_which_caller_is_early(
    client: Redis, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """XFetch's formula takes the time left and the pace of loads."""
    shop = Shop(source, client, early=1)
    await shop.get()
    shop.query.query.pace.ms = 10_000.0  # -ln(e^-3) * 10 s = 30 s
    drawn = 1 - 0.049787068367863944
    monkeypatch.setattr(random, "random", lambda: drawn)
    await age(client, 31_000)
    await shop.get()
    assert shop.stats.early == 0
    await age(client, 29_000)
    await shop.get()
    assert shop.stats.early == 1


async def test_one_is_early_and_the_others_serve(client: Redis, source: Source) -> None:
    """Here and in other processes, one caller gets the lease, and the others have a value already."""
    shops = [Shop(source, client, early=ALWAYS) for _ in range(3)]
    for shop in shops:
        await shop.get()
        await client.delete("item:1")
    await shops[0].get()
    calls, source.name = source.calls, "b"
    gate = source.gates.before("load")
    early = asyncio.create_task(shops[0].get())
    await gate.reached()
    assert [await shop.get() for shop in shops for _ in range(2)] == ["a"] * 6
    gate.open()
    assert await early == "b"
    assert source.calls == calls + 1


async def test_with_stale_the_early_reload_is_in_the_background(client: Redis, source: Source) -> None:
    """With `stale`, no call waits."""
    shop = Shop(source, client, early=ALWAYS, stale=60)
    await shop.get()
    source.name = "b"
    assert await shop.get() == "a"
    await shop.settled()
    assert await client.get("item:1") == b'{"id":1,"name":"b"}'
    assert shop.stats == Stats(hits=1, misses=1, early=1, loads=2, fills=2)


async def test_an_early_reload_that_fails_costs_no_answer(client: Redis, source: Source) -> None:
    """If the database is away: what has been seen is within its `exp`. Every other error is the answer."""
    shop = Shop(source, client, early=ALWAYS)
    await shop.get()
    source.error = DEAD
    assert await shop.get() == "a"
    assert (shop.stats.hits, shop.stats.stale) == (1, 0)
    await shop.cache.aclose()  # its lease is given back by then
    source.error = ValueError("broken")
    with pytest.raises(ValueError, match="broken"):
        await shop.get()


async def test_a_session_that_may_not_store_is_not_early(postgresql: Database, client: Redis) -> None:
    """Its snapshot may be older than the lease, which it would take for nothing."""
    await postgresql.create(Base)

    @cached("row:{number}", schema=Item, early=ALWAYS)
    async def get(db: AsyncSession, redis: Redis, number: int) -> Row:
        return (await db.execute(select(Row).where(Row.id == number))).scalar_one()

    async with postgresql.sessions() as db:
        await db.execute(insert(Row).values(id=1, name="a"))
        await db.commit()
        await get(db, client, 1)
    async with postgresql.sessions() as db:
        await db.connection(execution_options={"isolation_level": "REPEATABLE READ"})
        assert (await get(db, client, 1)).name == "a"
        assert (get.stats.early, get.stats.hits) == (0, 1)
        await db.rollback()
        assert (await get(db, client, 1)).name == "a"
        assert (get.stats.early, get.stats.hits) == (1, 1)


# --- fail_safe


async def test_the_old_value_helps_when_the_database_is_away(client: Redis, source: Source) -> None:
    """Past `exp`, and only then; it is not stored again, and what the next load gives is used (R20)."""
    shop = Shop(source, client, fail_safe=60)
    await shop.get()
    source.error = DEAD
    await age(client, 30_000)
    assert await shop.get() == "a"
    assert shop.heard[-1] == Event(shop.query.__qualname__, "stale", "item:1", "ConnectionRefusedError")
    assert await client.pttl("item:1") <= 30_000
    source.error, source.name = None, "b"
    assert await shop.get() == "b"
    assert await client.pttl("item:1") > 600_000
    await shop.cache.aclose()
    assert await client.keys("fastrdb:lease:*") == []


async def test_an_answer_of_the_database_is_no_failure(client: Redis, source: Source) -> None:
    """Whatever else the function raises, is raised."""
    shop = Shop(source, client, fail_safe=60)
    await shop.get()
    await age(client, 30_000)
    for error in (NoResultFound("gone"), ValueError("broken"), LookupError("no")):
        source.error = error
        with pytest.raises(type(error)):
            await shop.get()


async def test_denied_access_is_raised_and_never_an_old_value(client: Redis, source: Source) -> None:
    """PermissionError is an OSError, and still an answer of the function."""
    shop = Shop(source, client, exp=60, fail_safe=300)
    await shop.get()
    await client.pexpire("item:1", 1000)
    source.error = PermissionError("not for this caller")
    with pytest.raises(PermissionError):
        await shop.get()


async def test_fail_safe_without_an_entry_raises(client: Redis, source: Source) -> None:
    """Without an entry the error is raised as it is."""
    shop = Shop(source, client, fail_safe=60)
    source.error = DEAD
    with pytest.raises(ConnectionRefusedError) as caught:
        await shop.get()
    assert caught.value is DEAD


async def test_stale_and_fail_safe_end_each_by_itself(client: Redis, source: Source) -> None:
    """Redis keeps an entry for the longer of the two; when `stale` is over, the caller loads first."""
    shop = Shop(source, client, stale=10, fail_safe=60)
    await shop.get()
    source.error = DEAD
    await age(client, 55_000)  # five seconds past exp
    assert await shop.get() == "a"
    await shop.settled()
    assert (shop.stats.misses, shop.stats.failed) == (1, 1)
    await age(client, 30_000)  # half a minute past exp
    assert await shop.get() == "a"
    assert (shop.stats.misses, shop.stats.failed) == (2, 1)
    assert shop.stats.stale == 2


async def test_an_entry_that_was_invalidated_meanwhile_is_not_served(client: Redis, source: Source) -> None:
    """The load had begun when the write was committed, and then it failed: the error is raised."""
    shop = Shop(source, client, fail_safe=60)
    await shop.get()
    await age(client, 30_000)
    source.error = DEAD
    gate = source.gates.before("load")
    call = asyncio.create_task(shop.get())
    await gate.reached()
    await Cache(client).invalidate("item:*")
    gate.open()
    with pytest.raises(ConnectionRefusedError):
        await call


async def test_a_follower_of_a_failed_load_falls_back_too(client: Redis, source: Source) -> None:
    """The error reaches all followers, and each falls back."""
    shop = Shop(source, client, fail_safe=60)
    await shop.get()
    await age(client, 30_000)
    source.error = DEAD
    gate = source.gates.before("load")
    calls = [asyncio.create_task(shop.get()) for _ in range(3)]
    await gate.reached()
    gate.open()
    assert await asyncio.gather(*calls) == ["a"] * 3
    assert shop.stats.stale == 3


async def test_an_entry_that_came_meanwhile_is_a_hit(client: Redis, source: Source) -> None:
    """Another process could reach the database."""
    shop, other = Shop(source, client, fail_safe=60, wait=0), Shop(Source(), client, fail_safe=60)
    await shop.get()
    await age(client, 30_000)
    source.error = DEAD
    gate = source.gates.before("load")
    call = asyncio.create_task(shop.get())
    await gate.reached()
    other.source.name = "b"
    await client.delete("fastrdb:lease:{item:1}")
    assert await other.get() == "b"
    gate.open()
    assert await call == "b"
    assert (shop.stats.hits, shop.stats.stale) == (1, 0)


async def test_a_session_that_has_written_gets_the_error(rows: Database, client: Redis) -> None:
    """It must not read the cache: its own rows are newer."""
    cache = Cache(client)

    @cache.cached("row:{number}", schema=Item, fail_safe=60)
    async def get(db: AsyncSession, number: int, *, fails: bool = False) -> Row:
        found = (await db.execute(select(Row).where(Row.id == number))).scalar_one()
        if fails:
            await db.execute(update(Row).values(name="b"))
            raise DEAD
        return found

    async with rows.sessions() as db:
        await get(db, 1, fails=False)
    await client.rename("row:1", "row:1?fails=true")
    await age(client, 30_000, "row:1?fails=true")
    async with rows.sessions() as db:
        with pytest.raises(ConnectionRefusedError):
            await get(db, 1, fails=True)


async def test_refresh_wants_the_database(client: Redis, source: Source) -> None:
    """A caller that asks for a load gets the error."""
    shop = Shop(source, client, fail_safe=60, stale=60)
    await shop.get()
    source.error = DEAD
    with pytest.raises(ConnectionRefusedError):
        await shop.query.refresh(client, 1)
    source.error, source.name = None, "b"
    await age(client, 30_000)
    assert (await shop.query.refresh(client, 1)).name == "b"
    assert await client.pttl("item:1") > 600_000


# --- what all have in common


async def test_a_hit_is_one_round_trip(gated: GatedClient, source: Source) -> None:
    """The value and its TTL come together; a function without ages asks for no TTL."""
    await Shop(source, gated, stale=60).get()
    gated.log.clear()
    await Shop(source, gated, stale=60).get()
    assert gated.names() == ["GET", "PTTL"]
    gated.log.clear()
    await Shop(source, gated).get()
    assert gated.names() == ["GET"]


async def test_an_entry_without_end_is_fresh(client: Redis, source: Source) -> None:
    """Stored by hand, say."""
    await client.set("item:1", '{"id":1,"name":"by hand"}')
    shop = Shop(source, client, stale=60, early=ALWAYS, fail_safe=60)
    assert await shop.get() == "by hand"
    assert shop.stats == Stats(hits=1)


async def test_what_cannot_be_read_is_loaded(client: Redis, source: Source) -> None:
    """However old."""
    await client.set("item:1", "{", px=30_000)
    shop = Shop(source, client, stale=60)
    assert await shop.get() == "a"
    assert shop.stats == Stats(corrupt=1, misses=1, loads=1, fills=1)
    await client.set("item:1", "{", px=30_000)
    assert (await shop.query.explain(client, 1)).state == "hit"


async def test_without_redis_the_function_runs(source: Source, unused_tcp_port: int) -> None:
    """The error is raised: the old value may be wrong by now."""
    async with Redis(port=unused_tcp_port, retry=None) as dead:  # type: ignore[arg-type]
        shop = Shop(source, dead, stale=60, fail_safe=60, early=1)
        assert await shop.get() == "a"
        source.error = DEAD
        with pytest.raises(ConnectionRefusedError):
            await shop.get()
        assert (await shop.query.explain(dead, 1)).state == "bypass"


async def test_redis_that_goes_away_meanwhile_costs_no_answer(gated: GatedClient, source: Source) -> None:
    """Whichever command it misses."""
    shop = Shop(source, gated, stale=60, fail_safe=60)
    await shop.get()
    await age(gated, 30_000)
    gated.fail_with(ConnectionError("cut"), times=1, on="acquire")
    assert await shop.get() == "a"
    await shop.settled()
    assert shop.stats.unavailable == 1
    await gated.delete("item:1")
    early = Shop(source, gated, early=ALWAYS)
    await early.get()
    gated.fail_with(ConnectionError("cut"), times=1, on="acquire")
    assert await early.get() == "a"
    assert early.stats.unavailable == 1


async def test_explain_knows_how_old_an_entry_is(client: Redis, source: Source) -> None:
    """`ttl` is what is left of `exp`, in seconds; below 0 it is over, and the reason says what it is kept for."""
    shop = Shop(source, client, stale=20, fail_safe=60)
    await shop.get()
    found = await shop.query.explain(client, 1)
    assert (found.state, found.reasons) == ("hit", ())
    assert 590 < found.ttl <= 600
    await age(client, 50_000)
    found = await shop.query.explain(client, 1)
    assert (found.state, found.reasons) == ("stale", ("its exp is over",))
    assert -11 < found.ttl <= -10
    await age(client, 30_000)
    found = await shop.query.explain(client, 1)
    assert (found.state, found.reasons) == ("miss", ("its exp is over, and it is kept for fail_safe",))
    assert -31 < found.ttl <= -30


# --- races


@pytest.fixture
async def w(database: Database, client: Redis) -> AsyncIterator[World]:
    """Return a world on each database in turn."""
    async with world(database, client) as made:
        yield made


@pytest.mark.parametrize("race", scenarios_timed.RACES, ids=lambda race: race.__name__)
async def test_races(w: World, race: Scenario) -> None:
    """A reload is an ordinary miss: what it has loaded before a write is not stored after it."""
    await race(w)
    await w.quiet()


@pytest.mark.parametrize(
    ("change", "race"),
    [
        (without("lease-check", script="fill"), scenarios_timed.early_reload),
        (without("lease-check", script="fill"), scenarios_timed.background_reload),
        (without("lease-check", script="fill"), scenarios_timed.barrier_during_the_reload),
        (without("sweep-deletes-leases"), scenarios_timed.early_reload),
        (without("sweep-deletes-entries"), scenarios_timed.background_reload),
        (without("barrier-check"), scenarios_timed.barred_reload),
    ],
    ids=label,
)
async def test_mutants(
    sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch, change: Change, race: Scenario
) -> None:
    """One mechanism less, and the race is lost."""
    async with world(sqlite, client) as made:
        made.change(change, monkeypatch)
        with pytest.raises(AssertionError):
            await race(made)


@pytest.mark.parametrize(
    ("source", "args", "kwargs"),
    [
        ("a, db, b=2", (1, "old"), {}),
        ("a, db, b=2", (), {"a": 1, "db": "old"}),
        ("a=1, b=2, db=None", (), {}),
        ("a=1, b=2, db=None", (1,), {"db": "old"}),
        ("a=1, b=2, db=None, /", (), {}),
        ("a=1, b=2, db=None, /, *rest", (1, 2, "old"), {}),
        ("a=1, b=2, *, db=None", (), {"b": 2}),
        ("a=1, b=2, *, db, **more", (), {"db": "old"}),
    ],
)
def test_one_argument_is_replaced_wherever_it_stands(source: str, args: Any, kwargs: Any) -> None:
    """The argument may be given by position or name, or left out; the others stay."""
    function = eval(f"lambda {source}: (a, b, db)")
    assert with_argument(partial(function, *args, **kwargs), "db", "new")() == (1, 2, "new")
