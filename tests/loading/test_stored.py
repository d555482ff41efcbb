"""`peek`: the JSON in Redis that a call would be answered with."""

from __future__ import annotations

import math
from hashlib import sha256
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, OptionError
from fastrdb.testing import FaultyClient
from tests.support.servers.databases import Database


class Item(BaseModel):
    id: int


def decorated(cache: Cache, **options: Any) -> Any:
    """Return a cached function of a number."""

    @cache.cached("item:{number}", **options)  # type: ignore[untyped-decorator]
    async def load(redis: Redis, number: int) -> Item:
        return Item(id=number)

    return load


async def test_peek_gives_what_is_stored_and_counts_nothing(any_client: Any) -> None:
    """Key without the namespace, bytes, digest and TTL; None before the first call."""
    cache = Cache(namespace="shop")
    load = decorated(cache, exp=60, jitter=0)
    assert await load.peek(any_client, 1) is None
    await load(any_client, 1)
    before = load.stats
    found = await load.peek(any_client, 1)
    assert (found.key, found.json, found.digest) == ("item:1", b'{"id":1}', sha256(b'{"id":1}').hexdigest())
    assert 50 < found.ttl <= 60
    assert load.stats == before


async def test_what_shows_a_peek_is_not_stored(client: Redis) -> None:
    """The entry that was looked at may be dropped by a write that would not reach the answer made of it."""
    cache = Cache()
    load = decorated(cache)

    @cache.cached("outer:{number}")
    async def outer(redis: Redis, number: int) -> str:
        found = await load.peek(redis, number)
        return "nothing" if found is None else found.json.decode()

    assert await outer(client, 1) == "nothing"
    assert await client.delete("outer:1") == 1
    await load(client, 1)
    assert await outer(client, 1) == '{"id":1}'
    assert not await client.exists("outer:1")
    assert outer.stats.fills == 1


async def test_peek_at_a_known_entry_is_one_get(client: Redis) -> None:
    """The first look at these bytes decodes them and asks for the TTL; the next one does neither."""
    cache, sent = Cache(), list[str]()
    load = decorated(cache)
    await load(client, 1)
    watched = Watched(client, sent)
    first = await load.peek(watched, 1)
    assert sent == ["GET", "GET", "PTTL"]
    sent.clear()
    second = await load.peek(watched, 1)
    assert sent == ["GET"]
    assert (second.json, second.ttl <= first.ttl) == (first.json, True)


async def test_peek_never_promises_more_than_is_left(client: Redis) -> None:
    """The same bytes may be stored again, and `jitter` may give them a shorter life than before."""
    cache = Cache()
    load = decorated(cache, exp=60, jitter=0.9)
    await load(client, 1)
    await client.pexpire("item:1", 60_000)
    assert (await load.peek(client, 1)).ttl > 50
    await client.pexpire("item:1", 6_001)  # as after an invalidation and a load
    assert (await load.peek(client, 1)).ttl <= 6.001


class Watched(FaultyClient):
    """A client that notes the name of each command."""

    def __init__(self, client: Redis, sent: list[str]) -> None:
        super().__init__(client)
        self.sent = sent

    async def approach(self, names: list[str]) -> None:
        self.sent.extend(name for name in names if name in ("GET", "PTTL"))
        await super().approach(names)


async def test_peek_hands_on_no_other_value(client: Redis) -> None:
    """Neither JSON of another type, nor a row that is known to be missing, nor what a load would have to replace."""
    cache = Cache()
    load = decorated(cache)
    for other in (b'{"id": "x"}', b'{"id": 1, "more": 2}', b" {}", b"null"):
        await client.set("item:1", other)
        assert await load.peek(client, 1) is None
    await client.set("item:1", b'{"id":1}')
    assert (await load.peek(client, 1)).ttl == math.inf


async def test_peek_gives_nothing_that_is_over(client: Redis) -> None:
    """An entry whose `exp` is over is kept for fail_safe, and is no answer of its own."""
    cache = Cache()
    load = decorated(cache, exp=60, jitter=0, fail_safe=600)
    await load(client, 1)
    assert (await load.peek(client, 1)).ttl <= 60
    await load(client, 2)
    await client.pexpire("item:2", 500_000)
    assert await load.peek(client, 2) is None


async def test_peek_reads_past_nothing_that_a_call_respects(client: Redis, sqlite: Database) -> None:
    """In a session that has written, and where the cache is disabled, there is no answer from the cache."""
    cache = Cache(client)

    @cache.cached("item:{number}")
    async def load(number: int, db: AsyncSession) -> Item:
        return Item(id=number)

    async with sqlite.sessions() as db:
        await load(1, db)
        assert await load.peek(1, db) is not None
        with cache.disabled():
            assert await load.peek(1, db) is None


async def test_peek_is_for_one_entry(client: Redis) -> None:
    """A function of many ids has an entry for each."""
    cache = Cache(client)

    @cache.cached_many("many:{numbers}")
    async def many(numbers: list[int]) -> dict[int, int]:
        return {number: number for number in numbers}

    with pytest.raises(OptionError, match="peek is for functions with one entry"):
        await many.peek([1])
