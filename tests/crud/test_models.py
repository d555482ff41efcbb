"""`FastRDB` with every kind of mapped class: keys, inheritance, types, relationships, what answers are made of."""

from __future__ import annotations

import enum
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, date, datetime
from decimal import Decimal
from typing import Any

import pytest
import redis.asyncio
from pydantic import BaseModel, ConfigDict
from sqlalchemy import (
    JSON,
    Date,
    Enum,
    ForeignKey,
    Index,
    Numeric,
    String,
    TypeDecorator,
    UniqueConstraint,
    func,
    select,
    text,
)
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    MappedAsDataclass,
    column_property,
    deferred,
    mapped_column,
    relationship,
    selectinload,
)
from sqlalchemy.types import UserDefinedType

from fastrdb import Cache, FastRDB, MissingKeyFieldError, PatternError, UnknownFieldError
from fastrdb.cache import default_cache
from fastrdb.crud.bindings import as_prefix
from fastrdb.keys import Pattern
from tests.support.servers.databases import Database
from tests.support.world.stores import entries

Redis = redis.asyncio.Redis


class Base(DeclarativeBase):
    pass


class Schema(BaseModel):
    model_config = ConfigDict(from_attributes=True)


class Point(UserDefinedType[str]):
    """A type that does not say what its values are."""

    cache_ok = True

    def get_col_spec(self, **_: Any) -> str:
        return "TEXT"


class Verse(Base):
    """A composite primary key, and the tutorial's second example."""

    __tablename__ = "verse"

    chapter_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    verse_id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    text: Mapped[str] = mapped_column(String(200))


class VerseResponse(Schema):
    chapter_id: int
    verse_id: int
    text: str


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Upper(TypeDecorator[str]):
    """Values that the database has another way than Python."""

    impl = String(20)
    cache_ok = True

    def process_bind_param(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.lower()

    def process_result_value(self, value: Any, dialect: Any) -> Any:
        return None if value is None else value.upper()


class Thing(Base):
    """A UUID key that is not named id, attributes that are not named as their columns, and many types."""

    __tablename__ = "thing"

    token: Mapped[uuid.UUID] = mapped_column("thing_token", primary_key=True, default=uuid.uuid4)
    label: Mapped[str] = mapped_column("thing_label", String(50))
    price: Mapped[Decimal] = mapped_column(Numeric(10, 2), default=Decimal(1))
    colour: Mapped[Colour] = mapped_column(Enum(Colour), default=Colour.RED)
    day: Mapped[date] = mapped_column(Date, default=date(2024, 2, 29))
    code: Mapped[str | None] = mapped_column(Upper)
    data: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    page: Mapped[int] = mapped_column(default=7)
    serial: Mapped[int] = mapped_column(server_default="5")
    notes: Mapped[str | None] = deferred(mapped_column(String(50)))
    doubled: Mapped[Decimal] = column_property(price * 2)

    @hybrid_property
    def shout(self) -> str:
        """Something that is no column, and can be set."""
        return self.label

    @shout.inplace.setter
    def _set_shout(self, value: str) -> None:
        self.label = value.lower()

    __table_args__ = (Index("by_label", "thing_label", unique=True), UniqueConstraint("day", "code"))


class ThingResponse(Schema):
    token: uuid.UUID
    label: str
    price: Decimal
    colour: Colour
    day: date
    code: str | None
    page: int
    serial: int
    notes: str | None


class Employee(Base):
    """Joined and single-table inheritance."""

    __tablename__ = "employee"

    number: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(String(20))
    name: Mapped[str] = mapped_column(String(50))
    __mapper_args__ = {"polymorphic_on": "kind", "polymorphic_identity": "employee", "with_polymorphic": "*"}  # noqa: RUF012


class Engineer(Employee):
    __tablename__ = "engineer"

    number: Mapped[int] = mapped_column(ForeignKey("employee.number"), primary_key=True)
    language: Mapped[str] = mapped_column(String(20))
    __mapper_args__ = {"polymorphic_identity": "engineer"}  # noqa: RUF012


class Manager(Employee):
    budget: Mapped[int | None]
    __mapper_args__ = {"polymorphic_identity": "manager"}  # noqa: RUF012


class EmployeeResponse(Schema):
    number: int
    kind: str
    name: str


class EngineerResponse(EmployeeResponse):
    language: str


class ManagerResponse(EmployeeResponse):
    budget: int | None


class Author(Base):
    """Relationships: one that is always joined, one that only the options load."""

    __tablename__ = "author"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(50), unique=True)
    books: Mapped[list[Book]] = relationship(back_populates="author", cascade="all, delete-orphan")


class Book(Base):
    __tablename__ = "book"

    id: Mapped[int] = mapped_column(primary_key=True)
    title: Mapped[str] = mapped_column(String(50))
    author_id: Mapped[int | None] = mapped_column(ForeignKey("author.id"))
    author: Mapped[Author | None] = relationship(back_populates="books", lazy="joined")


class Shelf(Base):
    """A collection that is always joined."""

    __tablename__ = "shelf"

    id: Mapped[int] = mapped_column(primary_key=True)
    place: Mapped[str] = mapped_column(String(50))
    boxes: Mapped[list[Box]] = relationship(lazy="joined", order_by="Box.id")


class Box(Base):
    __tablename__ = "box"

    id: Mapped[int] = mapped_column(primary_key=True)
    shelf_id: Mapped[int] = mapped_column(ForeignKey("shelf.id"))
    name: Mapped[str] = mapped_column(String(50))


class AuthorName(Schema):
    id: int
    name: str


class BookTitle(Schema):
    id: int
    title: str


class AuthorResponse(AuthorName):
    books: list[BookTitle]


class BookResponse(BookTitle):
    author: AuthorName | None


@pytest.fixture
async def db(database: Database) -> AsyncIterator[AsyncSession]:
    """Yield a session on each database in turn, with all tables in it."""
    await database.create(Base)
    async with database.sessions() as session:
        yield session


@pytest.fixture
async def lite(sqlite: Database) -> AsyncIterator[AsyncSession]:
    """Yield a session on SQLite, with all tables in it."""
    await sqlite.create(Base)
    async with sqlite.sessions() as session:
        yield session


@pytest.fixture(autouse=True)
async def settled(client: Redis) -> AsyncIterator[None]:
    """Wait for what runs in the background before the client closes."""
    yield
    await default_cache.aclose()


def crud_of(model: type[Any], schema: type[Any], key: str, **settings: Any) -> FastRDB[Any, Any, Any, Any]:
    """Return a `FastRDB` whose keys are made of one column."""
    name = model.__name__.lower()
    patterns: dict[str, Any] = {"pattern": f"{name}:{key}:{{{key}}}", "list_pattern": f"{name}s:{{page}}:{{limit}}"}
    return FastRDB(model, schema, **{**patterns, **settings})


def verses(prefix: str = "verse:chapter_id:{chapter_id}:*", **settings: Any) -> FastRDB[Verse, Any, Any, VerseResponse]:
    """Return the tutorial's second example."""
    return FastRDB(
        Verse,
        VerseResponse,
        pattern="verse:chapter_id:{chapter_id}:verse_id:{verse_id}",
        list_pattern="verse:chapter_id:{chapter_id}:page:{page}:limit:{limit}",
        exp=600,
        invalidate_pattern_prefix=prefix,
        **settings,
    )


# --- composite keys, and lists narrowed by what a row has


async def test_composite_primary_key(db: AsyncSession, client: Redis) -> None:
    """A key of two columns: created, found, listed, changed, deleted."""
    crud = verses()
    made = await crud.create_multi(db, client, [{"verse_id": n, "text": f"t{n}"} for n in (2, 1, 3)], chapter_id=3)
    await crud.create(db, client, {"verse_id": 1, "text": "other"}, chapter_id=1)
    assert [answer.verse_id for answer in made] == [2, 1, 3]
    listed = await crud.get_multi(db=db, redis=client, limit=20, page=1, order_by="verse_id", chapter_id=3)
    assert [answer.verse_id for answer in listed] == [1, 2, 3]
    assert await crud.get_many(db, client, chapter_id=3, verse_id=[3, 9, 1]) == [made[2], None, made[1]]
    changed = await crud.update(db, client, {"text": "new"}, chapter_id=3, verse_id=1)
    assert await crud.get(db, client, chapter_id=3, verse_id=1) == changed
    with pytest.raises(MissingKeyFieldError, match="verse_id"):
        await crud.get(db, client, chapter_id=3)
    moved = await crud.update(db, client, {"chapter_id": 4}, chapter_id=3, verse_id=1)
    assert moved.chapter_id == 4
    assert await crud.get_or_none(db, client, chapter_id=3, verse_id=1) is None
    await crud.delete(db, client, chapter_id=3, verse_id=2)
    assert await crud.upsert(db, client, VerseResponse(chapter_id=4, verse_id=1, text="up")) == moved.model_copy(
        update={"text": "up"}
    )
    assert await crud.count(db, client, chapter_id=3) == 1


@pytest.mark.parametrize("prefix", ["verse:chapter_id:{chapter_id}:*", ""])
async def test_only_the_lists_of_the_row_go(lite: AsyncSession, client: Redis, prefix: str) -> None:
    """A write invalidates the lists of the row's old and new chapter, and no other's; counts always."""
    crud = verses(prefix)
    for chapter in (1, 2, 3):
        await crud.create(lite, None, {"chapter_id": chapter, "verse_id": 1, "text": "x"})
    await lite.commit()
    for chapter in (1, 2, 3):
        assert len(await crud.get_multi(lite, client, chapter_id=chapter)) == 1
        await crud.count(lite, client, chapter_id=chapter)
        await lite.commit()
    await crud.update(lite, client, {"chapter_id": 2, "verse_id": 2}, chapter_id=1, verse_id=1)
    assert await entries(client) == {
        "verse:chapter_id:3:page:1:limit:10",
        "verse:chapter_id:2:verse_id:2",  # written through
    }
    assert [len(await crud.get_multi(lite, client, chapter_id=chapter)) for chapter in (1, 2, 3)] == [0, 2, 1]


async def test_lists_of_texts_all_go(lite: AsyncSession, client: Redis) -> None:
    """A list is not narrowed by a column whose equality depends on the database: more goes, never less."""
    crud = crud_of(Verse, VerseResponse, "verse_id", list_pattern="verses:{chapter_id}:{text}:{page}")
    for chapter, word in ((1, "a"), (1, "b"), (2, "a")):
        await crud.get_multi(lite, client, chapter_id=chapter, text=word)
        await lite.commit()
    await crud.create(lite, client, {"chapter_id": 1, "verse_id": 1, "text": "A"})
    assert await entries(client) == {"verses:2:a:1"}


async def test_no_placeholder_at_all(lite: AsyncSession, client: Redis) -> None:
    """Other orders of placeholders, hash tags and an empty prefix work, too."""
    crud = crud_of(
        Verse,
        VerseResponse,
        "verse_id",
        pattern="{{v}}:{chapter_id}:{verse_id}",
        list_pattern="{{v}}:list:{limit}:{page}",
        invalidate_pattern_prefix="",
    )
    made = await crud.create(lite, client, {"chapter_id": 1, "verse_id": 1, "text": "A"})
    assert await crud.get_multi(lite, client) == [made]
    assert await crud.count(lite, client) == 1
    assert await entries(client) == {"{v}:1:1", "{v}:list:10:1", "{v}:list:%:verse:count"}
    await crud.delete(lite, client, verse_id=1)
    assert await entries(client) == set()


def test_pattern_as_a_prefix() -> None:
    """A prefix ends at its first placeholder that cannot be filled; braces stay as written."""
    parsed = {
        text: as_prefix(Pattern.parse(text, owner="x", kind="prefix"), {"a", "b"})
        for text in ("x:{a}:{c}:{b}", "x:{a}:{b}", "x:{c}", "{c}", "{{t}}:{a}:{c}", "{a.b}:x", "x*")
    }
    assert list(parsed.values()) == ["x:{a}:*", "x:{a}:{b}", "x:*", "*", "{{t}}:{a}:*", "*", "x*"]


# --- types and attributes


async def test_uuid_key_and_other_attributes(db: AsyncSession, client: Redis) -> None:
    """A UUID key, attributes named otherwise than their columns, and defaults of every kind."""
    crud = crud_of(Thing, ThingResponse, "token")
    made = await crud.create(db, client, {"label": "box", "notes": "deferred"})
    assert (made.price, made.colour, made.serial, made.notes) == (Decimal("1.00"), Colour.RED, 5, "deferred")
    assert await entries(client) == {f"thing:token:{made.token}"}
    assert await crud.get(db, client, token=str(made.token)) == made
    await db.commit()
    assert await crud.get(db, None, token=made.token) == made
    await db.commit()
    await crud.cache.invalidate("thing:*", redis=client)
    assert await crud.get(db, client, token=made.token) == made
    assert await entries(client) == {f"thing:token:{made.token}"}
    assert await crud.get_many(db, client, token=[made.token, uuid.uuid4()]) == [made, None]


async def test_answers_are_what_the_database_keeps(db: AsyncSession, client: Redis) -> None:
    """A value that the database rounds, or a type changes, is answered and stored as a read would return it."""
    crud = crud_of(Thing, ThingResponse, "token")
    made = await crud.create(db, client, {"label": "box", "code": "abc", "price": Decimal("2.50")})
    assert made.code == "ABC"
    changed = await crud.update(db, client, {"code": "xyz", "price": Decimal("3.00")}, token=made.token)
    assert changed.code == "XYZ"
    await db.commit()
    assert await crud.get(db, client, token=made.token) == changed == await crud.get(db, None, token=made.token)


async def test_filters_by_type(db: AsyncSession, client: Redis) -> None:
    """Enums, decimals, dates, and types of one's own filter, as themselves or as text."""
    crud = crud_of(Thing, ThingResponse, "token")
    made = await crud.create(db, client, {"label": "box", "code": "abc", "price": Decimal("2.50"), "data": {"a": 1}})
    several: list[dict[str, Any]] = [
        {"colour": Colour.RED},
        {"colour": "red"},
        {"price": Decimal("2.5")},
        {"price": "2.50"},
        {"day": "2024-02-29"},
        {"code": "abc"},
        {"notes": None, "serial": 5},
    ]
    for filters in several:
        assert await crud.get_multi(db, client, **filters) == [made], filters
        assert await crud.count(db, client, **filters) == 1
    with pytest.raises(ValueError, match=r"Thing.colour: the str given is not a value of type Colour"):
        await crud.count(db, client, colour="green")


async def test_inexact_keys(db: AsyncSession, client: Redis) -> None:
    """A key of decimals or of a type of one's own is right however it is spelt, and stored under the row's own."""
    crud = crud_of(Thing, ThingResponse, "price", negative_exp=60)
    assert await crud.get_or_none(db, client, price=Decimal("2.5")) is None
    await db.commit()
    made = await crud.create(db, client, {"label": "box", "price": Decimal("2.50")})
    await db.commit()
    assert await crud.get(db, client, price=Decimal("2.5")) == made
    await db.commit()
    changed = await crud.update(db, client, {"label": "bag"}, token=made.token)
    assert await crud.get(db, client, price=Decimal("2.5")) == changed
    assert await crud.get(db, client, price=Decimal("2.50")) == changed


async def test_what_is_no_column(lite: AsyncSession) -> None:
    """Hybrids, expressions and relationships do not filter; a hybrid with a setter can be set."""
    crud = crud_of(Thing, ThingResponse, "token")
    for name in ("shout", "doubled", "metadata"):
        with pytest.raises(UnknownFieldError):
            await crud.count(lite, None, **{name: 1})
    assert (await crud.create(lite, None, {"shout": "BOX"})).label == "box"
    with pytest.raises(UnknownFieldError):
        await crud.create(lite, None, {"label": "x", "doubled": 2})
    with pytest.raises(UnknownFieldError):
        await crud_of(Author, AuthorName, "id").create(lite, None, {"name": "x", "books": [{"title": "y"}]})
    assert (await crud_of(Author, AuthorName, "id").create(lite, None, {"name": "x", "books": []})).name == "x"


async def test_columns_named_as_arguments(lite: AsyncSession, client: Redis) -> None:
    """A column named `page` filters where there is no such argument; as a placeholder of lists it is the argument."""
    crud = crud_of(Thing, ThingResponse, "page")
    made = await crud.create(lite, client, {"label": "box"})
    assert await crud.get(lite, client, page=7) == made
    assert await crud.count(lite, client, page=7) == 1
    assert await crud.get_multi(lite, client, page=1) == [made]
    await crud.update(lite, client, {"label": "bag"}, page=7)
    assert [answer.label for answer in await crud.get_multi(lite, client, page=1)] == ["bag"]


async def test_lists_with_null(lite: AsyncSession) -> None:
    """None among the values of `get_many` finds NULL."""
    crud = crud_of(Thing, ThingResponse, "code")
    empty, full = await crud.create_multi(lite, None, [{"label": "a"}, {"label": "b", "code": "C"}])
    assert await crud.get_many(lite, None, code=["C", None]) == [full, empty]


async def test_columns_of_any_name_and_type(sqlite: Database, client: Redis) -> None:
    """Columns may be named as what fastrdb names itself, and be of a type that says nothing of its values."""

    class Base2(DeclarativeBase):
        pass

    class Odd(Base2):
        __tablename__ = "odd"

        id: Mapped[int] = mapped_column(primary_key=True)
        count: Mapped[int] = mapped_column(default=2)
        exists: Mapped[int] = mapped_column(default=3)
        point: Mapped[Any] = mapped_column(Point(), default="1,2")
        db: Mapped[int] = mapped_column(default=4)
        redis: Mapped[int] = mapped_column(default=5)
        session: Mapped[int] = mapped_column(default=6)

    class OddResponse(Schema):
        id: int
        count: int
        exists: int
        point: str
        redis: int

    await sqlite.create(Base2)
    crud = crud_of(Odd, OddResponse, "count", invalidate_pattern_prefix="x:{redis}:{session}:*")
    async with sqlite.sessions() as session:
        made = await crud.create(session, client, {})
        await session.commit()
        assert await crud.get(session, client, count=2, exists=3, point="1,2", session=6) == made
        assert await crud.count(session, client, count=2, exists=3) == 1
        assert await crud.exists(session, client, count=2, exists=4) is False
        await crud.create(session, client, {"count": 3})
        assert await crud.count(session, client) == 2
        with pytest.raises(PatternError, match=r"placeholder '\{redis\}'"):
            crud_of(Odd, OddResponse, "redis")


async def test_json_of_models(lite: AsyncSession) -> None:
    """A pydantic model inside a schema becomes what a JSON column takes."""

    class Inner(BaseModel):
        number: int

    class ThingCreate(BaseModel):
        label: str
        data: dict[str, list[Inner]]

    crud = crud_of(Thing, ThingResponse, "token")
    made = await crud.create(lite, None, ThingCreate(label="box", data={"all": [Inner(number=1)]}))
    row = (await lite.scalars(select(Thing).where(Thing.token == made.token))).one()
    assert row.data == {"all": [{"number": 1}]}


# --- inheritance


async def test_joined_inheritance(db: AsyncSession, client: Redis) -> None:
    """Columns of both tables are read, written and filtered by; rows of other classes are not found."""
    crud = crud_of(Engineer, EngineerResponse, "number")
    made = await crud.create(db, client, {"name": "ann", "language": "Lua"})
    await crud_of(Employee, EmployeeResponse, "number").create(db, client, {"name": "eve"})
    assert (made.kind, made.language) == ("engineer", "Lua")
    assert await crud.get(db, client, number=made.number) == made
    assert (await crud.update(db, client, {"name": "Ann"}, language="Lua")).name == "Ann"
    changed = await crud.update(db, client, {"language": "C", "name": "A"}, number=made.number)
    assert await crud.get_multi(db, client, name="A", language="C") == [changed]
    assert await crud.count(db, client) == 1
    assert await crud.exists(db, client, name="eve") is False
    await crud.delete(db, client, number=made.number)
    assert await crud.count(db, client) == 0


async def test_single_table_inheritance(db: AsyncSession, client: Redis) -> None:
    """A class that shares its table sees its own rows alone."""
    crud = crud_of(Manager, ManagerResponse, "number")
    made = await crud.create(db, client, {"name": "max", "budget": 5})
    other = await crud_of(Engineer, EngineerResponse, "number").create(db, client, {"name": "ann", "language": "Lua"})
    assert await crud.get_multi(db, client) == [made]
    assert (await crud.count(db, client), await crud.exists(db, client, name="ann")) == (1, False)
    assert await crud.get_or_none(db, client, number=other.number) is None
    assert (await crud.update(db, client, {"budget": 6}, name="max")).budget == 6
    assert await crud.delete_multi(db, client, name="ann") == 0


async def test_rows_of_subclasses(db: AsyncSession, client: Redis) -> None:
    """The base class reads, changes and deletes rows of every class, with all tables loaded at once or not."""
    await crud_of(Engineer, EngineerResponse, "number").create(db, client, {"name": "ann", "language": "Lua"})
    crud = crud_of(Employee, EmployeeResponse, "number")
    made = await crud.create(db, client, {"name": "eve"})
    assert [answer.name for answer in await crud.get_multi(db, client)] == ["ann", "eve"]
    assert [answer.name for answer in await crud.update_multi(db, client, {"name": "x"}, name="ann")] == ["x"]
    assert (await crud.update(db, client, {"name": "Eve"}, number=made.number)).name == "Eve"
    assert await crud.delete_multi(db, client, name="x") == 1
    assert await crud.count(db, client) == 1


# --- relationships


async def test_relationships_through_options(db: AsyncSession, client: Redis) -> None:
    """With `options` the answer shows related rows, from reads and from writes; it is not written through."""
    crud = crud_of(Author, AuthorResponse, "name", options=[selectinload(Author.books)])
    books = crud_of(Book, BookTitle, "id", invalidate_pattern_prefix="author:*")
    made = await crud.create(db, client, {"name": "ann"})
    assert made.books == []
    assert await entries(client) == set()
    title = await books.create(db, client, {"title": "one", "author_id": made.id})
    await db.commit()
    assert (await crud.get(db, client, name="ann")).books == [title]
    assert (await crud.update(db, client, {"name": "Ann"}, name="ann")).books == [title]
    assert (await crud.get_multi(db, client))[0].books == [title]
    [found] = await crud.get_many(db, client, name=["Ann"])
    assert found is not None
    assert found.books == [title]
    await books.update(db, client, {"title": "two"}, id=title.id)
    assert [book.title for book in (await crud.get(db, client, name="Ann")).books] == ["two"]


async def test_deleting_cascades(db: AsyncSession, client: Redis) -> None:
    """`delete` goes through the session: what the model cascades to goes along."""
    crud = crud_of(Author, AuthorName, "id")
    books = crud_of(Book, BookTitle, "id")
    author = await crud.create(db, client, {"name": "ann"})
    await books.create(db, client, {"title": "one", "author_id": author.id})
    await crud.delete(db, client, id=author.id)
    assert await books.count(db, None) == 0


async def test_joined_relationships(db: AsyncSession, client: Redis) -> None:
    """A relationship that the model always joins is in the answer, and no hindrance to locking the row."""
    author = await crud_of(Author, AuthorName, "id").create(db, client, {"name": "ann"})
    crud = crud_of(Book, BookResponse, "id")
    made = await crud.create(db, client, {"title": "one"})
    assert made.author is None
    changed = await crud.update(db, client, {"author_id": author.id}, id=made.id)
    assert changed.author == author
    assert await entries(client) == {f"author:id:{author.id}"}
    assert await crud.get(db, client, id=made.id) == changed
    assert await crud.get_multi(db, client) == [changed]


async def test_joined_collections(db: AsyncSession, client: Redis) -> None:
    """A collection that the model always joins is in the answer, and one row is still one row, locked."""

    class BoxName(Schema):
        name: str

    class ShelfResponse(Schema):
        id: int
        place: str
        boxes: list[BoxName]

    crud, boxes = crud_of(Shelf, ShelfResponse, "id"), crud_of(Box, BoxName, "id")
    made = await crud.create(db, client, {"place": "left"})
    await boxes.create_multi(db, client, [{"name": "a"}, {"name": "b"}, {"name": "c"}], shelf_id=made.id)
    changed = await crud.update(db, client, {"place": "right"}, place="left")
    assert (changed.place, [box.name for box in changed.boxes]) == ("right", ["a", "b", "c"])
    assert await crud.get(db, client, id=made.id) == changed
    assert await crud.get_multi(db, client) == [changed]


# --- what is written through


@pytest.mark.parametrize(
    ("pattern", "through"),
    [
        ("thing:{token}", True),
        ("thing:{label}", True),
        ("thing:{label}:{serial}", True),
        ("thing:{code}:{day}", True),
        ("thing:{day}", False),
        ("thing:{serial}", False),
    ],
)
async def test_only_unique_keys_are_written_through(
    lite: AsyncSession, client: Redis, pattern: str, through: bool
) -> None:
    """A new value is stored by its writer only where no second row can have that key."""
    crud = crud_of(Thing, ThingResponse, "token", pattern=pattern)
    await crud.create(lite, client, {"label": "box", "code": "c"})
    assert bool(await entries(client)) is through


async def test_null_is_no_unique_key(lite: AsyncSession, client: Redis) -> None:
    """NULL in a unique key may be there twice: nothing is stored under it by its writer."""
    crud = crud_of(Thing, ThingResponse, "token", pattern="thing:{code}:{day}")
    await crud.create(lite, client, {"label": "box", "code": None})
    assert await entries(client) == set()


async def test_partial_indexes_are_no_unique_key(lite: AsyncSession, sqlite: Database, client: Redis) -> None:
    """An index that is unique for some rows only does not make a key unique."""

    class Base2(DeclarativeBase):
        pass

    class Part(Base2):
        __tablename__ = "part"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(20))
        __table_args__ = (
            Index("some", "name", unique=True, sqlite_where=text("id > 5")),
            Index("expression", func.lower(name), text("id"), unique=True),
        )

    class PartResponse(Schema):
        id: int
        name: str

    await sqlite.create(Base2)
    crud = crud_of(Part, PartResponse, "name")
    await crud.create_multi(lite, client, [{"name": "a"}, {"name": "a"}])
    assert await entries(client) == set()


async def test_what_shows_more_than_the_row_is_not_written_through(lite: AsyncSession, client: Redis) -> None:
    """An answer that shows an attribute which is no column may depend on other rows: its writer does not store it."""

    class Doubled(ThingResponse):
        doubled: Decimal

    crud = crud_of(Thing, Doubled, "token")
    made = await crud.create(lite, client, {"label": "box", "price": Decimal(4)})
    assert made.doubled == 8
    assert await entries(client) == set()


async def test_not_written_through_in_the_callers_transaction(lite: AsyncSession, client: Redis) -> None:
    """In a transaction that goes on, the value is not final: the entry goes, and the next read stores it."""
    crud = verses()
    async with lite.begin():
        await crud.create(lite, client, {"chapter_id": 1, "verse_id": 1, "text": "x"})
        await lite.execute(Verse.__table__.update().values(text="y"))  # type: ignore[attr-defined]
    assert await entries(client) == set()
    assert (await crud.get(lite, client, chapter_id=1, verse_id=1)).text == "y"


# --- making


def test_before_related_classes_exist() -> None:
    """A `FastRDB` can be made in the model's own module, before what the model relates to is imported."""

    class Base2(DeclarativeBase):
        pass

    class Early(Base2):
        __tablename__ = "early"

        id: Mapped[int] = mapped_column(primary_key=True)
        late_id: Mapped[int] = mapped_column(ForeignKey("late.id"))
        late: Mapped[Any] = relationship("Late")

    class EarlyResponse(Schema):
        id: int
        late_id: int

    crud_of(Early, EarlyResponse, "id")

    class Late(Base2):
        __tablename__ = "late"

        id: Mapped[int] = mapped_column(primary_key=True)

    assert Early(late=Late()).late is not None


async def test_dataclasses(sqlite: Database, client: Redis) -> None:
    """A dataclass is made without its `__init__`; its defaults, factories and `__post_init__` hold."""

    class Base2(MappedAsDataclass, DeclarativeBase):
        pass

    class Token(Base2):
        __tablename__ = "token"

        id: Mapped[int] = mapped_column(primary_key=True)
        made: Mapped[datetime] = mapped_column(default_factory=lambda: datetime.now(UTC).replace(tzinfo=None))
        kind: Mapped[str] = mapped_column(String(20), default="plain")
        upper: Mapped[str | None] = mapped_column(String(20), init=False)

        def __post_init__(self) -> None:
            self.upper = "SET"

    class TokenResponse(Schema):
        id: int
        made: datetime
        kind: str
        upper: str | None

    await sqlite.create(Base2)
    crud = crud_of(Token, TokenResponse, "id")
    async with sqlite.sessions() as session:
        made = await crud.create(session, client, {})
        assert (made.kind, made.upper) == ("plain", "SET")
        assert (await crud.create(session, client, {"kind": "other"})).kind == "other"
        assert await crud.get(session, client, id=made.id) == made


async def test_own_constructors(lite: AsyncSession, sqlite: Database) -> None:
    """A class with a constructor of its own is made by it."""

    class Base2(DeclarativeBase):
        pass

    class Named(Base2):
        __tablename__ = "named"

        id: Mapped[int] = mapped_column(primary_key=True)
        name: Mapped[str] = mapped_column(String(20))

        def __init__(self, name: str) -> None:
            self.name = name.title()

    await sqlite.create(Base2)
    assert (await crud_of(Named, AuthorName, "id").create(lite, None, {"name": "ann"})).name == "Ann"


async def test_two_caches(lite: AsyncSession, client: Redis) -> None:
    """A `FastRDB` lives in the cache it is given; options reach its functions."""
    async with Cache(namespace="mine") as cache:
        crud = verses(cache=cache, cache_if=lambda answer: answer.text != "secret", jitter=0.5, wait=1)
        await crud.create(lite, client, {"chapter_id": 1, "verse_id": 1, "text": "x"})
        await crud.create(lite, client, {"chapter_id": 2, "verse_id": 1, "text": "secret"})
        assert await entries(client) == {"mine:verse:chapter_id:1:verse_id:1"}
        assert len(await crud.get_multi(lite, client, chapter_id=2)) == 1  # `cache_if` is about single rows
        assert cache.stats().invalidations > 0
    with pytest.raises(PatternError, match=r"FastRDB\[Verse\]: pattern 'x:\{chapter\}'"):
        crud_of(Verse, VerseResponse, "verse_id", pattern="x:{chapter}")


async def test_sessions_that_begin_nothing(sqlite: Database, client: Redis) -> None:
    """A session with `autobegin=False` is begun, and ended, by a method; inside the caller's `begin()` it is not."""
    await sqlite.create(Base)
    crud = crud_of(Author, AuthorName, "name")
    async with AsyncSession(sqlite.engine, autobegin=False) as session:
        await crud.create(session, client, {"name": "ann"})
        assert not session.in_transaction()
        with pytest.raises(IntegrityError):
            await crud.create(session, client, {"name": "ann"})
        async with session.begin():
            await crud.create(session, client, {"name": "bob"})
            assert session.in_transaction()
    async with sqlite.sessions() as session:
        assert await crud.count(session, client) == 2
