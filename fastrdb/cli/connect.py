"""A client for an address: of one server, or of a cluster if the server reports that it is part of one."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

from redis.asyncio import Redis, RedisCluster
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, NoPermissionError, RedisClusterException, RedisError, ResponseError

from fastrdb import CacheUnavailableError

URL = "redis://localhost:6379"
_CONNECT_S = 5.0
_OPTIONS: dict[str, Any] = {
    "socket_connect_timeout": _CONNECT_S,
    "socket_timeout": _CONNECT_S,
    "retry": Retry(NoBackoff(), 0),
}
_MET = re.compile(r"(?:connecting to|reading from|writing to) (\S+:\d+)")
"""Which server an error of redis-py is about."""


_MEANINGS = {
    "cluster is down|not covered": (
        "slots of the cluster have no master",
        "`fastrdb doctor` and CLUSTER NODES show which",
    ),
    "wrongtype": ("that key is another program's, and no entry", "Give the cache a namespace of its own"),
    "no such file": ("there is no such file", "Check the path of the socket, or of a certificate, in the address"),
    "certificate": ("the certificate of the server is not trusted", "Add ?ssl_ca_certs=/path/to/ca.pem to the address"),
    "ssl|wrong_version_number": ("the server does not speak TLS there", "Write redis:// instead of rediss://"),
    "name or service|nodename nor servname|name resolution": (
        "there is no host of that name",
        "Check the address, and DNS",
    ),
    "refused|error 111": ("nothing listens there (connection refused)", "Check host and port; is it running?"),
}
"""For words of an error, what the error means, and what to do."""


class UnreachableError(Exception):
    """An error that says which server cannot be used, why, and what to do. It never holds the address's password."""

    def __init__(self, what: str, advice: str, where: str) -> None:
        super().__init__(what, advice, where)
        self.what, self.advice, self.where = what, advice, where

    def __str__(self) -> str:
        return f"{self.where}: {self.what}. {self.advice}"


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    """Open a client for an address, and close it. Raises UnreachableError."""
    try:
        _refuse_other_text(url)
        client: Any = Redis.from_url(url, **_OPTIONS)
        client.connection_pool.make_connection()  # an option that there is not: TypeError
    except (ValueError, TypeError):  # its text may have a part of the password
        raise UnreachableError(
            "not an address, or an option that there is not",
            "Write redis://user:password@host:6379/0; : / @ # in a password are written as %3A %2F %40 %23",
            "Redis",
        ) from None
    try:
        try:
            mode = await _mode(client)
            if mode == "sentinel":
                advice = "Give the address of the master: `redis-cli -p PORT SENTINEL MASTERS` shows it"
                raise UnreachableError("that is a Sentinel, and has no entries", advice, _place(url))
            if mode == "cluster":
                await client.aclose()
                # The doctor says which slots lack a master, and a client that asks for all would not open.
                client = RedisCluster.from_url(url.removesuffix("/0"), require_full_coverage=False, **_OPTIONS)
                await client.initialize()
        except OSError as error:
            raise _explained(error, url) from error
        yield client  # an OSError of the block may be of anything
    except (RedisError, RedisClusterException, CacheUnavailableError) as error:
        raise _explained(error, url) from error
    finally:
        await client.aclose()


def _refuse_other_text(url: str) -> None:
    """Raise ValueError for what redis-py takes for something else: a password with `/` or `#` for the host's name."""
    parts = urlsplit(url)
    if "@" in f"{parts.path}{parts.query}{parts.fragment}":
        raise ValueError
    if parts.scheme != "unix" and not re.fullmatch(r"(/\d*)?", parts.path):
        raise ValueError


async def _mode(client: Any) -> str:
    """Return what the server is: `standalone`, `cluster` or `sentinel`."""
    await client.execute_command("PING")
    try:
        info = await client.execute_command("INFO", "server")
    except (NoPermissionError, ResponseError):  # an ACL without +info: a command of clusters shows it as well
        try:
            await client.execute_command("CLUSTER", "INFO")
        except (NoPermissionError, ResponseError):
            return "standalone"
        return "cluster"
    found = re.search(r"(?:redis|server)_mode\W+(\w+)", str(info))  # a dict, or the text: Valkey has its own name
    return found[1] if found else "standalone"


def _explained(error: Exception, url: str) -> UnreachableError:
    met = _MET.search(str(error))  # of a cluster, it may be another server's
    return UnreachableError(*_meaning(error, url), f"Redis at {met[1]}" if met else _place(url))


def _place(url: str) -> str:
    parts = urlsplit(url)
    place = parts.path if parts.scheme == "unix" else f"{parts.hostname or 'localhost'}:{parts.port or 6379}"
    return f"Redis at {place}"


def _meaning(error: Exception, url: str) -> tuple[str, str]:
    """Return what an error means, and what to do."""
    text = f"{error} {error.__cause__ or ''} {error.__context__ or ''}".lower()
    if isinstance(error, AuthenticationError) or "noauth" in text or "wrongpass" in text:
        return "the server asks for another login", "Write redis://user:password@host:6379"
    if (
        isinstance(error, NoPermissionError) or "no permission" in text
    ):  # of the user, also behind an error of the cache
        return f"the user may not do that ({error})", "`fastrdb docs security` has the line of the ACL"
    for words, (what, advice) in _MEANINGS.items():
        if re.search(words, text):
            return what, advice
    if "closed by server" in text or "reset" in text:
        advice = "Does it want TLS? Write rediss:// instead of redis://" if url.startswith("redis://") else "Try again"
        return "the server closes the connection", advice
    if isinstance(error, TimeoutError) or any(word in text for word in ("timeout", "timed out", "no answer")):
        tls = "Does it speak TLS there? Write redis:// if not. " if url.startswith("rediss://") else ""
        return f"no answer within {_CONNECT_S:g} s", f"{tls}Check the network, a firewall, the address"
    return f"{type(error).__name__}: {str(error).rstrip('.')}", "Check the address and the server's log"
