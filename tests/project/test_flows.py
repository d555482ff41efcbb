"""The calls that each use of fastrdb costs: few enough that a reader can follow one."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from weakref import WeakSet

import pytest
from redis.asyncio import Redis
from sqlalchemy import Engine, event
from sqlalchemy.ext.asyncio import create_async_engine

from fastrdb import Cache
from fastrdb.transactions import follow, listeners
from fastrdb.transport import connection
from tests.support.source.flows import Flows, by_module

MOST_CALLS = {"hit": 17, "near": 9, "miss": 135, "commit": 160, "update": 249, "many": 218, "stale": 214}


@pytest.fixture
def unfollowed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take away what caches with `auto=True` of other tests have left: each statement is looked at for them."""
    heard = {"after_cursor_execute": follow._on_executed, "after_execute": follow._on_result}
    left = {name: listener for name, listener in heard.items() if event.contains(Engine, name, listener)}
    for module in (follow, listeners):
        monkeypatch.setattr(module, "followers", WeakSet())
    for name, listener in left.items():
        event.remove(Engine, name, listener)
    yield
    for name, listener in left.items():
        event.listen(Engine, name, listener)


@pytest.fixture
async def flows(
    unfollowed: None, client: Redis, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Flows]:
    """Prepare the flows on the private server and a SQLite file. What a timer does in between is in no flow."""
    monkeypatch.setattr(connection, "GREETING_S", 3600)
    monkeypatch.setattr(connection, "_LOOK", 3600)
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/flows.sqlite")
    async with Cache() as cache, Cache(near=True) as near_cache:
        made = Flows(client, engine, cache, near_cache)
        await made.prepare()
        yield made
    await engine.dispose()


async def test_each_flow_takes_few_calls(flows: Flows) -> None:
    """A hit, a near hit, a miss, a commit, an update, a read of many ids and a stale answer have a limit each."""
    found = await flows.traced()
    for _ in range(2):  # what comes between on a busy machine, such as a renewal, is not a part of the flow
        again = await flows.traced()
        found = {name: min(calls, again[name], key=len) for name, calls in found.items()}
    assert found.keys() == MOST_CALLS.keys()
    over = {
        name: f"{len(calls)} calls, at most {MOST_CALLS[name]}: {by_module(calls)}"
        for name, calls in found.items()
        if len(calls) > MOST_CALLS[name]
    }
    assert not over
