"""Messages about mistakes in calls and decorators: each names function and parameter, and says what to do."""

from __future__ import annotations

import gc
import inspect
import logging
import warnings
from typing import Any, cast
from unittest.mock import AsyncMock, MagicMock

import pytest
import redis
import redis.cluster
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, NoEventLoopError, OptionError, PatternError, cached, cached_list, cached_many, invalidates
from fastrdb.testing import TcpProxy

own = Cache()
NOTHING: Any = None


@own.cached("user:{number}")
async def get_user(db: AsyncSession, redis: Redis, number: int) -> int:
    """Return the number."""
    return number


@own.cached_many("users:{numbers}")
async def get_users(redis: Redis, numbers: list[int]) -> dict[int, int]:
    """Return the numbers."""
    return {number: number for number in numbers}


@own.invalidates("user:*")
async def rename(redis: Redis) -> None:
    """Do nothing."""


@pytest.mark.usefixtures("own_garbage")
@pytest.mark.parametrize(
    ("call", "name"),
    [
        (lambda client: get_user(AsyncSession(), client, 1), "get_user"),
        (lambda client: get_user(AsyncSession(), NOTHING, 1), "get_user"),
        (lambda client: get_users(client, [1]), "get_users"),
        (rename, "rename"),
    ],
)
async def test_forgotten_await_names_the_function(client: Redis, call: Any, name: str) -> None:
    """Python's warning quotes the function that was called, and not a part of fastrdb."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        call(client)
        gc.collect()
    said = [str(each.message) for each in caught if issubclass(each.category, RuntimeWarning)]
    assert said == [f"coroutine '{name}' was never awaited"]


@pytest.mark.parametrize(
    ("decorator", "said"),
    [
        (cached, 'cached needs a pattern: @cached("user:{email}")'),
        (cached_list, 'cached_list needs a pattern: @cached_list("user:page:{page}:limit:{limit}")'),
        (cached_many, 'cached_many needs a pattern: @cached_many("user:id:{ids}")'),
        (invalidates, 'invalidates needs a prefix: @invalidates("user:*")'),
    ],
)
def test_decorator_without_parentheses_is_refused(decorator: Any, said: str) -> None:
    """At once, where the decorator stands."""

    async def load(number: int) -> int:
        return number

    with pytest.raises(PatternError) as caught:
        decorator(load)
    assert str(caught.value) == said


CLIENTS: list[tuple[Any, str]] = [
    (redis.Redis(), "is a redis.Redis, which is synchronous; use redis.asyncio.Redis"),
    (AsyncSession(), "is an AsyncSession: are db and redis swapped?"),
    (AsyncMock(), "is an AsyncMock: use fastrdb.testing.FaultyClient, redis=None or cache.disabled()"),
    (MagicMock(), "is a MagicMock: use fastrdb.testing.FaultyClient, redis=None or cache.disabled()"),
    ("redis://user:secret@host", "is a str, and must be a client of redis.asyncio"),
]


@pytest.mark.parametrize(("given", "said"), CLIENTS, ids=lambda each: type(each).__name__)
async def test_wrong_client_is_refused(given: Any, said: str) -> None:
    """Function and parameter are named, or the cache's own option; no client is printed."""
    for call in (lambda: get_user(AsyncSession(), given, 1), lambda: rename(given)):
        with pytest.raises(OptionError) as caught:
            await call()
        name = "get_user" if call.__code__.co_names[0] == "get_user" else "rename"
        assert str(caught.value) == f"{name}: parameter 'redis' {said}"
    with pytest.raises(OptionError) as caught:
        Cache(given)
    assert str(caught.value) == f"Cache: redis {said}"


async def test_class_of_a_client_is_refused() -> None:
    """Instead of a client, whose methods a call would need."""
    with pytest.raises(OptionError) as caught:
        Cache(cast("Any", Redis))
    assert str(caught.value) == "Cache: redis is the class Redis, and must be a client: Redis(...)"


async def test_function_that_is_to_be_invalidated_is_refused(client: Redis) -> None:
    """The message has the call that does it, and no part of a client."""
    given: Any
    for given, said in (
        (get_user, "get_user must be a mapped class, a Table or rows(...) of one; call get_user.invalidate(...)"),
        ([client], "Redis must be a mapped class, a Table or rows(...) of one"),
    ):
        with pytest.raises(OptionError) as caught:
            await own.invalidate(given, redis=client)
        assert str(caught.value) == f"Cache.invalidate: {said}"


async def test_swapped_session_and_client_are_found(client: Redis) -> None:
    """The usual mistake of a call with two positional arguments."""
    swapped: Any = get_user
    with pytest.raises(OptionError, match=r"^get_user: parameter 'redis' is an AsyncSession: are db and redis swapped"):
        await swapped(client, AsyncSession(), 1)


async def test_server_that_is_down_is_named(caplog: pytest.LogCaptureFixture) -> None:
    """The first failure is said, since a program may end before the third; then, that calls go on without Redis."""
    async with Redis(port=1, retry=Retry(NoBackoff(), 0)) as client, Cache(client) as cache:

        @cache.cached("number")
        async def load() -> int:
            return 1

        with caplog.at_level(logging.WARNING, logger="fastrdb"):
            await load()
            (first,) = caplog.records
            for _ in range(3):
                await load()
    assert first.getMessage().startswith("Redis at localhost:1 did not answer (GET: ")
    assert first.getMessage().endswith("): the call goes on without it; a single failure is logged once")
    (_, record) = caplog.records
    assert record.getMessage().startswith("Redis at localhost:1 does not answer (GET: ")
    assert record.getMessage().endswith("): calls go on without it")


async def test_server_that_is_silent_is_named(client: Redis, caplog: pytest.LogCaptureFixture) -> None:
    """The line says how long was waited for it."""
    port = client.connection_pool.connection_kwargs["port"]
    async with TcpProxy(port) as proxy, Redis(port=proxy.port) as silent, Cache(silent, timeout=0.02) as cache:
        proxy.drop()

        @cache.cached("number")
        async def load() -> int:
            return 1

        with caplog.at_level(logging.WARNING, logger="fastrdb"):
            assert await load() == 1
    said = f"Redis at localhost:{proxy.port} did not answer (GET: no answer within 0.02 s): "
    assert caplog.records[0].getMessage().startswith(said)


def test_function_keeps_its_docstring() -> None:
    """Of a function, of a method on its class and of one that is bound; type checkers see it by `__wrapped__`."""

    class Users:
        @own.cached("named:{number}")
        async def get(self, number: int) -> int:
            """Return the number of a user."""
            return number

    assert (get_user.__doc__, get_user.__name__) == ("Return the number.", "get_user")
    for method in (Users.get, Users().get):
        assert (inspect.getdoc(method), method.__name__) == ("Return the number of a user.", "get")
        assert str(inspect.signature(method)).endswith("number: 'int') -> 'int'")


def test_list_of_ids_is_explained() -> None:
    """A `cached_many` whose placeholder is one id says what it should be."""

    async def load(id: int) -> dict[int, int]:  # noqa: A002
        return {id: id}

    with pytest.raises(
        PatternError, match=r"'\{id\}' must be a parameter that is a list of ids, such as id: list\[int\]"
    ):
        cached_many("thing:{id}")(load)


def test_other_event_loops_are_named() -> None:
    """Under trio, or without any loop, the error says that asyncio is needed."""
    call = get_user(AsyncSession(), Redis(), 1)
    with pytest.raises(NoEventLoopError, match="fastrdb works under asyncio, and not under trio"):
        call.send(None)
