"""`cached`, `cached_list`, `invalidates`: what is put on a function, and what it then carries.

The only home of wrapt, which keeps signature, name, docstring and binding; the work is done in `loads` and
`invalidations`, and what type checkers see is in `protocols`.
"""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from typing import Any, Self, TypeVar, Unpack, cast, overload

import wrapt

from .errors import OptionError
from .events import Stats
from .invalidation import Invalidation
from .keys import MISSING, CallPlan, inspect_function
from .loading import CachedFunction, CachedMany, Explanation, Policy
from .runtime import BaseCache
from .typing import Cached as Cached
from .typing import ListWithSchema, ManyWithSchema, Options, WithoutSchema, WithSchema
from .values import Codec

S = TypeVar("S")
F = TypeVar("F", bound=Callable[..., Coroutine[Any, Any, Any]])


class _Function(wrapt.FunctionWrapper):  # type: ignore[type-arg]
    """Is copied and pickled as functions are: a copy is the function itself, and what is pickled is where it is."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> str:
        name: str = self.__qualname__
        return name


class _Extras:
    """What a cached function carries, by itself and bound to an instance alike."""

    _self_query: CachedFunction
    __wrapped__: Any

    def _self_values(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        instance = getattr(self.__wrapped__, "__self__", None)
        return self._self_query.plan.bind(instance, args, kwargs, partial=True)

    @property
    def query(self) -> CachedFunction:
        return self._self_query

    @property
    def stats(self) -> Stats:
        return self._self_query.counters.snapshot()

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        return self._self_query.full_key(self._self_values(args, kwargs))

    async def invalidate(self, /, *args: Any, **kwargs: Any) -> None:
        await self._self_query.invalidate(self._self_values(args, kwargs))

    async def refresh(self, /, *args: Any, **kwargs: Any) -> Any:
        return await self._self_query.refresh(
            partial(self.__wrapped__, *args, **kwargs), self._self_values(args, kwargs)
        )

    async def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        await self._self_query.put(value, self._self_values(args, kwargs))

    async def explain(self, /, *args: Any, **kwargs: Any) -> Explanation:
        return await self._self_query.explain(self._self_values(args, kwargs))


class _BoundCached(_Extras, wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]
    @property
    def _self_query(self) -> CachedFunction:  # type: ignore[override]
        return cast("CachedFunction", self._self_parent._self_query)


class _CachedCallable(_Extras, _Function):
    """Made by `_wrapped` only, which gives it its call."""

    def __init__(self, function: Any, query: CachedFunction) -> None:
        super().__init__(function, _unused)
        self._self_query = query


def _wrapped(function: Any, query: CachedFunction) -> Any:
    """A function with its cache around it.

    Each is of classes of its own, which have its call in them: wrapt's own `__call__`, or any attribute asked of what
    wrapt makes, costs as much as all the rest of a near hit. What a method is bound to, the method itself tells.
    """
    answer = query.answer

    def bound_call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        method = self.__wrapped__
        return answer(method, getattr(method, "__self__", None), args, kwargs)

    bound = type(_BoundCached.__name__, (_BoundCached,), {"__call__": bound_call})
    call = staticmethod(query.answering(function))
    own = {"__call__": call, "__bound_function_wrapper__": bound}
    return type(_CachedCallable.__name__, (_CachedCallable,), own)(function, query)


def _unused(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What wrapt wants to be given: the wrappers' own `__call__` comes first."""
    return wrapped(*args, **kwargs)


class Cache(BaseCache):
    """A cache in Redis, and the decorators that use it. See `BaseCache.__init__` for the settings.

    The module-level `cached`, `cached_list` and `invalidates` belong to a plain `Cache()`.
    """

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
            PatternError: a placeholder that is no parameter, or a pattern that cannot tell two calls apart.
            OptionError: a sync function, one without return type, or an option that cannot be.
            SchemaError: a type whose values would not come back from JSON as they went in.
        """
        return partial(self._cached, "cached", pattern, schema, MISSING, options)

    @overload
    def cached_list(self, list_pattern: str, *, schema: None = None, **options: Unpack[Options]) -> WithoutSchema: ...
    @overload
    def cached_list(self, list_pattern: str, *, schema: type[S], **options: Unpack[Options]) -> ListWithSchema[S]: ...
    def cached_list(self, list_pattern: str, *, schema: Any = None, **options: Unpack[Options]) -> Any:
        """`cached` for functions that give a list: `schema` is that of one item. Raises what `cached` raises."""
        return partial(self._cached, "cached_list", list_pattern, schema, list[Any], options)

    @overload
    def cached_many(self, pattern: str, *, schema: None = None, **options: Unpack[Options]) -> WithoutSchema: ...
    @overload
    def cached_many(self, pattern: str, *, schema: type[S], **options: Unpack[Options]) -> ManyWithSchema[S]: ...
    def cached_many(self, pattern: str, *, schema: Any = None, **options: Unpack[Options]) -> Any:
        """`cached` for functions that take a list of ids, and give a mapping by id or a list in the order of the ids.

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
        return partial(self._cached_many, pattern, schema, options)

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
        ignore = options.get("ignore", ())
        plan = CallPlan.of(function, pattern=pattern, ignore=ignore, decorator=decorator, seal=self.seal)
        owner = plan.function
        near = _near(owner, options, self.near_by_default)
        policy = _policy(owner, decorator, options)
        annotation = plan.return_type
        if annotation is MISSING:
            if schema is None:
                raise OptionError(f"{owner}: declare what it returns, or give schema=: its values must be read back")
            annotation = shape
        codec = Codec(annotation, schema=schema, owner=owner)
        return _wrapped(function, CachedFunction(self, plan, codec, policy, near=near))

    def _cached_many(self, pattern: str, schema: Any, options: Options, function: Any) -> Any:
        decorator = "cached_many"
        found = inspect_function(function, decorator)
        policy = _policy(found.name, decorator, options)
        near, ignore = _near(found.name, options, self.near_by_default), options.get("ignore", ())
        query = CachedMany.of(self, found, pattern, policy, schema=schema, ignore=ignore, near=near)
        return _wrapped(function, query)

    def _invalidates(self, prefixes: list[str], keys: list[str], function: Any) -> Any:
        plan = CallPlan.of(
            function, pattern=None, prefixes=prefixes, keys=keys, decorator="invalidates", seal=self.seal
        )
        if not prefixes and not keys:
            raise OptionError(f"{plan.function}: invalidates needs a prefix or keys")
        run = Invalidation(self, plan).run

        def call(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            return run(partial(wrapped, *args, **kwargs), plan.bind(instance, args, kwargs))

        return _Function(function, call)


def _policy(owner: str, decorator: str, options: Options) -> Policy:
    if unknown := options.keys() - Options.__annotations__.keys():
        raise OptionError(f"{owner}: {decorator} has no option {', '.join(sorted(unknown))}")
    chosen: dict[str, Any] = {name: value for name, value in options.items() if name not in {"ignore", "near"}}
    return Policy.of(owner, **{"exp": 3600.0, **chosen})


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
