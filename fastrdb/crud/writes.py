"""One write of `FastRDB`: its transaction, its statements, and the invalidations and fills that go with it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Collection, Hashable, Mapping, Sequence
from contextlib import asynccontextmanager, nullcontext
from typing import Any, Generic, TypeVar

from sqlalchemy import event, inspect
from sqlalchemy.exc import IntegrityError, MultipleResultsFound, NoResultFound
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import LoaderCallableStatus, Session, SessionTransactionOrigin, UOWTransaction
from sqlalchemy.util import await_only

from fastrdb.transactions import RunningCall, autocommits

from .bindings import Bindings
from .input import build, change
from .statements import Statements, dialect_of, only

Response = TypeVar("Response")
_FLUSHED = "fastrdb.flushed"  # in Session.info: what is called with each flush of a write


class RowWrite(Generic[Response]):
    """The rows that one transaction changes.

    Attributes:
        began: whether the transaction began with this write.
        commits: whether this write commits, because the caller has not opened the transaction.
    """

    def __init__(self, db: AsyncSession, redis: Any, sql: Statements, bound: Bindings[Response]) -> None:
        self.db = db
        self.redis = redis
        self.sql = sql
        self.bound = bound
        self.began = not db.in_transaction()
        self.commits = not _opened_by_caller(db)
        self._invalidated: set[Hashable] = set()
        self._own: Collection[int] = ()  # the ids of the rows that a flush of the write itself is for

    async def one(self, asked: Mapping[str, Any], changed: Collection[str] | None = None) -> Any:
        """Return the one row, locked for a change of these columns, or to be deleted.

        Raises NoResultFound, MultipleResultsFound; then nothing has changed.
        """
        row = only(await self._locked(asked, changed, limit=2), self.sql.columns.name, asked)
        await self._invalidate([row])
        return row

    async def all(self, asked: Mapping[str, Any], changed: Collection[str] | None = None) -> list[Any]:
        """Return all rows, locked like `one`."""
        rows = await self._locked(asked, changed)
        await self._invalidate(rows)
        return rows

    async def insert(self, several: Sequence[Mapping[str, Any]]) -> list[Response]:
        """Insert rows with these values; return the answers in this order."""
        rows = [build(self.sql.columns, values) for values in several]
        self.db.add_all(rows)
        await self._invalidate_before_flush(rows)
        return await self._flush_and_answer(rows)

    async def update(self, rows: Sequence[Any], values: Mapping[str, Any]) -> list[Response]:
        """Set these values in the rows; return the answers."""
        for row in rows:
            change(row, values)
        if rows and self.sql.columns.spreading("onupdate") & values.keys():
            await self._invalidate_values([{}])
        await self._invalidate_before_flush(rows)
        return await self._flush_and_answer(rows)

    async def upsert(
        self, key: Mapping[str, Any], new: Mapping[str, Any], changes: Mapping[str, Any]
    ) -> list[Response]:
        """Set `changes` in the row of that key, or insert a row. If another transaction inserts it first, update.

        MariaDB locks the gap of a missing row, and keeps the lock of a failed insert after the savepoint is rolled
        back: two such transactions would deadlock. So the first SELECT takes no lock. A transaction that began here
        begins again after its insert has failed.
        """
        await self._begin()
        if (await self.db.scalars(self.sql.exists(key))).first() is not None and (
            found := await self._found(key, changes)
        ):
            return await self.update(found, changes)
        # PostgreSQL has no savepoints where each statement commits, and a statement that fails undoes itself.
        alone = await self._autocommits()
        try:
            async with nullcontext() if alone else self.db.begin_nested():
                row = build(self.sql.columns, new)
                self.db.add(row)
                await self._invalidate_before_flush([row])
                await self._flush([row])
        except IntegrityError:
            if alone and not self.commits:  # the flush has ended the caller's transaction
                raise
            if self.began or alone:
                await _roll_back(self.db)
                self._invalidated.clear()
            if not (found := await self._found(key, changes)):
                raise
            return await self.update(found, changes)
        return await self._flush_and_answer([row])

    async def delete(self, rows: Sequence[Any]) -> None:
        """Delete through the session, so that the cascades of the model's relationships take effect."""
        for row in rows:
            await self.db.delete(row)
        await self._flush(rows)
        if rows and self.sql.columns.spreading("ondelete"):
            await self._invalidate_values([{}])

    async def _flush_and_answer(self, rows: Sequence[Any]) -> list[Response]:
        """Flush, and return the rows as the database has them. Where possible, the cache stores these at the commit."""
        await self._flush(rows)
        settled = await self._reload(rows)
        await self._invalidate(rows)
        answers: list[Response] = [self.bound.convert(row) for row in rows]
        if self.commits:
            shown = [(row, answer) for row, answer in zip(rows, answers, strict=True) if id(row) in settled]
            await self.bound.store(self.db, self.redis, shown)
        return answers

    async def _flush(self, rows: Sequence[Any]) -> None:
        """Flush. What relationships and events write besides these rows are other rows of the model: see `flushed`."""
        self._own = {id(row) for row in rows}
        try:
            await self.db.flush()
        finally:
            self._own = ()

    def flushed(self, flushed: UOWTransaction) -> None:
        """Invalidate what shows other rows of the model that a flush has written, before and after.

        This holds for each flush until the end of the write: events may change rows as late as in the commit.
        """
        others = list[dict[str, Any]]()
        for state, (_, listed) in flushed.states.items():
            if not listed and id(state.obj()) not in self._own and state.mapper.isa(self.sql.columns.mapper):
                both = {**state.dict, **state.committed_state}, state.dict
                others += [{n: v for n, v in each.items() if not isinstance(v, LoaderCallableStatus)} for each in both]
        if others:
            await_only(self._invalidate_values(others))

    async def _invalidate_values(self, several: Sequence[Mapping[str, Any]]) -> None:
        await self.bound.invalidate_values(self.db, self.redis, several, self._invalidated)

    async def _reload(self, rows: Sequence[Any]) -> set[int]:
        """Load the rows again; return the ids of those that a `get` after the commit would return unchanged.

        Left out are rows that this session hides from its own SELECTs (by `with_loader_criteria`, say), and rows that a
        deferred trigger may still change.
        """
        settled: set[int] = set()
        found: set[int] = set()
        for statement in self.sql.again(rows, dialect_of(self.db, self.sql.model)):
            for each in (await self.db.execute(statement)).unique():
                found.add(id(each[0]))
                if not each[-1]:
                    settled.add(id(each[0]))
        for statement in self.sql.related(rows):
            (await self.db.scalars(statement)).unique().all()
        for row in rows:
            if id(row) not in found and (expired := inspect(row).expired_attributes & self.sql.columns.fields.keys()):
                await self.db.refresh(row, expired)
        return settled

    async def _invalidate(self, rows: Sequence[Any]) -> None:
        """Invalidate at the commit the entries that show these rows in their present state, old or new."""
        await self.bound.invalidate(self.db, self.redis, rows, self._invalidated)

    async def _invalidate_before_flush(self, rows: Sequence[Any]) -> None:
        """Invalidate before a flush that commits by itself; values that the database fills in are not known yet."""
        if await self._autocommits():
            with self.db.no_autoflush:
                await self._invalidate(rows)

    async def _autocommits(self) -> bool:
        connection = (await self.db.connection(bind_arguments={"mapper": self.sql.columns.mapper})).sync_connection
        return connection is not None and autocommits(connection)

    async def _found(self, key: Mapping[str, Any], changes: Mapping[str, Any]) -> list[Any]:
        rows = await self._locked(key, changes.keys() - key.keys(), limit=2)
        if rows:
            only(rows, self.sql.columns.name, key)
            await self._invalidate(rows)
        return rows

    async def _locked(
        self, asked: Mapping[str, Any], changed: Collection[str] | None, *, limit: int | None = None
    ) -> list[Any]:
        await self._begin()
        return list((await self.db.scalars(self.sql.locked(asked, changed, limit=limit))).unique().all())

    async def _begin(self) -> None:
        await _begin(self.db)
        await self.db.flush()  # the SELECTs that follow must find the caller's changes, and not overwrite them
        lock = self.sql.write_lock() if dialect_of(self.db, self.sql.model) == "sqlite" else None
        if lock is not None:
            await self.db.execute(lock)


@event.listens_for(Session, "after_flush")
def _on_flush(session: Session, flushed: UOWTransaction) -> None:
    if _FLUSHED in session.info:
        session.info[_FLUSHED](flushed)


@asynccontextmanager
async def write(
    db: AsyncSession, redis: Any, sql: Statements, bound: Bindings[Response]
) -> AsyncIterator[RowWrite[Response]]:
    """Yield a write. At the end commit, or only flush if the caller has opened the transaction.

    After an error nothing of the write can be committed, and the session stays usable: the transaction is rolled back
    here, or by the caller that opened it. A missing row is the exception: it changes nothing, so work that the caller
    did before in an autobegun transaction stays.
    """
    with RunningCall(bound.owner, "db", db.sync_session):
        made = RowWrite(db, redis, sql, bound)
        db.sync_session.info[_FLUSHED] = made.flushed
        try:
            await _begin(db)
            yield made
            await (db.commit() if made.commits else db.flush())
        except (NoResultFound, MultipleResultsFound):
            if made.began:
                await _roll_back(db)
            raise
        except BaseException:
            if made.commits:
                await _roll_back(db)
            raise
        finally:
            db.sync_session.info.pop(_FLUSHED, None)  # two tasks may use one session: an error of its own


def _opened_by_caller(db: AsyncSession) -> bool:
    """Return True inside the caller's `begin()` or savepoint."""
    root = db.sync_session.get_transaction()
    return root is not None and (root.origin is SessionTransactionOrigin.BEGIN or db.in_nested_transaction())


async def _begin(db: AsyncSession) -> None:
    """Begin a transaction in a session with `autobegin=False`."""
    if not db.in_transaction() and not db.sync_session.autobegin:
        await db.begin()


async def _roll_back(db: AsyncSession) -> None:
    """Roll back to the end, even if the caller is cancelled meanwhile."""
    task = asyncio.ensure_future(_rolled_back(db))
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.shield(task)
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        raise cancelled


async def _rolled_back(db: AsyncSession) -> None:
    try:
        await db.rollback()
    except Exception:  # noqa: BLE001  # the connection is gone, and the transaction with it: the first error counts
        await db.invalidate()
