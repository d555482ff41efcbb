"""The look at a namespace, on one server and on a cluster."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb import Cache, Inspector, rows
from fastrdb.keys import row_tag, table_tag
from fastrdb.protocol import Fill, Granted, IndexInfo, Store, is_cluster
from fastrdb.testing import EmbeddedServer, GatedClient
from tests.support.waiting import until


class Base(DeclarativeBase):
    pass


class Order(Base):
    """A row of a table whose name is written otherwise in a tag."""

    __tablename__ = "my orders"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture(params=["", "shop"])
def namespace(request: pytest.FixtureRequest) -> str:
    """Return no namespace, and one."""
    return str(request.param)


async def test_entries_under_a_prefix(any_client: Any, namespace: str) -> None:
    """Keys come without the namespace, with TTL and size; another namespace's are not there."""
    async with Cache(any_client, namespace=namespace) as cache, Cache(any_client, namespace="other") as other:
        for each in (cache, other):

            @each.cached("user:{number}", exp=60, jitter=0)
            async def user(number: int) -> str:
                return "x" * number

            @each.cached("page:{number}")
            async def page(number: int) -> int:
                return number

            for number in range(12):
                await user(number)
            await page(1)
        inspector = Inspector(any_client, namespace)
        found = {each.key: each for each in await inspector.keys("user:*")}
        assert set(found) == {f"user:{number}" for number in range(12)}
        assert found["user:3"].size == 5
        ttl = found["user:3"].ttl
        assert ttl is not None
        assert 0 < ttl <= 60
        assert {each.key for each in await inspector.keys("user:1?")} == {"user:10", "user:11"}
        assert len(await inspector.keys(limit=5)) == 5
        assert await inspector.count("") >= 13
        assert await inspector.value("user:2") == b'"xx"'
        assert (await inspector.value("user:99"), await inspector.entry("user:99")) == (None, None)
        index = await inspector.index()
        assert (index.whole, index.exists) == (True, True)


async def test_leases_and_barriers(client: Redis, gated: GatedClient) -> None:
    """While a load runs there is a lease, and while a commit is on its way a barrier that reaches its keys."""
    inspector = Inspector(client)
    async with Cache() as cache:

        @cache.cached("user:{number}")
        async def user(redis: Redis, number: int) -> int:
            return number

        gate = gated.gates.before("fill")
        load = asyncio.create_task(user(gated, 1))
        await gate.reached()
        assert await inspector.leases() == 1
        assert 0 < (await inspector.lease("user:1") or 0) <= 10
        gate.open()
        await load
        assert await inspector.leases() == 0
    assert await inspector.barriers() == []
    seconds, _ = await client.time()
    barrier = b"1" * 32 + b"user:1\n"
    await client.zadd("fastrdb:barriers", {barrier: (seconds + 5) * 1000})
    await client.zadd("fastrdb:barriers", {b"2" * 32 + b"page:\n*:x*": (seconds + 5) * 1000})
    await client.zadd("fastrdb:barriers", {b"3" * 32 + b"old\n=": (seconds - 5) * 1000})
    assert {each.reach for each in await inspector.barriers()} == {"user:1*", "page:*:x*"}
    assert [each.reach for each in await inspector.barriers("user:12")] == ["user:1*"]
    assert [each.reach for each in await inspector.barriers("page:1:xy")] == ["page:*:x*"]
    assert await inspector.barriers("page:1:y") == []


async def test_entries_that_depend_on_rows(any_client: Any, namespace: str) -> None:
    """The tags of an entry, and the entries of a tag: of a table, or of one value of a column."""
    store = Store(namespace=namespace, timeout=5, cluster=is_cluster(any_client))
    tag = row_tag("orders", "id", 5)
    assert tag is not None
    for number, tags in ((5, (tag,)), (6, (table_tag("orders"), table_tag("users")))):
        answers = await store.acquire(any_client, {f"order:{number}": str(number) * 32}, tagged=True)
        granted = answers[f"order:{number}"]
        assert isinstance(granted, Granted)
        fill = Fill(f"order:{number}", granted.lease, b"1", 60_000, tags, granted.since)
        assert await store.fill(any_client, [fill]) == [True]
    inspector = Inspector(any_client, namespace)
    assert await inspector.tags("order:5") == ["orders:id=5"]
    assert await inspector.tags("order:6") == ["orders", "users"]
    assert sorted(await inspector.tagged("orders")) == ["order:5", "order:6"]
    assert await inspector.tagged("orders:id=5") == ["order:5"]
    for text in ("Orders:ID=5", "orders where id = 5"):  # as a person writes it, and as `explain` does
        assert await inspector.tagged(text) == ["order:5"]
    assert await inspector.tagged("users (any row)") == ["order:6"]
    assert await inspector.tagged("") == []
    assert await inspector.tagged("orders:id=55") == await inspector.tagged("order") == []
    await store.aclose()


async def test_entries_of_a_tag_are_all_there_up_to_the_limit(client: Redis, namespace: str) -> None:
    """An entry with many tags of one table counts once, and does not end the list before others."""
    inspector = Inspector(client, namespace)
    shard = inspector.keyspace.shards[0]
    one, other = (inspector.keyspace.entry(key).decode() for key in ("page:1", "page:2"))
    names = [*(f"orders:id={row}\0{one}" for row in range(600)), f"orders:id=x\0{other}"]
    await client.zadd(shard.tags, dict.fromkeys(names, 0))
    assert await inspector.tagged("orders", limit=2) == ["page:1", "page:2"]
    assert await inspector.tagged("orders", limit=1) == ["page:1"]


async def test_a_value_with_marks_in_it_is_found_as_it_is_and_as_in_its_tag(client: Redis, namespace: str) -> None:
    """`deps` shows a value as it stands in tags, and a person knows it as it is."""
    inspector, tag = Inspector(client, namespace), row_tag("users", "name", "Ann: a=b")
    await client.zadd(inspector.keyspace.shards[0].tags, {f"{tag}{inspector.keyspace.entry('user:1').decode()}": 0})
    assert await inspector.tagged("users:name=Ann: a=b") == ["user:1"]
    assert await inspector.tagged(str(tag).removesuffix("\0")) == ["user:1"]


async def test_entries_of_a_hidden_value_are_found_by_the_tag_that_is_shown(client: Redis) -> None:
    """With `hash_keys=` a person has nothing but what `deps` shows; a table's name is not hidden."""

    async def order(number: int) -> int:
        return number

    inspector = Inspector(client)
    async with Cache(client, hash_keys=b"secret") as cache:
        load = cache.cached("order:{number}", depends_on=rows(Order, id="{number}"))(order)
        for number in (5, 6):
            await load(number)
        (tag,) = await inspector.tags(load.key(5))
        assert await inspector.tagged(tag) == [load.key(5)]
        assert sorted(await inspector.tagged("my orders")) == sorted(map(load.key, (5, 6)))


async def test_an_index_that_was_lost_is_not_whole(client: Redis) -> None:
    """Its mark has been deleted by hand."""
    async with Cache(client) as cache:

        @cache.cached("user:{number}")
        async def user(number: int) -> int:
            return number

        await user(1)
        await client.zrem("fastrdb:index", b"\0")
        assert not (await Inspector(client).index()).whole
        await client.delete("fastrdb:index")
        assert await Inspector(client).index() == IndexInfo(0, whole=False, exists=True)


async def test_counts_are_published(any_client: Any, namespace: str) -> None:
    """With publish=True the counts of this process are in Redis at once, and those of a process that ended go."""
    inspector = Inspector(any_client, namespace)
    async with Cache(any_client, namespace=namespace, publish=True) as cache:

        @cache.cached("user:{number}")
        async def user(number: int) -> int:
            return number

        await user(1)
        await until(lambda: _any_published(inspector))
        found = await inspector.published()
        (record,) = found.values()
        assert [each["pattern"] for each in record["functions"] if each["pattern"]] == ["user:{number}"]
        assert record["pending"] is False
    await any_client.delete(*[f"{inspector.keyspace.room}{{stats}}:{process}" for process in found])
    assert await inspector.published() == {}


async def test_published_counts_are_those_of_the_process(client: Redis, namespace: str) -> None:
    """Deletions of the cache itself are among them, and functions of one name count and last once."""
    async with Cache(client, namespace=namespace, publish=True) as cache:

        def made(head: str) -> Any:
            @cache.cached(f"{head}:{{number}}")
            async def twin(number: int) -> int:
                return number

            return twin

        twins = made("one"), made("other")
        for each in twins:
            await each(1)
        await cache.invalidate("one:*")
        assert cache.runtime._publisher is not None
        found = cache.runtime._publisher.tally.record(cache.runtime.counted, cache.runtime.registry, pending=False)
    totals = Inspector.totals({"this": found})
    (name,) = {each.function for each in cache.functions()}
    assert (totals[name]["stats"]["loads"], totals[name]["times"]["load"][0]) == (2, 2)
    assert (totals["Cache"]["stats"]["deleted"], totals["Cache"]["dropped"]) == (1, {"one:*": 1})


async def test_counts_that_redis_refuses_are_said_once(
    client: Redis, server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The cache works on; the message has the rights to give."""
    await client.acl_setuser(
        "quiet", enabled=True, passwords="+x", keys=["*"], categories=["+@all"], commands=["-hset"]
    )
    quiet = Redis(port=server.port, username="quiet", password="x")
    async with quiet, Cache(quiet, publish=True) as cache:

        @cache.cached("user:{number}")
        async def user(number: int) -> int:
            return number

        assert await user(1) == 1
        await until(lambda: _warned(caplog))
        assert await user(1) == 1
    await client.acl_deluser("quiet")
    (record,) = [each for each in caplog.records if "publish=True" in each.message]
    assert "+hset +expire +sadd" in record.message


async def _warned(caplog: pytest.LogCaptureFixture) -> bool:
    return any("publish=True" in each.message for each in caplog.records)


async def _any_published(inspector: Inspector) -> bool:
    return bool(await inspector.published())
