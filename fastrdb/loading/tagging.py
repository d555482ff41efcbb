"""The tags of a load: those that its function declares, and those of its statements."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from inspect import Parameter, signature
from typing import TYPE_CHECKING, Any

from fastrdb.keys import END, shown
from fastrdb.protocol import UNKNOWN
from fastrdb.transactions import RunningLoad, loads_around, next_order, running, schema_maps

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from fastrdb.orm import Declared
    from fastrdb.singleflight import Flight

_MOST_TAGS = 64
"""An entry with more tags has those of the whole tables instead."""
Tags = Mapping[str, tuple[str, ...]]


def declared_tags(given: Declared | None, arguments: Mapping[str, Any], session: Session | None) -> tuple[str, ...]:
    """Return the tags that a function declares for these arguments. What the database takes for equal counts."""
    if given is None:
        return ()
    dialect, schemas = "", [] if session is None else schema_maps(session)
    if session is not None:
        with suppress(Exception):  # a session without an engine, or with several
            dialect = session.get_bind().dialect.name
    return tuple(given.tags(arguments, dialect, schemas))


def hand_on(tags: Tags, inside: RunningLoad | None = None) -> None:
    """Add what a function declares to the loads around its call: their results hold its result."""
    if tags and running.get() is not None:
        found = {tag for each in tags.values() for tag in each}
        for load in loads_around():
            if load is not inside:
                load.add(found)


def begin_tags(tags: Tags, load: RunningLoad, flights: Collection[Flight]) -> None:
    """Note when a load begins to read, for the callers that wait for it: from now on, by statements or without any."""
    hand_on(tags, load)
    begun = next_order()
    for flight in flights:
        flight.begun = begun


def end_tags(asked: Sequence[str], tags: Tags, load: RunningLoad) -> Tags:
    """Return what was declared with the tags of the load's statements: each of many keys has all of these."""
    found = {key: sorted({*tags.get(key, ()), *load.tags}) for key in asked}
    return {key: _few(each) for key, each in found.items()}


def _few(tags: Sequence[str]) -> tuple[str, ...]:
    if len(tags) <= _MOST_TAGS:
        return tuple(tags)
    return tuple(sorted({f"{tag.removesuffix(END).partition(':')[0]}{END}" for tag in tags}))


def written(tag: bytes) -> str:
    """Say which table a writer has reached while an entry was loaded."""
    if tag == UNKNOWN:
        return "Redis has lost what was written while this was loaded"
    table, _, row = tag.decode().removesuffix(END).partition(":")
    name = f"{table}.{shown(row.partition('=')[0])}" if row else table
    return "something was written while this was loaded" if name == "*" else f"{name} was written while this was loaded"


def arguments_of(run: Any) -> dict[str, Any]:
    """Return the arguments of a call by name, those with defaults and other keywords included."""
    bound = signature(run.func).bind(*run.args, **run.keywords)
    bound.apply_defaults()
    found = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is Parameter.VAR_KEYWORD:
            found = {**found.pop(name), **found}
    target = getattr(run.func, "__self__", None)
    return found if target is None else {"self": target, **found}
