"""Each row of the page on troubleshooting: its symptom is made, and what the row says is found where the row says."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from typer.testing import CliRunner

from fastrdb import Cache, Event, FastRDB, Inspector, SessionInUseError, cached
from fastrdb.cli.commands import cli
from fastrdb.testing import FaultyClient, GatedClient, TcpProxy
from fastrdb.testing.server import EmbeddedServer
from tests.support import ROOT
from tests.support.servers.databases import Database
from tests.support.servers.postgresql import free_port
from tests.support.waiting import until
from tests.support.world.items import Base, Item, Row

PAGE = (ROOT / "fastrdb" / "docs" / "troubleshooting.md").read_text("utf-8")
SAYS = re.compile(r"^\| [^|]+ \| `([^`|]+)` \| [^|]+ \|$", re.MULTILINE)
"""The second cell of a row: the text to find, with `…` for what differs."""


@dataclass
class Scene:
    """Means to make a symptom: a server, a database with one row, and the log of the run."""

    client: Redis
    server: EmbeddedServer
    database: Database
    log: pytest.LogCaptureFixture

    def session(self) -> AsyncSession:
        """Return a session on the database."""
        return self.database.sessions()

    def user(self, name: str) -> Redis:
        """Return a client of the server as another user."""
        return Redis(port=self.server.port, username=name, password=name)


@pytest.fixture
async def scene(
    client: Redis, server: EmbeddedServer, sqlite: Database, caplog: pytest.LogCaptureFixture
) -> AsyncIterator[Scene]:
    """Yield a database with the item 1."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        db.add(Row(id=1, name="a"))
        await db.commit()
    with caplog.at_level(logging.INFO, logger="fastrdb"):
        yield Scene(client, server, sqlite, caplog)


Symptom = Callable[[Scene], Awaitable[object]]
SYMPTOMS: dict[str, Symptom] = {}


def says(text: str) -> Callable[[Symptom], Symptom]:
    """Take a function that makes a symptom, and returns what is seen there where the row with this text looks."""

    def add(function: Symptom) -> Symptom:
        assert text not in SYMPTOMS
        SYMPTOMS[text] = function
        return function

    return add


async def plain(number: int) -> int:
    """Return the number."""
    return number


async def reasons(function: Any, *args: Any) -> tuple[str, ...]:
    """Call a function, and return the reasons of `explain`."""
    await function(*args)
    found: tuple[str, ...] = (await function.explain(*args)).reasons
    return found


# --- every call is a miss


@says("the function returns a row of User, and declares UserResponse: give schema=UserResponse")
async def _row_without_schema(scene: Scene) -> object:
    class User(Base):
        __table__ = Row.__table__

    class UserResponse(BaseModel, from_attributes=True):
        id: int

    @Cache(scene.client).cached("user:{number}")
    async def get_user(db: AsyncSession, number: int) -> UserResponse | None:
        return await db.get(User, number)  # type: ignore[arg-type]

    async with scene.session() as db:
        return await reasons(get_user, db, 1)


@says("a result is not stored: value: dict comes back as Item")
async def _another_type(scene: Scene) -> object:
    @Cache(scene.client).cached("thing:{number}")
    async def load(number: int) -> Item:
        return {"id": number, "name": "a"}  # type: ignore[return-value]

    await load(1)
    return scene.log.messages


@says("the latest result was not stored: cache_if (1 in all)")
async def _cache_if(scene: Scene) -> object:
    return await reasons(Cache(scene.client).cached("n:{number}", cache_if=lambda number: number > 5)(plain), 1)


@says("the entry is larger than max_bytes, …")
async def _too_large(scene: Scene) -> object:
    @Cache(scene.client, max_bytes=100).cached("large:{number}")
    async def load(number: int) -> str:
        return "x" * 200

    return await reasons(load, 1)


@says("the load took longer than lease=…")
async def _slow_load(scene: Scene) -> object:
    async def lapsed() -> bool:
        return not await scene.client.exists("fastrdb:lease:{slow:1}")

    @Cache(scene.client, lease=0.05).cached("slow:{number}")
    async def load(number: int) -> int:
        await until(lapsed)
        return number

    return await reasons(load, 1)


@says("the session has written in its open transaction")
async def _written_session(scene: Scene) -> object:
    @Cache(scene.client).cached("name:{number}")
    async def get_name(db: AsyncSession, number: int) -> str | None:
        return await db.scalar(select(Row.name).where(Row.id == number))

    async with scene.session() as db:
        db.add(Row(id=2, name="b"))
        await db.flush()
        return await reasons(get_name, db, 1)


@says("redis is None")
async def _no_client(scene: Scene) -> object:
    @cached("n:{number}")
    async def load(redis: Redis | None, number: int) -> int:
        return number

    return (await load.explain(None, 1)).reasons


@says("the cache is disabled")
async def _disabled(scene: Scene) -> object:
    cache = Cache(scene.client)
    load = cache.cached("n:{number}")(plain)
    with cache.disabled():
        return await reasons(load, 1)


@says("another caller is loading or writing it")
async def _loading(scene: Scene) -> object:
    begun, go = asyncio.Event(), asyncio.Event()

    @Cache(scene.client).cached("n:{number}")
    async def load(number: int) -> int:
        begun.set()
        await go.wait()
        return number

    call = asyncio.create_task(load(1))
    await begun.wait()
    found = (await load.explain(1)).reasons
    go.set()
    assert await call == 1
    return found


@says("the watcher of writes from outside is silent")
async def _silent_watcher(scene: Scene) -> object:
    async with Cache(scene.client, watched=5) as cache:
        return await reasons(cache.cached("n:{number}")(plain), 1)


# --- entries are stored, and never found again


@says("page:1?asked=2026-…")
async def _other_argument(scene: Scene) -> object:
    @Cache(scene.client).cached("page:{page}")
    async def list_items(page: int, asked: datetime) -> int:
        return page

    for minute in range(2):
        await list_items(1, datetime(2026, 1, 1, 12, minute, tzinfo=UTC))
    assert (list_items.stats.fills, list_items.stats.hits) == (2, 0)
    found: Any = await scene.client.keys("page:*")
    return [key.decode() for key in found]


@says("each write deletes all that lies under 'item:*', which is every entry of its own pattern")
async def _wide_prefix(scene: Scene) -> object:
    cache = Cache(scene.client)
    kept = FastRDB[Row, Item, Item, Item](
        Row, Item, "item:{id}", "item:page:{page}", invalidate_pattern_prefix="item:*", cache=cache
    )
    assert kept is not None
    return cache.check()


@says("'plan:{number}' makes the same keys as 'plan:{number}' of plan in another cache")
async def _two_caches(scene: Scene) -> object:
    caches = Cache(scene.client), Cache(scene.client)

    async def plan(number: int) -> str:
        return "a plan"

    async def other(number: int) -> str:
        return "another one"

    for each, name in ((plan, "plan"), (other, "other")):
        each.__qualname__ = name
    kept = [cache.cached("plan:{number}")(each) for cache, each in zip(caches, (plan, other), strict=True)]
    assert len(kept) == 2
    return caches[1].check()


@says("2 functions that one factory has made have the same keys, 'plan:{}'")
async def _one_factory(scene: Scene) -> object:
    cache = Cache(scene.client)

    def made(tenant: str) -> Any:
        @cache.cached("plan:{number}")
        async def plan(number: int) -> str:
            return f"{tenant} {number}"

        return plan

    both = made("one"), made("two")
    return cache.check(), both


@says("kind='deleted', key='n:*', … count=3")
async def _many_deleted(scene: Scene) -> object:
    events: list[Event] = []
    cache = Cache(scene.client, hook=events.append)
    load = cache.cached("n:{number}")(plain)

    @cache.invalidates("n:*")
    async def write(number: int) -> None:
        return None

    for number in range(3):
        await load(number)
    await write(1)
    return events


@says("the entry is not Item")
async def _other_type(scene: Scene) -> object:
    events: list[Event] = []
    old, new = Cache(scene.client), Cache(scene.client, hook=events.append)
    before = old.cached("item:{number}")(plain)

    @new.cached("item:{number}")
    async def after(number: int) -> Item:
        return Item(id=number, name="a")

    for _ in range(2):
        await before(1)
        await after(1)
    assert (before.stats.corrupt, after.stats.corrupt) == (1, 2)
    return events


@says("items: any row, because no value is asked for")
async def _coarse(scene: Scene) -> object:
    async with Cache(scene.client, auto=True) as cache:

        @cache.cached("names")
        async def names(db: AsyncSession) -> list[str]:
            return list(await db.scalars(select(Row.name).order_by(Row.id)))

        async with scene.session() as db:
            await names(db)
            return (await names.explain(db)).coarse


# --- nothing is stored at all


@says("Redis refuses acquire (command not allowed when used memory > 'maxmemory'…")
async def _full(scene: Scene) -> object:
    load = Cache(scene.client).cached("n:{number}")(plain)
    await scene.client.config_set("maxmemory", "1")
    try:
        assert await load(1) == 1
    finally:
        await scene.client.config_set("maxmemory", "0")
    return scene.log.messages


@says("refused=…the cache is unavailable: acquire: …")
async def _no_permission(scene: Scene) -> object:
    rules = ("reset", "on", ">reader", "~*", "+@read", "+@connection", "+@scripting", "+info")
    await scene.client.execute_command("ACL", "SETUSER", "reader", *rules)
    try:
        async with scene.user("reader") as redis, Cache(redis) as cache:
            return await cache.ready()
    finally:
        await scene.client.execute_command("ACL", "DELUSER", "reader")


# --- old values


@says("no @invalidates and no FastRDB of this cache reaches its keys, 'item:{number}'")
async def _never_invalidated(scene: Scene) -> object:
    cache = Cache(scene.client)
    load = cache.cached("item:{number}")(plain)
    assert await load(1) == 1
    return cache.check()


@says("no cached function of this cache has keys under 'itm:*' (there are: item:)")
async def _misspelt_prefix(scene: Scene) -> object:
    cache = Cache(scene.client)
    load = cache.cached("item:{number}")(plain)

    @cache.invalidates("itm:*")
    async def write() -> None:
        return None

    await write()
    assert await load(1) == 1
    return scene.log.messages


@says("state='hit'")
async def _written_outside(scene: Scene) -> object:
    @Cache(scene.client).cached("name:{number}")
    async def get_name(db: AsyncSession, number: int) -> str | None:
        return await db.scalar(select(Row.name).where(Row.id == number))

    async with scene.session() as db, scene.session() as other:
        assert await get_name(db, 1) == "a"
        await db.rollback()
        await other.execute(text("UPDATE items SET name = 'b'"))
        await other.commit()
        assert await get_name(db, 1) == "a"
        found = await get_name.explain(db, 1)
        assert await get_name.invalidate(db=None, number=1) == 1
        assert await get_name(db, 1) == "b"
    return found


@says("its exp is over")
async def _stale_on_purpose(scene: Scene) -> object:
    load = Cache(scene.client).cached("n:{number}", exp=0.02, stale=60)(plain)
    await load(1)

    async def over() -> bool:
        return (await load.explain(1)).state == "stale"

    await until(over)
    return (await load.explain(1)).reasons


@says("Redis missed an invalidation (…): reads bypass the cache until it is repaired")
async def _missed(scene: Scene) -> object:
    redis = FaultyClient(scene.client)
    async with Cache(redis) as cache:
        redis.fail_with(on="begin", times=1)
        assert await cache.invalidate("n:*") is None
    return scene.log.messages


@says("closed with 1 invalidations that Redis has not taken: …")
async def _lost(scene: Scene) -> object:
    redis = FaultyClient(scene.client)
    cache = Cache(redis)
    redis.fail_with()
    await cache.invalidate("n:*")
    await cache.aclose(0)
    return scene.log.messages


# --- another tenant's values


@says("report:2026")
async def _another_tenant(scene: Scene) -> object:
    cache = Cache(scene.client)

    class Reports:
        def __init__(self, tenant: str) -> None:
            self.tenant = tenant

        @cache.cached("report:{year}")
        async def get(self, year: int) -> str:
            return f"{self.tenant} {year}"

    one, two = Reports("one"), Reports("two")
    assert await one.get(2026) == await two.get(2026) == "one 2026"
    return one.get.key(year=2026)


# --- slow calls


@says("Redis at … does not answer (…): calls go on without it")
async def _silent(scene: Scene) -> object:
    async with (
        TcpProxy(scene.server.port) as proxy,
        Redis(port=proxy.port) as redis,
        Cache(redis, timeout=0.02) as cache,
    ):
        load = cache.cached("n:{number}")(plain)
        proxy.hold()
        for number in range(4):
            assert await load(number) == number
        assert load.stats.unavailable > 0
        proxy.release()
    return scene.log.messages


@says("Redis at … did not answer (…): the call goes on without it; a single failure is logged once")
async def _one_failure(scene: Scene) -> object:
    async with Redis(port=1) as redis, Cache(redis) as cache:
        assert await cache.cached("n:{number}")(plain)(1) == 1
    return scene.log.messages


@says("another caller's load took longer than …")
async def _longer_than_wait(scene: Scene) -> object:
    events: list[Event] = []
    go, late = asyncio.Event(), asyncio.Event()

    @Cache(scene.client, hook=events.append).cached("n:{number}", wait=0.01)
    async def load(number: int) -> int:
        if load.stats.loads > 1:
            late.set()
        await go.wait()
        return number

    calls = [asyncio.create_task(load(1)) for _ in range(3)]
    await late.wait()
    go.set()
    assert await asyncio.gather(*calls) == [1, 1, 1]
    return events


@says("is in use by a call of …load in another task")
async def _shared_session(scene: Scene) -> object:
    begun, go = asyncio.Event(), asyncio.Event()

    @Cache(scene.client).cached("n:{number}")
    async def load(db: AsyncSession, number: int) -> int:
        begun.set()
        await go.wait()
        return number

    async with scene.session() as db:
        first = asyncio.create_task(load(db, 1))
        await begun.wait()
        with pytest.raises(SessionInUseError) as refused:
            await load(db, 2)
        go.set()
        await first
    return refused.value


# --- the near cache


@says("the near cache is off, reads go to Redis: …")
async def _near_off(scene: Scene) -> object:
    rules = ("reset", "on", ">far", "~*", "+@all", "-client|tracking")
    await scene.client.execute_command("ACL", "SETUSER", "far", *rules)
    try:
        async with scene.user("far") as redis, Cache(redis, near=True) as cache:
            load = cache.cached("n:{number}")(plain)
            await load(1)

            async def said() -> bool:
                return bool(scene.log.messages)

            await until(said)
            assert await load(1) == 1
            assert (load.stats.near, load.stats.hits) == (0, 1)
    finally:
        await scene.client.execute_command("ACL", "DELUSER", "far")
    return scene.log.messages


# --- memory, and the server


@says("Redis has maxmemory-policy allkeys-lru and may evict the index: …")
async def _evicting(scene: Scene) -> object:
    with EmbeddedServer(args=("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")) as server:
        async with Redis(port=server.port) as redis, Cache(redis) as cache:
            assert (await cache.ready()).policy == "allkeys-lru"
    return scene.log.messages


@says("the index in Redis does not have all keys (it was lost, or is new): …")
async def _lost_index(scene: Scene) -> object:
    cache = Cache(scene.client)
    load = cache.cached("n:{number}")(plain)
    await load(1)
    await scene.client.delete("fastrdb:index")
    assert await cache.invalidate("n:*") == 1
    return scene.log.messages


@says("hits=0, misses=3, loads=3, joins=0, fills=3")
async def _boundless(scene: Scene) -> object:
    @Cache(scene.client).cached("search:{words}")
    async def search(words: str) -> list[int]:
        return []

    for words in ("a", "ab", "abc"):
        await search(words)
    return search.stats


# --- what the doctor finds


async def doctor(url: str) -> str:
    """Return what `fastrdb doctor` finds besides what is well."""
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["doctor", url, "--json"], env={"FASTRDB_URL": None})
    found = json.loads(done.stdout)
    if isinstance(found, dict):
        return str(found["error"])
    return "\n".join(" ".join(each.values()) for each in found if each["level"] != "ok")


async def limited(scene: Scene, right: str) -> str:
    """Return what the doctor finds as a user without one right."""
    await scene.client.execute_command("ACL", "SETUSER", "ill", "reset", "on", ">ill", "~*", "&*", "+@all", right)
    try:
        return await doctor(f"redis://ill:ill@127.0.0.1:{scene.server.port}")
    finally:
        await scene.client.execute_command("ACL", "DELUSER", "ill")


@says("nothing listens there (connection refused). …")
async def _dead_port(scene: Scene) -> object:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return await doctor(f"redis://127.0.0.1:{probe.getsockname()[1]}")


@says("the server asks for another login. …")
async def _wrong_password(scene: Scene) -> object:
    return await doctor(f"redis://nobody:wrong@127.0.0.1:{scene.server.port}")


@says("role … a replica")
async def _replica(scene: Scene) -> object:
    with EmbeddedServer(args=("--replicaof", "127.0.0.1", str(scene.server.port))) as replica:
        return await doctor(replica.url)


@says("policy … allkeys-lru with maxmemory …")
async def _evicting_policy(scene: Scene) -> object:
    with EmbeddedServer(args=("--maxmemory", "64mb", "--maxmemory-policy", "allkeys-lru")) as server:
        return await doctor(server.url)


@says("rights … refused: ZADD …")
async def _lacking_right(scene: Scene) -> object:
    return await limited(scene, "-zadd")


@says("info … INFO is refused …")
async def _lacking_info(scene: Scene) -> object:
    return await limited(scene, "-info")


@says("index … not whole, …")
async def _index_in_part(scene: Scene) -> object:
    await scene.client.zadd("fastrdb:index", {"user:1": 0})
    return await doctor(scene.server.url)


@says("trust … the server has other data than it had …")
async def _other_data(scene: Scene) -> object:
    await scene.client.zadd("fastrdb:trusted", {"another server": 0})
    return await doctor(scene.server.url)


async def half_a_cluster() -> str:
    """Return what the doctor finds in a cluster of which half of the slots have no master."""
    with EmbeddedServer(args=("--cluster-enabled", "yes", "--cluster-port", str(free_port()))) as server:
        async with Redis(port=server.port) as admin:
            await admin.execute_command("CLUSTER", "ADDSLOTSRANGE", 0, 8191)
        return await doctor(server.url)


@says("slots … cluster_state fail …")
async def _slots_without_a_master(scene: Scene) -> object:
    return await half_a_cluster()


@says("entries … not examined: see slots …")
async def _entries_that_are_not_examined(scene: Scene) -> object:
    return await half_a_cluster()


@says("barriers … s left) …")
async def _commit_under_way(scene: Scene) -> object:
    redis = GatedClient(scene.client)
    gate = redis.before("end")
    cache = Cache(redis)

    @cache.invalidates("item:*")
    async def write(db: AsyncSession) -> None:
        await db.execute(text("UPDATE items SET name = 'b'"))
        await db.commit()

    async with scene.session() as db:
        call = asyncio.create_task(write(db))
        await gate.reached()
        try:
            return await doctor(scene.server.url)
        finally:
            gate.open()
            await call


@says("processes … a pending invalidation: …")
async def _pending_elsewhere(scene: Scene) -> object:
    redis = FaultyClient(scene.client)
    async with Cache(redis) as cache:
        redis.fail_with(on="begin")
        assert await cache.invalidate("n:*") is None
        record = {
            "host": "web1",
            "pid": 7,
            "pending": cache.runtime.store(redis).bypass_reason(redis),
            "functions": [],
            "drops": [],
        }
        await Inspector(scene.client).publish("web1", record)
        found = await doctor(scene.server.url)
        redis.heal()
    return found


# --- the page


def test_each_row_has_a_symptom() -> None:
    """The rows of the page are those that are made here."""
    assert sorted(SAYS.findall(PAGE)) == sorted(SYMPTOMS)


@pytest.mark.parametrize("text", SYMPTOMS)
async def test_symptom_is_seen_where_the_page_says(scene: Scene, text: str) -> None:
    """The text of the row is in what is found there."""
    pattern = ".*".join(re.escape(part) for part in text.split("…"))
    assert re.search(pattern, str(await SYMPTOMS[text](scene)).replace("\\'", "'"))
