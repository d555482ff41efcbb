"""`verify=`: a write that no invalidation names is found in the background, deleted and said, and nothing else is."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import delete, insert, select, update
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, Event, OptionError
from fastrdb.loading import verifying
from fastrdb.testing import Gate
from tests.support.servers.databases import Database
from tests.support.world.items import Base, Item, Row


class Shop:
    """A cached function that is always verified, the rows behind it, and what the hook got."""

    def __init__(self, client: Redis, database: Database, **options: Any) -> None:
        self.client, self.database = client, database
        self.told: list[Event] = []
        self.cache = Cache(client, hook=self.told.append)
        self.gate: Gate | None = None

        async def load(db: AsyncSession, number: int) -> Row:
            if self.gate is not None:
                await self.gate.hold()
            return (await db.scalars(select(Row).where(Row.id == number))).one()

        given = {"verify": 1.0, "schema": Item, "session_factory": database.sessions, **options}
        self.load: Any = self.cache.cached("item:{number}", **given)(load)

        @self.cache.invalidates("item:{number}")
        async def rename(db: AsyncSession, number: int, name: str) -> None:
            await db.execute(update(Row).where(Row.id == number).values(name=name))
            await db.commit()

        self.rename = rename

    async def get(self) -> str:
        """Return the name, with a session as a caller has it."""
        async with self.database.sessions() as db:
            item: Item = await self.load(db, 1)
            return item.name

    async def settled(self) -> None:
        """Wait for what runs in the background."""
        while tasks := self.cache.runtime.here().tasks:
            await asyncio.wait(set(tasks))

    async def write(self, statement: Any) -> None:
        """Write without an invalidation."""
        async with self.database.sessions() as db:
            await db.execute(statement)
            await db.commit()

    def kinds(self) -> list[str]:
        """Return the kinds of the events about verification."""
        return [event.kind for event in self.told if event.kind in ("verified", "wrong", "failed")]


async def shop_of(client: Redis, database: Database, **options: Any) -> Shop:
    """Return a shop with one row, whose entry is stored and was verified."""
    await database.create(Base)
    shop = Shop(client, database, **options)
    await shop.write(insert(Row).values(id=1, name="a"))
    await shop.get()
    await shop.settled()
    shop.told.clear()
    return shop


async def test_only_hits_are_verified(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A miss is none; of the hits, that share which chance says. A function whose entries may be old takes no part."""
    cache = Cache(client, verify=0.25)
    chances = iter([0.43, 0.57, 0.24])  # the gaps are two, three and one calls: P(more than n) is 0.75 ** n
    drawn = SimpleNamespace(random=lambda: 0.0)
    monkeypatch.setattr(verifying, "random", lambda: drawn.random())  # noqa: PLW0108  # it is replaced below

    async def settled() -> None:
        while tasks := cache.runtime.here().tasks:
            await asyncio.wait(set(tasks))

    async def load(number: int) -> int:
        return number

    checked = cache.cached("number:{number}", verify=1.0)(load)
    for number in range(3):
        await checked(number)
        await settled()
    assert (checked.stats.loads, checked.stats.verified) == (3, 0)
    drawn.random = lambda: next(chances)
    some = cache.cached("some:{number}")(load)
    kept = cache.cached("kept:{number}", never_invalidated=True)(load)
    await kept(1)
    await kept(1)
    counts = list[int]()
    for _ in range(5):
        await some(1)
        await settled()
        counts.append(some.stats.verified)
    assert counts == [0, 1, 1, 1, 2]
    assert next(chances, None) is None
    assert kept.stats.verified == 0


@pytest.mark.parametrize("options", [{"depends_on": Row}, {"auto": True}], ids=["depends_on", "auto"])
async def test_entries_with_tags_are_verified(client: Redis, sqlite: Database, options: dict[str, Any]) -> None:
    """A write that no statement of the process has shown is found, and one that was followed is not wrong."""
    await sqlite.create(Base)
    cache = Cache(client, auto="auto" in options)
    gate: Gate | None = None

    @cache.cached("row:{number}", schema=Item, verify=1.0, session_factory=sqlite.sessions, **options)
    async def load(db: AsyncSession, number: int) -> Row:
        if gate is not None:
            await gate.hold()
        return (await db.scalars(select(Row).where(Row.id == number))).one()

    @cache.invalidates(touches=Row)
    async def rename(db: AsyncSession, name: str) -> None:
        await db.execute(update(Row).values(name=name))
        await db.commit()

    async def read() -> str:
        async with sqlite.sessions() as db:
            item: Item = await load(db, 1)
            return item.name

    async def settled() -> None:
        while tasks := cache.runtime.here().tasks:
            await asyncio.wait(set(tasks))

    async with sqlite.sessions() as db:
        await db.execute(insert(Row).values(id=1, name="a"))
        await db.commit()
    assert [await read(), await read()] == ["a", "a"]
    await settled()
    assert (load.stats.verified, load.stats.wrong) == (1, 0)
    gate = Gate()
    assert await read() == "a"
    await gate.reached()
    async with sqlite.sessions() as db:
        await rename(db, "b")
    gate.open()
    await settled()
    gate = None
    assert (load.stats.verified, load.stats.wrong) == (1, 0)
    assert await read() == "b"
    await settled()
    with cache.untracked():
        async with sqlite.sessions() as db:
            await db.execute(update(Row).values(name="c"))
            await db.commit()
    assert await read() == "b"
    await settled()
    assert load.stats.wrong == 1
    assert await read() == "c"
    await settled()


async def test_entry_that_is_right_stays(client: Redis, sqlite: Database) -> None:
    """It is counted."""
    shop = await shop_of(client, sqlite)
    assert await shop.get() == "a"
    await shop.settled()
    assert shop.kinds() == ["verified"]
    assert await client.exists("item:1")


@pytest.mark.parametrize("change", ["update", "delete"])
async def test_write_that_no_invalidation_names_is_found(
    client: Redis, sqlite: Database, caplog: pytest.LogCaptureFixture, change: str
) -> None:
    """The entry goes; hook and counts have the key, and the log says it once, without a value."""
    shop = await shop_of(client, sqlite)
    statement: Any = update(Row).values(name="secret") if change == "update" else delete(Row)
    await shop.write(statement)
    with caplog.at_level(logging.WARNING, logger="fastrdb"):
        assert await shop.get() == "a"
        await shop.settled()
    reason = "value.name: another str comes back" if change == "update" else "the row is not there any more"
    assert [event for event in shop.told if event.kind == "wrong"] == [
        Event(shop.load.__qualname__, "wrong", "item:1", reason)
    ]
    assert not await client.exists("item:1")
    assert shop.load.stats.wrong == 1
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"{shop.load.__qualname__}: an entry was not what the database says ({reason})"
    )
    assert "secret" not in record.getMessage()


async def test_row_that_no_invalidation_names_is_found_behind_a_negative_entry(client: Redis, sqlite: Database) -> None:
    """An entry that says that there is no such row is verified, too."""
    await sqlite.create(Base)
    cache = Cache(client)

    @cache.cached("row:{number}", negative_exp=60, verify=1.0, session_factory=sqlite.sessions)
    async def load(db: AsyncSession, number: int) -> str:
        return (await db.scalars(select(Row.name).where(Row.id == number))).one()

    async def refused() -> None:
        async with sqlite.sessions() as db:
            with pytest.raises(NoResultFound):
                await load(db, 1)
        await cache.aclose()  # waits for what runs in the background

    await refused()
    await refused()
    assert (load.stats.hits, load.stats.verified, load.stats.wrong) == (1, 1, 0)
    async with sqlite.sessions() as db:
        db.add(Row(id=1, name="new"))
        await db.commit()
    await refused()
    assert load.stats.wrong == 1
    async with sqlite.sessions() as db:
        assert await load(db, 1) == "new"


async def test_write_that_comes_between_counts_for_nothing(client: Redis, sqlite: Database) -> None:
    """The entry was read, then a write commits and deletes it, then the new row is loaded: nothing is wrong."""
    shop = await shop_of(client, sqlite)
    shop.gate = Gate()
    assert await shop.get() == "a"
    await shop.gate.reached()
    async with sqlite.sessions() as db:
        await shop.rename(db, 1, "b")
    shop.gate.open()
    await shop.settled()
    assert shop.kinds() == []


async def test_error_of_the_load_reaches_no_caller(client: Redis, sqlite: Database) -> None:
    """It is an event, without its text."""
    shop = await shop_of(client, sqlite)

    async def broken() -> None:
        raise ValueError("secret")

    shop.gate = Gate()
    shop.gate.hold = broken  # type: ignore[method-assign]
    assert await shop.get() == "a"
    await shop.settled()
    assert [event.reason for event in shop.told if event.kind == "failed"] == ["ValueError"]
    assert await client.exists("item:1")


async def test_cache_verifies_all_of_its_functions(client: Redis) -> None:
    """Unless one says otherwise; a function without a session needs no factory."""
    cache, value = Cache(client, verify=1.0), [1]

    @cache.cached("one")
    async def one() -> int:
        return value[0]

    @cache.cached("two", verify=0)
    async def two() -> int:
        return value[0]

    await one()
    await two()
    await asyncio.gather(*cache.runtime.here().tasks)
    value[0] = 2
    await one()
    await two()
    await asyncio.gather(*cache.runtime.here().tasks)
    assert (one.stats.wrong, two.stats.wrong, two.stats.verified) == (1, 0, 0)
    assert [await one(), await two()] == [2, 1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"verify": 2}, r"verify=2 must be a share from 0 \(none\) to 1 \(all\)"),
        ({"verify": True}, r"verify=True must be a share"),
        (
            {"verify": 0.5},
            r"verify=0\.5: the load runs in the background, .*'db', .* give session_factory=",
        ),
    ],
    ids=str,
)
def test_options_are_checked(options: Any, said: str) -> None:
    """At decoration, with function and parameter."""

    async def load(db: AsyncSession) -> int:
        return 1

    with pytest.raises(OptionError, match=said):
        Cache().cached("one", **options)(load)


def test_many_ids_are_not_verified() -> None:
    """The option is refused, rather than forgotten."""

    async def load(ids: list[int]) -> dict[int, int]:
        return {}

    with pytest.raises(OptionError, match=r"verify=1: cached_many verifies nothing"):
        Cache().cached_many("one:{ids}", verify=1)(load)
