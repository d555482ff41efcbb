"""`fastrdb watch`: from installing to the end by SIGTERM; what runs for long in a process of its own."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from asyncio.subprocess import PIPE, STDOUT, Process
from functools import partial
from typing import TYPE_CHECKING, Any

import pytest
from sqlalchemy import MetaData, Table, text
from sqlalchemy.exc import DBAPIError
from typer.testing import CliRunner

from fastrdb import Cache
from fastrdb.cli.commands import cli
from fastrdb.cli.database import explained
from fastrdb.cli.watching import duration
from fastrdb.watch import Journal, ages, source_of
from tests.support.servers.databases import Database, opened
from tests.support.waiting import until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from redis.asyncio import Redis

    from fastrdb.testing.server import EmbeddedServer

USERS = Table("users", MetaData())


@pytest.fixture
async def shop(tmp_path: Path) -> AsyncIterator[Database]:
    """Create a database with one table."""
    async with opened(f"sqlite+aiosqlite:///{tmp_path / 'shop.db'}") as database:
        async with database.engine.begin() as connection:
            await connection.execute(text("CREATE TABLE users (id INTEGER PRIMARY KEY, name TEXT)"))
            await connection.execute(text("INSERT INTO users VALUES (1, 'Ann')"))
        yield database


async def start(*arguments: str) -> Process:
    """Start a command."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "fastrdb", "watch", *arguments, stdout=PIPE, stderr=STDOUT
    )


async def command(*arguments: str) -> tuple[int | None, str]:
    """Run a command; return its status and what it prints. Only `run`, which a signal ends, needs a process."""
    if arguments[0] == "run":
        process = await start(*arguments)
        output, _ = await process.communicate()
        return process.returncode, output.decode()
    done = await asyncio.to_thread(CliRunner().invoke, cli, ["watch", *arguments])
    return done.exit_code, done.output


async def test_the_commands_from_installing_to_uninstalling(
    shop: Database, server: EmbeddedServer, client: Redis
) -> None:
    """A write of another program deletes the entry, the status says so, and SIGTERM ends the watcher cleanly."""
    database = ("--database", shop.engine.url.render_as_string(hide_password=False))
    redis = ("--redis", server.url)
    status, said = await command("run", *database, *redis)
    assert (status, said.endswith(f"the watcher ends: {_missing(shop)}")) == (2, True)
    assert said.count("has no fastrdb_outbox") == 1
    code, printed = await command("install", *database, "--print")
    assert code == 0
    assert "CREATE TRIGGER" in printed
    assert (await command("status", *database, *redis))[0] == 1
    assert await command("install", *database) == (0, "Watched: users\n")
    cache = Cache(client)

    @cache.cached("user:{user_id}", depends_on=[USERS])
    async def name_of(user_id: int) -> str:
        async with shop.engine.connect() as connection:
            return str(await connection.scalar(text("SELECT name FROM users WHERE id = :id"), {"id": user_id}))

    process = await start("run", *database, *redis, "--every", "10ms")
    try:
        await until(partial(_alive, cache))
        assert await name_of(1) == "Ann"
        async with shop.engine.begin() as connection:
            await connection.execute(text("UPDATE users SET name = 'Anna' WHERE id = 1"))
        await until(partial(_gone, client, name_of.key(user_id=1)))
        assert await name_of(1) == "Anna"
        state = json.loads((await command("status", *database, *redis, "--json"))[1])
        assert (state["watched"], state["waiting"], state["unwatched"]) == (["users"], 0, {})
    finally:
        process.send_signal(signal.SIGTERM)
        output, _ = await process.communicate()
    assert (process.returncode, b"Traceback" in output) == (0, False)
    name = f"sqlite:{shop.engine.url.database}"
    assert await command("uninstall", *database, *redis) == (0, f"No longer watched: {name}\n")
    assert await ages(cache) == {}
    assert await client.exists(cache.runtime.store(client).keyspace.watch) == 0
    await cache.aclose()


async def test_a_watcher_logs_lines_of_json_with_fields(shop: Database, server: EmbeddedServer, client: Redis) -> None:
    """From the lead over the changes to the end; each line is an object, and stands for one record."""
    database = ("--database", shop.engine.url.render_as_string(hide_password=False))
    redis = ("--redis", server.url, "--namespace", "shop")
    status, said = await command("run", *database, *redis, "--json")
    assert (status, [(each["event"], each["level"]) for each in map(json.loads, said.splitlines())]) == (
        2,
        [("refused", "error")],
    )
    await command("install", *database)
    async with Cache(client, namespace="shop") as cache:
        process = await start("run", *database, *redis, "--json", "--verbose", "--every", "10ms")
        try:
            await until(partial(_alive, cache))
            async with shop.engine.begin() as connection:
                await connection.execute(text("UPDATE users SET name = 'Anna' WHERE id = 1"))
            assert process.stdout is not None
            lines = list[dict[str, Any]]()
            while not lines or lines[-1].get("event") != "change":
                lines.append(json.loads(await process.stdout.readline()))
        finally:
            process.send_signal(signal.SIGTERM)
            output, _ = await process.communicate()
    lines += map(json.loads, output.splitlines())
    assert process.returncode == 0
    assert {line["source"] for line in lines if "source" in line} == set(await ages(cache))
    assert [line["event"] for line in lines if "event" in line] == ["lead", "lost", "change", "lead_end"]
    change = next(line for line in lines if line.get("event") == "change")
    assert (change["tables"], change["changes"], change["namespace"], change["level"]) == (
        ["users"],
        1,
        "shop",
        "debug",
    )
    assert change["lag"] >= 0
    status, said = await command("run", *database, *redis, "--json", "--once")
    assert json.loads(said.splitlines()[-1])["found"] == 0


async def test_an_old_heartbeat_of_another_database_is_named_until_it_is_forgotten(
    shop: Database, server: EmbeddedServer, client: Redis
) -> None:
    """`Cache(watched=)` bypasses entries because of it, so the status says what to do."""
    database = ("--database", shop.engine.url.render_as_string(hide_password=False))
    redis, gone = ("--redis", server.url), "postgresql:old-server:5432/shop"
    async with Cache(client) as cache:
        journal = Journal(cache, gone)
        await journal.save("1", await journal.clock() - 3_600_000)
        assert (await command("install", *database))[0] == (await command("run", *database, *redis, "--once"))[0] == 0
        code, printed = await command("status", *database, *redis)
        assert code == 1
        assert f"fastrdb watch forget {gone}" in " ".join(printed.split())
        found = json.loads((await command("status", *database, *redis, "--json"))[1])
        assert found["others"][gone] >= 3600
        assert await command("forget", gone, *redis) == (0, f"Forgotten: {gone}\n")
        await beat(cache, f"sqlite:{shop.engine.url.database}", 3_600_000)
        assert (await command("status", *database, *redis))[0] == 0
        code, printed = await command("forget", gone, *redis)
        assert (code, f"No database {gone} is watched; there are: sqlite:" in printed) == (2, True)


async def beat(cache: Cache, name: str, later_ms: int) -> None:
    """Leave a heartbeat of a moment before or after now."""
    journal = Journal(cache, name)
    await journal.save("1", await journal.clock() + later_ms)


async def test_a_watcher_that_is_silent_for_ten_seconds_is_named(
    shop: Database, server: EmbeddedServer, client: Redis
) -> None:
    """The status ends with 1 then, and with 0 before."""
    database = ("--database", shop.engine.url.render_as_string(hide_password=False))
    redis, name = ("--redis", server.url), f"sqlite:{shop.engine.url.database}"
    assert (await command("install", *database))[0] == (await command("run", *database, *redis, "--once"))[0] == 0
    async with Cache(client) as cache:
        await beat(cache, name, 3_600_000)
        assert (await command("status", *database, *redis))[0] == 0
        await beat(cache, name, -10_001)
        code, printed = await command("status", *database, *redis)
    assert (code, "no watcher is at work" in printed) == (1, True)


async def test_a_leader_that_serves_another_redis_or_namespace_is_named(
    postgresql: Database, server: EmbeddedServer, client: Redis
) -> None:
    """It holds the lock of the database, and its heartbeat is elsewhere."""
    database = ("--database", postgresql.engine.url.render_as_string(hide_password=False))
    redis = ("--redis", server.url, "--namespace", "other")
    async with postgresql.engine.begin() as connection:
        await connection.execute(text("CREATE TABLE users (id INTEGER PRIMARY KEY)"))
    assert (await command("install", *database))[0] == 0
    source = source_of(postgresql.engine)
    assert await source.lead("")
    code, printed = await command("status", *database, *redis)
    leader = (await source.status(None)).leader
    assert (code, f"to do: {leader} leads, and leaves no heartbeat in this Redis" in printed) == (1, True)
    await source.close()
    await source.run(await source.uninstall_sql())


async def test_a_schema_without_tables_is_not_well(tmp_path: Path, server: EmbeddedServer, client: Redis) -> None:
    """A deploy that installs before its migrations is noticed; `--print` prints what would run."""
    file = tmp_path / "shop.db"
    file.touch()
    database = ("--database", f"sqlite+aiosqlite:///{file}")
    code, printed = await command("install", *database, "--print")
    assert (code, "CREATE TABLE" in printed, file.stat().st_size) == (0, True, 0)
    code, printed = await command("install", *database)
    assert (code, printed.startswith("Watched: nothing, since the schema has no table")) == (1, True)
    code, printed = await command("status", *database, "--redis", server.url)
    assert (code, "to do: the schema has no table" in printed) == (1, True)


def _missing(shop: Database) -> str:
    name = shop.engine.url.database
    return f"watch: sqlite:{name} has no fastrdb_outbox: run `fastrdb watch install` first\n"


async def _alive(cache: Cache) -> bool:
    return bool(await ages(cache))


async def _gone(client: Redis, key: str) -> bool:
    return not await client.exists(key)


@pytest.mark.parametrize(
    ("address", "says"),
    [
        ("nonsense", "--database: not an address; such as"),
        ("postgresql//user:secret@host/name", "--database: not an address; such as"),
        ("nonsense://user:secret@host/name", "--database: Can't load plugin: sqlalchemy.dialects:nonsense; such as"),
        ("oracle+oracledb://user:secret@host/name", "--database: the driver is not installed: pip install oracledb"),
        ("postgresql+asyncpg://user:pass@secret@host/name", "--database: not an address; a port is a number"),
        ("postgresql+asyncpg://user:pass@host/secret@host/name", "--database: not an address; a port is a number"),
        ("sqlite:///shop.db", "--database: the driver is not async; such as"),
        ("sqlite+aiosqlite://", "--database: a database in memory has no other writers"),
        ("postgresql+asyncpg://user:secret@127.0.0.1:1", "watch: the address names no database: write postgresql+"),
        ("mysql+aiomysql://user:secret@127.0.0.1:1/", "watch: the address names no database: write mysql+aiomysql://"),
        (
            "postgresql+asyncpg://user:secret@127.0.0.1:1/shop",
            "Database postgresql:127.0.0.1:1/shop: nothing answers there (ConnectionRefusedError:",
        ),
        ("mysql+aiomysql://user:secret@127.0.0.1:1/shop", "Database mysql:127.0.0.1:1/shop: nothing answers there"),
        (
            "postgresql+asyncpg://user:secret@127.0.0.1:1/shop?sslmode=require",
            "Database postgresql:127.0.0.1:1/shop: the driver asyncpg refuses an option of the address",
        ),
    ],
)
async def test_a_wrong_address_is_explained_in_one_line(address: str, says: str) -> None:
    """Without a traceback and without the password, and with what to do."""
    for arguments in (("install",), ("status", "--redis", "redis://127.0.0.1:1"), ("uninstall",)):
        code, printed = await command(*arguments, "--database", address)
        assert (code, printed[: len(says)], len(printed.splitlines())) == (2, says, 1), printed
        assert "secret" not in printed
    if "sslmode" in address:
        assert printed.endswith("Write ?ssl=require instead of ?sslmode=require\n")


async def test_a_mistyped_path_makes_no_file(tmp_path: Path) -> None:
    """No command makes one, which would have nothing to watch."""
    missing = tmp_path / "shpo.db"
    for name in ("install", "run", "status", "uninstall"):
        code, printed = await command(name, "--database", f"sqlite+aiosqlite:///{missing}")
        assert (code, f"--database: there is no file {missing}; " in printed) == (2, True)
    assert not missing.exists()


async def test_each_side_that_fails_is_named(shop: Database, tmp_path: Path, server: EmbeddedServer) -> None:
    """A dead Redis is not taken for a dead database, nor the other way round; with `--json` an error is JSON."""
    file = str(shop.engine.url.database)
    database = ("--database", f"sqlite+aiosqlite:///{file}")
    dead = ("--redis", "redis://:secret@127.0.0.1:1")
    says = "Redis at 127.0.0.1:1: nothing listens there (connection refused). Check host and port; is it running?"
    for arguments in (("status",), ("run", "--once"), ("uninstall",), ("install",)):
        code, printed = await command(*arguments, *database, *dead)
        assert (code, printed) == (2, f"{says}\n")
    code, printed = await command("status", *database, *dead, "--json")
    assert (code, json.loads(printed)) == (2, {"error": says})
    code, printed = await command("run", *database, *dead, "--json")
    line = json.loads(printed)
    assert (code, line["event"], line["reason"], line["level"]) == (2, "refused", says, "error")

    read_only = ("--database", f"sqlite+aiosqlite:///file:{file}?mode=ro&uri=true")
    code, printed = await command("install", *read_only)
    assert (code, ": the user may not do that (OperationalError: attempt to write" in printed) == (2, True)
    broken = tmp_path / "broken.db"
    broken.write_text("no database at all, but a text that is long enough to be read as one" * 10)
    code, printed = await command("run", "--once", "--database", f"sqlite+aiosqlite:///{broken}", "--redis", server.url)
    assert (code, printed.splitlines()[-1]) == (
        2,
        f"Database sqlite:{broken}: DatabaseError: file is not a database. Check the address and the log of the server",
    )


@pytest.fixture(params=["postgresql", "mariadb"])
def served(request: pytest.FixtureRequest) -> Database:
    """Return a database of each server."""
    database: Database = request.getfixturevalue(request.param)
    return database


async def test_a_server_that_refuses_is_explained(served: Database) -> None:
    """An unknown database and an unknown user, by the texts of real servers."""
    url = served.engine.url
    for wrong, says in (
        (url.set(database="no_such_database"), "there is no such database"),
        (url.set(username="no_such_user", password="secret"), "the server asks for another login"),
    ):
        code, printed = await command("install", "--database", wrong.render_as_string(hide_password=False))
        assert (code, f"/{wrong.database}: {says} (" in printed, "secret" in printed) == (2, True, False), printed


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('PostgreSQL server at "10.0.0.1:5432" rejected SSL upgrade', "the server speaks no TLS"),
        ('no pg_hba.conf entry for host "x", user "y", database "z", no encryption', "Add ?ssl=require to the address"),
        ("(3159, 'Connections using insecure transport are prohibited')", "the server asks for TLS"),
        ('password authentication failed for user "shop"', "the server asks for another login"),
        ("(1698, \"Access denied for user 'a'@'b'\")", "the server asks for another login"),
        ("(1044, \"Access denied for user 'a'@'b' to database 'shop'\")", "the user may not do that"),
        ("permission denied for schema fastrdb", "the user may not do that"),
        ("[Errno -2] Name or service not known", "there is no such host"),
        ("[SSL: CERTIFICATE_VERIFY_FAILED] self-signed", "the certificate of the server is not trusted"),
        ("canceling statement due to statement timeout", "a statement took longer than the server permits"),
        ("database is locked", "another program has locked it"),
        ("unable to open database file", "the file cannot be opened"),
        ("something else", "OperationalError: something else. Check the address and the log"),
    ],
)
def test_errors_of_databases_are_explained(text: str, says: str) -> None:
    """The words of drivers and servers decide; another error is shown as it is."""
    driver = type("OperationalError", (Exception,), {})(text)
    error = explained(DBAPIError("SELECT secret", {"value": "secret"}, driver), "db", "asyncpg")
    assert says in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(("text", "seconds"), [("20ms", 0.02), ("1", 1.0), ("0.5s", 0.5)])
def test_durations(text: str, seconds: float) -> None:
    """The unit is written behind the number; without one, seconds."""
    assert duration(text) == seconds


@pytest.mark.parametrize("address", ["postgresql+asyncpg://user:p@ss:word@host/name", "sqlite+aiosqlite://host:port/x"])
def test_an_address_that_cannot_be_shows_no_part_of_it(address: str) -> None:
    """A password whose signs are not escaped is taken for a part of the address."""
    done = CliRunner().invoke(cli, ["watch", "status", "--database", address])
    assert done.exit_code == 2
    assert "a port is a number" in done.output
    assert "word" not in done.output.replace("password", "")
    done = CliRunner().invoke(cli, ["doctor", "redis://host:ss-word"])
    assert "Redis: not an address, or an option" in done.output
    assert "ss-word" not in done.output


def test_a_login_that_needs_a_package_names_it() -> None:
    """A login of MySQL needs it without TLS; the address is right."""
    error = RuntimeError("'cryptography' package is required for sha256_password or caching_sha2_password auth methods")
    assert str(explained(error, "mysql:db:3306/shop", "aiomysql")) == (
        f"Database mysql:db:3306/shop: the driver aiomysql cannot log in ({error}). pip install cryptography"
    )
