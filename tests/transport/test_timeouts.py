"""All waits of one call for Redis share one deadline, however many answers it needs, and however slow each is."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from itertools import count
from typing import Any

import pytest
from aiosqlite import Connection as SqliteConnection
from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, FastRDB
from fastrdb.errors import CacheUnavailableError
from fastrdb.keys.prefix import Prefix
from fastrdb.loading.load import Loading
from fastrdb.protocol import Store
from fastrdb.transport.cluster import ClusterTransport
from fastrdb.transport.commands import slot_of
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.network.slow import STEP, LoopClock, Pace, ports_of, slowed
from tests.support.servers.cluster import Cluster
from tests.support.servers.databases import Database
from tests.support.waiting import until
from tests.support.world.items import Base, Item, Row
from tests.support.world.stores import acquire, acquire_many, fill, fill_many, get_timed, open_store, release

CHUNK = 128
KEYS = 20
"""So many that all masters of a cluster have some."""
TIMEOUT = 0.25
MOST = 1.1 * TIMEOUT + 3 * STEP
"""Seconds by the test's own clock: see `_LOOK`."""


@dataclass
class Slow:
    """A cache whose Redis answers at a pace, and where the truth is."""

    cache: Cache
    pace: Pace
    client: Any
    masters: int = 1
    db: Any = None
    names: Iterator[str] = field(default_factory=lambda: map("f{}".format, count()))
    """What keys of a function begin with: none has to do with what a call that gave up has left behind."""

    async def waits(self, call: Callable[[], Awaitable[Any]], takes: float) -> tuple[Any, float]:
        """Return the result of a call, and its time, when each answer takes so many deadlines."""
        clock = self.pace.clock
        with clock.put_in():
            self.pace.set(takes * TIMEOUT)
            began = clock.now
            result = await call()
            waited = clock.now - began
            self.pace.takes = 0.0
        return result, waited

    async def quiet(self) -> None:
        """Wait for the end of all that is still on its way to Redis, until that is well."""
        await self.pace.clock.all_awake()
        store = self.cache.runtime.store(self.client)

        async def well() -> bool:
            with suppress(CacheUnavailableError):
                for number in range(KEYS):
                    await store.get(self.client, f"warm:{number}")
                return store.bypass_reason(self.client) is None
            return False

        await until(well)


@pytest.fixture(params=["server", "cluster"])
async def slow(
    request: pytest.FixtureRequest, sqlite: Database, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Slow]:
    """Yield a cache by way of slow proxies, that is connected and has its scripts there; and two rows."""
    place: Any = request.getfixturevalue(request.param)
    if isinstance(place, Cluster):
        place.flush()
    else:
        async with Redis(port=place.port) as admin:
            await admin.flushall()
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        db.add_all([Row(id=1, name="a"), Row(id=2, name="b")])
        await db.commit()
        async with _slow(place) as made:
            made.db = db
            _leave_out_loads(made.pace.clock, monkeypatch)
            yield made


def _leave_out_loads(clock: LoopClock, monkeypatch: pytest.MonkeyPatch) -> None:
    methods: list[tuple[Any, str]] = [(Loading, "_load"), (AsyncSession, "commit"), (AsyncSession, "rollback")]
    methods += [(SqliteConnection, "_execute"), (SqliteConnection, "_connect")]  # what a thread does takes its time
    for owner, method in methods:
        plain = getattr(owner, method)

        async def load(*args: Any, _plain: Any = plain, **options: Any) -> Any:
            with clock.still():
                return await _plain(*args, **options)

        monkeypatch.setattr(owner, method, load)


@asynccontextmanager
async def _slow(place: Any, **settings: Any) -> AsyncIterator[Slow]:
    pace = Pace(LoopClock())
    ports = ports_of(place)
    settings = {"lease": 600, "barrier": 600} | settings  # the server's clock goes on while the test's stands still
    async with (
        slowed(pace, *ports, cluster=len(ports) > 1) as client,
        Cache(client, timeout=TIMEOUT, **settings) as cache,
    ):
        with pace.clock.put_in():  # it stands still: however busy the machine is, no answer is late
            await _warm(cache.runtime.store(client), client)
        yield Slow(cache, pace, client, len(ports))


async def _warm(store: Store, client: Any) -> None:
    """Use every connection of a cluster, and every script."""
    for number in range(KEYS):
        key, token = f"warm:{number}", str(number)
        assert await store.get(client, key) is None
        await acquire(store, client, key, token)
        await fill(store, client, key, token, b"1", 1000)
        await acquire(store, client, key, token, refresh=True)
        await release(store, client, key, token)
        await get_timed(store, client, key)
    intent = store.intent(client)
    intent.add([], ["warm:1"])
    intent.put("warm:2", b"1", 1000)
    await intent.begin()
    await intent.end(committed=True)
    assert store.bypass_reason(client) is None


# --- reads


Call = Callable[[], Awaitable[Any]]


def one(slow: Slow, **options: Any) -> tuple[Call, Any]:
    """Return a cached function."""

    async def function(number: int) -> Item:
        return Item(id=number, name="a")

    wrapped: Any = slow.cache.cached(f"{next(slow.names)}:{{number}}", **options)(function)
    return lambda: wrapped(1), Item(id=1, name="a")


def listed(slow: Slow) -> tuple[Call, Any]:
    """Return a cached list."""

    @slow.cache.cached_list(f"{next(slow.names)}:{{page}}")
    async def function(page: int) -> list[int]:
        return [page]

    return lambda: function(1), [1]


def many(slow: Slow, **options: Any) -> tuple[Call, Any]:
    """Return a function of many ids."""

    async def function(ids: list[int]) -> dict[int, int]:
        return {number: number for number in ids}

    wrapped: Any = slow.cache.cached_many(f"{next(slow.names)}:{{ids}}", **options)(function)
    return lambda: wrapped([1, 2, 3]), {1: 1, 2: 2, 3: 3}


def stale(slow: Slow) -> tuple[Call, Any]:
    """Return a function with `stale` and `early`."""
    return one(slow, stale=60, early=1)


def many_stale(slow: Slow) -> tuple[Call, Any]:
    """Return a function of many ids, with `stale`."""
    return many(slow, stale=60)


def near(slow: Slow) -> tuple[Call, Any]:
    """Return a function whose entries are kept here as well."""
    return one(slow, near=True)


def crud_get(slow: Slow) -> tuple[Call, Any]:
    """Return a reader of a row."""
    return _crud(slow, lambda crud, db: crud.get(db, id=1)), Item(id=1, name="a")


def crud_get_multi(slow: Slow) -> tuple[Call, Any]:
    """Return a reader of a page of rows."""
    return _crud(slow, lambda crud, db: crud.get_multi(db)), [Item(id=1, name="a"), Item(id=2, name="b")]


def _crud(slow: Slow, ask: Callable[[Any, AsyncSession], Awaitable[Any]]) -> Call:
    name = next(slow.names)
    crud = FastRDB[Row, Any, Any, Item](
        Row, Item, pattern=f"{name}:{{id}}", list_pattern=f"{name}s:{{page}}:{{limit}}", cache=slow.cache
    )

    return lambda: ask(crud, slow.db)


READS = [one, listed, many, stale, many_stale, crud_get, crud_get_multi, near]  # the last has a connection of its own


async def test_a_miss_waits_for_one_deadline(slow: Slow) -> None:
    """Though each answer comes in time: none of them would be too slow by itself, all of them together are."""
    for read in READS:
        for takes in (0.45, 0.7):
            call, expected = read(slow)
            result, waited = await slow.waits(call, takes)
            assert result == expected
            assert slow.pace.asked > 1, read.__name__
            assert waited <= MOST, read.__name__
            await slow.quiet()


@pytest.mark.parametrize("slow", ["cluster"], indirect=True)
async def test_a_redirection_is_a_part_of_its_read(slow: Slow) -> None:
    """A caller that asks the wrong master of a cluster first has the rest for the right one, and for the miss."""
    (masters,) = slow.cache.runtime.store(slow.client)._link._routes.values()
    assert isinstance(masters, ClusterTransport)
    for takes, key in (0.3, b"f0:1"), (0.7, b"f1:1"):
        right = masters._node_of(slot_of(key))
        masters._slots[slot_of(key)] = next(node for node in masters._nodes.values() if node is not right)
        call, expected = one(slow)
        result, waited = await slow.waits(call, takes)
        assert result == expected
        assert slow.pace.asked > 1
        assert waited <= MOST
        await slow.quiet()


async def test_a_fill_that_is_late_is_done_all_the_same(slow: Slow) -> None:
    """Its caller does not wait for it."""
    call, _ = one(slow)
    _, waited = await slow.waits(call, 0.45)
    assert waited <= MOST
    if not isinstance(slow.client, RedisCluster):  # where a lease takes two round trips, and none is given by then
        assert await call() is not None
        assert slow.cache.stats().hits == 1


async def test_what_others_load_is_waited_for_as_long_as_wait_says(slow: Slow, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each look at their lease is an answer in time, and the time of all of them counts for `wait` only."""
    clock, looks = slow.pace.clock, 0

    async def pause(_: object, longest: float) -> None:
        nonlocal looks
        looks += 1
        if looks == 10:
            assert await fill(theirs, slow.client, "f0:1", "theirs", b'{"id":1,"name":"b"}', 60_000)
        await clock.sleep(STEP)

    monkeypatch.setattr("fastrdb.singleflight.Watch.pause", pause)
    async with open_store(slow.client, timeout=60, lease=600) as theirs:  # fresh for long, by the server's clock
        await acquire(theirs, slow.client, "f0:1", "theirs")
        call, _ = one(slow, wait=60)
        result, waited = await slow.waits(call, 0.2)
    assert result == Item(id=1, name="b"), "not its own"
    assert looks == 10
    assert waited > 2 * TIMEOUT


# --- writes


async def test_a_commit_waits_for_one_deadline_before_and_one_after(slow: Slow) -> None:
    """However many steps it takes: on a cluster barriers, deletions, leases, then fills and barriers again."""
    intent = slow.cache.runtime.store(slow.client).intent(slow.client)
    intent.add([Prefix("some:")], ["one"])
    intent.put("other", b"1", 60_000)
    _, before = await slow.waits(intent.begin, 0.7)
    _, after = await slow.waits(partial(intent.end, committed=True), 0.7)
    assert before <= MOST
    assert after <= MOST
    assert slow.cache.runtime.store(slow.client).has_pending == isinstance(slow.client, RedisCluster), (
        "what was not done in time"
    )


@pytest.mark.parametrize("by_hand", [True, False], ids=["by hand", "commit"])
async def test_much_work_takes_its_time(slow: Slow, by_hand: bool) -> None:
    """As long as each portion is done in time: that is progress, and no silence."""
    store = slow.cache.runtime.store(slow.client)
    tokens = {f"some:{number}": str(number) for number in range(4 * CHUNK)}
    await acquire_many(store, slow.client, tokens)
    await fill_many(store, slow.client, [(key, token, b"1", 60_000) for key, token in tokens.items()])
    intent = store.intent(slow.client)
    intent.add([Prefix("some:")])
    work = partial(store.invalidate, slow.client, [Prefix("some:")]) if by_hand else intent.begin
    _, waited = await slow.waits(work, 0.3)
    assert waited > MOST
    assert not store.has_pending
    assert await store.get_many(slow.client, list(tokens)) == [None] * len(tokens)


async def test_many_ids_take_a_deadline_for_each_portion(slow: Slow) -> None:
    """So many keys are asked for in one go, and no more; a request for more would never be cached otherwise."""
    store, keys = slow.cache.runtime.store(slow.client), [f"some:{number}" for number in range(2 * CHUNK + 1)]
    assert store.budget(slow.client, keys).left == 3 * TIMEOUT


# --- crowds


@pytest.mark.parametrize(("takes", "callers"), [(0.12, 1), (5, 20)])
async def test_callers_wait_for_one_look_at_a_cluster(cluster: Cluster, takes: float, callers: int) -> None:
    """Not one after the other, each for a look of its own; and what follows the look has what that has left."""
    pace = Pace(LoopClock())
    async with slowed(pace, *ports_of(cluster), cluster=True) as client, Cache(client, timeout=TIMEOUT) as cache:
        made = Slow(cache, pace, client)
        call, expected = one(made)
        results, waited = await made.waits(lambda: asyncio.gather(*(call() for _ in range(callers))), takes)
        assert results == [expected] * callers
        assert waited <= MOST


# --- each of these mechanisms is needed


ANY_MISS = test_a_miss_waits_for_one_deadline
COMMIT = test_a_commit_waits_for_one_deadline_before_and_one_after
OTHERS = test_what_others_load_is_waited_for_as_long_as_wait_says
REDIRECTED = test_a_redirection_is_a_part_of_its_read
WORK = test_much_work_takes_its_time
MUTANTS = [
    ("server", without("budget-goes-on"), ANY_MISS),
    ("cluster", without("budget-counts-read"), ANY_MISS),
    ("server", without("budget-is-used-up"), ANY_MISS),
    ("server", without("budget-spares-waiting"), OTHERS),
    ("cluster", without("redirection-keeps-due"), REDIRECTED),
    ("cluster", without("redirection-in-deadline"), REDIRECTED),
    ("cluster", without("budget-goes-on"), COMMIT),
    ("cluster", without("budget-renewed"), WORK),
]


@pytest.mark.parametrize(
    ("slow", "change", "race"),
    MUTANTS,
    ids=label,
    indirect=["slow"],
)
async def test_mutants(
    slow: Slow, monkeypatch: pytest.MonkeyPatch, change: Change, race: Callable[..., Awaitable[None]]
) -> None:
    """With the mechanism taken out, a caller waits too long, or not long enough."""
    change.apply(monkeypatch.setattr)
    arguments = {"slow": slow, "monkeypatch": monkeypatch, "by_hand": False}
    with pytest.raises(AssertionError):
        await race(**{each: arguments[each] for each in inspect.signature(race).parameters})
