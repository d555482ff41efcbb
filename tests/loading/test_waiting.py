"""A caller waits for another caller's load only while that can end in an answer for both."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from fastrdb import Cache, Event
from fastrdb.singleflight import Flight
from fastrdb.testing import Gates
from tests.races.mechanisms import label, without
from tests.races.seams import Change

WAIT = 60  # seconds, which the callers of this module may wait for others
LIMIT = 25.0  # a call that waits longer waits for `wait`
LOOK = 0.05  # so soon a caller looks again at a load that it waits for: elsewhere, after a `timeout`


class Text(str):
    """A text that comes back from JSON as a plain one."""

    __slots__ = ()


class Caller:
    """A cached function, and what happens in its calls."""

    def __init__(self, client: Redis, engine: AsyncEngine) -> None:
        self.client, self.engine, self.gates = client, engine, Gates()
        self.events: list[Event] = []
        self.cache = Cache(hook=self.events.append)
        self.result: Callable[[], Any] = lambda: Text("a")

        @self.cache.cached("one", wait=WAIT)
        async def one(db: AsyncSession, redis: Redis) -> int:
            found: int = (await db.execute(text("SELECT 1"))).scalar_one()
            await self.gates.leave("load")
            return found

        @self.cache.cached("name", wait=WAIT)
        async def name(redis: Redis) -> str:
            await self.gates.arrive("load")
            return self.result()  # type: ignore[no-any-return]

        @self.cache.cached("rows", wait=WAIT)
        async def rows(redis: Redis) -> list[tuple[int, str]]:
            async with AsyncSession(self.engine) as db:
                found: Any = (await db.execute(text("SELECT 1 AS id, 'a' AS name"))).all()
            await self.gates.leave("load")
            return list(found)

        self.one, self.name, self.rows = one, name, rows

    def count(self, kind: str) -> int:
        """Return how many events of a kind there were."""
        return sum(event.kind == kind for event in self.events)

    async def until(self, kind: str, count: int = 1) -> None:
        """Wait for so many events of a kind."""
        while self.count(kind) < count:  # noqa: ASYNC110  # a hook cannot be awaited
            await asyncio.sleep(0)


@pytest.fixture
async def caller(client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Caller]:
    """Return a caller whose pool has two connections, and which looks soon, though Redis has all its time."""
    join = Flight.join

    async def look_soon(flight: Flight, wait: float, asked: int = 0, *, fresh: bool = False) -> Any:
        return await join(flight, min(wait, LOOK), asked, fresh=fresh)

    monkeypatch.setattr(Flight, "join", look_soon)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/one.sqlite", pool_size=1, max_overflow=1)
    made = Caller(client, engine)
    yield made
    made.gates.open_all()
    await made.cache.aclose()
    await engine.dispose()


async def last_connection(caller: Caller, limit: float = LIMIT) -> None:
    """Ask with the last connection of the pool for what another caller, without a connection, is about to load."""
    async with AsyncSession(caller.engine) as mine, AsyncSession(caller.engine) as busy:
        await mine.execute(text("SELECT 1"))
        await busy.execute(text("SELECT 1"))
        async with AsyncSession(caller.engine) as theirs:
            other = asyncio.create_task(caller.one(theirs, caller.client))
            await caller.until("load")
            try:
                async with asyncio.timeout(limit):
                    assert await caller.one(mine, caller.client) == 1
                assert not other.done()
            finally:
                await mine.close()
                assert await other == 1


async def no_queue(caller: Caller, limit: float = LIMIT) -> None:
    """Ask twice at once for a result without an entry: each caller loads its own."""
    await caller.name(caller.client)
    gate = caller.gates.before("load")
    first = asyncio.create_task(caller.name(caller.client))
    await gate.reached()
    async with asyncio.timeout(limit):
        assert type(await caller.name(caller.client)) is Text
    assert not first.done()
    gate.open()
    await first


@pytest.mark.parametrize("race", [last_connection, no_queue], ids=label)
async def test_caller_does_not_wait_in_vain(caller: Caller, race: Callable[..., Awaitable[None]]) -> None:
    """The call loads by itself instead."""
    await race(caller)
    assert caller.count("bypass") == 1


@pytest.mark.parametrize(
    ("change", "race"),
    [(without("last-connection-noticed"), last_connection), (without("unstorable-alone"), no_queue)],
    ids=label,
)
async def test_caller_waits_without_the_mechanism(
    caller: Caller, monkeypatch: pytest.MonkeyPatch, change: Change, race: Callable[..., Awaitable[None]]
) -> None:
    """The waits are as long as `wait`."""
    change.apply(monkeypatch.setattr)
    with pytest.raises(TimeoutError):
        await race(caller, 1.0)


async def test_load_with_a_connection_is_waited_for(caller: Caller, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that holds the last connection joins a load that has one: the load is not done twice."""
    gate, again, join, waits = caller.gates.after("load"), asyncio.Event(), Flight.join, count(1)

    async def counted(flight: Flight, *arguments: Any, **options: Any) -> Any:
        if next(waits) == 2:
            again.set()
        return await join(flight, *arguments, **options)

    monkeypatch.setattr(Flight, "join", counted)
    async with AsyncSession(caller.engine) as mine, AsyncSession(caller.engine) as theirs:
        await mine.execute(text("SELECT 1"))
        other = asyncio.create_task(caller.one(theirs, caller.client))
        await gate.reached()
        follower = asyncio.create_task(caller.one(mine, caller.client))
        await again.wait()  # one timeout has passed, after which a caller looks at the load that it waits for
        gate.open()
        assert list(await asyncio.gather(other, follower)) == [1, 1]
    assert (caller.count("load"), caller.count("join")) == (1, 1)


async def test_rows_are_shared_although_no_entry_holds_them(caller: Caller) -> None:
    """Rows for tuples have no entry. Callers at once share one load, and each gets a list of its own."""
    gate = caller.gates.after("load")
    calls = [asyncio.create_task(caller.rows(caller.client)) for _ in range(3)]
    await gate.reached()
    await caller.until("miss", 3)
    gate.open()
    found = await asyncio.gather(*calls)
    assert found[0] == found[1] == found[2]
    assert found[0][0].name == "a"  # type: ignore[attr-defined]
    assert len({id(each) for each in found}) == 3
    assert (caller.count("load"), caller.count("join")) == (1, 2)


async def test_function_whose_results_are_not_stored_says_so_once(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    """The log, `explain` and the counters give the reason, until a result is stored."""
    for _ in range(2):
        await caller.name(caller.client)
    (record,) = caplog.records
    assert "Text comes back as str" in record.getMessage()
    await asyncio.gather(*caller.cache.runtime.here().tasks)  # the leases are given back
    assert (await caller.name.explain(caller.client)).reasons == (
        "the latest result was not stored: value: Text comes back as str (2 in all)",
    )
    assert caller.name.stats.unstored == 2
    caller.result = lambda: "a"
    await caller.name(caller.client)
    assert (await caller.name.explain(caller.client)).reasons == ()
