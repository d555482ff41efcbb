"""What a hit costs that never leaves the process: key, lookup, decode.

fastrdb's near cache against cashews' client_side, and against a floor written by hand. cashews gives all callers one
object that any of them may change; fastrdb does so with frozen models only, and decodes others. So the floor is a
`dict` of bytes with `validate_json` for the one, and a `dict` of objects for the other. That nothing leaves the process
is read off the server's own counters.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import replace
from functools import partial
from importlib import import_module
from typing import Any

from pydantic import TypeAdapter
from redis.asyncio import Redis
from sqlalchemy.ext.asyncio import AsyncSession

from benchmarks.catalogue import FrozenUser, Loads, UserOut, fields, user
from benchmarks.comparison import Case, idle_sessions, table
from benchmarks.contestants.base import HOST, LIFE
from benchmarks.contestants.field import NOT_INSTALLED, NOT_YET
from benchmarks.harness import Known, Round, Sizes, interleaved
from benchmarks.machine import installed
from benchmarks.report import Limit, Row, absent
from fastrdb import Cache, OptionError
from fastrdb.testing.server import EmbeddedServer

KEYS = 100
LONGER = 20
"""As many times the calls of other questions are in a round, since these are short."""
PATIENCE = 100
"""Passes over all keys within which a near cache must have them."""
CASHEWS = "cashews, client_side"
DECODED, SHARED = "dict + validate_json", "dict of objects"
PLAIN = {CASHEWS: Limit("speed", bar=8, aim=15), DECODED: Limit("ratio", aim=2)}
FROZEN = {CASHEWS: Limit("speed", bar=15), "fastrdb": Limit("value", aim=1.5e-6)}
READS = ("get", "mget", "eval", "evalsha", "fcall")
Make = Callable[[Loads], Any]


def plain(loads: Loads) -> Any:
    """A function of a number alone."""

    async def get_user(number: int) -> UserOut:
        loads.note()
        return user(number)

    return get_user


def frozen(loads: Loads) -> Any:
    """The same with a frozen model."""

    async def get_user(number: int) -> FrozenUser:
        loads.note()
        return FrozenUser(**fields(number))

    return get_user


def plain_in_session(loads: Loads) -> Any:
    """As the tutorial has it."""

    async def get_user(db: AsyncSession, redis: Redis, number: int) -> UserOut:
        loads.note()
        return user(number)

    return get_user


def frozen_in_session(loads: Loads) -> Any:
    """The same with a frozen model."""

    async def get_user(db: AsyncSession, redis: Redis, number: int) -> FrozenUser:
        loads.note()
        return FrozenUser(**fields(number))

    return get_user


def decoding(loads: Loads) -> Any:
    """The floor of a plain model: bytes in a `dict`."""
    stored, adapter = {number: user(number).model_dump_json().encode() for number in range(KEYS)}, TypeAdapter(UserOut)

    async def get_user(number: int) -> UserOut:
        return adapter.validate_json(stored[number])

    return get_user


def sharing(loads: Loads) -> Any:
    """The floor of a frozen model: objects in a `dict`."""
    stored = {number: FrozenUser(**fields(number)) for number in range(KEYS)}

    async def get_user(number: int) -> FrozenUser:
        return stored[number]

    return get_user


CASES: tuple[tuple[Case, Make, dict[str, Make]], ...] = (
    (Case("near", "near hit, f(number)", PLAIN), plain, {DECODED: decoding}),
    (Case("near", "near hit, frozen, f(number)", FROZEN), frozen, {SHARED: sharing}),
    (Case("near", "near hit, f(db, redis, number)", PLAIN), plain_in_session, {}),
    (Case("near", "near hit, frozen, f(db, redis, number)", FROZEN), frozen_in_session, {}),
)


async def rows(sizes: Sizes) -> list[Row]:
    """Plain and frozen models, functions of a number alone and as the tutorial has them."""
    found = []
    with EmbeddedServer() as server:
        async with Redis(host=HOST, port=server.port) as client, idle_sessions(1) as [db]:
            for case, function, floors in CASES:
                await client.flushall()
                others = (db, client) if "db" in case.name else ()
                found += await _measured(case, sizes, client, others, function, floors)
    return found


async def _measured(
    case: Case, sizes: Sizes, client: Redis, others: tuple[Any, ...], function: Make, floors: Mapping[str, Make]
) -> list[Row]:
    """Put both near caches on the function, wait until neither asks the server any more, and time them."""
    loads = {name: Loads() for name in ("fastrdb", CASHEWS, *floors)}
    async with AsyncExitStack() as stack:
        calls = {
            "fastrdb": _ours(stack, client, function(loads["fastrdb"])),
            CASHEWS: _cashews(stack, client, function(loads[CASHEWS])),
            **{name: make(loads[name]) for name, make in floors.items()},
        }
        sides: dict[str, Round] = {name: partial(_each, call, others) for name, call in calls.items() if call}
        if not sides:
            return [absent("near", case.name, "fastrdb", NOT_YET), absent("near", case.name, CASHEWS, NOT_INSTALLED)]
        asking = {name for name in sides if not await _settled(client, sides[name])}
        before, reads = {name: loads[name].count for name in sides}, await _reads(client)
        timings = await interleaved(sides, rounds=sizes.rounds, calls=sizes.calls * LONGER, draw=Known(KEYS).take)
        after = await _reads(client)
    ran = {name: loads[name].count - before[name] for name in sides}
    # Whoever still asked the server has not been near; a stray read (a heartbeat, a late key) is.
    wrong = asking or after - reads > sum(timings.calls.values()) / 1_000
    missing = [absent("near", case.name, "fastrdb", NOT_YET)] if calls["fastrdb"] is None else []
    found = table(case, {}, timings, ran, {name for name in ran if ran[name]})
    found += [absent("near", case.name, CASHEWS, NOT_INSTALLED)] if calls[CASHEWS] is None else []
    note = f"{after - reads} reads of the server; asking for ever: {', '.join(sorted(asking)) or 'nobody'}"
    return [*missing, *(replace(row, void=True, note=note) if wrong and row.value else row for row in found)]


async def _each(call: Any, others: tuple[Any, ...], numbers: Sequence[int]) -> None:
    for number in numbers:
        await call(*others, number)


def _ours(stack: AsyncExitStack, client: Redis, function: Any) -> Any:
    """The function under a cache that has a near one, if this version has."""
    settings: dict[str, Any] = {"near": True}
    try:
        cache = Cache(client, **settings)
    except OptionError:
        return None
    stack.push_async_callback(cache.aclose)
    return cache.cached("near:{number}", exp=LIFE)(function)


def _cashews(stack: AsyncExitStack, client: Redis, function: Any) -> Any:
    """The function under cashews with its client_side, if it is installed."""
    if installed("cashews") is None:
        return None
    cache: Any = import_module("cashews").Cache()
    cache.setup(f"redis://{HOST}:{client.connection_pool.connection_kwargs['port']}/0", client_side=True)
    stack.push_async_callback(cache.close)
    return cache(ttl=LIFE, key="near:{number}")(function)


async def _settled(client: Redis, calls: Round) -> bool:
    """Whether a pass over all keys comes to be answered without the server."""
    for _ in range(PATIENCE):
        before = await _reads(client)
        await calls(range(KEYS))
        if await _reads(client) == before:
            return True
        await asyncio.sleep(0.01)  # the connection on which the server tells of changes may still be opening
    return False


async def _reads(client: Redis) -> int:
    """How many commands that read entries the server has had."""
    stats = await client.info("commandstats")
    return sum(int(stats[f"cmdstat_{name}"]["calls"]) for name in READS if f"cmdstat_{name}" in stats)
