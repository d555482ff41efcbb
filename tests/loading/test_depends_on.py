"""Declared dependencies: an entry goes when its rows are written, by `touches`, by hand, or by a load's tags."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, OptionError, rows
from fastrdb.testing import Gate
from tests.races.mechanisms import without
from tests.support.servers.databases import Database
from tests.support.waiting import until
from tests.support.world.world import Item, Owner, World, spawn, world


@pytest.fixture
async def on_cluster(sqlite: Database, cluster: Any, cluster_client: Any) -> AsyncIterator[World]:
    """Provide a world on SQLite, over a cluster."""
    async with world(sqlite, cluster_client) as made:
        yield made


async def asked(w: World, callers: int) -> None:
    """Wait until so many callers have found no entry, and the loop has gone on from there."""
    seen = []

    async def have_asked() -> bool:
        seen.append(w.one.cache.stats().misses >= callers)
        return seen[-2:] == [True, True]

    await until(have_asked)


class Shop:
    """Functions whose patterns share nothing with prefixes: only rows connect these."""

    def __init__(self, cache: Cache) -> None:
        self.loads = 0
        self.gate: Gate | None = None

        @cache.cached("named:{name}", depends_on=rows(Item, name="{name}"))
        async def named(db: AsyncSession, redis: Redis, name: str) -> int:
            self.loads += 1
            return len((await db.scalars(Item.__table__.select().where(Item.name == name))).all())

        @cache.cached("any-owner", depends_on=[Owner])
        async def owners(db: AsyncSession, redis: Redis) -> int:
            self.loads += 1
            await self._wait()
            return self.loads

        @cache.cached_many("item-of:{ids}", depends_on=rows(Item, id="{ids}"))
        async def items(db: AsyncSession, redis: Redis, ids: list[int]) -> dict[int, str]:
            self.loads += 1
            return {each: f"{each}" for each in ids}

        @cache.invalidates(touches=rows(Item, id="{item_id}"))
        async def rename(db: AsyncSession, redis: Redis, item_id: int, name: str) -> None:
            await db.execute(update(Item).where(Item.id == item_id).values(name=name))
            await db.commit()

        @cache.invalidates(touches=Owner)
        async def rename_owner(db: AsyncSession, redis: Redis) -> None:
            await db.execute(update(Owner).values(name="another"))
            await db.commit()

        @cache.invalidates(touches=rows(Item, id="{result}"))
        async def made(db: AsyncSession, redis: Redis, item_id: int) -> int:
            await db.execute(update(Item).values(name="made"))
            await db.commit()
            return item_id

        self.named, self.owners, self.items = named, owners, items
        self.rename, self.rename_owner, self.made = rename, rename_owner, made

    async def _wait(self) -> None:
        if self.gate is not None:
            gate, self.gate = self.gate, None
            await gate.hold()


async def test_entry_goes_with_its_rows(w: World) -> None:
    """A write of a row drops entries of its table that it may concern, and no others."""
    shop, client = Shop(w.one.cache), w.one.client
    async with w.one.database.sessions() as db:
        for _ in range(2):
            await shop.items(db, client, [1, 2])
            await shop.owners(db, client)
        assert shop.loads == 2
    async with w.one.database.sessions() as db:
        await shop.rename(db, client, 1, "x")
    async with w.one.database.sessions() as db:
        await shop.items(db, client, [2])
        await shop.owners(db, client)
        assert shop.loads == 2
        await shop.items(db, client, [1, 2])
        assert shop.loads == 3
        assert (await shop.owners.explain(db, client)).depends_on == ("owner (any row)",)
    async with w.one.database.sessions() as db:
        await shop.rename_owner(db, client)
    async with w.one.database.sessions() as db:
        await shop.owners(db, client)
        assert shop.loads == 4


async def test_invalidation_by_hand_takes_classes_and_rows(w: World) -> None:
    """`cache.invalidate` takes a class, `rows(...)` of one, and several of these with prefixes."""
    shop, client = Shop(w.one.cache), w.one.client
    async with w.one.database.sessions() as db:
        await shop.items(db, client, [1, 2])
        await shop.owners(db, client)
    assert await w.one.cache.invalidate(rows(Item, id=2), redis=client) == 1
    assert await w.one.cache.invalidate(Owner, redis=client) == 1
    assert await w.one.cache.invalidate(["nothing:*", Item], redis=client) == 1


async def test_rows_of_the_result_are_invalidated(w: World) -> None:
    """A commit inside of the call reaches the whole table, since the result is not known yet."""
    shop, client = Shop(w.one.cache), w.one.client
    async with w.one.database.sessions() as db:
        await shop.items(db, client, [1, 2])
    async with w.one.database.sessions() as db:
        await shop.made(db, client, 1)
    assert not await client.exists("item-of:1", "item-of:2")


async def test_late_caller_does_not_get_what_was_read_before_its_call(w: World) -> None:
    """On one server."""
    await late_caller(w)


async def test_late_caller_on_a_cluster(on_cluster: World) -> None:
    """On a cluster."""
    await late_caller(on_cluster)


async def test_late_caller_is_lost_when_all_get_what_was_read(w: World, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the rule for late callers, the second caller gets what was there before the commit."""
    without("late-followers").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await late_caller(w)


async def late_caller(made: World) -> None:
    """Ask while a load is under way that has read before a commit: the caller loads again."""
    shop, client = Shop(made.one.cache), made.one.client
    shop.gate = gate = Gate()
    async with made.one.database.sessions() as db, made.one.database.sessions() as other:
        first = spawn(shop.owners(db, client))
        await gate.reached()
        async with made.two.database.sessions() as writing:
            await Shop(made.two.cache).rename_owner(writing, made.two.client)
        second = spawn(shop.owners(other, client))
        await asked(made, 2)
        gate.open()
        assert await first == 1
        assert await second == 2
        assert shop.owners.stats.unstored == 1
    assert shop.owners.stats.fills == 1


async def test_crowd_that_asked_before_needs_two_loads(w: World) -> None:
    """Callers that asked before a load began get its result, though it is not stored."""
    shop, client = Shop(w.one.cache), w.one.client
    shop.gate = gate = Gate()
    async with w.one.database.sessions() as db:
        first = spawn(shop.owners(db, client))
        await gate.reached()
        async with w.two.database.sessions() as writing:
            await Shop(w.two.cache).rename_owner(writing, w.two.client)
        sessions = [w.one.database.sessions() for _ in range(20)]
        crowd = [spawn(shop.owners(each, client)) for each in sessions]
        await asked(w, 21)
        gate.open()
        await asyncio.gather(first, *crowd)
        for each in sessions:
            await each.close()
    assert shop.loads == 2


@pytest.mark.parametrize("wrong", [5, "users", [object]])
def test_what_is_no_entity_is_refused(wrong: object) -> None:
    """The error names function and option."""
    cache = Cache()

    async def read(db: AsyncSession) -> int:
        return 1

    with pytest.raises(OptionError, match=r"cached on .*read: depends_on"):
        cache.cached("wrong", depends_on=wrong)(read)  # type: ignore[call-overload]


def test_unknown_column_and_placeholder_are_refused() -> None:
    """Both are said before any call."""
    with pytest.raises(OptionError, match="no column 'nme'"):
        rows(Item, nme="x")

    async def read(db: AsyncSession) -> int:
        return 1

    with pytest.raises(OptionError, match="no parameter 'item_id'"):
        Cache().cached("wrong", depends_on=rows(Item, id="{item_id}"))(read)
