"""Bytes of any kind in an entry's place give a value of the entry's type, or a counted miss. Nothing runs."""

from __future__ import annotations

import asyncio
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from random import Random
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy.exc import NoResultFound
from typing_extensions import TypedDict

from fastrdb import Cache
from fastrdb.values import ABSENT, Codec, DecodeError, decode_missing
from tests.support.world import fuzz


class Gone(NoResultFound):
    """An error of an application's own."""


class Item(BaseModel):
    id: int
    name: str
    at: datetime | None = None
    tags: list[str] = []


@dataclass
class Point:
    x: int
    y: float


class Row(TypedDict):
    id: int
    name: str


TYPES: dict[str, tuple[Any, Any]] = {
    "model": (Item, Item(id=1, name="a", tags=["x"])),
    "optional": (Item | None, Item(id=2, name="b")),
    "list": (list[Item], [Item(id=3, name="c")]),
    "int": (int, 17),
    "str": (str, "text"),
    "dataclass": (Point, Point(1, 2.5)),
    "typed dict": (Row, Row(id=4, name="d")),
    "dict": (dict[str, int], {"a": 1}),
}


def judge(codec: Codec, raw: bytes) -> bool:
    """Return whether the codec takes these bytes; if so, then as a value that it would store, type for type."""
    try:
        found = codec.decode(raw)
    except DecodeError:
        return False
    again = codec.encode(found)
    assert codec.verify(again, found) is None, raw
    assert same(json.loads(again), json.loads(raw)), raw
    return True


def same(first: Any, second: Any) -> bool:
    """Return whether two JSON documents are equal: a number is no text and no truth value, and no field is extra."""
    if isinstance(first, bool | str | None) or isinstance(second, bool | str | None):
        return type(first) is type(second) and first == second
    if isinstance(first, dict) and isinstance(second, dict):
        return first.keys() == second.keys() and all(same(first[name], second[name]) for name in first)
    if isinstance(first, list) and isinstance(second, list):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


@pytest.mark.parametrize(("kind", "example"), TYPES.values(), ids=TYPES)
def test_any_bytes_are_a_value_or_a_miss(kind: Any, example: Any) -> None:
    """12,500 byte strings for each of eight types, 100,000 in all: no other exception, no other type, nothing run."""
    codec = Codec(kind, owner="test")
    valid, random = codec.encode(example), Random(repr(kind))
    taken = sum(judge(codec, fuzz.entry(random, valid)) for _ in range(12_500))
    assert judge(codec, valid)
    assert 0 < taken < 6_000  # some are damaged where it does not matter, or not at all
    assert not fuzz.Exploit.ran


def test_exploit_runs_when_unpickled() -> None:
    """The exploit is one: a program that unpickles it, runs it."""
    pickle.loads(pickle.dumps(fuzz.Exploit()))
    assert fuzz.Exploit.ran
    fuzz.Exploit.ran = False


def test_any_bytes_are_a_negative_entry_or_none() -> None:
    """20,000 byte strings, spaces in front: the error of a missing row, or nothing."""
    valid = b' {"error": "%s:Gone", "message": "1", "args": [1], "attributes": {"id": 1}}' % __name__.encode()
    made = fuzz.many(lambda random: fuzz.entry(random, valid), 20_000, 1)
    found = [decode_missing(b" " + each, NoResultFound) for each in made]
    assert {type(each) for each in found} <= {Gone, NoResultFound, type(None)}
    assert [1] in [vars(each).get("id") and list(each.args) for each in found if each is not None]


async def plant_and_read(client: Redis, count: int, seed: int) -> None:
    """Put bytes under so many keys, and read each of them by the function whose key it is, 50 at a time."""
    entries = list(
        fuzz.many(lambda random: fuzz.entry(random, b'{"id":1,"name":"planted","at":null,"tags":[]}'), count, seed)
    )
    async with Cache(client, timeout=10) as cache:

        @cache.cached("item:{number}")
        async def load(number: int) -> Item:
            return Item(id=number, name="loaded")

        codec = Codec(Item, owner="test")
        for start in range(0, count, 50):
            part = dict(enumerate(entries[start : start + 50], start=start))
            await client.mset({load.key(number): raw for number, raw in part.items()})
            found = await asyncio.gather(*(load(number) for number in part))
            for (number, raw), item in zip(part.items(), found, strict=True):
                assert type(item) is Item
                good = judge(codec, raw)
                assert item == (codec.decode(raw) if good else Item(id=number, name="loaded")), raw
        corrupt = sum(not judge(codec, raw) for raw in entries)
    assert corrupt > count / 2
    absent = sum(raw == ABSENT for raw in entries)  # what `cached_many` says of an id that is not there
    assert (load.stats.corrupt, load.stats.misses, load.stats.fills) == (corrupt - absent, corrupt, corrupt)
    assert load.stats.hits == count - corrupt
    assert not fuzz.Exploit.ran


async def test_planted_entries_are_misses_that_are_counted_and_replaced(client: Redis) -> None:
    """2,000 entries on a real server, pickles among them: every call is answered with the right type."""
    await plant_and_read(client, 2_000, seed=1)


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_hundred_thousand_planted_entries(client: Redis) -> None:
    """The same for 100,000."""
    await plant_and_read(client, 100_000, seed=2)


@pytest.mark.parametrize(
    "read",
    [
        lambda load: load(1),
        lambda load: load.refresh(1),
        lambda load: load.explain(1),
    ],
    ids=["call", "refresh", "explain"],
)
async def test_planted_entry_runs_nothing_on_each_way_of_reading(client: Redis, read: Callable[[Any], Any]) -> None:
    """Reading, reloading and explaining a planted entry runs nothing and raises nothing."""
    async with Cache(client) as cache:

        @cache.cached("item:{number}")
        async def load(number: int) -> Item:
            return Item(id=number, name="loaded")

        await client.set(load.key(1), pickle.dumps(fuzz.Exploit()))
        await read(load)
        assert (await load(1)).name == "loaded"
        assert not fuzz.Exploit.ran


async def test_entries_that_change_places_are_read_where_their_type_fits(client: Redis) -> None:
    """Documented: an entry is plain JSON without its key, so a program that may write to Redis may swap two."""
    async with Cache(client) as cache:

        @cache.cached("item:{number}")
        async def load(number: int) -> Item:
            return Item(id=number, name=f"item {number}")

        @cache.cached("count:{number}")
        async def count(number: int) -> int:
            return number

        await asyncio.gather(load(1), load(2), count(3))
        await client.rename("item:1", "kept")
        await client.rename("item:2", "item:1")
        assert (await load(1)).id == 2  # of the same type: taken for its own
        await client.rename("kept", "count:3")
        assert await count(3) == 3  # of another type: a miss
        assert count.stats.corrupt == 1
