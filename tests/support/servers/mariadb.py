"""A MariaDB of the tests' own: what another program leaves on a shared one, or its stop, changes no test."""

from __future__ import annotations

import contextlib
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


def find_binaries() -> tuple[str, str] | None:
    """Return the server and the program that makes its directory."""
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/libexec"))
    server, install = (shutil.which(name, path=path) for name in ("mariadbd", "mariadb-install-db"))
    return None if server is None or install is None else (server, install)


@contextlib.contextmanager
def started(binaries: tuple[str, str], **settings: str) -> Iterator[URL]:
    """Start a server on a free port with everything in a directory that goes with it, and yield its address."""
    server, install = binaries
    users = {entry.pw_name for entry in pwd.getpwall()}
    user = None if os.geteuid() else "mysql" if "mysql" in users else "nobody"
    port = str(free_port())
    with tempfile.TemporaryDirectory(prefix="fastrdb-mariadb-") as directory:
        if user is not None:
            shutil.chown(directory, user)
        # A server that starts deletes all temporary tables in its tmpdir. In /tmp, another one would crash.
        base = ["--no-defaults", f"--datadir={directory}/data", f"--tmpdir={directory}"]
        run = ["--skip-test-db", "--auth-root-authentication-method=normal"]
        subprocess.run([install, *base, *run], user=user, cwd="/", capture_output=True, check=True, timeout=120)
        given = {name.replace("_", "-"): value for name, value in settings.items()}
        options = [f"--{name}={value}" for name, value in (_SETTINGS | given).items()]
        places = [f"--port={port}", f"--socket={directory}/socket", f"--pid-file={directory}/pid"]
        with Path(directory, "log").open("wb") as log:
            process = subprocess.Popen([server, *base, *options, *places], user=user, cwd="/", stdout=log, stderr=log)
        try:
            # The file is written when connections are taken.
            until_found(lambda: Path(directory, "pid").exists() or None, "a MariaDB that has started")
            yield URL.create("mariadb+aiomysql", "root", host="127.0.0.1", port=int(port))
        finally:
            process.kill()
            process.wait()
