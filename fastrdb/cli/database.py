"""The database of an address, and what an error of it means, without the address's password."""

from __future__ import annotations

import logging
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

from sqlalchemy import URL, make_url
from sqlalchemy.exc import ArgumentError, InvalidRequestError, NoSuchModuleError
from sqlalchemy.ext.asyncio import create_async_engine

from fastrdb import OptionError
from fastrdb.watch import ChangeSource, source_of
from fastrdb.watch.failure import reason_of, side_of

from .connect import UnreachableError

SUCH_AS: Final = "such as postgresql+asyncpg://user@host/name, mysql+aiomysql://..., sqlite+aiosqlite:///file.db"
_TLS: Final = {"asyncpg": "?ssl=require", "psycopg": "?sslmode=require", "aiomysql": "?ssl_ca=/path/to/ca.pem"}
"""The option of an address with which each driver encrypts."""
# What the text of an error has, what that means, and what to do. The first that is found counts.
_MEANINGS: Final = (
    (r"certificate", "the certificate of the server is not trusted", "Name its CA in the address"),
    (
        r"rejected ssl|not support ssl|ssl is not",
        "the server speaks no TLS",
        "Take the option for it out of the address",
    ),
    (r"no encryption|insecure|ssl.*required|require.*ssl", "the server asks for TLS", "Add {tls} to the address"),
    (
        r"password|authentication|role .* not exist|pg_hba|access denied for user [^ ]+( \(using|$)",
        "the server asks for another login",
        "Write user:password@host; : / @ in a password are written as %3A %2F %40",
    ),
    (r"database .* not exist|unknown database", "there is no such database", "Check the name behind the last /"),
    (r"denied|must be owner|readonly|read-only", "the user may not do that", "`fastrdb docs outside` lists the rights"),
    (r"refused|connect call|can't connect|reset|closed", "nothing answers there", "Check host and port; does it run?"),
    (r"not known|resolution|nodename|getaddrinfo", "there is no such host", "Check the name of the host"),
    (r"statement timeout|max_statement_time", "a statement took longer than the server permits", "Raise its limit"),
    (r"timeout|timed out", "no answer came in time", "Check host and port, the network, a firewall"),
    (r"\block", "another program has locked it", "Try again when its transaction has ended"),
    (r"open database file", "the file cannot be opened", "Check its rights, and those of its folder"),
)


@asynccontextmanager
async def opened(address: str, *, patient: bool = False) -> AsyncIterator[ChangeSource]:
    """Connect to the database of an address, and disconnect.

    Args:
        patient: a database that does not answer yet is no error.

    Raises:
        OptionError: the address cannot be used.
        UnreachableError: the database fails, or the driver refuses an option of the address.
    """
    logging.getLogger("asyncmy").setLevel(logging.ERROR)  # it warns of each IF NOT EXISTS
    try:
        engine = create_async_engine(_parsed(address))
    except (ArgumentError, InvalidRequestError, ModuleNotFoundError) as error:
        raise OptionError(f"--database: {_of_driver(error)}; {SUCH_AS}") from None
    except ValueError:  # its text may have a part of the password
        raise OptionError(
            f"--database: not an address; a port is a number, and : / @ in a password are written as %3A %2F %40;"
            f" {SUCH_AS}"
        ) from None
    try:
        _require_file(engine.url)
        source = source_of(engine)
        try:
            async with engine.connect():
                pass
        except Exception as error:
            if side_of(error) is None or not patient:
                raise explained(error, source.name, engine.dialect.driver) from error
        try:
            yield source
        except Exception as error:
            if isinstance(error, OptionError) or side_of(error) != "database":
                raise
            raise explained(error, source.name, engine.dialect.driver) from error
    finally:
        await engine.dispose()


def _parsed(address: str) -> URL:
    """Return an address in its parts. Raises ValueError for a host or a name that has a part of a password."""
    url = make_url(address)
    if "@" in f"{url.host}{url.database}" and url.get_backend_name() != "sqlite":
        raise ValueError
    return url


def _of_driver(error: Exception) -> str:
    """Return what is wrong with the driver of an address."""
    if isinstance(error, ModuleNotFoundError):
        return f"the driver is not installed: pip install {error.name}"
    if isinstance(error, InvalidRequestError):
        return "the driver is not async"
    return str(error) if isinstance(error, NoSuchModuleError) else "not an address"


def _require_file(url: URL) -> None:
    """Raise OptionError for an address of SQLite without a file: connecting would make one."""
    if url.get_backend_name() != "sqlite" or (path := url.database or ":memory:").startswith("file:"):
        return
    if path == ":memory:":
        raise OptionError("--database: a database in memory has no other writers; name a file")
    if not Path(path).is_file():
        raise OptionError(
            f"--database: there is no file {Path(path).absolute()}; sqlite+aiosqlite:////a/b.db is /a/b.db"
        )


def explained(error: Exception, name: str, driver: str) -> UnreachableError:
    """Return the error of a database in words."""
    reason, where = reason_of(error), f"Database {name}"
    if side_of(error) is None:
        if "'cryptography'" in str(error):  # MySQL's own kind of login, without TLS
            return UnreachableError(f"the driver {driver} cannot log in ({error})", "pip install cryptography", where)
        advice = "Write ?ssl=require instead of ?sslmode=require" if "sslmode" in str(error) else "Correct the address"
        return UnreachableError(f"the driver {driver} refuses an option of the address ({error})", advice, where)
    for pattern, meaning, advice in _MEANINGS:
        if re.search(pattern, reason, re.IGNORECASE):
            return UnreachableError(f"{meaning} ({reason})", advice.format(tls=_TLS.get(driver, "TLS")), where)
    return UnreachableError(reason, "Check the address and the log of the server", where)
