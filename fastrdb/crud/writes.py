"""One write: what a method of `FastRDB` does inside its transaction, and what of it the cache is told."""

from __future__ import annotations

from collections.abc import AsyncIterator, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Generic, TypeVar

from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb.transactions import RunningCall, autocommits

from .bindings import Bindings
from .input import build, change
from .statements import Statements, dialect_of, only
from .units import Unit, begin, roll_back, unit_of_work

Response = TypeVar("Response")


class Write(Generic[Response]):
    """The rows that one transaction changes."""

    def __init__(self, db: AsyncSession, redis: Any, sql: Statements, bound: Bindings[Response], unit: Unit) -> None:
        self.db = db
        self.redis = redis
        self.sql = sql
        self.bound = bound
        self.unit = unit
        self._touched: set[Hashable] = set()

    async def one(self, asked: Mapping[str, Any]) -> Any:
        """The one row, locked. Raises NoResultFound, MultipleResultsFound; then nothing has changed."""
        row = only(await self._locked(asked, limit=2))
        await self._touch([row])
        return row

    async def all(self, asked: Mapping[str, Any]) -> list[Any]:
        """All rows, locked."""
        rows = await self._locked(asked)
        await self._touch(rows)
        return rows

    async def insert(self, several: Sequence[Mapping[str, Any]]) -> list[Response]:
        """New rows with these values, in this order."""
        rows = [build(self.sql.columns, values) for values in several]
        self.db.add_all(rows)
        await self._foretell(rows)
        return await self.publish(rows)

    async def update(self, rows: Sequence[Any], values: Mapping[str, Any]) -> list[Response]:
        """These rows, with these values in them."""
        for row in rows:
            change(row, values)
        await self._foretell(rows)
        return await self.publish(rows)

    async def upsert(
        self, key: Mapping[str, Any], new: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> list[Response]:
        """The row of that key with `changes` in it, or a new one. Who else inserts it meanwhile makes it an update.

        MariaDB locks the gap where a row is not, and keeps the lock of a failed insert even when the savepoint is
        rolled back: two who do so and then go on wait for each other. So the row is looked for without a lock first,
        and a transaction that is this method's own begins anew after it has lost.
        """
        await self._begin()
        if (await self.db.scalars(self.sql.exists(key))).first() is not None and (found := await self._found(key)):
            return await self.update(found, changes)
        alone = (
            await self._autocommits()
        )  # PostgreSQL has no savepoints there, and a statement that fails undoes itself
        try:
            async with nullcontext() if alone else self.db.begin_nested():
                row = build(self.sql.columns, new)
                self.db.add(row)
                await self._foretell([row])
                await self.db.flush()
        except IntegrityError:
            if alone and not self.unit.commits:  # the flush has ended the caller's transaction
                raise
            if self.unit.began or alone:
                await roll_back(self.db)
            if not (found := await self._found(key)):
                raise
            return await self.update(found, changes)
        return await self.publish([row])

    async def delete(self, rows: Sequence[Any]) -> None:
        """Delete through the session, so that what the model's relationships cascade to goes along."""
        for row in rows:
            await self.db.delete(row)
        await self.db.flush()

    async def publish(self, rows: Sequence[Any]) -> list[Response]:
        """The rows as the database has them now; what shows them in the cache is replaced, or goes, at the commit."""
        await self.db.flush()
        for columns in self.sql.again(rows):
            await self.db.execute(columns)
        for related in self.sql.related(rows):
            (await self.db.scalars(related)).unique().all()
        await self._touch(rows)
        answers: list[Response] = [self.bound.convert(row) for row in rows]
        if self.unit.commits:
            for row, answer in zip(rows, answers, strict=True):
                await self.bound.put(self.db, self.redis, row, answer)
        return answers

    async def _foretell(self, rows: Sequence[Any]) -> None:
        """Say it before the flush, where that commits by itself; what only the database fills in is not known yet."""
        if await self._autocommits():
            with self.db.no_autoflush:
                await self._touch(rows)

    async def _autocommits(self) -> bool:
        connection = (await self.db.connection(bind_arguments={"mapper": self.sql.columns.mapper})).sync_connection
        return connection is not None and autocommits(connection)

    async def _found(self, key: Mapping[str, Any]) -> list[Any]:
        rows = await self._locked(key, limit=2)
        if rows:
            only(rows)
            await self._touch(rows)
        return rows

    async def _locked(self, asked: Mapping[str, Any], *, limit: int | None = None) -> list[Any]:
        await self._begin()
        return list((await self.db.scalars(self.sql.locked(asked, limit=limit))).unique().all())

    async def _begin(self) -> None:
        await begin(self.db)
        await self.db.flush()  # what the caller has changed so far is to be found, and not to be overwritten
        lock = self.sql.write_lock() if dialect_of(self.db, self.sql.model) == "sqlite" else None
        if lock is not None:
            await self.db.execute(lock)

    async def _touch(self, rows: Sequence[Any]) -> None:
        await self.bound.touch(self.db, self.redis, rows, self._touched)


@asynccontextmanager
async def write(
    db: AsyncSession, redis: Any, sql: Statements, bound: Bindings[Response]
) -> AsyncIterator[Write[Response]]:
    """A write in a transaction: see `unit_of_work`."""
    with RunningCall(bound.owner, "db", db.sync_session):
        async with unit_of_work(db) as unit:
            yield Write(db, redis, sql, bound, unit)
