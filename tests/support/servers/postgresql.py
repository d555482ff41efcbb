"""A PostgreSQL of the tests' own, which can prepare transactions: only a server's start can switch that on."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import URL

_INSTALLED = Path("/usr/lib/postgresql")  # Debian's place, which is not on PATH
_SETTINGS = {
    "fsync": "off",
    "listen_addresses": "127.0.0.1",
    "max_prepared_transactions": "20",
    "shared_buffers": "16MB",
}


def find_binaries() -> Path | None:
    """Return the directory of `initdb` and `pg_ctl`, the newest that is installed."""
    on_path = shutil.which("initdb")
    if on_path is not None and shutil.which("pg_ctl") is not None:
        return Path(on_path).parent
    found = [path.parent for path in _INSTALLED.glob("*/bin/initdb") if (path.parent / "pg_ctl").exists()]
    return max(found, key=lambda path: float(path.parent.name), default=None)


@contextlib.contextmanager
def started(binaries: Path, **given: str) -> Iterator[URL]:
    """Start a server on a free port with everything in a directory that goes with it, and give its address."""
    user = _unprivileged()
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="fastrdb-postgresql-") as directory:
        if user is not None:
            shutil.chown(directory, user)
        data = Path(directory, "data")
        settings = " ".join(f"-c {name}={value}" for name, value in {**_SETTINGS, **given, "port": str(port)}.items())
        log, options = str(Path(directory, "log")), f"-k {directory} {settings}"
        _run(user, str(binaries / "initdb"), "-D", str(data), "-U", "postgres", "-A", "trust", "-N")
        _run(user, str(binaries / "pg_ctl"), "-D", str(data), "-l", log, "-o", options, "-w", "start")
        try:
            yield URL.create("postgresql+asyncpg", "postgres", host="127.0.0.1", port=port, database="postgres")
        finally:
            _run(user, str(binaries / "pg_ctl"), "-D", str(data), "-m", "immediate", "-w", "stop")


def _unprivileged() -> str | None:
    """Return the user to run as: PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    names = {entry.pw_name for entry in pwd.getpwall()}
    return "postgres" if "postgres" in names else "nobody"


def _run(user: str | None, *command: str) -> None:
    done = subprocess.run(
        command,
        user=user,
        cwd="/",
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if command[-1] != "start" else subprocess.DEVNULL,  # the server would keep the pipe open
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, f"{command}: {done.stdout}"


def free_port() -> int:
    """Return a port that no program listens on."""
    with socket.socket() as made:
        made.bind(("127.0.0.1", 0))
        port: int = made.getsockname()[1]
        return port
