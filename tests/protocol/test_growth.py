"""Ids without end: what fastrdb keeps of them never outgrows the entries that live."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from redis.asyncio import Redis

from fastrdb.keys import row_tag, table_tag
from fastrdb.protocol import Fill, Granted, Store
from fastrdb.protocol.interface import DEAD_PER_FILL
from fastrdb.testing.server import EmbeddedServer
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.world.stores import acquire, acquire_many, fill, fill_many, release

BATCH = 500
TTL = 50  # milliseconds
SLACK = 1_000  # so long a member outlives its entry
DEADLINE = 5.0


@pytest.fixture(params=["redis", "valkey"])
async def client(request: pytest.FixtureRequest) -> Any:
    """Yield a client of each kind of server in turn, which is empty."""
    server: EmbeddedServer = request.getfixturevalue(f"{request.param}_server")
    async with Redis(port=server.port) as made:
        await made.flushall()
        yield made


def batches(number: int, head: str = "user") -> Iterator[list[str]]:
    """Yield as many ids as that, no two the same."""
    for start in range(0, number, BATCH):
        yield [f"{head}:{n}" for n in range(start, start + BATCH)]


async def used(client: Redis) -> tuple[int, int]:
    """Return how many members the index has, and how many bytes it and the list of deaths take."""
    sizes = [await client.memory_usage(f"fastrdb:{part}") or 0 for part in ("index", "expiry")]
    return await client.zcard("fastrdb:index"), sum(sizes)


async def alive(client: Redis) -> int:
    """Return how many members stand for what lives, or has died just now."""
    seconds, micros = await client.time()
    return await client.zcount("fastrdb:expiry", seconds * 1000 + micros // 1000, "+inf")


async def stored(client: Redis, number: int) -> int:
    """Store so many ids, each once and for a moment, and compare what there is; gives the most bytes that it took."""
    store, most = Store(timeout=DEADLINE), 0
    for keys in batches(number):
        await acquire_many(store, client, dict.fromkeys(keys, "t"))
        assert all(await fill_many(store, client, [(key, "t", b"1", TTL) for key in keys]))
        members, size = await used(client)
        assert members <= await alive(client) + 2 * BATCH
        most = max(most, size)
    return most


async def swept(client: Redis, number: int) -> None:
    """Check that fills clear dead members away: a tenth as many fills do."""
    store = Store(timeout=DEADLINE)
    await asyncio.sleep((TTL + SLACK) / 1000)  # by the server's clock
    for keys in batches(number // DEAD_PER_FILL + BATCH, "post"):
        await acquire_many(store, client, dict.fromkeys(keys, "t"))
        await fill_many(store, client, [(key, "t", b"1", 60_000) for key in keys])
        await store.invalidate(client, keys=keys)
    assert await client.zcard("fastrdb:index") == await client.zcard("fastrdb:expiry") == 1


async def test_ids_that_are_stored(client: Redis) -> None:
    """Some thousand, of which most have died by the end."""
    await stored(client, 6_000)
    await swept(client, 6_000)


async def tagged(client: Redis, number: int) -> None:
    """Store so many ids under one tag, which expire unread, and check that their tags go with them."""
    store, tags = Store(timeout=DEADLINE, lease=120.0), (table_tag("users"), row_tag("users", "id", 1) or "")
    for keys in batches(number):
        outcomes = await store.acquire(client, dict.fromkeys(keys, "t"), tagged=True)
        granted = {key: each for key, each in outcomes.items() if isinstance(each, Granted)}
        fills = [Fill(key, each.lease, b"1", TTL, tags, each.since) for key, each in granted.items()]
        assert await store.fill(client, fills) == [True] * len(keys)
        assert await client.hlen("fastrdb:tagged") <= await alive(client) + 2 * BATCH
        assert await client.zcard("fastrdb:tags") <= 2 * (await alive(client) + 2 * BATCH)
    await swept(client, number)
    assert await client.zcard("fastrdb:tags") == await client.hlen("fastrdb:tagged") == 1
    assert await client.zcard("fastrdb:ended") <= 3


async def test_ids_with_tags_that_expire_unread(client: Redis) -> None:
    """A hot tag does not grow."""
    await tagged(client, 2 * BATCH)


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_many_ids_with_tags_that_expire_unread(client: Redis) -> None:
    """The same with as many as a large application has in an hour."""
    await tagged(client, 100_000)


async def test_ids_that_are_not_there(client: Redis) -> None:
    """A load that fails leaves nothing in the index, and it clears away what is dead."""
    store = Store(timeout=DEADLINE)
    await stored(client, BATCH)
    await asyncio.sleep((TTL + SLACK) / 1000)  # by the server's clock
    for keys in batches(5_000, "nobody"):
        await acquire_many(store, client, dict.fromkeys(keys, "t"))
        await store.release(client, dict.fromkeys(keys, "t"))
    assert await client.zcard("fastrdb:index") == await client.zcard("fastrdb:expiry") == 1


async def test_a_lease_given_back_beside_an_entry(client: Redis) -> None:
    """A refresh that stores nothing takes nothing out of the index: the entry is still there."""
    store = Store(timeout=DEADLINE)
    await acquire(store, client, "k", "t")
    await fill(store, client, "k", "t", b"1", 60_000)
    await acquire(store, client, "k", "t", refresh=True)
    await release(store, client, "k", "t")
    assert await client.zscore("fastrdb:index", "k") == 0


@pytest.mark.slow
@pytest.mark.timeout(1200)
async def test_a_million_ids(client: Redis) -> None:
    """Memory stays as it was after the first tenth; however fast ids come, one second's worth of them is there."""
    first = await stored(client, 100_000)
    assert await stored(client, 1_000_000) < 2 * first
    await swept(client, 1_000_000)


@pytest.mark.parametrize(
    ("change", "fact"),
    [
        (without("fill-sweeps"), test_ids_that_are_stored),
        (without("tags-forgotten"), test_ids_with_tags_that_expire_unread),
        (without("release-forgets-missing"), test_ids_that_are_not_there),
        (without("release-sweeps"), test_ids_that_are_not_there),
        (without("release-forgets-missing", "if true then"), test_a_lease_given_back_beside_an_entry),
    ],
    ids=label,
)
async def test_without_it(client: Redis, monkeypatch: pytest.MonkeyPatch, change: Change, fact: Any) -> None:
    """One line of Lua less, and the index grows, or forgets what lives."""
    change.apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await fact(client)
