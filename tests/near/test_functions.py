"""Decorated functions with a near cache: the same answers, and nothing older than without, but for the push's way."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict
from redis.asyncio import Redis
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, FastRDB, Near, OptionError, cached
from fastrdb.protocol import Store
from fastrdb.testing import GatedClient, TcpProxy
from fastrdb.testing.server import EmbeddedServer
from fastrdb.transport import own_connection
from tests.races.mechanisms import without
from tests.races.seams import Change
from tests.support.servers.databases import Database
from tests.support.world.near import Observed
from tests.support.world.world import Item, ItemOut, World, spawn, world

pytestmark = pytest.mark.usefixtures("observed")


class Point(BaseModel):
    model_config = ConfigDict(frozen=True)
    x: int


class Other(BaseModel):
    model_config = ConfigDict(frozen=True)
    x: int


class Open(BaseModel):
    x: int


class Loose(BaseModel):
    x: int
    tags: list[str] = []


@pytest.fixture
async def w(sqlite: Database, client: Redis) -> AsyncIterator[World]:
    """Yield a world of two processes, each with a near cache."""
    async with world(sqlite, client, near=True) as made:
        yield made


def near_of(store: Store) -> Observed:
    """Return the near cache of a store."""
    assert isinstance(store.near, Observed)
    return store.near


async def told(store: Store, client: Any, mark: str) -> None:
    """Wait until the server has reported all that has been done by now: pushes come in order."""
    near, heard = near_of(store), len(near_of(store).heard)
    await client.set(mark, b"0", px=60_000)
    await near.until(lambda: mark.encode() in near.heard[heard:])


async def warm(store: Store, client: Any, key: str, read: Callable[[], Awaitable[Any]]) -> None:
    """Read until the answer comes from the process."""
    await read()  # which begins to track
    near = near_of(store)
    await near.until(lambda: near.begin(key) is not None)
    await told(store, client, f"{key}:mark")
    await read()
    assert near.lookup(key) is not None


async def warm_process(w: World, process: Any, item_id: int = 1) -> None:
    """Read an item, so that the process keeps it."""
    await warm(process.store, w.client, f"item:{item_id}", lambda: process.read(item_id))


# --- hits


async def test_a_near_hit_asks_nobody(cache: Cache, gated: GatedClient) -> None:
    """After a read from Redis the process answers by itself: no command, no load, and it is counted as such."""

    @cache.cached("point:{x}")
    async def get(x: int) -> Point:
        return Point(x=x)

    await warm(cache.runtime.store(gated), gated, "point:1", lambda: get(1))
    sent, before = len(gated.log), get.stats
    assert await get(1) == Point(x=1)
    assert len(gated.log) == sent
    assert (get.stats.near - before.near, get.stats.hits - before.hits) == (1, 0)
    assert get.stats.loads == 1
    assert cache.stats().near == get.stats.near


@pytest.mark.parametrize(
    ("declared", "value"),
    [(Point, Point(x=1)), (Loose, Loose(x=1, tags=["a"])), (list[Point], [Point(x=1)]), (int, 1), (Point | None, None)],
)
async def test_every_type(cache: Cache, gated: GatedClient, declared: Any, value: Any) -> None:
    """A near hit equals a miss, type for type."""

    async def get(x: int) -> Any:
        return value

    get.__annotations__["return"] = declared
    decorated = cache.cached("value:{x}")(get)
    await warm(cache.runtime.store(gated), gated, "value:1", lambda: decorated(1))
    found = await decorated(1)
    assert found == value
    assert type(found) is type(value)
    assert decorated.stats.near == 1


async def test_what_cannot_be_changed_is_handed_out_as_it_is(cache: Cache, gated: GatedClient) -> None:
    """All callers get the same object."""

    @cache.cached("point:{x}")
    async def get(x: int) -> tuple[int, ...]:
        return (x,)

    await warm(cache.runtime.store(gated), gated, "point:1", lambda: get(1))
    assert await get(1) is await get(1)


async def test_the_fields_set_of_a_frozen_model_are_its_callers_own(cache: Cache, gated: GatedClient) -> None:
    """A caller that empties the set empties its own, also the one whose answer is kept."""

    @cache.cached("point:{x}")
    async def get(x: int) -> Point | None:
        return Point(x=x)

    async def emptied() -> None:
        found = await get(1)
        assert found is not None
        assert found.model_dump(exclude_unset=True) == {"x": 1}
        found.model_fields_set.clear()

    await warm(cache.runtime.store(gated), gated, "point:1", emptied)
    await emptied()
    found = await get(1)
    assert found == Point(x=1)
    assert found is not None
    assert get.stats.near == 2


def renumber(found: Loose) -> None:
    """Change a value that was handed out."""
    found.x = 9


def label(found: Loose) -> None:
    """Change what is inside a value that was handed out."""
    found.tags.append("b")


@pytest.mark.parametrize("change", [renumber, label])
async def test_what_a_caller_changes_is_its_own(
    cache: Cache, gated: GatedClient, change: Callable[[Loose], None]
) -> None:
    """S10: the next caller gets what was loaded, whatever the last one did to its own."""

    @cache.cached("loose:{x}")
    async def get(x: int) -> Loose:
        return Loose(x=x, tags=["a"])

    await warm(cache.runtime.store(gated), gated, "loose:1", lambda: get(1))
    change(await get(1))
    assert await get(1) == Loose(x=1, tags=["a"])
    assert get.stats.near == 2


class Inner(BaseModel):
    x: int


class Outer(BaseModel):
    model_config = ConfigDict(frozen=True)
    inner: Inner


async def test_what_a_caller_changes_inside_is_its_own(cache: Cache, gated: GatedClient) -> None:
    """A frozen model may hold one that is not."""

    @cache.cached("outer:{x}")
    async def get(x: int) -> Outer:
        return Outer(inner=Inner(x=x))

    await warm(cache.runtime.store(gated), gated, "outer:1", lambda: get(1))
    (await get(1)).inner.x = 9
    assert await get(1) == Outer(inner=Inner(x=1))
    assert get.stats.near == 2


async def test_two_functions_one_key(cache: Cache, gated: GatedClient) -> None:
    """Two functions share the entry and not its objects: each gets its own type, as in two versions of one function."""

    def version(kind: Any) -> Any:
        async def load(x: int) -> Any:
            return kind(x=x)

        load.__annotations__["return"] = kind
        load.__code__ = load.__code__.replace()  # as after a reload: else one factory made both, which is refused
        return cache.cached("same:{x}")(load)

    one, two, three = version(Point), version(Other), version(Open)
    await warm(cache.runtime.store(gated), gated, "same:1", lambda: one(1))
    for _ in range(3):
        assert type(await one(1)) is Point
        assert type(await two(1)) is Other
        assert type(await three(1)) is Open
    assert cache.stats().loads == 1


async def test_what_is_known_to_be_missing(cache: Cache, gated: GatedClient) -> None:
    """A negative entry is Redis's: NoResultFound each time, loaded once."""

    @cache.cached("none:{x}", negative_exp=60)
    async def get(x: int) -> Point:
        raise NoResultFound("no such row")

    near = near_of(cache.runtime.store(gated))
    for _ in range(4):
        with pytest.raises(NoResultFound, match="no such row"):
            await get(1)
        await near.until(lambda: near.begin("none:2") is not None)
    assert (get.stats.loads, get.stats.near) == (1, 0)


async def test_an_entry_that_cannot_be_read(cache: Cache, gated: GatedClient) -> None:
    """It is never kept: replaced in Redis, and loaded."""

    @cache.cached("point:{x}")
    async def get(x: int) -> Point:
        return Point(x=x)

    await warm(cache.runtime.store(gated), gated, "point:1", lambda: get(1))
    await gated.set("point:1", b"rubbish", px=60_000)
    await told(cache.runtime.store(gated), gated, "point:mark")
    assert await get(1) == Point(x=1)
    assert get.stats.corrupt == 1


# --- which functions have one


def test_the_settings_of_a_cache() -> None:
    """`near=` is True, False, None or a Near; anything else is refused by name."""
    assert Cache(near=Near(entries=5)).runtime.near == Near(entries=5)
    assert Cache(near=True).runtime.near == Cache().runtime.near == Near()
    for wrong in (1, "yes", {"entries": 5}):
        with pytest.raises(OptionError, match=r"Cache: near=.* must be a Near, True, False or None"):
            Cache(near=wrong)  # type: ignore[arg-type]


def test_the_option_of_a_function() -> None:
    """True, False or None: bounds are the cache's."""

    async def get(redis: Redis, x: int) -> Point:
        return Point(x=x)

    wrong: Any
    for wrong in (1, "yes", Near()):
        with pytest.raises(OptionError, match=r"get: near=.* must be True, False or None"):
            cached("point:{x}", near=wrong)(get)


@pytest.mark.parametrize(
    ("of_cache", "of_function", "near"),
    [
        (True, None, True),
        (Near(), None, True),
        (False, None, False),
        (None, None, False),
        (None, True, True),
        (False, True, True),
        (True, False, False),
    ],
)
async def test_who_keeps_entries(gated: GatedClient, of_cache: Any, of_function: bool | None, near: bool) -> None:
    """A function as it says itself, or as its cache says."""
    async with Cache(gated, near=of_cache, timeout=5) as cache:

        @cache.cached("point:{x}", near=of_function)
        async def get(x: int) -> Point:
            return Point(x=x)

        store = cache.runtime.store(gated)
        if near:
            await warm(store, gated, "point:1", lambda: get(1))
        for _ in range(3):
            assert await get(1) == Point(x=1)
        assert (get.stats.near > 0) is near
        assert bool(len(store.near)) is near
        trackers = [each for each in await gated.client_list() if "t" in each["flags"]]
        assert len(trackers) == near


async def test_bounds_are_the_caches(gated: GatedClient) -> None:
    """So many entries, and no more; so long, and no longer."""
    async with Cache(gated, near=Near(entries=3, ttl=0.001), timeout=5) as cache:

        @cache.cached("point:{x}")
        async def get(x: int) -> Point:
            return Point(x=x)

        await get(0)
        near = near_of(cache.runtime.store(gated))
        await near.until(lambda: near.begin("point:0") is not None)
        for x in range(10):
            await get(x)
        await told(cache.runtime.store(gated), gated, "point:mark")
        for x in range(10):
            await get(x)
        assert len(near) == 3
        while near.lookup("point:9") is not None:
            pass
        assert await get(9) == Point(x=9)


# --- writes


async def test_a_write_by_another_program(cache: Cache, gated: GatedClient, client: Redis) -> None:
    """A write by another program, as with redis-cli: SET and DEL are seen as soon as the server has reported them."""
    loads = iter([1, 2])

    @cache.cached("number:{x}")
    async def get(x: int) -> int:
        return next(loads)

    store = cache.runtime.store(gated)
    await warm(store, gated, "number:1", lambda: get(1))
    await client.set("number:1", b"7", px=60_000)
    await told(store, client, "number:mark")
    assert await get(1) == 7
    await client.delete("number:1")
    await told(store, client, "number:mark")
    assert await get(1) == 2


async def test_a_commit_of_another_process(w: World) -> None:
    """Another process's commit takes the entry out before COMMIT: then the database answers, and the new row after."""
    await warm_process(w, w.one)
    gate = w.at_commit()
    writer = spawn(w.two.write("new"))
    await gate.reached()
    await told(w.one.store, w.client, "item:mark")
    near = w.one.get.stats.near
    assert await w.one.read() == "old"
    assert w.one.get.stats.near == near
    gate.open()
    await writer
    assert await w.one.read() == "new"
    await w.fair()


@pytest.mark.parametrize("kind", ["write", "save", "refresh", "invalidate", "cache.invalidate"])
async def test_ones_own_write_with_slow_pushes(w: World, server: EmbeddedServer, kind: str) -> None:
    """A process reads its own committed write, although the server's push of it is still on its way."""
    async with TcpProxy(server.port) as proxy, Redis(port=proxy.port) as slow:
        one = w.one
        one.store._tracking.servers[""]._connect = lambda _, **options: own_connection(slow.connection_pool, **options)
        await warm_process(w, one)
        proxy.hold("down")
        if kind == "write":
            await one.write("new")
        elif kind == "save":
            await one.save("new")
        else:
            async with w.database.sessions() as db:
                await one.by_text(db, "new")
                await db.commit()
                if kind == "refresh":
                    await one.get.refresh(db=db, redis=one.client, item_id=1)
                elif kind == "invalidate":
                    await one.get.invalidate(redis=one.client, item_id=1)
                else:
                    await one.cache.invalidate("item:*", redis=one.client)
        assert await one.read() == "new"
        assert await one.read() == "new"
        proxy.release()
        await told(one.store, w.client, "item:mark")
        await w.fair()


async def test_a_session_that_has_written(w: World) -> None:
    """It reads its own row, not what is kept; and a rollback leaves what was kept as it is."""
    await warm_process(w, w.one)
    near = w.one.get.stats.near
    async with w.database.sessions() as db:
        item = await db.get_one(Item, 1)
        item.name = "mine"
        found: ItemOut = await w.one.get(db, w.one.client, 1)
        assert found.name == "mine"
        assert w.one.get.stats.near == near
        await db.rollback()
    assert await w.one.read() == "old"
    assert w.one.get.stats.near == near + 1


async def test_a_commit_that_redis_has_not_heard_of(w: World) -> None:
    """Until Redis has the missed commit, this process reads past its own near entries too; then these are gone."""
    await warm_process(w, w.one)
    await warm_process(w, w.one, 2)
    w.one.client.fail_with(ConnectionError("gone"))
    await w.one.write("new")
    assert w.one.store.has_pending
    assert await w.one.read() == "new"
    w.one.client.heal()
    await w.one.cache.aclose()
    assert not w.one.store.has_pending
    assert await w.one.read() == "new"
    await w.fair()


async def test_a_server_with_other_data(w: World) -> None:
    """On a server with other data no near entry answers, and no old channel counts: all begins anew."""
    await warm_process(w, w.one)
    w.one.store._backend.trust.distrust()
    near = w.one.get.stats.near
    assert await w.one.read() == "old"
    assert w.one.get.stats.near == near
    assert len(w.one.store.near) == 0
    await near_of(w.one.store).until(lambda: w.one.store.near.valid_until < 0)
    while w.one.store.obstacles:
        assert await w.one.read() == "old"
    await warm_process(w, w.one)


async def test_a_storm_of_commits(w: World) -> None:
    """Two processes read and write the same rows in any order: when all is reported, no process has anything old."""
    for process in (w.one, w.two):
        await warm_process(w, process)

    async def steps(process: Any, number: int) -> None:
        item = random.choice((1, 2))
        if number % 5:
            await process.read(item)
        elif number % 2:
            await process.write(f"{number}", item)
        else:
            await process.save(f"{number}", item)

    for start in range(0, 120, 8):
        await asyncio.gather(
            *(steps(process, n) for n in range(start, start + 4) for process in (w.one, w.two)), return_exceptions=True
        )
        if start % 40 == 0:
            for process in (w.one, w.two):
                await told(process.store, w.client, "item:mark")
            for item in (1, 2):
                await w.fair(item)
    assert w.one.get.stats.near > 0


# --- life


async def test_closing_and_using_again(cache: Cache, gated: GatedClient) -> None:
    """`aclose` ends the tracking connection; the next reader has a new one."""

    @cache.cached("point:{x}")
    async def get(x: int) -> Point:
        return Point(x=x)

    store = cache.runtime.store(gated)
    for _ in range(2):
        await warm(store, gated, "point:1", lambda: get(1))
        await cache.aclose()
        while any("t" in each["flags"] for each in await gated.client_list()):
            pass
        assert len(store.near) == 0
        assert await get(1) == Point(x=1)
        await cache.aclose()


def test_loops_one_after_the_other(server: EmbeddedServer) -> None:
    """Each loop has a near cache of its own, and ends without closing it."""
    cache = Cache(near=True)

    @cache.cached("loops:{x}")
    async def get(redis: Redis, x: int) -> Point:
        return Point(x=x)

    async def main() -> Store:
        async with Redis(port=server.port) as client:
            store = cache.runtime.store(client)
            await warm(store, client, "loops:1", lambda: get(client, 1))
            assert await get(client, 1) == Point(x=1)
            return store

    first, second = asyncio.run(main()), asyncio.run(main())
    assert first is not second
    assert get.stats.near >= 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_worker(server: EmbeddedServer) -> None:
    """In a server that forks when it has started, the child drops its parent's entries, and tracks by itself."""
    cache = Cache(near=True)

    @cache.cached("fork:{x}")
    async def get(redis: Redis, x: int) -> Point:
        return Point(x=x)

    async def read(client: Redis) -> Store:
        store = cache.runtime.store(client)
        await warm(store, client, "fork:1", lambda: get(client, 1))
        return store

    async def work() -> bool:
        async with Redis(port=server.port) as client:
            await read(client)
            return await get(client, 1) == Point(x=1)

    with asyncio.Runner() as runner:
        client = Redis(port=server.port)
        store = runner.run(read(client))
        child = os.fork()
        if not child:
            fine = store.near.lookup("fork:1") is None and asyncio.run(work())
            os._exit(0 if fine else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert store.near.lookup("fork:1") is not None
        runner.run(client.aclose())


# --- the CRUD class


async def test_the_crud_class(sqlite: Database, client: Redis) -> None:
    """`near=True` goes for all its reads; its own writes are seen at once."""
    async with world(sqlite, client), Cache(timeout=5) as cache:
        crud = FastRDB[Item, ItemOut, ItemOut, ItemOut](
            Item,
            ItemOut,
            pattern="crud:{id}",
            list_pattern="crud:page:{page}:limit:{limit}",
            invalidate_pattern_prefix="crud:*",
            cache=cache,
            near=True,
        )
        store = cache.runtime.store(client)

        async def get(db: AsyncSession | None = None) -> str:
            async with sqlite.sessions() as own:
                return (await crud.get(db=db or own, redis=client, id=1)).name

        async def names() -> list[str]:
            async with sqlite.sessions() as db:
                return [item.name for item in await crud.get_multi(db=db, redis=client)]

        await warm(store, client, "crud:1", get)
        await names()
        await told(store, client, "crud:mark")
        for _ in range(2):
            assert await names() == ["old", "old"]
        assert cache.stats().near > 0
        async with sqlite.sessions() as db:
            await crud.update(db=db, redis=client, obj_in=ItemOut(id=1, name="new"), id=1)
        assert await get() == "new"
        assert await names() == ["new", "old"]


@pytest.mark.parametrize("change", [None, without("loads-skip-near")], ids=["all", "without"])
async def test_load_that_asks_a_near_function_stores_nothing_late(
    server: EmbeddedServer, client: Redis, monkeypatch: pytest.MonkeyPatch, change: Change | None
) -> None:
    """A near entry may be as late as a push, and the entry of the load around it would stay so."""
    name = "old"
    async with (
        TcpProxy(server.port) as proxy,
        Redis(port=proxy.port) as slow,
        Cache(client, near=True, timeout=5) as here,
        Cache(client, timeout=5) as there,
    ):

        @here.cached("user:{number}")
        async def user(number: int) -> str:
            return name

        @here.cached("dash:{number}", near=False)
        async def dash(number: int) -> str:
            return f"hello {await user(number)}"

        @there.invalidates(["user:{number}", "dash:{number}"])
        async def rename(number: int) -> None:
            nonlocal name
            name = "new"

        store = here.runtime.store(client)
        store._tracking.servers[""]._connect = lambda _, **options: own_connection(slow.connection_pool, **options)
        await warm(store, client, "user:1", lambda: user(1))
        proxy.hold("down")
        await rename(1)
        if change is not None:
            change.apply(monkeypatch.setattr)
        await dash(1)
        monkeypatch.undo()
        proxy.release()
        await near_of(store).until(lambda: near_of(store).lookup("user:1") is None)
        assert await dash(1) == ("hello new" if change is None else "hello old")
