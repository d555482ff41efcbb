"""Invalidations that Redis missed: pending, tried again, and ordered after their commits."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from contextlib import nullcontext, suppress
from functools import partial
from typing import Any

import pytest
from redis.asyncio import Redis

from fastrdb.protocol import Barred, Granted, Store, repairs
from fastrdb.protocol.keyspace import Target
from fastrdb.testing import GatedClient
from fastrdb.testing.server import EmbeddedServer
from tests.protocol.test_store import prefix
from tests.protocol.test_sweep import stored
from tests.support.world.stores import acquire, lapse_barriers

USERS = prefix("user:*")


class Pauses:
    """Sleeps that end when the test says so; `lengths` are what was asked for, in seconds."""

    def __init__(self) -> None:
        self.lengths: list[float] = []
        self._begun = asyncio.Event()
        self._over = asyncio.Event()

    async def sleep(self, length: float) -> None:
        self.lengths.append(length)
        self._begun.set()
        await self._over.wait()
        self._over.clear()

    async def begun(self) -> None:
        """Wait until a repair has failed and pauses."""
        await self._begun.wait()
        self._begun.clear()

    def end(self) -> None:
        """Release the repair for another try."""
        self._over.set()


@pytest.fixture
def pauses() -> Pauses:
    """Return the pauses of the store."""
    return Pauses()


@pytest.fixture
def make_store(pauses: Pauses) -> Callable[..., Store]:
    """Yield what makes stores whose repairs pause as the test says."""
    return partial(Store, timeout=5, sleep=pauses.sleep)


@pytest.fixture
def make_client(server: EmbeddedServer) -> Callable[[], Any]:
    """Yield what makes clients."""
    return partial(Redis, port=server.port)


@pytest.fixture
async def store(make_store: Callable[..., Store]) -> Store:
    """Yield a store."""
    return make_store()


async def repaired(store: Store) -> None:
    """Wait until nothing is pending."""
    await store.aclose(10)
    assert not store.has_pending


async def test_a_commit_without_redis_is_made_up_for(gated: GatedClient, store: Store, pauses: Pauses) -> None:
    """The commit stands, this process reads past the cache, and the entries go as soon as Redis is back."""
    await stored(gated, store, ["user:1", "user:2", "page:1"])
    gated.fail_with(ConnectionError("gone"))
    intent = store.intent(gated)
    intent.add([USERS])
    intent.put("page:1", b"new", 60_000)
    await intent.begin()
    assert store.has_pending
    await intent.end(committed=True)
    await pauses.begun()
    assert store.has_pending
    gated.heal()
    pauses.end()
    await repaired(store)
    assert await store.get_many(gated, ["user:1", "user:2", "page:1"]) == [None, None, None]


async def test_pauses_grow_to_a_fifth_of_a_second(gated: GatedClient, store: Store, pauses: Pauses) -> None:
    """The first attempt comes at once, then after pauses that double up to a fifth of a second."""
    gated.fail_with(ConnectionError("gone"))
    await store.invalidate_soon(gated, [USERS])
    for _ in range(7):
        await pauses.begun()
        pauses.end()
    await pauses.begun()
    gated.heal()
    pauses.end()
    await repaired(store)
    assert pauses.lengths == [0.05, 0.1, 0.2, 0.2, 0.2, 0.2, 0.2, 0.2]


async def test_a_repair_before_the_commit_does_not_count(gated: GatedClient, store: Store) -> None:
    """Redis comes back between begin and COMMIT: barred at once, and swept once more when the commit is known."""
    gated.fail_with(ConnectionError("a moment"), times=1)
    intent = store.intent(gated)
    intent.add([USERS])
    await intent.begin()
    await repaired(store)
    assert await acquire(store, gated, "user:1", "reader") == Barred()
    await lapse_barriers(gated)  # as when the transaction takes longer than a barrier
    await stored(gated, store, ["user:1"])
    await intent.end(committed=True)
    assert store.has_pending
    await repaired(store)
    assert await store.get(gated, "user:1") is None
    assert await acquire(store, gated, "user:1", "reader") == Granted()


async def test_an_unknown_outcome_is_repaired_under_a_barrier(gated: GatedClient, store: Store, pauses: Pauses) -> None:
    """Begin failed, and whether it committed is not known: the repair leaves a barrier, for it may commit yet."""
    gated.fail_with(ConnectionError("gone"))
    intent = store.intent(gated)
    intent.add([USERS])
    await intent.begin()
    intent.abandon()
    await pauses.begun()
    gated.heal()
    pauses.end()
    await repaired(store)
    assert await acquire(store, gated, "user:1", "t") == Barred()


async def test_an_unknown_outcome_that_nobody_began_is_barred(client: Redis, store: Store) -> None:
    """Nothing was begun and the outcome is not known: the repair bars, for it may commit yet."""
    intent = store.intent(client)
    intent.add([USERS])
    intent.abandon()
    await repaired(store)
    assert await acquire(store, client, "user:1", "t") == Barred()


async def test_a_commit_that_nobody_began_is_owed(gated: GatedClient, store: Store) -> None:
    """Something was added after the last begin, or begin was cancelled, and it committed all the same."""
    await stored(gated, store, ["user:1"])
    intent = store.intent(gated)
    intent.add([USERS])
    intent.put("page:1", b"new", 60_000)
    await intent.end(committed=True)
    assert store.has_pending
    await repaired(store)
    assert await store.get_many(gated, ["user:1", "page:1"]) == [None, None]


async def test_what_is_owed_during_an_attempt_is_another_attempts(gated: GatedClient, store: Store) -> None:
    """A commit that ends while its prefix is being repaired is repaired again: that attempt was too early."""
    await store.invalidate(gated, [USERS])
    gated.log.clear()
    gate = gated.after("begin")
    store.repairs.add(gated, [Target(b"user:")], barred=True, reason="a test")
    await gate.reached()
    store.repairs.add(gated, [Target(b"user:")], barred=False, reason="a test")
    gate.open()
    await repaired(store)
    assert gated.names() == ["begin", "begin"]


async def test_invalidate_soon_never_loses_anything(gated: GatedClient, store: Store) -> None:
    """A failure is pending and not raised; a cancellation is pending and passes through."""
    await stored(gated, store, ["user:1", "page:1"])
    gated.fail_with(ConnectionError("a moment"), times=1)
    await store.invalidate_soon(gated, [USERS])
    assert store.has_pending
    await repaired(store)
    gate = gated.before("begin")
    task = asyncio.create_task(store.invalidate_soon(gated, [prefix("page:*")]))
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert store.has_pending
    await repaired(store)
    assert await store.get_many(gated, ["user:1", "page:1"]) == [None, None]


async def test_what_is_owed_is_bounded(gated: GatedClient, make_store: Callable[..., Store], pauses: Pauses) -> None:
    """The same target is pending once; more targets than can be remembered become everything, of the namespace."""
    store = make_store(namespace="ns")
    await stored(gated, store, ["user:1"])
    await gated.set("beside", b"1")
    gated.fail_with(ConnectionError("gone"))
    for _ in range(2):
        await store.invalidate_soon(gated, keys=[f"k:{n}" for n in range(repairs._MOST_PENDING)])
    assert len(store.repairs._pending) == repairs._MOST_PENDING
    await store.invalidate_soon(gated, keys=["one more"])
    assert store.repairs._pending == {Target(b"ns:"): False}
    gated.heal()
    pauses.end()
    await repaired(store)
    assert await store.get(gated, "user:1") is None
    assert await gated.get("beside") == b"1"


async def test_one_message_per_change_of_state(
    gated: GatedClient, store: Store, pauses: Pauses, caplog: pytest.LogCaptureFixture
) -> None:
    """Once it is said what is pending and what is done, and what the breaker does, however many commits there were."""
    caplog.set_level(logging.INFO, "fastrdb")
    gated.fail_with(ConnectionError("gone"))
    for _ in range(3):
        intent = store.intent(gated)
        intent.add([USERS])
        await intent.begin()
        await intent.end(committed=True)
        await pauses.begun()
        pauses.end()
    await pauses.begun()
    gated.heal()
    pauses.end()
    await repaired(store)
    told = [(record.levelname, "invalidation" in record.getMessage()) for record in caplog.records]
    assert sorted(told) == sorted([("WARNING", True), ("INFO", True), *[("WARNING", False)] * 2, ("INFO", False)])


async def test_closing_gives_up_at_its_limit(gated: GatedClient, store: Store, pauses: Pauses) -> None:
    """A target that Redis has not taken by then is dropped with the process: no task is left behind."""
    gated.fail_with(ConnectionError("gone"))
    await store.invalidate_soon(gated, [USERS])
    await pauses.begun()
    await store.aclose(0)
    assert store.repairs._task is None
    await store.aclose(0)


async def test_no_client_is_held_when_nothing_is_owed(gated: GatedClient, store: Store) -> None:
    """The store holds a client only as long as there is something to repair."""
    gated.fail_with(ConnectionError("a moment"), times=1)
    await store.invalidate_soon(gated, [USERS])
    assert store.repairs._client is gated
    await repaired(store)
    assert store.repairs._client is None


def test_what_is_owed_outside_of_a_loop_waits_for_one(make_client: Callable[[], Any], store: Store) -> None:
    """A transaction dropped outside of any loop is repaired by the next caller that asks for a bypass reason."""
    client = make_client()
    intent = store.intent(client)
    intent.add([USERS])
    intent.abandon()

    async def later() -> None:
        assert store.bypass_reason(client)
        await repaired(store)
        await client.aclose()

    asyncio.run(later())


async def test_a_wider_target_covers_narrower_ones(gated: GatedClient, store: Store, pauses: Pauses) -> None:
    """A target under a pending prefix is not pending besides, whichever came first; a barrier is not given up."""
    gated.fail_with(ConnectionError("gone"))
    await store.invalidate_soon(gated, keys=["user:1", "page:1"])
    await pauses.begun()
    await store.invalidate_soon(gated, [USERS])
    await store.invalidate_soon(gated, keys=["user:2"])
    assert store.repairs.left() == {Target(b"page:1", b"="): False, Target(b"user:"): False}
    intent = store.intent(gated)
    intent.add(keys=["user:3"])
    intent.abandon()
    assert store.repairs.left()[Target(b"user:3", b"=")] is True
    gated.heal()
    pauses.end()
    await repaired(store)


async def test_a_wider_target_covers_what_was_being_tried(gated: GatedClient, store: Store, pauses: Pauses) -> None:
    """A narrower target whose repair has failed meanwhile is not pending once more."""
    await store.invalidate(gated, [USERS])
    gate = gated.before("begin")
    store.repairs.add(gated, [Target(b"user:1:")], barred=False, reason="a test")
    await gate.reached()
    store.repairs.add(gated, [Target(b"user:")], barred=False, reason="a test")
    gated.fail_with(ConnectionError("gone"))
    gate.open()
    await pauses.begun()
    assert store.repairs.left() == {Target(b"user:"): False}
    gated.heal()
    pauses.end()
    await repaired(store)


class Deaf(Pauses):
    """Pauses of which the first loses its cancellation, as `asyncio.wait_for` may, which redis-py uses."""

    async def sleep(self, length: float) -> None:
        with nullcontext() if self.lengths else suppress(asyncio.CancelledError):
            await super().sleep(length)


async def test_closing_insists(gated: GatedClient, make_store: Callable[..., Store]) -> None:
    """A repair tries until it succeeds: one that has missed its end at first ends all the same."""
    pauses = Deaf()
    store = make_store(sleep=pauses.sleep)
    gated.fail_with(ConnectionError("gone"))
    await store.invalidate_soon(gated, [USERS])
    await pauses.begun()
    async with asyncio.timeout(20):
        await store.aclose(0)
    assert len(pauses.lengths) == 2
