"""`hash_keys`: no value is in a key's name, and everything else is as without it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import pytest
from redis.asyncio import Redis

from fastrdb import Cache, OptionError
from fastrdb.keys.encoders import encoder_for
from fastrdb.keys.pattern import hashed, sealed
from fastrdb.testing import GatedClient
from tests.support.servers.databases import Database
from tests.support.world.walkthrough import EMAIL, PRIVATE, Whole

SECRET = b"a secret that is long enough"


@dataclass
class User:
    email: str


@pytest.fixture
async def cache(client: Redis) -> AsyncIterator[Cache]:
    """Yield a cache that hides values."""
    async with Cache(client, hash_keys=SECRET, timeout=5) as made:
        yield made


def mail_reader(cache: Cache) -> Any:
    """Return a cached function of one personal value, and of others."""

    @cache.cached("user:{email}:page:{page}")
    async def load(email: str, page: int = 1, order: str | None = None, **more: Any) -> str:
        return email

    return load


@pytest.mark.parametrize("secret", ["text", b"", bytearray(b"x"), 5, True], ids=repr)
def test_a_wrong_secret_is_refused(secret: Any) -> None:
    """An OptionError that names the option, and not the secret."""
    with pytest.raises(OptionError, match="hash_keys") as caught:
        Cache(hash_keys=secret)
    assert "text" not in str(caught.value)


def test_no_value_is_in_a_key(cache: Cache) -> None:
    """Neither in the pattern's places nor behind them; names and literal text are."""
    key = mail_reader(cache).key("ada@x.org", 7, order="name", city="Paris")
    assert not any(value in key for value in ("ada", "x.org", "7:", "name&", "Paris"))
    assert key.startswith("user:%y")
    assert ":page:%y" in key
    assert "?city=%y" in key
    assert "&order=%y" in key


def test_one_call_has_one_key(cache: Cache) -> None:
    """However it is spelt; a default that is given is a default."""
    load = mail_reader(cache)
    keys = {load.key("a"), load.key(email="a", page=1), load.key("a", order=None), load.key(page=1, email="a")}
    assert len(keys) == 1
    others = {load.key("b"), load.key("a", 2), load.key("a", order="None"), load.key("a", x=1), load.key("a", x="1")}
    assert len(others | keys) == 6


def test_another_secret_is_another_key(cache: Cache) -> None:
    """Without the secret no one can find the value of a key; with the same one every process has the same key."""
    same, other, plain = (Cache(hash_keys=secret) for secret in (SECRET, SECRET + b"!", None))
    keys = [mail_reader(each).key("a") for each in (cache, same, other, plain)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
    assert keys[3] == "user:a:page:1"


def test_without_a_secret_nothing_is_in_the_way() -> None:
    """The encoders are the very same, so a call costs what it costs without the option."""
    encode = encoder_for(str)
    assert sealed(encode, hashed(None, "Cache")) is encode


async def test_writes_reach_what_is_hidden(cache: Cache, client: Redis) -> None:
    """Writes reach hidden values by value, attribute, result or exact key; whatever type is declared."""
    load = mail_reader(cache)

    @cache.invalidates("user:{email}")
    async def by_value(email: str) -> None: ...

    @cache.invalidates("user:{email}:*")
    async def undeclared(email) -> None: ...  # type: ignore[no-untyped-def]

    @cache.invalidates("user:{user.email}:page:*")
    async def by_attribute(user: User) -> None: ...

    @cache.invalidates("user:{result.email}:*")
    async def by_result(email: str) -> User:
        return User(email)

    @cache.invalidates(keys=["user:{email}:page:{page}"])
    async def by_key(email: str, page: int) -> None: ...

    for write in (
        lambda: by_value("1"),
        lambda: undeclared("1"),
        lambda: by_attribute(User("1")),
        lambda: by_result("1"),
        lambda: by_key("1", 1),
        lambda: load.invalidate("1"),
        lambda: cache.invalidate(keys=[load.key("1")]),
    ):
        await load("1")
        await load("2")
        await write()
        assert await client.exists(load.key("1")) == 0
        assert await client.exists(load.key("2")) == 1
    await cache.invalidate("user:*")
    assert await client.exists(load.key("2")) == 0


async def test_what_is_hidden_is_kept_in_the_process_too(client: Redis) -> None:
    """A near cache goes by what keys begin with, which is not hidden; a write takes the entry out of it."""
    async with Cache(client, hash_keys=SECRET, near=True) as cache:
        load = mail_reader(cache)
        while not load.stats.near:
            await load("ada@x.org")
        loads = load.stats.loads
        await load.invalidate("ada@x.org")
        await load("ada@x.org")
        assert load.stats.loads == loads + 1


async def test_a_part_of_a_value_reaches_nothing(cache: Cache, client: Redis) -> None:
    """The documented cost: a hash has no prefix."""
    load = mail_reader(cache)
    await load("ada@x.org")
    await cache.invalidate("user:ada*")
    assert await client.exists(load.key("ada@x.org")) == 1


@pytest.mark.parametrize("secret", [SECRET, None], ids=["hidden", "plain"])
async def test_all_of_the_api_works_and_tells_nobody(
    sqlite: Database, client: Redis, gated: GatedClient, secret: bytes | None
) -> None:
    """No command has a personal value in a key, an index member, a lease, a barrier or a prefix: entries alone do."""
    await Whole(sqlite, gated, client, Cache(hash_keys=secret, timeout=5)).run()
    said = {text(argument) for _, arguments in gated.log for argument in arguments}
    told = {each for each in said if any(value in each for value in PRIVATE)}
    assert told
    assert all(each.startswith(("{", "[")) for each in told) == (secret is not None)


async def test_what_is_left_tells_nobody(sqlite: Database, client: Redis) -> None:
    """Nor has what the server keeps, but for the entries' own values."""
    whole = Whole(sqlite, client, client, Cache(hash_keys=SECRET, timeout=5, namespace="n"))
    await whole.run()
    names = {text(each) for each in await client.keys("*")}
    members = {text(each) for name in ("index", "expiry") for each in await client.zrange(f"fastrdb:n:{name}", 0, -1)}
    assert whole.known.key(email=EMAIL) in names & members
    assert not [each for each in names | members if any(value in each for value in PRIVATE)]


def text(value: Any) -> str:
    """Return an argument as text."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
