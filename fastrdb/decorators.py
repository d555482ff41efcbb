"""`cached`, `cached_list`, `invalidates`: what is put on a function, and what it then carries.

The only home of wrapt, which keeps signature, name, docstring and binding; the work is done in `loads` and
`invalidations`. A wrapper of wrapt loses its typed extras when bound, so the types are published as Protocols with
two `__get__` overloads, and there is one cast.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Any, ClassVar, Concatenate, ParamSpec, Protocol, TypedDict, TypeVar, Unpack, cast, overload

import wrapt

from .cache import BaseCache
from .calls import MISSING, CallPlan
from .codec import Codec
from .errors import OptionError
from .events import Stats
from .invalidations import Invalidation
from .loads import CachedQuery, Explanation, check_unused
from .policy import Policy, Seconds

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)
_Self = TypeVar("_Self")
_Owner = TypeVar("_Owner")
MYPY = False  # true for mypy alone, whose convention this name is


class Cached(Protocol[P, T_co]):
    """A cached function. Its extras take the function's own arguments; what no key needs may be left out."""

    @property
    def __wrapped__(self) -> Callable[P, Coroutine[Any, Any, Any]]:
        """The function itself, without the cache."""
        ...

    @property
    def stats(self) -> Stats:
        """The counts of this function in this process."""
        ...

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> Coroutine[Any, Any, T_co]:
        """The function's result, from Redis where it is there."""
        ...

    def key(self, *args: Any, **kwargs: Any) -> str:
        """The key in Redis."""
        ...

    async def invalidate(self, *args: Any, **kwargs: Any) -> None:
        """Delete this entry; with a session that has a transaction open, when that commits."""
        ...

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> T_co:
        """Load now, and store."""
        ...

    async def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        """Have `value`, just written in the session's open transaction, stored when that commits."""
        ...

    async def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        """What a call would find, and why it may not be stored."""
        ...

    # No checker tells a protocol whether it sits on a class or static method: the first parameter has to. mypy finds
    # that parameter only in a Callable, pyright only in this protocol, so each rule stands here twice.
    @overload
    def __get__(  # type: ignore[misc]
        self: Callable[Concatenate[type[_Owner], Q], Coroutine[Any, Any, T]],
        instance: _Owner | None,
        owner: type[_Owner],
        /,
    ) -> Cached[Q, T]: ...
    if not MYPY:

        @overload
        def __get__(
            self: Cached[Concatenate[type[_Owner], Q], T], instance: _Owner | None, owner: type[_Owner], /
        ) -> Cached[Q, T]: ...

    @overload
    def __get__(self, instance: None, owner: type, /) -> Cached[P, T_co]: ...
    @overload
    def __get__(
        self: Callable[Concatenate[_Self, Q], Coroutine[Any, Any, T]], instance: _Self, owner: type | None = None, /
    ) -> Cached[Q, T]: ...
    if not MYPY:

        @overload
        def __get__(
            self: Cached[Concatenate[_Self, Q], T], instance: _Self, owner: type | None = None, /
        ) -> Cached[Q, T]: ...

    @overload
    def __get__(self, instance: object, owner: type | None = None, /) -> Cached[P, T_co]: ...


class _Mapped(Protocol):
    """An ORM class: what `schema=` turns into the schema."""

    __mapper__: ClassVar[Any]


_Row = TypeVar("_Row", bound=_Mapped)


class _WithSchema(Protocol[S]):
    """The decorator with `schema=`: rows of a mapped class come out as the schema, in the shape they had."""

    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, _Row]], /) -> Cached[P, S]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, _Row | None]], /) -> Cached[P, S | None]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, Sequence[_Row]]], /
    ) -> Cached[P, list[S]]: ...
    @overload
    def __call__(  # pyright: ignore[reportOverlappingOverload]
        self, function: Callable[P, Coroutine[Any, Any, Sequence[_Row] | None]], /
    ) -> Cached[P, list[S] | None]: ...
    @overload
    def __call__(self, function: Callable[P, Coroutine[Any, Any, Any]], /) -> Cached[P, S]: ...


class _WithoutSchema(Protocol):
    """The decorator without `schema=`: what the function declares."""

    def __call__(self, function: Callable[P, Coroutine[Any, Any, T]], /) -> Cached[P, T]: ...


class _ListWithSchema(Protocol[S]):
    """`cached_list` with `schema=`: rows come out as a list of the schema."""

    def __call__(self, function: Callable[P, Coroutine[Any, Any, Any]], /) -> Cached[P, list[S]]: ...


class Options(TypedDict, total=False):
    """The options of a cached function. All durations are seconds, `float | timedelta`."""

    exp: Seconds
    """How long an entry lives; an hour by default."""
    jitter: float
    """A fraction of `exp`, 0 <= jitter < 1: each entry lives up to that much shorter, so that not all end at once."""
    negative_exp: Seconds | None
    """Cache None, and SQLAlchemy's NoResultFound, this long. Without it None lives like any value, errors are not kept."""
    wait: Seconds
    """The longest wait for another caller's load; then the function runs, and its result is not stored. 5 by default."""
    cache_if: Callable[[Any], bool] | None
    """Is asked with each result whether to store it."""
    ignore: Sequence[str]
    """Parameters that are no part of the key, because they do not change the result."""
    stale: Seconds
    fail_safe: Seconds
    early: float
    near: None


class _Extras:
    """What a cached function carries, by itself and bound to an instance alike."""

    _self_query: CachedQuery
    __wrapped__: Any

    def _self_values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        instance = getattr(self.__wrapped__, "__self__", None)
        return self._self_query.plan.bind(instance, args, kwargs, partial=True)

    @property
    def query(self) -> CachedQuery:
        return self._self_query

    @property
    def stats(self) -> Stats:
        return self._self_query.counters.snapshot()

    def key(self, *args: Any, **kwargs: Any) -> str:
        return self._self_query.full_key(self._self_values(args, kwargs))

    async def invalidate(self, *args: Any, **kwargs: Any) -> None:
        await self._self_query.invalidate(self._self_values(args, kwargs))

    async def refresh(self, *args: Any, **kwargs: Any) -> Any:
        values = self._self_values(args, kwargs)
        return await self._self_query.get(partial(self.__wrapped__, *args, **kwargs), values, refresh=True)

    async def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        await self._self_query.put(value, self._self_values(args, kwargs))

    async def explain(self, *args: Any, **kwargs: Any) -> Explanation:
        return await self._self_query.explain(self._self_values(args, kwargs))


class _BoundCached(_Extras, wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]
    @property
    def _self_query(self) -> CachedQuery:  # type: ignore[override]
        return cast("CachedQuery", self._self_parent._self_query)


class _CachedFunction(_Extras, wrapt.FunctionWrapper):  # type: ignore[type-arg]
    __bound_function_wrapper__ = _BoundCached

    def __init__(self, function: Any, query: CachedQuery) -> None:
        bind, get = query.plan.bind, query.get

        def call(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return get(partial(wrapped, *args, **kwargs), bind(instance, args, kwargs))

        super().__init__(function, call)
        self._self_query = query


F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])


class Cache(BaseCache):
    """A cache in Redis, and the decorators that use it. See `BaseCache.__init__` for the settings.

    The module-level `cached`, `cached_list` and `invalidates` belong to a plain `Cache()`.
    """

    @overload
    def cached(self, pattern: str, *, schema: None = None, **options: Unpack[Options]) -> _WithoutSchema: ...
    @overload
    def cached(self, pattern: str, *, schema: type[S], **options: Unpack[Options]) -> _WithSchema[S]: ...
    def cached(self, pattern: str, *, schema: Any = None, **options: Unpack[Options]) -> Any:
        """Answer calls of an async function from Redis, under `pattern` filled with its arguments.

        Args:
            pattern: such as `"user:email:{email}"`; a placeholder is a parameter or a dotted attribute of one.
            schema: for functions that return ORM rows: what is made of them, on a miss as on a hit.
            options: see `Options`.

        Raises:
            PatternError: a placeholder that is no parameter, or a pattern that cannot tell two calls apart.
            OptionError: a sync function, one without return type, or an option that cannot be.
            SchemaError: a type whose values would not come back from JSON as they went in.
        """
        return partial(self._cached, "cached", pattern, schema, MISSING, options)

    @overload
    def cached_list(self, list_pattern: str, *, schema: None = None, **options: Unpack[Options]) -> _WithoutSchema: ...
    @overload
    def cached_list(self, list_pattern: str, *, schema: type[S], **options: Unpack[Options]) -> _ListWithSchema[S]: ...
    def cached_list(self, list_pattern: str, *, schema: Any = None, **options: Unpack[Options]) -> Any:
        """`cached` for functions that give a list: `schema` is that of one item. Raises what `cached` raises."""
        return partial(self._cached, "cached_list", list_pattern, schema, list[Any], options)

    def invalidates(self, prefix: str | Iterable[str] = (), *, keys: Iterable[str] = ()) -> Callable[[F], F]:
        """After this async function has succeeded and its transaction is committed, nothing older is in the cache.

        Args:
            prefix: one or several, such as `"user:*"` or `"user:{user_id}:*"`; `{result.…}` is what the function gives.
            keys: exact patterns.

        Raises:
            PatternError: an unknown placeholder.
            OptionError: a sync function, or neither prefix nor keys.
        """
        prefixes = [prefix] if isinstance(prefix, str) else list(prefix)
        return partial(self._invalidates, prefixes, list(keys))

    def _cached(self, decorator: str, pattern: str, schema: Any, shape: Any, options: Options, function: Any) -> Any:
        chosen: dict[str, Any] = dict(options)
        plan = CallPlan.of(function, pattern=pattern, ignore=chosen.pop("ignore", ()), decorator=decorator)
        owner = plan.function
        if unknown := chosen.keys() - Options.__annotations__.keys():
            raise OptionError(f"{owner}: {decorator} has no option {', '.join(sorted(unknown))}")
        later: dict[str, Any] = {name: chosen.pop(name) for name in ("stale", "fail_safe", "early", "near") if name in chosen}
        check_unused(later, owner)
        policy = Policy.of(owner, **{"exp": 3600.0, **chosen})
        annotation = plan.return_type
        if annotation is MISSING:
            if schema is None:
                raise OptionError(f"{owner}: declare what it returns, or give schema=: its values must be read back")
            annotation = shape
        codec = Codec(annotation, schema=schema, owner=owner)
        return _CachedFunction(function, CachedQuery(self, plan, codec, policy))

    def _invalidates(self, prefixes: list[str], keys: list[str], function: Any) -> Any:
        plan = CallPlan.of(function, pattern=None, prefixes=prefixes, keys=keys, decorator="invalidates")
        if not prefixes and not keys:
            raise OptionError(f"{plan.function}: invalidates needs a prefix or keys")
        run = Invalidation(self, plan).run

        def call(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return run(partial(wrapped, *args, **kwargs), plan.bind(instance, args, kwargs))

        return wrapt.FunctionWrapper(function, call)


default_cache = Cache()
cached = default_cache.cached
cached_list = default_cache.cached_list
invalidates = default_cache.invalidates
