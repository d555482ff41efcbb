"""Events, their hook, and the counters of a function."""

from __future__ import annotations

import asyncio
from typing import get_args

import pytest
from redis.asyncio import Redis

from fastrdb import Cache, Event, OptionError, Stats
from fastrdb.events import Counted, Counters
from fastrdb.testing import GatedClient
from tests.support.world.items import Item, Loader


def test_each_kind_has_its_own_count() -> None:
    """No event is counted twice, none is lost."""
    for kind in get_args(Counted):
        counters = Counters("f")
        counters.count(kind, "k")
        counts = counters.snapshot().counts()
        (name,) = [name for name, count in counts.items() if count == 1]
        assert sum(counts.values()) == 1
        assert name.startswith(kind[:-1]), "the fields of Stats are in the order of Counted"


def test_a_snapshot_stays_as_it_is() -> None:
    """And can be added to others."""
    counters = Counters("f")
    counters.count("hit", "k")
    before = counters.snapshot()
    counters.count("hit", "k")
    counters.count("load", "k")
    assert before == Stats(hits=1)
    assert before + counters.snapshot() == Stats(hits=3, loads=1)


def test_deleted_entries_are_added_up_by_what_reached_them() -> None:
    """The most come first, whichever function has deleted them. What is shown later is not changed by what follows."""
    one, two = Counters("one"), Counters("two")
    one.deleted("users", 1)
    one.deleted("orders", 3)
    two.deleted("users", 4)
    before = Counters.total([one, two])
    two.deleted("users", 1)
    assert list(before.dropped.items()) == [("users", 5), ("orders", 3)]
    assert before.deleted == sum(before.dropped.values())
    assert Counters.total([one, two]).dropped == {"users": 6, "orders": 3}
    assert Counters.by_function([one, two])["two"].dropped == {"users": 5}
    assert Counters("none").snapshot().dropped == {}


def test_an_event_cannot_be_changed() -> None:
    """Every listener gets the same."""
    event = Event("f", "hit", "k")
    with pytest.raises(AttributeError):
        event.key = "other"  # type: ignore[misc]


async def test_a_hook_hears_everything_in_order(client: Redis) -> None:
    """Function, kind, key and why, as it happens."""
    heard: list[Event] = []
    loader, cache = Loader(), Cache(client, hook=heard.append)

    @cache.cached("item:{number}", cache_if=lambda item: item.id == 1)
    async def load(number: int) -> Item:
        return loader.item(number)

    @cache.invalidates("item:*", keys=["top"])
    async def write() -> None:
        return None

    await load(1)
    await load(1)
    await load(2)
    await write()
    name = load.__qualname__
    assert heard == [
        Event(name, "miss", "item:1"),
        Event(name, "load", "item:1"),
        Event(name, "loaded", "item:1"),
        Event(name, "fill", "item:1"),
        Event(name, "hit", "item:1"),
        Event(name, "miss", "item:2"),
        Event(name, "load", "item:2"),
        Event(name, "loaded", "item:2"),
        Event(name, "unstored", "item:2", "cache_if"),
        Event(write.__qualname__, "invalidation", "item:, top"),
        Event(write.__qualname__, "deleted", "item:*"),
    ]


async def test_events_have_times_and_sizes(client: Redis, gated: GatedClient) -> None:
    """Redis, a load and the wait for another caller's load take seconds; an entry has a size."""
    heard: list[Event] = []
    cache = Cache(hook=heard.append)

    @cache.cached("text:{number}")
    async def load(redis: Redis, number: int) -> str:
        return "x" * 100

    gate = gated.gates.before("fill")
    leader = asyncio.create_task(load(gated, 1))
    await gate.reached()
    await load(client, 1)
    gate.open()
    await leader
    await load(client, 1)
    told = {event.kind: event for event in heard}
    assert {kind for kind, event in told.items() if event.seconds} == {"loaded", "join", "fill", "hit"}
    assert {kind: event.size for kind, event in told.items() if event.size} == {"fill": 102, "hit": 102}


async def test_a_load_that_raises_is_told(client: Redis) -> None:
    """The end of the load says which error it was; its text is the function's own, and may hold values."""
    heard: list[Event] = []
    cache = Cache(client, hook=heard.append)

    @cache.cached("text:{number}")
    async def load(number: int) -> str:
        raise LookupError(str(number))

    with pytest.raises(LookupError):
        await load(1)
    assert heard[-1] == Event(load.__qualname__, "loaded", "text:1", "LookupError")


async def test_hooks_may_come_later(client: Redis) -> None:
    """A hook that is added after decoration is called, and one that is removed is not."""
    first, second = list[Event](), list[Event]()
    cache = Cache(client, hook=first.append)

    @cache.cached("number:{number}")
    async def load(number: int) -> int:
        return number

    await load(1)
    cache.hooks.append(second.append)
    await load(1)
    cache.hooks.remove(second.append)
    await load(1)
    assert [event.kind for event in first] == ["miss", "load", "loaded", "fill", "hit", "hit"]
    assert [event.kind for event in second] == ["hit"]


@pytest.mark.parametrize("option", ["hook", "timeout", "verify", "namespace"])
def test_an_option_that_is_set_later_is_refused(option: str) -> None:
    """It would be an attribute that nothing reads. The message says where hooks go."""
    cache = Cache()
    with pytest.raises(OptionError, match=rf"Cache: {option}= is given when it is made; hooks go to cache.hooks"):
        setattr(cache, option, print)


async def test_samplers_get_one_hit_of_64(client: Redis) -> None:
    """The first one, whatever came before; a miss is no turn. Each other event is there, and `counts` has all hits."""
    every, sampled = list[Event](), list[Event]()
    cache = Cache(client)
    cache.samplers.append(sampled.append)

    @cache.cached("number:{number}")
    async def load(number: int) -> int:
        return number

    for number in range(3):
        await load(number)
    for _ in range(64):
        await load(0)
    assert [event.kind for event in sampled] == ["miss", "load", "loaded", "fill"] * 3 + ["hit"]
    cache.hooks.append(every.append)
    await load(0)
    await load(0)
    assert [event.kind for event in every] == ["hit", "hit"]
    assert sampled[13:] == every[:1]
    assert all(event.seconds and event.size for event in every)
    assert cache.counts()[load.__qualname__] == load.stats == Stats(hits=66, misses=3, loads=3, fills=3)


async def test_events_of_a_shared_load(client: Redis, gated: GatedClient) -> None:
    """There is one load and one fill; the follower joins."""
    heard: list[Event] = []
    loader, cache = Loader(), Cache(hook=heard.append)

    @cache.cached("item:{number}")
    async def load(redis: Redis, number: int) -> Item:
        return loader.item(number)

    gate = gated.gates.before("fill")
    leader = asyncio.create_task(load(gated, 1))
    await gate.reached()
    await load(client, 1)
    gate.open()
    await leader
    assert [event.kind for event in heard] == ["miss", "load", "loaded", "miss", "join", "fill"]


async def test_the_sum_over_all_functions_is_the_caches(client: Redis) -> None:
    """`Cache.stats()` adds up what was decorated with it, and nothing else."""
    loader, cache, other = Loader(), Cache(client), Cache(client)

    @cache.cached("one:{number}")
    async def one(number: int) -> Item:
        return loader.item(number)

    @cache.cached("two:{number}")
    async def two(number: int) -> Item:
        return loader.item(number)

    await one(1)
    await two(1)
    await two(1)
    assert cache.stats() == one.stats + two.stats == Stats(hits=1, misses=2, loads=2, fills=2)
    assert other.stats() == Stats()


async def test_a_hook_that_raises(client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """No call and no invalidation fails for it; it is said once for each function."""

    def hook(event: Event) -> None:
        raise ValueError(event.key)

    cache = Cache(client, hook=hook)

    @cache.cached("number:{number}")
    async def load(number: int) -> int:
        return number

    @cache.invalidates("number:{result}")
    async def change(number: int) -> int:
        return number

    assert await load(1) == await load(1) == 1
    assert load.stats.hits == 1
    await change(1)
    assert not await client.exists("number:1")
    assert [record.getMessage() for record in caplog.records] == ["the hook raises ValueError: this is logged once"] * 2
    await cache.aclose()
