"""No script of the protocol does more than a bounded amount of work, whatever others have left in Redis."""

from __future__ import annotations

import secrets

import pytest
from redis.asyncio import Redis

from fastrdb.keys import Image
from fastrdb.protocol import Fill, Granted, Store
from fastrdb.protocol.interface import UNKNOWN
from tests.races.mechanisms import without
from tests.support.world.stores import store_on

MANY = 3000
TAGS = ("users\0", "users:id=1\0")
WRITE = Image("users", {"id": frozenset(["2"])})


async def granted(store: Store, client: Redis, key: str) -> Granted:
    """Return the lease of a key whose value may have tags."""
    outcome = (await store.acquire(client, {key: secrets.token_hex(16)}, tagged=True))[key]
    assert isinstance(outcome, Granted)
    return outcome


async def filled(store: Store, client: Redis, key: str, lease: Granted) -> bool | bytes:
    """Store a value with tags under a lease."""
    (stored,) = await store.fill(client, [Fill(key, lease.lease, b"1", 60_000, TAGS, lease.since)])
    return stored


async def now_ms(client: Redis) -> int:
    """Return the server's time."""
    seconds, micros = await client.time()
    return int(seconds) * 1000 + int(micros) // 1000


async def refused_behind_barriers(client: Redis) -> None:
    """Fill while very many writers of other rows are about to commit."""
    store = store_on(client)
    lease = await granted(store, client, "user:1")
    assert await filled(store, client, "user:1", lease) is True
    lease = await granted(store, client, "user:2")
    until = await now_ms(client) + 60_000
    names = [f"{secrets.token_hex(16)}\0users:id=x{number}\0\n\0" for number in range(MANY)]
    await client.zadd("fastrdb:barriers", dict.fromkeys(names, until))
    assert await filled(store, client, "user:2", lease) == UNKNOWN
    await client.zrem("fastrdb:barriers", *names[: MANY // 2])
    assert await filled(store, client, "user:3", await granted(store, client, "user:3")) is True
    await store.aclose()


async def test_fill_looks_at_a_bounded_number_of_barriers(client: Redis) -> None:
    """With more of them the value is answered, and not stored. With fewer, barriers on other rows are no obstacle."""
    await refused_behind_barriers(client)


async def test_fill_looks_at_all_barriers_without_the_bound(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mechanism, each fill looks at all."""
    without("name-looks-bounded").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await refused_behind_barriers(client)


async def forgotten_by_a_write(client: Redis) -> int:
    """Return how many of many old stamps one write forgets."""
    store = store_on(client)
    assert await filled(store, client, "user:1", await granted(store, client, "user:1")) is True
    old = (await now_ms(client) - 3_600_000) * 1000
    await client.zadd("fastrdb:ended", {f"users:id=x{number}\0": old + number for number in range(MANY)})
    await store.invalidate(client, images=[WRITE])
    left = await client.zcount("fastrdb:ended", old, old + MANY)
    await store.aclose()
    return MANY - int(left)


async def test_write_forgets_more_stamps_than_it_adds_and_not_all_at_once(client: Redis) -> None:
    """So the set does not grow, and the first write after a busy time does not hold the server up."""
    assert 3 < await forgotten_by_a_write(client) < 100


async def test_write_forgets_all_stamps_without_the_bound(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mechanism, one write forgets all."""
    without("stamps-forgotten-in-portions").apply(monkeypatch.setattr)
    assert await forgotten_by_a_write(client) == MANY


async def test_write_of_a_table_with_very_many_columns_in_use_reaches_all_of_its_rows(client: Redis) -> None:
    """A writer that names one row does not name each of thousands of columns: more is deleted, and no entry is old."""
    store = store_on(client)
    assert await filled(store, client, "user:1", await granted(store, client, "user:1")) is True
    other = await granted(store, client, "order:1")
    (stored,) = await store.fill(client, [Fill("order:1", other.lease, b"1", 60_000, ("orders:id=1\0",), other.since)])
    assert stored is True or stored == b"orders:id=1\0"
    await client.zadd("fastrdb:columns", {f"users:c{number}": 0 for number in range(20_000)})
    await store.invalidate(client, images=[WRITE])
    assert await client.get("user:1") is None
    assert (await client.get("order:1") is not None) is (stored is True)
    await store.aclose()
