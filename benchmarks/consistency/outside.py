"""The world of `--outside`: writers that have no cache, and watchers that bring their commits to Redis."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

from sqlalchemy import NullPool
from sqlalchemy.ext.asyncio import create_async_engine

from benchmarks.consistency import database
from benchmarks.consistency.followed import FollowedSubject, Writes
from fastrdb import Cache
from fastrdb.watch import Watcher, source_of
from tests.support.servers import databases

if TYPE_CHECKING:
    from collections.abc import Sequence

    from sqlalchemy.ext.asyncio import AsyncSession

    from benchmarks.consistency.address import Address
    from benchmarks.consistency.control import Orders
    from benchmarks.consistency.settings import Settings
    from benchmarks.consistency.subjects import Fields

WATCHERS = 2
"""Of these one leads."""
_TABLES = ("placed", "label", "labelled")


class OutsideWriter(FollowedSubject):
    """A program that writes, and has no cache: it tells Redis nothing, and reads nothing through one."""

    def __init__(self, settings: Settings, address: Address) -> None:
        self._writes = Writes(database.Table(settings.faults))
        self._kept: list[AsyncSession] = []

    async def ask(self, db: AsyncSession, kind: str, row: int) -> Sequence[Fields]:  # type: ignore[override]
        """Read nothing."""
        return []

    async def ready(self) -> None:
        """There is nothing to connect to."""

    def stats(self) -> dict[str, int]:
        """Give nothing."""
        return {}

    async def aclose(self, limit: float) -> None:
        """Close the sessions that were kept."""
        for db in self._kept:
            await db.close()


async def install(url: str) -> None:
    """Make the database record its changes."""
    async with databases.opened(url) as made:
        source = source_of(made.engine)
        await source.run(await source.install_sql(() if made.name == "mariadb" else _TABLES))


async def watch(orders: Orders) -> None:
    """Be a watcher, until the process is killed."""
    client: Any = orders.address.connect()
    engine = create_async_engine(orders.plan.url, poolclass=NullPool)
    async with Cache(client, on_error="raise", timeout=5) as cache:
        await asyncio.shield(Watcher(engine, cache).run())
