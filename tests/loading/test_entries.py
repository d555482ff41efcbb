"""Whatever lies in Redis under a key: the value that was stored, or a miss that is counted, and replaced."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis

from fastrdb import Cache, OptionError, Stats, cached
from fastrdb.testing import GatedClient
from fastrdb.values.codec import ABSENT
from tests.support.world.items import Item, Loader


def item_loader() -> tuple[Any, Loader]:
    """Return a cached function and the loader that counts its loads."""
    loader = Loader()

    @cached("item:{number}")
    async def load(redis: Any, number: int) -> Item:
        return loader.item(number)

    return load, loader


async def test_an_entry_is_plain_json(client: Redis) -> None:
    """`redis-cli GET` shows the value."""
    load, _ = item_loader()
    await load(client, 1)
    raw = await client.get("item:1")
    assert raw is not None
    assert json.loads(raw) == {"id": 1, "name": "a"}


BROKEN = {
    "nothing": b"",
    "noise": b"\x80\x04\x95\xff\x00",
    "truncated": b'{"id":1,"na',
    "another type": b"[1, 2]",
    "another value": b'{"id":"one","name":"a"}',
    "a number as text": b'{"id":"1","name":"a"}',
    "null": b"null",
    "of an older schema": b'{"id":1}',
    "of a newer schema": b'{"id":1,"name":"a","price":3}',
    "deep": b"[" * 100_000,
    "a broken negative entry": b' {"error":',
    "space": b" ",
}


@pytest.mark.parametrize("raw", BROKEN.values(), ids=BROKEN.keys())
async def test_what_cannot_be_read_is_a_counted_miss_and_replaced(client: Redis, raw: bytes) -> None:
    """Never an exception, never a wrong type; the next caller hits the new entry."""
    load, loader = item_loader()
    await client.set("item:1", raw)
    assert await load(client, 1) == Item(id=1, name="a")
    # What cannot be an item, but says of many ids that one is not there: a miss, and not corrupt.
    assert load.stats == Stats(misses=1, loads=1, fills=1, corrupt=int(raw != ABSENT))
    assert await load(client, 1) == Item(id=1, name="a")
    assert (loader.calls, load.stats.hits) == (1, 1)


async def test_an_entry_of_a_model_that_has_grown_is_a_miss(client: Redis) -> None:
    """A deployment that adds a field, with a default even, reads no half-old value."""

    class Grown(BaseModel):
        id: int
        name: str
        price: int = 0

    async def load(redis: Redis, number: int) -> Any:
        return Grown(id=number, name="a", price=7)

    load.__annotations__["return"] = Grown
    old, _ = item_loader()
    new: Any = Cache().cached("item:{number}")(load)
    await old(client, 1)
    assert (await new(client, 1)).price == 7
    assert new.stats.corrupt == 1


async def test_a_key_of_another_redis_type_is_no_error(client: Redis) -> None:
    """A list where an entry should be: the function runs."""
    load, _ = item_loader()
    await client.rpush("item:1", "x")
    assert await load(client, 1) == Item(id=1, name="a")
    assert load.stats.unavailable == 1


async def test_only_the_entry_that_was_read_is_thrown_away(client: Redis, gated: GatedClient) -> None:
    """A good one that came meanwhile stays, and answers."""
    load, loader = item_loader()
    await client.set("item:1", b"broken")
    gate = gated.gates.before("discard")
    call = asyncio.create_task(load(gated, 1))
    await gate.reached()
    await client.set("item:1", b'{"id":1,"name":"good"}')
    gate.open()
    assert (await call).name == "good"
    assert loader.calls == 0


async def test_none_is_a_value(client: Redis) -> None:
    """It is stored and found; the string "None" is another one."""
    calls = []

    @cached("text:{key}")
    async def load(redis: Redis, key: str | None) -> str | None:
        calls.append(key)
        return key

    for key in (None, "None", "null", None, "None", "null"):
        assert await load(client, key) == key
    assert calls == [None, "None", "null"]
    assert len({load.key(key=key) for key in (None, "None", "null", "%none")}) == 4


async def test_large_values_come_back_whole(client: Redis) -> None:
    """100 kB, with everything that JSON escapes."""
    text = ('ä"\\\n\x00 €' * 20_000)[:100_000]
    calls = []

    @cached("text")
    async def load(redis: Redis) -> str:
        calls.append(1)
        return text

    assert await load(client) == text
    assert await load(client) == text
    assert calls == [1]


async def test_large_arguments_get_a_digest(client: Redis) -> None:
    """A key of at most 512 bytes; arguments that differ at the very end have different ones."""
    calls = []

    @cached("text:{text}")
    async def load(redis: Redis, text: str) -> int:
        calls.append(text)
        return len(text)

    texts = ["x" * 100_000 + end for end in "ab"]
    for text in (*texts, *texts):
        assert await load(client, text) == 100_001
    assert calls == texts
    assert all(len(load.key(text=text).encode()) <= 512 for text in texts)


RESERVED = [": ? & = % * [ ] \\ { }", "a\nb\r\t\x00", "*", "a:*", "é", "\u2028", "%2A", "", " "]


@pytest.mark.parametrize("text", RESERVED, ids=ascii)
async def test_values_with_reserved_characters_are_theirs_alone(client: Redis, text: str) -> None:
    """Each has an entry of its own, and invalidating one deletes no other."""
    calls = []

    @cached("text:{text}")
    async def load(redis: Redis, text: str) -> str:
        calls.append(text)
        return text

    assert await load(client, "other") == "other"
    assert await load(client, text) == text
    assert await load(client, text) == text
    await load.invalidate(redis=client, text=text)
    assert await load(client, "other") == "other"
    assert calls == ["other", text]


async def test_a_value_of_another_type_than_declared_is_not_stored(client: Redis) -> None:
    """A hit equals a miss, or there is no hit: the caller gets what the function gave."""

    @cached("number")
    async def load(redis: Redis) -> int:
        return "1"  # type: ignore[return-value]

    for _ in range(2):
        assert await load(client) == "1"  # type: ignore[comparison-overlap]
    assert load.stats == Stats(misses=2, loads=2, unstored=2)
    assert await client.keys("number") == []


async def test_a_value_that_cannot_be_written_is_answered(client: Redis) -> None:
    """An error of a user's serializer does not reach the caller."""

    @cached("number")
    async def load(redis: Redis) -> int:
        return object()  # type: ignore[return-value]

    assert type(await load(client)) is object
    assert load.stats.unstored == 1


async def test_callers_own_what_they_get(client: Redis) -> None:
    """Changing a value changes no other caller's."""
    load, _ = item_loader()
    first = await load(client, 1)
    first.name = "changed"
    assert (await load(client, 1)).name == "a"


async def test_a_large_entry_is_answered_and_not_stored(client: Redis) -> None:
    """Up to `max_bytes`, that is: while a larger one travels, others wait."""
    async with Cache(client, max_bytes=100) as cache:

        @cache.cached("text:{size}")
        async def load(size: int) -> str:
            return "x" * size

        for size in (98, 99):  # and two quotes
            for _ in range(2):
                assert await load(size) == "x" * size
        assert load.stats == Stats(hits=1, misses=3, loads=3, fills=1, unstored=2)
        assert await client.keys("text:*") == [b"text:98"]


@pytest.mark.parametrize("value", [0, -1, True, 1.5, "1", None])
def test_a_wrong_limit_is_refused(value: Any) -> None:
    """A whole number of at least 1."""
    with pytest.raises(OptionError, match="Cache: max_bytes="):
        Cache(max_bytes=value)
