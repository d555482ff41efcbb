"""The database of a run: a SQLite file, or a database of its own on a real server; rows, and the history of each.

Every write puts its version into the history in its own transaction: what is in there was committed, nothing else was.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from enum import Enum, auto
from pathlib import Path
from random import Random
from typing import Any

from pydantic import BaseModel
from sqlalchemy import URL, BigInteger, event, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.consistency.logs import Committed
from benchmarks.consistency.settings import DatabaseKind, SettingsError
from benchmarks.consistency.workload import BLOCK
from tests.support.servers import databases

_LIMIT = 5.0
SLOW, SLOW_SECONDS = 0.2, 0.04
"""The share of loads and of COMMITs that are slow, and how long they take at most, where the faults say so."""
LONG, LONG_SECONDS = 0.2, 4.0
"""The share of loads that outlast a barrier, and how long they take at most, where the faults say so."""
_HELD_SECONDS = 0.02
"""Seconds between two looks of a load that is held."""
_SLOW_COMMIT = text("SELECT set_config('commit_delay', :micros, true), set_config('commit_siblings', '0', true)")
"""PostgreSQL: this transaction's COMMIT waits before others see it. Superusers may do that."""


class Base(DeclarativeBase):
    """All mapped classes here."""


class Row(Base):
    """What is read and written. `attempt` is the number of the write that made this version."""

    __tablename__ = "row_now"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    version: Mapped[int]
    attempt: Mapped[int] = mapped_column(BigInteger)


class Past(Base):
    """Every version that was ever committed."""

    __tablename__ = "row_past"
    attempt: Mapped[int] = mapped_column(BigInteger, primary_key=True, autoincrement=False)
    row: Mapped[int] = mapped_column(primary_key=True, autoincrement=False, index=True)
    version: Mapped[int]
    place: Mapped[int | None]
    """Where the row is from then on, with `--auto`."""


class RowOut(BaseModel, from_attributes=True, frozen=True):
    """What a caller gets of a row."""

    id: int
    version: int
    attempt: int

    @property
    def fields(self) -> tuple[int, int, int]:
        """As the log wants it."""
        return (self.id, self.version, self.attempt)


async def load(db: AsyncSession, row: int) -> Row:
    """Give one row, as the mapped object."""
    return (await db.scalars(select(Row).where(Row.id == row))).one()


async def load_block(db: AsyncSession, block: int) -> list[RowOut]:
    """Give all rows of a block."""
    chosen = select(Row.id, Row.version, Row.attempt).where(Row.id >= block * BLOCK, Row.id < (block + 1) * BLOCK)
    return [RowOut(id=row, version=v, attempt=a) for row, v, a in await db.execute(chosen.order_by(Row.id))]


class Pace(Enum):
    """How long loads take."""

    AS_THE_FAULTS_SAY = auto()
    HELD = auto()  # loads that have read do not end
    QUICK = auto()


pace: ContextVar[Callable[[], Pace]] = ContextVar("pace", default=lambda: Pace.AS_THE_FAULTS_SAY)
"""Of the loads of this process, now."""


class Table:
    """What cached functions and writers do to the rows; slowly at times, where the faults say so."""

    def __init__(self, faults: Collection[str]) -> None:
        self._slow_load, self._slow_commit = "slow-load" in faults, "slow-commit" in faults
        self._long_load = "long-load" in faults
        self._chance = Random()

    async def row(self, db: AsyncSession, row: int) -> Row:
        """Load one row."""
        found = await load(db, row)
        await self.linger()
        return found

    async def block(self, db: AsyncSession, block: int) -> list[RowOut]:
        """Load a block."""
        found = await load_block(db, block)
        await self.linger()
        return found

    async def slow_down(self, db: AsyncSession) -> None:
        """Let the COMMIT of this transaction take its time, where the faults and the database say so."""
        if self._slow_commit and db.get_bind().dialect.name == "postgresql" and self._chance.random() < SLOW:
            await db.execute(_SLOW_COMMIT, {"micros": str(round(self._chance.random() * SLOW_SECONDS * 1e6))})

    async def change(self, db: AsyncSession, rows: Sequence[int], attempt: int) -> None:
        """Make a new version of each row, always in the same order, and put it into the history."""
        await self.slow_down(db)
        chosen = Row.id.in_(sorted(rows))
        table: Any = Row.__table__
        await db.execute(update(table).where(chosen).values(version=Row.version + 1, attempt=attempt))
        news = select(Row.attempt, Row.id, Row.version).where(chosen)
        await db.execute(insert(Past).from_select(["attempt", "row", "version"], news))

    async def linger(self) -> None:
        """Do something else after the query."""
        now = pace.get()
        while now() is Pace.HELD:  # noqa: ASYNC110  # set in memory that processes share, which wakes up no task
            await asyncio.sleep(_HELD_SECONDS)
        if now() is Pace.QUICK:
            return
        if self._long_load and self._chance.random() < LONG:
            await asyncio.sleep(self._chance.random() * LONG_SECONDS)
        if self._slow_load and self._chance.random() < SLOW:
            await asyncio.sleep(self._chance.random() * SLOW_SECONDS)


async def made(db: AsyncSession, attempt: int) -> bool:
    """Tell whether a write is in the history."""
    return (await db.scalars(select(Past.row).where(Past.attempt == attempt).limit(1))).first() is not None


def engine(
    url: URL, isolation: str | None, *, size: int = 5, pool: int | None = None, slow: bool = False
) -> AsyncEngine:
    """Give an engine for one process, of `pool` connections at most; with `slow`, COMMITs of SQLite take their time."""
    options: dict[str, Any] = {} if isolation is None else {"isolation_level": isolation}
    sqlite = url.get_backend_name() == "sqlite"
    if sqlite:
        options["connect_args"] = {"timeout": _LIMIT}
    made = create_async_engine(url, pool_size=pool or size, max_overflow=0 if pool else size, **options)
    if sqlite:
        event.listen(made.sync_engine, "connect", _pragmas)
        if slow:
            event.listen(made.sync_engine, "connect", _slow_commits)
    return made


def _pragmas(connection: Any, _: object) -> None:
    cursor = connection.cursor()
    for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON"):
        cursor.execute(f"PRAGMA {pragma}")
    cursor.close()


def _slow_commits(connection: Any, _: object) -> None:
    """SQLite: the thread of this connection waits before a COMMIT, and does it whoever has given up meanwhile."""
    chance = Random()

    def linger(statement: str) -> None:
        if statement == "COMMIT" and chance.random() < SLOW:
            time.sleep(chance.random() * SLOW_SECONDS)

    connection.run_async(lambda driver: driver.set_trace_callback(linger))


async def create(url: str, rows: int) -> None:
    """Make the tables, and all rows as version 0."""
    async with databases.opened(url) as made, made.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        for start in range(0, rows, 1000):
            numbers = range(start, min(start + 1000, rows))
            await connection.execute(insert(Row), [{"id": n, "version": 0, "attempt": 0} for n in numbers])
            await connection.execute(insert(Past), [{"row": n, "version": 0, "attempt": 0} for n in numbers])


async def committed(url: str) -> list[Committed]:
    """Give the history."""
    async with databases.opened(url) as made, made.engine.connect() as connection:
        found = await connection.execute(select(Past.row, Past.version, Past.attempt, Past.place))
        return [Committed(*each) for each in found]


@contextmanager
def temporary(kind: DatabaseKind, folder: Path) -> Iterator[str]:
    """Give the address of a database for this run alone; it goes with the block.

    Raises:
        SettingsError: no server answers.
    """
    if kind == "sqlite":
        yield f"sqlite+aiosqlite:///{folder / 'rows.sqlite'}"
        return
    variable, defaults = databases.SERVERS[kind]
    try:
        with databases.server_database(variable, defaults) as made:
            yield made.url.render_as_string(hide_password=False)
    except databases.NoServerError as error:
        raise SettingsError(f"--database {kind}: no server answers ({variable} names another one): {error}") from error
