"""No script does work without bound, whatever stands in Redis and whatever a caller gives as an argument."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis

from fastrdb.keys import Prefix
from fastrdb.protocol import Barred, Granted, Store, repairs
from fastrdb.testing import FaultyClient
from tests.protocol.test_sweep import stored
from tests.races.mechanisms import without
from tests.support.world.stores import acquire, acquire_many, key_of, members, store_on

MOST_LOOKS = 2048
LAST = b"0" * 32 + b"\0\n"


async def bar_others(client: Any, count: int, key: str = "k") -> None:
    """Set so many barriers that do not cover the key, in its shard."""
    deadline = 10**14
    barriers = {b"%032dother:%d\n" % (at, at): deadline for at in range(count)}
    await client.zadd(key_of(client, "barriers", key), {**barriers, LAST: float("inf")})


@pytest.fixture
async def store(any_client: Any) -> Any:
    """Return a store that has been used."""
    made = store_on(any_client)
    assert await acquire(made, any_client, "k", "first") == Granted()
    await made.release(any_client, {"k": "first"})
    yield made
    await made.aclose()


async def test_miss_looks_at_a_bounded_number_of_barriers(any_client: Any, store: Store) -> None:
    """With as many as it looks at, an unrelated key is granted. With more, it counts as barred: nothing is stored."""
    await bar_others(any_client, MOST_LOOKS - 1)
    assert await acquire(store, any_client, "k", "a") == Granted()
    await store.release(any_client, {"k": "a"})
    await bar_others(any_client, MOST_LOOKS)
    assert await acquire(store, any_client, "k", "b") == Barred()


async def test_bound_is_for_a_script_and_not_for_a_key(any_client: Any, store: Store) -> None:
    """On a cluster one script enters many keys: those behind the bound count as barred."""
    await bar_others(any_client, MOST_LOOKS // 2)
    outcomes = await acquire_many(store, any_client, {"k": "a"})
    assert outcomes == {"k": Granted()}


@pytest.mark.parametrize("change", [without("looks-bounded", "if false then")], ids=str)
async def test_bound_is_lost_without_the_mechanism(client: Redis, monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    """All barriers are looked at, but for those that were not read."""
    change.apply(monkeypatch.setattr)
    async with asyncio.timeout(20):
        store = store_on(client)
        await acquire(store, client, "k", "first")
        await store.release(client, {"k": "first"})
        await bar_others(client, MOST_LOOKS)
        assert await acquire(store, client, "k", "b") != Barred()
        await store.aclose()


# Keys and prefixes that are the worst for a comparison letter by letter.
HOSTILE = [
    ("h:" + "a" * 400, "h:*" + "?" * 190 + "b"),
    ("h:" + "ab" * 200, "h:*a?a?a?a?b*a?a?c"),
    ("h:é" * 90, "h:*??é?*x"),
]


@pytest.mark.parametrize(("key", "pattern"), HOSTILE)
async def test_comparison_that_is_cut_short_deletes_more(any_client: Any, store: Store, key: str, pattern: str) -> None:
    """All that the prefix reaches is deleted, always; other entries may be."""
    prefix = Prefix.of(pattern)
    assert prefix is not None
    keys = [f"{key}{at}" for at in range(130)] + [f"{key}{at}b:c" for at in range(130)] + ["h:xb"]
    await stored(any_client, store, keys)
    await store.invalidate(any_client, [prefix])
    left = {each for each, raw in zip(keys, await store.get_many(any_client, keys), strict=True) if raw is not None}
    assert not {each for each in left if prefix.matches(each)}


async def test_comparison_that_is_cut_short_deletes_less_without_the_mechanism(
    client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the mechanism, entries that were not compared to the end would be left."""
    without("steps-bounded").apply(monkeypatch.setattr)
    store = store_on(client)
    with pytest.raises(AssertionError):
        await test_comparison_that_is_cut_short_deletes_more(client, store, *HOSTILE[0])
    await store.aclose()


async def test_barriers_of_abandoned_commits_are_replaced(any_client: Any, store: Store) -> None:
    """However many COMMITs of the same rows have an unknown outcome, one barrier stands for each prefix."""
    for _ in range(5):
        intent = store.intent(any_client)
        intent.add([Prefix.of("k*")])  # type: ignore[list-item]
        await intent.begin()
        intent.abandon()
        await store.repairs.aclose(5)
    standing = await members(any_client, "barriers")
    assert len({barrier for barrier in standing if barrier != LAST}) == 1
    assert await acquire(store, any_client, "k", "a") == Barred()


async def test_barriers_pile_up_without_the_mechanism(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each abandoned COMMIT leaves its own, until these lapse."""
    without("barriers-replaced").apply(monkeypatch.setattr)
    store = store_on(client)
    with pytest.raises(AssertionError):
        await test_barriers_of_abandoned_commits_are_replaced(client, store)
    await store.aclose()


async def test_barriers_of_a_repair_are_few(client: Redis) -> None:
    """Many rows whose COMMITs were abandoned are barred by their common head."""
    store = store_on(client)
    for number in range(repairs._MOST_BARRIERS + 10):
        store.repairs.add(client, [store.keyspace.exactly(f"tenant:a:{number}")], barred=True, reason="a test")
        await store.repairs.aclose(5)
    standing = {barrier[32:] for barrier in await members(client, "barriers")}
    assert b"tenant:a:\n" in standing
    assert len(standing) < repairs._MOST_BARRIERS
    assert await acquire(store, client, "tenant:a:1", "a") == Barred()
    assert await acquire(store, client, "tenant:b:1", "b") == Granted()
    await store.aclose()


async def test_many_pending_targets_leave_others_alone(client: Redis) -> None:
    """More targets than are remembered become their common prefix, and not the whole namespace."""
    faulty = FaultyClient(client)
    store = Store(namespace="ns", timeout=5)
    await stored(client, store, ["tenant:b:1"])
    faulty.fail_with(ConnectionError("gone"))
    await store.invalidate_soon(faulty, keys=[f"tenant:a:{n}" for n in range(repairs._MOST_PENDING + 1)])
    assert [target.head for target in store.repairs.left()] == [b"ns:tenant:a:"]
    faulty.heal()
    await store.repairs.aclose(5)
    assert await client.get("ns:tenant:b:1") == b"1"
    await store.aclose()
