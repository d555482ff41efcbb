"""From a missing entry to a value: every outcome of a lease and of a load, for one key and for one of many."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy.exc import InvalidRequestError, NoResultFound

from fastrdb import Cache, Event, no_store
from fastrdb.protocol import Granted
from fastrdb.testing import FaultyClient, GatedClient, Gates
from tests.support.world.items import Item
from tests.support.world.stores import acquire

KEY, LEASE = "item:1", "fastrdb:lease:{item:1}"


class Source:
    """A stand-in for a database with one row."""

    def __init__(self) -> None:
        self.name: str | None = "a"
        self.error: Exception | None = None
        self.unstorable: str | None = None
        self.loads = 0
        self.gates = Gates()
        self.inside: Callable[[], Any] | None = None

    async def load(self) -> Item | None:
        """Return the row, or None."""
        self.loads += 1
        await self.gates.arrive("load")
        if self.inside is not None:
            await self.inside()
        if self.unstorable is not None:
            no_store(self.unstorable)
        if self.error is not None:
            raise self.error
        found = None if self.name is None else Item(id=1, name=self.name)
        await self.gates.leave("load")
        return found


async def lease_elsewhere(client: Redis) -> None:
    """Take the lease of the key in another process."""
    async with Cache(timeout=5) as other:
        assert isinstance(await acquire(other.runtime.store(client), client, KEY, "another's", refresh=True), Granted)


class Reader:
    """A cached function in a process of its own, which loads one id by itself or as one of many."""

    def __init__(self, way: str, source: Source, client: Any, **options: Any) -> None:
        self.client, self.events = client, list[Event]()
        self.cache = Cache(hook=self.events.append, timeout=5)
        settings: Any = {"exp": 600, **options}
        one: Any = self.cache.cached("item:{number}", **settings, shared=True)
        many: Any = self.cache.cached_many("item:{numbers}", **settings, shared=True)

        @one  # type: ignore[untyped-decorator]
        async def get(redis: Any, number: int) -> Item:
            found = await source.load()
            if found is None:
                raise NoResultFound("no such row")
            return found

        @many  # type: ignore[untyped-decorator]
        async def get_many(redis: Any, numbers: list[int]) -> dict[int, Item]:
            found = await source.load()
            return {} if found is None else {1: found}

        self.function: Any = get if way == "one" else get_many
        self.argument: Any = 1 if way == "one" else [1]

    async def read(self) -> str | None:
        """Return the name, None for a row that is missing."""
        return await self._name(self.function(self.client, self.argument))

    async def refresh(self) -> str | None:
        """Load now, whatever is in Redis."""
        return await self._name(self.function.refresh(self.client, self.argument))

    async def _name(self, call: Any) -> str | None:
        try:
            found = await call
        except NoResultFound:
            return None
        if isinstance(found, dict):
            found = found.get(1)
        return None if found is None else str(found.name)

    async def waiting(self, gated: GatedClient) -> asyncio.Task[str | None]:
        """Start a call, and return when its `acquire` has been answered."""
        gate = gated.after("acquire")
        gate.open()
        task = asyncio.create_task(self.read())
        await gate.reached()
        for _ in range(20):  # the call needs nothing but its turn to join the load
            await asyncio.sleep(0)
        return task

    async def reloaded(self) -> None:
        """Wait for reloads in the background."""
        await asyncio.gather(*self.cache.runtime.here().reloads.values())

    @property
    def kinds(self) -> list[str]:
        """The kinds of the events so far, but for the ends of loads."""
        return [event.kind for event in self.events if event.kind != "loaded"]

    @property
    def details(self) -> dict[str, str]:
        """The details of the events so far, by kind."""
        return {event.kind: event.reason for event in self.events if event.reason}


@pytest.fixture(params=["one", "many"])
def way(request: pytest.FixtureRequest) -> str:
    """Return how the id is asked for."""
    return str(request.param)


Make = Callable[..., Reader]


@pytest.fixture
def source() -> Source:
    """Return the row."""
    return Source()


@pytest.fixture
async def make(way: str, source: Source) -> AsyncIterator[Make]:
    """Return what makes a process with its reader; what runs in the background ends before the client is closed."""
    made: list[Reader] = []

    def reader(client: Any, **options: Any) -> Reader:
        made.append(Reader(way, source, client, **options))
        return made[-1]

    yield reader
    source.gates.open_all()
    for each in made:
        await each.cache.aclose()
        assert each.cache.runtime.here().flights.by_token == {}


async def nothing_left(client: Redis, *readers: Reader) -> None:
    """Assert that no lease is left once everything in the background has ended."""
    for reader in readers:
        await reader.cache.aclose()
    assert not await client.exists(LEASE)


# --- alone


async def test_a_miss_is_loaded_and_stored(client: Redis, make: Make) -> None:
    """The next call is a hit."""
    reader = make(client)
    assert await reader.read() == "a"
    assert await reader.read() == "a"
    assert reader.kinds == ["miss", "load", "fill", "hit"]
    await nothing_left(client, reader)


@pytest.mark.parametrize("negative_exp", [None, 60])
async def test_a_missing_row_is_stored_only_with_negative_exp(
    client: Redis, make: Make, source: Source, way: str, negative_exp: float | None
) -> None:
    """The form of the entry is the function's own: an error with its message, or null."""
    reader = make(client, negative_exp=negative_exp)
    source.name = None
    assert (await reader.read(), await reader.read()) == (None, None)
    entry = await client.get(KEY)
    if negative_exp is None:
        assert entry is None
        assert reader.kinds.count("load") == 2
    else:
        assert entry == (b' {"error": "NoResultFound", "message": "no such row"}' if way == "one" else b"null")
        assert reader.kinds == ["miss", "load", "fill", "hit"]
    await nothing_left(client, reader)


async def test_an_error_is_raised_and_not_stored(client: Redis, make: Make, source: Source) -> None:
    """The lease is given back: the next call loads."""
    reader = make(client)
    source.error = ValueError("broken")
    with pytest.raises(ValueError, match="broken"):
        await reader.read()
    await reader.cache.aclose()
    assert not await client.exists(KEY, LEASE)
    source.error = None
    assert await reader.read() == "a"
    assert reader.kinds == ["miss", "load", "miss", "load", "fill"]


async def test_a_result_that_must_not_be_stored_is_answered(client: Redis, make: Make, source: Source) -> None:
    """The event says why."""
    reader = make(client)
    source.unstorable = "a preview"
    assert await reader.read() == "a"
    assert reader.events[-1].kind == "unstored"
    assert reader.events[-1].reason == "a preview"
    await nothing_left(client, reader)


async def test_a_lease_that_is_lost_stores_nothing(client: Redis, make: Make, source: Source) -> None:
    """A write came between."""
    reader = make(client)
    source.inside = lambda: Cache(client).invalidate(keys=[KEY])
    assert await reader.read() == "a"
    assert reader.events[-1].kind == "unstored"
    assert "lease was lost" in reader.events[-1].reason
    assert not await client.exists(KEY, LEASE)


async def test_a_key_under_a_barrier_is_loaded_and_not_stored(client: Redis, make: Make) -> None:
    """A COMMIT is on its way."""
    reader = make(client)
    intent = reader.cache.runtime.store(client).intent(client)
    intent.add(keys=[KEY])
    await intent.begin()
    assert await reader.read() == "a"
    assert sorted(reader.kinds) == ["bypass", "load", "miss"]
    assert "being committed" in reader.details["bypass"]
    await intent.end(committed=True)
    await nothing_left(client, reader)


@pytest.mark.parametrize("entry", [b"{", b'{"id":1}'])
async def test_a_corrupt_entry_is_deleted_and_replaced(client: Redis, make: Make, entry: bytes) -> None:
    """It is counted as a miss."""
    reader = make(client)
    await client.set(KEY, entry)
    assert await reader.read() == "a"
    assert reader.kinds == ["corrupt", "miss", "load", "fill"]
    assert await client.get(KEY) == b'{"id":1,"name":"a"}'


@pytest.mark.parametrize("entry", [b'{"id":1,"name":"b"}', b"{"], ids=["good", "corrupt"])
async def test_an_entry_that_came_meanwhile_answers_if_it_can_be_read(
    client: Redis, gated: GatedClient, make: Make, way: str, entry: bytes
) -> None:
    """Between the read and the lease another process has stored it."""
    reader = make(gated)
    gate = gated.after("GET" if way == "one" else "MGET")
    call = asyncio.create_task(reader.read())
    await gate.reached()
    await client.set(KEY, entry)
    gate.open()
    good = entry != b"{"
    assert await call == ("b" if good else "a")
    assert reader.kinds == (["miss", "hit"] if good else ["miss", "corrupt", "load", "fill"])
    await nothing_left(client, reader)


@pytest.mark.parametrize("command", ["GET", "acquire", "fill"])
async def test_a_lost_server_costs_no_answer(client: Redis, make: Make, source: Source, way: str, command: str) -> None:
    """Whatever Redis misses: one load, counted, and no lease stays."""
    faulty = FaultyClient(client)
    reader = make(faulty)
    faulty.fail_with(times=1, on="MGET" if (command, way) == ("GET", "many") else command)
    assert await reader.read() == "a"
    assert source.loads == 1
    assert reader.kinds.count("unavailable") == 1
    assert not await client.exists(KEY)
    await nothing_left(client, reader)


# --- with others


async def test_a_follower_gets_the_result_before_it_is_stored(
    client: Redis, gated: GatedClient, make: Make, source: Source
) -> None:
    """One load for all in a process."""
    reader = make(gated)
    gate, fill = source.gates.before("load"), gated.before("fill")
    leader = asyncio.create_task(reader.read())
    await gate.reached()
    followers = [await reader.waiting(gated) for _ in range(2)]
    gate.open()
    await fill.reached()
    assert await asyncio.gather(*followers) == ["a", "a"]
    assert not await client.exists(KEY)
    fill.open()
    assert await leader == "a"
    assert reader.kinds == ["miss", "load", "miss", "miss", "join", "join", "fill"]


async def test_an_error_of_one_key_reaches_its_followers(gated: GatedClient, make: Make, source: Source) -> None:
    """All of them wait for the same answer of the database."""
    reader = make(gated)
    source.error = ValueError("broken")
    gate = source.gates.before("load")
    calls = [asyncio.create_task(reader.read())]
    await gate.reached()
    calls += [await reader.waiting(gated) for _ in range(2)]
    gate.open()
    assert await asyncio.gather(*calls, return_exceptions=True) == [source.error] * 3
    assert source.loads == 1


async def test_an_error_of_the_leaders_session_reaches_no_follower(
    gated: GatedClient, make: Make, source: Source
) -> None:
    """A follower has a session of its own, and loads."""
    reader = make(gated)
    source.error = InvalidRequestError("this session is closed")
    gate = source.gates.before("load")
    leader = asyncio.create_task(reader.read())
    await gate.reached()
    follower = await reader.waiting(gated)
    source.inside = None
    gate.open()
    found = await asyncio.gather(leader, follower, return_exceptions=True)
    assert [type(each) for each in found] == [InvalidRequestError] * 2
    assert source.loads == 2
    assert "bypass" in reader.details


async def test_a_result_of_the_leader_only_is_loaded_by_each(
    client: Redis, gated: GatedClient, make: Make, source: Source
) -> None:
    """The result may differ for another caller."""
    reader = make(gated)
    source.unstorable = "a preview"
    gate = source.gates.before("load")
    leader = asyncio.create_task(reader.read())
    await gate.reached()
    follower = await reader.waiting(gated)
    gate.open()
    assert (await leader, await follower) == ("a", "a")
    assert source.loads == 2
    assert reader.kinds.count("bypass") == reader.kinds.count("unstored") == 1
    assert not await client.exists(KEY)


async def test_a_missing_row_is_missing_for_followers(gated: GatedClient, make: Make, source: Source) -> None:
    """One load says so to all of them."""
    reader = make(gated)
    source.name = None
    gate = source.gates.before("load")
    leader = asyncio.create_task(reader.read())
    await gate.reached()
    follower = await reader.waiting(gated)
    gate.open()
    assert (await leader, await follower) == (None, None)
    assert source.loads == 1
    assert reader.kinds.count("join") == 1


async def test_a_cancelled_leader_leaves_the_load_to_a_follower(
    client: Redis, gated: GatedClient, make: Make, source: Source
) -> None:
    """The follower starts over, and stores."""
    reader = make(gated)
    gate = source.gates.before("load")
    leader = asyncio.create_task(reader.read())
    await gate.reached()
    follower = await reader.waiting(gated)
    leader.cancel()
    assert await follower == "a"
    assert source.loads == 2
    assert reader.kinds[-1] == "fill"
    await nothing_left(client, reader)


async def test_a_wait_that_is_over_ends_in_a_load_of_ones_own(client: Redis, make: Make, source: Source) -> None:
    """Another process holds the lease; with `wait=0` nothing is waited for, and nothing stored."""
    reader = make(client, wait=0)
    await lease_elsewhere(client)
    assert await reader.read() == "a"
    assert source.loads == 1
    assert "longer than `wait`" in reader.details["bypass"]
    assert not await client.exists(KEY)
    assert str(await client.get(LEASE)).startswith("b\"another's")


async def test_a_slow_load_in_the_process_is_waited_for_as_long_as_wait_says(
    gated: GatedClient, make: Make, source: Source
) -> None:
    """The leader goes on, and stores."""
    slow = make(gated, wait=0)
    gate = source.gates.before("load")
    leader = asyncio.create_task(slow.read())
    await gate.reached()
    assert await slow.read() == "a"
    assert "longer than `wait`" in slow.details["bypass"]
    gate.open()
    assert await leader == "a"
    assert slow.kinds == ["miss", "load", "miss", "bypass", "load", "fill"]


async def test_an_entry_of_another_process_answers_all_followers(
    client: Redis, gated: GatedClient, make: Make, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of them looks at Redis, and the others join it."""
    reader = make(gated)
    await lease_elsewhere(client)
    looked, go_on = asyncio.Event(), asyncio.Event()

    async def pause(_: object, longest: float) -> None:
        looked.set()
        await go_on.wait()

    monkeypatch.setattr("fastrdb.singleflight.Watch.pause", pause)
    first = asyncio.create_task(reader.read())
    await looked.wait()
    second = await reader.waiting(gated)
    await client.set(KEY, b'{"id":1,"name":"b"}')
    await client.delete(LEASE)
    go_on.set()
    assert (await first, await second) == ("b", "b")
    assert source.loads == 0
    assert reader.kinds == ["miss", "miss", "hit", "join"]


async def test_a_load_never_waits_for_itself(client: Redis, make: Make, source: Source) -> None:
    """Two functions share a key, and one of them calls the other."""
    inner = make(client)
    outer = make(client)
    calls: list[str | None] = []

    async def call_the_other() -> None:
        source.inside = None
        calls.append(await inner.read())

    source.inside = call_the_other
    assert await outer.read() == "a"
    assert calls == ["a"]
    assert "part of the load that holds the lease" in inner.details["bypass"]
    assert outer.kinds[-1] == "fill"


# --- in place of an entry


async def test_a_refresh_replaces_the_entry(client: Redis, make: Make, source: Source) -> None:
    """Without a look at what is there."""
    reader = make(client)
    await reader.read()
    source.name = "b"
    assert await reader.refresh() == "b"
    assert await reader.read() == "b"
    assert reader.kinds == ["miss", "load", "fill", "load", "fill", "hit"]


@pytest.mark.parametrize("how", ["unstorable", "missing"])
async def test_a_refresh_that_stores_nothing_deletes_the_entry(
    client: Redis, make: Make, source: Source, how: str
) -> None:
    """The database has said something else than the entry."""
    reader = make(client)
    await reader.read()
    if how == "missing":
        source.name = None
    else:
        source.name, source.unstorable = "b", "a preview"
    assert await reader.refresh() == source.name
    assert not await client.exists(KEY)
    await nothing_left(client, reader)


async def test_a_refresh_that_fails_leaves_the_entry(client: Redis, make: Make, source: Source) -> None:
    """The error says nothing about the row."""
    reader = make(client)
    await reader.read()
    source.error = ValueError("broken")
    with pytest.raises(ValueError, match="broken"):
        await reader.refresh()
    source.error = None
    assert await reader.read() == "a"
    assert reader.kinds[-1] == "hit"
    await nothing_left(client, reader)


@pytest.mark.parametrize("how", ["stored", "unstorable", "missing", "broken"])
async def test_a_reload_in_the_background_ends_the_old_value_if_the_database_says_so(
    client: Redis, make: Make, source: Source, how: str
) -> None:
    """A new value replaces the entry, a result without one deletes it, and an error leaves it."""
    reader = make(client, stale=300)
    await reader.read()
    await client.pexpire(KEY, 1000)
    source.name = None if how == "missing" else "b"
    source.unstorable = "a preview" if how == "unstorable" else None
    source.error = ValueError("broken") if how == "broken" else None
    assert await reader.read() == "a"
    await reader.reloaded()
    entry = await client.get(KEY)
    assert entry == {"stored": b'{"id":1,"name":"b"}', "broken": b'{"id":1,"name":"a"}'}.get(how)
    told = {"stored": "fill", "broken": "failed"}.get(how)
    assert told is None or reader.kinds[-1] == told
    await nothing_left(client, reader)


@pytest.mark.parametrize("why", ["leased", "barred", "renewed"])
async def test_a_reload_waits_for_no_other(
    client: Redis, gated: GatedClient, make: Make, source: Source, why: str
) -> None:
    """Another process loads, a write is being committed, or the entry is new already."""
    reader = make(gated, stale=300)
    await reader.read()
    await client.pexpire(KEY, 1000)
    gate = gated.before("acquire")
    assert await reader.read() == "a"
    await gate.reached()
    intent = reader.cache.runtime.store(client).intent(client)
    intent.add(keys=["other", KEY])
    if why == "leased":
        await lease_elsewhere(client)
    elif why == "renewed":
        await client.set(KEY, b'{"id":1,"name":"c"}', px=800_000)
    else:
        await intent.begin()
    gate.open()
    await reader.reloaded()
    assert source.loads == 1
    assert await client.get(KEY) == {"leased": b'{"id":1,"name":"a"}', "renewed": b'{"id":1,"name":"c"}'}.get(why)
    if why == "barred":
        await intent.end(committed=False)
