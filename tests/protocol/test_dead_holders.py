"""A lease whose holder is dead, or never saw the grant, is taken over; one that is renewed is waited for."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis

from fastrdb import Cache
from fastrdb.protocol import Busy, Granted, Store
from fastrdb.testing import GatedClient, Gates
from tests.races.mechanisms import without
from tests.support.world.stores import acquire, fill, store_on

LEASE = "fastrdb:lease:{k}"


@pytest.fixture
async def stores(any_client: Any) -> AsyncIterator[tuple[Store, Store]]:
    """Return the stores of two processes."""
    made = store_on(any_client), store_on(any_client)
    yield made
    for store in made:
        await store.aclose()


async def fresh_until(client: Any) -> int:
    """Return the moment (ms) until which the lease is fresh."""
    held: bytes = await client.get(LEASE)
    return int(held.rpartition(b"\n")[2])


async def let_pass(client: Any) -> None:
    """Put the lease's moment into the past, as if its holder had not renewed it for long."""
    held: bytes = await client.get(LEASE)
    await client.set(LEASE, held.rpartition(b"\n")[0] + b"\n1", keepttl=True)


async def take_over(client: Any, first: Store, second: Store) -> None:
    """Acquire a lease that another caller has let pass, and fill under it."""
    assert await acquire(first, client, "k", "dead") == Granted()
    assert await acquire(second, client, "k", "other") == Busy("dead")
    await let_pass(client)
    assert await acquire(second, client, "k", "other") == Granted()


async def test_lease_of_a_dead_holder_is_taken_over(any_client: Any, stores: tuple[Store, Store]) -> None:
    """The former holder's result is not stored any more."""
    first, second = stores
    await take_over(any_client, first, second)
    assert not await fill(first, any_client, "k", "dead", b"1", 60_000)
    assert await fill(second, any_client, "k", "other", b"2", 60_000)


async def test_dead_holder_is_waited_for_without_the_mechanism(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """The lease counts until its time is over."""
    without("dead-holders-noticed").apply(monkeypatch.setattr)
    store = store_on(client)
    with pytest.raises(AssertionError):
        await take_over(client, store, store)
    await store.aclose()


async def test_renewed_lease_is_fresh_and_still_that_grant(any_client: Any, stores: tuple[Store, Store]) -> None:
    """A renewal changes neither the grant nor the time at which the lease ends."""
    first, second = stores
    await acquire(first, any_client, "k", "me")
    await let_pass(any_client)
    await first.renew(any_client, {"k": "another's"})
    assert await fresh_until(any_client) == 1
    await first.renew(any_client, {"k": "me"})
    assert await fresh_until(any_client) > 1
    assert 0 < await any_client.pttl(LEASE) <= 10_000
    assert await acquire(second, any_client, "k", "other") == Busy("me")
    assert await fill(first, any_client, "k", "me", b"1", 60_000)


async def test_lease_without_a_moment_is_waited_for(any_client: Any, stores: tuple[Store, Store]) -> None:
    """An older version of fastrdb, beside this one during a deploy, does not renew its leases."""
    first, second = stores
    await acquire(first, any_client, "k", "old")
    held: bytes = await any_client.get(LEASE)
    await any_client.set(LEASE, held.rpartition(b"\n")[0], keepttl=True)
    assert await acquire(second, any_client, "k", "other") == Busy("old")


async def test_slow_load_renews_its_lease(gated: GatedClient) -> None:
    """Others find a fresh lease as long as the function runs, and no renewal is sent afterwards."""
    gates = Gates()
    gate = gates.before("load")
    async with Cache(timeout=5) as cache:

        @cache.cached("k")
        async def load(redis: Redis) -> int:
            await gates.arrive("load")
            return 1

        cache.runtime.store(gated).renewal_s = 0.001
        call = asyncio.create_task(load(gated))
        await gate.reached()
        await let_pass(gated)
        renewed = gated.after("renew")
        await renewed.reached()
        assert await fresh_until(gated) > 1
        renewed.open()
        gate.open()
        assert await call == 1
        assert await load(gated) == 1
        assert load.stats.hits == 1
