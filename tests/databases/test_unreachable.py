"""Which errors mean that the database cannot be reached, on real databases: `fail_safe` helps against these only."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from sqlalchemy import String, insert, text
from sqlalchemy.exc import DBAPIError, IntegrityError, NoResultFound, OperationalError, ProgrammingError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb.transactions.rules import unreachable
from tests.support.servers.databases import Database, ServerDatabase


class Base(DeclarativeBase):
    pass


class Row(Base):
    __tablename__ = "items"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(10))


Work = Callable[[AsyncConnection], Awaitable[Any]]


@asynccontextmanager
async def engine_of(url: Any, **options: Any) -> AsyncIterator[AsyncEngine]:
    """Yield an engine, and dispose of it."""
    engine = create_async_engine(url, **options)
    try:
        yield engine
    finally:
        await engine.dispose()


async def error_of(engine: AsyncEngine, work: Work | None = None) -> Exception:
    """Return the error that a connection, or work on it, raises."""
    try:
        async with engine.connect() as connection:
            if work is not None:
                await work(connection)
    except Exception as error:  # noqa: BLE001  # which one is what is asked
        return error
    raise AssertionError("nothing was raised")


@pytest.mark.parametrize(
    "url",
    [
        "postgresql+asyncpg://u@127.0.0.1:{port}/d",
        "mysql+aiomysql://u@127.0.0.1:{port}/d",
        "postgresql+asyncpg://u@/d?host=/no/such/directory",
    ],
)
async def test_nobody_there(url: str, unused_tcp_port: int) -> None:
    """No server on the port, no socket."""
    async with engine_of(url.format(port=unused_tcp_port)) as engine:
        assert unreachable(await error_of(engine))


async def test_no_database_and_no_connection_left(postgresql_server: ServerDatabase) -> None:
    """The server answers, but with no connection; the pool answers with none."""
    url = postgresql_server.url
    async with engine_of(url.set(database="no_such_database")) as engine:
        assert unreachable(await error_of(engine))
    async with engine_of(url, pool_size=1, max_overflow=0, pool_timeout=0.01) as engine, engine.connect():
        assert unreachable(await error_of(engine))


KILLS = {
    "postgresql": ("SELECT pg_backend_pid()", "SELECT pg_terminate_backend({})"),
    "mariadb": ("SELECT CONNECTION_ID()", "KILL {}"),
}


@pytest.mark.parametrize("name", KILLS)
async def test_a_connection_that_is_lost(request: pytest.FixtureRequest, name: str) -> None:
    """Killed by the server, as by a restart, between two statements."""
    server: ServerDatabase = request.getfixturevalue(f"{name}_server")
    ask, kill = KILLS[name]
    async with engine_of(server.url) as engine, engine_of(server.url) as other:

        async def lose(connection: AsyncConnection) -> None:
            number = (await connection.execute(text(ask))).scalar_one()
            async with other.connect() as killer:
                await killer.execute(text(kill.format(number)))
            await connection.execute(text("SELECT 1"))

        error = await error_of(engine, lose)
        assert isinstance(error, DBAPIError)
        assert unreachable(error)


ANSWERS = {
    "no such table": text("SELECT * FROM no_such_table"),
    "no such column": text("SELECT no_such_column FROM items"),
    "no SQL": text("SELEKT 1"),
    "twice the same key": insert(Row).values(id=1, name="b"),
}


@pytest.mark.parametrize("statement", ANSWERS.values(), ids=ANSWERS)
async def test_an_error_that_the_database_answers_with(database: Database, statement: Any) -> None:
    """It is there, then: also where the driver calls it an OperationalError."""
    await database.create(Base)

    async def do(connection: AsyncConnection) -> None:
        await connection.execute(insert(Row).values(id=1, name="a"))
        await connection.execute(statement)

    error = await error_of(database.engine, do)
    assert isinstance(error, OperationalError | ProgrammingError | IntegrityError)
    assert not unreachable(error)


class Native(Exception):  # noqa: N818
    """An error of a driver, as SQLAlchemy 2.0 lets it through."""

    def __init__(self, sqlstate: str) -> None:
        super().__init__(sqlstate)
        self.sqlstate = sqlstate


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (TimeoutError(), True),
        (asyncio.IncompleteReadError(b"", 1), False),
        (ConnectionResetError(), True),
        (Native("08006"), True),
        (Native("53300"), True),
        (Native("57P03"), True),
        (Native("57014"), False),
        (Native("42P01"), False),
        (OperationalError(None, None, Exception()), True),  # as for SQLite's "unable to open database file"
        (IntegrityError(None, None, Exception()), False),
        (ProgrammingError(None, None, Exception()), False),
        (NoResultFound(), False),
        (LookupError(), False),
    ],
    ids=repr,
)
def test_other_errors(error: Exception, expected: bool) -> None:
    """Of the network, of a driver; and answers at a COMMIT, which have no statement either."""
    assert unreachable(error) is expected
