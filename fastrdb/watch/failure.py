"""What an error of a watcher means: the side that has failed, and a short reason without secrets."""

from __future__ import annotations

from typing import Final, Literal

from redis.exceptions import RedisError
from sqlalchemy.exc import SQLAlchemyError

from fastrdb.errors import CacheUnavailableError

from .source import NotInstalledError

Side = Literal["database", "Redis"]

_REDIS: Final = (RedisError, CacheUnavailableError)
_DATABASE: Final = (SQLAlchemyError, OSError, NotInstalledError)  # a driver may raise the error of its socket
_DRIVERS: Final = frozenset(("aiomysql", "aiosqlite", "asyncmy", "asyncpg", "psycopg", "pymysql", "sqlite3"))
"""Packages whose own errors SQLAlchemy lets through, before 2.1 those of asyncpg while it connects."""
_LONGEST: Final = 200  # characters


def side_of(error: BaseException) -> Side | None:
    """Return the side that an error is of; None for a fault of this package."""
    if isinstance(error, _REDIS):
        return "Redis"
    from_driver = type(error).__module__.partition(".")[0] in _DRIVERS
    return "database" if from_driver or isinstance(error, _DATABASE) else None


def kind_of(error: BaseException) -> str:
    """Return the name of the class of an error, for counts: that of the driver's error, if SQLAlchemy has wrapped one.

    A name has few values, and a text has many.
    """
    return type(_original(error)).__name__


def reason_of(error: BaseException) -> str:
    """Return in one line why an operation failed.

    The first line of a driver's text has no value of a row: details follow in other lines. The text of another error is
    left out, since it may have one.
    """
    if isinstance(error, CacheUnavailableError):
        return f"{error.operation}: {error.reason}"
    text = "" if side_of(error) is None else next(iter(str(_original(error)).splitlines()), "")
    return f"{kind_of(error)}: {text}"[:_LONGEST].rstrip(".") if text else kind_of(error)


def _original(error: BaseException) -> BaseException:
    """Return the error of the driver, without SQLAlchemy's text of statement and parameters."""
    return getattr(error, "orig", None) or error
