"""The tutorial, word for word: with FastAPI over HTTP, and without."""

from __future__ import annotations

import inspect
import re
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict
from sqlalchemy import event
from sqlalchemy.exc import IntegrityError, NoResultFound
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.orm import Mapped, mapped_column

from fastrdb import FastRDB, PageOutOfRange
from fastrdb.demo.app import create_app
from fastrdb.demo.cache import get_redis, open_redis
from fastrdb.demo.crud import user_crud
from fastrdb.demo.database import Base, async_get_db, local_session, open_database
from fastrdb.demo.meter import Meter
from fastrdb.demo.models import User
from fastrdb.demo.schemas import UserCreate, UserResponse, UserUpdate

if TYPE_CHECKING:
    from redis.asyncio import Redis

    from fastrdb.testing.server import EmbeddedServer

JOHN = {"name": "John Doe", "email": "john@example.com", "bio": "Hello World"}
JANE = {"name": "Jane Doe", "email": "jane@example.com", "bio": "Hello World"}
SIX = {
    ("POST", "/users/"),
    ("POST", "/users/bulk"),
    ("GET", "/users/"),
    ("GET", "/users/{email}"),
    ("PUT", "/users/{email}"),
    ("DELETE", "/users/{email}"),
}


class Verse(Base):
    """The tutorial's other model."""

    __tablename__ = "verses"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    chapter_id: Mapped[int]
    verse_id: Mapped[int]
    text: Mapped[str]


class VerseCreate(BaseModel):
    chapter_id: int
    verse_id: int
    text: str


class VerseUpdate(BaseModel):
    text: str | None = None


class VerseResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    chapter_id: int
    verse_id: int
    text: str


class Out:
    """Counter of the connections that are out of the pool, and of the most at a time."""

    def __init__(self) -> None:
        self.now = self.most = 0

    def take(self, *_: Any) -> None:
        self.now += 1
        self.most = max(self.most, self.now)

    def give(self, *_: Any) -> None:
        self.now -= 1


@contextmanager
def checked_out(engine: AsyncEngine) -> Iterator[Out]:
    """Count the connections that are out."""
    out, pool = Out(), engine.sync_engine.pool
    event.listen(pool, "checkout", out.take)
    event.listen(pool, "checkin", out.give)
    yield out
    event.remove(pool, "checkout", out.take)
    event.remove(pool, "checkin", out.give)


@pytest.fixture
def database_url(tmp_path: Path) -> str:
    """Return the address of a SQLite file that is not there yet."""
    return f"sqlite+aiosqlite:///{tmp_path / 'tutorial.sqlite'}"


@pytest.fixture
async def engine(database_url: str, server: EmbeddedServer, client: Redis) -> AsyncIterator[AsyncEngine]:
    """Open the tutorial's database and Redis, both empty, without FastAPI."""
    async with open_database(database_url) as opened, open_redis(server.url), user_crud.cache:
        yield opened


@pytest.fixture
def application(database_url: str, server: EmbeddedServer, client: Redis) -> FastAPI:
    """Yield the tutorial's FastAPI application on an empty database and an empty Redis, not started yet."""
    return create_app(database_url, server.url)


@pytest.fixture
async def http(application: FastAPI) -> AsyncIterator[httpx.AsyncClient]:
    """Start the application, and give a client of it."""
    transport = httpx.ASGITransport(app=application)
    async with (
        application.router.lifespan_context(application),
        httpx.AsyncClient(transport=transport, base_url="http://tutorial") as made,
    ):
        yield made


@pytest.fixture
def meter(http: httpx.AsyncClient) -> Iterator[Meter]:
    """Count the application's statements."""
    with Meter(local_session.kw["bind"], user_crud.cache).listening() as listening:
        yield listening


class TestWithFastAPI:
    """Over HTTP, with `Depends(get_redis)` and `Depends(async_get_db)`."""

    async def test_the_routes_are_the_tutorials_six_and_one_that_is_watched(self, application: FastAPI) -> None:
        """There are six routes, and one that follows writes from outside; no others are documented."""
        paths = application.openapi()["paths"].items()
        assert {(method.upper(), path) for path, methods in paths for method in methods} == SIX | {
            ("GET", "/followed/{email}")
        }

    async def test_a_created_user_is_read_back(self, http: httpx.AsyncClient, client: Redis) -> None:
        """GET answers as POST did, and the entry lies in Redis under the documented key."""
        created = await http.post("/users/", json=JOHN)
        assert created.status_code == 201
        assert created.json().items() >= JOHN.items()
        assert (await http.get("/users/john@example.com")).json() == created.json()
        entry = await client.get("user:email:john@example.com")
        assert entry is not None
        assert UserResponse.model_validate_json(entry) == UserResponse.model_validate(created.json())

    async def test_a_second_read_sends_no_statement(self, http: httpx.AsyncClient, client: Redis, meter: Meter) -> None:
        """One user, and a page with its total, come from the database once, and then from Redis."""
        await http.post("/users/", json=JOHN)
        await client.flushall()
        for path in ("/users/john@example.com", "/users/?page=1&limit=10"):
            first = await meter.measure(partial(http.get, path))
            second = await meter.measure(partial(http.get, path))
            assert (first.statements > 0, first.stats.hits) == (True, 0)
            assert (second.statements, second.stats.hits > 0) == (0, True)
            assert second.value.json() == first.value.json()

    async def test_many_are_created_at_once_and_listed_in_pages(self, http: httpx.AsyncClient) -> None:
        """`/users/bulk` answers in input order; the list knows the true total."""
        created = await http.post("/users/bulk", json=[JOHN, JANE])
        assert [user["email"] for user in created.json()] == ["john@example.com", "jane@example.com"]
        page = (await http.get("/users/", params={"page": 2, "limit": 1})).json()
        assert page["data"] == created.json()[1:]
        assert (page["total"], page["pages"], page["has_next"]) == (2, 2, False)
        for ascending, names in ((True, ["Jane Doe", "John Doe"]), (False, ["John Doe", "Jane Doe"])):
            ordered = await http.get("/users/", params={"order_by": "email", "ascending": ascending})
            assert [user["name"] for user in ordered.json()["data"]] == names

    async def test_lists_and_users_follow_every_write(self, http: httpx.AsyncClient) -> None:
        """After each write, the list and the user that were cached before show it."""

        async def names() -> list[str]:
            return [user["name"] for user in (await http.get("/users/")).json()["data"]]

        assert await names() == []
        await http.post("/users/", json=JOHN)
        assert await names() == ["John Doe"]
        changed = await http.put("/users/john@example.com", json={"name": "Johnny"})
        assert changed.json().items() >= {**JOHN, "name": "Johnny"}.items()
        assert await names() == ["Johnny"]
        assert (await http.get("/users/john@example.com")).json()["name"] == "Johnny"
        assert (await http.delete("/users/john@example.com")).status_code == 204
        assert await names() == []
        assert (await http.get("/users/john@example.com")).status_code == 404

    async def test_a_changed_address_moves_the_user(self, http: httpx.AsyncClient) -> None:
        """The old address is 404 although it was cached, the new one answers."""
        await http.post("/users/", json=JOHN)
        await http.put("/users/john@example.com", json={"email": "doe@example.com"})
        assert (await http.get("/users/john@example.com")).status_code == 404
        assert (await http.get("/users/doe@example.com")).json()["name"] == "John Doe"

    @pytest.mark.parametrize("method", ["GET", "PUT", "DELETE"])
    async def test_a_missing_user_is_404(self, http: httpx.AsyncClient, method: str) -> None:
        """Also the second time."""
        for _ in range(2):
            answer = await http.request(method, "/users/nobody@example.com", json={"name": "Nobody"})
            assert (answer.status_code, answer.json()) == (404, {"detail": "There is no such row."})

    async def test_a_taken_address_is_409(self, http: httpx.AsyncClient) -> None:
        """One by one and in bulk; of a bulk then nothing is created, and the application goes on."""
        await http.post("/users/", json=JOHN)
        assert (await http.post("/users/", json=JOHN)).status_code == 409
        assert (await http.post("/users/bulk", json=[JANE, JOHN])).status_code == 409
        assert (await http.get("/users/jane@example.com")).status_code == 404
        assert (await http.post("/users/", json=JANE)).status_code == 201
        assert (await http.put("/users/jane@example.com", json={"email": "john@example.com"})).status_code == 409
        assert (await http.get("/users/")).json()["total"] == 2

    @pytest.mark.parametrize("query", ["page=0", "limit=0", "limit=1000", "order_by=password", "order_by=metadata"])
    async def test_a_wrong_page_or_order_is_422(self, http: httpx.AsyncClient, query: str) -> None:
        """It says what is wrong, instead of failing."""
        answer = await http.get(f"/users/?{query}")
        assert answer.status_code == 422
        assert query.split("=", maxsplit=1)[0] in answer.text or query.split("=")[1] in answer.text

    async def test_sessions_are_closed_after_each_request(self, http: httpx.AsyncClient) -> None:
        """No connection stays out, whether the request succeeds or fails."""
        with checked_out(local_session.kw["bind"]) as out:
            for path, most in (("/users/", 1), ("/users/nobody@example.com", 1)):
                await http.get(path)
                assert (out.now, out.most) == (0, most)

    async def test_the_start_page_has_each_route_and_needs_no_network(self, http: httpx.AsyncClient) -> None:
        """It is plain HTML, offers a request for each route, and loads nothing from elsewhere."""
        page = await http.get("/")
        assert page.headers["content-type"].startswith("text/html")
        assert re.findall(r"(?:src|href)=\"([^\"]*)", page.text) == ["data:,", "/openapi.json"]
        offered = {route["what"] for route in (await http.get("/demo/routes")).json()}
        paths = (await http.get("/openapi.json")).json()["paths"]
        assert offered == {f"{method.upper()} {path}" for path, methods in paths.items() for method in methods}


@pytest.mark.usefixtures("engine")
class TestWithoutFastAPI:
    """With `async with` on both."""

    async def test_create_user(self) -> None:
        """The tutorial's function, as it stands there."""

        async def create_user(user: UserCreate) -> UserResponse:
            async with get_redis() as redis, async_get_db() as db:
                return await user_crud.create(db=db, redis=redis, obj_in=user, email=user.email)

        created = await create_user(UserCreate.model_validate(JOHN))
        assert created.model_dump().items() >= JOHN.items()

    async def test_every_method_of_the_tutorial(self) -> None:
        """create, get, update, get_multi, create_multi, delete, count and paginate, called as it calls them."""
        async with get_redis() as redis, async_get_db() as db:
            user = UserCreate(name="John Doe", email="john@example.com", bio="Hello World")
            await user_crud.create(db=db, redis=redis, obj_in=user, email=user.email)
            assert (await user_crud.get(db=db, redis=redis, email="john@example.com")).name == "John Doe"
            with pytest.raises(NoResultFound):
                await user_crud.get(db=db, redis=redis, email="jane@example.com")

            change = UserUpdate(name="Johnny")
            await user_crud.update(db=db, redis=redis, obj_in=change, email="john@example.com")
            changed = await user_crud.get(db=db, redis=redis, email="john@example.com")
            assert (changed.name, changed.bio) == ("Johnny", "Hello World")

            more = [
                UserCreate(name="Jane Doe", email="jane@example.com", bio="Hello World"),
                UserCreate(name="Jim Doe", email="jim@example.com", bio="Hello World"),
            ]
            assert len(await user_crud.create_multi(db=db, redis=redis, instances=more)) == 2
            users = await user_crud.get_multi(db=db, redis=redis, limit=10, page=1, order_by="id")
            assert [found.name for found in users] == ["Johnny", "Jane Doe", "Jim Doe"]
            page = user_crud.paginate(data=users, limit=2, page=2)
            assert ([found.name for found in page.data], page.total) == (["Jim Doe"], 3)
            with pytest.warns(UserWarning, match="total="):  # taken for a page that is cut already
                cut = user_crud.paginate(data=users, limit=10, page=2)
            assert ([found.name for found in cut.data], cut.total) == (["Johnny", "Jane Doe", "Jim Doe"], 13)
            with pytest.raises(PageOutOfRange):
                user_crud.paginate(data=users, limit=2, page=3)

            await user_crud.delete(db=db, redis=redis, email="john@example.com")
            assert await user_crud.count(db=db, email="john@example.com", redis=None) == 0
            assert await user_crud.count(db=db, redis=redis) == 2

    async def test_count_works_without_redis(self) -> None:
        """`count(db=db, email=...)`, word for word: there is no client anywhere."""
        async with get_redis() as redis, async_get_db() as db:
            await user_crud.create(db=db, redis=redis, obj_in=UserCreate.model_validate(JOHN))
            assert await user_crud.count(db=db, email="john@example.com") == 1
            assert await user_crud.count(db=db, email="jane@example.com") == 0

    async def test_the_model_demands_an_id_and_creates_without(self) -> None:
        """`MappedAsDataclass` with an `__init__` that wants all columns is no obstacle."""
        with pytest.raises(TypeError, match="id"):
            User(email="a@example.com", name="A", bio=None)  # type: ignore[call-arg]
        async with get_redis() as redis, async_get_db() as db:
            created = await user_crud.create(db=db, redis=redis, obj_in=UserCreate(email="a@example.com", name="A"))
        assert (created.id, created.is_active) == (1, True)

    async def test_the_session_is_usable_after_a_taken_address(self) -> None:
        """The error of the database passes through, and the next call on the same session works."""
        async with get_redis() as redis, async_get_db() as db:
            user = UserCreate.model_validate(JOHN)
            await user_crud.create(db=db, redis=redis, obj_in=user)
            with pytest.raises(IntegrityError):
                await user_crud.create(db=db, redis=redis, obj_in=user)
            assert await user_crud.count(db=db, redis=redis) == 1

    async def test_an_error_inside_closes_the_session(self, engine: AsyncEngine) -> None:
        """It comes out as it was, and no connection stays out."""

        async def fail() -> None:
            async with get_redis() as redis, async_get_db() as db:
                await user_crud.count(db=db, redis=redis)
                raise LookupError("mine")

        with checked_out(engine) as out, pytest.raises(LookupError, match="mine"):
            await fail()
        assert (out.now, out.most) == (0, 1)

    async def test_a_prefix_of_another_model_keeps_no_list_stale(self) -> None:
        """The tutorial's `invalidate_pattern_prefix="todo:*"` on users: lists and users follow all the same."""
        crud = FastRDB[User, UserCreate, UserUpdate, UserResponse](
            User,
            UserResponse,
            pattern="user:email:{email}",
            list_pattern="user:page:{page}:limit:{limit}",
            invalidate_pattern_prefix="todo:*",
            exp=6000,
        )
        async with get_redis() as redis, async_get_db() as db:
            await redis.set("todo:1", "somebody else's")
            assert await crud.get_multi(db=db, redis=redis, limit=10, page=1) == []
            await crud.create(db=db, redis=redis, obj_in=UserCreate.model_validate(JOHN), email="john@example.com")
            assert len(await crud.get_multi(db=db, redis=redis, limit=10, page=1)) == 1
            await crud.update(db=db, redis=redis, obj_in=UserUpdate(name="Johnny"), email="john@example.com")
            [listed] = await crud.get_multi(db=db, redis=redis, limit=10, page=1)
            assert listed == await crud.get(db=db, redis=redis, email="john@example.com")
            assert listed.name == "Johnny"
            await crud.delete(db=db, redis=redis, email="john@example.com")
            assert await crud.get_multi(db=db, redis=redis, limit=10, page=1) == []
            assert await redis.get("todo:1") == "somebody else's"

    async def test_the_verses(self) -> None:
        """Two fields in a key, a list for each chapter, and a prefix that leaves the other chapters' lists alone."""
        verse_crud = FastRDB[Verse, VerseCreate, VerseUpdate, VerseResponse](
            Verse,
            VerseResponse,
            pattern="verse:chapter_id:{chapter_id}:verse_id:{verse_id}",
            list_pattern="verse:chapter_id:{chapter_id}:page:{page}:limit:{limit}",
            invalidate_pattern_prefix="verse:chapter_id:{chapter_id}:*",
            exp=6000,
        )
        verses = [
            VerseCreate(chapter_id=chapter, verse_id=verse, text=f"{chapter}.{verse}")
            for chapter, verse in ((3, 2), (3, 1), (4, 1))
        ]
        async with get_redis() as redis, async_get_db() as db:
            await verse_crud.create_multi(db=db, redis=redis, instances=verses)
            found = await verse_crud.get_multi(db=db, redis=redis, limit=20, page=1, order_by="verse_id", chapter_id=3)
            assert [verse.text for verse in found] == ["3.1", "3.2"]
            await verse_crud.get_multi(db=db, redis=redis, limit=20, page=1, order_by="verse_id", chapter_id=4)
            lists = [f"verse:chapter_id:{chapter}:page:1:limit:20?order_by=verse_id" for chapter in (3, 4)]
            assert [await redis.exists(key) for key in lists] == [1, 1]

            change = VerseUpdate(text="new")
            await verse_crud.update(db=db, redis=redis, obj_in=change, chapter_id=3, verse_id=1)
            assert [await redis.exists(key) for key in lists] == [0, 1]
            assert (await verse_crud.get(db=db, redis=redis, chapter_id=3, verse_id=1)).text == "new"
            found = await verse_crud.get_multi(db=db, redis=redis, limit=20, page=1, order_by="verse_id", chapter_id=3)
            assert [verse.text for verse in found] == ["new", "3.2"]


def test_one_name_is_both_a_dependency_and_a_context_manager() -> None:
    """FastAPI sees an async generator function, of whatever version it is; `async with` is what the tests above do."""
    for resource in (async_get_db, get_redis):
        assert inspect.isasyncgenfunction(resource)
        assert not inspect.signature(resource).parameters


async def test_what_is_not_opened_says_so() -> None:
    """Without `open_redis` there is no client, and the error says what is missing."""
    with pytest.raises(RuntimeError, match=r"open_redis\(url\)"):
        async with get_redis():
            pass
