"""The parts for FastAPI: an application that uses them, asked over ASGI."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Annotated, Any

import pytest
from fastapi import BackgroundTasks, Body, Depends, FastAPI, Header, Request
from fastapi import Response as Answer
from fastapi.middleware.gzip import GZipMiddleware
from fastapi.responses import JSONResponse, PlainTextResponse
from fastapi.security import APIKeyHeader
from httpx import ASGITransport, AsyncClient, Response
from pydantic import BaseModel, Field, Json, computed_field, field_serializer
from redis.asyncio import Redis
from sqlalchemy import insert, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb import Cache, OptionError, PageOutOfRange, UnknownFieldError
from fastrdb.integrations.fastapi import (
    CacheStatus,
    Client,
    Resources,
    Session,
    add_handlers,
    cached_response,
    get_session,
    lifespan,
)
from fastrdb.testing import EmbeddedServer
from tests.support.servers.databases import Database


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "rows"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str]


class Out(BaseModel):
    id: int
    name: str


@dataclass
class Shop:
    """An application with its cache, and how often each function has run."""

    app: FastAPI
    http: AsyncClient
    cache: Cache
    redis: Redis
    loads: list[Any] = field(default_factory=list)
    opened: list[AsyncSession] = field(default_factory=list)

    async def get(self, path: str, **headers: str) -> Response:
        """Ask for a path."""
        return await self.http.get(path, headers={name.replace("_", "-"): each for name, each in headers.items()})


@pytest.fixture
async def shop(client: Redis, sqlite: Database) -> AsyncIterator[Shop]:
    """Run an application whose rows are in a SQLite file."""
    async with sqlite.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Row), [{"id": each, "name": f"n{each}"} for each in range(1, 4)])
    cache = Cache()
    made: Shop

    def sessions() -> AsyncSession:
        made.opened.append(AsyncSession(sqlite.engine, expire_on_commit=False))
        return made.opened[-1]

    app = FastAPI(lifespan=lifespan(cache, redis=client, database=sessions))
    app.add_middleware(CacheStatus, cache=cache)
    add_handlers(app)
    transport = ASGITransport(app)
    async with AsyncClient(transport=transport, base_url="http://shop") as http, app.router.lifespan_context(app):
        made = Shop(app, http, cache, client)
        _routes(made)
        yield made


def _routes(shop: Shop) -> None:
    app, cache = shop.app, shop.cache

    @app.get("/rows/{number}")
    @cached_response
    @cache.cached("row:{number}", exp=60, jitter=0)
    async def row(number: int, redis: Client, db: Session) -> Out:
        """Return one row."""
        shop.loads.append(number)
        found = await db.scalar(select(Row).where(Row.id == number))
        return Out(id=number, name=found.name if found else "none")

    @app.get("/all")
    @cached_response(max_age=0)
    @cache.cached_list("rows:{least}")
    async def rows(redis: Client, db: Session, least: int = 0) -> list[Out]:
        shop.loads.append("all")
        found = await db.scalars(select(Row).where(Row.id >= least).order_by(Row.id))
        return [Out(id=each.id, name=each.name) for each in found]

    @app.get("/picky")
    @cached_response
    @cache.cached("picky", cache_if=lambda value: False)
    async def picky(redis: Client) -> Out:
        return Out(id=0, name="picky")


# --- the stored JSON


async def test_a_hit_is_answered_with_the_stored_json_and_opens_no_session(shop: Shop) -> None:
    """The first call loads with a session, which is closed; the second one answers with the bytes in Redis."""
    first, second = await shop.get("/rows/1"), await shop.get("/rows/1")
    assert first.json() == second.json() == {"id": 1, "name": "n1"}
    assert shop.loads == [1]
    assert second.content == await shop.redis.get("row:1")
    assert not any(session.in_transaction() for session in shop.opened)
    assert second.headers["content-type"] == "application/json"


async def test_answers_have_a_strong_etag_and_the_ttl_left(shop: Shop) -> None:
    """The tag is of the bytes, and `max-age` is at most the TTL."""
    first, second = await shop.get("/rows/1"), await shop.get("/rows/1")
    other = await shop.get("/rows/2")
    assert first.headers["etag"] == second.headers["etag"] != other.headers["etag"]
    assert re.fullmatch(r'"[0-9a-f]{64}"', first.headers["etag"])
    assert re.fullmatch(r"private, max-age=(59|60)", second.headers["cache-control"])
    assert second.headers["vary"] == "Authorization, Cookie"


@pytest.mark.parametrize("known", ["{tag}", "W/{tag}", '"x", {tag}', "*"])
async def test_a_known_etag_is_answered_with_304(shop: Shop, known: str) -> None:
    """There is no body, and the headers say how long the answer holds."""
    tag = (await shop.get("/rows/1")).headers["etag"]
    answer = await shop.get("/rows/1", if_none_match=known.format(tag=tag))
    assert (answer.status_code, answer.content) == (304, b"")
    assert answer.headers["etag"] == tag
    assert "max-age" in answer.headers["cache-control"]


async def test_another_etag_is_answered_in_full_after_a_write(shop: Shop) -> None:
    """An invalidation changes the entry, and so the tag."""
    tag = (await shop.get("/rows/1")).headers["etag"]
    async with shop.opened[0] as session:
        (await session.get_one(Row, 1)).name = "changed"
        await session.commit()
    await shop.cache.invalidate("row:*", redis=shop.redis)
    answer = await shop.get("/rows/1", if_none_match=tag)
    assert (answer.status_code, answer.json()["name"]) == (200, "changed")
    assert answer.headers["etag"] != tag


async def test_304_answers_any_line_of_if_none_match_and_only_a_read(shop: Shop) -> None:
    """Several lines are one list. A POST with the same tag is answered in full: 304 is for GET and HEAD."""
    shop.app.post("/rows/{number}")(_route(shop, "/rows/{number}"))
    tag = (await shop.get("/rows/1")).headers["etag"]
    lines = [("if-none-match", '"another"'), ("if-none-match", tag)]
    assert (await shop.http.get("/rows/1", headers=lines)).status_code == 304
    posted = await shop.http.post("/rows/1", headers={"if-none-match": tag})
    assert (posted.status_code, posted.json()) == (200, {"id": 1, "name": "n1"})


def _route(shop: Shop, path: str) -> Any:
    return next(getattr(each, "endpoint") for each in shop.app.routes if getattr(each, "path", "") == path)  # noqa: B009


async def test_headers_and_status_of_dependencies_are_those_of_the_response(shop: Shop) -> None:
    """On a hit, as through the response model; with a status of its own the response is FastAPI's."""

    async def limited(response: Answer) -> None:
        response.headers["x-left"] = "9"
        response.set_cookie("seen", "1")

    async def created(response: Answer) -> None:
        response.status_code = 201

    endpoint = _route(shop, "/rows/{number}")
    shop.app.get("/limited/{number}", dependencies=[Depends(limited)])(endpoint)
    shop.app.get("/created/{number}", dependencies=[Depends(created)])(endpoint)
    for _ in range(2):
        answer = await shop.get("/limited/1")
        assert (answer.headers["x-left"], answer.cookies["seen"], answer.json()["name"]) == ("9", "1", "n1")
        answer = await shop.get("/created/1")
        assert (answer.status_code, answer.json(), answer.headers.get("etag")) == (201, {"id": 1, "name": "n1"}, None)


async def test_a_dependency_may_say_how_long_a_browser_keeps_the_answer(shop: Shop) -> None:
    """Its `Cache-Control` is the only one; the tag stays that of the bytes."""

    async def private(response: Answer) -> None:
        response.headers["cache-control"], response.headers["etag"] = "no-store", '"other"'

    shop.app.get("/private/{number}", dependencies=[Depends(private)])(_route(shop, "/rows/{number}"))
    tag = (await shop.get("/rows/1")).headers["etag"]
    answer = await shop.get("/private/1")
    assert (answer.headers.get_list("etag"), answer.headers.get_list("cache-control")) == ([tag], ["no-store"])


async def test_a_function_may_take_the_request_and_the_response_itself(shop: Shop) -> None:
    """FastAPI fills one parameter of each type, which `cached_response` then shares."""

    @shop.app.get("/own/{number}")
    @cached_response
    @shop.cache.cached("own:{number}", ignore=["request", "response"])
    async def own(number: int, request: Request, response: Answer, redis: Client) -> str:
        response.headers["x-loaded"] = "yes"
        return request.url.path

    first, second = await shop.get("/own/1"), await shop.get("/own/1")
    assert first.json() == second.json() == "/own/1"
    assert (first.headers.get("x-loaded"), second.headers.get("x-loaded")) == ("yes", None)


@pytest.mark.parametrize("public", [False, True])
async def test_vary_names_the_headers_that_the_endpoint_reads(shop: Shop, public: bool) -> None:
    """Another header is another key in Redis, and has to be another answer for browsers and proxies."""

    def tenant_of(x_tenant: Annotated[str, Header()], key: Annotated[str, Depends(APIKeyHeader(name="X-Key"))]) -> str:
        return x_tenant

    @shop.app.get("/greeting")
    @cached_response(public=public)
    @shop.cache.cached("greeting:{lang}:{tenant}")
    async def greeting(
        redis: Client, lang: Annotated[str, Header(alias="accept-language")], tenant: str = Depends(tenant_of)
    ) -> str:
        return f"{tenant}/{lang}"

    asked = {"accept_language": "de", "x_tenant": "a", "x_key": "k"}
    for answer in (await shop.get("/greeting", **asked), await shop.get("/greeting", **asked)):
        assert answer.json() == "a/de"
        of_the_user = [] if public else ["Authorization", "Cookie"]
        assert answer.headers["vary"].split(", ") == sorted(["Accept-Language", "X-Key", "X-Tenant", *of_the_user])


async def test_background_tasks_of_dependencies_run_for_hits_too(shop: Shop) -> None:
    """A hit runs the dependencies, and not the function with its own tasks."""
    done: list[str] = []

    async def noted(tasks: BackgroundTasks) -> None:
        tasks.add_task(done.append, "dependency")

    @shop.app.get("/tasks/{number}", dependencies=[Depends(noted)])
    @cached_response
    @shop.cache.cached("tasks:{number}", ignore=["tasks"])
    async def tasks(number: int, tasks: BackgroundTasks, redis: Client) -> int:
        tasks.add_task(done.append, "function")
        return number

    await shop.get("/tasks/1")
    assert sorted(done) == ["dependency", "function"]
    assert (await shop.get("/tasks/1")).json() == 1
    assert sorted(done) == ["dependency", "dependency", "function"]


async def test_a_tag_outlives_compression(shop: Shop) -> None:
    """Middleware may compress the answer and leave the tag: the tag is still found."""
    shop.app.add_middleware(GZipMiddleware, minimum_size=1)
    first = await shop.get("/rows/1")
    assert first.headers["content-encoding"] == "gzip"
    again = await shop.get("/rows/1", **{"if-none-match": f"W/{first.headers['etag']}"})
    assert (again.status_code, again.content) == (304, b"")


async def test_a_function_that_changes_its_argument_answers_for_what_was_asked(shop: Shop) -> None:
    """The changed argument has another key, under which another answer is stored."""

    @shop.app.post("/sum")
    @cached_response
    @shop.cache.cached("sum")
    async def total(numbers: Annotated[list[int], Body()], redis: Client) -> int:
        found = sum(numbers)
        numbers.clear()
        return found

    for numbers in ([], [1, 2], [3], []):
        assert (await shop.http.post("/sum", json=numbers)).json() == sum(numbers)


async def test_hits_that_are_the_stored_json_are_verified(shop: Shop) -> None:
    """With `verify=` a wrong entry is found and deleted, though its endpoint never decodes it."""
    checked = shop.cache.cached("checked", verify=1.0)(_other)
    shop.app.get("/checked")(cached_response(checked))
    await shop.get("/checked")
    await shop.redis.set("checked", '{"id":2,"name":"other"}', keepttl=True)
    assert (await shop.get("/checked")).json()["id"] == 2
    await shop.cache.aclose()  # waits for what runs in the background
    assert checked.stats.wrong == 1
    assert (await shop.get("/checked")).json()["id"] == 1


async def test_max_age_0_lets_a_browser_ask_each_time(shop: Shop) -> None:
    """A list with a default of a query parameter, which FastAPI fills."""
    await shop.get("/all")
    answer = await shop.get("/all?least=2")
    assert [each["id"] for each in answer.json()] == [2, 3]
    assert answer.headers["cache-control"] == "private, no-cache"


async def test_what_is_not_stored_goes_through_the_model(shop: Shop) -> None:
    """Such an answer has no tag, and no cache may keep it."""
    answer = await shop.get("/picky")
    assert answer.json() == {"id": 0, "name": "picky"}
    assert answer.headers["cache-control"] == "no-store"
    assert "etag" not in answer.headers


async def test_an_entry_of_another_type_is_not_handed_on(shop: Shop) -> None:
    """It is decoded once before it is an answer; the call loads instead."""
    await shop.redis.set("row:1", b'{"id": 1, "secret": 2}')
    assert (await shop.get("/rows/1")).json() == {"id": 1, "name": "n1"}
    assert shop.loads == [1]


async def test_a_hit_counts_as_one(shop: Shop) -> None:
    """The look after a load is not counted."""
    for _ in range(3):
        await shop.get("/rows/1")
    stats = shop.cache.stats()
    assert (stats.hits, stats.misses, stats.loads) == (2, 1, 1)


async def test_redis_away_is_answered_from_the_database(shop: Shop) -> None:
    """The endpoint answers as the cached function does, and says that it went past the cache."""
    with EmbeddedServer() as server:
        gone = Redis(port=server.port)
    shop.app.state.fastrdb = Resources(gone, shop.app.state.fastrdb.sessions)
    for _ in range(6):  # after a few failures Redis is skipped, which is not its answer either
        answer = await shop.get("/rows/1")
        assert answer.json() == {"id": 1, "name": "n1"}
        assert answer.headers["cache-status"] == "fastrdb; fwd=bypass; detail=unavailable"
    assert shop.cache.stats().unavailable < 6
    await gone.aclose()


async def test_overrides_of_tests_are_respected(shop: Shop, sqlite: Database) -> None:
    """`app.dependency_overrides[get_session]` gives the session of `cached_response`, too."""
    used = []

    async def mine() -> AsyncIterator[AsyncSession]:
        async with AsyncSession(sqlite.engine) as session:
            used.append(session)
            yield session

    shop.app.dependency_overrides[get_session] = mine
    assert (await shop.get("/rows/1")).status_code == 200
    assert len(used) == 1
    assert not shop.opened


async def test_the_schema_of_the_application_is_that_of_the_function(shop: Shop) -> None:
    """The additions of `cached_response` are not seen, and the response model is the function's type."""
    paths = shop.app.openapi()["paths"]
    found = paths["/rows/{number}"]["get"]
    assert [each["name"] for each in found["parameters"]] == ["number"]
    assert found["description"] == "Return one row."
    schema = found["responses"]["200"]["content"]["application/json"]["schema"]
    assert schema == {"$ref": "#/components/schemas/Out"}
    assert [each["name"] for each in paths["/all"]["get"]["parameters"]] == ["least"]


# --- what is refused


class Aliased(BaseModel):
    id: int = Field(alias="Id")


class Computed(BaseModel):
    id: int

    @computed_field  # type: ignore[prop-decorator]
    @property
    def twice(self) -> int:
        return 2 * self.id


class Serialized(BaseModel):
    at: datetime

    @field_serializer("at")
    def _at(self, value: datetime) -> str:
        return value.isoformat()


class Raw(BaseModel):
    data: bytes


class Text(BaseModel):
    data: Json[list[int]]


class Inside(BaseModel):
    items: list[Aliased | None]


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Aliased, "Aliased.id has the alias 'Id'"),
        (list[Computed], "Computed has a computed field|the value has a computed field"),
        (Serialized, "Serialized.at has a serializer of its own"),
        (Raw, "Raw.data is of type bytes"),
        (Text, "Text.data is text in an entry"),
        (Inside, "Aliased.id has the alias"),
    ],
)
def test_other_json_than_the_model_s_is_refused_at_decoration(kind: Any, reason: str) -> None:
    """The message names function and field."""

    async def read(number: int) -> Any: ...

    read.__annotations__["return"] = kind
    function = Cache().cached("read:{number}")(read)
    with pytest.raises(OptionError, match=f"read: .*({reason})"):
        cached_response(function)


async def test_a_method_is_an_endpoint_of_its_instance(shop: Shop) -> None:
    """Without an instance FastAPI would have to fill `self`."""

    class Items:
        @shop.cache.cached("items:{number}")
        async def get(self, number: int, redis: Client) -> int:
            return number

    with pytest.raises(OptionError, match=r"as in cached_response\(items\.get\)"):
        cached_response(Items.get)
    shop.app.get("/items/{number}")(cached_response(Items().get))
    assert (await shop.get("/items/5")).json() == 5


def test_a_function_without_cache_is_refused() -> None:
    """It has no stored JSON; a function of many ids has several."""

    async def read(number: int) -> Out:
        return Out(id=number, name="")

    with pytest.raises(OptionError, match="goes on a function of `cached`"):
        cached_response(read)


class Wrapped(JSONResponse):
    def render(self, content: Any) -> bytes:
        return super().render({"data": content})


@pytest.mark.parametrize("option", [{"max_age": -5}, {"max_age": "5"}, {"public": 1}])
def test_options_of_the_response_are_checked(option: Any) -> None:
    """A header with a negative age would be no header."""
    function = Cache().cached("checked:{number}")(_numbered)
    with pytest.raises(OptionError, match=f"_numbered: {next(iter(option))}="):
        cached_response(**option)(function)
    cached_response(max_age=timedelta(minutes=1))(function)


async def _numbered(number: int) -> int:
    return number


@pytest.mark.parametrize(
    "option",
    [
        {"response_model": list[int]},
        {"response_model_exclude": {"id"}},
        {"response_class": Wrapped},
        {"response_class": PlainTextResponse},
    ],
)
async def test_another_response_model_is_refused_at_the_first_request(shop: Shop, option: dict[str, Any]) -> None:
    """Only the route has it, and `cached_response` goes past it."""
    function = shop.cache.cached("other")(_other)
    shop.app.get("/other", **option)(cached_response(function))
    with pytest.raises(OptionError, match="_other: cached_response answers"):
        await shop.get("/other")


async def _other(redis: Client) -> Out:
    return Out(id=1, name="other")


# --- Cache-Status


async def test_cache_status_says_hit_and_miss(shop: Shop) -> None:
    """The header follows RFC 9211, with the TTL where it is known."""
    first, second = await shop.get("/rows/1"), await shop.get("/rows/1")
    assert first.headers["cache-status"] == "fastrdb; fwd=miss; stored"
    assert re.fullmatch(r"fastrdb; hit; ttl=(59|60)", second.headers["cache-status"])
    assert (await shop.get("/picky")).headers["cache-status"] == "fastrdb; fwd=miss"


async def test_cache_status_of_a_function_inside_of_an_endpoint(shop: Shop) -> None:
    """Each cached function that the endpoint calls counts; without a call there is no header."""
    inner = shop.cache.cached("inner:{number}")(_inner)

    @shop.app.get("/inner/{number}")
    async def outer(number: int, redis: Client) -> int:
        return await inner(number, redis) if number else 0

    statuses = [(await shop.get(f"/inner/{number}")).headers.get("cache-status") for number in (0, 1, 1)]
    assert statuses == [None, "fastrdb; fwd=miss; stored", "fastrdb; hit"]


async def _inner(number: int, redis: Client) -> int:
    return number


@pytest.mark.parametrize("option", [{"stale": 60.0}, {"fail_safe": 60.0}])
async def test_cache_status_of_an_old_value(shop: Shop, option: dict[str, Any]) -> None:
    """An old value is a stale hit, whatever its reload and functions inside of it have done before the response."""
    inner = shop.cache.cached("inside")(_inner)
    loads, reloaded = 0, asyncio.Event()

    async def load(redis: Client) -> int:
        nonlocal loads
        loads += 1
        if loads > 1 and "fail_safe" in option:
            raise ConnectionError
        await inner(loads, redis)
        return loads

    old = shop.cache.cached("old", exp=60, jitter=0, **option)(load)

    @shop.app.get("/old")
    async def read(redis: Client) -> int:
        found: int = await old(redis)
        if "stale" in option and old.stats.stale:
            await reloaded.wait()
        return found

    shop.cache.hooks.append(lambda event: reloaded.set() if (event.kind, old.stats.fills) == ("fill", 2) else None)
    await shop.get("/old")
    await shop.redis.pexpire("old", 30_000)
    await shop.redis.delete("inside")
    answer = await shop.get("/old")
    assert (answer.json(), answer.headers["cache-status"]) == (1, "fastrdb; hit; detail=stale")


@pytest.mark.parametrize("name", ["my shop", "", "9", "caf\u00e9", 'a"b', "a\r\nset-cookie: b=c"])
def test_cache_status_refuses_a_name_that_a_header_cannot_have(name: str) -> None:
    """Else each response would have a header that no program reads, or none would be sent."""
    with pytest.raises(OptionError, match="must be a token"):
        CacheStatus(FastAPI(), Cache(), name=name)
    CacheStatus(FastAPI(), Cache(), name="shop.example.com:8000")


async def test_cache_status_has_the_name_and_the_key_of_the_answer(client: Redis) -> None:
    """Not the key of a dependency that has called another function; a header from elsewhere stays before it."""
    cache, app = Cache(client), FastAPI()
    app.add_middleware(CacheStatus, cache=cache, name="shop", key=True)
    inner = cache.cached("inner:{name}")(_named)

    async def allowed(response: Answer) -> None:
        response.headers["cache-status"] = "Origin; hit"
        await inner("permission")

    app.get("/names/{name}", dependencies=[Depends(allowed)])(cached_response(cache.cached("name:{name}")(_name)))
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test") as http:
        found = [(await http.get(f"/names/{name}")).headers.get_list("cache-status") for name in ("a", "a", "b")]
    assert found[0] == ["Origin; hit", 'shop; fwd=miss; stored; key="inner:permission"']
    assert found[1][0] == "Origin; hit"
    assert re.fullmatch(r'shop; hit; ttl=\d+; key="name:a"', found[1][1])
    assert found[2] == ["Origin; hit", 'shop; fwd=miss; stored; key="name:b"']


async def _name(name: str) -> str:
    return name


async def test_cache_status_shows_the_key_only_if_asked_for(client: Redis) -> None:
    """A key may have a quote in it, or a letter that is not ASCII."""
    cache = Cache(client)
    inner = cache.cached("inner:{name}")(_named)
    app = FastAPI()
    app.add_middleware(CacheStatus, cache=cache, name="shop", key=True)

    @app.get("/{name}")
    async def outer(name: str) -> str:
        return await inner(name)

    async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as http:
        answers = [(await http.get('/a"é')).headers["cache-status"] for _ in range(2)]
    assert all(answer.isascii() for answer in answers)
    assert answers[1].startswith('shop; hit; key="inner:a')
    assert '\\"' in answers[1] or "%22" in answers[1]


async def _named(name: str) -> str:
    return name


# --- the rest


@pytest.mark.parametrize(
    ("error", "status", "detail"),
    [
        (UnknownFieldError("x", "User", ["id"]), 422, "User has no column 'x'; it has: id"),
        (PageOutOfRange(9, 2, 15), 422, "page 9 is past the end"),
        (IntegrityError("INSERT 'secret'", {}, Exception("secret")), 409, "The row conflicts"),
    ],
)
async def test_errors_become_statuses(shop: Shop, error: Exception, status: int, detail: str) -> None:
    """The answer says what is wrong, and nothing of a statement."""

    @shop.app.get("/wrong")
    async def wrong() -> None:
        raise error

    answer = await shop.get("/wrong")
    assert answer.status_code == status
    assert answer.json()["detail"].startswith(detail)
    assert "secret" not in answer.text


async def test_no_row_becomes_404(shop: Shop) -> None:
    """Also as a stored absence of a row, where the cached function has `negative_exp`."""
    loads = []

    @shop.app.get("/one/{number}")
    @cached_response
    @shop.cache.cached("one:{number}", negative_exp=60)
    async def one(number: int, redis: Client, db: Session) -> Out:
        loads.append(number)
        row = (await db.execute(select(Row).where(Row.id == number))).scalar_one()
        return Out(id=row.id, name=row.name)

    for _ in range(2):
        answer = await shop.get("/one/77")
        assert (answer.status_code, answer.json()) == (404, {"detail": "There is no such row."})
    assert loads == [77]


async def test_lifespan_opens_what_it_is_given_as_an_address_and_closes_it(server: EmbeddedServer) -> None:
    """An own lifespan runs inside, and finds the client."""
    order = []

    @asynccontextmanager
    async def also(app: Any) -> AsyncIterator[None]:
        order.append(await app.state.fastrdb.redis.ping())
        yield
        order.append(await app.state.fastrdb.redis.ping())

    app = FastAPI(lifespan=lifespan(Cache(), redis=server.url, database="sqlite+aiosqlite://", also=also))
    async with app.router.lifespan_context(app):
        found = app.state.fastrdb
        async with found.sessions() as session:
            assert await session.scalar(select(1)) == 1
    assert order == [True, True]
    assert not found.redis.connection_pool._available_connections or all(
        not each.is_connected for each in found.redis.connection_pool._available_connections
    )


async def test_what_is_no_cache_or_no_database_is_refused() -> None:
    """At once, or when the application starts if `lifespan` itself was given."""
    wrong: Any
    for wrong in (AsyncSession(), 7):
        with pytest.raises(OptionError, match=r"database must be .* or a factory of sessions, not \w+$"):
            lifespan(Cache(), database=wrong)
    wrong = lifespan
    app = FastAPI(lifespan=wrong)
    with pytest.raises(OptionError, match=r"not for FastAPI: write FastAPI\(lifespan=lifespan\(cache, ...\)\)$"):
        async with app.router.lifespan_context(app):
            pass
    wrong = "cache"
    with pytest.raises(OptionError, match="CacheStatus: cache must be a Cache, or several, not str"):
        CacheStatus(app, wrong)


async def test_dependencies_without_lifespan_say_what_to_do() -> None:
    """The error names the lifespan and its argument."""
    app = FastAPI()

    @app.get("/")
    async def read(db: Session) -> None: ...

    async with AsyncClient(transport=ASGITransport(app), base_url="http://shop") as http:
        with pytest.raises(OptionError, match=r"lifespan=lifespan\(cache"):
            await http.get("/")
        async with lifespan(redis=None)(app):
            with pytest.raises(OptionError, match=r"database="):
                await http.get("/")
