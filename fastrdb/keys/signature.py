"""What a function declares: its parameters, their types, and which of them are its Redis, its session, its self."""

from __future__ import annotations

import inspect
import re
import sys
import typing
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, is_dataclass
from enum import Enum
from functools import lru_cache
from types import FrameType
from typing import Any, ForwardRef, Literal, get_origin

from fastrdb.errors import OptionError

from .declared import MISSING, members
from .encoding import scalar_base

Role = Literal["value", "redis", "session", "self"]

_REDIS = frozenset(("Redis", "RedisCluster", "StrictRedis", "Valkey", "ValkeyCluster"))
_SESSION = frozenset(("AsyncSession", "async_scoped_session"))
_SELF = frozenset(("self", "cls", "mcs"))
_POSITIONAL = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter: `default` and `declared` are MISSING where there is none."""

    name: str
    kind: Any
    default: Any
    declared: Any
    role: Role


@dataclass(frozen=True, slots=True)
class Inspected:
    """A function, inspected once."""

    name: str
    signature: inspect.Signature
    parameters: tuple[Parameter, ...]
    return_type: Any
    takes_instance: bool | None
    """Whether the first parameter is the instance or class it is bound to; None: only if a call brings one."""

    def of_kind(self, kind: Any) -> str | None:
        """Name of the first parameter of that kind."""
        return next((each.name for each in self.parameters if each.kind is kind), None)


def inspect_function(fn: Any, decorator: str) -> Inspected:
    """What *fn* declares; it may be a function, a method, a classmethod or staticmethod, or any wrapper of these.

    Raises:
        OptionError: *fn* is not a coroutine function.
    """
    function = fn.__func__ if isinstance(fn, classmethod | staticmethod) or inspect.ismethod(fn) else fn
    name = getattr(function, "__qualname__", None) or repr(function)
    if not inspect.iscoroutinefunction(function):
        raise OptionError(f"@{decorator} on {name}: not a coroutine function; declare it with 'async def'")
    signature = _signature(function)
    hints = _Hints(function)
    declared = {each.name: hints.resolve(each.annotation) for each in signature.parameters.values()}
    first = next((each.name for each in signature.parameters.values() if each.kind in _POSITIONAL), None)
    takes = _takes_instance(fn, first, declared)
    roles = _roles(declared, first if takes else None)
    parameters = tuple(
        Parameter(each.name, each.kind, _given(each.default), declared[each.name], roles[each.name])
        for each in signature.parameters.values()
    )
    return Inspected(name, signature, parameters, hints.resolve(signature.return_annotation), takes)


def _signature(function: Callable[..., Any]) -> inspect.Signature:
    if sys.version_info >= (3, 14):  # annotations are evaluated here, and may name what only type checkers import
        import annotationlib  # noqa: PLC0415 - not in earlier versions

        return inspect.signature(function, annotation_format=annotationlib.Format.FORWARDREF)
    return inspect.signature(function)


def _given(value: Any) -> Any:
    return MISSING if value is inspect.Parameter.empty else value


def _takes_instance(fn: Any, first: str | None, declared: Mapping[str, Any]) -> bool | None:
    if first is None or isinstance(fn, staticmethod):
        return False
    if isinstance(fn, classmethod) or inspect.ismethod(fn):
        return True
    if first in _SELF and not _is_keyable(declared[first]):  # `cls: str` is a school class, and part of the key
        return True
    return None


class _Hints:
    """Evaluates one function's annotations, one by one: one that fails leaves the others whole."""

    def __init__(self, function: Any) -> None:
        inner = inspect.unwrap(function)
        self._globals: dict[str, Any] = getattr(inner, "__globals__", {})
        self._locals = {each.__name__: each for each in getattr(inner, "__type_params__", ())}

    def resolve(self, annotation: Any) -> Any:
        """The type; MISSING if there is none; the annotation as it stands if it names what is not there."""
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
    """Names in the functions and class bodies of *module* that are running: a model may be local to the decoration."""
    found: list[dict[str, Any]] = []
    frame: FrameType | None = inspect.currentframe()
    while frame is not None:
        if frame.f_globals is module and frame.f_locals is not module:
            found.append(frame.f_locals)
        frame = frame.f_back
    return {name: value for names in reversed(found) for name, value in names.items()}


def _roles(declared: Mapping[str, Any], instance: str | None) -> dict[str, Role]:
    """The part that each parameter plays. An annotation decides; a name only where no annotation does."""
    roles: dict[str, Role] = {name: _annotated_role(each) for name, each in declared.items()}
    for role, names in (("redis", ("redis",)), ("session", ("db", "session"))):
        named = next((name for name in names if name in roles and not _is_keyable(declared[name])), None)
        if role not in roles.values() and named is not None and roles[named] == "value":
            roles[named] = role  # type: ignore[assignment]
    if instance is not None:
        roles[instance] = "self"
    return roles


def _annotated_role(declared: Any) -> Role:
    names = {name for each in members(declared) for name in _names_of(each)}
    if names & _REDIS:
        return "redis"
    return "session" if names & _SESSION else "value"


def _names_of(member: Any) -> set[str]:
    """Class names that matter: from the MRO, or from the text of an annotation that cannot be evaluated."""
    if isinstance(member, str):
        return set(re.findall(r"\w+", member))
    origin = get_origin(member)
    cls = member if origin is None else origin
    return class_names(cls) if isinstance(cls, type) else set()


def class_names(cls: type) -> set[str]:
    """Names of the class and its bases, as far as they come from a Redis client or from SQLAlchemy."""
    homes = ("redis", "valkey", "sqlalchemy")
    return {base.__name__ for base in cls.__mro__ if base.__module__.partition(".")[0].startswith(homes)}


def is_redis(value: Any) -> bool:
    """Whether *value* is a Redis client (or does what one does)."""
    return not isinstance(value, type) and callable(getattr(value, "execute_command", None))


def is_session(value: Any) -> bool:
    """Whether *value* is an AsyncSession or a scoped one."""
    cls: Any = type(value)
    return _is_session_type(cls)


def redis_of(instance: Any) -> Any:
    """`instance.redis`, which may be None; MISSING where there is none, or it is no client."""
    found = MISSING if instance is None else getattr(instance, "redis", MISSING)
    return found if found is None or is_redis(found) else MISSING


def session_of(instance: Any) -> Any:
    """`instance.db` or else `instance.session`, whichever is one; else None."""
    own = (getattr(instance, name, None) for name in ("db", "session"))
    return next((each for each in own if is_session(each)), None)


@lru_cache(maxsize=256)
def _is_session_type(cls: type) -> bool:
    return bool(class_names(cls) & _SESSION)


def _is_keyable(declared: Any) -> bool:
    """Whether the declared type has values for keys: `session: str` is a session's id, and no AsyncSession."""
    if declared is MISSING:
        return False
    return any(get_origin(each) is not None or _is_value_type(each) for each in members(declared))


def _is_value_type(member: Any) -> bool:
    if not isinstance(member, type):
        return False
    model = is_dataclass(member) or hasattr(member, "__pydantic_fields__")
    return model or scalar_base(member) is not None or issubclass(member, Enum | list | tuple | set | frozenset | dict)
