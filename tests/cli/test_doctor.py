"""`fastrdb doctor` against servers that are well, and servers that are not."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import re
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.asyncio import Redis as AsyncRedis
from redis.backoff import ConstantBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry
from typer.testing import CliRunner

from fastrdb import Cache
from fastrdb.cli import connect
from fastrdb.cli.commands import cli
from fastrdb.testing import EmbeddedServer
from tests.support import ROOT
from tests.support.servers.certificates import Certificate
from tests.support.servers.cluster import Cluster
from tests.support.servers.sentinels import watched
from tests.support.waiting import until_found
from tests.support.world.items import Row

ALL = {
    *(
        "version",
        "role",
        "policy",
        "rights",
        "near",
        "tags",
        "index",
        "trust",
        "barriers",
        "leases",
        "clock",
        "latency",
    ),
    "processes",
}
ALLOWED: dict[str, Any] = {"enabled": True, "passwords": "+secret", "keys": ["*"], "categories": ["+@all"]}


def doctor(url: str, *options: str) -> tuple[int, dict[str, dict[str, str]]]:
    """Run the command. Return its status, and the findings by their check: of each the worst."""
    done = CliRunner().invoke(cli, ["doctor", url, "--json", *options], env={"FASTRDB_URL": None})
    assert done.exception is None or isinstance(done.exception, SystemExit), done.output
    found = json.loads(done.stdout)
    if isinstance(found, dict):
        return done.exit_code, {"error": {"found": found["error"], "level": "failure"}}
    levels = ("ok", "warning", "failure")
    return done.exit_code, {each["check"]: each for each in sorted(found, key=lambda each: levels.index(each["level"]))}


@contextlib.contextmanager
def running(*args: str, **options: Any) -> Iterator[tuple[EmbeddedServer, Redis]]:
    """Start a server, and a client that administers it."""
    with EmbeddedServer(args=args, **options) as server, Redis(port=server.port) as admin:
        yield server, admin


def test_a_plain_server_is_well(server: EmbeddedServer) -> None:
    """Each check is made, and what the command does leaves no entry behind."""
    with Redis(port=server.port) as admin:
        admin.flushall()
        status, found = doctor(server.url, "--namespace", "shop")
        assert not [key for key in admin.scan_iter() if b"doctor" in key]
    assert status == 0, found
    assert set(found) == ALL
    assert {each["level"] for each in found.values()} == {"ok"}


def test_a_server_that_may_evict_the_index_is_a_warning() -> None:
    """The advice is a command."""
    with running("--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru") as (server, _):
        status, found = doctor(server.url)
    assert status == 1
    assert found["policy"]["found"] == "allkeys-lru with maxmemory"
    assert "CONFIG SET maxmemory-policy volatile-lru" in found["policy"]["advice"]
    assert [name for name, each in found.items() if each["level"] != "ok"] == ["policy"]  # no mark of the command's own


def test_a_user_without_info_is_a_warning() -> None:
    """Everything else works; a restart would not be noticed."""
    with running() as (server, admin):
        admin.acl_setuser("shop", **ALLOWED, commands=["-info"])
        status, found = doctor(f"redis://shop:secret@127.0.0.1:{server.port}")
    assert status == 1
    assert found["info"]["level"] == "warning"
    assert "+info" in found["info"]["advice"]
    assert found["rights"]["level"] == "ok"
    assert "secret" not in json.dumps(found)


def test_the_documented_user_is_well() -> None:
    """The checks that the user may not make say so; a cache does not need them."""
    text = (ROOT / "fastrdb" / "docs" / "security.md").read_text("utf-8")
    [line] = re.findall(r"^ACL SETUSER shop (.*)$", text, re.MULTILINE)
    with running() as (server, admin):
        admin.execute_command("ACL", "SETUSER", "shop", *line.split())
        url = f"redis://shop:password@127.0.0.1:{server.port}"
        status, found = doctor(url)
        assert CliRunner().invoke(cli, ["keys", "user:*", "--url", url]).exit_code == 0
    assert status == 0, found
    assert "not checked" not in found["index"]["found"]
    assert "HSET" in found["tags"]["found"]
    assert "+client|tracking" in found["near"]["found"]
    assert found["processes"]["found"].startswith("not checked, the user lacks the right")


def test_a_user_without_a_right_is_a_failure() -> None:
    """The command that was refused is named."""
    with running() as (server, admin):
        admin.acl_setuser("shop", **ALLOWED, commands=["-zadd"])
        status, found = doctor(f"redis://shop:secret@127.0.0.1:{server.port}")
    assert status == 2
    assert found["rights"]["level"] == "failure"
    assert found["rights"]["found"] == "refused: ZADD"
    assert "fastrdb docs security" in found["rights"]["advice"]


def test_rights_for_tags_are_a_failure_where_entries_have_tags() -> None:
    """Then each invalidation needs them, whether its own function has tags or not."""

    async def tagged(port: int) -> None:
        client = AsyncRedis(port=port)
        async with client, Cache(client) as cache:
            await cache.cached("user:{number}", depends_on=[Row])(_number)(1)

    with running() as (server, admin):
        asyncio.run(tagged(server.port))
        admin.acl_setuser("shop", **ALLOWED, commands=["-hget", "-hset", "-hdel"])
        status, found = doctor(f"redis://shop:secret@127.0.0.1:{server.port}")
    assert (status, found["rights"]["found"]) == (2, "refused: HSET, HGET, HDEL")


async def _number(number: int) -> int:
    return number


@pytest.mark.parametrize(
    ("right", "command"), [("-zrangebylex", ("keys",)), ("-evalsha", ("invalidate", "user:*", "--yes"))]
)
def test_a_command_that_the_user_may_not_run_is_told(right: str, command: tuple[str, ...]) -> None:
    """The advice is about the user, and not about the server."""
    with running() as (server, admin):
        admin.acl_setuser("shop", **ALLOWED, commands=[right])
        done = CliRunner().invoke(cli, [*command, "--url", f"redis://shop:secret@127.0.0.1:{server.port}"])
    assert done.exit_code == 2
    assert "user may not do that" in done.output
    assert "security" in done.output


def test_a_replica_is_a_failure() -> None:
    """The advice names its master."""
    with running() as (master, _), running("--replicaof", "127.0.0.1", str(master.port)) as (replica, _):
        status, found = doctor(replica.url)
    assert status == 2
    assert found["role"]["level"] == "failure"
    assert f"127.0.0.1:{master.port}" in found["role"]["advice"]


def test_what_is_on_its_way_is_shown(server: EmbeddedServer) -> None:
    """A barrier, a lost index, another server's data and a process with a pending invalidation."""
    with Redis(port=server.port, decode_responses=True) as admin:
        admin.flushall()
        admin.zadd("fastrdb:index", {"user:1": 0})
        admin.zadd("fastrdb:barriers", {"1" * 32 + "user:\n": (admin.time()[0] + 8) * 1000})
        admin.zadd("fastrdb:trusted", {"another": 0})
        record = {"host": "web1", "pid": 7, "pending": True, "functions": [], "drops": []}
        admin.hset("fastrdb:{stats}:x", "record", json.dumps(record))
        admin.sadd("fastrdb:{stats}", "x")
        status, found = doctor(server.url)
        admin.flushall()
    assert status == 1
    assert {name for name, each in found.items() if each["level"] == "warning"} >= {
        *("index", "barriers", "trust", "processes"),
    }
    assert found["barriers"]["found"].startswith("1: user:*")
    assert "web1 pid 7" in found["processes"]["found"]


def test_a_cluster_with_a_slot_that_moves(cluster: Cluster) -> None:
    """The slot is named; the cluster works all the same, and is well when the move has ended."""
    cluster.flush()
    slot, (source, target, _) = 100, cluster.masters
    url = f"redis://127.0.0.1:{source.port}"
    assert doctor(url)[0] == 0
    assert cluster.owner(slot) is source
    cluster.begin_move(slot, source, target)
    try:
        status, found = doctor(url)
    finally:
        for node in (source, target):
            node.ask("CLUSTER", "SETSLOT", slot, "STABLE")
    assert status == 1
    assert found["slots"]["found"].endswith(f"127.0.0.1:{source.port}: {slot}")
    assert found["rights"]["level"] == "ok"
    assert doctor(url)[1]["slots"]["found"] == "whole, 3 masters, no slot moves"


@pytest.mark.parametrize("fault", [signal.SIGSTOP, signal.SIGKILL], ids=lambda fault: fault.name)
def test_a_cluster_with_a_master_that_does_not_answer(fault: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """The master is named, and asked once: each of the other checks would wait for it again."""
    monkeypatch.setitem(connect._OPTIONS, "socket_timeout", 0.5)
    with Cluster() as cluster:
        first, silent, _ = cluster.masters
        url = f"redis://127.0.0.1:{first.port}"
        os.kill(silent.server.pid, fault)
        until_found(lambda: not first.is_well(), "the cluster takes itself for whole")
        status, found = doctor(url)
        assert (status, found["version"]["level"]) == (2, "ok")
        said = json.loads(CliRunner().invoke(cli, ["doctor", url, "--json"]).stdout)
        found_there = [each["found"] for each in said if each["check"] == "slots"]
        assert f"127.0.0.1:{first.port}: cluster_state fail" in found_there
        assert [each.partition(" (")[0] for each in found_there if "answer" in each] == [
            f"127.0.0.1:{silent.port}: this master does not answer"
        ]
        assert [each["check"] for each in said][-1] == "entries"
        shown = CliRunner().invoke(cli, ["keys", "--url", url])
        assert (shown.exit_code, "slots of the cluster have no master" in shown.output) == (2, True)
        published = CliRunner().invoke(cli, ["stats", "--url", f"redis://127.0.0.1:{silent.port}"])
        assert (published.exit_code, f"Redis at 127.0.0.1:{silent.port}: " in published.output) == (2, True)


def test_a_dead_port_is_told() -> None:
    """The command says what to look at, and ends with 2."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        status, found = doctor(f"redis://127.0.0.1:{port}")
    assert (status, found["error"]["found"]) == (
        2,
        f"Redis at 127.0.0.1:{port}: nothing listens there (connection refused). Check host and port; is it running?",
    )


@pytest.mark.parametrize("login", ["", ":wrong@", "nobody:wrong@"])
def test_another_password_is_told(login: str) -> None:
    """The password that was tried is in no message."""
    with running("--requirepass", "right") as (server, _):
        status, found = doctor(f"redis://{login}127.0.0.1:{server.port}")
        text = f"Redis at 127.0.0.1:{server.port}: the server asks for another login."
        assert (status, found["error"]["found"].startswith(text)) == (2, True)
        assert "wrong" not in found["error"]["found"]
        assert doctor(f"redis://:right@127.0.0.1:{server.port}")[0] == 0


# A connection over TLS ends when the server has said so, which may be after the command's event loop.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_tls_is_spoken_and_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With certificate and password all is well; without one of these, the message says how to write the address."""
    certificate = Certificate.made(tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (*certificate.server_arguments(port), "--requirepass", "right")
    with EmbeddedServer(args=arguments) as server:
        assert server.running
        known = f"?ssl_ca_certs={certificate.certificate}"
        assert doctor(f"rediss://:right@localhost:{port}{known}")[0] == 0
        assert "another login" in doctor(f"rediss://localhost:{port}{known}")[1]["error"]["found"]
        assert "ssl_ca_certs" in doctor(f"rediss://localhost:{port}")[1]["error"]["found"]
        assert "rediss://" in doctor(f"redis://localhost:{port}")[1]["error"]["found"]
        monkeypatch.setattr(connect, "_CONNECT_S", 1.0)
        assert " redis://" in doctor(f"rediss://127.0.0.1:{server.port}{known}")[1]["error"]["found"]
    gc.collect()  # here, and not in the next test


@pytest.mark.parametrize(
    "address",
    [
        "http://localhost",
        "redis://s3cret/1@localhost",  # redis-py takes the host to be s3cret
        "redis://s3cret#1@localhost",
        "redis://localhost/s3cret",  # and this to be database 0
        "redis://localhost?s3cret=1",
    ],
)
def test_what_is_no_address_is_told(address: str) -> None:
    """The message says how an address looks, and has no part of a password."""
    status, found = doctor(address)
    assert status == 2
    assert "redis://user:password@host:6379/0" in found["error"]["found"]
    assert "s3cret" not in str(found)


def test_a_sentinel_is_told(server: EmbeddedServer) -> None:
    """It has the address of the master, which is what each command needs."""
    with contextlib.ExitStack() as stack:
        (port, *_) = watched(stack, server, server, 30_000).sentinels
        retry = Retry(ConstantBackoff(0.05), 200)
        with Redis(port=port, retry=retry, retry_on_error=[RedisConnectionError]) as starting:
            starting.ping()
        status, found = doctor(f"redis://127.0.0.1:{port}")
    assert (status, "that is a Sentinel" in found["error"]["found"]) == (2, True)
    assert "SENTINEL MASTERS" in found["error"]["found"]


@pytest.mark.parametrize("address", ["unix:///nothing/redis.sock", "rediss://localhost:1?ssl_ca_certs=/nothing/ca.pem"])
def test_a_file_that_there_is_not_is_told(address: str) -> None:
    """It is the socket, or a certificate; the server has no part in it."""
    status, found = doctor(address)
    assert status == 2
    assert "there is no such file" in found["error"]["found"]


def test_a_host_that_there_is_not_is_told() -> None:
    """DNS does not know it."""
    status, found = doctor("redis://nothing.invalid")
    assert (
        status,
        found["error"]["found"].startswith("Redis at nothing.invalid:6379: there is no host of that name"),
    ) == (2, True)
