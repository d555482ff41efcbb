"""What `fastrdb.testing` gives to users' tests: clients with faults, and caches that keep apart."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import subprocess
import sys
import warnings
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.exceptions import BusyLoadingError
from redis.exceptions import ConnectionError as RedisConnectionError

from fastrdb import Cache, OptionError, Stats, cached, default_cache
from fastrdb.testing import EmbeddedServer, FaultyClient, TcpProxy, emptied, isolated
from tests.support.world.items import Item, Loader


def item_loader(cache: Cache) -> tuple[Any, Loader]:
    """Provide a cached function and the counter of its loads."""
    loader = Loader()

    @cache.cached("item:{number}")
    async def load(redis: Redis, number: int) -> Item:
        return loader.item(number)

    return load, loader


async def failures(client: FaultyClient, count: int) -> list[bool]:
    """Which of so many PINGs fail."""
    found = []
    for _ in range(count):
        try:
            await client.ping()
        except RedisConnectionError:
            found.append(True)
        else:
            found.append(False)
    return found


# --- faults


async def test_chance_can_be_repeated(client: Redis) -> None:
    """The same seed strikes the same commands, another seed others; about as many as asked for."""
    runs = []
    for seed in (1, 1, 2):
        faulty = FaultyClient(client, seed=seed)
        faulty.fail_with(probability=0.3)
        runs.append(await failures(faulty, 300))
    assert runs[0] == runs[1] != runs[2]
    assert all(50 < sum(run) < 130 for run in runs)


@pytest.mark.parametrize(("probability", "expected"), [(0.0, 0), (1.0, 20)], ids=["never", "always"])
async def test_always_and_never(client: Redis, probability: float, expected: int) -> None:
    """A probability of 1 strikes every command, one of 0 none."""
    faulty = FaultyClient(client)
    faulty.fail_with(probability=probability)
    assert sum(await failures(faulty, 20)) == expected


async def test_what_is_spared_passes(client: Redis) -> None:
    """Beside any other fault, a cut too; until all is healed."""
    faulty = FaultyClient(client)
    faulty.fail_with()
    faulty.cut()
    faulty.spare("PING")
    assert sum(await failures(faulty, 3)) == 0
    with pytest.raises(RedisConnectionError):
        await faulty.get("key")
    faulty.heal()
    faulty.fail_with(times=1)
    assert await failures(faulty, 2) == [True, False]


async def test_scripts_fail_by_their_files_name(client: Redis) -> None:
    """A fill that fails costs the entry, and no caller's answer."""
    faulty, cache = FaultyClient(client), Cache()
    load, loader = item_loader(cache)
    faulty.fail_with(BusyLoadingError("loading"), on="fill", times=1)
    for _ in range(3):
        assert (await load(faulty, 1)).name == "a"
    assert set(faulty.names()) == {"GET", "acquire", "fill", "release"}
    assert loader.calls == 2
    assert load.stats == Stats(hits=1, misses=2, loads=2, fills=1, unavailable=1)
    await cache.aclose()


async def test_delays_are_waited_for_before_the_command_is_sent(client: Redis) -> None:
    """Of the commands that are meant, as often as asked for."""
    waits: list[tuple[float, Any]] = []

    async def sleep(seconds: float) -> None:
        waits.append((seconds, await client.get("key")))

    faulty = FaultyClient(client, sleep=sleep)
    faulty.delay(0.5, "SET", times=2)
    for value in ("a", "b", "c"):
        await faulty.set("key", value)
        await faulty.get("key")
    assert waits == [(0.5, None), (0.5, b"a")]


async def test_a_late_reply_is_a_bypass(client: Redis) -> None:
    """A command that is later than the deadline costs its caller no more than that."""
    faulty = FaultyClient(client)
    async with Cache(timeout=0.1) as cache:
        load, _ = item_loader(cache)
        await load(faulty, 1)
        faulty.delay(3600, "GET")
        assert (await load(faulty, 1)).name == "a"
        assert load.stats.unavailable == 1


async def test_a_cut_closes_the_connections(client: Redis) -> None:
    """After so many commands the server has lost its client, and nothing passes until it is healed."""
    faulty = FaultyClient(client)
    own = await faulty.client_id()
    faulty.cut(after=2)
    assert await failures(faulty, 4) == [False, False, True, True]
    faulty.heal()
    assert await failures(faulty, 1) == [False]
    assert await faulty.client_id() != own


async def test_a_cut_connection_costs_no_call(client: Redis) -> None:
    """With a third of all replies lost, every call is answered, and what was written is read."""
    faulty = FaultyClient(client, seed=3)
    async with Cache(timeout=1.0) as cache:
        load, loader = item_loader(cache)
        faulty.fail_with(probability=0.3, sent=True)
        for number in range(30):
            assert (await load(faulty, number % 5)).id == number % 5
        faulty.heal()
    assert load.stats.unavailable > 0
    assert loader.calls >= 5


async def test_pipelines_are_struck_as_a_whole(client: Redis) -> None:
    """One command that fails, fails all that go with it; none reaches the server."""
    faulty = FaultyClient(client)
    faulty.fail_with(on="GET")
    pipeline = faulty.pipeline()
    pipeline.set("key", "value")
    pipeline.get("key")
    with pytest.raises(RedisConnectionError):
        await pipeline.execute()
    assert await client.get("key") is None


@pytest.mark.parametrize(
    "tell",
    [
        lambda faulty: faulty.fail_with(probability=1.1),
        lambda faulty: faulty.delay(1, probability=-0.1),
        lambda faulty: faulty.delay(-1),
        lambda faulty: faulty.cut(after=-1),
    ],
)
async def test_what_cannot_be_told_is_refused(client: Redis, tell: Any) -> None:
    """An OptionError names the argument and its value."""
    with pytest.raises(OptionError, match=r"(probability|seconds|after)=-?1|probability=-0\.1"):
        tell(FaultyClient(client))


# --- keeping apart


async def test_isolated_caches_share_nothing_with_before(client: Redis) -> None:
    """Inside, an application's cache has a namespace and a client of its own; at the end both are as before."""
    cache = Cache()
    load, loader = item_loader(cache)
    await load(client, 1)
    async with isolated(cache, redis=client) as namespace:
        assert (cache.namespace, cache.redis) == (namespace, client)
        assert load.key(number=1) == f"{namespace}:item:1"
        await load(client, 1)
        assert await client.get(f"{namespace}:item:1") is not None
    assert loader.calls == 2
    assert (cache.namespace, cache.redis) == ("", None)
    await load(client, 1)
    assert loader.calls == 2
    assert not [key async for key in client.scan_iter(f"*{namespace}*")]


async def test_the_default_cache_is_isolated_if_none_is_named(client: Redis) -> None:
    """Then functions under the module-level decorators keep apart."""

    @cached("number")
    async def load(redis: Redis) -> int:
        return 1

    async with isolated() as first:
        assert load.key() == f"{first}:number"
    async with isolated() as second:
        assert load.key() == f"{second}:number"
    assert first != second
    assert default_cache.namespace == ""


async def test_what_is_isolated_is_put_back_after_an_error(client: Redis) -> None:
    """The cache is the application's."""
    cache = Cache(namespace="mine")
    with pytest.raises(ZeroDivisionError):
        async with isolated(cache):
            raise ZeroDivisionError
    assert cache.namespace == "mine"


async def test_emptying_leaves_nothing_behind(client: Redis) -> None:
    """All keys of the namespace go, fastrdb's own too, and no key of any other."""
    async with emptied(Cache(client, namespace="one")) as one, emptied(Cache(client, namespace="other")) as other:
        for cache in (one, other):
            load, _ = item_loader(cache)
            await load(client, 1)
        async with emptied(one):
            pass
        left = {key.decode() async for key in client.scan_iter("*")}
        assert left
        assert all("other" in key for key in left)
    assert await client.dbsize() == 0


async def test_emptying_heals_a_faulty_client(client: Redis) -> None:
    """A test that ends while its client fails leaves no keys, and does not wait for what is pending."""
    faulty = FaultyClient(client)
    async with isolated(default_cache, redis=faulty) as namespace:
        load, _ = item_loader(default_cache)
        await load(faulty, 1)
        faulty.cut()
        await default_cache.invalidate("item:*")
    assert not [key async for key in client.scan_iter(f"*{namespace}*")]


async def test_emptying_a_server_that_does_not_answer_ends(server: EmbeddedServer) -> None:
    """Neither a dead port nor a black hole holds up the end of a test."""
    for fault in ("refuse", "drop"):
        async with (
            TcpProxy(server.port) as proxy,
            Redis(port=proxy.port) as through,
            emptied(Cache(through, namespace="gone", timeout=0.1)) as cache,
        ):
            load, _ = item_loader(cache)
            await load(through, 1)
            if fault == "drop":
                proxy.drop()
            else:
                await proxy.refuse()
                proxy.cut()


@contextlib.asynccontextmanager
async def _as_it_is(cache: Cache) -> AsyncIterator[None]:
    """Close a cache of the application's own, as a lifespan does."""
    async with cache:
        yield


@contextlib.asynccontextmanager
async def _isolated_afterwards(cache: Cache) -> AsyncIterator[None]:
    """Leave to the next test what a test has left behind."""
    yield
    async with isolated(cache):
        pass


@pytest.mark.parametrize("ending", [_as_it_is, _isolated_afterwards, isolated, emptied])
async def test_client_that_still_fails_is_not_waited_for(
    client: Redis, monkeypatch: pytest.MonkeyPatch, ending: Callable[[Cache], Any]
) -> None:
    """A test may end with its faults: what Redis has missed is of no use, and costs a quarter of a second at most."""
    waits: list[float | None] = []
    wait = asyncio.wait

    async def noted(tasks: Any, *, timeout: float | None = None, **options: Any) -> Any:
        waits.append(timeout)
        return await wait(tasks, timeout=timeout, **options)

    monkeypatch.setattr(asyncio, "wait", noted)
    faulty = FaultyClient(client)
    cache = Cache(faulty, namespace="faulty")
    async with ending(cache):
        faulty.fail_with()
        assert await cache.invalidate("item:*") is None
    assert 0 < max(limit for limit in waits if limit is not None) <= 0.25
    await client.aclose(close_connection_pool=True)
    with warnings.catch_warnings():  # a repair that is cancelled while it connects leaves redis-py's socket to Python
        warnings.simplefilter("ignore", ResourceWarning)
        gc.collect()


# --- fresh interpreters


def imported_by(module: str) -> set[str]:
    """Return the modules that a fresh interpreter has imported with this one."""
    code = f"import sys, {module}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names = set(done.stdout.split())
    assert module in names
    return names


def test_the_package_does_not_import_what_is_for_tests() -> None:
    """`import fastrdb` brings neither `fastrdb.testing` nor pytest."""
    assert {"pytest", "_pytest", "fastrdb.testing"} & imported_by("fastrdb") == set()


def test_what_is_for_tests_does_not_import_pytest() -> None:
    """`fastrdb.testing` serves any test runner."""
    assert {"pytest", "_pytest"} & imported_by("fastrdb.testing") == set()
