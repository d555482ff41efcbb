"""`Cache`: settings, decorators, and what a decorated function carries.

`wrappers` has the objects that stand for decorated functions. `loading` and `invalidation` do the work of one function,
`runtime` is the inside of the cache, and `typing` has what type checkers see.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar, Unpack, overload

from .errors import OptionError
from .events import Counters, Hook, Stats
from .invalidation import Invalidation, follow_with
from .keys import MISSING, CallPlan, Inspected, Prefix, hashed, inspect_function
from .loading import CachedFunction, CachedMany, Policy
from .near import Near
from .options import Seconds, at_least_one, refuse_function, seconds, share, synchronous
from .orm import Declared, Dependency, Rows, Table, images_of
from .protocol import OnError, Readiness
from .registry import Finding, FunctionInfo, Registered
from .runtime import Runtime, checked, disabling
from .transactions import drain
from .typing import Cached as Cached
from .typing import ListWithSchema, ManyWithSchema, Options, S, WithoutSchema, WithSchema
from .values import Codec
from .wrappers import by_class, invalidating_wrapper, register

if TYPE_CHECKING:
    from redis.asyncio import Redis
    from redis.asyncio.cluster import RedisCluster

_NOT_OF_POLICY = frozenset({"auto", "depends_on", "ignore", "near", "shared", "never_invalidated", "version"})
_NONE: Mapping[Any, Any] = MappingProxyType({})
F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])


class Cache:
    """A cache in Redis: its settings, and the decorators that use it.

    The module-level `cached`, `cached_list`, `cached_many` and `invalidates` belong to a plain `Cache()`.
    Durations are seconds.

    Args:
        redis: the client for functions that are not given one.
        near: keep entries in this process as well, with these bounds (True: those of a plain `Near()`), unless a
            function is decorated with near=False; without it, only those with near=True.
        on_error: what a commit does if Redis misses its invalidation: "bypass" lets the commit stand, repairs the
            cache as soon as Redis is back and reads past it until then; "raise" makes the commit fail.
        timeout: the longest that one call waits for Redis, in all its round trips, before it goes on without.
        namespace: put before every key, with a colon: caches with different ones share nothing.
        lease: the longest load whose result is stored.
        barrier: the longest time between a COMMIT's start and its end that is covered.
        hook: called with every `Event`.
        hash_keys: a secret; every value in a key is replaced by its hash under the secret, so that key names do
            not show whose data it is. The entries stay as readable as before.
        max_bytes: a larger entry is answered, and not stored: while it travels, others wait.
        verify: this share of hits (0.001, say) has the entry compared with the database, unless a function says
            otherwise. `cached_many` and functions with never_invalidated=True do not take part. A function that takes
            a session needs session_factory=.
        watched: with `fastrdb watch`: entries are bypassed while the heartbeat of a watcher is older than this.
        auto: invalidate by what SQLAlchemy sends. Each cached function depends on the rows that its statements read.
            Each commit of this process drops what depends on the rows that it has changed. Needs `redis`.
        precision: with auto, "rows" reads rows under a lock before an UPDATE or DELETE, where entries depend on their
            other columns; "tables" never does, and drops more.
        effects: with auto, the tables that are written whenever another one is: `{Order: [Invoice]}`.
        quiet: with auto, columns whose UPDATE drops nothing: `{User: ["last_seen"]}`.
        views: with auto, the tables that a view is made of, where the database's catalog does not say.
        publish: keep the counts of this process in Redis, renewed every 5 seconds. `fastrdb stats`, `fastrdb top`
            and the dashboard add up those of all processes.

    Raises:
        OptionError: naming the option.
    """

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
        max_bytes: int = 1024 * 1024,
        watched: Seconds | None = None,
        publish: bool = False,
        verify: float = 0.0,
        auto: bool = False,
        precision: Literal["rows", "tables"] = "rows",
        effects: Mapping[type[Any] | Table, Sequence[type[Any] | Table]] = _NONE,
        quiet: Mapping[type[Any] | Table, Sequence[str]] = _NONE,
        views: Mapping[str, Sequence[type[Any] | Table]] = _NONE,
    ) -> None:
        owner = type(self).__name__
        if near is not None and not isinstance(near, bool | Near):
            raise OptionError(f"{owner}: near={near!r} must be a Near, True, False or None")
        if on_error not in ("bypass", "raise"):
            raise OptionError(f"{owner}: on_error={on_error!r} must be 'bypass' or 'raise'")
        if not re.fullmatch(r"(?!fastrdb$)[A-Za-z0-9_.\-]*", namespace):  # all of fastrdb's own keys begin so
            raise OptionError(f"{owner}: namespace={namespace!r} must be letters, digits, _ . - and not 'fastrdb'")
        self.runtime = runtime = Runtime(
            owner,
            near=near,
            on_error=on_error,
            timeout=seconds(timeout, name="timeout", owner=owner),
            lease=seconds(lease, name="lease", owner=owner),
            barrier=seconds(barrier, name="barrier", owner=owner),
            hook=synchronous(hook, name="hook", owner=owner, use="a function of an Event"),
            seal=hashed(hash_keys, owner),
            max_bytes=at_least_one(max_bytes, name="max_bytes", owner=owner),
            watched=None if watched is None else seconds(watched, name="watched", owner=owner),
            publish=publish,
        )
        self._verify = share(verify, name="verify", owner=owner)
        runtime.move(namespace, None if redis is None else checked(redis, f"{owner}: redis"))
        runtime.follower = follow_with(runtime, owner, auto, precision, effects, quiet, views)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in (Cache.__init__.__kwdefaults__ or ()):
            raise OptionError(f"{type(self).__name__}: {name}= is given when it is made; hooks go to cache.hooks")
        super().__setattr__(name, value)

    @property
    def redis(self) -> Any:
        """The client for functions that are not given one, or None."""
        return self.runtime.redis

    @property
    def namespace(self) -> str:
        """The text before every key, without its colon."""
        return self.runtime.namespace

    @property
    def hooks(self) -> list[Hook]:
        """The hooks that are called with every `Event`; add your own."""
        return self.runtime.hooks

    @property
    def samplers(self) -> list[Hook]:
        """The hooks that are called with one of 64 hits, and each other event; add your own."""
        return self.runtime.samplers

    # --- the decorators

    @overload
    def cached(self, pattern: str, *, schema: None = None, **options: Unpack[Options]) -> WithoutSchema: ...
    @overload
    def cached(self, pattern: str, *, schema: type[S], **options: Unpack[Options]) -> WithSchema[S]: ...
    def cached(self, pattern: str, *, schema: Any = None, **options: Unpack[Options]) -> Any:
        """Answer calls of an async function from Redis, under `pattern` filled with its arguments.

        Args:
            pattern: such as `"user:email:{email}"`; a placeholder is a parameter or a dotted attribute of one.
            schema: for functions that return ORM rows: what is made of them, on a miss as on a hit.
            options: see `Options`.

        Raises:
            PatternError: a placeholder that is no parameter, or a pattern that gives two calls one key.
            OptionError: a sync function, one without return type, or an option that cannot be.
            SchemaError: a type whose values would come back from JSON changed.
        """
        refuse_function(pattern, "cached", '"user:{email}"')
        return partial(self._cached, "cached", pattern, schema, MISSING, options)

    @overload
    def cached_list(self, list_pattern: str, *, schema: None = None, **options: Unpack[Options]) -> WithoutSchema: ...
    @overload
    def cached_list(self, list_pattern: str, *, schema: type[S], **options: Unpack[Options]) -> ListWithSchema[S]: ...
    def cached_list(self, list_pattern: str, *, schema: Any = None, **options: Unpack[Options]) -> Any:
        """Do what `cached` does for functions that return a list: `schema` is that of one item."""
        refuse_function(list_pattern, "cached_list", '"user:page:{page}:limit:{limit}"')
        return partial(self._cached, "cached_list", list_pattern, schema, list[Any], options)

    @overload
    def cached_many(self, pattern: str, *, schema: None = None, **options: Unpack[Options]) -> WithoutSchema: ...
    @overload
    def cached_many(self, pattern: str, *, schema: type[S], **options: Unpack[Options]) -> ManyWithSchema[S]: ...
    def cached_many(self, pattern: str, *, schema: Any = None, **options: Unpack[Options]) -> Any:
        """Do so for functions that take a list of ids, and return a mapping by id or a list in the order of the ids.

        Each id has an entry of its own, under the same key as in a `cached` function with that pattern. One round trip
        reads them all, and the function is called with the ids that are not there. An id that is left out of the
        mapping, or None in the list, is not there: it is not stored, or for as long as `negative_exp` says.

        Args:
            pattern: such as `"user:id:{ids}"`; the placeholder that names the list stands for one of its elements.
            schema: for functions that return ORM rows: what each is made of, on a miss as on a hit.
            options: see `Options`; `early` is not for it.

        Raises:
            PatternError: no placeholder, or several, that name a list; and what `cached` raises.
            OptionError, SchemaError: what `cached` raises; a return type that is neither mapping nor list.
        """
        refuse_function(pattern, "cached_many", '"user:id:{ids}"')
        return partial(self._cached_many, pattern, schema, options)

    def invalidates(
        self,
        prefix: str | Iterable[str] = (),
        *,
        keys: str | Iterable[str] = (),
        touches: Dependency | Sequence[Dependency] = (),
    ) -> Callable[[F], F]:
        """Invalidate what an async function writes, so that nothing older is cached once its transaction is committed.

        Args:
            prefix: one or several, such as `"user:*"` or `"user:{user_id}:*"`; `{result.…}` is what the function
                returns.
            keys: one or several exact patterns.
            touches: rows that the function writes, so that what depends on them is invalidated: mapped classes, tables,
                or `rows(User, id="{user_id}")`, which may use `{result.…}`.

        Raises:
            PatternError: an unknown placeholder.
            OptionError: a sync function, or neither prefix, keys nor touches.
        """
        refuse_function(prefix, "invalidates", '"user:*"', what="prefix")
        prefixes = [prefix] if isinstance(prefix, str) else list(prefix)
        return partial(self._invalidates, prefixes, [keys] if isinstance(keys, str) else list(keys), touches)

    def _cached(self, decorator: str, pattern: str, schema: Any, shape: Any, options: Options, function: Any) -> Any:
        def made(found: Inspected) -> CachedFunction:
            ignore = options.get("ignore", ())
            plan = CallPlan.of(found, pattern=pattern, ignore=ignore, decorator=decorator, seal=self.runtime.seal)
            owner = plan.function
            near = _near(owner, options, self.runtime.near_by_default)
            policy = _policy(owner, decorator, options, self._verify)
            annotation = plan.return_type
            if annotation is MISSING:
                if schema is None:
                    raise OptionError(f"{owner}: declare what it returns, or give schema=: values must be read back")
                annotation = shape
            codec = Codec(annotation, schema=schema, owner=owner)
            return CachedFunction(self.runtime, plan, codec, policy, near=near)

        return self._decorated(decorator, function, schema, made, options)

    def _cached_many(self, pattern: str, schema: Any, options: Options, function: Any) -> Any:
        decorator = "cached_many"

        def made(found: Inspected) -> CachedFunction:
            policy = _policy(found.name, decorator, options)
            near, ignore = _near(found.name, options, self.runtime.near_by_default), options.get("ignore", ())
            return CachedMany.of(self.runtime, found, pattern, policy, schema=schema, ignore=ignore, near=near)

        return self._decorated(decorator, function, schema, made, options)

    def _decorated(self, decorator: str, function: Any, schema: Any, made: Any, options: Options) -> Any:
        found = inspect_function(function, decorator)
        registered = partial(register, self.runtime, decorator, function, found, options)
        return by_class(function, found, made, registered) if schema is None else registered(made(found))

    def _invalidates(self, prefixes: list[str], keys: list[str], touches: Any, function: Any) -> Any:
        plan = CallPlan.of(
            function, pattern=None, prefixes=prefixes, keys=keys, decorator="invalidates", seal=self.runtime.seal
        )
        if not prefixes and not keys and not touches:
            raise OptionError(f"{plan.function}: invalidates needs a prefix, keys or touches")
        written = None
        if touches:
            names = ["self", "result", *(each.name for each in inspect_function(function, "invalidates").parameters)]
            owner = f"@invalidates on {plan.function}: touches"
            written = Declared(touches, owner=owner, parameters=names)
        counters, given = self.runtime.counters(plan.function), dict(prefix=prefixes, keys=keys)  # noqa: C408
        module, reached = getattr(function, "__module__", ""), plan.templates.patterns
        registered = Registered(plan.function, module, "invalidates", counters, given, prefixes=reached)
        run = Invalidation(self.runtime, plan, self.runtime.registry.add(registered), written).named_run

        def call(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return run(partial(wrapped, *args, **kwargs), plan.bind(instance, args, kwargs))

        return invalidating_wrapper(function, call)

    # --- by hand, and at the end

    async def invalidate(
        self,
        what: str | Dependency | Iterable[str | Dependency] = (),
        *,
        keys: str | Iterable[str] = (),
        redis: Redis | None = None,
    ) -> int | None:
        """Delete now what lies under each prefix (`"user:*"`; no placeholders) and the exact `keys`.

        A mapped class, a table or `rows(...)` of one deletes what depends on these rows.

        For writes that no decorated function made. A key may be given with the namespace, as a function's `key()`
        returns it, or without. With Redis unreachable the deletion is repeated until it succeeds, or raises
        CacheUnavailableError if the cache was made with on_error="raise".

        Returns:
            The number of entries deleted; None if the deletion is to be repeated.

        Raises:
            PatternError: a prefix that cannot be.
            OptionError: no Redis anywhere.
        """
        owner = f"{type(self).__name__}.invalidate"
        given: list[Any] = [what] if callable(what) or isinstance(what, str | Rows | Table) else list(what)
        found = [made for text in given if isinstance(text, str) for made in Prefix.plain(text, owner)]
        images = images_of([each for each in given if not isinstance(each, str)], owner)
        client = self.runtime.required(owner) if redis is None else redis
        before, each_key = f"{self.namespace}:" if self.namespace else "", [keys] if isinstance(keys, str) else keys
        named = dict.fromkeys(name for key in each_key for name in (key, key.removeprefix(before)))
        return await self.runtime.delete(client, [*found, *map(Prefix.variants, named)], list(named), images=images)

    # --- to look at

    def stats(self) -> Stats:
        """Return the sum over all functions decorated with this cache, in this process."""
        return Counters.total(self.runtime.counted)

    def counts(self) -> dict[str, Stats]:
        """Return the counts of each function by its name, in this process, and never fewer than before.

        Functions that are gone are there, too, and invalidations by hand under the name of the cache's class.
        """
        return Counters.by_function(self.runtime.counted)

    def functions(self) -> list[FunctionInfo]:
        """Return each decorated function with pattern, options and counts, in the order of decoration."""
        return self.runtime.registry.infos()

    def check(self) -> list[Finding]:
        """Return what is likely to be a mistake; a test may say `assert not cache.check()`.

        Call it when all modules with decorated functions are imported. It finds: prefixes that reach no function's
        keys; functions that nothing invalidates; prefixes that drop a class's entries at each write; functions of which
        no result was ever stored; functions that share their keys, also with another cache.
        """
        return self.runtime.registry.findings()

    async def ready(self, redis: Redis | RedisCluster | None = None) -> Readiness:
        """Return whether the cache can do its work: a little of it is done, on a key of its own.

        The record is true if it can, so a readiness probe may say `200 if await cache.ready() else 503`. Raises
        OptionError where there is no client.
        """
        client = self.runtime.required(f"{type(self).__name__}.ready") if redis is None else redis
        return await self.runtime.store(client).readiness(client)

    def seen(self) -> dict[str, list[str]]:
        """Return the followed functions of this process with the tables that their loads have read; `*` is any."""
        return {info.function: sorted(info.reads) for info in self.runtime.registry if info.reads}

    def disabled(self) -> AbstractContextManager[None]:
        """Go past the cache inside of `with cache.disabled(): ...`, in this task and those that it starts.

        Cached functions just run, with Redis or without; nothing is read and nothing is stored. Invalidations are
        done all the same, since others go on reading. The module-level decorators' cache is `default_cache`.
        """
        return disabling(self.runtime)

    def untracked(self) -> AbstractContextManager[None]:
        """Follow no writes inside of the block, as for migrations and seeds."""
        return disabling(self.runtime.follower)

    async def aclose(self, limit: float = 5.0) -> None:
        """Wait for what runs in the background of this event loop, at most `limit` seconds.

        Clients stay open, since the caller has made them.
        """
        await drain()
        await self.runtime.aclose(limit)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def _policy(owner: str, decorator: str, options: Options, verify: float = 0.0) -> Policy:
    if unknown := options.keys() - Options.__annotations__.keys():
        raise OptionError(f"{owner}: {decorator} has no option {', '.join(sorted(unknown))}")
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name not in _NOT_OF_POLICY}
    verify = 0.0 if options.get("never_invalidated") else verify  # its entries may be old until their time is over
    return Policy.of(owner, **{"exp": 3600.0, "verify": verify, **chosen})


def _near(owner: str, options: Options, default: bool) -> bool:
    near = options.get("near")
    if near is not None and not isinstance(near, bool):
        raise OptionError(f"{owner}: near={near!r} must be True, False or None: its bounds are the cache's")
    return default if near is None else near


default_cache = Cache()
cached = default_cache.cached
cached_list = default_cache.cached_list
cached_many = default_cache.cached_many
invalidates = default_cache.invalidates
