"""Two tenants share nothing where the tenant is in the key; and what is not in the key is shared, as documented."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any

import pytest
from redis.asyncio import Redis

from fastrdb import Cache, PatternError
from tests.support.world.stores import members

TENANTS = ("red", "blue", "red:blue", "*", "red?x=1", "", "None")
_current: ContextVar[str] = ContextVar("current", default="")


@pytest.fixture(params=[None, b"secret"], ids=["plain", "hidden"])
async def cache(request: pytest.FixtureRequest, client: Redis) -> AsyncIterator[Cache]:
    """Return a cache that shows values in keys, and one that does not."""
    async with Cache(client, timeout=5, hash_keys=request.param) as made:
        yield made


class Shop:
    """A service with a tenant of its own."""

    read: Any
    write: Any

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant


def in_the_pattern(cache: Cache) -> tuple[Any, Any]:
    """Return the two ways to call, with the tenant in the pattern."""

    @cache.cached("shop:{tenant}:item:{number}")
    async def read(tenant: str, number: int) -> str:
        return f"{tenant}/{number}"

    @cache.invalidates("shop:{tenant}:*")
    async def write(tenant: str) -> None: ...

    return read, write


def behind_the_pattern(cache: Cache) -> tuple[Any, Any]:
    """Return the two ways to call, with the tenant outside of the pattern."""

    @cache.cached("item:{number}")
    async def plain(number: int, tenant: str) -> str:
        return f"{tenant}/{number}"

    async def read(tenant: str, number: int) -> str:
        return await plain(number, tenant)

    async def write(tenant: str) -> None:
        for number in (1, 2):
            await plain.invalidate(number, tenant)

    return read, write


def of_the_instance(cache: Cache) -> tuple[Any, Any]:
    """Return the two ways to call, with the tenant in the instance."""

    class Own(Shop):
        @cache.cached("shop:{self.tenant}:item:{number}")
        async def read(self, number: int) -> str:
            return f"{self.tenant}/{number}"

        @cache.invalidates("shop:{self.tenant}:*")
        async def write(self) -> None: ...

    async def read(tenant: str, number: int) -> str:
        found: str = await Own(tenant).read(number)
        return found

    async def write(tenant: str) -> None:
        await Own(tenant).write()

    return read, write


@pytest.mark.parametrize("kind", [in_the_pattern, behind_the_pattern, of_the_instance])
async def test_tenants_share_nothing(cache: Cache, client: Redis, kind: Callable[[Cache], tuple[Any, Any]]) -> None:
    """Each reads its own, from the cache too, whatever it calls itself; and a write of one leaves the others' alone."""
    read, write = kind(cache)
    for _ in range(2):
        for tenant in TENANTS:
            assert [await read(tenant, number) for number in (1, 2)] == [f"{tenant}/1", f"{tenant}/2"]
    assert cache.stats().hits == cache.stats().loads == 2 * len(TENANTS)
    for gone, tenant in enumerate(TENANTS, start=1):
        await write(tenant)
        assert len(await members(client, "index")) == 2 * (len(TENANTS) - gone)


async def test_namespaces_share_nothing(client: Redis) -> None:
    """Two caches with different namespaces, also where one's name is the other's beginning."""
    caches = [Cache(client, namespace=name, timeout=5) for name in ("a", "a.b", "")]
    reads = [in_the_pattern(cache)[0] for cache in caches]
    for read in reads:
        await read("a", 1)
    assert [cache.stats().loads for cache in caches] == [1, 1, 1]
    await caches[0].invalidate("*")
    for read in reads:
        await read("a", 1)
    assert [cache.stats().loads for cache in caches] == [2, 1, 1]
    for cache in caches:
        await cache.aclose()


async def test_what_is_not_in_the_key_is_shared(cache: Cache) -> None:
    """Documented: a function whose result depends on the caller needs an argument for that."""

    @cache.cached("page")
    async def read() -> str:
        return _current.get()

    for tenant in ("red", "blue"):
        _current.set(tenant)
        assert await read() == "red"


def test_a_tenant_that_is_left_out_on_purpose_cannot_be_in_the_pattern(cache: Cache) -> None:
    """`ignore` says that it makes no difference: then no pattern may say that it does."""
    with pytest.raises(PatternError, match="tenant"):

        @cache.cached("shop:{tenant}", ignore=("tenant",))
        async def read(tenant: str) -> str:
            return tenant


async def test_a_missing_tenant_is_a_tenant_of_its_own(cache: Cache) -> None:
    """None is no wildcard, and a tenant of its own."""

    @cache.cached("shop:{tenant}")
    async def read(tenant: str | None) -> str:
        return f"of {tenant}"

    assert [await read(tenant) for tenant in (None, "None", "%none", "", None)] == [
        "of None",
        "of None",
        "of %none",
        "of ",
        "of None",
    ]
    assert read.stats.loads == 4
