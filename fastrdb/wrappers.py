"""The objects that stand for decorated functions: the only home of wrapt, which keeps name, docstring and binding.

A wrapper is copied, pickled and inspected as the function itself would be. With `schema=` its return annotation is the
schema, since that is what a call returns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from functools import partial
from inspect import Signature, signature
from types import MethodType
from typing import TYPE_CHECKING, Any, Self
from weakref import WeakKeyDictionary

import wrapt
from pydantic import JsonValue

from .errors import OptionError, SchemaError
from .invalidation import follows
from .keys import MISSING, filled, open_in, type_in, variables
from .loading import CachedFunction, Explanation, Stored
from .options import flag
from .registry import SHORT_S, Registered
from .runtime import Runtime
from .values import left_open

if TYPE_CHECKING:
    from .events import Stats
    from .keys import Inspected


class _Bound(wrapt.BoundFunctionWrapper):  # type: ignore[type-arg]
    """A decorated method that is bound to an instance or a class, or that was looked up on its class."""

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        own = getattr(self.__wrapped__, "__self__", None)
        copied = deepcopy(own, memo)
        return self if copied is own else self._self_parent.__get__(copied, type(copied))

    def __reduce_ex__(self, protocol: Any) -> Any:
        method: Any = self.__wrapped__
        if isinstance(method, MethodType):
            return method.__reduce_ex__(protocol)
        return getattr, (self._self_owner, method.__name__)


class _Function(wrapt.FunctionWrapper):  # type: ignore[type-arg]
    """A decorated function: a copy is the function itself, and a pickle holds the name."""

    __bound_function_wrapper__ = _Bound

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        return self

    def __reduce_ex__(self, protocol: object) -> str:
        name: str = self.__qualname__
        return name


class _Extras:
    """The methods of a cached function, by itself and bound to an instance alike.

    The class declares no attribute: `__annotations__` of the class would hide those of the function.
    """

    @property
    def query(self: Any) -> CachedFunction:
        query: CachedFunction = self._self_query
        return query

    @property
    def stats(self: Any) -> Stats:
        return self.query.counters.snapshot()  # type: ignore[no-any-return]

    def key(self, /, *args: Any, **kwargs: Any) -> str:
        return self.query.full_key(_values(self, args, kwargs))

    async def invalidate(self, /, *args: Any, **kwargs: Any) -> int | None:
        return await self.query.invalidate(_values(self, args, kwargs, several=True))

    async def refresh(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        run = partial(self.__wrapped__, *args, **kwargs)
        return await self.query.refresh(run, _values(self, args, kwargs, several=True))

    async def put(self, value: Any, /, *args: Any, **kwargs: Any) -> None:
        await self.query.put(value, _values(self, args, kwargs))

    async def peek(self: Any, /, *args: Any, **kwargs: Any) -> Stored | None:
        return await self.query.peek(  # type: ignore[no-any-return]
            getattr(self.__wrapped__, "__self__", None), args, kwargs
        )

    async def explain(self, /, *args: Any, **kwargs: Any) -> Explanation:
        return await self.query.explain(_values(self, args, kwargs))


def _values(wrapper: Any, args: tuple[Any, ...], kwargs: dict[str, Any], *, several: bool = False) -> Any:
    instance = getattr(wrapper.__wrapped__, "__self__", None)
    return wrapper.query.bind(instance, args, kwargs, several=several)


class _WithReturnType:
    """A cached function that returns another type than the function declares."""

    @property
    def __annotations__(self: Any) -> dict[str, Any]:  # type: ignore[override]
        return {**self.__wrapped__.__annotations__, "return": self.query.returns}

    @property
    def __signature__(self: Any) -> Signature:
        return signature(self.__wrapped__).replace(return_annotation=self.query.returns)


class _BoundCached(_Extras, _Bound):
    @property
    def __func__(self) -> Any:
        """Return the cached function that is bound here, of which `inspect.signature` reads the return annotation."""
        method: Any = self.__wrapped__
        function, parent = method.__func__, self._self_parent
        return parent if parent.__wrapped__ is function else cached_wrapper(function, self.query)

    @property
    def _self_query(self) -> CachedFunction:
        query: CachedFunction = self._self_parent._self_query
        return query


class _CachedCallable(_Extras, _Function):
    """A cached function as `cached_wrapper` makes it, which adds the call."""

    def __init__(self, function: Any, query: CachedFunction) -> None:
        super().__init__(function, _unused)
        self._self_query = query

    def __set_name__(self, owner: type, name: str) -> None:
        self.query.plan.variant.belongs_to(owner)
        if (inner := getattr(type(self.__wrapped__), "__set_name__", None)) is not None:
            inner(self.__wrapped__, owner, name)


class _GenericMethod(_Extras, _Function):
    """A cached method of a generic class: each subclass has a cached function of its own, made at its first use."""

    def __init__(self, function: Any, found: Inspected, made: Callable[[Inspected], Any]) -> None:
        super().__init__(function, _unused)
        self._self_found, self._self_made = found, made
        self._self_by_class: WeakKeyDictionary[type, Any] = WeakKeyDictionary()

    def __set_name__(self, owner: type, name: str) -> None:
        for variable in open_in(owner, self._self_found.return_type):
            raise SchemaError(left_open(self._self_found.name, variable))

    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        cls = type(instance) if owner is None else owner
        if instance is None and variables(self._self_type(cls)):
            return self  # the instance comes with the call
        return self._self_of(cls).__get__(instance, owner)

    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        if not args:
            return self.__wrapped__(**kwargs)  # says what is missing
        cls = args[0] if isinstance(args[0], type) else type(args[0])
        return self._self_of(cls).__get__(args[0], cls)(*args[1:], **kwargs)

    @property
    def query(self) -> CachedFunction:
        found = self._self_found
        raise SchemaError(left_open(found.name, variables(found.return_type)[0].__name__))

    def _self_keep(self, registered: Any) -> None:
        """Keep the place of the function in the registry for as long as the function lives."""
        self._self_registered = registered

    def _self_of(self, cls: type) -> Any:
        made = self._self_by_class.get(cls)
        if made is None:
            found = self._self_found
            name = f"{cls.__qualname__}.{found.name.rpartition('.')[2]}"
            made = self._self_made(replace(found, name=name, return_type=self._self_type(cls)))
            self._self_by_class[cls] = made
        return made

    def _self_type(self, cls: type) -> Any:
        """Return the type of the values in a subclass, as far as the classes say it."""
        home = self.__module__, self._self_found.name.rpartition(".")[0]
        defining = next((each for each in cls.__mro__ if (each.__module__, each.__qualname__) == home), cls)
        return type_in(cls, defining, self._self_found.return_type)


def by_class(function: Any, found: Inspected, made: Callable[[Inspected], Any], registered: Callable[..., Any]) -> Any:
    """Return the wrapper of a function: where type variables leave its type open, one for each subclass.

    `made` returns the cached function of what was inspected, and `registered` the wrapper of that.
    """
    names = variables(found.return_type)
    if not names or not found.takes_instance:
        return registered(made(found))
    # All but the types is checked and registered here: a prefix that reaches the pattern is no mistake.
    kept = made(replace(found, return_type=filled(found.return_type, dict.fromkeys(names, JsonValue))))
    wrapper = _GenericMethod(function, found, lambda inspected: registered(made(inspected)))
    wrapper._self_keep(registered(kept))
    _refuse_one_key(kept, found)
    return wrapper


def _refuse_one_key(query: CachedFunction, found: Inspected) -> None:
    """Raise OptionError for subclasses that would store values of several types under one key."""
    instance, plan = found.parameters[0].name, query.plan
    if plan.variant.shared and plan.pattern is not None and instance not in plan.pattern.names:
        raise OptionError(
            f"{found.name}: shared=True gives all subclasses the same keys, and each has values of another type: name "
            f"what makes the difference in the pattern, such as {{{instance}.name}}"
        )


def cached_wrapper(function: Any, query: CachedFunction) -> Any:
    """Return a function with its cache around it.

    Each function gets classes of its own, which hold its call: wrapt's own `__call__`, or any attribute of an object
    that wrapt makes, costs as much as all the rest of a near hit. A bound method has its instance in `__self__`.
    """
    answer = query.answer

    def bound_call(self: Any, /, *args: Any, **kwargs: Any) -> Any:
        method = self.__wrapped__
        return answer(method, getattr(method, "__self__", None), args, kwargs)

    first: tuple[type, ...] = () if query.returns is MISSING else (_WithReturnType,)
    bound = type(_BoundCached.__name__, (*first, _BoundCached), {"__call__": bound_call})
    call = staticmethod(query.answering(function))
    own = {"__call__": call, "__bound_function_wrapper__": bound}
    return type(_CachedCallable.__name__, (*first, _CachedCallable), own)(function, query)


def invalidating_wrapper(function: Any, call: Callable[..., Any]) -> Any:
    """Return a function of which each call goes through `call`, which gets function, instance and arguments."""
    return _Function(function, call)


def _unused(wrapped: Any, instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Fill a parameter of wrapt: the wrappers' own `__call__` comes first."""
    return wrapped(*args, **kwargs)


# --- its place in the registry


def register(
    runtime: Runtime, decorator: str, function: Any, found: Inspected, options: Mapping[str, Any], query: CachedFunction
) -> Any:
    """Set the options of a cached function, put it into the registry, and return its wrapper."""
    query.declare(options.get("depends_on"), found, decorator)
    query.follows = follows(runtime.follower, found, decorator, options.get("auto"))
    query.tagged = query.tagged or query.follows
    plan, module = query.plan, getattr(function, "__module__", "")
    plain = getattr(function, "__func__", function)
    version = query.codec.version(options.get("version"))
    shared = flag(options.get("shared", False), name="shared", owner=plan.function)
    endless = flag(options.get("never_invalidated", False), name="never_invalidated", owner=plan.function)
    plan.variant.settle(module, found.name, version, shared=shared)
    query.registered = runtime.registry.add(
        Registered(
            plan.function,
            module,
            decorator,
            query.counters,
            {**options},
            plan.pattern,
            query.codec.type,
            of_subclass=plan.function != found.name,
            code=getattr(plain, "__code__", None),
            fixed=(
                *(getattr(plain, name, None) for name in ("__defaults__", "__kwdefaults__")),
                id(getattr(function, "__self__", None)),
            ),
            shared=shared,
            ends=query.tagged or endless or query.policy.exp_ms <= SHORT_S * 1000,
            plan=plan,
        )
    )
    return cached_wrapper(function, query)
