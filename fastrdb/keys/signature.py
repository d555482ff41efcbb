"""What a function declares: its parameters, their types, their roles, its list of ids and the shape of its result.

Each function is inspected once, where it is decorated.
"""

from __future__ import annotations

import inspect
import re
import sys
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from collections.abc import Set as AbstractSet
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from types import FrameType, NoneType
from typing import Any, Final, ForwardRef, Literal, get_args, get_origin

from fastrdb.errors import OptionError, PatternError, SchemaError

from .declared import MAPPINGS, MISSING, SCALARS, SEQUENCES, is_keyable, members

Role = Literal["value", "redis", "session", "self"]

_REDIS = frozenset(("Redis", "RedisCluster", "StrictRedis", "Valkey", "ValkeyCluster"))
_SCOPED = "async_scoped_session"  # may be another session when the load begins
_SESSION = frozenset(("AsyncSession", "AsyncConnection", _SCOPED))
SESSIONS = ("db", "session")
"""Names that a session has where no annotation says what it is, and among keyword arguments."""
_SELF = frozenset(("self", "cls", "mcs"))
FIXED: Final = frozenset((*SCALARS, NoneType))
"""Types of which no value can change."""
_CLIENTS_AND_SESSIONS = ("redis.", "sqlalchemy.ext.asyncio")  # modules of their types
_SEVERAL = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: `default` and `declared` are MISSING where there is none.

    `by_name`: the name alone gives the role, so that an argument may turn out to be a plain value.
    """

    name: str
    kind: Any
    default: Any
    declared: Any
    role: Role
    by_name: bool = False

    @property
    def type(self) -> Any:
        """The declared type of the argument: of `*args`, that of the whole tuple."""
        if self.kind is inspect.Parameter.VAR_POSITIONAL and self.declared is not MISSING:
            return types.GenericAlias(tuple, (self.declared, ...))
        return self.declared


@dataclass(frozen=True, slots=True)
class Inspected:
    """A function, inspected once. `takes_instance` None: its first parameter is an instance only in a bound call."""

    name: str
    parameters: tuple[Parameter, ...]
    return_type: Any
    takes_instance: bool | None

    def of_kind(self, kind: Any) -> str | None:
        """Return the name of the first parameter of that kind, or None."""
        return next((each.name for each in self.parameters if each.kind is kind), None)


def inspect_function(fn: Any, decorator: str) -> Inspected:
    """Return what *fn* declares: a function, a method, a classmethod or staticmethod, or a wrapper of one of these.

    Raises:
        OptionError: *fn* is not a coroutine function.
    """
    function = fn.__func__ if isinstance(fn, classmethod | staticmethod) or inspect.ismethod(fn) else fn
    name = getattr(function, "__qualname__", None) or repr(function)
    if inspect.isasyncgenfunction(function):
        raise OptionError(f"@{decorator} on {name}: an async generator; return a list in place of `yield`")
    if isinstance(function, property):
        name = getattr(function.fget, "__qualname__", name)
        raise OptionError(f"@{decorator} on {name}: a property; put @property above @{decorator}")
    if not inspect.iscoroutinefunction(function):
        raise OptionError(f"@{decorator} on {name}: not a coroutine function; declare it with 'async def'")
    signature = _signature(function)
    hints = _Hints(function)
    declared = {each.name: hints.resolve(each.annotation) for each in signature.parameters.values()}
    first = next((each.name for each in signature.parameters.values() if each.kind in _POSITIONAL), None)
    takes = _takes_instance(fn, name, first, declared)
    named = {each.name for each in signature.parameters.values() if each.kind not in _SEVERAL}
    roles, by_name = _roles(declared, named, first if takes else None)
    for each in signature.parameters.values():
        if each.kind in _SEVERAL and (role := roles[each.name]) in ("redis", "session"):
            several = f"parameter '{str(each).partition(':')[0]}' takes any number of arguments"
            raise OptionError(f"@{decorator} on {name}: {several}, and one of them is its {role}; name each of them")
    parameters = tuple(
        Parameter(each.name, each.kind, default, declared[each.name], roles[each.name], each.name in by_name)
        for each in signature.parameters.values()
        for default in [MISSING if each.default is inspect.Parameter.empty else each.default]
    )
    return Inspected(name, parameters, hints.resolve(signature.return_annotation), takes)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # annotations are evaluated here, and may name what only type checkers import
        import annotationlib  # noqa: PLC0415 - not in earlier versions

        return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(function)


def _takes_instance(fn: Any, name: str, first: str | None, declared: Mapping[str, Any]) -> bool | None:
    if first is None or isinstance(fn, staticmethod):
        return False
    if isinstance(fn, classmethod) or inspect.ismethod(fn):
        return True
    in_class = "." in name.rpartition("<locals>.")[2]
    if in_class and first in _SELF and not is_keyable(declared[first]):  # `cls: str` is a school class, and a value
        return True
    return None


class _Hints:
    """The annotations of one function, evaluated one by one: one that fails leaves the others whole."""

    def __init__(self, function: Any) -> None:
        inner = inspect.unwrap(function)
        self._globals: dict[str, Any] = getattr(inner, "__globals__", {})
        self._locals = {each.__name__: each for each in getattr(inner, "__type_params__", ())}

    def resolve(self, annotation: Any) -> Any:
        """Return the type; MISSING without one; the annotation as it stands if it names what is not there."""
        if annotation is inspect.Parameter.empty:
            return MISSING
        for also_callers in (False, True):
            names = _locals_of_callers(self._globals) if also_callers else {}
            with suppress(Exception):  # whatever an annotation's own code may raise
                return self._evaluate(annotation, {**names, **self._locals})
        return annotation.__forward_arg__ if isinstance(annotation, ForwardRef) else annotation

    def _evaluate(self, annotation: Any, names: Mapping[str, Any]) -> Any:
        def holder() -> None: ...

        holder.__annotations__ = {"it": annotation}
        return typing.get_type_hints(holder, self._globals, dict(names), include_extras=True)["it"]


def _locals_of_callers(module: dict[str, Any]) -> dict[str, Any]:
    """Return the names in the running functions and class bodies of *module*: a model may be local to one of them."""
    found: list[dict[str, Any]] = []
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is module and frame.f_locals is not module:
            found.append(frame.f_locals)
        frame = frame.f_back
    return {name: value for names in reversed(found) for name, value in names.items()}


# --- roles ------------------------------------------------------------------------------------------------------------


def _roles(
    declared: Mapping[str, Any], single: Collection[str], instance: str | None
) -> tuple[dict[str, Role], set[str]]:
    """Return the role of each parameter, and which have it by name alone: only where no annotation gives that role.

    No name gives a role to a parameter that is not `single`.
    """
    roles: dict[str, Role] = {name: _annotated_role(each) for name, each in declared.items()}
    by_name: set[str] = set()
    pairs: tuple[tuple[Role, tuple[str, ...]], ...] = (("redis", ("redis",)), ("session", SESSIONS))
    for role, names in pairs:
        named = next((name for name in names if name in single and not is_keyable(declared[name])), None)
        if role not in roles.values() and named is not None and roles[named] == "value":
            roles[named] = role
            by_name.add(named)
    if instance is not None:
        roles[instance] = "self"
    return roles, by_name - {instance}


def _annotated_role(declared: Any) -> Role:
    names = {name for each in members(declared) for name in _names_of(each)}
    if names & _REDIS:
        return "redis"
    return "session" if names & _SESSION else "value"


def _names_of(member: Any) -> set[str]:
    """Return the class names that matter: of the MRO, or in the text of an annotation that cannot be evaluated."""
    if isinstance(member, str):
        return set(re.findall(r"\w+", member))
    origin = get_origin(member)
    cls = member if origin is None else origin
    return class_names(cls) if isinstance(cls, type) else set()


def class_names(cls: type) -> set[str]:
    """Return the names of the class and its bases, as far as Redis clients or SQLAlchemy define them."""
    homes = ("redis", "valkey", "sqlalchemy")
    return {base.__name__ for base in cls.__mro__ if base.__module__.partition(".")[0].startswith(homes)}


def is_redis(value: Any) -> bool:
    """Return True for a Redis client, or what does what one does."""
    return not isinstance(value, type) and callable(getattr(value, "execute_command", None))


def is_session(value: Any) -> bool:
    """Return True for an AsyncSession, a scoped one, or an AsyncConnection."""
    cls: Any = type(value)
    return _is_session_type(cls)


def acts_as_session(value: Any) -> bool:
    """Return True for what has the methods of a session or connection, such as a driver's own, or a test's."""
    return any(callable(getattr(value, name, None)) for name in ("execute", "scalar", "scalars", "connect"))


def redis_of(instance: Any) -> Any:
    """Return `instance.redis`, which may be None; MISSING where there is none, or no client."""
    found = MISSING if instance is None else getattr(instance, "redis", MISSING)
    return found if found is None or is_redis(found) else MISSING


def db_of(instance: Any) -> Any:
    """Return the first of `instance.db`, `.session`, `._db` and `._session` that is a session; else None."""
    own = (getattr(instance, name, None) for name in ("db", "session", "_db", "_session"))
    return next((each for each in own if is_session(each)), None)


@lru_cache(maxsize=256)
def _is_session_type(cls: type) -> bool:
    return bool(class_names(cls) & _SESSION)


# --- functions that take a list of ids --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class IdList:
    """The parameter that takes a list, and the declared type of one element (MISSING if the list leaves it open)."""

    parameter: str
    declared: Any

    @classmethod
    def of(cls, found: Inspected, names: Iterable[str], start: str) -> IdList:
        """Return the one list among the parameters in *names*. Raises PatternError, beginning with *start*."""
        lists = {each.name: element for each in found.parameters if (element := _element(each.declared)) is not None}
        named = [name for name in lists if name in set(names)]
        if len(named) != 1:
            if named:
                raise PatternError(f"{start}: {' and '.join(named)} are both lists; one of them must be the ids")
            name = min(names, default="ids")
            known = ", ".join(f"'{each}'" for each in lists) or "no list"
            raise PatternError(
                f"{start}: '{{{name}}}' must be a parameter that is a list of ids, such as {name}: list[int]; "
                f"the function has {known}"
            )
        return cls(named[0], lists[named[0]])

    def one_of(self, found: Inspected) -> Inspected:
        """Return the function as if it took one element."""
        each = [replace(p, declared=self.declared) if p.name == self.parameter else p for p in found.parameters]
        return replace(found, parameters=tuple(each))

    def ids(self, value: Any, function: str) -> Any:
        """Return a copy of an argument: of the same type if that is plain, else a list.

        Raises:
            TypeError: not a list; names *function* and parameter.
        """
        if isinstance(value, str | bytes | Mapping) or not hasattr(type(value), "__iter__"):
            raise TypeError(f"{function}(): '{self.parameter}' must be a list, not {type(value).__qualname__}")
        return type(value)(value) if type(value) in (list, tuple, set, frozenset) else list(value)

    def one(self, value: Any, function: str) -> Any:
        """Return the argument, which must be one element. Raises TypeError, naming *function* and parameter."""
        own = {tuple} if self.declared is MISSING else {get_origin(each) or each for each in members(self.declared)}
        if isinstance(value, tuple(each for each in (list, tuple, set, frozenset) if each not in own)):
            raise TypeError(f"{function}: '{self.parameter}' is one of them here, not {type(value).__qualname__}")
        return value


def _element(declared: Any) -> Any:
    """Return the type of one element, MISSING if the list leaves it open; None for what takes no list."""
    several = members(declared)
    if len(several) != 1:
        return None
    origin, args = get_origin(several[0]), get_args(several[0])
    if origin in SEQUENCES and len(args) == 1:
        return args[0]
    if origin is tuple and len(args) == 2 and args[1] is Ellipsis:
        return args[0]
    return MISSING if several[0] in SEQUENCES or several[0] is tuple else None


@dataclass(frozen=True, slots=True)
class ResultShape:
    """The shape of such a function's result: a mapping by id (of type `key`) or a list in the order of the ids."""

    mapping: bool
    value: Any
    key: Any = MISSING

    @classmethod
    def of(cls, declared: Any, owner: str) -> ResultShape:
        """Return the shape of a return annotation.

        Raises:
            OptionError: there is none.
            SchemaError: it is neither a mapping nor a list.
        """
        if declared is MISSING:
            raise OptionError(f"{owner}: declare what it returns: a mapping by id, or a list in the order of the ids")
        several = members(declared)
        origin, args = get_origin(several[0]), get_args(several[0])
        if len(several) == 1 and NoneType not in get_args(declared):
            if origin in MAPPINGS and len(args) == 2:
                return cls(mapping=True, value=args[1], key=args[0])
            if origin in SEQUENCES and len(args) == 1 and not issubclass(origin, AbstractSet):
                return cls(mapping=False, value=args[0])
        raise SchemaError(
            f"{owner}: it returns {declared}, where a mapping by id (dict[int, User]) or a list in the order of the "
            "ids (list[User | None]) is wanted"
        )

    def of_values(self, value: Any) -> Any:
        """Return the type of a result with values of type *value*."""
        return types.GenericAlias(dict, (self.key, value)) if self.mapping else types.GenericAlias(list, (value,))


def is_fixed(run: partial[Any], copied: int = 0) -> bool:
    """Return True if no argument can change after the call, but for so many of which the load has a copy."""
    kinds = [kind for each in (*run.args, *run.keywords.values()) if (kind := type(each)) not in FIXED]
    fixed = [kind.__module__.startswith(_CLIENTS_AND_SESSIONS) and kind.__name__ != _SCOPED for kind in kinds]
    return fixed.count(False) <= copied and getattr(run.func, "__self__", None) is None
