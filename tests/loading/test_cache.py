"""`Cache`: settings, one store for each server, invalidation by hand, the end of its background work."""

from __future__ import annotations

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fastrdb import Cache, CacheUnavailableError, Event, OptionError, PatternError, Stats, cached
from fastrdb.testing import GatedClient
from fastrdb.testing.server import EmbeddedServer
from tests.support.world.items import Item, Loader


def decorated(cache: Cache, loader: Loader) -> Any:
    """Return a cached function of this cache."""

    @cache.cached("item:{number}")
    async def load(number: int) -> Item:
        return loader.item(number)

    return load


@pytest.fixture
async def dead(unused_tcp_port: int) -> AsyncIterator[Redis]:
    """Return a client of a closed port."""
    async with Redis(port=unused_tcp_port, retry=None) as made:  # type: ignore[arg-type]
        yield made


# --- invalidate


async def test_invalidate_deletes_what_a_prefix_reaches(client: Redis) -> None:
    """With or without the final `*`, several at once, and exact keys."""
    cache = Cache(client)
    load = decorated(cache, Loader())
    for number in (1, 2, 10, 11):
        await load(number)
    await cache.invalidate("item:1")
    assert await client.keys("item:*") == [b"item:2"]
    await load(1)
    await load(3)
    await cache.invalidate(["item:1*", "nothing:*"], keys=["item:3"])
    assert await client.keys("item:*") == [b"item:2"]
    await cache.invalidate("*")
    assert await client.keys("item:*") == []


async def test_braces_of_a_prefix_are_written_twice_as_in_a_pattern(client: Redis) -> None:
    """A prefix with a hash tag reaches the keys of the pattern with that tag."""
    cache = Cache(client)

    @cache.cached("{{tag}}:{number}")
    async def load(number: int) -> int:
        return number

    await load(1)
    await cache.invalidate("{{tag}}:*")
    assert await client.keys("{tag}:*") == []


async def test_globs_inside_a_prefix_filter(client: Redis) -> None:
    """`?` is one character."""
    cache = Cache(client)
    load = decorated(cache, Loader())
    for number in (1, 21, 31, 32):
        await load(number)
    await cache.invalidate("item:?1")
    assert sorted(await client.keys("item:*")) == [b"item:1", b"item:32"]


@pytest.mark.parametrize("prefix", ["", [], ()])
async def test_an_empty_prefix_reaches_nothing(client: Redis, prefix: Any) -> None:
    """Only a bare `*` means everything."""
    cache = Cache(client)
    await decorated(cache, Loader())(1)
    await cache.invalidate(prefix)
    assert await client.exists("item:1")


async def test_invalidate_takes_no_placeholders(client: Redis) -> None:
    """Nothing here could fill them."""
    with pytest.raises(PatternError, match=r"Cache\.invalidate: prefix 'user:\{id\}' has placeholders"):
        await Cache(client).invalidate("user:{id}")


async def test_invalidate_takes_another_redis(client: Redis) -> None:
    """The call's own comes first; with neither it is an error."""
    cache = Cache()
    await client.set("item:1", "1")
    await client.zadd("fastrdb:index", {"item:1": 0})
    await cache.invalidate("item:*", redis=client)
    assert not await client.exists("item:1")
    with pytest.raises(OptionError, match=r"Cache\.invalidate: no Redis"):
        await cache.invalidate("item:*")


async def test_keys_by_hand_are_those_of_key(client: Redis) -> None:
    """A key that `.key()` returns without a namespace can be invalidated as an exact key."""
    cache = Cache(client)
    load = decorated(cache, Loader())
    await load(1)
    await cache.invalidate(keys=[load.key(1)])
    assert not await client.exists("item:1")


async def test_invalidate_goes_on_if_its_caller_is_cancelled(client: Redis, gated: GatedClient) -> None:
    """The old value must not stay readable after a caller is cancelled."""
    cache = Cache(client)
    await decorated(cache, Loader())(1)
    gate = gated.gates.before("begin")
    call = asyncio.create_task(cache.invalidate("item:*", redis=gated))
    await gate.reached()
    call.cancel()
    with pytest.raises(asyncio.CancelledError):
        await call
    gate.open()
    await cache.aclose()
    assert not await client.exists("item:1")


async def test_invalidate_without_redis_is_owed(dead: Redis) -> None:
    """With "bypass" it is repeated in the background, and until then this process reads past the cache."""
    cache = Cache(dead, timeout=0.05)
    load = decorated(cache, Loader())
    await cache.invalidate("item:*")
    await load(1)
    assert load.stats == Stats(loads=1, bypasses=1)
    assert "being repaired" in (await load.explain(1)).reasons[0]
    await cache.aclose(0)


async def test_invalidate_without_redis_raises_with_on_error_raise(dead: Redis) -> None:
    """With "raise" the caller gets an error that names the operation."""
    cache = Cache(dead, timeout=0.05, on_error="raise")
    with pytest.raises(CacheUnavailableError) as caught:
        await cache.invalidate("item:*")
    assert caught.value.operation == "begin"
    assert str(caught.value.reason)


# --- stores


async def test_a_client_for_each_request_finds_what_others_know(server: EmbeddedServer, client: Redis) -> None:
    """Stores belong to servers, not to client objects; another database is another server."""
    cache = Cache()
    async with Redis(port=server.port, host="127.0.0.1") as again, Redis(port=server.port, db=1) as other:
        assert cache.runtime.store(client) is cache.runtime.store(again)
        assert cache.runtime.store(client) is not cache.runtime.store(other)


def fake(**attributes: Any) -> Any:
    """Return an object that looks like a client, with a pool of its own."""

    class Fake:
        async def execute_command(self, *command: Any) -> None:
            raise LookupError(command)

    made = Fake()
    if attributes:
        made.connection_pool = type("Pool", (), attributes)()  # type: ignore[attr-defined]
    return made


async def test_servers_differ_by_their_address() -> None:
    """A Sentinel service, a Unix socket, host and port; a client without a pool is its own server."""
    cache = Cache()
    makes: list[Any] = [
        lambda: fake(connection_kwargs={}, service_name="main"),
        lambda: fake(connection_kwargs={}, service_name="other"),
        lambda: fake(connection_kwargs={"path": "/tmp/redis.sock"}),
        lambda: fake(connection_kwargs={"host": "a", "port": 1}),
        lambda: fake(connection_kwargs={"host": "a", "port": 2}),
        lambda: fake(connection_kwargs={"host": "a", "port": 2, "db": 1}),
    ]
    stores = [cache.runtime.store(make()) for make in makes]
    assert len({id(store) for store in stores}) == len(makes)
    assert [cache.runtime.store(make()) for make in makes] == stores
    lone, other = fake(), fake()
    assert cache.runtime.store(lone) is cache.runtime.store(lone)
    assert cache.runtime.store(lone) is not cache.runtime.store(other)


async def test_what_is_no_client_is_refused_when_first_used() -> None:
    """The error names the option, before a command is sent."""

    @cached("item:{number}")
    async def load(redis: Any, number: int) -> int:
        return number

    with pytest.raises(OptionError, match=r"must be a client of redis\.asyncio"):
        await load("redis://localhost", 1)


def test_each_event_loop_has_its_own_state(server: EmbeddedServer) -> None:
    """One cache serves several loops, one after the other and at once; the entries are shared."""
    loader, cache = Loader(), Cache()

    @cache.cached("loops:{number}")
    async def load(redis: Redis, number: int) -> Item:
        return loader.item(number)

    async def main() -> Item:
        async with Redis(host="127.0.0.1", port=server.port) as client:
            return await load(client, 1)

    async def clean() -> None:
        async with Redis(host="127.0.0.1", port=server.port) as client:
            await client.flushall()

    asyncio.run(clean())
    values = [asyncio.run(main()) for _ in range(3)]
    assert values[0] == values[1] == values[2]
    assert loader.calls == 1


async def test_a_client_is_not_kept_alive(server: EmbeddedServer) -> None:
    """A cache that has served a client of one request lets go of it."""
    cache, loader = Cache(), Loader()

    @cache.cached("item:{number}")
    async def load(redis: Redis, number: int) -> Item:
        return loader.item(number)

    client = Redis(host="127.0.0.1", port=server.port)
    await load(client, 1)
    await cache.aclose()
    await client.aclose()
    gone = weakref.ref(client.connection_pool)
    del client
    gc.collect()
    assert gone() is None


# --- the end


async def test_closing_waits_for_what_runs_in_the_background(client: Redis, gated: GatedClient) -> None:
    """A release of a lease, say, is done when `async with` ends; the client stays open."""
    loader = Loader()
    async with Cache(client) as cache:

        @cache.cached("item:{number}")
        async def load(redis: Any, number: int) -> Item:
            loader.calls += 1
            raise ValueError(number)

        with pytest.raises(ValueError, match="1"):
            await load(gated, 1)
    assert await client.keys("fastrdb:lease:*") == []
    assert await client.ping()


async def test_closing_waits_no_longer_than_its_limit(gated: GatedClient, client: Redis) -> None:
    """Work that hangs is left behind after `limit` seconds."""
    cache = Cache(client)
    gate = gated.gates.before("begin")
    call = asyncio.create_task(cache.invalidate("item:*", redis=gated))
    await gate.reached()
    await cache.aclose(0)
    assert not call.done()
    gate.open()
    await call


async def test_closing_an_unused_cache_is_fine() -> None:
    """There is nothing to wait for."""
    async with Cache() as cache:
        assert cache.stats() == Stats()


async def test_outages_are_counted_and_logged() -> None:
    """The outage is counted, and logged once; the functions go on."""
    heard: list[Event] = []
    async with Redis(port=1, retry=Retry(NoBackoff(), 0)) as client, Cache(client, hook=heard.append) as cache:

        @cache.cached("n:{number}")
        async def load(number: int) -> int:
            return number

        for number in range(10):
            assert await load(number) == number
        assert cache.stats().outages == 1
        assert cache.stats().recoveries == 0
        assert [event.kind for event in heard if event.function == "Cache"] == ["outage"]
