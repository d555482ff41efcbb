"""Synchronous sessions and other threads: their commits cannot wait for Redis, and are followed all the same."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import Connection, Engine, create_engine, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import Session

from fastrdb import Cache
from fastrdb.testing.server import EmbeddedServer
from fastrdb.transactions.state import Transaction, transaction_of
from tests.support.world.world import PATIENT, Base, Item, Owner, World


@pytest.fixture
def engine(w: World) -> Iterator[Engine]:
    """Yield a synchronous engine on the same database."""
    made = create_engine(w.database.engine.url.set(drivername="sqlite"))
    yield made
    made.dispose()


def change(engine: Engine, name: str) -> None:
    """Write in a synchronous session, and commit."""
    with Session(engine) as db:
        db.execute(update(Item).values(name=name))
        db.commit()


async def in_this_thread(engine: Engine, name: str) -> None:
    """Run in this thread; nothing else runs meanwhile."""
    change(engine, name)


async def in_a_thread(engine: Engine, name: str) -> None:
    """Run in a thread, which has no event loop."""
    await asyncio.to_thread(change, engine, name)


async def in_a_loop_of_its_own(engine: Engine, name: str) -> None:
    """Run an asynchronous session, in a thread with another event loop."""

    async def run() -> None:
        own = create_async_engine(engine.url.set(drivername="sqlite+aiosqlite"))
        async with AsyncSession(own) as db:
            await db.execute(update(Item).values(name=name))
            await db.commit()
        await own.dispose()

    await asyncio.to_thread(lambda: asyncio.run(run()))


@pytest.mark.parametrize("write", [in_this_thread, in_a_thread, in_a_loop_of_its_own])
async def test_a_write_that_is_acknowledged(
    w: World, engine: Engine, write: Callable[[Engine, str], Awaitable[None]]
) -> None:
    """When the function has returned, the other processes read what it has written, and nothing is pending."""

    @w.one.cache.invalidates("item:*")
    async def rename(redis: Any, name: str) -> None:
        await write(engine, name)

    for number in range(5):
        await w.two.read()
        await rename(w.one.client, f"new {number}")
        assert await w.two.read() == f"new {number}"
    assert w.one.cache.stats().owed == 0
    await w.quiet()


async def test_a_commit_in_a_thread_after_the_call(w: World, engine: Engine) -> None:
    """The commit reaches the event loop of the cache by itself: no call has to come first."""
    with Session(engine) as db:

        @w.one.cache.invalidates("item:*")
        async def rename(redis: Any, name: str) -> None:
            db.execute(update(Item).values(name=name))

        await rename(w.one.client, "new")
        assert await w.two.read() == "old"
        gate = w.one.client.after("end")
        await asyncio.to_thread(db.commit)
        await asyncio.wait_for(gate.reached(), PATIENT)
        assert await w.two.read() == "new"
        gate.open()
    await w.quiet()


def test_the_end_of_an_event_loop_waits_for_a_commit_before_it(server: EmbeddedServer, tmp_path: Path) -> None:
    """A script ends right behind the commit of a synchronous session, which cannot wait for Redis itself."""
    engine = create_engine(f"sqlite:///{tmp_path / 'script.db'}")
    Base.metadata.create_all(engine)

    def cached() -> Any:
        cache = Cache(Redis(port=server.port), namespace="script", auto=True)

        @cache.cached("item")
        async def item() -> str:
            with Session(engine) as db:
                return db.scalars(select(Item.name)).one()

        return item

    async def read() -> str:
        return str(await cached()())

    async def write() -> None:
        kept = cached()
        with Session(engine) as db:
            db.execute(update(Item).values(name="new"))
            db.commit()  # and the loop ends: no await is left
        assert kept is not None

    with Session(engine) as db:
        db.add(Item(id=1, name="old", owner=Owner(id=1, name="ann")))
        db.commit()
    assert asyncio.run(read()) == "old"
    asyncio.run(write())
    assert asyncio.run(read()) == "new"
    engine.dispose()


def test_transactions_of_other_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A transaction that a thread begins while another thread ends its own is in no thread's way."""
    engine = create_engine(f"sqlite:///{tmp_path / 'threads.sqlite'}")
    settled: Any = Transaction.settled
    begun: list[Connection] = []

    def begin() -> None:
        begun.append(engine.connect())
        begun[-1].execute(text("SELECT 1"))

    def slowly(transaction: Transaction) -> bool:
        if not begun:
            (thread := Thread(target=begin)).start()
            thread.join()
        return bool(settled.fget(transaction))

    with engine.connect() as one, engine.connect() as two:
        for connection in (one, two):
            connection.execute(text("SELECT 1"))
        work: Any = object()
        found = transaction_of(one)
        assert found is not None
        found.intents.append(work)
        monkeypatch.setattr(Transaction, "settled", property(slowly))
        assert found.take_intents() == [work]
        monkeypatch.undo()
    begun[0].close()
    engine.dispose()
