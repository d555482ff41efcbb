"""What one transaction does to the cache, against readers and other writers that come at the worst time."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import Redis

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Barred, Granted, Store
from fastrdb.protocol import intent as intents
from fastrdb.protocol.lua import load_script
from fastrdb.testing import GatedClient
from tests.protocol.test_store import prefix
from tests.protocol.test_sweep import stored
from tests.support.world.stores import acquire, fill, lapse_barriers, load_scripts, members, put, store_on

USERS = prefix("user:*")


@pytest.fixture
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Yield a store with a deadline that a busy machine keeps, on what the test runs on."""
    made = store_on(request.getfixturevalue("any_client") if "any_client" in request.fixturenames else None)
    yield made
    await made.aclose()


def name_of(gated: GatedClient, script: str) -> str:
    """Return the name by which the gates know a script."""
    return gated.name_of(("EVALSHA", load_script("server", script).sha))


async def barriers(client: Redis) -> int:
    """Count the barriers that stand."""
    return len(await members(client, "barriers"))


# --- readers


async def test_a_load_from_before_the_commit_is_not_stored(any_client: Redis, store: Store) -> None:
    """The reader read the old row before a commit; its fill after that commit is refused."""
    assert await acquire(store, any_client, "user:1", "reader") == Granted()
    intent = store.intent(any_client)
    intent.add([USERS])
    await intent.begin()
    await intent.end(committed=True)
    assert not await fill(store, any_client, "user:1", "reader", b"old", 60_000)
    assert await store.get(any_client, "user:1") is None


@pytest.mark.parametrize("committed", [True, False])
async def test_nobody_stores_between_begin_and_end(any_client: Redis, store: Store, committed: bool) -> None:
    """From begin to the known end every key reached is barred, others are not; then readers may store again."""
    intent = store.intent(any_client)
    intent.add([USERS], ["page:1"])
    await intent.begin()
    assert await acquire(store, any_client, "user:1", "t") == Barred()
    assert await acquire(store, any_client, "page:1", "t") == Barred()
    assert await acquire(store, any_client, "page:10", "t") == Granted()
    await intent.end(committed)
    assert await acquire(store, any_client, "user:1", "t") == Granted()
    assert await acquire(store, any_client, "page:1", "t") == Granted()
    assert await barriers(any_client) == 0


async def test_an_acquire_sent_twice_around_a_begin_leaves_no_lease(any_client: Redis, store: Store) -> None:
    """Granted, reply lost, a barrier set, sent again: barred, and the lease does not stay."""
    await acquire(store, any_client, "user:1", "reader")
    intent = store.intent(any_client)
    intent.add([USERS])
    await put(any_client, "barriers", {b"%s" % b"w" * 32 + b"user:\n": 9e15})
    assert await acquire(store, any_client, "user:1", "reader") == Barred()
    assert not (await store.inspect(any_client, "user:1")).leased


async def test_all_barriers_stand_before_anything_is_deleted(gated: GatedClient) -> None:
    """With more prefixes than fit one call, the last barrier is set before the first entry goes."""
    store = Store(timeout=5, chunk=4)
    texts = [f"p{n}:" for n in range(10)]
    await stored(gated, store, [f"{text}{n}" for text in texts for n in range(3)])
    await load_scripts(gated)
    gated.log.clear()
    intent = store.intent(gated)
    intent.add(map(prefix, texts))
    gates = [gated.before(name_of(gated, "begin")) for _ in range(4)]
    task = asyncio.create_task(intent.begin())
    for at, gate in enumerate(gates):
        await gate.reached()
        entries = len(await Redis(connection_pool=gated.connection_pool).keys("p*"))
        assert entries == 30 or await barriers(Redis(connection_pool=gated.connection_pool)) == 10, at
        gate.open()
    await task
    assert await gated.keys("p*") == []


async def test_a_reader_cannot_come_back_behind_the_sweep(gated: GatedClient) -> None:
    """Between two portions of a sweep: what was swept cannot be leased, what is filled ahead is swept yet."""
    store = Store(timeout=5, chunk=5)
    other = Redis(connection_pool=gated.connection_pool)
    await stored(other, store, [f"user:{n}" for n in range(10, 30)])
    await acquire(store, other, "user:99", "reader")
    await load_scripts(gated)
    gated.log.clear()
    intent = store.intent(gated)
    intent.add([USERS])
    gated.before(name_of(gated, "begin")).open()
    gate = gated.before(name_of(gated, "begin"))
    task = asyncio.create_task(intent.begin())
    await gate.reached()
    assert await store.get(other, "user:10") is None
    assert await acquire(store, other, "user:10", "late") == Barred()
    assert await fill(store, other, "user:99", "reader", b"old", 60_000)
    gate.open()
    await task
    assert await other.keys("user:*") == []
    assert await acquire(store, other, "user:99", "late") == Barred()


async def test_a_lapsed_barrier_bars_nobody_and_is_cleared(any_client: Redis, store: Store) -> None:
    """A writer that died bars until its deadline; the next begin takes its barrier away."""
    await put(any_client, "barriers", {b"w" * 32 + b"user:\n": 1})
    assert await acquire(store, any_client, "user:1", "t") == Granted()
    intent = store.intent(any_client)
    intent.add([prefix("page:*")])
    await intent.begin()
    assert await barriers(any_client) == 1


# --- write-through


async def test_a_value_is_written_through_under_the_own_prefix(any_client: Redis) -> None:
    """The own sweep does not take the own lease away, however it is cut; the value is there once committed."""
    for chunk in (1, 3, 256):
        store = store_on(any_client, chunk=chunk)
        await stored(any_client, store, [f"user:{n}" for n in range(10)])
        intent = store.intent(any_client)
        intent.add([USERS], ["user:5"])
        intent.put("user:5", b"draft", 60_000)
        intent.put("user:5", b"new", 60_000)
        intent.put("user:77", b"more", 60_000)
        await intent.begin()
        assert await store.get(any_client, "user:5") is None
        await intent.end(committed=True)
        assert await store.get_many(any_client, ["user:5", "user:77", "user:1"]) == [b"new", b"more", None]
        assert await store.invalidate(any_client, [USERS]) == 2


async def test_a_rollback_leaves_nothing(any_client: Redis, store: Store) -> None:
    """After a rollback there is no value, no lease and no barrier."""
    intent = store.intent(any_client)
    intent.add([USERS])
    intent.put("user:1", b"never", 60_000)
    await intent.begin()
    await intent.end(committed=False)
    assert await store.get(any_client, "user:1") is None
    assert await acquire(store, any_client, "user:1", "t") == Granted()


async def test_a_put_alone_deletes_the_entry_before_the_commit(any_client: Redis, store: Store) -> None:
    """A key that is only put is barred and its old entry gone from begin on, as if it had been added."""
    await stored(any_client, store, ["user:1"])
    intent = store.intent(any_client)
    intent.put("user:1", b"new", 60_000)
    await intent.begin()
    assert await store.get(any_client, "user:1") is None
    assert await acquire(store, any_client, "user:1", "t") == Barred()


async def test_a_rollback_spares_another_writers_lease(any_client: Redis, store: Store) -> None:
    """A writer that rolls back gives back its own leases only: the later writer's value is stored yet."""
    first, second = store.intent(any_client), store.intent(any_client)
    for intent in (first, second):
        intent.put("user:1", b"value", 60_000)
        await intent.begin()
    await first.end(committed=False)
    await second.end(committed=True)
    assert await store.get(any_client, "user:1") == b"value"


async def test_the_later_writer_of_a_key_wins(any_client: Redis, store: Store) -> None:
    """Two writers put one key: the one that began later took the lease, and only its value is stored."""
    first, second = store.intent(any_client), store.intent(any_client)
    first.put("user:1", b"1", 60_000)
    second.put("user:1", b"2", 60_000)
    await first.begin()
    await second.begin()
    await first.end(committed=True)
    assert await store.get(any_client, "user:1") is None
    assert await acquire(store, any_client, "user:1", "t") == Barred()
    await second.end(committed=True)
    assert await store.get(any_client, "user:1") == b"2"


async def test_another_writers_prefix_takes_the_lease(any_client: Redis, store: Store) -> None:
    """A later writer that only knows a prefix of the key has deleted the lease: the earlier value is not stored."""
    first, second = store.intent(any_client), store.intent(any_client)
    first.put("user:1", b"1", 60_000)
    second.add([USERS])
    await first.begin()
    await second.begin()
    await second.end(committed=True)
    await first.end(committed=True)
    assert await store.get(any_client, "user:1") is None


async def test_one_writer_does_not_lift_anothers_barrier(any_client: Redis, store: Store) -> None:
    """Two writers on one prefix: it is barred until both have ended."""
    first, second = store.intent(any_client), store.intent(any_client)
    for intent in (first, second):
        intent.add([USERS])
        await intent.begin()
    await first.end(committed=True)
    assert await acquire(store, any_client, "user:1", "t") == Barred()
    await second.end(committed=True)
    assert await acquire(store, any_client, "user:1", "t") == Granted()


async def test_a_later_add_drops_what_was_put_before(any_client: Redis, store: Store) -> None:
    """Something else under the key was invalidated after its value was read: the value is not written through."""
    for started in (False, True):
        intent = store.intent(any_client)
        for key in ("user:1", "user:2", "page:1"):
            intent.put(key, b"value", 60_000)
        if started:
            await intent.begin()
        intent.add([USERS], ["page:1"])
        intent.put("user:2", b"later", 60_000)
        await intent.begin()
        await intent.end(committed=True)
        assert await store.get_many(any_client, ["user:1", "user:2", "page:1"]) == [None, b"later", None]
        assert await acquire(store, any_client, "user:1", "t") == Granted()
        await store.invalidate(any_client, [prefix("*")])


async def test_a_second_begin_covers_what_was_added(any_client: Redis, store: Store) -> None:
    """A target that is added after begin is pending until the next; leases that were taken before survive its sweep."""
    await stored(any_client, store, ["page:1", "user:1"])
    intent = store.intent(any_client)
    intent.add([prefix("user:*")])
    intent.put("page:7", b"kept", 60_000)
    assert intent.pending
    await intent.begin()
    assert not intent.pending
    intent.add([prefix("user:*")])
    assert not intent.pending
    intent.add([prefix("page:1*")])
    assert intent.pending
    await intent.begin()
    assert await store.get(any_client, "page:1") is None
    assert await acquire(store, any_client, "page:1", "t") == Barred()
    intent.add([prefix("other:*")])
    await intent.begin()
    await intent.end(committed=True)
    assert await store.get(any_client, "page:7") == b"kept"
    assert await barriers(any_client) == 0


async def test_barriers_are_renewed_when_begin_comes_again_late(
    any_client: Redis, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A begin more than half a barrier's life after the first sets all barriers again, and sweeps again."""
    now = 1000.0
    monkeypatch.setattr(intents, "monotonic", lambda: now)
    intent = store.intent(any_client)
    intent.add([USERS])
    intent.put("user:1", b"kept", 60_000)
    intent.put("user:2", b"lost", 60_000)
    await intent.begin()
    await lapse_barriers(any_client)
    await any_client.delete("fastrdb:lease:{user:2}")
    await stored(any_client, store, ["user:2", "user:3"])
    await intent.begin()
    assert await barriers(any_client) == 0
    now += 5.1
    await intent.begin()
    assert await barriers(any_client) == 1
    assert await store.get_many(any_client, ["user:2", "user:3"]) == [None, None]
    await intent.end(committed=True)
    assert await store.get_many(any_client, ["user:1", "user:2"]) == [b"kept", None]


async def test_values_come_before_the_barriers_go(gated: GatedClient) -> None:
    """An end in several calls fills everything before it takes the first barrier down."""
    store = Store(timeout=5, chunk=2)
    other = Redis(connection_pool=gated.connection_pool)
    await load_scripts(gated)
    gated.log.clear()
    intent = store.intent(gated)
    for n in range(5):
        intent.put(f"user:{n}", b"1", 60_000)
    await intent.begin()
    gates = [gated.before(name_of(gated, "end")) for _ in range(5)]
    task = asyncio.create_task(intent.end(committed=True))
    for gate in gates:
        await gate.reached()
        assert await barriers(other) == 5 or len(await other.keys("user:*")) == 5
        gate.open()
    await task
    assert await barriers(other) == 0


async def test_many_keys_are_one_barrier(any_client: Redis, store: Store) -> None:
    """A bulk write bars the common head of its keys, not a thousand keys; keys under the own prefix need none."""
    intent = store.intent(any_client)
    intent.add(keys=[f"user:{n}" for n in range(1000)])
    await intent.begin()
    assert await barriers(any_client) == 1
    assert await acquire(store, any_client, "user:999", "t") == Barred()
    assert await acquire(store, any_client, "page:1", "t") == Granted()
    await intent.end(committed=True)
    intent = store.intent(any_client)
    intent.add([USERS], ["user:1"])
    intent.put("user:2", b"1", 60_000)
    await intent.begin()
    assert await barriers(any_client) == 1


async def test_many_prefixes_are_one_barrier(any_client: Redis, store: Store) -> None:
    """A bulk write with a prefix for each row bars what the prefixes have in common."""
    intent = store.intent(any_client)
    intent.add([Prefix(f"user:{n}", "", whole=True) for n in range(1000)])
    await intent.begin()
    assert await barriers(any_client) == 1
    assert await acquire(store, any_client, "user:999?a=b", "t") == Barred()
    assert await acquire(store, any_client, "page:1", "t") == Granted()
    await intent.end(committed=True)
    assert await acquire(store, any_client, "user:999?a=b", "t") == Granted()


# --- cancellation and unknown outcomes


async def test_a_cancelled_begin_is_taken_back(gated: GatedClient, store: Store) -> None:
    """Cancelled when the server had done it all: end(False) takes barriers and leases back."""
    await load_scripts(gated)
    gated.log.clear()
    intent = store.intent(gated)
    intent.add([USERS])
    intent.put("user:1", b"never", 60_000)
    gate = gated.after(name_of(gated, "begin"))
    task = asyncio.create_task(intent.begin())
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert intent.pending
    assert await barriers(gated) == 1
    await intent.end(committed=False)
    assert await barriers(gated) == 0
    assert await acquire(store, gated, "user:1", "t") == Granted()
    assert not store.has_pending


async def test_an_unknown_outcome_leaves_the_barrier(any_client: Redis, store: Store) -> None:
    """After an unknown outcome nothing is stored, and the keys stay barred; a later end changes nothing."""
    intent = store.intent(any_client)
    intent.add([USERS])
    intent.put("user:1", b"maybe", 60_000)
    await intent.begin()
    intent.abandon()
    await intent.end(committed=True)
    assert await acquire(store, any_client, "user:1", "t") == Barred()
    await store.repairs.aclose(5)
    assert await acquire(store, any_client, "user:1", "t") == Barred()
    assert await store.get(any_client, "user:1") is None


async def test_an_unknown_outcome_and_no_barrier(any_client: Redis, store: Store) -> None:
    """A server that was started again meanwhile has lost it: it is put up anew, and what has been stored since goes."""
    intent = store.intent(any_client)
    intent.add([USERS])
    await intent.begin()
    await lapse_barriers(any_client)
    await stored(any_client, store, ["user:1"])
    intent.abandon()
    await store.repairs.aclose(5)
    assert await store.get(any_client, "user:1") is None
    assert await acquire(store, any_client, "user:1", "t") == Barred()


async def test_redis_gone_at_the_end_leaves_nothing_stale(gated: GatedClient, store: Store) -> None:
    """End does not fail; the entries are gone, the barrier lapses by itself, and what it covered goes once more."""
    await stored(gated, store, ["user:1"])
    intent = store.intent(gated)
    intent.add([USERS])
    intent.put("user:1", b"new", 60_000)
    await intent.begin()
    gated.fail_with(ConnectionError("gone"))
    await intent.end(committed=True)
    assert store.has_pending, "nobody knows whether the barrier stood until the COMMIT"
    gated.heal()
    await store.aclose(10)
    assert not store.has_pending
    assert await store.get(gated, "user:1") is None
    assert await acquire(store, gated, "user:1", "t") == Barred()


async def test_a_begin_that_arrives_twice(any_client: Redis, store: Store) -> None:
    """It was sent again, and its first copy arrives when another writer has come and gone: what that one has written
    is not replaced by what is older."""
    one, copy, two = (store.intent(any_client) for _ in range(3))
    copy.token = one.token
    for intent, raw in ((one, b"older"), (copy, b"older"), (two, b"newer")):
        intent.put("user:1", raw, 60_000)
    await one.begin()
    await two.begin()
    await two.end(committed=True)
    assert await store.get(any_client, "user:1") == b"newer"
    await copy.begin()
    await one.end(committed=True)
    assert await store.get(any_client, "user:1") is None


async def test_a_barrier_that_was_down_before_the_end(any_client: Redis, store: Store) -> None:
    """Redis lost the barrier between begin and COMMIT, and a reader stored the old row: that entry is deleted."""
    intent = store.intent(any_client)
    intent.add([USERS])
    await intent.begin()
    await any_client.flushall()
    assert await acquire(store, any_client, "user:1", "reader") == Granted()
    assert await acquire(store, any_client, "user:2", "slow") == Granted()
    assert await fill(store, any_client, "user:1", "reader", b"old", 60_000)
    await intent.end(committed=True)
    assert await store.get(any_client, "user:1") is None
    assert not await fill(store, any_client, "user:2", "slow", b"old", 60_000)


async def test_a_barrier_that_lapsed_before_the_end(any_client: Redis) -> None:
    """The COMMIT took longer than the barrier stands: what was stored meanwhile goes when it is known to be done."""
    store = store_on(any_client, barrier=0.001)
    intent = store.intent(any_client)
    intent.add([USERS])
    await intent.begin()
    while await acquire(store, any_client, "user:1", "reader") == Barred():
        pass
    assert await fill(store, any_client, "user:1", "reader", b"old", 60_000)
    await intent.end(committed=True)
    assert await store.get(any_client, "user:1") is None


async def test_a_lease_that_came_back_is_not_written_through(client: Redis, store: Store) -> None:
    """After a restart with old data the own lease may be one that another writer had taken away: nothing is stored."""
    intent = store.intent(client)
    intent.put("user:1", b"older than another's", 60_000)
    await intent.begin()
    await client.delete("fastrdb:trusted")
    await intent.end(committed=True)
    assert not await client.exists("user:1")


async def test_a_barrier_that_stood_leaves_what_was_filled(any_client: Redis, store: Store) -> None:
    """A value that was put is there after the end, and nothing is swept twice; a rollback needs no second sweep."""
    for committed in (True, False):
        intent = store.intent(any_client)
        intent.add([USERS])
        intent.put("user:1", b"new", 60_000)
        await intent.begin()
        if not committed:
            await any_client.flushall()
            await stored(any_client, store, ["user:1"])
        await intent.end(committed=committed)
        assert await store.get(any_client, "user:1") == (b"new" if committed else b"1")


async def test_raise_aborts_the_commit(gated: GatedClient) -> None:
    """With on_error="raise", begin fails and nothing is pending, for nothing will be committed."""
    store = Store(timeout=5, on_error="raise")
    gated.fail_with(ConnectionError("gone"))
    intent = store.intent(gated)
    intent.add([USERS])
    with pytest.raises(CacheUnavailableError, match="begin: gone"):
        await intent.begin()
    await intent.end(committed=False)
    assert not store.has_pending
