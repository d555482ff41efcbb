"""Redis comes back with other data: no caller gets what had been invalidated, and one process deletes it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from typing import Any

import pytest
from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Granted
from fastrdb.testing import Gate
from fastrdb.testing.server import EmbeddedServer
from fastrdb.transport import OTHER_DATA
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.network.lines import Passing
from tests.support.programs.apps import App
from tests.support.servers.sentinels import AT_ONCE, SERVICE, follow, group, synced
from tests.support.waiting import until
from tests.support.world.stores import acquire
from tests.support.world.world import spawn

DEADLINE = 5.0
OLD = b'"old"'


class Instrumented(Redis):
    """A client that must be asked itself."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        return await super().execute_command(*args, **options)  # type: ignore[no-untyped-call]


def plain(port: int) -> Redis:
    """Return a client as most programs have it."""
    return Redis(port=port)


def instrumented(port: int) -> Redis:
    """Return a client that redis-py connects for by itself."""
    return Instrumented(port=port)


def small(port: int) -> Redis:
    """Return a client whose connection goes back after each use."""
    return Redis.from_pool(ConnectionPool(port=port, max_connections=1))


def blocking(port: int) -> Redis:
    """Return a client that waits for a connection."""
    return Redis.from_pool(BlockingConnectionPool(port=port))


CLIENTS: list[Callable[[int], Redis]] = [plain, instrumented, small, blocking]


@pytest.fixture(params=[False, True], ids=["snapshot", "append-only"])
def any_own(request: pytest.FixtureRequest) -> Iterator[EmbeddedServer]:
    """Provide a server of this test's own, for each way to keep data."""
    with EmbeddedServer(save=request.param) as started:
        yield started


@pytest.fixture
def own() -> Iterator[EmbeddedServer]:
    """Provide a server of this test's own, which has what it has saved when it starts again."""
    with EmbeddedServer(args=AT_ONCE) as started:
        yield started


@pytest.fixture
async def apps(own: EmbeddedServer) -> AsyncIterator[list[App]]:
    """Provide three processes of that server."""
    async with started(own) as made:
        yield made


class started(AsyncExitStack):  # noqa: N801  # reads as a function
    """Processes of a server, with one client each."""

    def __init__(self, server: EmbeddedServer, *clients: Callable[[int], Redis]) -> None:
        super().__init__()
        self._server, self._clients = server, clients or (plain, plain, plain)

    async def __aenter__(self) -> list[App]:  # type: ignore[override]
        truth, made = {1: "old"}, []
        for client in self._clients:
            app = App(truth, await self.enter_async_context(client(self._server.port)), timeout=DEADLINE)
            await self.enter_async_context(app.cache)
            made.append(app)
        return made


@pytest.fixture
async def admin(own: EmbeddedServer) -> AsyncIterator[Redis]:
    """Provide a client of the test's own."""
    async with Redis(port=own.port) as client:
        yield client


def back(server: EmbeddedServer) -> None:
    """Kill the server, and start it again with what it has saved."""
    server.kill()
    server.start()


async def come_back(server: EmbeddedServer, admin: Redis, *apps: App) -> None:
    """Save the entry, then invalidate it by the last process; the server comes back with the entry."""
    for app in apps:
        assert await app.read() == "old"
    await admin.save()
    await apps[-1].write("new")
    assert await admin.get("item:1") is None
    back(server)
    assert await admin.get("item:1") == OLD


@pytest.mark.parametrize("client", CLIENTS, ids=label)
async def test_old_snapshot_answers_no_process(
    own: EmbeddedServer, admin: Redis, client: Callable[[int], Redis]
) -> None:
    """No process is answered from the snapshot: not a busy one, not an idle one, not one that comes only now."""
    async with started(own, client, client, client, plain) as (busy, idle, late, writer):
        await idle.read()
        await idle.store._link.aclose()  # as after a second without use
        await come_back(own, admin, busy, writer)
        for app in (idle, late, busy):
            assert await app.read() == "new"
        for app in (busy, idle, late, writer):
            await app.healed()
            assert await app.read() == "new"
        assert await admin.get("item:1") == b'"new"'
        assert busy.cache.stats().restarts + late.cache.stats().restarts + idle.cache.stats().restarts >= 1


async def test_each_restart_is_healed_once(any_own: EmbeddedServer) -> None:
    """Also where nothing was lost, since no process can be sure. Everything is loaded once, and then cached again."""
    async with started(any_own, plain) as (app,), Redis(port=any_own.port) as admin:
        for count in range(1, 4):
            await app.read()
            await app.read()
            await (admin.bgrewriteaof() if any_own._save else admin.save())
            back(any_own)
            await app.read()
            await app.healed()
            loads = app.loads
            await app.read()
            await app.read()
            assert app.loads == loads + 1
            assert app.cache.stats().restarts == app.cache.stats().healings == count


async def test_one_process_heals_while_the_others_bypass(own: EmbeddedServer, admin: Redis, apps: list[App]) -> None:
    """While one process deletes, the others load for themselves; then all use the cache again."""
    await come_back(own, admin, *apps)
    gates = [Gate() for _ in apps]
    for app, gate in zip(apps, gates, strict=True):
        app.spy([gate], [])
    for app in apps:
        assert await app.read() == "new"
        assert app.store.bypass_reason(app.client) == OTHER_DATA
    await asyncio.wait([spawn(gate.reached()) for gate in gates], return_when=asyncio.FIRST_COMPLETED)
    for app in apps:
        loads = app.loads
        assert await app.read() == "new"
        assert app.loads == loads + 1
    for gate in gates:
        gate.open()
    for app in apps:
        await app.healed()
    assert sum(app.sweeps for app in apps) == 1
    loads = sum(app.loads for app in apps)
    for app in apps:
        assert await app.read() == "new"
    assert sum(app.loads for app in apps) == loads + 1


async def test_healer_that_dies_is_replaced(own: EmbeddedServer, admin: Redis, apps: list[App]) -> None:
    """When the healer's time is over another process deletes; until then no process reads."""
    await come_back(own, admin, *apps)
    await admin.set("fastrdb:healing", "f" * 32)
    assert await apps[0].read() == "new"
    healing = spawn(apps[0].healed())
    assert await apps[1].read() == "new"
    assert not healing.done()
    await admin.pexpire("fastrdb:healing", 0)
    await healing
    assert await admin.get("item:1") is None


async def test_healer_that_is_cancelled_goes_on_later(own: EmbeddedServer, admin: Redis, apps: list[App]) -> None:
    """Closed before it began, or in the middle: the healing goes on when asked for again, and waits for no process."""
    await come_back(own, admin, *apps)
    app = apps[0]
    app.spy([gate := Gate()], [])
    assert await app.read() == "new"
    await app.store._backend.trust.aclose()  # perhaps before its task has begun
    assert app.store.bypass_reason(app.client)
    await gate.reached()
    await app.store._backend.trust.aclose()
    assert not await admin.exists("fastrdb:healing"), "another process may go on at once"
    async with asyncio.timeout(5):
        await app.healed()
    assert await admin.get("item:1") is None
    assert await app.read() == "new"


async def test_snapshot_from_before_the_healing_is_healed_again(
    own: EmbeddedServer, admin: Redis, apps: list[App]
) -> None:
    """Saved before the healer deletes, back when it has: it does not take for deleted what has come back since."""
    await come_back(own, admin, *apps)
    app = apps[0]
    app.spy([begun := Gate()], [done := Gate()])
    assert await app.read() == "new"
    app.store.bypass_reason(app.client)
    await begun.reached()
    await admin.save()
    begun.open()
    await done.reached()
    assert await admin.get("item:1") is None
    back(own)
    assert await admin.get("item:1") == OLD
    assert await admin.exists("fastrdb:healing")
    done.open()
    await app.healed()
    assert await app.read() == "new"
    assert app.sweeps == 2


@pytest.mark.parametrize("healed", [False, True])
async def test_lease_that_comes_back_stores_nothing(
    own: EmbeddedServer, admin: Redis, apps: list[App], healed: bool
) -> None:
    """It was taken away before the restart: whose it was stores nothing, before the healing or after it."""
    reader, writer, other = apps
    gate = Gate()
    reader.loading = gate.hold
    reading = spawn(reader.read())
    await gate.reached()
    await admin.save()
    await writer.write("new")
    assert not await admin.exists("fastrdb:lease:{item:1}")
    back(own)
    assert await admin.exists("fastrdb:lease:{item:1}")
    if healed:
        assert await other.read() == "new"
        await other.healed()
    gate.open()
    assert await reading == "old"
    assert reader.cache.stats().fills == 0
    for app in apps:
        await app.healed()
        reader.loading = None
        assert await app.read() == "new"


@pytest.mark.parametrize("lost", ["begun before", "begun after"])
async def test_writer_over_a_restart_leaves_nothing_stale(
    own: EmbeddedServer, admin: Redis, apps: list[App], lost: str
) -> None:
    """Its barriers are lost, or come back from a snapshot; readers store what is not committed yet: the end knows."""
    writer, reader, _ = apps
    assert await reader.read() == "old"
    work = writer.store.intent(writer.client)
    work.add([Prefix("item:")])
    if lost == "begun after":
        await admin.save()
    await work.begin()
    if lost == "begun before":
        await admin.save()
    back(own)
    await reader.read()
    await reader.healed()
    await reader.read()
    assert await admin.exists("item:1") == (lost == "begun after")
    reader.truth[1] = "new"
    await work.end(committed=True)
    assert await reader.read() == "new"
    assert await writer.read() == "new"


async def test_lost_note_of_trust_is_healed_once(admin: Redis, apps: list[App]) -> None:
    """Evicted or deleted by hand: the data may be another server's, so it is deleted, once."""
    for app in apps[:2]:
        await app.read()
    await admin.delete("fastrdb:trusted")
    assert await apps[2].read() == "old"
    for app in apps:
        await app.healed()
    assert await admin.exists("fastrdb:trusted")
    loads = sum(app.loads for app in apps)
    for app in apps:
        await app.read()
    assert sum(app.loads for app in apps) == loads + 1


async def test_each_namespace_is_healed_by_itself(own: EmbeddedServer, admin: Redis) -> None:
    """A namespace that is healed does not make the other one healed."""
    truth = {1: "old"}
    async with Redis(port=own.port) as client:
        spaces = [App(truth, client, namespace=name, timeout=DEADLINE) for name in ("a", "b")]
        for app in spaces:
            await app.read()
        await admin.save()
        for app in spaces:
            await app.write("new")
        back(own)
        for app in spaces:
            assert await app.read() == "new"
            await app.healed()
            assert await admin.exists("a:item:1", "b:item:1") == (1 if app is spaces[0] else 0)
        for app in spaces:
            assert await app.read() == "new"
            await app.cache.aclose()


async def test_flushed_server_is_not_healed(admin: Redis, apps: list[App]) -> None:
    """There is nothing to heal: the cache begins anew."""
    for app in apps:
        await app.read()
    await admin.flushall()
    for app in apps:
        assert await app.read() == "old"
    assert [app.loads for app in apps] == [2, 0, 0]
    assert sum(app.cache.stats().restarts for app in apps) == 0


async def test_server_that_denies_info_is_used(
    own: EmbeddedServer, admin: Redis, caplog: pytest.LogCaptureFixture
) -> None:
    """An ACL denies INFO: that is said once, and everything else works."""
    await admin.acl_setuser("app", enabled=True, nopass=True, keys=["*"], categories=["+@all"], commands=["-info"])
    async with Redis(port=own.port, username="app", password="any") as client:
        app = App({1: "old"}, client, timeout=DEADLINE)
        for value in ("old", "new", "newer"):
            await app.write(value)
            assert await app.read() == await app.read() == value
            await app.store._link.aclose()
        assert app.loads == 3
        assert app.cache.stats().restarts == 0
        await app.cache.aclose()
    said = [record.message for record in caplog.records if "replication id" in record.message]
    assert len(said) == 1


# --- replicas


async def demoted(own: EmbeddedServer, replica: EmbeddedServer, master: Redis, app: App) -> None:
    """Promote the replica, which lacks the last delete; the master follows it."""
    assert await app.read() == "old"
    await synced(master)
    async with Redis(port=replica.port) as other:
        await other.replicaof("127.0.0.1", "1")
        await app.write("new")
        assert await other.get("item:1") == OLD
        await other.replicaof("NO", "ONE")
        await follow(own, replica.port)
        assert await master.get("item:1") == OLD


@pytest.fixture
async def pair(own: EmbeddedServer) -> AsyncIterator[EmbeddedServer]:
    """Provide a replica of the server."""
    with EmbeddedServer(args=AT_ONCE) as replica:
        await follow(replica, own.port)
        yield replica


@pytest.mark.parametrize("client", [plain, instrumented], ids=label)
async def test_master_demoted_for_a_while_answers_no_caller(
    own: EmbeddedServer,
    pair: EmbeddedServer,
    admin: Redis,
    client: Callable[[int], Redis],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It never restarted, no connection was closed, and it has the replica's data: no caller is answered from that."""
    time = Passing(monkeypatch)
    async with started(own, client) as (app,):
        run = (await admin.info("server"))["run_id"]
        await demoted(own, pair, admin, app)
        await admin.replicaof("NO", "ONE")
        assert await admin.get("item:1") == OLD
        assert (await admin.info("server"))["run_id"] == run
        time.passes(1.1)
        assert await app.read() == "new"
        await app.healed()
        assert await app.read() == "new"
        assert await admin.get("item:1") == b'"new"'


async def test_failover_to_a_lagging_replica_answers_nothing_old() -> None:
    """Sentinels promote it: no process is answered from what it lacks, also if idle, or if redis-py connects."""
    async with group() as servers, AsyncExitStack() as stack:
        truth, apps = {1: "old"}, []
        for kind in (Redis, Redis, Instrumented):
            sentinel = await stack.enter_async_context(servers.sentinel())
            client = await stack.enter_async_context(
                sentinel.master_for(SERVICE, redis_class=kind, retry=Retry(NoBackoff(), 1))
            )
            app = App(truth, client, timeout=DEADLINE)
            await stack.enter_async_context(app.cache)
            assert await app.read() == "old"
            apps.append(app)
        await apps[1].store._link.aclose()  # idle from now on
        async with Redis(port=servers.replica.port) as replica, Redis(port=servers.master.port) as master:
            await synced(master)
            await replica.replicaof("127.0.0.1", "1")
            await apps[0].write("new")
            servers.master.kill()
            assert await apps[0].read() == "new"
            await servers.failed_over()
            assert await replica.get("item:1") == OLD
            for app in (apps[1], apps[2], apps[0]):
                assert await app.read() == "new"
            for app in apps:

                async def used_again(app: App = app) -> bool:
                    assert await app.read() == "new"
                    return not app.store.obstacles

                await until(used_again)
            for app in apps:
                assert await app.read() == "new"
            assert await replica.get("item:1") == b'"new"'


# --- each of these mechanisms is needed


@pytest.mark.parametrize(
    ("change", "client"),
    [
        (without("greeting-judged"), plain),
        (without("greeting-judged"), instrumented),
        (without("greeting-of-new-connections"), instrumented),
        (without("healing"), plain),
    ],
    ids=label,
)
async def test_snapshot_race_is_lost(
    own: EmbeddedServer,
    admin: Redis,
    monkeypatch: pytest.MonkeyPatch,
    change: Change,
    client: Callable[[int], Redis],
) -> None:
    """With one mechanism taken out, a process is answered from the snapshot."""
    change.apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await test_old_snapshot_answers_no_process(own, admin, client)


async def test_race_is_lost_without_a_second_sweep(
    own: EmbeddedServer, admin: Redis, apps: list[App], monkeypatch: pytest.MonkeyPatch
) -> None:
    """An end that does not ask whether its barriers stood."""
    without("second-sweep").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await test_writer_over_a_restart_leaves_nothing_stale(own, admin, apps, "begun after")


async def test_race_is_lost_when_any_life_counts_as_healed(
    own: EmbeddedServer, admin: Redis, apps: list[App], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A healer that adopts what has come back since."""
    without("healed-life").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await test_snapshot_from_before_the_healing_is_healed_again(own, admin, apps)


async def test_race_is_lost_when_the_run_id_names_the_life(
    own: EmbeddedServer, pair: EmbeddedServer, admin: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays the same over a demotion."""
    without("replication-id").apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await test_master_demoted_for_a_while_answers_no_caller(own, pair, admin, plain, monkeypatch)


async def test_lease_on_a_new_server_is_granted(own: EmbeddedServer, admin: Redis, apps: list[App]) -> None:
    """The first to come to an empty server makes it the data's own."""
    await admin.flushall()
    assert await acquire(apps[0].store, apps[0].client, "item:1", "t" * 32) == Granted()
    assert await admin.exists("fastrdb:trusted")
