"""Changes of MariaDB and MySQL: read from an outbox if one is installed, else from the binary log."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import TYPE_CHECKING

from fastrdb.errors import OptionError

from .binlog import BinlogSource, refusal
from .lead import named
from .mysql_outbox import MySQLOutbox, is_installed
from .source import ChangeSource, Images, NotInstalledError, Poll, Status

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine


class MySQLSource(ChangeSource):
    """The changes of one database, from its outbox if there is one, else from the server's binary log."""

    def __init__(self, engine: AsyncEngine) -> None:
        self.engine = engine
        self.name = named("mysql", engine.url, 3306)
        self._way: ChangeSource | None = None
        self._refusal = ""

    async def install_sql(self, tables: Collection[str] = (), columns: Iterable[str] = ()) -> list[str]:
        """See `ChangeSource`. No statements where the binary log can be read, unless there is an outbox already."""
        return await (await self._chosen() or self._outbox()).install_sql(tables, columns)

    async def uninstall_sql(self) -> list[str]:
        """See `ChangeSource`."""
        return await self._outbox().uninstall_sql()

    async def run(self, statements: Sequence[str]) -> None:
        """See `ChangeSource`."""
        await self._outbox().run(statements)

    async def lead(self, namespace: str = "") -> bool:
        """See `ChangeSource`."""
        if self._way is None:
            self._way = await self._chosen()
        if self._way is None:
            raise NotInstalledError(
                f"watch: {self.name} has no fastrdb_outbox, and its binary log cannot be read: {self._refusal}."
                " Change that, or run `fastrdb watch install`"
            )
        return await self._way.lead(namespace)

    async def poll(self, position: str | None, images: Images) -> Poll:
        """See `ChangeSource`. A position of the other way of reading counts as no position."""
        if self._way is None:
            raise OptionError("watch: lead() comes before poll()")
        kind = "outbox" if isinstance(self._way, MySQLOutbox) else "log"
        given, _, since = (position or "").partition(" ")
        poll = await self._way.poll(since if given == kind else None, images)
        return Poll(f"{kind} {poll.position}", poll.found, poll.lost)

    async def mark(self, position: str) -> None:
        """See `ChangeSource`."""
        if self._way is not None:
            await self._way.mark(position.partition(" ")[2])

    async def clean(self, position: str) -> None:
        """See `ChangeSource`."""
        if self._way is not None:
            await self._way.clean(position.partition(" ")[2])

    async def status(self, position: str | None, columns: Iterable[str] = (), namespace: str = "") -> Status:
        """See `ChangeSource`."""
        way = await self._chosen()
        if way is None:
            no_log = f"the binary log cannot be read, since {self._refusal}"
            return Status(notes=[f"nothing is installed: run `fastrdb watch install`; {no_log}"])
        return await way.status((position or "").partition(" ")[2] or None, columns, namespace)

    async def close(self) -> None:
        """See `ChangeSource`."""
        way, self._way = self._way, None
        if way is not None:
            await way.close()

    def _outbox(self) -> MySQLOutbox:
        return MySQLOutbox(self.engine, self.name)

    async def _chosen(self) -> ChangeSource | None:
        """Return the way by which this database can be read now; None if there is none."""
        async with self.engine.connect() as connection:
            if await is_installed(connection):
                return self._outbox()
            self._refusal = await refusal(connection)
        return None if self._refusal else BinlogSource(self.engine, self.name)
