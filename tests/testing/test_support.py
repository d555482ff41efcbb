"""The tests' own tools do what the tests rely on."""

from __future__ import annotations

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import redis.asyncio
from redis.exceptions import ConnectionError as RedisConnectionError
from sqlalchemy import select, text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb import Cache, default_cache
from fastrdb.protocol import Store, scripts
from fastrdb.testing import GatedClient, script_texts
from tests import conftest
from tests.support.programs.browser import browser
from tests.support.servers import databases
from tests.support.servers.databases import Database, ServerDatabase
from tests.support.world.stores import acquire, fill


class Base(DeclarativeBase):
    pass


class Item(Base):
    __tablename__ = "item"
    id: Mapped[int] = mapped_column(primary_key=True)


async def test_gate_before_holds_what_is_not_sent(gated: GatedClient, client: redis.asyncio.Redis) -> None:
    """A command at the gate before it has not reached the server; the next of its name passes."""
    gate = gated.before("SET")
    task = asyncio.ensure_future(gated.set("key", "first"))
    await gate.reached()
    assert await client.get("key") is None
    await gated.set("key", "second")
    gate.open()
    await task
    assert await client.get("key") == b"first"


async def test_gate_after_holds_what_is_done(gated: GatedClient, client: redis.asyncio.Redis) -> None:
    """A command at the gate after it has done its work, and its caller does not know yet."""
    gate = gated.after("SET")
    task = asyncio.ensure_future(gated.set("key", "value"))
    await gate.reached()
    assert await client.get("key") == b"value"
    assert not task.done()
    gate.open()
    await task


async def test_scripts_go_by_their_file(gated: GatedClient) -> None:
    """A Lua script has its file's name, called by digest or by text; another script is just EVAL."""
    for script in scripts():
        assert gated.name_of(("EVALSHA", script.sha, 0)) == script.name
        assert gated.name_of(("EVAL", script.text.encode(), 0)) == script.name
    assert {script.text for script in scripts()} == set(script_texts())
    assert gated.name_of(("eval", "return 1", 0)) == "EVAL"


async def test_the_store_sends_the_scripts_that_gates_know(gated: GatedClient) -> None:
    """The store's own calls go by their names."""
    token = "0" * 32
    await acquire(Store(), gated, "key", token)
    await fill(Store(), gated, "key", token, b"1", 1000)
    assert set(gated.names()) == {"acquire", "fill"}


async def test_faults_strike_as_often_as_told(gated: GatedClient, client: redis.asyncio.Redis) -> None:
    """A fault keeps its command from the server so many times, and touches no other command."""
    gated.fail_with(RedisConnectionError, times=1, on="SET")
    with pytest.raises(RedisConnectionError):
        await gated.set("key", "value")
    assert await gated.get("key") is None
    await gated.set("key", "value")
    assert gated.names() == ["SET", "GET", "SET"]


async def test_a_lost_reply(gated: GatedClient, client: redis.asyncio.Redis) -> None:
    """With `sent`, the server has done the work although the caller sees an error."""
    gated.fail_with(RedisConnectionError, on="SET", sent=True)
    with pytest.raises(RedisConnectionError):
        await gated.set("key", "value")
    gated.heal()
    assert await gated.get("key") == b"value"


async def test_pipelines_pass_the_gates_too(gated: GatedClient, client: redis.asyncio.Redis) -> None:
    """Commands of a pipeline are held, fail and are written down by their names."""
    gate = gated.before("GET")
    pipeline = gated.pipeline()
    pipeline.set("key", "value")
    pipeline.get("key")
    task = asyncio.create_task(pipeline.execute())
    await gate.reached()
    assert await client.get("key") is None
    gate.open()
    assert await task == [True, b"value"]
    assert gated.names() == ["SET", "GET"]


async def test_a_database_is_empty_and_works(database: Database) -> None:
    """Each database takes a model's tables and rows."""
    await database.create(Base)
    async with database.sessions() as session:
        session.add(Item(id=1))
        await session.commit()
        assert await session.get(Item, 1) is not None


ASKED = pytest.Config.ArgsSource


@pytest.mark.parametrize(
    ("source", "marks", "workers"),
    [(ASKED.TESTPATHS, "not slow", None), (ASKED.TESTPATHS, "slow", 0), (ASKED.ARGS, "not slow", 0)],
    ids=["whole", "slow", "named"],
)
def test_the_whole_suite_is_distributed(source: Any, marks: str, workers: int | None) -> None:
    """And nothing else: what is named is debugged, or soon done."""
    config: Any = SimpleNamespace(args_source=source, option=SimpleNamespace(markexpr=marks))
    assert conftest.pytest_xdist_auto_num_workers(config) == workers


@pytest.fixture(params=["postgresql", "mariadb"])
def made(request: pytest.FixtureRequest) -> ServerDatabase:
    """Provide the run's own database on each server in turn."""
    database: ServerDatabase = request.getfixturevalue(f"{request.param}_server")
    return database


async def test_a_leaked_transaction_does_not_block_the_next_test(made: ServerDatabase) -> None:
    """A server's database is emptied, also of what is committed, although a connection was left with locks."""
    await made.clear()
    async with databases.opened(made.url) as database:
        await database.create(Base)
        async with database.engine.begin() as connection:
            await connection.execute(text("INSERT INTO item (id) VALUES (2)"))
        async with database.engine.connect() as connection:
            await connection.execute(text("INSERT INTO item (id) VALUES (1)"))
            await made.clear()
            await connection.invalidate()
        await database.create(Base)
        async with database.sessions() as session:
            assert (await session.scalars(select(Item))).all() == []


def test_a_missing_database_says_which_were_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no server answers, the reason names the address that was tried."""
    monkeypatch.setenv("FASTRDB_TEST_POSTGRES", "postgresql+asyncpg://nobody@127.0.0.1:1/none")
    with (
        pytest.raises(databases.NoServerError, match=r"127\.0\.0\.1:1"),
        databases.server_database(*databases.SERVERS["postgresql"]),
    ):
        pass


def test_caches_of_tests_are_patient_and_those_of_users_are_not(patient_caches: float) -> None:
    """A user's `Cache` waits for Redis for 0.25 s, as the README says; a test's waits longer."""
    assert patient_caches == 0.25
    assert {Cache().runtime.timeout, default_cache.runtime.timeout} == {15}


@pytest.mark.parametrize(
    ("apt", "ci", "outcome"),
    [(None, "1", pytest.skip), ("1", "1", pytest.skip), ("0", "", pytest.skip), ("0", "1", pytest.fail)],
)
def test_browser_is_asked_of_ci_where_it_could_be_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, apt: str | None, ci: str, outcome: Any
) -> None:
    """A machine whose lists of packages have none is skipped, in CI too; the reason says so."""
    if apt is not None:
        program = tmp_path / "apt-cache"
        program.write_text(f"#!/bin/sh\nexit {apt}\n", "utf-8")
        program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CI", ci)
    with pytest.raises(outcome.Exception, match="no chromium and chromedriver on the PATH"), browser(tmp_path):
        raise AssertionError
