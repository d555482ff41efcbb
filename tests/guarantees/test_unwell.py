"""A server that is there and does not do what it is asked: calls go on, and no invalidation is lost by it."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError, ResponseError

from fastrdb import Event
from fastrdb.testing import EmbeddedServer, TcpProxy
from fastrdb.transport.health import FAILURES
from fastrdb.transport.pipeline import Pipeline
from tests.races.mechanisms import label
from tests.support.programs.apps import App
from tests.support.servers.databases import Database
from tests.support.waiting import until
from tests.support.world.world import Process, World, spawn, world

DEADLINE = 0.25
BARRIER = 0.5  # that of a repair keeps its key empty until it lapses
CALLERS = 200


@pytest.fixture
def own(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """Provide a server of this test's own."""
    with EmbeddedServer(args=("--enable-debug-command", "yes", "--lua-time-limit", "1")) as started:
        yield started


async def read(w: World, process: Process) -> str:
    """Return what a caller is answered by way of a plain client."""
    async with w.database.sessions() as db:
        found = await process.get(db, w.client, 1)
        return str(found.name)


async def write(w: World, process: Process, value: str) -> None:
    """Write and commit."""
    async with w.database.sessions() as db:
        await process.rename(db, w.client, 1, value)
        await db.commit()


async def goes_on(w: World, unwell: AbstractAsyncContextManager[None]) -> None:
    """Read and write while Redis is unwell; when it is well, the write is in force for each caller."""
    for process in (w.one, w.two):
        assert await read(w, process) == await read(w, process) == "old"
    async with unwell:
        for _ in range(5):
            assert await read(w, w.one) == await read(w, w.two) == "old"
        await write(w, w.one, "new")
        assert await read(w, w.one) == "new"
        assert await w.truth() == "new"

    async def in_force() -> bool:
        # A process that has not found Redis well again yet reads past it, which proves nothing.
        return not w.one.store.has_pending and await read(w, w.two) == "new"

    await until(in_force)
    for _ in range(3):
        assert await read(w, w.one) == await read(w, w.two) == "new"
    await until(stored(w))


def stored(w: World) -> Callable[[], Any]:
    """Return a check whether the cache is in use again."""

    async def hits() -> bool:
        before = w.two.get.stats.hits
        assert await read(w, w.two) == "new"
        return bool(w.two.get.stats.hits > before)

    return hits


# --- a real server, in each state that it can be brought into


@asynccontextmanager
async def frozen(server: EmbeddedServer, admin: Redis) -> AsyncIterator[None]:
    """Stop the server: connections stand, new ones are taken, and no command is answered. Later it does all of them."""
    os.kill(server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(server.pid, signal.SIGCONT)


@asynccontextmanager
async def busy(server: EmbeddedServer, admin: Redis) -> AsyncIterator[None]:
    """Run a script that does not end: BUSY."""
    async with Redis(port=server.port, socket_timeout=60) as other:
        looping = asyncio.ensure_future(other.eval("while true do end", 0))
        await until(_refuses(admin, "BUSY"))
        yield
        await until(_killed(admin))
        with pytest.raises(ResponseError):
            await looping


@asynccontextmanager
async def out_of_memory(server: EmbeddedServer, admin: Redis) -> AsyncIterator[None]:
    """OOM: `maxmemory` is reached, and nothing may be evicted."""
    await admin.config_set("maxmemory", 1)
    yield
    await admin.config_set("maxmemory", 0)


@asynccontextmanager
async def cannot_save(server: EmbeddedServer, admin: Redis) -> AsyncIterator[None]:
    """MISCONF: a snapshot could not be written, so nothing may be."""
    in_its_place = Path(str((await admin.config_get("dir"))["dir"])) / "dump.rdb"
    in_its_place.mkdir()
    await admin.config_set("save", "3600 1000000")
    await admin.bgsave()
    await until(_refuses(admin, "MISCONF"))
    yield
    in_its_place.rmdir()
    await admin.config_set("save", "")
    await admin.bgsave()


@asynccontextmanager
async def demoted(server: EmbeddedServer, admin: Redis) -> AsyncIterator[None]:
    """Make the server a replica, of a master that does not answer: READONLY."""
    await admin.replicaof("127.0.0.1", 1)
    yield
    await admin.replicaof("NO", "ONE")


@asynccontextmanager
async def loading(server: EmbeddedServer, admin: Redis) -> AsyncIterator[None]:
    """LOADING: it reads its data, slowly."""
    async with admin.pipeline() as pipe:
        for number in range(2_000):
            pipe.set(f"ballast:{number}", "x" * 100)
        await pipe.execute()
    await admin.config_set("loading-process-events-interval-bytes", 1024)
    await admin.config_set("key-load-delay", 800)
    async with Redis(port=server.port, socket_timeout=60) as other:
        reloading = spawn(other.execute_command("DEBUG", "RELOAD"))
        await until(_refuses(admin, "LOADING"))
        yield
        await reloading
    await admin.config_set("key-load-delay", 0)


def _refuses(admin: Redis, kind: str) -> Callable[[], Any]:
    async def refuses() -> bool:
        try:
            await admin.set("probe", 1)
        except RedisError as error:
            return kind in f"{type(error).__name__} {error}".upper()
        return False

    return refuses


def _killed(admin: Redis) -> Callable[[], Any]:
    async def killed() -> bool:
        return bool(await admin.script_kill())

    return killed


STATES = [frozen, busy, out_of_memory, cannot_save, demoted, loading]


@pytest.mark.parametrize("state", STATES, ids=label)
async def test_server_in_each_state_loses_no_invalidation(state: Any, own: EmbeddedServer, sqlite: Database) -> None:
    """Refuses in its own way, or is silent."""
    async with (
        Redis(port=own.port) as client,
        Redis(port=own.port, retry=Retry(NoBackoff(), 0)) as admin,
        world(sqlite, client, timeout=DEADLINE, barrier=BARRIER) as w,
    ):
        await goes_on(w, state(own, admin))


# --- what is hard to bring about


REFUSALS = [
    "LOADING Redis is loading the dataset in memory",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "CLUSTERDOWN The cluster is down",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "NOREPLICAS Not enough good replicas to write.",
    "NOSCRIPT No matching script. Please use EVAL.",
    "NOPERM this user has no permissions to run the 'evalsha' command",
    "NOAUTH Authentication required.",
    "MOVED 3999 127.0.0.1:6381",
    "UNKILLABLE",
    "ERR max number of clients reached",
]


@pytest.mark.parametrize("refusal", REFUSALS, ids=lambda text: text.partition(" ")[0])
async def test_refused_commands_lose_no_invalidation(
    refusal: str, server: EmbeddedServer, client: Redis, sqlite: Database
) -> None:
    """Whatever the server says instead of an answer, it is never what a caller gets."""
    async with (
        TcpProxy(server.port) as proxy,
        Redis(port=proxy.port) as between,
        world(sqlite, between, timeout=DEADLINE, barrier=BARRIER) as w,
    ):

        @asynccontextmanager
        async def refusing() -> AsyncIterator[None]:
            proxy.answer_with(refusal)
            yield
            assert proxy.answered > 0
            proxy.heal()

        await goes_on(w, refusing())


# --- many callers


async def test_server_killed_under_two_hundred_callers_is_not_asked(
    own: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None of them fails; and when Redis has been found away, none of them even asks it."""
    events: list[Event] = []
    async with Redis(port=own.port) as client:
        app = App({number: str(number) for number in range(20)}, client, hook=events.append)
        asked = _count(monkeypatch)
        killed, done = asyncio.Event(), asyncio.Event()
        answers: list[bool] = []
        marks: list[tuple[int, int]] = []  # what had been asked and answered when Redis was found away

        async def caller(number: int) -> None:
            while not done.is_set():
                answers.append(await app.read(number % 20) == str(number % 20))
                await asyncio.sleep(0)

        async def watched() -> bool:
            if not killed.is_set():
                if len(answers) > 5 * CALLERS:
                    own.kill()
                    killed.set()
            elif not marks:
                if any(event.kind == "outage" for event in events):
                    marks.append((len(asked), len(answers)))
            elif len(answers) > marks[0][1] + 10 * CALLERS:
                done.set()
            return done.is_set()

        callers = [asyncio.create_task(caller(number), name="caller") for number in range(CALLERS)]
        await until(watched)
        await asyncio.gather(*callers)
        assert all(answers)
        assert asked[marks[0][0] :] == []
        await app.cache.aclose()


async def test_black_hole_is_not_stormed(server: EmbeddedServer, client: Redis) -> None:
    """C8: five hundred callers whose time is over do not make five hundred connections, and no batch makes two."""
    async with TcpProxy(server.port) as proxy, Redis(port=proxy.port) as between:
        events: list[Event] = []
        app = App({number: str(number) for number in range(20)}, between, hook=events.append, timeout=0.1)
        assert await app.read(1) == "1"
        proxy.drop()
        before = proxy.connections

        async def rounds() -> bool:
            found = await asyncio.gather(*(app.read(number % 20) for number in range(500)))
            assert found == [str(number % 20) for number in range(500)]
            return any(event.kind == "outage" for event in events)

        await until(rounds)
        assert proxy.connections - before <= FAILURES
        await app.cache.aclose()


def _count(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Count what callers ask of a pipeline, without what is tried in the background."""
    asked: list[str] = []

    def counted(method: str) -> None:
        plain = getattr(Pipeline, method)

        def ask(pipeline: Pipeline, *args: Any, **options: Any) -> Any:
            task = asyncio.current_task()
            if task is not None and task.get_name() == "caller":
                asked.append(method)
            return plain(pipeline, *args, **options)

        monkeypatch.setattr(Pipeline, method, ask)

    counted("get")
    counted("send")
    return asked


async def test_count_sees_commands_when_the_breaker_never_opens(
    own: EmbeddedServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The count above counts something."""
    async with Redis(port=own.port) as client:
        app = App({1: "1"}, client)
        asked = _count(monkeypatch)
        assert await asyncio.create_task(app.read(1), name="caller") == "1"
        own.kill()
        monkeypatch.setattr("fastrdb.transport.health.FAILURES", 1000)
        asked.clear()
        assert await asyncio.create_task(app.read(1), name="caller") == "1"
        assert asked
        await app.cache.aclose()
