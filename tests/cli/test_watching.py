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
from typer.testing import CliRunner

from fastrdb import Cache
from fastrdb.cli.commands import cli
from fastrdb.cli.watching import duration
from fastrdb.watch import Journal, ages
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
    assert await command("uninstall", *database, *redis) == (0, "")
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
        assert await command("forget", gone, *redis) == (0, "")
        assert (await command("status", *database, *redis))[0] == 0
        code, printed = await command("forget", gone, *redis)
        assert (code, f"No database {gone} is watched; there are: sqlite:" in printed) == (2, True)


async def test_a_watcher_that_is_silent_is_named(shop: Database, server: EmbeddedServer, client: Redis) -> None:
    """The status of a database whose watcher died an hour ago is not well."""
    database = ("--database", shop.engine.url.render_as_string(hide_password=False))
    redis = ("--redis", server.url)
    assert (await command("install", *database))[0] == (await command("run", *database, *redis, "--once"))[0] == 0
    assert (await command("status", *database, *redis))[0] == 0
    async with Cache(client) as cache:
        journal = Journal(cache, f"sqlite:{shop.engine.url.database}")
        await journal.save("1", await journal.clock() - 3_600_000)
    code, printed = await command("status", *database, *redis)
    assert (code, "no watcher is at work" in printed) == (1, True)


def _missing(shop: Database) -> str:
    name = shop.engine.url.database
    return f"watch: sqlite:{name} has no fastrdb_outbox: run `fastrdb watch install` first\n"


async def _alive(cache: Cache) -> bool:
    return bool(await ages(cache))


async def _gone(client: Redis, key: str) -> bool:
    return not await client.exists(key)


async def test_wrong_input_is_said_in_one_line(tmp_path: Path) -> None:
    """Without a traceback, and with what to write."""
    for address in ("nonsense", "postgresql+asyncpg://127.0.0.1:1/none", "oracle+oracledb://x/y"):
        code, printed = await command("status", "--database", address)
        assert (code, len(printed.splitlines()), "Traceback" in printed) == (2, 1, False), printed


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
    assert "Not an address of Redis" in done.output
    assert "ss-word" not in done.output
