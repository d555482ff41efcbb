"""The log of failures: each failure is there, and never a value or a key."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from redis._parsers import _AsyncRESP2Parser
from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fastrdb import Cache, CacheUnavailableError, runtime
from fastrdb.testing import TcpProxy
from fastrdb.testing.server import EmbeddedServer
from tests.support.servers.databases import Database
from tests.support.world.walkthrough import EMAIL, NAME, PRIVATE, Base, Person, Whole

Broken = Callable[[], AbstractAsyncContextManager[int]]


@pytest.fixture(scope="module", autouse=True)
def _no_server_comes_back() -> Iterator[None]:
    """End an event loop at once, though a server lacks something still."""
    with pytest.MonkeyPatch.context() as patch:  # of the module: loops end after the fixtures of the test
        patch.setattr(runtime, "_LOOP_END_S", 0.0)
        yield


@asynccontextmanager
async def dead() -> AsyncIterator[int]:
    """Yield a port without a server."""
    async with TcpProxy(1) as proxy:
        await proxy.refuse()
        yield proxy.port


@asynccontextmanager
async def mute() -> AsyncIterator[int]:
    """Yield a server that never answers."""
    with EmbeddedServer() as server:
        async with TcpProxy(server.port) as proxy:
            proxy.drop()
            yield proxy.port


def refusing(*arguments: str) -> Broken:
    """Yield a server that refuses commands."""

    @asynccontextmanager
    async def server() -> AsyncIterator[int]:
        with EmbeddedServer(args=arguments) as started:
            yield started.port

    return server


@asynccontextmanager
async def wrong_type() -> AsyncIterator[int]:
    """Put something else where entries and index should be."""
    with EmbeddedServer() as server:
        async with Redis(port=server.port) as admin:
            for key in (f"known:{EMAIL}", "fastrdb:index", "fastrdb:barriers"):
                await admin.hset(key, "field", "value")
        yield server.port


@asynccontextmanager
async def babbling() -> AsyncIterator[int]:
    """Yield a server that does not speak the protocol of Redis: its answers may be values."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                known = b"CLIENT" in data or b"HELLO" in data
                writer.write(b"+OK\r\n" * data.count(b"CLIENT") if known else f"{EMAIL}\r\n".encode())
                await writer.drain()
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        yield server.sockets[0].getsockname()[1]


BROKEN: dict[str, Broken] = {
    "dead": dead,
    "mute": mute,
    "without GET": refusing("--rename-command", "GET", ""),
    "without EVALSHA": refusing("--rename-command", "EVALSHA", ""),
    "without scripts": refusing("--rename-command", "EVALSHA", "", "--rename-command", "EVAL", ""),
    "without ZADD": refusing("--rename-command", "ZADD", ""),
    "full": refusing("--maxmemory", "1"),
    "denied": refusing("--user", "default", "on", "nopass", "~other:*", "+@all"),
    "with a password": refusing("--requirepass", "secret"),
    "wrong type": wrong_type,
    "babbling": babbling,
}


def told(caplog: pytest.LogCaptureFixture) -> str:
    """Return all that was logged above DEBUG, tracebacks too, as a file would have it."""
    formatter = logging.Formatter("%(levelname)s %(name)s %(message)s")
    return "\n".join(formatter.format(record) for record in caplog.records if record.levelno > logging.DEBUG)


def client_of(port: int) -> Redis:
    """Return a client that does not try again by itself, with the parser that quotes what it cannot read."""
    options: dict[str, Any] = {"port": port, "protocol": 2, "retry": Retry(NoBackoff(), 0)}
    return Redis.from_pool(ConnectionPool(parser_class=_AsyncRESP2Parser, **options))


async def use(whole: Whole, on_error: str) -> None:
    """Read, write, and write in a session that the cache meets late."""
    failing = contextlib.suppress(CacheUnavailableError) if on_error == "raise" else contextlib.nullcontext()
    for attempt in range(4):
        assert (await whole.read()).email == EMAIL
        with failing:
            async with whole.session() as db:
                await whole.rename(db, whole.client, EMAIL, f"{NAME}-{attempt}")
                await db.commit()
        with failing:
            async with whole.session() as db, db.begin():  # nothing is written, so no COMMIT reaches the cache before
                await whole.known.invalidate(db=db, redis=whole.client, email=EMAIL)
        with failing:
            await whole.cache.invalidate("known:*", keys=[f"person:email:{EMAIL}"], redis=whole.client)
        with failing:
            async with whole.session() as db:
                await whole.crud.update(db=db, redis=whole.client, obj_in={"name": NAME}, email=EMAIL)
        async with whole.session() as db:
            await whole.crud.get_many(db=db, redis=whole.client, email=[EMAIL, "nobody@private.example"])


@pytest.mark.parametrize("on_error", ["bypass", "raise"])
@pytest.mark.parametrize("broken", BROKEN.values(), ids=BROKEN)
async def test_no_failure_puts_a_key_or_a_value_into_the_log(
    sqlite: Database, caplog: pytest.LogCaptureFixture, broken: Broken, on_error: Any
) -> None:
    """Whatever is wrong with Redis, every read is answered, and no log line has a key or a value."""
    caplog.set_level(logging.DEBUG)
    caplog.set_level(logging.INFO, "aiosqlite")
    await sqlite.create(Base)
    async with sqlite.sessions() as db:
        db.add(Person(email=EMAIL, name=NAME))
        await db.commit()
    async with broken() as port, client_of(port) as client:
        cache = Cache(timeout=0.05, on_error=on_error)
        await use(Whole(sqlite, client, client, cache), on_error)
        await cache.aclose(limit=0.1)
    log = told(caplog)
    assert " fastrdb " in log
    assert not [word for word in PRIVATE if word in log]


async def test_an_unknown_outcome_is_logged_without_what_it_was(
    sqlite: Database, client: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The barrier is left to lapse; the log does not say over what."""
    await sqlite.create(Base)

    def cancelled(connection: object) -> None:
        raise asyncio.CancelledError

    async with Cache(client) as cache:
        whole = Whole(sqlite, client, client, cache)
        async with sqlite.sessions() as db:
            await whole.rename(db, client, EMAIL, NAME)
            monkeypatch.setattr(sqlite.engine.sync_engine.dialect, "do_commit", cancelled)
            with pytest.raises(asyncio.CancelledError):
                await db.commit()
    assert "the outcome of a COMMIT is unknown" in told(caplog)
    assert "private" not in told(caplog)


async def test_errors_that_callers_get_quote_nothing(sqlite: Database) -> None:
    """With on_error="raise" the error, and what caused it, name the operation and the reason, and no argument."""
    async with refusing("--rename-command", "EVALSHA", "")() as port, client_of(port) as client:
        cache = Cache(client, on_error="raise")
        with pytest.raises(CacheUnavailableError) as caught:
            await cache.invalidate(keys=[f"known:{EMAIL}"])
        await cache.aclose()
    chain: list[BaseException | None] = [caught.value]
    while chain[-1] is not None:
        chain.append(chain[-1].__cause__ or chain[-1].__context__)
    assert len(chain) > 2
    assert not [error for error in chain if "private" in str(error) or "args" in str(error)]
    assert "unknown command" in str(caught.value)
