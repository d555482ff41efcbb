"""Loads that call cached functions: of the same key too, where a caller that waited would wait for itself."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

from fastrdb import Cache
from tests.support.waiting import until

WAIT = 60.0  # seconds: no test here waits for another caller's load
LONG = 10.0  # nor so long for anything


@pytest.fixture(params=["one cache", "two caches"])
def caches(request: pytest.FixtureRequest, client: Redis) -> tuple[Cache, Cache]:
    """Provide the caches of two functions that share their keys."""
    first = Cache(client)
    return first, first if request.param == "one cache" else Cache(client)


def inner(cache: Cache) -> Callable[[int], Awaitable[int]]:
    """Return a function that others call in their loads."""

    @cache.cached("nested:{number}", wait=WAIT, shared=True)
    async def double(number: int) -> int:
        return 2 * number

    return double


async def test_load_that_calls_a_function_of_the_same_key(caches: tuple[Cache, Cache], client: Redis) -> None:
    """As of a service around a repository: the inner call just loads, and the outer one stores."""
    double = inner(caches[1])

    @caches[0].cached("nested:{number}", wait=WAIT, shared=True)
    async def service(number: int) -> int:
        return await asyncio.create_task(coroutine(double(number)))

    async with asyncio.timeout(LONG):
        assert await service(3) == 6
    assert await client.get("nested:3") == b"6"
    assert service.stats.fills == 1


async def test_load_of_many_that_calls_a_function_of_the_same_keys(caches: tuple[Cache, Cache], client: Redis) -> None:
    """Each of the inner calls just loads, and all are stored."""
    double = inner(caches[1])

    @caches[0].cached_many("nested:{numbers}", wait=WAIT, shared=True)
    async def doubles(numbers: list[int]) -> list[int]:
        return list(await asyncio.gather(*map(double, numbers)))

    async with asyncio.timeout(LONG):
        assert await doubles([1, 2, 3]) == [2, 4, 6]
    assert await client.mget("nested:1", "nested:2", "nested:3") == [b"2", b"4", b"6"]


async def test_load_that_calls_a_function_of_many_of_the_same_key(caches: tuple[Cache, Cache], client: Redis) -> None:
    """Keys that are not the outer call's are loaded and stored by the inner one."""

    @caches[1].cached_many("nested:{numbers}", wait=WAIT, shared=True)
    async def doubles(numbers: list[int]) -> list[int]:
        return [2 * number for number in numbers]

    @caches[0].cached("nested:{number}", wait=WAIT, shared=True)
    async def one_of(number: int) -> int:
        return (await doubles([number, number + 1]))[0]

    async with asyncio.timeout(LONG):
        assert await one_of(5) == 10
    assert await client.mget("nested:5", "nested:6") == [b"10", b"12"]


async def test_task_started_by_a_load_waits_for_later_loads(client: Redis) -> None:
    """A task that outlives its load is no part of the next one, and joins that."""
    cache, loads, go, come = Cache(client), 0, asyncio.Event(), asyncio.Event()
    tasks = []

    @cache.cached("nested:{number}", wait=WAIT, shared=True)
    async def load(number: int) -> int:
        nonlocal loads
        loads += 1
        if loads == 1:
            tasks.append(asyncio.create_task(again()))
        else:
            come.set()
            await go.wait()
        return number

    async def again() -> int:
        await come.wait()
        return await coroutine(load(1))

    assert await load(1) == 1
    await load.invalidate(1)
    second = asyncio.create_task(coroutine(load(1)))
    await come.wait()
    await until(lambda: misses(load, 3))  # the third caller has read, and goes on to ask for the lease
    go.set()
    assert [await second, await tasks[0]] == [1, 1]
    assert loads == 2


async def misses(load: Any, count: int) -> bool:
    """Return whether so many calls have missed."""
    found: int = load.stats.misses
    return found == count


async def coroutine(answer: Awaitable[int]) -> int:
    """Await a call, as the coroutine that `create_task` wants."""
    return await answer
