"""Each row of the page on migration: what stands on its right side does what the left side was for."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from datetime import timedelta

import pytest
from fastapi import Depends, FastAPI, Header, HTTPException
from httpx import ASGITransport, AsyncClient
from pydantic import BaseModel
from redis.asyncio import Redis
from sqlalchemy.exc import MultipleResultsFound
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, FastRDB, OptionError, UnknownFieldError, no_store
from fastrdb.integrations.fastapi import CacheStatus
from fastrdb.testing.server import EmbeddedServer
from tests.support import ROOT
from tests.support.servers.databases import Database
from tests.support.waiting import until
from tests.support.world.items import Base, Item, Row

PAGE = (ROOT / "fastrdb" / "docs" / "migration.md").read_text("utf-8")
SECTION = re.compile(r"^## From (?P<name>.+)\n(?P<text>(?:(?!^## ).*\n)*)", re.MULTILINE)


@dataclass
class Scene:
    """A server, a cache on it, a database with the items 1 and 2, and a loader that counts."""

    client: Redis
    server: EmbeddedServer
    database: Database
    cache: Cache
    loaded: list[int] = field(default_factory=list)

    def session(self) -> AsyncSession:
        """Return a session."""
        return self.database.sessions()

    async def load(self, number: int) -> int:
        """Return the number, and note the load."""
        self.loaded.append(number)
        return number

    def crud(self) -> FastRDB[Row, Item, Item, Item]:
        """Return typed CRUD for the items."""
        return FastRDB[Row, Item, Item, Item](Row, Item, "item:{id}", "items:{page}:{limit}", cache=self.cache)


@pytest.fixture
async def scene(client: Redis, server: EmbeddedServer, sqlite: Database) -> AsyncIterator[Scene]:
    """Yield a scene."""
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        db.add_all([Row(id=1, name="a"), Row(id=2, name="a")])
        await db.commit()
    async with Cache(client) as cache:
        yield Scene(client, server, sqlite, cache)


Try = Callable[[Scene], Awaitable[None]]
TRIES: dict[tuple[str, str], Try] = {}


def row(library: str, *cells: str) -> Callable[[Try], Try]:
    """Take a function that tries rows: those whose left cell begins so."""

    def add(function: Try) -> Try:
        for cell in cells:
            assert (library, cell) not in TRIES
            TRIES[library, cell] = function
        return function

    return add


# --- what all have


@row("cashews", '`cache.setup("redis://…")`')
async def _client_from_an_address(scene: Scene) -> None:
    async with Redis.from_url(scene.server.url) as redis, Cache(redis) as cache:
        assert await cache.cached("n:{number}")(scene.load)(1) == 1
    assert await scene.client.exists("n:1")


@row("cashews", '`@cache(ttl="10m", key="user:{user_id}")`', '`ttl="10m"`')
@row("aiocache", "`@cached(ttl=600")
@row("fastapi-cache2", "`@cache()` on a function")
async def _pattern_and_ttl(scene: Scene) -> None:
    for exp in (600, timedelta(minutes=10)):
        load = scene.cache.cached(f"user:{exp}:{{user_id}}".replace(" ", ""), exp=exp)(_user)
        assert await load(1) == await load(user_id=1)
        assert load.stats.hits == 1
        assert 590 < await scene.client.ttl(load.key(1)) <= 600


async def _user(user_id: int) -> int:
    return user_id


@row("cashews", "`condition=lambda")
@row("aiocache", "`skip_cache_func=")
async def _condition(scene: Scene) -> None:
    load = scene.cache.cached("n:{number}", cache_if=lambda result: result > 1)(scene.load)

    @scene.cache.cached("m:{number}")
    async def refusing(number: int) -> int:
        no_store("not now")
        return number

    for number in (1, 1, 2, 2):
        await load(number)
        await refusing(number)
    assert scene.loaded == [1, 1, 2]
    assert refusing.stats.loads == 4


@row("cashews", "`@cache.early(")
async def _stale(scene: Scene) -> None:
    load = scene.cache.cached("n:{number}", exp=0.02, stale=60)(scene.load)
    chosen = scene.cache.cached("m:{number}", exp=540, early=1)(scene.load)
    assert await load(1) == await chosen(1) == 1

    async def over() -> bool:
        return (await load.explain(1)).state == "stale"

    await until(over)
    assert await load(1) == 1
    await scene.cache.aclose()
    assert scene.loaded == [1, 1, 1]


@row("cashews", "`@cache.soft(", "`@cache.failover(")
async def _fail_safe(scene: Scene) -> None:
    away: list[Exception] = []

    @scene.cache.cached("n:{number}", exp=0.02, fail_safe=600)
    async def load(number: int) -> int:
        for error in away:
            raise error
        return number

    await load(1)

    async def over() -> bool:
        return (await load.explain(1)).state != "hit"

    await until(over)
    away[:] = [OSError("no connection")]
    assert await load(1) == 1
    away[:] = [ValueError("an answer")]
    with pytest.raises(ValueError, match="an answer"):
        await load(1)


@row("cashews", "`lock=True`")
@row("aiocache", "`@cached_stampede(", "`RedLock`")
async def _one_load(scene: Scene) -> None:
    async with Redis(port=scene.server.port) as redis, Cache(redis) as other:
        loads = [cache.cached("n:{number}")(scene.load) for cache in (scene.cache, other)]
        assert await asyncio.gather(*(load(1) for load in loads * 20)) == [1] * 40
    assert scene.loaded == [1]


@row("cashews", '`@cache.invalidate("user:{user_id}")`')
async def _at_the_commit(scene: Scene) -> None:
    load = scene.cache.cached("user:{number}")(scene.load)

    @scene.cache.invalidates("user:{user_id}")
    async def rename(db: AsyncSession, user_id: int) -> None:
        (await db.get_one(Row, user_id)).name = "b"
        await db.flush()

    await load(1)
    async with scene.session() as db:
        await rename(db, 1)
        assert (await load.explain(1)).state == "hit"
        await db.commit()
    assert (await load.explain(1)).state == "miss"


@row("cashews", '`tags=["users"]`', '`cache.delete_match("user:*")`')
@row("fastapi-cache2", "`FastAPICache.clear(", '`namespace="users"`')
async def _by_prefix(scene: Scene) -> None:
    load = scene.cache.cached("users:{number}")(scene.load)
    for number in (1, 2):
        await load(number)
    assert await scene.cache.invalidate("users:*") == 2


@row("cashews", "`cache.delete(key)`")
@row("aiocache", "`cache.delete(key)`")
async def _one_entry(scene: Scene) -> None:
    load = scene.cache.cached("user:{number}")(scene.load)
    for number in (1, 2):
        await load(number)
    assert await load.invalidate(number=1) == 1
    assert (await load.explain(2)).state == "hit"


@row("cashews", "`client_side=True`")
@row("fastapi-cache2", "`InMemoryBackend`")
async def _near(scene: Scene) -> None:
    load = scene.cache.cached("n:{number}", near=True)(scene.load)

    async def kept() -> bool:
        await load(1)
        return load.stats.near > 0

    await until(kept)
    assert scene.loaded == [1]


@row("cashews", "`cache.disabling()`")
async def _disabled(scene: Scene) -> None:
    load = scene.cache.cached("n:{number}")(scene.load)
    with scene.cache.disabled():
        assert [await load(1), await load(1)] == [1, 1]
    assert scene.loaded == [1, 1]


@row("cashews", "`cache.get`")
async def _put(scene: Scene) -> None:
    @scene.cache.cached("name:{number}")
    async def name_of(db: AsyncSession, number: int) -> str:
        return (await db.get_one(Row, number)).name

    assert not hasattr(scene.cache, "get")
    assert not hasattr(scene.cache, "set")
    async with scene.session() as db:
        (await db.get_one(Row, 1)).name = "b"
        await db.flush()
        await name_of.put("b", db=db, number=1)
        await db.commit()
        assert (await name_of(db, 1), name_of.stats.loads) == ("b", 0)


@row("cashews", "pickle")
@row("fastapi-cache2", "`coder=PickleCoder`")
@row("aiocache", "`serializer=JsonSerializer()`")
async def _plain_json(scene: Scene) -> None:
    @scene.cache.cached("item:{number}")
    async def load(number: int) -> Item:
        return Item(id=number, name="a")

    @scene.cache.cached("row:{number}", schema=Item)
    async def get(db: AsyncSession, number: int) -> Row | None:
        return await db.get(Row, number)

    async with scene.session() as db:
        assert [type(each) for each in (await load(1), await load(1), await get(db, 1), await get(db, 1))] == [Item] * 4
    for key in ("item:1", "row:1"):
        assert json.loads(await scene.client.get(key) or "") == {"id": 1, "name": "a"}


# --- fastapi-cache2


@row("fastapi-cache2", "`FastAPICache.init(")
async def _namespace(scene: Scene) -> None:
    async with Cache(scene.client, namespace="shop") as cache:
        await cache.cached("n:{number}")(scene.load)(1)
    assert await scene.client.exists("shop:n:1")


@row("fastapi-cache2", "`@cache(expire=60)` on an endpoint", "header `X-FastAPI-Cache`")
async def _endpoint(scene: Scene) -> None:
    def permitted(user: str = Header()) -> None:
        if user != "ann":
            raise HTTPException(403)

    load = scene.cache.cached("n:{number}", exp=60)(scene.load)
    app = FastAPI()
    app.add_middleware(CacheStatus, cache=scene.cache)

    @app.get("/{number}", dependencies=[Depends(permitted)])
    async def read(number: int) -> int:
        return await load(number)

    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as http:
        answers = [await http.get("/1", headers={"user": user}) for user in ("ann", "ann", "eve")]
    assert [answer.status_code for answer in answers] == [200, 200, 403]
    statuses = [answer.headers.get("cache-status") for answer in answers]
    assert statuses == ["fastrdb; fwd=miss; stored", "fastrdb; hit", None]


@row("fastapi-cache2", "`key_builder=`")
async def _other_arguments(scene: Scene) -> None:
    @scene.cache.cached("page:{page}")
    async def read(page: int, order: str = "id") -> str:
        return order

    assert [await read(1), await read(1, "name"), await read(page=1, order="name")] == ["id", "name", "name"]
    assert read.stats.loads == 2


# --- aiocache


@row("aiocache", "`@multi_cached(")
async def _many(scene: Scene) -> None:
    @scene.cache.cached_many("user:{ids}")
    async def load(ids: list[int]) -> dict[int, int]:
        scene.loaded += ids
        return {number: number for number in ids}

    await load([1])
    assert await load([1, 2]) == {1: 1, 2: 2}
    assert scene.loaded == [1, 2]


@row("aiocache", "`noself=True`")
async def _self_is_no_key(scene: Scene) -> None:
    class Users:
        tenant = "one"

        @scene.cache.cached("user:{number}")
        async def get(self, number: int) -> int:
            return await scene.load(number)

        @scene.cache.cached("{self.tenant}:user:{number}")
        async def mine(self, number: int) -> int:
            return await scene.load(number)

    first, second = Users(), Users()
    second.tenant = "two"
    assert [await each.get(1) for each in (first, second)] == [1, 1]
    assert [await each.mine(1) for each in (first, second)] == [1, 1]
    assert scene.loaded == [1, 1, 1]


@row("aiocache", "`aiocache_wait_write=False`", "`timeout=5`")
async def _timeout(scene: Scene) -> None:
    with pytest.raises(OptionError, match="timeout"):
        Cache(timeout=-1)
    load = Cache(scene.client, timeout=5).cached("n:{number}")(scene.load)
    with pytest.raises(TypeError):
        await load(1, aiocache_wait_write=False)  # type: ignore[call-arg]
    assert await load(1) == 1


# --- fastrdb 0.0.3


@row("fastrdb 0.0.3", "`paginate(data, limit, page)`")
async def _paginate(scene: Scene) -> None:
    assert FastRDB.paginate([1, 2, 3], 2, 2).model_dump(include={"data", "total"}) == {"data": [3], "total": 3}
    with pytest.warns(UserWarning, match=r"total=.*get_page"):
        page = FastRDB.paginate([3, 4], 2, 2)
    assert (page.data, page.total) == ([3, 4], 4)
    assert FastRDB.paginate([3, 4], 2, 2, total=7).total == 7


@row("fastrdb 0.0.3", "`count(db, id=…)`", "`get_multi(order_by=…)`")
async def _count_and_order(scene: Scene) -> None:
    crud = scene.crud()
    async with scene.session() as db:
        assert await crud.count(db, redis=scene.client, id=1) == 1
        for ascending, ids in ((True, [1, 2]), (False, [2, 1])):
            found = await crud.get_multi(db, scene.client, limit=10, page=1, order_by="id", ascending=ascending)
            assert [each.id for each in found] == ids
        with pytest.raises(UnknownFieldError):
            await crud.get_multi(db, scene.client, limit=10, page=1, order_by="nonsense")


@row("fastrdb 0.0.3", "`get(**kwargs)`")
async def _filters_join_the_key(scene: Scene) -> None:
    crud = scene.crud()
    async with scene.session() as db:
        assert (await crud.get(db, scene.client, id=1)).name == "a"
        assert await crud.get_or_none(db, scene.client, id=1, name="b") is None


@row("fastrdb 0.0.3", "`update(obj_in, **matches)`", "`delete(**kwargs)`")
async def _one_row(scene: Scene) -> None:
    class Renamed(BaseModel):
        name: str

    crud = FastRDB[Row, Item, Renamed, Item](Row, Item, "item:{id}", "items:{page}", cache=scene.cache)
    async with scene.session() as db:
        with pytest.raises(MultipleResultsFound):
            await crud.update(db, scene.client, Renamed(name="b"), name="a")
        with pytest.raises(MultipleResultsFound):
            await crud.delete(db, scene.client, name="a")
        assert len(await crud.update_multi(db, scene.client, Renamed(name="b"), name="a")) == 2
        assert await crud.delete_multi(db, scene.client, name="b") == 2


@row("fastrdb 0.0.3", "`create` caches")
async def _created(scene: Scene) -> None:
    async with scene.session() as db:
        await scene.crud().create(db, scene.client, Item(id=3, name="c"))
    assert await scene.client.exists("item:3")


@row("fastrdb 0.0.3", "a method commits")
async def _flushes(scene: Scene) -> None:
    async with scene.session() as db:
        async with db.begin():
            await scene.crud().create(db, scene.client, Item(id=3, name="c"))
            assert db.in_transaction()
            await db.rollback()
        assert await db.get(Row, 3) is None


@row("fastrdb 0.0.3", "`set_redis_data`", "`get_redis_data`", "`invalidate_cache(", "`crud.exp`")
async def _helpers(scene: Scene) -> None:
    crud = scene.crud()
    for name in ("set_redis_data", "set_redis_list_data", "get_redis_data", "invalidate_cache"):
        assert not hasattr(crud, name)
    assert (crud.exp, crud.invalidate_pattern_prefix) == (3600, "")
    async with scene.session() as db:
        await crud.get(db, scene.client, id=1)
    assert await crud.cache.invalidate("item:*", redis=scene.client) == 1


@row("fastrdb 0.0.3", "keys with unescaped values", "orjson")
async def _keys(scene: Scene) -> None:
    load = scene.cache.cached("user:email:{email}")(_mail)
    assert load.key("a@example.com") == "user:email:a@example.com"
    assert load.key("a:*") == "user:email:a%3A%2A"
    with pytest.raises(OptionError, match="declare what it returns"):
        scene.cache.cached("n:{number}")(_untyped)


async def _mail(email: str) -> str:
    return email


async def _untyped(number: int):  # type: ignore[no-untyped-def]  # 0.0.3 took a schema only
    return number


# --- the page


def cells(section: str) -> list[str]:
    """Return the left cells of the table of a section, without its head."""
    found = [line.strip("|").split(" | ")[0].strip() for line in section.splitlines() if line.startswith("|")]
    return found[2:]


@pytest.mark.parametrize("library", ["cashews", "fastapi-cache2", "aiocache", "fastrdb 0.0.3"])
def test_each_row_is_tried(library: str) -> None:
    """Each row begins with one of the texts that are tried, and each text is that of one row."""
    sections = {found["name"]: found["text"] for found in SECTION.finditer(PAGE)}
    found = cells(sections[library])
    tried = [start for name, start in TRIES if name == library]
    assert [cell for cell in found if sum(cell.startswith(start) for start in tried) != 1] == []
    assert [start for start in tried if sum(cell.startswith(start) for cell in found) != 1] == []


@pytest.mark.parametrize("tried", dict.fromkeys(TRIES.values()), ids=lambda tried: tried.__name__.strip("_"))
async def test_right_side_does_what_the_left_side_was_for(scene: Scene, tried: Try) -> None:
    """The means of fastrdb are used as the row says."""
    await tried(scene)
