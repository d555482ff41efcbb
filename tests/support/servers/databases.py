"""Databases for the tests: a SQLite file, and a database of its own on a real PostgreSQL, MariaDB or MySQL."""

from __future__ import annotations

import asyncio
import contextlib
import os
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from sqlalchemy import URL, NullPool, event, make_url, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_sessionmaker, create_async_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence

    from sqlalchemy.orm import DeclarativeBase

T = TypeVar("T")
_CONNECT_LIMIT = 5.0
SERVERS = {
    "postgresql": (
        "FASTRDB_TEST_POSTGRES",
        [URL.create("postgresql+asyncpg", user, host="127.0.0.1", port=5432) for user in ("postgres", "root")],
    ),
    "mariadb": ("FASTRDB_TEST_MARIADB", [URL.create("mariadb+aiomysql", "root", host="127.0.0.1", port=3306)]),
    "mysql": ("FASTRDB_TEST_MYSQL", []),
}
"""The variable of the environment that names each server, and its addresses where the variable is not set."""

# In PostgreSQL to make schemas anew takes a few milliseconds, and a database a checkpoint of the whole server.
_EMPTY = (
    """SELECT pg_terminate_backend(pid) FROM pg_stat_activity
    WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()""",
    """DO $$ DECLARE each text; BEGIN
    FOR each IN SELECT nspname FROM pg_namespace WHERE nspname !~ '^pg_' AND nspname <> 'information_schema'
    LOOP EXECUTE format('DROP SCHEMA %I CASCADE', each); END LOOP; END $$""",
    "CREATE SCHEMA public",
)


class NoServerError(Exception):
    """No database server answered; the message says which were tried and why each failed."""


@dataclass(frozen=True)
class Database:
    """One database, empty at the start of the test. Its pool keeps connections, as users' do: of one event loop."""

    engine: AsyncEngine
    sessions: async_sessionmaker[AsyncSession]

    @property
    def name(self) -> str:
        """`sqlite`, `postgresql` or `mariadb`, which MySQL counts as."""
        return {"mysql": "mariadb"}.get(self.engine.dialect.name, self.engine.dialect.name)

    async def create(self, base: type[DeclarativeBase]) -> None:
        """Make all tables of *base*, none of which is there."""
        async with self.engine.begin() as connection:
            await connection.run_sync(base.metadata.create_all, checkfirst=False)


@contextlib.asynccontextmanager
async def opened(url: URL | str, **options: Any) -> AsyncIterator[Database]:
    """Open the database at *url* for the block; its engine is disposed of afterwards."""
    engine = create_async_engine(url, **options)
    try:
        yield Database(engine, async_sessionmaker(engine, expire_on_commit=False))
    finally:
        await engine.dispose()


@dataclass(frozen=True)
class ServerDatabase:
    """A database with a unique name on a server, made for this run of the tests alone."""

    admin: URL
    url: URL

    async def create(self) -> None:
        """Make it."""
        await execute(self.admin, f"CREATE DATABASE {self.url.database}")

    def setting(self, name: str) -> str:
        """Return the value of PostgreSQL's SHOW."""

        async def ask() -> str:
            async with opened(self.admin) as database, database.engine.connect() as connection:
                return str((await connection.execute(text(f"SHOW {name}"))).scalar_one())

        return _run(ask())

    async def clear(self) -> None:
        """End whatever still holds it (a leaked connection keeps its locks), and empty it."""
        if self.admin.get_backend_name() == "postgresql":
            await execute(self.url, *_EMPTY)
        else:
            await self.drop()
            await self.create()

    @contextlib.asynccontextmanager
    async def emptied(self, **options: Any) -> AsyncIterator[Database]:
        """Empty it, and open it for the block: with one connection for both, where the server makes that possible."""
        if self.admin.get_backend_name() != "postgresql":
            await self.clear()
        async with opened(self.url, **options) as database:
            if self.admin.get_backend_name() == "postgresql":
                await _execute(database.engine, *_EMPTY)
            yield database

    async def drop(self) -> None:
        """Drop the database, with all connections to it."""
        name = self.url.database
        if self.admin.get_backend_name() == "postgresql":
            await execute(self.admin, f"DROP DATABASE {name} WITH (FORCE)")
        else:
            async with opened(self.admin) as database, database.engine.connect() as connection:
                for row in await connection.exec_driver_sql("SHOW PROCESSLIST"):
                    if row.db == name:
                        with contextlib.suppress(OperationalError):  # it may end by itself before it is killed
                            await connection.exec_driver_sql(f"KILL {row.Id}")
                await connection.exec_driver_sql(f"DROP DATABASE {name}")


@contextlib.contextmanager
def server_database(variable: str, defaults: Sequence[URL]) -> Iterator[ServerDatabase]:
    """Make a database on the server that *variable* of the environment names, or on the first default that answers.

    Raises:
        NoServerError: none answers.
    """
    given = os.environ.get(variable)
    admin = _run(_first_that_answers([make_url(given)] if given else defaults))
    database = ServerDatabase(admin, admin.set(database=f"fastrdb_{secrets.token_hex(6)}"))
    _run(database.create())
    try:
        yield database
    finally:
        _run(database.drop())


async def execute(url: URL, *statements: str) -> None:
    """Execute statements outside of any transaction."""
    engine = create_async_engine(url, poolclass=NullPool)
    await _execute(engine, *statements)
    await engine.dispose()


async def _execute(engine: AsyncEngine, *statements: str) -> None:
    async with asyncio.timeout(_CONNECT_LIMIT * 4), engine.connect() as connection:
        await connection.execution_options(isolation_level="AUTOCOMMIT")
        for statement in statements:
            await connection.execute(text(statement))


async def _first_that_answers(urls: Sequence[URL]) -> URL:
    tried = []
    for url in urls:
        try:
            async with asyncio.timeout(_CONNECT_LIMIT):
                await execute(url, "SELECT 1")
        except (DBAPIError, OSError, TimeoutError) as error:
            tried.append(f"{url.render_as_string()}: {error}")
        else:
            return url
    raise NoServerError("; ".join(tried))


def _run(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine from synchronous code, in a thread: the caller's own event loop may be running or prepared."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, work).result()


@contextlib.contextmanager
def statements(database: Database) -> Iterator[list[str]]:
    """Yield a list to which every statement that reaches the database is added."""
    seen: list[str] = []

    def note(_c: object, _k: object, statement: str, *_: object) -> None:
        seen.append(statement)

    event.listen(database.engine.sync_engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        event.remove(database.engine.sync_engine, "before_cursor_execute", note)
