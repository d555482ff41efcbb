"""A MariaDB or MySQL of the tests' own: what another program leaves on a shared one, or its stop, changes no test."""

from __future__ import annotations

import contextlib
import functools
import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from sqlalchemy import URL

from tests.support.waiting import until_found

from .postgresql import free_port

_SETTINGS = {
    "innodb-flush-log-at-trx-commit": "0",
    "innodb-buffer-pool-size": "16M",
    "bind-address": "127.0.0.1",
}
BINLOG = {"log_bin": "binlog", "binlog_format": "ROW", "binlog_row_metadata": "FULL", "server_id": "1"}
"""A binary log, which only a server's start can switch on."""
GTIDS = {"gtid_mode": "ON", "enforce_gtid_consistency": "ON"}
"""Names of transactions, by which MySQL shows which of them readers see."""
_PLACES = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/libexec"))


def find_binaries() -> tuple[str, str] | None:
    """Return MariaDB's server and the program that makes its directory."""
    server, install = (shutil.which(name, path=_PLACES) for name in ("mariadbd", "mariadb-install-db"))
    return None if server is None or install is None else (server, install)


@functools.cache
def find_mysql() -> str | None:
    """Return MySQL's server. MariaDB has a program of the same name."""
    for place in _PLACES.split(os.pathsep):
        if (found := shutil.which("mysqld", path=place)) is not None:
            version = subprocess.run(
                [found, "--no-defaults", "--version"], check=False, capture_output=True, timeout=60
            )
            if version.returncode == 0 and b"MariaDB" not in version.stdout:
                return found
    return None


@contextlib.contextmanager
def started(binaries: tuple[str, str], **settings: str) -> Iterator[URL]:
    """Start a MariaDB on a free port with everything in a directory that goes with it, and yield its address."""
    server, install = binaries
    run = [install, "--skip-test-db", "--auth-root-authentication-method=normal"]
    with _started(server, run, settings) as port:
        yield URL.create("mariadb+aiomysql", "root", host="127.0.0.1", port=port)


@contextlib.contextmanager
def started_mysql(server: str, **settings: str) -> Iterator[URL]:
    """Start a MySQL likewise: as it is by default, with a binary log that cannot be read."""
    with _started(
        server, [server, "--initialize-insecure"], {"mysqlx": "OFF", "secure-file-priv": "NULL"} | settings
    ) as port:
        yield URL.create("mysql+aiomysql", "root", host="127.0.0.1", port=port)


@contextlib.contextmanager
def _started(server: str, install: list[str], settings: dict[str, str]) -> Iterator[int]:
    users = {entry.pw_name for entry in pwd.getpwall()}
    user = None if os.geteuid() else "mysql" if "mysql" in users else "nobody"
    port = free_port()
    with tempfile.TemporaryDirectory(prefix="fastrdb-mariadb-") as directory:
        if user is not None:
            shutil.chown(directory, user)
        # A server that starts deletes all temporary tables in its tmpdir. In /tmp, another one would crash.
        base = ["--no-defaults", f"--datadir={directory}/data", f"--tmpdir={directory}"]
        program, *run = install
        subprocess.run([program, *base, *run], user=user, cwd="/", capture_output=True, check=True, timeout=120)
        given = {name.replace("_", "-"): value for name, value in settings.items()}
        options = [f"--{name}={value}" for name, value in (_SETTINGS | given).items()]
        places = [f"--port={port}", f"--socket={directory}/socket", f"--pid-file={directory}/pid"]
        with Path(directory, "log").open("wb") as log:
            process = subprocess.Popen([server, *base, *options, *places], user=user, cwd="/", stdout=log, stderr=log)
        try:
            # The file is written when connections are taken.
            until_found(lambda: Path(directory, "pid").exists() or None, "a server that has started")
            yield port
        finally:
            process.kill()
            process.wait()
