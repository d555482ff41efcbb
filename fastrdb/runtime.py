"""The settings of a cache, and what is done for all of its functions.

`loads` and `invalidations` do the work of one decorated function with what they find here.
"""

from __future__ import annotations

import asyncio
import inspect
import re
from collections.abc import Callable, Coroutine, Hashable, Iterable, Sequence
from contextlib import AbstractContextManager
from threading import get_ident
from typing import TYPE_CHECKING, Any, Literal, Self
from weakref import ref

from .errors import CacheUnavailableError, OptionError, PatternError
from .events import Counters, Hook, Stats
from .keys import MISSING, CallPlan, Prefix, Template, prefixes_of, seal_of
from .loops import Loops
from .loops import LoopState as LoopState
from .near import Near
from .options import Seconds, at_least_one, seconds
from .protocol import Store, is_cluster
from .transactions import settled
from .transport import Switch

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster

OnError = Literal["bypass", "raise"]


class BaseCache:
    """All of `Cache` but its decorators."""

    def __init__(
        self,
        redis: Redis | RedisCluster | None = None,
        *,
        near: Near | bool | None = None,
        on_error: OnError = "bypass",
        timeout: Seconds = 0.25,
        namespace: str = "",
        lease: Seconds = 10.0,
        barrier: Seconds = 10.0,
        hook: Hook | None = None,
        hash_keys: bytes | None = None,
        max_bytes: int = 8 * 1024 * 1024,
    ) -> None:
        """Settings of all functions decorated with this cache. Durations are seconds.

        Args:
            redis: the client for functions that are not given one.
            near: keep entries in this process as well, with these bounds (True: those of a plain `Near()`), unless a
                function is decorated with near=False; without it, only those with near=True.
            on_error: what a commit does that Redis cannot be told of: "bypass" lets it stand, repairs the cache as
                soon as Redis is back and until then reads past it; "raise" makes the commit fail.
            timeout: the longest that one call waits for Redis, in all its round trips, before it goes on without.
            namespace: put before every key, with a colon: caches with different ones share nothing.
            lease: the longest load whose result is stored.
            barrier: the longest time between a COMMIT's start and its end that is covered.
            hook: is told every `Event`.
            hash_keys: a secret; every value in a key is replaced by its hash under it, so that key names tell nobody
                whose data it is. The entries themselves stay what they are.
            max_bytes: a larger entry is answered, and not stored: while it travels, others wait.

        Raises:
            OptionError: naming the option.
        """
        owner = type(self).__name__
        if near is not None and not isinstance(near, bool | Near):
            raise OptionError(f"{owner}: near={near!r} must be a Near, True, False or None")
        if on_error not in ("bypass", "raise"):
            raise OptionError(f"{owner}: on_error={on_error!r} must be 'bypass' or 'raise'")
        if not re.fullmatch(r"(?!fastrdb$)[A-Za-z0-9_.\-]*", namespace):  # all of fastrdb's own keys begin so
            raise OptionError(f"{owner}: namespace={namespace!r} must be letters, digits, _ . - and not 'fastrdb'")
        self.near = near if isinstance(near, Near) else Near()
        self.near_by_default = bool(near)
        self.near_heads: set[str] = set()  # what the keys of functions begin with that keep their entries here
        self.owned: set[str] = set()  # what the keys of all functions begin with
        self.on_error: OnError = on_error
        self.switch = Switch()
        self.timeout = seconds(timeout, name="timeout", owner=owner)
        self.lease = seconds(lease, name="lease", owner=owner)
        self.barrier = seconds(barrier, name="barrier", owner=owner)
        self.hook = hook
        self.seal = seal_of(hash_keys, owner)
        self.max_bytes = at_least_one(max_bytes, name="max_bytes", owner=owner)
        self._counters: list[Counters] = []
        self._own_counters = self.counters(owner)
        self.move(namespace, None if redis is None else _checked(redis, owner))

    def move(self, namespace: str, redis: Any) -> None:
        """Go on in another namespace, with another client, and with nothing known of before: for tests."""
        self.namespace, self.redis = namespace, redis
        self._loops = Loops()

    def here(self) -> LoopState:
        """The state of the running event loop."""
        return self._loops.here()

    def client(self, plan: CallPlan, values: dict[str, Any]) -> Any:
        """The client of a call: what the call itself has, else the cache's own. None means: just run the function."""
        found = plan.redis(values)
        if found is not MISSING:
            return found
        return self.own(plan)

    def own(self, plan: CallPlan) -> Any:
        """The cache's own client, for a call that has none. None where the function may do without."""
        return self.redis if plan.redis_optional or self.switch.is_off() else self._own(plan.function)

    def _own(self, owner: str) -> Any:
        if self.redis is None:
            raise OptionError(
                f"{owner}: no Redis: give it a parameter `redis`, its instance an attribute `redis`, "
                "or Cache(redis=...)"
            )
        return self.redis

    def store(self, client: Any) -> Store:
        """The store behind `client`: one for each server, so that a client per request finds what others know."""
        recent, thread, loop, latest = self._loops.recent
        if recent() is client and thread == get_ident() and (running := loop()) is not None and running.is_running():
            found: Store = latest
            return found
        state = self.here()
        pool = getattr(client, "connection_pool", None) or _checked(client, type(self).__name__)
        store = state.by_pool.get(pool)
        if store is None:
            server = _server(_checked(client, type(self).__name__), pool)
            store = state.stores.get(server)
            if store is None:
                store = state.stores[server] = Store(
                    namespace=self.namespace,
                    timeout=self.timeout,
                    lease=self.lease,
                    barrier=self.barrier,
                    on_error=self.on_error,
                    near=self.near,
                    heads=self.near_heads,
                    owned=self.owned,
                    switch=self.switch,
                    cluster=is_cluster(client),
                )
                tell = self._own_counters.tell  # not a method of this cache: its stores may outlive it for a moment
                store.obstacles.listeners.append(lambda kind, detail: tell(kind, "", detail))
                store.owe(client, state.owed.pop(server, {}))
            state.by_pool[pool] = store
        self._loops.recent = ref(client), get_ident(), ref(asyncio.get_running_loop()), store
        return store

    def background(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` whatever becomes of the caller. What it cannot do with an unwell Redis lapses by time."""
        tasks = self.here().tasks
        task = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(tasks.discard)
        task.add_done_callback(_forgive)
        return task

    def reload(self, store: Store, keys: Iterable[str], work: Callable[[list[str]], Coroutine[Any, Any, None]]) -> None:
        """Run `work(keys)` whatever becomes of the caller, for the keys that nobody here is reloading already."""
        reloads = self.here().reloads
        mine = [key for key in keys if (store, key) not in reloads]
        if not mine:
            return
        task = asyncio.get_running_loop().create_task(work(mine))
        places = [(store, key) for key in mine]
        reloads.update(dict.fromkeys(places, task))

        def done(_: object) -> None:
            for place in places:
                del reloads[place]

        task.add_done_callback(done)

    async def shielded(self, work: Coroutine[Any, Any, Any]) -> None:
        """Run `work` to its end even if the caller is cancelled while waiting for it."""
        await asyncio.shield(self.background(work))

    def disabled(self) -> AbstractContextManager[None]:
        """While inside, this task and those that it starts go past the cache: `with cache.disabled(): ...`.

        Cached functions just run, with Redis or without; nothing is read and nothing is stored. What is invalidated
        is invalidated all the same, since others go on reading. The module-level decorators' is `default_cache`.
        """
        return self.switch.off()

    def counters(self, function: str) -> Counters:
        """The counters of one more decorated function."""
        counters = Counters(function, self.hook)
        self._counters.append(counters)
        return counters

    def stats(self) -> Stats:
        """The sum over all functions decorated with this cache, in this process."""
        return Counters.total(self._counters)

    async def invalidate(
        self, prefix: str | Iterable[str] = (), *, keys: Iterable[str] = (), redis: Redis | None = None
    ) -> None:
        """Delete now what lies under each prefix (`"user:*"`; no placeholders) and the exact `keys`.

        A key may be given as a function's `key()` gives it, with the namespace, or without it.

        For writes that no decorated function made. With Redis unreachable it is repeated until it succeeds, or raises
        CacheUnavailableError if the cache was made with on_error="raise".

        Raises:
            PatternError: a prefix that cannot be.
            OptionError: no Redis anywhere.
        """
        owner = f"{type(self).__name__}.invalidate"
        texts = [prefix] if isinstance(prefix, str) else list(prefix)
        found = [made for text in texts for made in _plain_prefixes(text, owner)]
        client = self._own(owner) if redis is None else redis
        before = f"{self.namespace}:" if self.namespace else ""
        named = dict.fromkeys(name for key in keys for name in (key, key.removeprefix(before)))
        await self.delete(client, found, list(named))

    async def delete(self, client: Any, prefixes: Sequence[Prefix], keys: Sequence[str]) -> None:
        """Invalidate by hand, with no transaction in sight; goes on if the caller is cancelled."""
        store = self.store(client)
        if self.on_error == "raise":
            task = asyncio.ensure_future(store.invalidate(client, prefixes, keys))
            await asyncio.shield(task)
        else:
            await self.shielded(store.invalidate_soon(client, prefixes, keys))

    async def aclose(self, limit: float = 5.0) -> None:
        """Let what runs in the background of this loop come to its end, for at most `limit` seconds.

        Clients stay open: they are the caller's.
        """
        await settled()
        await self.here().aclose(limit)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def _forgive(task: asyncio.Task[Any]) -> None:
    """Take note of how it ended, so that nobody else complains of an unwell Redis."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, CacheUnavailableError):
        raise error


def _plain_prefixes(text: str, owner: str) -> list[Prefix]:
    template = Template.parse(text, owner=owner, kind="prefix")
    if template.fields:
        raise PatternError(f"{owner}: prefix {text!r} has placeholders, and nothing here fills them")
    return prefixes_of(template, ())


_CLUSTERS = ("RedisCluster", "ValkeyCluster")


def _checked(client: Any, owner: str) -> Any:
    """Refuse what cannot be a client before it is first used."""
    if not getattr(getattr(client, "connection_pool", None), "is_master", True):
        raise OptionError(
            f"{owner}: redis={client!r} reads from replicas, which may be behind: give it master_for(...)"
        )
    for option in ("read_from_replicas", "load_balancing_strategy"):
        if (value := getattr(client, option, None)) not in (None, False):
            raise OptionError(f"{owner}: redis=... has {option}={value!r}: replicas may be behind, read from masters")
    if any(cls.__name__ in _CLUSTERS for cls in type(client).__mro__) and not is_cluster(client):
        raise OptionError(f"{owner}: {type(client).__name__}: not the cluster client of redis.asyncio")
    execute = getattr(client, "execute_command", None)
    if not inspect.iscoroutinefunction(execute):
        raise OptionError(f"{owner}: redis={client!r} must be a redis.asyncio client")
    return client


def _server(client: Any, pool: Any) -> Hashable:
    """What tells one server's data from another's."""
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
