"""No script of the protocol does more than a bounded amount of work, whatever others have left in Redis."""

from __future__ import annotations

import contextlib
import secrets

import pytest
from redis.asyncio import Redis

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys import Image, Prefix
from fastrdb.protocol import Fill, Granted, Store
from fastrdb.protocol.interface import UNKNOWN
from tests.races.mechanisms import without
from tests.support.waiting import until
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
    end = await now_ms(client) + 60_000
    names = [f"{secrets.token_hex(16)}\0users:id=x{number}\0\n\0" for number in range(MANY)]
    await client.zadd("fastrdb:barriers", dict.fromkeys(names, end))
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


async def barred_by_others(client: Redis) -> bool:
    """Return whether a key counts as barred while very many writers of other keys are about to commit."""
    store = store_on(client)
    await granted(store, client, "user:1")
    end = await now_ms(client) + 60_000
    await client.zadd("fastrdb:barriers", {f"{secrets.token_hex(16)}x{number}\n=": end for number in range(MANY)})
    found = await store.inspect(client, "user:2")
    await store.aclose()
    return found.barred


async def test_miss_looks_at_a_bounded_number_of_barriers(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """With more of them the key counts as barred; without the bound, the script looks at all."""
    assert await barred_by_others(client)
    await client.flushall()
    without("looks-bounded").apply(monkeypatch.setattr)
    assert not await barred_by_others(client)


async def deleted_by_a_glob(client: Redis) -> int:
    """Return how many long keys a glob deletes that fits none of them."""
    store = store_on(client)
    for number in range(100):
        lease = await granted(store, client, f"user:{'a' * 400}{number}")
        await filled(store, client, f"user:{'a' * 400}{number}", lease)
    prefix = Prefix.of("user:*?z")
    assert prefix is not None
    deleted = await store.invalidate(client, [prefix])
    await store.aclose()
    return deleted


async def test_sweep_compares_a_bounded_number_of_letters(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """More is deleted, since a key that is not compared counts as a match. Without the bound, all are compared."""
    assert await deleted_by_a_glob(client) > 0
    await client.flushall()
    without("steps-bounded").apply(monkeypatch.setattr)
    assert await deleted_by_a_glob(client) == 0


async def standing_after_a_repair(client: Redis) -> int:
    """Return how many barriers stand when a COMMIT whose outcome is unknown has been repaired."""
    store = store_on(client)
    intent = store.intent(client)
    intent.add(keys=["user:1"])
    await intent.begin()
    intent.abandon()

    async def repaired() -> bool:
        return not store.has_pending

    await until(repaired)
    await store.aclose()
    return int(await client.zcount("fastrdb:barriers", 1, "(+inf"))


async def test_barriers_of_a_repair_replace_those_of_the_commit(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """One barrier stands for each target, and not one more for each COMMIT that was abandoned."""
    assert await standing_after_a_repair(client) == 1
    await client.flushall()
    without("barriers-replaced").apply(monkeypatch.setattr)
    assert await standing_after_a_repair(client) == 2


async def test_writer_looks_at_all_columns_without_the_bound(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the mechanism, the names of thousands of columns are too many for one script."""
    without("columns-bounded").apply(monkeypatch.setattr)
    store = store_on(client)
    await granted(store, client, "user:1")
    await client.zadd("fastrdb:columns", {f"users:c{number}": 0 for number in range(20_000)})
    with contextlib.suppress(CacheUnavailableError):
        await store.invalidate(client, images=[WRITE])
    assert "users:" not in store._writer.columns
    await store.aclose()


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
