"""Programs that end, that begin anew, and that fork: nothing hangs, nothing is left open, nothing is shared."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis

from fastrdb import Cache
from fastrdb.testing import Gate
from fastrdb.testing.server import EmbeddedServer
from tests.support import ROOT
from tests.support.programs import processes
from tests.support.programs.apps import App
from tests.support.waiting import until
from tests.support.world.world import PATIENT, spawn

Program = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def program(server: EmbeddedServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Program]:
    """Provide a function that runs a program, with every warning an error and asyncio's own checks on."""
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "tests.support.programs"]

    def run(name: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        folder = tmp_path_factory.mktemp(name)
        said = {each: str(folder / each) for each in ("stdout", "stderr")}
        asked = {"name": name, "port": server.port, "arguments": arguments, "environment": environment, **said}
        assert starts.stdin is not None
        assert starts.stdout is not None
        print(json.dumps(asked), file=starts.stdin, flush=True)
        status = int(starts.stdout.readline())
        return subprocess.CompletedProcess(command, status, *(Path(each).read_text() for each in said.values()))

    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as starts:
        yield run


@pytest.mark.parametrize(
    "how",
    ["", "client", "cache client", "flight", "flight client", "flight cache client", "cancelled client", "cancelled"],
)
def test_the_end_of_a_program(program: Program, client: Redis, how: str) -> None:
    """However a program ends: no task is destroyed, no connection is left open, and no warning is printed."""
    done = program("ends", *how.split())
    assert (done.returncode, done.stdout, done.stderr) == (0, "the end\n", "")


async def test_no_lease_is_left(program: Program, client: Redis) -> None:
    """A load that was under way when the program ended has given its leases back: no other process waits for them."""
    await asyncio.to_thread(program, "ends", "flight")
    assert [key async for key in client.scan_iter("fastrdb:lease:*")] == []


@pytest.mark.parametrize("closing", ["closed", "open"])
def test_one_event_loop_after_the_other(program: Program, client: Redis, closing: str) -> None:
    """A cache and a client at module level, and `asyncio.run` again and again: every call is answered by Redis."""
    done = program("loops", closing)
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr


def test_what_a_loop_owes_the_next_one_pays(program: Program, client: Redis) -> None:
    """An invalidation that Redis missed is not forgotten with the event loop of its commit."""
    done = program("owes", "")
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("when", ["ended", "running"])
@pytest.mark.parametrize("held", ["", "1"], ids=["idle", "in use"])
def test_a_fork(program: Program, client: Redis, when: str, held: str) -> None:
    """Parent and child use cache and client of one module at once: each has connections of its own."""
    done = program("forks", when, FASTRDB_HELD=held)
    assert (done.returncode, done.stdout) == (0, "the end\n"), done.stderr


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.parametrize("held", ["", "1"], ids=["idle", "in use"])
def test_a_fork_that_shares(program: Program, client: Redis, held: str) -> None:
    """Without leaving everything to the parent the two processes speak on one socket."""
    done = program("forks", "running", "unhooked", FASTRDB_HELD=held)
    assert done.returncode != 0


async def test_closing_with_loads_in_flight(client: Redis) -> None:
    """Loads in flight are answered and stored; nothing hangs, and the cache can be used again."""
    app, gate = App({1: "v"}, client, timeout=PATIENT), Gate()
    app.loading = gate.hold
    loading = spawn(app.read())
    await gate.reached()
    await app.cache.aclose()
    gate.open()
    assert await loading == "v"
    assert await client.get("item:1") == b'"v"'
    assert await app.read() == "v"
    await app.cache.aclose()
    assert len(await client.client_list()) == 1, "the client's own, which asks this"


async def test_a_cache_that_is_dropped(client: Redis) -> None:
    """It closes its connection, and nothing of it stays."""

    async def use() -> weakref.ref[Any]:
        app = App({1: "v"}, client, timeout=PATIENT)
        await app.read()
        assert len(await client.client_list()) == 2
        states.append(weakref.ref(app.cache.runtime.here()))
        return weakref.ref(app.cache)

    async def nothing_is_left() -> bool:
        gc.collect()
        return states[0]() is None and len(await client.client_list()) == 1

    states: list[weakref.ref[Any]] = []
    dropped = await use()
    gc.collect()
    assert dropped() is None
    await until(nothing_is_left)


def test_an_event_loop_that_has_ended_is_let_go(server: EmbeddedServer) -> None:
    """When the next one begins, at the latest, though the cache lives on."""
    cache, loops = Cache(timeout=PATIENT), []

    @cache.cached("n:{number}")
    async def read(redis: Redis, number: int) -> int:
        return number

    async def main() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        async with Redis(port=server.port) as client:
            assert await read(client, 1) == 1

    for _ in range(3):
        asyncio.run(main())
    gc.collect()
    assert [loop() is None for loop in loops] == [True, True, False]
    assert len(cache.runtime._states) == 1


async def test_one_load_for_all_processes(server: EmbeddedServer, client: Redis) -> None:
    """8 processes with 50 callers each, on one cold key: one load."""
    barrier = processes.together(8)
    codes = await processes.run(processes.call_together, server.port, 50, barrier, count=8)
    assert codes == [0] * 8
    assert await client.get("callers") == b"400"
    assert await client.get("loads") == b"1"
    assert await client.keys("fastrdb:lease:*") == []
