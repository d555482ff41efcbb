"""The outcome of each COMMIT is known, or the barrier stays, however the COMMIT is sent and whatever happens to it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from redis.asyncio import Redis
from sqlalchemy import AsyncAdaptedQueuePool, Connection, NullPool, event, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, async_sessionmaker, create_async_engine

from fastrdb.protocol.intent import Intent
from fastrdb.testing import TcpProxy, Way
from fastrdb.transactions import listeners
from fastrdb.transactions.finish import finish
from fastrdb.transactions.state import Transaction
from tests.races.mechanisms import without
from tests.races.scenarios.commits import NEW, carried
from tests.support.servers import databases
from tests.support.servers.databases import Database, ServerDatabase
from tests.support.world import levels as places
from tests.support.world.levels import BY_NAME, Place
from tests.support.world.stores import members
from tests.support.world.world import Base, Item, ItemOut, Owner, World, spawn, world

# --- connections without a session, and sessions joined to them


@pytest.fixture
async def w(database: Database, client: Redis) -> AsyncIterator[World]:
    """Provide a world on each database."""
    async with world(database, client) as made:
        yield made


async def put(w: World, db: AsyncSession) -> None:
    """Write a value that is stored at its commit."""
    await w.two.rename(db, w.two.client, 1, "new")
    await w.two.get.put(ItemOut(id=1, name="new"), db=db, redis=w.two.client, item_id=1)


async def joined(w: World) -> None:
    """Write in a session that has ended before the outer transaction commits."""
    async with w.two.database.engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, expire_on_commit=False) as db:
            await put(w, db)
            await db.commit()
        await carried(w, outer.commit(), put=True)
        await w.two.cache.aclose()
        assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'


async def joined_and_open(w: World) -> None:
    """Write in a session that ends after the outer transaction has committed."""
    async with w.two.database.engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection, expire_on_commit=False) as db:
            await put(w, db)
            await carried(w, outer.commit(), put=True)
    assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'


async def in_a_savepoint(w: World) -> None:
    """Write in a session whose commit releases a savepoint."""
    async with w.two.database.engine.connect() as connection:
        outer = await connection.begin()
        await connection.execute(NEW.values(name="old"))  # SQLite begins with what writes
        async with AsyncSession(connection, join_transaction_mode="create_savepoint") as db:
            await put(w, db)
            await db.commit()
        await carried(w, outer.commit(), put=True)
        await w.two.cache.aclose()
        assert await w.client.exists("item:1")


async def fully_controlled(w: World) -> None:
    """Write in a session whose commit is the outer transaction's."""
    async with w.two.database.engine.connect() as connection:
        await connection.begin()
        async with AsyncSession(connection, join_transaction_mode="control_fully") as db:
            await put(w, db)
            await carried(w, db.commit(), put=True)
    assert await w.client.get("item:1") == b'{"id":1,"name":"new"}'


async def inside(w: World) -> None:
    """Write through a connection that begins and commits in the function."""

    @w.two.cache.invalidates("item:{item_id}")
    async def write(redis: object, item_id: int) -> None:
        async with w.two.database.engine.begin() as connection:
            await connection.execute(NEW)

    await carried(w, write(w.two.client, 1))


async def outside(w: World) -> None:
    """Write through a connection that the caller commits."""

    @w.two.cache.invalidates("item:{item_id}")
    async def write(connection: AsyncConnection, redis: object, item_id: int) -> None:
        await connection.execute(NEW)

    async with w.two.database.engine.begin() as connection:
        await write(connection, w.two.client, 1)
        assert await w.one.read() == "old"
        await carried(w, connection.commit())


async def raising(w: World) -> None:
    """Write through a connection in a function that raises when it has committed."""

    @w.two.cache.invalidates("item:{item_id}")
    async def write(redis: object, item_id: int) -> None:
        async with w.two.database.engine.begin() as connection:
            await connection.execute(NEW)
        raise LookupError

    with pytest.raises(LookupError):
        await write(w.two.client, 1)


COMMITTED = [joined, joined_and_open, in_a_savepoint, fully_controlled, inside, outside, raising]


@pytest.mark.parametrize("race", COMMITTED, ids=lambda race: str(race.__name__))
async def test_commit_when_returned_ends_the_barrier(
    w: World, race: Callable[[World], Coroutine[Any, Any, None]]
) -> None:
    """When COMMIT has returned, the barrier is down, and what was put is stored."""
    assert await w.one.read() == "old"
    await race(w)
    assert await w.truth() == "new"
    await w.fair()
    await w.quiet()


async def test_value_put_in_a_savepoint_when_rolled_back_is_not_stored(w: World) -> None:
    """A value that a joined session has put is not stored where its savepoint is rolled back after its commit."""
    async with w.two.database.engine.connect() as connection:
        outer = await connection.begin()
        await connection.execute(NEW.values(name="first"))
        savepoint = await connection.begin_nested()
        async with AsyncSession(connection) as db:
            await put(w, db)
            await db.commit()
        await savepoint.rollback()
        await outer.commit()
    await w.two.cache.aclose()
    assert not await w.client.exists("item:1")
    await w.fair()
    await w.quiet()


async def test_value_put_before_a_later_write_is_not_stored(w: World) -> None:
    """A value that a joined session has put, and a later write on the connection changes, is not stored."""
    async with w.two.database.engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection) as db:
            await put(w, db)
            await db.commit()
        await connection.execute(NEW.values(name="newer"))
        await outer.commit()
    await w.two.cache.aclose()
    assert not await w.client.exists("item:1")
    await w.fair()
    await w.quiet()


async def two_outer_transactions(w: World, other: Database) -> None:
    """Join a session to two connections: until both have committed, the barrier stays."""
    await other.create(Base)
    async with w.two.database.engine.connect() as first, other.engine.connect() as second:
        outer = [await first.begin(), await second.begin()]
        async with AsyncSession(binds={Item: first, Owner: second}) as db:
            await w.two.rename(db, w.two.client, 1, "new")
            await db.execute(select(Owner))
            await db.commit()
        await outer[1].commit()
        assert await members(w.client, "barriers")
        assert await w.one.read() == "old"
        assert not await w.client.exists("item:1")
        await carried(w, outer[0].commit())
    await w.fair()
    await w.quiet()


async def test_barrier_with_two_outer_transactions_stays_until_both_commit(
    postgresql: Database, sqlite: Database, client: Redis
) -> None:
    """The work is done when the last of them has."""
    async with world(postgresql, client) as w:
        await two_outer_transactions(w, sqlite)


async def test_commit_when_never_sent_stores_nothing(w: World) -> None:
    """Another listener raises after the invalidation began: the outcome is unknown, no value that was put is stored."""

    def refuse(connection: Connection) -> None:
        raise LookupError

    async with w.two.database.engine.connect() as connection:
        outer = await connection.begin()
        async with AsyncSession(connection) as db:
            await put(w, db)
            await db.commit()
        event.listen(w.database.engine.sync_engine, "commit", refuse)
        with pytest.raises(LookupError):
            await outer.commit()
        event.remove(w.database.engine.sync_engine, "commit", refuse)
        await outer.rollback()
    await w.two.cache.aclose()
    assert not await w.client.exists("item:1")
    await w.fair()


async def test_value_of_the_second_of_two_databases_is_stored_only_if_both_commit(
    w: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A session that is cancelled between two COMMITs stores nothing of what the second would have committed."""
    begin, first = listeners._begin_intents, list[bool]()

    def cancelled(connection: Connection, transaction: Transaction) -> None:
        if connection.engine is w.database.engine.sync_engine:
            raise asyncio.CancelledError
        first.append(True)
        begin(connection, transaction)

    async with databases.opened(f"sqlite+aiosqlite:///{tmp_path / 'other.sqlite'}") as other:
        await other.create(Base)
        monkeypatch.setattr(listeners, "_begin_intents", cancelled)
        while not first:  # SQLAlchemy commits them in the order of a set
            async with AsyncSession(binds={Owner: other.engine, Item: w.database.engine}) as db:
                db.add(Owner(id=3, name="committed"))
                await db.flush()
                await put(w, db)
                with pytest.raises(asyncio.CancelledError):
                    await db.commit()
    monkeypatch.undo()
    assert await w.truth() == "old"
    await w.two.cache.aclose()
    await w.fair()
    await w.quiet()


# --- COMMIT on its way


@dataclass
class WriterConnection:
    """A writer's way to the database, on which something that commits can be held."""

    proxy: TcpProxy
    w: World
    stranded: asyncio.Queue[Way] = field(default_factory=asyncio.Queue)
    on_its_way: list[Way] = field(default_factory=list)
    once: bool = True

    def hold(self, name: str) -> None:
        """Hold what is sent after the next event of this name."""
        engine = self.w.two.database.engine.sync_engine

        def stop(*arguments: object) -> None:
            if self.once:
                self.once = False
                self.stranded.put_nowait(self.proxy.strand())

        event.listen(engine, name, stop)

    async def held(self) -> None:
        """Wait until it has been sent, and stands still on its way."""
        self.on_its_way.append(await self.stranded.get())
        await self.on_its_way[-1].held()

    async def delivered(self) -> None:
        """Release what was held, and wait until it has taken effect."""
        for each in self.on_its_way:
            each.release()
        async with asyncio.timeout(10):
            while await self.w.truth() != "new":
                await self.w.client.ping()


def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make SQLAlchemy give up on a connection that does not answer after a moment, and not after 2 s."""
    close = asyncpg.Connection.close

    async def close_soon(connection: Any, *, timeout: float | None = None) -> None:
        await close(connection, timeout=timeout and 0.05)

    monkeypatch.setattr(asyncpg.Connection, "close", close_soon)


@asynccontextmanager
async def writer_connection(
    place: Place, server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[WriterConnection]:
    """Provide a world at a place whose second process is connected through a proxy."""
    await server.clear()
    port = server.url.port
    assert port is not None
    impatient(monkeypatch)
    async with TcpProxy(port) as proxy, places.opened(place, server.url) as database, world(database, client) as w:
        url = server.url.set(port=proxy.port)
        options: dict[str, Any] = {"isolation_level": place.level}
        engine = create_async_engine(url, poolclass=NullPool, **options)
        w.two.database = Database(engine, async_sessionmaker(engine, expire_on_commit=False))
        made = WriterConnection(proxy, w)
        try:
            yield made
        finally:
            for each in made.on_its_way:
                each.release()
            await engine.dispose()


HELD_PLACES = [*(f"postgresql {level}" for level in ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"))]
HELD_PLACES += ["mariadb REPEATABLE READ"]


@pytest.fixture(params=HELD_PLACES)
async def held(
    request: pytest.FixtureRequest,
    postgresql_server: ServerDatabase,
    mariadb_server: ServerDatabase,
    client: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[WriterConnection]:
    """Provide a writer's connection to each kind of server."""
    place = BY_NAME[request.param]
    server = postgresql_server if place.server == "postgresql" else mariadb_server
    async with writer_connection(place, server, client, monkeypatch) as made:
        yield made


@pytest.fixture
async def statement_by_statement(
    mariadb_server: ServerDatabase, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[WriterConnection]:
    """Provide a writer's connection to MariaDB, where each statement is one packet and commits by itself."""
    async with writer_connection(BY_NAME["mariadb AUTOCOMMIT"], mariadb_server, client, monkeypatch) as made:
        yield made


async def uncertain(at: WriterConnection) -> None:
    """Check that nothing is stored until the barrier has lapsed, and that the late COMMIT does take effect."""
    w = at.w
    await w.two.cache.aclose()
    assert await w.one.read() == "old"
    await at.delivered()
    await w.fair()
    await w.lapse_barriers()
    await w.fair()
    assert await w.client.exists("item:1")


async def cancelled_on_its_way(at: WriterConnection, sent: str = "commit") -> None:
    """C2: a write is cancelled while its COMMIT is on the way, where it stays for a while."""
    assert await at.w.one.read() == "old"
    at.hold(sent)
    writer = spawn(at.w.two.write("new"))
    await at.held()
    writer.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writer
    await uncertain(at)


async def swallowed(at: WriterConnection) -> None:
    """Cancel a function that gives up waiting and returns as if nothing had happened: the same."""
    two = at.w.two

    async def commit() -> None:
        async with two.database.engine.begin() as connection:
            await connection.execute(NEW)

    @two.cache.invalidates("item:{item_id}")
    async def write(redis: object, item_id: int) -> None:
        task = spawn(commit())
        await at.held()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task

    assert await at.w.one.read() == "old"
    at.hold("commit")
    await write(two.client, 1)
    await uncertain(at)


async def test_commit_when_cancelled_on_its_way_leaves_nothing_stale(held: WriterConnection) -> None:
    """C2: readers go past the cache, and the late COMMIT leaves nothing stale."""
    await cancelled_on_its_way(held)


async def test_commit_when_cancellation_is_swallowed_leaves_nothing_stale(held: WriterConnection) -> None:
    """A function that swallows the cancellation and returns does not make the outcome known."""
    await swallowed(held)


async def test_autocommit_when_cancelled_leaves_nothing_stale(statement_by_statement: WriterConnection) -> None:
    """There is no COMMIT, and what is on its way is uncertain all the same."""
    await cancelled_on_its_way(statement_by_statement, "before_cursor_execute")


# --- SQLite, where a COMMIT can find the database locked


@asynccontextmanager
async def locking(sqlite: Database, client: Redis) -> AsyncIterator[World]:
    """Provide a world that waits for no lock, whose second process has one connection."""
    url, hurried = sqlite.engine.url, {"timeout": 0.05}
    async with databases.opened(url, connect_args=hurried) as first, world(first, client) as w:
        engine = create_async_engine(
            url, poolclass=AsyncAdaptedQueuePool, pool_size=1, max_overflow=0, connect_args=hurried
        )
        w.two.database = Database(engine, async_sessionmaker(engine, expire_on_commit=False))
        try:
            yield w
        finally:
            await engine.dispose()


async def locked_at_commit(w: World) -> None:
    """Lock the writer out at its COMMIT: the next writer on the connection does not commit for it."""
    assert await w.one.read() == "old"
    async with w.one.database.engine.connect() as reader:
        await reader.exec_driver_sql("BEGIN")
        await reader.execute(select(Item.id))
        with pytest.raises(DBAPIError, match="locked"):
            await w.two.write("never")
    await w.fair()
    await w.two.write("other", item_id=2)
    assert await w.truth() == "old"
    await w.fair()
    await w.quiet()


async def test_commit_when_the_database_is_locked_is_rolled_back(sqlite: Database, client: Redis) -> None:
    """SQLite keeps the transaction open, SQLAlchemy the connection: what failed is rolled back."""
    async with locking(sqlite, client) as w:
        await locked_at_commit(w)


# --- with one mechanism less


async def test_barrier_when_commit_is_not_watched_stays(
    postgresql: Database, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The return of COMMIT is not noticed: the barrier stays although all is well."""
    without("commit-watched").apply(monkeypatch.setattr)
    async with world(postgresql, client) as w:
        with pytest.raises(AssertionError):
            await test_commit_when_returned_ends_the_barrier(w, joined)


@pytest.mark.parametrize("race", [cancelled_on_its_way, swallowed], ids=lambda race: str(race.__name__))
async def test_race_is_lost_when_unknown_counts_as_refused(
    postgresql_server: ServerDatabase,
    client: Redis,
    monkeypatch: pytest.MonkeyPatch,
    race: Callable[[WriterConnection], Coroutine[Any, Any, None]],
) -> None:
    """The barrier is taken down while COMMIT is on its way."""
    without("outcome-known", lambda state: False).apply(monkeypatch.setattr)
    without("unknown-outcome", lambda intent: finish([intent], committed=False)).apply(monkeypatch.setattr)
    async with writer_connection(BY_NAME["postgresql READ COMMITTED"], postgresql_server, client, monkeypatch) as at:
        with pytest.raises(AssertionError):
            await race(at)


async def test_race_is_lost_when_a_failed_transaction_stays_open(
    sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A transaction that found the database locked is still there for the next COMMIT."""
    without("cancelled-is-undone").apply(monkeypatch.setattr)
    async with locking(sqlite, client) as w:
        with pytest.raises((AssertionError, DBAPIError)):
            await locked_at_commit(w)


async def test_race_is_lost_when_the_first_of_two_commits_ends_the_barrier(
    postgresql: Database, sqlite: Database, client: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The barrier is taken down when one of two transactions has committed."""

    def take_all(transaction: Transaction) -> list[Intent]:
        taken, transaction.intents = transaction.intents, []
        return taken

    without("intents-of-two-transactions", take_all).apply(monkeypatch.setattr)
    async with world(postgresql, client) as w:
        with pytest.raises(AssertionError):
            await two_outer_transactions(w, sqlite)


@pytest.mark.parametrize(
    "race",
    [test_value_put_in_a_savepoint_when_rolled_back_is_not_stored, test_value_put_before_a_later_write_is_not_stored],
)
async def test_race_is_lost_when_undone_puts_are_stored(
    postgresql: Database, client: Redis, monkeypatch: pytest.MonkeyPatch, race: Callable[[World], Any]
) -> None:
    """A value that a session has put is stored, whatever became of the session on the outer connection."""
    without("undone-puts-dropped").apply(monkeypatch.setattr)
    async with world(postgresql, client) as w:
        with pytest.raises(AssertionError):
            await race(w)
