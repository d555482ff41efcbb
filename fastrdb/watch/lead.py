"""The name of a watched database, and the lead of its outbox among any number of watchers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Final

from fastrdb.errors import OptionError

if TYPE_CHECKING:
    from sqlalchemy import URL

Locking = Callable[[], Awaitable[bool]]


def named(kind: str, url: URL, port: int) -> str:
    """Return the name of a database: its kind, server and name, as the address has them.

    Two databases have different names. Watchers of one database have the same name if all get the same address.

    Raises:
        OptionError: the address names no database.
    """
    if not url.database:
        raise OptionError(
            f"watch: the address names no database: write {url.drivername}://.../NAME. An engine with `creator=` or"
            " `async_creator=` needs the name, too"
        )
    host = url.host or url.query.get("host") or url.query.get("unix_socket") or "localhost"
    server = host if isinstance(host, str) else ",".join(host)
    return f"{kind}:{server}:{url.port or url.query.get('port') or port}/{url.database}"


class Lead:
    """The lead of one outbox, by two locks of a database session: one for the outbox, one for the namespace.

    A watcher of the same namespace waits for the lead. One of another namespace is refused: it would delete rows that
    the first has not read. A session that ends releases its two locks one after the other, so a refusal is repeated
    before it is an error.
    """

    _PATIENCE: Final = 3

    def __init__(self, name: str, namespace: str) -> None:
        self._name, self._namespace, self._refused = name, namespace, 0

    async def take(self, reader: Locking, outbox: Locking) -> bool:
        """Take both locks, and return whether this session has them.

        Raises:
            OptionError: a watcher of another namespace leads.
        """
        if not await reader():
            return False
        if await outbox():
            self._refused = 0
            return True
        self._refused += 1
        if self._refused < self._PATIENCE:
            return False
        raise OptionError(
            f"watch: {self._name} is watched for another namespace, and not for {self._namespace!r}: an outbox is read"
            " for one namespace. End the other watcher (`fastrdb watch status` shows it), or use its namespace"
        )
