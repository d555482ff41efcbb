"""A cache with `auto=True` follows the writes of each asynchronous driver of SQLAlchemy in the same way."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import pytest
import sqlalchemy as sa
from redis.asyncio import Redis
from sqlalchemy import insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship, selectinload

from fastrdb import Cache
from tests.support.servers.databases import Database, opened

DRIVERS = {
    "sqlite+aiosqlite": "sqlite",
    "postgresql+asyncpg": "postgresql",
    "postgresql+psycopg": "postgresql",
    "mariadb+aiomysql": "mariadb",
    "mariadb+asyncmy": "mariadb",
}


class Base(DeclarativeBase):
    pass


tagged = sa.Table(
    "driver_tagged",
    Base.metadata,
    sa.Column("book_id", sa.ForeignKey("driver_books.id"), primary_key=True),
    sa.Column("tag_id", sa.ForeignKey("driver_tags.id"), primary_key=True),
)


class Tag(Base):
    __tablename__ = "driver_tags"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


class Book(Base):
    __tablename__ = "driver_books"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    shelf: Mapped[int]
    title: Mapped[str] = mapped_column(sa.String(40))
    tags: Mapped[list[Tag]] = relationship(secondary=tagged)


@pytest.fixture(params=DRIVERS)
def empty(request: pytest.FixtureRequest) -> Database:
    """Provide the empty database of each driver in turn."""
    pytest.importorskip(request.param.partition("+")[2])
    found: Database = request.getfixturevalue(DRIVERS[request.param])
    return found


@pytest.fixture
async def database(request: pytest.FixtureRequest, empty: Database) -> AsyncIterator[Database]:
    """Provide the books through a driver."""
    driver = request.node.callspec.params["empty"]
    async with opened(empty.engine.url.set(drivername=driver)) as made:
        await made.create(Base)
        async with made.sessions() as db:
            db.add_all([Book(id=n, shelf=n % 2, title=f"book {n}") for n in range(4)])
            db.add(Tag(id=1))
            await db.commit()
        yield made


class Library:
    """Cached functions, with what each has loaded."""

    def __init__(self, client: Redis, database: Database) -> None:
        self.cache, self._database, self.loads = Cache(client, auto=True), database, list[str]()

        @self.cache.cached("driver:title:{book}")
        async def title(db: AsyncSession, book: int) -> str:
            self.loads.append(f"title {book}")
            return (await db.get_one(Book, book)).title

        @self.cache.cached("driver:shelf:{shelf}")
        async def shelf(db: AsyncSession, shelf: int) -> list[str]:
            self.loads.append(f"shelf {shelf}")
            return list(await db.scalars(select(Book.title).where(Book.shelf == shelf).order_by(Book.id)))

        @self.cache.cached("driver:tags:{book}")
        async def tags(db: AsyncSession, book: int) -> list[int]:
            self.loads.append(f"tags {book}")
            return list(await db.scalars(select(tagged.c.tag_id).where(tagged.c.book_id == book)))

        self.functions: dict[str, tuple[Any, int]] = {
            **{f"title {n}": (title, n) for n in range(4)},
            **{f"shelf {n}": (shelf, n) for n in range(2)},
            **{f"tags {n}": (tags, n) for n in range(4)},
        }

    async def read(self) -> dict[str, Any]:
        """Return all answers."""
        found = {}
        for name, (function, number) in self.functions.items():
            async with self._database.sessions() as db:
                found[name] = await function(db, number)
        return found

    async def reloaded(self) -> set[str]:
        """Return what is loaded anew when everything is read."""
        self.loads.clear()
        await self.read()
        return set(self.loads)


@pytest.fixture
async def library(client: Redis, database: Database) -> AsyncIterator[Library]:
    """Provide a library with all entries, which knows by a write of its own which columns are in use."""
    made = Library(client, database)
    async with made.cache:
        await made.read()
        async with database.sessions() as db:
            (await db.get_one(Book, 3)).title = "first"
            await db.commit()
        await made.read()
        assert await made.reloaded() == set()
        yield made


async def test_an_object_that_is_renamed(database: Database, library: Library) -> None:
    """The look finds its shelf, which the statement does not name."""
    async with database.sessions() as db:
        (await db.get_one(Book, 1)).title = "new"
        await db.commit()
    assert await library.reloaded() == {"title 1", "shelf 1"}
    assert (await library.read())["shelf 1"] == ["new", "first"]


async def test_an_object_that_another_session_has_moved(database: Database, library: Library) -> None:
    """The session has the old shelf, and the database is asked."""
    async with database.sessions() as old:
        book = await old.get_one(Book, 1)
        await old.commit()
        async with database.sessions() as other:
            await other.execute(update(Book).where(Book.id == 1).values(shelf=0))
            await other.commit()
        await library.read()
        book.title = "late"
        await old.commit()
    assert await library.reloaded() == {"title 1", "shelf 0"}


async def test_many_rows_by_one_statement(database: Database, library: Library) -> None:
    """Rows that leave the shelf of the WHERE, and rows that are inserted together."""
    async with database.sessions() as db:
        await db.execute(update(Book).where(Book.shelf == 0).values(shelf=1))
        await db.commit()
    assert await library.reloaded() == {"title 0", "title 2", "shelf 0", "shelf 1"}
    async with database.sessions() as db:
        await db.execute(insert(Book), [{"id": n, "shelf": 0, "title": f"book {n}"} for n in (8, 9)])
        await db.commit()
    assert await library.reloaded() == {"shelf 0"}


async def test_an_association(database: Database, library: Library) -> None:
    """A tag that is given, and one that is taken away: rows of the association only."""
    for expected in ([1], []):
        async with database.sessions() as db:
            book = await db.get_one(Book, 2, options=[selectinload(Book.tags)])
            book.tags = [await db.get_one(Tag, each) for each in expected]
            await db.commit()
        assert await library.reloaded() == {"tags 2"}
        assert (await library.read())["tags 2"] == expected
