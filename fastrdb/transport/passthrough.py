"""Commands by the client's own methods: for clients with an `execute_command` of their own, which must see them.

redis-py connects and follows redirections by itself here, perhaps to another server. So the server is greeted behind
each read, before the reply is used: that costs such clients one more round trip. Scripts judge the server themselves.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Collection, Hashable, Sequence
from typing import Any, Protocol
from weakref import ref

from redis.asyncio import Redis
from redis.asyncio.cluster import RedisCluster
from redis.client import NEVER_DECODE
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import MovedError, ResponseError

from fastrdb.errors import CacheUnavailableError, OptionError

from .commands import Command, key_of, redirected, slot_of
from .connection import Greeting
from .health import OTHER_DATA, Breaker, Health
from .timeouts import Budget, used_up

_SCRIPTS = ("EVALSHA", "EVAL")


class Client(Protocol):
    """The part of redis.asyncio.Redis, and of its relatives, that is used."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        """Send one command; the result is awaited."""

    def pipeline(self, transaction: bool = ...) -> Any:
        """Collect commands to send at once."""


def is_cluster(client: object) -> bool:
    """Return True for the client of a cluster."""
    return isinstance(client, RedisCluster)


def is_plain(client: Any) -> bool:
    """Return True if the client sends commands as redis-py does, by connections that redis-py's own pool makes.

    An instrumentation that wraps redis-py's class changes nothing: fastrdb does not go through it. A subclass with an
    `execute_command` of its own, a client with one on the instance, or a pool of another kind must see every command.
    So must a client whose connections are no sockets: those of fakeredis, say.
    """
    kind = RedisCluster if is_cluster(client) else Redis
    owner = next((cls for cls in type(client).__mro__ if "execute_command" in vars(cls)), None)
    if owner is not kind or not isinstance(client, kind):
        return False
    own = (
        inspect.unwrap(vars(client).get("execute_command", kind.execute_command))
        if hasattr(client, "__dict__")
        else None
    )
    if own is not None and not getattr(own, "__module__", "").startswith("redis."):
        return False
    pool = getattr(client, "connection_pool", None)
    connect = getattr(getattr(pool, "connection_class", None), "_connect", None)
    sockets = connect is None or connect.__module__.startswith("redis.")
    return kind is RedisCluster or (type(pool).__module__.startswith("redis.") and sockets)


_CLUSTERS = ("RedisCluster", "ValkeyCluster")


def checked(client: Any, where: str, *, mocks: bool = False) -> Any:
    """Return the client. Raises OptionError for what cannot be one, or reads from replicas.

    `where` names the function and the parameter. With `mocks`, a mock of a client will do: no call reaches it. No
    message has the client's own text, which may hold a password.
    """
    if isinstance(client, type):
        raise OptionError(f"{where} is the class {client.__name__}, and must be a client: {client.__name__}(...)")
    kind = type(client)
    bases = {cls.__name__ for cls in kind.__mro__}
    home = kind.__module__.partition(".")[0]
    name = kind.__name__ if home == "builtins" else f"{home}.{kind.__name__}"
    article = "an" if kind.__name__[0] in "AEIOU" else "a"
    if kind.__module__ == "unittest.mock" and not (mocks and hasattr(client, "execute_command")):
        instead = "use fastrdb.testing.FaultyClient, redis=None or cache.disabled()"
        raise OptionError(f"{where} is {article} {kind.__name__}: {instead}")
    if bases & {"AsyncSession", "async_scoped_session", "Session"}:
        raise OptionError(f"{where} is {article} {kind.__name__}: are db and redis swapped?")
    if not getattr(getattr(client, "connection_pool", None), "is_master", True):
        raise OptionError(f"{where} reads from replicas, which may be behind: give it master_for(...)")
    for option in ("read_from_replicas", "load_balancing_strategy"):
        if (value := getattr(client, option, None)) not in (None, False):
            raise OptionError(f"{where} has {option}={value!r}: replicas may be behind, read from masters")
    if not inspect.iscoroutinefunction(getattr(client, "execute_command", None)):
        instead = "RedisCluster" if bases & set(_CLUSTERS) else "Redis"
        if bases & {"Redis", "Valkey", *_CLUSTERS}:
            raise OptionError(f"{where} is a {name}, which is synchronous; use redis.asyncio.{instead}")
        raise OptionError(f"{where} is a {name}, and must be a client of redis.asyncio")
    if bases & set(_CLUSTERS) and not is_cluster(client):
        raise OptionError(f"{where} is a {name}, and not the cluster client of redis.asyncio")
    return client


def server_of(client: Any, pool: Any) -> Hashable:
    """Return an identity of the server's data: two clients with the same one share a store."""
    known: dict[str, Any] = getattr(pool, "connection_kwargs", {})
    database = known.get("db", 0)
    service = getattr(pool, "service_name", None)
    if service is not None:
        manager = getattr(pool, "sentinel_manager", None)  # two groups may have given their masters one name
        sentinels = (each.connection_pool.connection_kwargs for each in getattr(manager, "sentinels", ()))
        return ("sentinel", frozenset((each.get("host"), each.get("port")) for each in sentinels), service, database)
    if "path" in known:
        return ("unix", known["path"], database)
    if is_cluster(client):
        return ("cluster", *sorted(client.nodes_manager.startup_nodes))
    if pool is client:
        return ref(client)  # its id may be another's when it is gone
    return (known.get("host", "localhost"), known.get("port", 6379), database)


class Passthrough:
    """One client that is asked itself, of a server or of a cluster. For one event loop.

    All methods raise CacheUnavailableError.
    """

    def __init__(self, client: Any, timeout: float, greeting: Greeting, health: Health, breaker: Breaker) -> None:
        self._client, self._timeout, self._greeting, self._health = ref(client), timeout, greeting, health
        self.breaker = breaker
        self._cluster = is_cluster(client)
        self._loop = asyncio.get_running_loop()
        self._greeted, self.answered = False, 0.0

    async def get(self, name: bytes) -> bytes | None:
        """Return the value of a key."""
        (reply,) = await self.send((("GET", name),))
        if self._health and self._greeting.other_data:
            raise CacheUnavailableError("GET", OTHER_DATA)
        if isinstance(reply, Exception):
            raise self.breaker.on_error("GET", reply)
        raw: bytes | None = reply
        return raw

    async def send(
        self, commands: Sequence[Command], *, insist: bool = False, budget: Budget | None = None
    ) -> list[Any]:
        """Send commands in their order, several in one pipeline, and return their replies: errors as values."""
        if self.breaker.opened and not insist:
            raise self.breaker.refusal(str(commands[0][0]), self.ping)
        budget, began = budget or Budget(self._timeout), self._loop.time()
        budget.start(began)
        whole = budget.left >= self._timeout
        try:
            async with asyncio.timeout(budget.left):
                client = self._alive()
                if not self._greeted:
                    await self._greet_all(client)
                replies = await _sent(client, commands)
                read = [key for each in commands if each[0] not in _SCRIPTS and (key := key_of(each)) is not None]
                if read:  # mechanism: greeting-of-new-connections
                    await self._greet(client, self._nodes_of(client, read))
        except Exception as error:
            self._greeted = False  # another server may answer next
            if isinstance(error, TimeoutError) and not whole:
                raise used_up() from error
            raise self.breaker.on_error(str(commands[0][0]), error) from error
        budget.stop(self._loop.time())
        self.answered = began
        if self.breaker.failures:
            self.breaker.on_reply()
        return replies

    async def refresh(self) -> None:
        """Make the client refresh its map of the cluster, and wait for it."""
        try:
            async with asyncio.timeout(self._timeout):
                await self._alive().nodes_manager.initialize()
        except Exception as error:
            raise self.breaker.on_error("connect", error) from error

    async def ping(self) -> None:
        """Ask for a sign of life, whatever the breaker says."""
        await self.send((("PING",),), insist=True)

    def due(self, _: Collection[bytes]) -> float:
        """Return when the time of the latest answered caller is over, by the event loop's clock."""
        return self.answered + self._timeout

    async def aclose(self) -> None:
        """Do nothing but end a try: connections are the client's."""
        await self.breaker.aclose()

    def close(self) -> None:
        """Do nothing."""

    forget = close

    def _alive(self) -> Any:
        client = self._client()
        if client is None:
            raise RedisConnectionError("the client is gone")
        return client

    def _nodes_of(self, client: Any, keys: Sequence[bytes]) -> list[Any]:
        if not self._cluster:
            return [None]
        return list({node.name: node for node in map(client.get_node_from_key, keys)}.values())

    async def _greet_all(self, client: Any) -> None:
        if self._cluster:
            await client.initialize()
        await self._greet(client, client.get_primaries() if self._cluster else [None])
        if self._cluster and self._greeting.other_data:
            await self._greeting.settle(lambda commands: _sent(client, commands))
        self._greeted = True

    async def _greet(self, client: Any, nodes: Sequence[Any]) -> None:
        for node in nodes:
            target = {} if node is None else {"target_nodes": node}
            question: Command | None = self._greeting.question()
            while question is not None:
                question = self._greeting.take_reply(await _one(client, question, **target))


async def _sent(client: Any, commands: Sequence[Command]) -> list[Any]:
    several = len(commands) > 1 or (commands[0][0] in _SCRIPTS and int(commands[0][2]) > 1)
    if not several or not is_cluster(client):
        return await _piped(client, commands) if len(commands) > 1 else [await _one(client, commands[0])]
    replies = await _piped(client, commands, allow_redirections=False)
    slots = [slot_of(key_of(command) or b"") for command in commands]
    for at in redirected(slots, replies):
        # A script whose keys are on their way is refused at both ends, and redis-py would pause and try it many times.
        if isinstance(replies[at], MovedError) or commands[at][0] not in _SCRIPTS or int(commands[at][2]) < 2:
            replies[at] = await _one(client, commands[at])
    return replies


async def _piped(client: Any, commands: Sequence[Command], **options: Any) -> list[Any]:
    async with client.pipeline(transaction=False) as pipeline:
        for command in commands:
            pipeline.execute_command(*command, **{NEVER_DECODE: True})
        replies: list[Any] = await pipeline.execute(raise_on_error=False, **options)
    return replies


async def _one(client: Any, command: Command, **options: Any) -> Any:
    try:
        return await client.execute_command(*command, **{NEVER_DECODE: True}, **options)
    except ResponseError as error:
        return error
