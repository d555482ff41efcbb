"""`FastRDB` with the tutorial's model and settings, on each database and a real Redis."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import datetime
from typing import Any

import pytest
import redis.asyncio
from pydantic import BaseModel, ConfigDict, EmailStr
from sqlalchemy import Boolean, DateTime, Integer, String, event, func, select, update
from sqlalchemy.exc import IntegrityError, MultipleResultsFound, NoResultFound, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session
from sqlalchemy.orm import DeclarativeBase, Mapped, MappedAsDataclass, mapped_column
from sqlalchemy.util import await_only

from fastrdb import Cache, FastRDB, MissingKeyFieldError, OptionError, PageOutOfRange, PatternError, UnknownFieldError
from fastrdb.cache import default_cache
from tests.support.servers.databases import Database, opened, statements
from tests.support.world.stores import entries

Redis = redis.asyncio.Redis


class Base(MappedAsDataclass, DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "user"

    id: Mapped[int] = mapped_column("id", Integer, primary_key=True, autoincrement=True, nullable=False, unique=True)
    email: Mapped[str] = mapped_column(String(255), unique=True, nullable=False)
    name: Mapped[str] = mapped_column(String(100), nullable=False)
    bio: Mapped[str | None] = mapped_column(String(500), nullable=True)
    created_at: Mapped[datetime] = mapped_column(DateTime, server_default=func.now())
    updated_at: Mapped[datetime] = mapped_column(DateTime, server_default=func.now(), onupdate=func.now())
    is_active: Mapped[bool] = mapped_column(Boolean, default=True)


class UserCreate(BaseModel):
    email: EmailStr
    name: str
    bio: str | None = None
    is_active: bool = True


class UserUpdate(BaseModel):
    email: EmailStr | None = None
    name: str | None = None
    bio: str | None = None
    is_active: bool | None = None


class UserResponse(BaseModel):
    model_config = ConfigDict(from_attributes=True)

    id: int
    email: str
    name: str
    bio: str | None
    is_active: bool
    created_at: datetime
    updated_at: datetime


Crud = FastRDB[User, UserCreate, UserUpdate, UserResponse]


def make_crud(**changes: Any) -> Crud:
    """Return the tutorial's `user_crud`, with changes."""
    settings: dict[str, Any] = {
        "pattern": "user:email:{email}",
        "list_pattern": "user:page:{page}:limit:{limit}",
        "invalidate_pattern_prefix": "todo:*",
        "exp": 6000,
    }
    return Crud(User, UserResponse, **{**settings, **changes})


def user(name: str = "ann", /, **changes: object) -> UserCreate:
    """Return a user to create."""
    return UserCreate.model_validate({"email": f"{name}@example.com", "name": name, **changes})


@pytest.fixture
async def db(database: Database) -> AsyncIterator[AsyncSession]:
    """Yield a session on each database in turn, with the table in it."""
    await database.create(Base)
    async with database.sessions() as session:
        yield session


@pytest.fixture(params=["postgresql", "mariadb"])
def concurrent(request: pytest.FixtureRequest) -> Database:
    """Yield each database in turn in which two transactions can write at once: SQLite has one writer."""
    opened: Database = request.getfixturevalue(request.param)
    return opened


@pytest.fixture
async def lite(sqlite: Database) -> AsyncIterator[AsyncSession]:
    """Yield a session on SQLite, with the table in it: for facts that are the same on each database."""
    await sqlite.create(Base)
    async with sqlite.sessions() as session:
        yield session


@pytest.fixture(autouse=True)
async def settled(client: Redis) -> AsyncIterator[None]:
    """Wait for what runs in the background before the client closes."""
    yield
    await default_cache.aclose()


async def in_database(database: Database, **filters: Any) -> list[User]:
    """Return the rows that are committed."""
    async with database.sessions() as session:
        return list(await session.scalars(select(User).filter_by(**filters).order_by(User.id)))


async def stored(client: Redis, key: str) -> UserResponse:
    """Return the entry of that key."""
    raw = await client.get(key)
    assert raw is not None
    return UserResponse.model_validate_json(raw)


ANN = "ann@example.com"
BOB = "bob@example.com"


# --- one row


async def test_create_answers_and_stores(db: AsyncSession, database: Database, client: Redis) -> None:
    """`create` commits, answers with what the database gave, and stores it: `get` needs no database."""
    crud = make_crud()
    made = await crud.create(db=db, redis=client, obj_in=user(), email=ANN)
    assert made.id > 0
    assert isinstance(made.created_at, datetime)
    assert [row.email for row in await in_database(database)] == [ANN]
    assert await stored(client, f"user:email:{ANN}") == made
    with statements(database) as seen:
        assert await crud.get(db=db, redis=client, email=ANN) == made
    assert seen == []


async def test_create_takes_column_values_by_name(lite: AsyncSession) -> None:
    """A keyword argument of `create` is a column's value; a mapping does instead of a schema; a typo is an error."""
    crud = make_crud()
    assert (await crud.create(lite, None, {"email": ANN, "name": "ann"}, bio="tall")).bio == "tall"
    with pytest.raises(UnknownFieldError, match="User has no column 'nmae'"):
        await crud.create(lite, None, user("bob"), nmae="bob")
    with pytest.raises(TypeError, match="obj_in=int must be"):
        await crud.create(lite, None, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="missing its argument 'obj_in'"):
        await crud.create(lite, None)


async def test_get_stores_and_reads(db: AsyncSession, database: Database, client: Redis) -> None:
    """The first `get` asks the database, the second does not; more filters narrow it, and are part of the key."""
    crud = make_crud()
    made = await crud.create(db, None, user())
    assert await crud.get(db, client, email=ANN) == made
    with statements(database) as seen:
        assert await crud.get(db, client, email=ANN) == made
    assert seen == []
    assert await crud.get(db, client, email=ANN, is_active=True) == made
    with pytest.raises(NoResultFound):
        await crud.get(db, client, email=ANN, is_active=False)
    assert await crud.get(db, None, email=ANN) == made


async def test_get_without_a_row(db: AsyncSession, client: Redis) -> None:
    """No row is `NoResultFound`, or None from `get_or_none`; and is asked again."""
    crud = make_crud()
    with pytest.raises(NoResultFound):
        await crud.get(db, client, email=ANN)
    assert await crud.get_or_none(db, client, email=ANN) is None
    made = await crud.create(db, client, user())
    assert await crud.get_or_none(db, client, email=ANN) == made


async def test_several_rows(lite: AsyncSession, sqlite: Database, client: Redis) -> None:
    """Where one row is meant and there are several: `MultipleResultsFound`, and nothing is changed or deleted."""
    crud = make_crud(pattern="user:name:{name}")
    await crud.create_multi(lite, client, [user("ann"), user("bob", name="ann")])
    with pytest.raises(MultipleResultsFound):
        await crud.get(lite, client, name="ann")
    await lite.commit()
    with pytest.raises(MultipleResultsFound):
        await crud.update(lite, client, UserUpdate(bio="x"), name="ann")
    with pytest.raises(MultipleResultsFound):
        await crud.delete(lite, client, name="ann")
    with pytest.raises(MultipleResultsFound):
        await crud.upsert(lite, client, user("ann"))
    assert [row.bio for row in await in_database(sqlite)] == [None, None]
    assert not lite.in_transaction()


async def test_update_changes_only_what_is_set(db: AsyncSession, client: Redis) -> None:
    """`update` leaves alone what `obj_in` does not set, sets None where it is set, and stores the new value."""
    crud = make_crud()
    await crud.create(db, client, user(bio="tall"))
    renamed = await crud.update(db=db, redis=client, obj_in=UserUpdate(name="Ann"), email=ANN)
    assert (renamed.name, renamed.bio, renamed.email) == ("Ann", "tall", ANN)
    assert await stored(client, f"user:email:{ANN}") == renamed
    assert (await crud.update(db, client, UserUpdate(bio=None), email=ANN)).bio is None
    assert (await crud.update(db, client, UserUpdate(), email=ANN)).name == "Ann"
    with pytest.raises(NoResultFound):
        await crud.update(db, client, UserUpdate(name="x"), email=BOB)


async def test_update_of_the_key(db: AsyncSession, client: Redis) -> None:
    """When the key itself changes, the old one is gone and the new one is there."""
    crud = make_crud()
    await crud.create(db, client, user())
    moved = await crud.update(db, client, UserUpdate(email=BOB), email=ANN)
    assert await crud.get(db, client, email=BOB) == moved
    assert await crud.get_or_none(db, client, email=ANN) is None


async def test_delete(db: AsyncSession, database: Database, client: Redis) -> None:
    """`delete` removes the row and its entry; a second time there is none."""
    crud = make_crud()
    await crud.create(db, client, user())
    assert await crud.delete(db=db, redis=client, email=ANN) is None  # type: ignore[func-returns-value]
    assert await in_database(database) == []
    assert await crud.get_or_none(db, client, email=ANN) is None
    with pytest.raises(NoResultFound):
        await crud.delete(db, client, email=ANN)


async def test_upsert(db: AsyncSession, database: Database, client: Redis) -> None:
    """`upsert` inserts, then changes that row; what its schema only has by default stays as it is."""
    crud = make_crud()
    made = await crud.upsert(db, client, user(bio="tall", is_active=False))
    again = await crud.upsert(db, client, UserCreate(email=ANN, name="Ann"))
    assert again == made.model_copy(update={"name": "Ann", "updated_at": again.updated_at})
    assert await crud.get(db, client, email=ANN) == again
    assert len(await in_database(database)) == 1
    with pytest.raises(MissingKeyFieldError, match=r"'email' is missing: .*user:email:\{email\}"):
        await crud.upsert(db, client, {"name": "x"})


async def test_concurrent_upserts(database: Database, client: Redis) -> None:
    """Many upserts of one new key at once: one row, and no caller fails."""
    await database.create(Base)
    crud = make_crud()

    async def one(number: int) -> UserResponse:
        async with database.sessions() as session:
            return await crud.upsert(session, client, user(bio=str(number)))

    answers = await asyncio.gather(*(one(number) for number in range(8)))
    [row] = await in_database(database)
    assert {answer.id for answer in answers} == {row.id}
    async with database.sessions() as session:
        assert (await crud.get(session, client, email=ANN)).bio == row.bio


@pytest.mark.parametrize("own", [True, False], ids=["own", "callers"])
async def test_upsert_that_loses_the_race(concurrent: Database, own: bool, client: Redis) -> None:
    """A row that another transaction inserts after the look and before the insert is changed instead."""
    database = concurrent
    await database.create(Base)
    crud = make_crud()
    async with database.sessions() as session, database.sessions() as other:
        inserted = False

        async def insert_first() -> None:
            await crud.create(other, client, user(bio="first"))

        def before(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
            nonlocal inserted
            if statement.startswith("SAVEPOINT") and not inserted:
                inserted = True
                await_only(insert_first())

        event.listen(database.engine.sync_engine, "before_cursor_execute", before)
        if not own:
            await session.begin()
        answer = await crud.upsert(session, client, UserCreate(email=ANN, name="second"))
        await session.commit()
    assert inserted
    assert (answer.bio, answer.name) == ("first", "second")


async def test_upsert_that_cannot_be(db: AsyncSession, database: Database, client: Redis) -> None:
    """An IntegrityError that is not about the key passes through, and the session can be used."""
    crud = make_crud(pattern="user:id:{id}")
    made = await crud.upsert(db, client, user(), id=1)
    with pytest.raises(IntegrityError):
        await crud.upsert(db, client, user(), id=2)
    assert not db.in_transaction()
    assert await crud.get_many(db, client, id=[1, 2]) == [made, None]


# --- many rows


async def test_create_multi(db: AsyncSession, database: Database, client: Redis) -> None:
    """Rows are created in one transaction, and answered in the order of the arguments."""
    crud = make_crud()
    names = [f"user{number:02}" for number in reversed(range(40))]
    made = await crud.create_multi(db, client, [user(name) for name in names], bio="one of many")
    assert [answer.name for answer in made] == names
    assert {answer.bio for answer in made} == {"one of many"}
    with statements(database) as seen:
        assert await crud.get_many(db, client, email=[answer.email for answer in made]) == made
    assert seen == []
    assert await crud.create_multi(db, client, []) == []


async def test_create_multi_is_all_or_none(db: AsyncSession, database: Database, client: Redis) -> None:
    """One row that cannot be, and there are none; the session can be used, and nothing is in the cache."""
    crud = make_crud()
    with pytest.raises(IntegrityError):
        await crud.create_multi(db, client, [user("ann"), user("bob"), user("ann")])
    assert await in_database(database) == []
    assert await entries(client) == set()
    assert await crud.count(db, client) == 0
    await crud.create(db, client, user())


async def test_get_many(db: AsyncSession, database: Database, client: Redis) -> None:
    """Answers come in the order asked for, None for what is not there, the rest of them by one SELECT."""
    crud = make_crud(pattern="user:id:{id}")
    ann, bob, eve = await crud.create_multi(db, None, [user("ann"), user("bob"), user("eve")])
    assert await crud.get(db, client, id=bob.id) == bob
    await db.commit()
    with statements(database) as seen:
        found = await crud.get_many(db, client, id=[eve.id, 10**6, bob.id, str(ann.id), eve.id])
    assert found == [eve, None, bob, ann, eve]
    assert len(seen) == 1
    await db.commit()
    with statements(database) as seen:
        assert await crud.get_many(db, client, id=[ann.id, bob.id, eve.id]) == [ann, bob, eve]
    assert seen == []


async def test_get_many_wants_one_list(lite: AsyncSession) -> None:
    """`get_many` takes one list, and the other columns of the pattern as values."""
    crud = make_crud()
    for filters in ({}, {"email": ANN}, {"email": [ANN], "name": ["ann"]}):
        with pytest.raises(ValueError, match="one list"):
            await crud.get_many(lite, None, **filters)
    with pytest.raises(MissingKeyFieldError):
        await crud.get_many(lite, None, name=["ann"])
    with pytest.raises(UnknownFieldError):
        await crud.get_many(lite, None, nmae=["ann"])
    assert await crud.get_many(lite, None, email=[]) == []
    await crud.create(lite, None, user())
    found = await crud.get_many(lite, None, email=[None, ANN], is_active=True)
    assert [answer and answer.email for answer in found] == [None, ANN]


async def test_get_many_of_several_rows(lite: AsyncSession) -> None:
    """A value that two rows have is an error for `get_many` as for `get`."""
    crud = make_crud(pattern="user:name:{name}")
    await crud.create_multi(lite, None, [user("ann"), user("bob", name="ann")])
    with pytest.raises(MultipleResultsFound):
        await crud.get_many(lite, None, name=["ann"])


async def test_update_multi(db: AsyncSession, database: Database, client: Redis) -> None:
    """All rows found are changed and answered by primary key; exactly their entries are replaced."""
    crud = make_crud()
    await crud.create_multi(db, client, [user("ann"), user("bob", is_active=False), user("eve")])
    changed = await crud.update_multi(db, client, UserUpdate(bio="active"), is_active=True)
    assert [answer.name for answer in changed] == ["ann", "eve"]
    assert {answer.bio for answer in changed} == {"active"}
    with statements(database) as seen:
        assert (await crud.get(db, client, email=ANN)).bio == "active"
        assert (await crud.get(db, client, email=BOB)).bio is None
    assert seen == []


async def test_delete_multi(db: AsyncSession, database: Database, client: Redis) -> None:
    """All rows found are deleted, and counted; without a filter none are."""
    crud = make_crud()
    await crud.create_multi(db, client, [user("ann"), user("bob", is_active=False), user("eve")])
    assert await crud.delete_multi(db, client, is_active=True) == 2
    assert await entries(client) == {f"user:email:{BOB}"}
    for wrong in (crud.delete_multi(db, client), crud.delete(db, client), crud.update_multi(db, client, {"bio": "x"})):
        with pytest.raises(ValueError, match="at least one column of User"):
            await wrong
    assert [row.name for row in await in_database(database)] == ["bob"]


# --- lists, counts, pages


async def test_lists_are_cached_and_follow(db: AsyncSession, database: Database, client: Redis) -> None:
    """Lists, counts and `exists` come from Redis until something is written, whatever prefix is configured."""
    crud = make_crud(invalidate_pattern_prefix="todo:*")

    async def look() -> tuple[list[str], int, bool]:
        async with database.sessions() as session:
            found = await crud.get_multi(db=session, redis=client, limit=10, page=1)
        async with database.sessions() as session:
            number = await crud.count(session, client)
        async with database.sessions() as session:
            return [answer.name for answer in found], number, await crud.exists(session, client, name="bob")

    await crud.create(db, client, user())
    assert await look() == (["ann"], 1, False)
    with statements(database) as seen:
        assert await look() == (["ann"], 1, False)
    assert seen == []
    assert {"user:page:1:limit:10", "user:page:%:user:count"} < await entries(client)
    await crud.create(db, client, user("bob"))
    assert await look() == (["ann", "bob"], 2, True)
    await crud.update(db, client, UserUpdate(name="Ann"), email=ANN)
    assert await look() == (["Ann", "bob"], 2, True)
    await crud.upsert(db, client, user("eve"))
    assert await look() == (["Ann", "bob", "eve"], 3, True)
    await crud.update_multi(db, client, {"name": "all"}, is_active=True)
    assert await look() == (["all", "all", "all"], 3, False)
    await crud.delete(db, client, email=BOB)
    assert await look() == (["all", "all"], 2, False)
    await crud.delete_multi(db, client, name="all")
    assert await look() == ([], 0, False)
    await crud.create_multi(db, client, [user("bob")])
    assert await look() == (["bob"], 1, True)


async def test_the_configured_prefix_goes_too(lite: AsyncSession, client: Redis) -> None:
    """A write invalidates the configured prefixes; placeholders take the row's values, an unknown one cuts there."""
    prefixes = ["todo:{name}:*", "of:{nobody}:x", "mail:{email}"]
    crud = make_crud(invalidate_pattern_prefix=prefixes, cache=(cache := Cache()))
    kept = {"todo:bob:1", "todos", "mail:ann@example.com.au"}

    @cache.cached(pattern="{key}")
    async def remember(redis: Redis, key: str) -> int:
        return 1

    @cache.cached(pattern="todo:{name}:{number}")
    async def todo(redis: Redis, name: str, number: int) -> int:
        return 1

    @cache.cached(pattern="of:{name}:{number}")
    async def of(redis: Redis, name: str, number: int) -> int:
        return 1

    @cache.cached(pattern="mail:{email}")
    async def mail(redis: Redis, email: str) -> int:
        return 1

    for name in ("ann", "bob"):
        await todo(client, name, 1)
    await of(client, "x", 1)
    await mail(client, ANN)
    await mail(client, f"{ANN}.au")
    await remember(client, "todos")
    await crud.create(lite, client, user())
    assert await entries(client) == {*kept, f"user:email:{ANN}"}


async def test_order_and_pages(db: AsyncSession) -> None:
    """Rows come by primary key, or by a column and then by primary key, so that pages leave nothing out."""
    crud = make_crud()
    made = await crud.create_multi(db, None, [user(f"u{number}", name=f"n{number % 2}") for number in range(6)])
    ids = [answer.id for answer in made]

    async def pages(**order: Any) -> list[int]:
        return [answer.id for page in (1, 2, 3, 4) for answer in await crud.get_multi(db, None, 2, page, **order)]

    assert await pages() == ids
    assert await pages(ascending=False) == ids[::-1]
    assert await pages(order_by="name") == ids[::2] + ids[1::2]
    assert await pages(order_by="name", ascending=False) == ids[::-2] + ids[-2::-2]
    assert await pages(order_by="id", name="n1") == ids[1::2]


async def test_get_page(db: AsyncSession, client: Redis) -> None:
    """A page knows the true total; past the end it has no data, and the total all the same."""
    crud = make_crud()
    made = await crud.create_multi(db, client, [user(f"u{number}") for number in range(5)])
    second = await crud.get_page(db, client, limit=2, page=2)
    assert (second.data, second.total, second.pages) == (made[2:4], 5, 3)
    assert (second.has_next, second.has_previous) == (True, True)
    past = await crud.get_page(db, client, limit=2, page=9)
    assert (past.data, past.total, past.has_next) == ([], 5, False)
    one = await crud.get_page(db, client, limit=2, page=1, order_by="name", ascending=False, name="u3")
    assert (one.data, one.total) == ([made[3]], 1)
    with pytest.raises(PageOutOfRange, match="get_page"):
        crud.paginate(data=[1, 2, 3], limit=2, page=3)


async def test_count_without_redis(db: AsyncSession) -> None:
    """`count(db=db, email=...)` needs no Redis."""
    crud = make_crud()
    await crud.create_multi(db, None, [user("ann"), user("bob")])
    assert await crud.count(db=db) == 2
    assert await crud.count(db=db, email=ANN) == 1
    assert await crud.count(db=db, bio=None) == 2
    assert await crud.exists(db=db, bio="x") is False


# --- bad input


@pytest.mark.parametrize(
    "method", ["get", "get_or_none", "update", "delete", "get_multi", "get_page", "count", "exists"]
)
async def test_unknown_filters(lite: AsyncSession, sqlite: Database, client: Redis, method: str) -> None:
    """A name that is no column is refused before any I/O, attributes and relationships among it."""
    crud = make_crud()
    more = {"obj_in": {"bio": "x"}} if method == "update" else {}
    with statements(sqlite) as seen:
        for field in ("nmae", "metadata", "__class__", "registry"):
            with pytest.raises(UnknownFieldError, match=f"User has no column '{field}'; it has: id, email") as caught:
                await getattr(crud, method)(lite, client, email=ANN, **more, **{field: 1})
            assert (caught.value.field, caught.value.model) == (field, "User")
    assert seen == []
    assert not lite.in_transaction()


async def test_bad_pages(lite: AsyncSession, client: Redis) -> None:
    """Limits and pages below 1, or no integers at all, and orders that are no column are refused."""
    crud = make_crud()
    for name in ("limit", "page"):
        for value in (0, -1, True, "1", 1.0, None):
            for method in (crud.get_multi, crud.get_page):
                with pytest.raises(ValueError, match=f"{name}=.* must be an integer of at least 1"):
                    await method(lite, client, **{name: value})  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="past the largest number of a row"):
        await crud.get_multi(lite, client, limit=2**40, page=2**40)
    with pytest.raises(ValueError, match="ascending='false'"):
        await crud.get_multi(lite, client, ascending="false")  # type: ignore[arg-type]
    for order in ("nmae", "name; DROP TABLE user", "metadata", User.name):
        with pytest.raises(UnknownFieldError):
            await crud.get_multi(lite, client, order_by=order)  # type: ignore[arg-type]


async def test_missing_key_fields(lite: AsyncSession, client: Redis) -> None:
    """A field that a pattern needs is named, with the pattern."""
    crud = make_crud(pattern="user:{id}:{email}", list_pattern="users:{is_active}:{page}")
    with pytest.raises(MissingKeyFieldError, match=r"'id' is missing: .*user:\{id\}:\{email\}"):
        await crud.get(lite, client, email=ANN)
    with pytest.raises(MissingKeyFieldError, match="'is_active'"):
        await crud.get_multi(lite, client)
    with pytest.raises(MissingKeyFieldError, match="'is_active'"):
        await crud.get_page(lite, client)


async def test_values_are_the_columns_own(db: AsyncSession, client: Redis) -> None:
    """A value is taken as the column's type, so that "5" and 5 have one key; one that cannot be is refused."""
    crud = make_crud(pattern="user:id:{id}")
    made = await crud.create(db, client, user())
    assert await crud.get(db, client, id=str(made.id)) == made
    assert await entries(client) == {f"user:id:{made.id}"}
    for name, value in (("id", "five"), ("is_active", "perhaps"), ("created_at", "x"), ("name", 5), ("id", [1])):
        with pytest.raises(ValueError, match=f"User.{name}: "):
            await crud.count(db, client, **{name: value})


@pytest.mark.parametrize(
    "text", [":?&=%*[]\\{} \t\n\r", "*", "None", "%none", "x" * 100_000, "naïve 雪 \U0001f600", ""]
)
async def test_any_text_is_a_value(lite: AsyncSession, client: Redis, text: str) -> None:
    """Every text is a value like any other: found, stored, and invalidated by itself."""
    crud = make_crud(pattern="user:name:{name}")
    await crud.create(lite, client, user("ann", name="ann"))
    made = await crud.create(lite, client, user("bob", name=text))
    assert await crud.get(lite, client, name=text) == made
    assert await crud.get_multi(lite, client, name=text) == [made]
    await crud.get(lite, client, name="ann")
    changed = await crud.update(lite, client, {"bio": "x"}, name=text)
    assert await crud.get(lite, client, name=text) == changed
    assert "user:name:ann" in await entries(client)


async def test_null_is_not_the_text(lite: AsyncSession, client: Redis) -> None:
    """None finds NULL; the text "None" finds that text."""
    crud = make_crud(pattern="user:bio:{bio}")
    empty, text = await crud.create_multi(lite, client, [user("ann"), user("bob", bio="None")])
    for _ in range(2):
        assert await crud.get(lite, client, bio=None) == empty
        assert await crud.get(lite, client, bio="None") == text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"pattern": "user:{mail}"}, r"pattern 'user:\{mail\}': placeholder '\{mail\}' is not a column of User"),
        ({"pattern": "user:{email.x}"}, r"'\{email.x\}' is not a column of User"),
        ({"pattern": "user:{page}"}, r"'\{page\}' is not a column of User"),
        (
            {"list_pattern": "users:{pages}"},
            r"list_pattern .*'\{pages\}' is not a column of User, nor one of limit, page",
        ),
        ({"pattern": "user:*"}, r"user:\*"),
        ({"pattern": "user:{"}, "user:"),
        ({"pattern": ""}, "empty"),
        ({"invalidate_pattern_prefix": "todo:{"}, "todo:"),
    ],
)
def test_wrong_patterns(changes: dict[str, str], message: str) -> None:
    """A placeholder that no column fills is refused when the class is made, naming model and placeholder."""
    with pytest.raises(PatternError, match=message) as caught:
        make_crud(**changes)
    assert "FastRDB[User]" in str(caught.value)


def test_wrong_options() -> None:
    """An impossible option is refused when the class is made."""
    for changes in ({"exp": 0}, {"jitter": 2}, {"stale": 5}, {"nonsense": 1}):
        with pytest.raises(OptionError):
            make_crud(**changes)
    with pytest.raises(OptionError, match="not a mapped class"):
        FastRDB(UserCreate, UserResponse, "user:{id}", "users:{page}")


# --- commits by the method or by the caller


async def test_inside_the_callers_transaction(db: AsyncSession, database: Database, client: Redis) -> None:
    """In `db.begin()` a method flushes only; the cache follows the caller's commit."""
    crud = make_crud()
    await crud.create(db, client, user())
    async with db.begin():
        changed = await crud.update(db, client, UserUpdate(name="Ann"), email=ANN)
        await crud.create(db, client, user("bob"))
        assert [row.name for row in await in_database(database)] == ["ann"]
        assert (await crud.get(db, client, email=ANN)).name == "Ann"
        async with database.sessions() as other:
            assert (await crud.get(other, client, email=ANN)).name == "ann"
    async with database.sessions() as other:
        assert await crud.get(other, client, email=ANN) == changed
        assert await crud.count(other, client) == 2


async def test_the_callers_rollback(db: AsyncSession, database: Database, client: Redis) -> None:
    """A row that the caller rolls back was never there, in the database or in the cache."""
    crud = make_crud()
    made = await crud.create(db, client, user())
    await db.begin()
    await crud.update(db, client, UserUpdate(name="Ann"), email=ANN)
    await crud.create(db, client, user("bob"))
    await db.rollback()
    assert await crud.get(db, client, email=ANN) == made
    assert await crud.get_or_none(db, client, email=BOB) is None
    assert len(await in_database(database)) == 1


async def test_inside_a_savepoint(db: AsyncSession, database: Database, client: Redis) -> None:
    """In a savepoint a method leaves the commit to the caller, too; a rolled back one takes its writes with it."""
    crud = make_crud()
    await db.execute(select(User))  # begins the transaction, which so is not one that the caller has begun
    async with db.begin_nested() as savepoint:
        await crud.create(db, client, user())
        await savepoint.rollback()
    async with db.begin_nested():
        await crud.create(db, client, user("bob"))
    assert await in_database(database) == []
    await db.commit()
    assert [row.name for row in await in_database(database)] == ["bob"]


async def test_error_leaves_the_session_usable(db: AsyncSession, client: Redis) -> None:
    """After an IntegrityError the session is as before: nothing of the write is there, the next one works."""
    crud = make_crud()
    made = await crud.create(db, client, user())
    await crud.create(db, client, user("bob"))
    for _ in range(2):
        with pytest.raises(IntegrityError):
            await crud.create(db, client, user())
        with pytest.raises(IntegrityError):
            await crud.update(db, client, UserUpdate(email=ANN, name="x"), email=BOB)
        assert not db.in_transaction()
    assert await crud.get(db, client, email=ANN) == made
    assert (await crud.get(db, client, email=BOB)).name == "bob"
    assert await crud.count(db, client) == 2


async def test_error_after_the_callers_reads(db: AsyncSession, client: Redis) -> None:
    """A database error also ends a transaction that began by itself with the caller's own reads."""
    crud = make_crud()
    await crud.create(db, client, user())
    assert await db.scalar(select(func.count()).select_from(User)) == 1
    with pytest.raises(IntegrityError):
        await crud.create(db, client, user())
    assert (await crud.create(db, client, user("bob"))).name == "bob"


async def test_finding_nothing_takes_nothing_back(db: AsyncSession, database: Database, client: Redis) -> None:
    """`NoResultFound` from a write leaves what the caller has added to the session alone."""
    crud = make_crud()
    await db.execute(select(User))
    now = datetime.fromisoformat("2024-01-01")
    db.add(User(id=7, email=BOB, name="bob", bio=None, created_at=now, updated_at=now))
    with pytest.raises(NoResultFound):
        await crud.update(db, client, UserUpdate(name="x"), email=ANN)
    await db.commit()
    assert [row.name for row in await in_database(database)] == ["bob"]


async def test_error_in_the_callers_transaction(db: AsyncSession, database: Database, client: Redis) -> None:
    """In the caller's own transaction an error is the caller's to roll back."""
    crud = make_crud()
    await crud.create(db, client, user())
    await db.begin()
    await crud.create(db, client, user("bob"))
    with pytest.raises(IntegrityError):
        await crud.create(db, client, user())
    assert db.in_transaction()
    await db.rollback()
    assert [row.name for row in await in_database(database)] == ["ann"]
    assert await crud.count(db, client) == 1


async def test_cancelled_before_the_commit(db: AsyncSession, database: Database, client: Redis) -> None:
    """A cancelled write is rolled back before the caller goes on, and the session can be used."""
    crud = make_crud()
    made = await crud.create(db, client, user())
    original, reached = db.commit, asyncio.Event()

    async def never() -> None:
        reached.set()
        await asyncio.Event().wait()

    db.commit = never  # type: ignore[method-assign]
    task = asyncio.create_task(crud.update(db, client, UserUpdate(name="Ann"), email=ANN))
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    db.commit = original  # type: ignore[method-assign]
    assert not db.in_transaction()
    assert await crud.get(db, client, email=ANN) == made
    assert (await crud.update(db, client, UserUpdate(name="Anna"), email=ANN)).name == "Anna"
    assert [row.name for row in await in_database(database)] == ["Anna"]


async def test_cancelled_twice(lite: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """Cancelled again while it rolls back, a write still rolls back to the end before it says so."""
    crud = make_crud()
    rollback, reached, go_on = lite.rollback, asyncio.Event(), asyncio.Event()

    async def fail() -> None:
        raise RuntimeError("the commit failed")

    async def slow() -> None:
        reached.set()
        await go_on.wait()
        await rollback()

    monkeypatch.setattr(lite, "commit", fail)
    monkeypatch.setattr(lite, "rollback", slow)
    task = asyncio.create_task(crud.create(lite, None, user()))
    await reached.wait()
    task.cancel()
    await asyncio.wait([task], timeout=0)
    assert not task.done()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not lite.in_transaction()


async def test_rollback_that_fails(lite: AsyncSession, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the connection gone in the middle the error is the first one, and the session connects anew."""
    crud = make_crud()

    async def fail() -> None:
        raise RuntimeError("the first error")

    async def gone() -> None:
        raise ConnectionError("no connection to roll back")

    with monkeypatch.context() as patched:
        patched.setattr(lite, "commit", fail)
        patched.setattr(lite, "rollback", gone)
        with pytest.raises(RuntimeError, match="the first error"):
            await crud.create(lite, None, user())
    assert (await crud.create(lite, None, user())).email == ANN


async def test_expiring_sessions(sqlite: Database, client: Redis) -> None:
    """With SQLAlchemy's default of expiring what is committed, answers are whole."""
    await sqlite.create(Base)
    crud = make_crud()
    async with AsyncSession(sqlite.engine) as session:
        made = await crud.create(session, client, user())
        assert (await crud.update(session, client, UserUpdate(name="Ann"), email=ANN)).id == made.id
        assert (await crud.get(session, None, email=ANN)).name == "Ann"


async def test_scoped_sessions_and_the_caches_own_redis(sqlite: Database, client: Redis) -> None:
    """A scoped session does, and without `redis` it is the client of the `Cache`."""
    await sqlite.create(Base)
    crud = make_crud(cache=Cache(client, namespace="own"))
    scoped = async_scoped_session(sqlite.sessions, asyncio.current_task)
    made = await crud.create(scoped, obj_in=user())
    assert await crud.get(scoped, email=ANN) == made
    assert await entries(client) == {f"own:user:email:{ANN}"}
    await scoped.remove()


# --- what others write


async def test_update_sees_what_others_wrote(db: AsyncSession, database: Database, client: Redis) -> None:
    """An update's answer, which is stored, has what others committed since the transaction's snapshot began."""
    crud = make_crud()
    await crud.create(db, client, user())
    await db.execute(select(User))  # MariaDB's snapshot, and the identity map, are from here
    async with database.sessions() as other:
        await crud.update(other, client, UserUpdate(bio="new"), email=ANN)
    same = await crud.update(db, client, UserUpdate(name="ann"), email=ANN)
    assert (same.name, same.bio) == ("ann", "new")
    async with database.sessions() as other:
        assert await crud.get(other, client, email=ANN) == same


async def test_update_of_what_the_session_loaded_long_ago(db: AsyncSession, database: Database, client: Redis) -> None:
    """A row that others have changed since is changed from what it is now: value and key, and their entry goes."""
    crud = make_crud()
    made = await crud.create(db, client, user())
    loaded = (await db.scalars(select(User))).one()
    await db.commit()
    async with database.sessions() as other:
        await crud.update(other, client, UserUpdate(email=BOB, name="other"), email=ANN)
    changed = await crud.update(db, client, UserUpdate(email="eve@example.com", name="ann"), id=made.id)
    assert (changed.name, loaded.name) == ("ann", "ann")
    async with database.sessions() as other:
        assert await crud.get_or_none(other, client, email=BOB) is None
        assert await crud.get(other, client, email="eve@example.com") == changed
        assert await crud.get(other, None, email="eve@example.com") == changed


async def test_sqlite_locks_before_it_looks(lite: AsyncSession, sqlite: Database) -> None:
    """Between the look at a row and its change no other writer can write, in SQLite, too."""
    crud = make_crud()
    await crud.create(lite, None, user())
    refused: list[str] = []

    async def write() -> None:
        async with opened(sqlite.engine.url, connect_args={"timeout": 0}) as other, other.sessions() as session:
            with pytest.raises(OperationalError, match="locked") as caught:
                await session.execute(update(User).values(name="other"))
            refused.append(str(caught.value))

    def before(_conn: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.startswith("UPDATE user SET name"):
            await_only(write())

    event.listen(sqlite.engine.sync_engine, "before_cursor_execute", before)
    assert (await crud.update(lite, None, UserUpdate(name="Ann"), email=ANN)).name == "Ann"
    assert len(refused) == 1


async def test_concurrent_updates_lose_nothing(database: Database, client: Redis) -> None:
    """Updates of one row at once wait for each other; the entry is the last one's."""
    await database.create(Base)
    crud = make_crud()
    async with database.sessions() as session:
        await crud.create(session, client, user())
    changes = [UserUpdate(name="Ann"), UserUpdate(bio="tall"), UserUpdate(is_active=False)] * 3

    async def one(change: UserUpdate) -> UserResponse:
        async with database.sessions() as session:
            return await crud.update(session, client, change, email=ANN)

    await asyncio.gather(*map(one, changes))
    async with database.sessions() as session:
        found = await crud.get(session, client, email=ANN)
        assert found == await crud.get(session, None, email=ANN)
    assert (found.name, found.bio, found.is_active) == ("Ann", "tall", False)


async def test_reads_show_the_database(db: AsyncSession, database: Database) -> None:
    """Without Redis, too, a read gives what the database has, not what the session loaded before."""
    crud = make_crud()
    await crud.create(db, None, user())
    kept = (await db.scalars(select(User))).one()
    await db.commit()
    async with database.sessions() as other:
        await other.execute(update(User).values(name="Ann"))
        await other.commit()
    assert (await crud.get(db, None, email=ANN)).name == "Ann"
    assert [answer.name for answer in await crud.get_multi(db, None)] == ["Ann"]
    assert kept.name == "Ann"


async def test_reads_overwrite_no_changes(sqlite: Database) -> None:
    """A read does not overwrite what the caller has changed and not flushed."""
    await sqlite.create(Base)
    crud = make_crud()
    async with AsyncSession(sqlite.engine, autoflush=False) as session:
        await crud.create(session, None, user())
        row = (await session.scalars(select(User))).one()
        row.name = "changed"
        await crud.get(session, None, email=ANN)
        assert row.name == "changed"


async def test_texts_that_a_database_takes_for_equal(db: AsyncSession, database: Database, client: Redis) -> None:
    """Where a collation finds another spelling, the answer is right and is stored under the row's own key alone."""
    crud = make_crud(negative_exp=60, list_pattern="users:{name}:{page}")
    other, finds = "ANN@example.com", database.name == "mariadb"
    assert await crud.get_or_none(db, client, email=other) is None
    await db.commit()
    made = await crud.create(db, client, user())
    await db.commit()
    assert await crud.get_or_none(db, client, email=other) == (made if finds else None)
    assert await crud.get_many(db, client, email=[other, ANN]) == [made if finds else None, made]
    assert await crud.get_multi(db, client, name="ANN") == ([made] if finds else [])
    await db.commit()
    changed = await crud.update(db, client, UserUpdate(bio="new"), email=ANN)
    assert await crud.get_or_none(db, client, email=other) == (changed if finds else None)
    assert await crud.get_many(db, client, email=[other, ANN]) == [changed if finds else None, changed]
    assert await crud.get_multi(db, client, name="ANN") == ([changed] if finds else [])
    assert (
        f"user:email:{other}" in await entries(client)
    ) is not finds  # where it is another value: that it is missing


async def test_missing_rows_can_be_cached(db: AsyncSession, database: Database, client: Redis) -> None:
    """With `negative_exp` a missing row is remembered until it is created, by whatever key finds it exactly."""
    crud = make_crud(negative_exp=60, pattern="user:id:{id}")
    assert await crud.get_or_none(db, client, id=1) is None
    with statements(database) as seen:
        assert await crud.get_or_none(db, client, id=1) is None
    assert seen == []
    await db.commit()
    made = await crud.create(db, client, user(), id=1)
    assert await crud.get(db, client, id=1) == made
