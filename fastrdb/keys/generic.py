"""Type variables in the return type of a generic class's method: what each subclass puts in their place."""

from __future__ import annotations

import sys
import typing
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, TypeVar, get_args, get_origin


def variables(annotation: Any) -> tuple[Any, ...]:
    """Return the type variables that an annotation mentions."""
    if isinstance(annotation, TypeVar):
        return (annotation,)
    of_model = getattr(annotation, "__pydantic_generic_metadata__", {})  # a generic model of pydantic says it there
    found = of_model.get("parameters", getattr(annotation, "__parameters__", ()))
    return found if isinstance(found, tuple) else ()


def filled(annotation: Any, types: Mapping[Any, Any]) -> Any:
    """Return the annotation with `types` in the place of its type variables; one without a type stays."""
    names = variables(annotation)
    if not names or not any(name in types for name in names):
        return annotation
    given = tuple(types.get(name, name) for name in names)
    return given[0] if names == (annotation,) else annotation[given]


def type_in(cls: type, home: type, annotation: Any) -> Any:
    """Return the annotation of a method that stands in `home`, as the subclass `cls` has it.

    What no class between the two says stays a type variable.
    """
    with suppress(TypeError, ValueError):  # a TypeVarTuple, or what a generic model refuses
        return filled(annotation, _arguments(cls, home))
    return annotation


def open_in(home: type, annotation: Any) -> list[str]:
    """Return the names of the type variables that no subclass of `home` can fill, since the class has others."""
    own = {name for base in _bases(home) for name in (*variables(base), *getattr(home, "__type_params__", ()))}
    return [each.__name__ for each in variables(annotation) if each not in own]


def _arguments(cls: type, home: type) -> dict[Any, Any]:
    """Return what stands for each type variable of `home` in its subclass `cls`."""
    if cls is home:
        return {}
    found: dict[Any, Any] = {}
    for base in _bases(cls):
        origin = get_origin(base) or base
        if isinstance(origin, type) and issubclass(origin, home):
            names = getattr(origin, "__parameters__", ())
            args = [_evaluated(each, cls) for each in get_args(base)]
            given = dict(zip(names, args, strict=True)) if args else _defaults(names)
            inner = {name: name for name in names} if origin is home else _arguments(origin, home)
            for name, each in inner.items():
                found.setdefault(name, filled(each, given))
    return found


def _bases(cls: type) -> tuple[Any, ...]:
    found: tuple[Any, ...] = cls.__dict__.get("__orig_bases__", cls.__bases__)
    return found


def _defaults(names: tuple[Any, ...]) -> dict[Any, Any]:
    """Return the defaults of type variables that a subclass does not mention."""
    return {name: name.__default__ for name in names if getattr(name, "has_default", bool)()}


def _evaluated(annotation: Any, cls: type) -> Any:
    """Return the annotation with the names in it evaluated where the subclass is defined: `Repo["AuthorOut"]`."""

    def holder() -> None: ...

    holder.__annotations__ = {"it": annotation}
    with suppress(Exception):  # whatever an annotation's own code may raise
        return typing.get_type_hints(holder, vars(sys.modules[cls.__module__]), include_extras=True)["it"]
    return annotation
