"""What a cached function carries: `key`, `invalidate`, `refresh`, `put`, `explain`, `stats`."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import insert, select, text, update
from sqlalchemy.exc import DBAPIError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, KeyValueError, Stats, cached, cached_many, no_store
from fastrdb.testing import FaultyClient, GatedClient
from tests.support.servers.databases import Database
from tests.support.world.items import Base, Item, Loader, Row


@pytest.fixture
async def database(sqlite: Database) -> Database:
    """Return a database with one row."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        await db.execute(insert(Row).values(id=1, name="a"))
        await db.commit()
    return sqlite


@pytest.fixture
def load() -> Any:
    """Return a cached query of one row."""

    @cached("row:{number}", schema=Item)
    async def load(db: AsyncSession, redis: Redis, number: int, *, upper: bool = False) -> Row:
        return (await db.execute(select(Row).where(Row.id == number))).scalar_one()

    return load


async def rename(db: AsyncSession, name: str) -> None:
    """Change the row, without a commit."""
    await db.execute(update(Row).values(name=name))


# --- key


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [((), {"number": 1}), ((None, None, 1), {}), ((), {"number": 1, "upper": False}), ((), {"db": None, "number": 1})],
)
def test_a_call_has_one_key_however_it_is_spelt(load: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Position, name, a default written out, and arguments outside of the key make no difference."""
    assert load.key(*args, **kwargs) == "row:1"


def test_other_arguments_follow_like_a_query_string(load: Any) -> None:
    """An argument that differs from its default is part of the key."""
    assert load.key(number=1, upper=True) == "row:1?upper=true"


def test_a_key_needs_its_arguments(load: Any) -> None:
    """A missing one is named, an unknown one too, and a value without a canonical form."""
    with pytest.raises(TypeError, match="'number'"):
        load.key()
    with pytest.raises(TypeError, match="nmber"):
        load.key(nmber=1)
    with pytest.raises(KeyValueError, match=r"parameter .number. of type .*object") as caught:
        load.key(number=object())
    assert caught.value.parameter == "number"


def test_the_documented_keys_are_exact() -> None:
    """As the interface writes them."""

    @cached("user:email:{email}")
    async def user(redis: Redis, email: str) -> int:
        raise LookupError(email)

    @cached("user:page:{page}:limit:{limit}")
    async def page(
        redis: Redis, page: int = 1, limit: int = 10, order_by: str | None = None, ascending: bool = True
    ) -> int:
        raise LookupError(page)

    assert user.key(email="john@example.com") == "user:email:john@example.com"
    assert page.key() == "user:page:1:limit:10"
    assert page.key(order_by="name", ascending=False) == "user:page:1:limit:10?ascending=false&order_by=name"
    assert user.key(email="None") != user.key(email=None)


def test_the_namespace_is_part_of_the_key() -> None:
    """`key()` gives what `redis-cli GET` wants."""

    @Cache(namespace="app1").cached("item:{number}")
    async def item(redis: Redis, number: int) -> int:
        raise LookupError(number)

    assert item.key(number=1) == "app1:item:1"


# --- invalidate


async def test_invalidate_without_a_transaction_is_done_when_it_returns(
    load: Any, database: Database, client: Redis
) -> None:
    """The entry is gone, and only that of the given arguments."""
    async with database.sessions() as db:
        await load(db, client, 1)
        await load(db, client, 1, upper=True)
    await load.invalidate(redis=client, number=1)
    assert sorted(await client.keys("row:*")) == [b"row:1?upper=true"]
    assert load.stats.invalidations == 1


async def test_invalidate_in_a_transaction_waits_for_its_commit(load: Any, database: Database, client: Redis) -> None:
    """Until then others read the old row, which is the committed one."""
    async with database.sessions() as reader:
        await load(reader, client, 1)
    async with database.sessions() as db:
        await rename(db, "b")
        await load.invalidate(db, client, 1)
        assert await client.exists("row:1")
        await db.commit()
    assert not await client.exists("row:1")


async def test_invalidate_in_a_transaction_that_rolls_back_does_nothing(
    load: Any, database: Database, client: Redis
) -> None:
    """A write that was never committed makes nothing stale."""
    async with database.sessions() as db:
        await load(db, client, 1)
        await db.rollback()
        await rename(db, "b")
        await load.invalidate(db, client, 1)
        await db.rollback()
    assert await client.exists("row:1")


# --- refresh


async def test_refresh_loads_although_there_is_an_entry(client: Redis) -> None:
    """It gives the new value, and others find it."""
    loader = Loader()

    @cached("item:{number}")
    async def load(redis: Redis, number: int) -> Item:
        return loader.item(number)

    await load(client, 1)
    loader.name = "b"
    assert (await load(client, 1)).name == "a"
    assert (await load.refresh(client, 1)).name == "b"
    assert (await load(client, 1)).name == "b"
    assert (loader.calls, load.stats.hits, load.stats.misses, load.stats.fills) == (2, 2, 1, 2)


@pytest.mark.parametrize("name", ["secret", None])
async def test_refresh_of_what_is_not_stored(client: Redis, name: str | None) -> None:
    """Once a refresh has seen another value, or none, no call gets the old value."""
    names = ["a", name, name]

    @cached("item:{number}", cache_if=lambda item: item.name != "secret")
    async def load(redis: Redis, number: int) -> Item:
        if (found := names.pop(0)) is None:
            raise NoResultFound
        return Item(id=number, name=found)

    async def seen(call: Any) -> str | None:
        try:
            return str((await call(client, 1)).name)
        except NoResultFound:
            return None

    assert [await seen(call) for call in (load, load.refresh, load)] == ["a", name, name]


@pytest.mark.parametrize("many", [False, True], ids=["one", "many"])
async def test_refresh_in_a_transaction_that_has_written_deletes_when_it_commits(
    load: Any, database: Database, client: Redis, many: bool
) -> None:
    """Its value must not be stored before the COMMIT, and the old one must not stay behind it."""

    @cached_many("rows:{ids}")
    async def names(db: AsyncSession, redis: Redis, ids: list[int]) -> dict[int, str]:
        return {row.id: row.name for row in await db.scalars(select(Row).where(Row.id.in_(ids)))}

    async def name_by(call: Any, db: AsyncSession) -> Any:
        return (await call(db, client, [1]))[1] if many else (await call(db, client, 1)).name

    read = names if many else load
    async with database.sessions() as reader:
        assert await name_by(read, reader) == "a"
    async with database.sessions() as db:
        await rename(db, "never")
        assert await name_by(read.refresh, db) == "never"
        await db.rollback()
        assert await name_by(read, db) == "a"
    async with database.sessions() as db:
        await rename(db, "b")
        assert await name_by(read.refresh, db) == "b"
        async with database.sessions() as reader:
            assert await name_by(read, reader) == "a"
        await db.commit()
        assert await name_by(read, db) == "b"


async def test_refresh_joins_no_load_that_began_before(client: Redis, gated: GatedClient) -> None:
    """A write from outside may have come since: the row is read again."""
    loader = Loader()

    @cached("item:{number}")
    async def load(redis: Any, number: int) -> Item:
        return loader.item(number)

    gate = gated.gates.before("fill")
    first = asyncio.create_task(load(gated, 1))
    await gate.reached()
    loader.name = "b"
    asked = gated.gates.after("acquire")
    second = [asyncio.create_task(load.refresh(gated, 1)) for _ in range(9)]
    await asked.reached()
    asked.open()
    gate.open()
    assert [(await each).name for each in second] == ["b"] * 9
    assert (await first).name == "a"
    assert (await load(client, 1)).name == "b"


async def test_refresh_that_cannot_wait_leaves_no_older_value(client: Redis, gated: GatedClient) -> None:
    """Where the load before takes longer than `wait`, neither result is stored."""
    loader = Loader()

    @cached("item:{number}", wait=0)
    async def load(redis: Any, number: int) -> Item:
        return loader.item(number)

    gate = gated.gates.before("fill")
    first = asyncio.create_task(load(gated, 1))
    await gate.reached()
    loader.name = "b"
    assert (await load.refresh(client, 1)).name == "b"
    gate.open()
    assert (await first).name == "a"
    assert not await client.exists("item:1")


@pytest.mark.parametrize("missed", ["acquire", "fill", "all", "skipped"])
async def test_refresh_that_redis_misses_leaves_no_older_value(client: Redis, missed: str) -> None:
    """Redis fails at one command or at all, or is skipped after failures: the old entry is deleted later."""
    loader, faulty = Loader(), FaultyClient(client)
    cache = Cache(faulty)

    @cache.cached("item:{number}")
    async def load(number: int) -> Item:
        return loader.item(number)

    await load(1)
    loader.name = "b"
    if missed in ("acquire", "fill"):
        faulty.fail_with(on=missed, times=1)
    else:
        faulty.fail_with()
    for number in range(2, 6 if missed == "skipped" else 2):
        await load(number)
    assert (await load.refresh(1)).name == "b"
    assert (await load(1)).name == "b"
    faulty.heal()
    await cache.aclose()
    assert await client.get("item:1") in (None, b'{"id":1,"name":"b"}')


# --- put


@pytest.mark.parametrize("version", [None, 2])
@pytest.mark.parametrize("mapped", [False, True], ids=["plain", "mapped"])
@pytest.mark.parametrize("way", ["put", "put nothing", "invalidate"])
async def test_write_reaches_the_entries_of_other_versions_and_schemas(
    database: Database, client: Redis, version: int | None, mapped: bool, way: str
) -> None:
    """The row is written: what old code, or a session with a schema_translate_map, has of it is old."""

    def load_of(version: int | None) -> Any:
        @Cache(client).cached("row:{number}", schema=Item, version=version, cache_if=lambda item: item.name != "secret")
        async def load(db: AsyncSession, number: int) -> Row:
            return (await db.execute(select(Row).where(Row.id == number))).scalar_one()

        return load

    def session(mapped: bool) -> AsyncSession:
        options = {"schema_translate_map": {"other": "main"}} if mapped else {}
        return AsyncSession(database.engine.execution_options(**options))

    for each in (None, 1, 2):
        for one in (False, True):
            async with session(one) as db:
                await load_of(each)(db, 1)
    assert len(await client.keys("row:*")) == 6
    async with session(mapped) as db:
        own = load_of(version).key(db, 1)
        await rename(db, "b")
        if way == "invalidate":
            await load_of(version).invalidate(db, 1)
        else:
            await load_of(version).put(Item(id=1, name="b" if way == "put" else "secret"), db, 1)
        await db.commit()
    assert await client.keys("row:*") == ([own.encode()] if way == "put" else [])


async def test_put_is_stored_when_the_transaction_commits(load: Any, database: Database, client: Redis) -> None:
    """Then a reader hits what was written; before, it is the writer's secret."""
    async with database.sessions() as db:
        await rename(db, "b")
        await load.put(Item(id=1, name="b"), db, client, 1)
        assert not await client.exists("row:1")
        await db.commit()
    assert await client.get("row:1") == b'{"id":1,"name":"b"}'
    async with database.sessions() as reader:
        assert (await load(reader, client, 1)).name == "b"
    assert load.stats.hits == 1


async def test_put_is_forgotten_on_rollback(load: Any, database: Database, client: Redis) -> None:
    """No caller ever sees the value."""
    async with database.sessions() as db:
        await rename(db, "b")
        await load.put(Item(id=1, name="b"), db, client, 1)
        await db.rollback()
    assert await client.keys("row:*") == []


async def test_put_is_dropped_by_a_later_write(load: Any, database: Database, client: Redis) -> None:
    """The transaction may write the same row after `put`: the entry is deleted, and loaded again."""
    async with database.sessions() as db:
        await db.execute(update(Row).where(Row.id == 1).values(name="b"))
        await load.put(Item(id=1, name="b"), db, client, 1)
        await db.execute(update(Row).where(Row.id == 1).values(name="c"))
        await db.commit()
    assert await client.get("row:1") is None
    async with database.sessions() as db:
        assert await load(db, client, 1) == Item(id=1, name="c")


async def test_put_is_dropped_where_commit_rolls_back(load: Any, postgresql: Database, client: Redis) -> None:
    """PostgreSQL answers the COMMIT of a failed transaction with a rollback and no error: nothing put is stored."""
    await postgresql.create(Base)
    async with postgresql.sessions() as db:
        await db.execute(insert(Row).values(id=1, name="a"))
        await db.commit()
        await db.execute(update(Row).where(Row.id == 1).values(name="b"))
        await load.put(Item(id=1, name="b"), db, client, 1)
        with pytest.raises(DBAPIError):
            await db.execute(text("SELECT 1 / 0"))
        await db.commit()
    assert await client.get("row:1") is None
    async with postgresql.sessions() as db:
        assert await load(db, client, 1) == Item(id=1, name="a")


async def test_put_without_a_transaction_deletes(load: Any, database: Database, client: Redis) -> None:
    """There is no commit to vouch for the value."""
    async with database.sessions() as db:
        await load(db, client, 1)
    await load.put(Item(id=1, name="b"), redis=client, number=1)
    assert not await client.exists("row:1")


async def test_put_without_a_write_deletes(load: Any, database: Database, client: Redis) -> None:
    """A transaction that has only read holds no lock: until it commits, another may have written the row."""
    async with database.sessions() as db:
        item = await load(db, client, 1)
        await load.put(item, db, client, 1)
        assert await client.exists("row:1")
        await db.commit()
    assert not await client.exists("row:1")


async def test_put_of_what_must_not_be_stored_deletes(database: Database, client: Redis) -> None:
    """A value that is not of the declared type would come back as another one."""

    @cached("row:{number}", cache_if=lambda item: item.name != "secret")
    async def load(db: AsyncSession, redis: Redis, number: int) -> Item:
        raise LookupError(number)

    await client.set("row:1", "1")
    async with database.sessions() as db:
        await rename(db, "b")
        await load.put(Item(id=1, name="secret"), db, client, 1)
        await db.commit()
    assert not await client.exists("row:1")


# --- explain


async def test_explain_tells_and_changes_nothing(load: Any, database: Database, client: Redis) -> None:
    """The key, hit or miss, and the TTL in seconds; no load, no entry, no count."""
    async with database.sessions() as db:
        before = await load.explain(db, client, 1)
        assert (before.key, before.state, before.ttl, before.reasons) == ("row:1", "miss", None, ())
        keys: list[Any] = await client.keys("*")
        assert {key.split(b":")[1] for key in keys} == {b"trusted", b"index", b"expiry", b"barriers"}
        await load(db, client, 1)
        after = await load.explain(db, client, 1)
        assert after.state == "hit"
        assert after.ttl is not None
        assert 3590 < after.ttl <= 3600
        assert load.stats.hits == 0


async def test_explain_says_what_the_session_stands_in_the_way_of(load: Any, database: Database, client: Redis) -> None:
    """A transaction that has written neither reads nor fills."""
    async with database.sessions() as db:
        await rename(db, "b")
        found = await load.explain(db, client, 1)
    assert (found.state, found.reasons) == ("bypass", ("the session has written in its open transaction",))


async def test_explain_sees_a_load_and_a_commit_that_are_going_on(load: Any, client: Redis) -> None:
    """A lease, and a barrier that covers the key."""
    await client.set("fastrdb:lease:{row:1}", "t")
    assert (await load.explain(redis=client, number=1)).reasons == ("another caller is loading or writing it",)
    await client.delete("fastrdb:lease:{row:1}")
    await client.zadd("fastrdb:barriers", {b"0" * 32 + b"row:\n": 2**52})
    assert (await load.explain(redis=client, number=1)).reasons == ("a write to it is being committed",)


async def test_explain_without_redis_says_why(load: Any, dead_client: Redis) -> None:
    """It does not raise: it is asked when something is wrong."""
    found = await load.explain(redis=dead_client, number=1)
    assert found.state == "bypass"
    assert "the cache is unavailable: inspect" in found.reasons[0]


@pytest.fixture
async def dead_client(unused_tcp_port: int) -> Any:
    """Return a client of a closed port."""
    async with Redis(port=unused_tcp_port, retry=None) as made:  # type: ignore[arg-type]
        yield made


async def test_a_dead_redis_costs_no_answer(load: Any, database: Database, dead_client: Redis) -> None:
    """The function runs, every time, and that is counted."""
    async with database.sessions() as db:
        assert (await load(db, dead_client, 1)).name == "a"
        assert (await load.refresh(db, dead_client, 1)).name == "a"
        await db.rollback()
    assert load.stats == Stats(loads=2, unavailable=2)


# --- stats, no_store


async def test_stats_count_what_happened(client: Redis) -> None:
    """A snapshot: it does not change afterwards."""
    loader = Loader()

    @cached("item:{number}")
    async def load(redis: Redis, number: int) -> Item:
        if number == 2:
            no_store("it is a preview")
        return loader.item(number)

    empty = load.stats
    await load(client, 1)
    await load(client, 1)
    await load(client, 2)
    assert empty == Stats()
    assert load.stats == Stats(hits=1, misses=2, loads=2, fills=1, unstored=1)
    assert await client.keys("item:*") == [b"item:1"]


def test_no_store_outside_of_a_load_does_nothing() -> None:
    """A helper that calls it may be used anywhere."""
    no_store("nobody listens")
