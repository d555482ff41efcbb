"""The way to a real server: over one connection for all callers, whatever the client, and whichever caller gives up."""

from __future__ import annotations

import asyncio
import gc
import random
import secrets
from collections.abc import AsyncIterator, Callable
from typing import Any, Literal

import pytest
from redis import CredentialProvider
from redis._parsers import _AsyncRESP2Parser, _AsyncRESP3Parser
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis, UnixDomainSocketConnection
from redis.asyncio.connection import Connection as RedisConnection

from fastrdb import Cache
from fastrdb.errors import CacheUnavailableError
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Busy, Granted, Hit, Store
from fastrdb.testing import EmbeddedServer, TcpProxy
from fastrdb.transport import Breaker
from fastrdb.transport.connection import Connection
from fastrdb.transport.passthrough import Passthrough, is_plain
from fastrdb.transport.pipeline import Pipeline
from tests.races.mechanisms import label
from tests.support.network.lines import turns
from tests.support.programs.apps import App
from tests.support.waiting import until
from tests.support.world.stores import acquire, acquire_many, fill, fill_many
from tests.support.world.world import PATIENT, spawn


@pytest.fixture
async def store() -> Store:
    """Yield a store with a deadline that a busy machine keeps."""
    return Store(timeout=PATIENT)


@pytest.fixture
def exchanges(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Yield the names of what was sent together, a list for each round trip of any wire."""
    made: list[list[str]] = []
    exchange = Connection.exchange

    async def counted(line: Connection, commands: Any, *budget: Any) -> Any:
        made.append([str(command[0]) for command in commands])
        return await exchange(line, commands, *budget)

    monkeypatch.setattr(Connection, "exchange", counted)
    return made


def closed(store: Store, client: Redis) -> bool:
    """Return True if the connection of the client's pipeline is closed."""
    return route(store, client).connection._wire is None


def route(store: Store, client: Redis) -> Any:
    """Return the route of the client's commands."""
    return store._link._find(client)


async def put_entries(client: Redis, store: Store, keys: list[str]) -> None:
    """Put under each key its own name."""
    assert set((await acquire_many(store, client, dict.fromkeys(keys, "t"))).values()) == {Granted()}
    assert await fill_many(store, client, [(key, "t", key.encode(), 60_000) for key in keys]) == [True] * len(keys)


# --- many callers


async def test_five_thousand_callers(client: Redis, store: Store, exchanges: list[list[str]]) -> None:
    """On a client as most have it: all are answered, in a few round trips over one connection."""
    keys = [f"k:{n}" for n in range(5000)]
    await put_entries(client, store, keys)
    exchanges.clear()
    assert await asyncio.gather(*(store.get(client, key) for key in keys)) == [key.encode() for key in keys]
    assert len(exchanges) <= 6
    assert len(await client.client_list()) <= 2  # the client's own, which asks this, and one


async def test_misses_travel_together(client: Redis, exchanges: list[list[str]]) -> None:
    """A thousand at once: reads, leases and fills are a few round trips each, not one for each key."""
    async with Cache(client, timeout=PATIENT) as cache:

        @cache.cached("n:{number}")
        async def load(number: int) -> int:
            return number

        await load(-1)
        exchanges.clear()
        assert await asyncio.gather(*(load(number) for number in range(1000))) == list(range(1000))
        assert load.stats.fills == 1001
        assert sum(map(len, exchanges)) >= 2000
        assert len(exchanges) <= 20


async def test_a_hit_is_one_round_trip(client: Redis, exchanges: list[list[str]], store: Store) -> None:
    """A GET, and nothing else; also the first on a connection, which is greeted with it."""
    await store.get(client, "k")
    await store.get(client, "k")
    await store._link.aclose()
    await store.get(client, "k")
    assert exchanges == [["GET"]] * 3


# --- every kind of client


class Own(Redis):
    """A client with something of its own in it."""

    seen: list[str]

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        self.seen.append(str(args[0]))
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


def own(server: EmbeddedServer) -> Redis:
    """Yield a client that records what it is asked."""
    made = Own(port=server.port)
    made.seen = []
    return made


def python_parser(protocol: int) -> Callable[[EmbeddedServer], Redis]:
    """Yield a client without hiredis."""

    def made(server: EmbeddedServer) -> Redis:
        parser = _AsyncRESP2Parser if protocol == 2 else _AsyncRESP3Parser
        return Redis.from_pool(ConnectionPool(port=server.port, protocol=protocol, parser_class=parser))

    made.__name__ = f"resp{protocol} in python"
    return made


def small(server: EmbeddedServer) -> Redis:
    """Yield a client with one connection."""
    return Redis.from_pool(ConnectionPool(port=server.port, max_connections=1))


def small_blocking(server: EmbeddedServer) -> Redis:
    """Yield a client with two connections, which waits for one."""
    return Redis.from_pool(BlockingConnectionPool(port=server.port, max_connections=2))


def blocking(server: EmbeddedServer) -> Redis:
    """Yield a client that waits for a connection."""
    return Redis.from_pool(BlockingConnectionPool(port=server.port))


def single(server: EmbeddedServer) -> Redis:
    """Yield a client that has one connection for itself."""
    return Redis(port=server.port, single_connection_client=True)


def decoding(server: EmbeddedServer) -> Redis:
    """Yield a client that decodes, checks health, and has a timeout."""
    return Redis(port=server.port, decode_responses=True, health_check_interval=1, socket_timeout=5)


def unix(server: EmbeddedServer) -> Redis:
    """Yield a client of a Unix socket."""
    return Redis.from_pool(ConnectionPool(UnixDomainSocketConnection, path=f"/tmp/fastrdb-{server.port}.sock"))


KINDS = [own, python_parser(2), python_parser(3), small, small_blocking, blocking, single, decoding, unix]
ITSELF = {own}


@pytest.fixture(params=KINDS, ids=label)
async def kind(request: pytest.FixtureRequest, server: EmbeddedServer) -> AsyncIterator[tuple[Any, Redis]]:
    """Yield each kind of client in turn, and what made it."""
    make = request.param
    if make is unix:
        path = f"/tmp/fastrdb-{server.port}.sock"
        relay = await asyncio.start_unix_server(_relay(server.port), path)
        async with relay, make(server) as made:
            await made.flushall()
            yield make, made
            await made.aclose()
            relay.close()
        return
    async with make(server) as made:
        await made.flushall()
        yield make, made


def _relay(port: int) -> Any:
    """Carry what comes by a Unix socket to the server."""

    async def carry(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
        sink.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        above, below = await asyncio.open_connection("127.0.0.1", port)
        await asyncio.gather(carry(reader, below), carry(above, writer), return_exceptions=True)

    return serve


async def test_every_client(kind: tuple[Any, Redis], store: Store) -> None:
    """A hundred callers of everything at once: each is answered with its own."""
    make, client = kind
    assert isinstance(route(store, client), Passthrough if make in ITSELF else Pipeline)
    keys = [f"k:{n}" for n in range(100)]
    await put_entries(client, store, keys)
    assert await asyncio.gather(*(store.get(client, key) for key in keys)) == [key.encode() for key in keys]
    found = await asyncio.gather(*(acquire(store, client, key, "t") for key in keys[:10]))
    assert found == [Hit(key.encode()) for key in keys[:10]]
    assert await store.get_many(client, ["none", *keys]) == [None, *(key.encode() for key in keys)]
    assert await acquire(store, client, "new", "me") == Granted()
    assert await acquire(store, client, "new", "other") == Busy("me")
    assert await store.invalidate(client, [Prefix("k:")]) == 100
    await store.aclose()
    assert make in ITSELF or closed(store, client)


async def test_a_client_of_ones_own_sees_every_command(server: EmbeddedServer, client: Redis, store: Store) -> None:
    """Whatever it does with them: count them, trace them, refuse them. Behind each read the server is judged."""
    async with own(server) as mine:
        assert isinstance(mine, Own)
        await store.get(mine, "k")
        mine.seen.clear()
        await store.get(mine, "k")
        assert mine.seen == ["GET", "EVALSHA"]
        mine.seen.clear()
        await acquire(store, mine, "k", "t")
        assert mine.seen == ["EVALSHA"]


class Wrapper:
    """Wrapper that an instrumentation puts in the place of a function."""

    def __init__(self, wrapped: Any) -> None:
        self.__wrapped__ = wrapped

    def __get__(self, instance: Any, owner: Any) -> Any:
        return self.__wrapped__.__get__(instance, owner)


def test_which_clients_are_asked_themselves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Those with something of their own: in the class, on the instance, in the pool. Not instrumented ones."""

    class Silent(Redis):
        """Nothing of its own that would have to see commands."""

    class OwnPool(ConnectionPool):
        """Makes connections as it likes."""

    class Memory(RedisConnection):
        """Connects to no socket, as fakeredis does."""

        async def _connect(self) -> None:
            pass

    assert is_plain(Redis())
    assert is_plain(Redis.from_pool(ConnectionPool(connection_class=UnixDomainSocketConnection, path="redis.sock")))
    assert not is_plain(Redis.from_pool(ConnectionPool(connection_class=Memory)))
    assert is_plain(Silent())
    assert not is_plain(Own())
    assert not is_plain(Redis.from_pool(OwnPool()))
    patched = Redis()
    vars(patched)["execute_command"] = own
    assert not is_plain(patched)
    traced = Redis()
    vars(traced)["execute_command"] = Wrapper(traced.execute_command)
    assert is_plain(traced)
    monkeypatch.setattr(Redis, "execute_command", Wrapper(Redis.execute_command))
    assert is_plain(Redis())
    assert not is_plain(Own())


async def test_a_small_pool_is_shared(server: EmbeddedServer, client: Redis, store: Store) -> None:
    """One connection for the cache and its owner: neither keeps the other from it."""
    async with Redis.from_pool(BlockingConnectionPool(port=server.port, max_connections=1, timeout=PATIENT)) as own:
        await put_entries(own, store, ["k"])

        async def read() -> None:
            for _ in range(100):
                assert await store.get(own, "k") == b"k"

        async def ping() -> None:
            for _ in range(100):
                assert await own.ping()

        await asyncio.gather(read(), read(), read(), ping())


# --- connections


async def test_the_users_pool_is_left_alone(client: Redis, store: Store) -> None:
    """The cache has a connection of its own: it takes none out, and closes none."""
    pool = client.connection_pool
    await client.ping()
    before = await client.client_id()
    async with asyncio.TaskGroup() as group:
        for number in range(50):
            group.create_task(acquire(store, client, f"k:{number}", "t"))
    assert pool.can_get_connection()
    await store.aclose()
    assert await client.client_id() == before


async def test_a_client_for_each_request(server: EmbeddedServer, client: Redis) -> None:
    """Each with a pool of its own, or over one that all share: nothing of it stays when it is gone."""
    async with Cache(timeout=PATIENT) as cache:

        @cache.cached("n:{number}")
        async def load(redis: Redis, number: int) -> int:
            return number

        shared = ConnectionPool(port=server.port)

        async def request(number: int, pool: ConnectionPool) -> None:
            async with Redis(port=server.port) as own:
                assert await load(own, number) == number
            async with Redis(connection_pool=pool) as other:
                assert await load(other, number) == number

        for number in range(20):
            await request(number, shared)
        assert load.stats.hits == 20
        assert len(cache.runtime.here().stores) == 1
        (store,) = cache.runtime.here().stores.values()
        await shared.disconnect()
        del shared

        async def nothing_is_left() -> bool:
            gc.collect()
            return len(store._link._routes) == 0 and len(await client.client_list()) == 1

        await until(nothing_is_left)


async def test_a_client_that_is_closed_while_it_is_used(server: EmbeddedServer, client: Redis, store: Store) -> None:
    """Waiting callers are answered; the connection is closed with the store."""
    await put_entries(client, store, ["k"])
    async with TcpProxy(server.port) as proxy, Redis(port=proxy.port) as own:
        assert await store.get(own, "k") == b"k"
        proxy.hold("down")
        asking = [spawn(get(store, own)) for _ in range(3)]
        await proxy.held("down")
        await own.aclose()
        proxy.release()
        assert await asyncio.gather(*asking) == [b"k"] * 3
        await store.aclose()
        assert closed(store, own)


async def get(store: Store, client: Redis, key: str = "k") -> bytes | None:
    """Get a value as a caller does."""
    return await store.get(client, key)


async def test_a_pool_that_is_gone(client: Redis, server: EmbeddedServer, store: Store) -> None:
    """The connection of a lost pool is closed; later callers get an error."""
    own = Redis(port=server.port)
    await store.get(own, "k")
    pipeline = route(store, own)
    del own
    gc.collect()
    await turns()
    assert len(store._link._routes) == 0
    assert pipeline.connection._wire is None
    with pytest.raises(CacheUnavailableError, match="the client is gone"):
        await pipeline.get(b"k")


async def test_a_store_that_is_dropped(client: Redis) -> None:
    """Its connection is closed though its client lives on."""
    store = Store(timeout=PATIENT)
    await store.get(client, "k")
    pipeline = route(store, client)
    del store
    gc.collect()
    await turns()
    assert pipeline.connection._wire is None


@pytest.mark.parametrize("callers", [1, 50])
async def test_killed_between_batches(client: Redis, store: Store, callers: int) -> None:
    """After CLIENT KILL between batches no caller gets an error."""
    await put_entries(client, store, ["k"])
    async with Redis.from_pool(ConnectionPool(**client.connection_pool.connection_kwargs)) as admin:
        for _ in range(5):
            await admin.client_kill_filter(skipme=True, _type="normal")
            found = await asyncio.gather(*(store.get(client, "k") for _ in range(callers)), return_exceptions=True)
            assert found == [b"k"] * callers
    assert not store.obstacles


async def test_killed_during_batches(client: Redis, server: EmbeddedServer, store: Store) -> None:
    """At any moment, again and again: commands in flight are sent once more, and no caller gets an error."""
    keys = [f"k:{n}" for n in range(20)]
    await put_entries(client, store, keys)
    answers, killed = 0, 0
    async with Redis(port=server.port) as admin:

        async def kill() -> None:
            nonlocal killed
            killed += await admin.client_kill_filter(skipme=True, _type="normal")

        async def read(key: str) -> None:
            nonlocal answers
            for _ in range(200):
                assert await store.get(client, key) == key.encode()
                answers += 1
                if answers % 199 == 0:  # beside the reads: wherever those are by then
                    spawn(kill())

        await asyncio.gather(*(read(key) for key in keys))
    assert answers == 4000
    assert killed > 10


async def test_a_black_hole_fails_all_who_wait(server: EmbeddedServer, client: Redis) -> None:
    """All waiting callers fail when the first one's time is over; later callers are answered on a new connection."""
    store = Store(timeout=0.1)
    await put_entries(client, Store(timeout=PATIENT), ["k"])
    async with TcpProxy(server.port) as proxy, Redis(port=proxy.port) as own:
        while await get_or_error(store, own) != b"k":  # the machine may be busy
            pass
        proxy.drop()
        found = await asyncio.gather(*(get_or_error(store, own) for _ in range(200)))
        assert {type(each) for each in found} == {CacheUnavailableError}
        assert store._link.breaker.failures == 1, "one timeout ends all of them"
        proxy.heal()
        before = proxy.connections

        async def answered() -> bool:
            return await get_or_error(store, own) == b"k"

        await until(answered)
        assert proxy.connections > before
        await store.aclose()


async def get_or_error(store: Store, client: Redis) -> bytes | Exception | None:
    """Return a caller's answer, or its error."""
    try:
        return await store.get(client, "k")
    except CacheUnavailableError as error:
        return error


# --- cancellation


async def operation(client: Redis, store: Store, chance: random.Random) -> None:  # six in one
    """Run one of all operations of a caller, with an answer that belongs to its question."""
    key, token = f"k:{chance.randrange(50)}", secrets.token_hex(16)
    other = f"k:{chance.randrange(50)}"
    match chance.randrange(6):
        case 0 | 1:
            assert await store.get(client, key) in (None, key.encode())
        case 2:
            found = await store.get_many(client, [key, other])
            assert all(raw in (None, name.encode()) for raw, name in zip(found, (key, other), strict=True))
        case 3:
            outcome = await acquire(store, client, key, token)
            if isinstance(outcome, Granted):
                assert await fill(store, client, key, token, key.encode(), 60_000) in (True, False)
            elif isinstance(outcome, Hit):
                assert outcome.raw == key.encode()
            else:
                assert isinstance(outcome, Busy)
                assert len(outcome.token) == 32
        case 4:
            assert await store.invalidate(client, keys=[key]) in (0, 1)
        case 5:
            assert (await store.inspect(client, key)).size in (0, len(key))


async def test_twenty_thousand_operations_cancelled_at_random(server: EmbeddedServer, client: Redis) -> None:
    """Each answer is to its own question, no lease is left but by time, and the pool has everything back."""
    chance, store = random.Random(7), Store(timeout=PATIENT, lease=2)
    outcomes: list[str] = []

    async def caller(client: Redis) -> None:
        for _ in range(400):
            task = asyncio.create_task(operation(client, store, chance))
            if (after := chance.choice((0, 1, 2, 4, 8, 30, None))) is not None:
                await turns(after)
                task.cancel()
            try:
                await task
                outcomes.append("done")
            except asyncio.CancelledError:
                outcomes.append("cancelled")

    async with Redis(port=server.port) as own:
        await asyncio.gather(*(caller(own) for _ in range(50)))
        assert len(outcomes) == 20_000
        assert outcomes.count("cancelled") > 2000
        assert outcomes.count("done") > 2000
        await store.aclose()
        assert closed(store, own)
    leases = [key async for key in client.scan_iter("fastrdb:lease:*")]
    assert all([0 < await client.pttl(key) <= 2000 for key in leases])


async def test_a_lease_is_given_back_by_who_was_cancelled(server: EmbeddedServer, client: Redis) -> None:
    """Its release follows on the same connection: when both are through, the lease is gone, every time."""
    async with TcpProxy(server.port) as proxy, Redis(port=proxy.port) as own:
        app = App(dict.fromkeys(range(20), "v"), own, timeout=PATIENT)
        await app.read()
        for number in range(1, 20):
            proxy.hold("up")
            reading = spawn(app.read(number))
            await proxy.held("up")  # the GET
            proxy.release()
            proxy.hold("down")
            await proxy.held("down")
            proxy.release()
            await turns(number)
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)
        await app.cache.aclose()
        assert [key async for key in client.scan_iter("fastrdb:lease:*")] == []


async def test_scripts_are_dropped_all_the_time(client: Redis, server: EmbeddedServer, store: Store) -> None:
    """After SCRIPT FLUSH an unknown script is sent along, and no caller gets an error."""
    over = False

    async def flush() -> int:
        count = 0
        async with Redis(port=server.port) as admin:
            while not over:
                await admin.script_flush()
                count += 1
        return count

    flushing = spawn(flush())
    for number in range(200):
        tokens = {f"k:{number}:{n}": "t" for n in range(5)}
        assert set((await acquire_many(store, client, tokens)).values()) == {Granted()}
        assert await fill_many(store, client, [(key, "t", b"1", 60_000) for key in tokens]) == [True] * 5
    over = True
    assert await flushing > 50


async def test_a_script_is_brought_along_once_in_a_batch(client: Redis, store: Store) -> None:
    """The others of the batch find it."""

    async def asked() -> int:
        found: Any = await client.info("commandstats")
        return int(found.get("cmdstat_eval", {"calls": 0})["calls"])

    await acquire(store, client, "k", "t")  # greeted
    await client.script_flush()
    before = await asked()
    tokens = {f"k:{number}": "t" for number in range(100)}
    assert set((await acquire_many(store, client, tokens)).values()) == {Granted()}
    assert await asked() - before <= 2  # one may be the greeting, which is due once a second


async def test_a_password_that_was_changed(server: EmbeddedServer, client: Redis, store: Store) -> None:
    """Each connection is made by what the client's settings are by then: a credential provider is asked anew."""
    await client.acl_setuser("rotated", enabled=True, passwords=["+first"], keys=["*"], categories=["+@all"])
    passwords = ["first"]

    class Provider(CredentialProvider):
        """Source of the password of the moment."""

        def get_credentials(self) -> tuple[str, str]:
            return "rotated", passwords[-1]

    async with Redis(port=server.port, credential_provider=Provider()) as own:
        await put_entries(own, store, ["k"])
        passwords.append("second")
        await client.acl_setuser("rotated", enabled=True, reset_passwords=True, passwords=["+second"])
        await client.client_kill_filter(user="rotated")
        assert await store.get(own, "k") == b"k"
        await store.aclose()
    await client.acl_deluser("rotated")


@pytest.mark.parametrize("on_error", ["raise", "bypass"])
async def test_a_writer_that_must_be_heard_tries_a_server_that_has_not_answered_lately(
    client: Redis, on_error: Literal["raise", "bypass"]
) -> None:
    """The server may be back. Readers leave it alone, and so do writers that may: their commit is pending."""
    store = Store(timeout=PATIENT, on_error=on_error)
    await acquire(store, client, "user:1", "t")
    assert await fill(store, client, "user:1", "t", b"old", 60_000)
    breaker: Breaker = store._link.breaker
    breaker._clock = lambda: 0.0  # it is never time to try again
    while not breaker.opened:
        breaker.on_error("PING", ConnectionError("gone"))
    assert store.bypass_reason(client)
    with pytest.raises(CacheUnavailableError, match="has not answered lately"):
        await store.get(client, "user:1")
    intent = store.intent(client)
    intent.add([Prefix("user:")])
    await intent.begin()
    assert store.has_pending is (on_error == "bypass")
    if on_error == "raise":
        assert await client.get("user:1") is None
    await intent.end(committed=True)
    assert store.has_pending or not store.bypass_reason(client), "its answers are answers"
    await store.aclose()
