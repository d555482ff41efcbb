"""A value never gets into the log, at DEBUG neither, nor into what hooks are given beside the key, whatever fails."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from pydantic import BaseModel, field_validator
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, Event
from tests.support.servers.databases import Database

CANARY = "canary-4111"


class Card(BaseModel):
    """A model whose validator quotes what it is given."""

    number: str

    @field_validator("number")
    @classmethod
    def _check(cls, number: str) -> str:
        if number.endswith("?"):
            raise ValueError(f"{number} is no number")
        return number


class Row:
    """Row that a database returns for a card."""

    def __init__(self, number: str) -> None:
        self.number = number


class World:
    """A cache, its client and database, and all that its hooks are given."""

    def __init__(self, client: Redis, database: Database) -> None:
        self.events: list[Event] = []
        self.client, self.database = client, database
        self.cache = Cache(client, hook=self.events.append)

    def count(self, kind: str) -> int:
        """Return the number of events of one kind."""
        return sum(event.kind == kind for event in self.events)

    async def fail(self, number: str) -> str:
        """Send a statement that fails, and whose error quotes its parameter."""
        async with AsyncSession(self.database.engine) as db:
            await db.execute(text("SELECT no_such_function(:number)"), {"number": number})
        return number


async def aged(client: Redis, key: str) -> None:
    """Take the rest of its `exp` from an entry that is kept for another minute."""
    assert await client.pexpire(key, 50_000)


async def reload_that_fails(world: World) -> None:
    """Refuse the statement of a reload in the background."""
    loads = 0

    @world.cache.cached("reload:{number}", stale=60)
    async def load(number: str) -> str:
        nonlocal loads
        loads += 1
        return await world.fail(number) if loads > 1 else number

    await load(CANARY)
    await aged(world.client, load.key(CANARY))
    assert await load(CANARY) == CANARY
    await world.cache.aclose()
    assert world.count("failed") == 1


async def reload_that_does_not_fit(world: World) -> None:
    """Return from a reload in the background what its schema refuses, and quotes."""
    rows = iter([Row(CANARY), Row(f"{CANARY}?")])

    @world.cache.cached("schema:{number}", stale=60, schema=Card)
    async def load(number: str) -> Row:
        return next(rows)

    await load(CANARY)
    await aged(world.client, load.key(CANARY))
    assert (await load(CANARY)).number == CANARY
    await world.cache.aclose()
    assert world.count("failed") == 1


async def database_that_is_away(world: World) -> None:
    """Serve the old value for an error that quotes the address and the value."""
    loads = 0

    @world.cache.cached("away:{number}", fail_safe=60)
    async def load(number: str) -> str:
        nonlocal loads
        loads += 1
        if loads > 1:
            raise ConnectionRefusedError(f"no connection for {number}")
        return number

    await load(CANARY)
    await aged(world.client, load.key(CANARY))
    assert await load(CANARY) == CANARY
    assert world.count("stale") == 1


async def entry_that_is_corrupt(world: World) -> None:
    """Read what another program has put there, of a value's and of a negative entry's form."""

    @world.cache.cached("corrupt:{number}", negative_exp=5)
    async def load(number: str) -> Card:
        return Card(number=number)

    for entry in (f'{{"number":"{CANARY}?"}}', f'"{CANARY}"', f' {{"error":"{CANARY}:{CANARY}","message":"{CANARY}"}}'):
        await world.client.set(load.key(CANARY), entry, ex=60)
        assert (await load(CANARY)).number == CANARY
    assert world.count("corrupt") == 3


async def value_that_is_not_stored(world: World) -> None:
    """Return values of other types than declared, with the canary as key, as value, and in a validator's text."""

    @world.cache.cached("unstored:{number}:{at}")
    async def load(number: str, at: int) -> dict[str, Card]:
        found: list[Any] = [{number: number}, {number: Card.model_construct(number=f"{number}?")}, number, {number: {}}]
        return found[at]  # type: ignore[no-any-return]

    for at in range(4):
        await load(CANARY, at)
    assert world.count("unstored") == 4


async def many_of_which_one_fails(world: World) -> None:
    """Raise an error that quotes the ids."""

    @world.cache.cached_many("many:{numbers}")
    async def load(numbers: list[str]) -> dict[str, str]:
        raise LookupError(numbers)

    with pytest.raises(LookupError):
        await load([CANARY])


async def hook_that_fails(world: World) -> None:
    """Raise an error from a hook that quotes the key."""

    def quote(event: Event) -> None:
        raise ValueError(event.key)

    world.cache.hooks.append(quote)

    @world.cache.cached("hook:{number}")
    async def load(number: str) -> str:
        return number

    await load(CANARY)
    world.cache.hooks.remove(quote)


FAILURES: list[Callable[[World], Awaitable[None]]] = [
    reload_that_fails,
    reload_that_does_not_fit,
    database_that_is_away,
    entry_that_is_corrupt,
    value_that_is_not_stored,
    many_of_which_one_fails,
    hook_that_fails,
]


@pytest.mark.parametrize("failure", FAILURES, ids=lambda failure: failure.__name__)
async def test_no_failure_of_a_load_shows_its_value(
    client: Redis, sqlite: Database, caplog: pytest.LogCaptureFixture, failure: Callable[[World], Awaitable[None]]
) -> None:
    """The log of every level and all fields of events but the key name functions, types and fields only."""
    caplog.set_level(logging.DEBUG, "fastrdb")
    world = World(client, sqlite)
    await failure(world)
    await world.cache.aclose()
    formatter = logging.Formatter("%(levelname)s %(name)s %(message)s")
    said = [formatter.format(record) for record in caplog.records if record.name == "fastrdb"]
    said += [f"{event.function} {event.kind} {event.reason}" for event in world.events]
    assert said
    assert not [line for line in said if "4111" in line]
