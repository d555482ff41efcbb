"""The world of `--auto`: rows move between places, go and come back, and have labels. No writer invalidates by hand.

What is written here is found out by the cache alone: flushes of objects that were loaded long ago, statements for many
rows, upserts, texts, rows of an association, cascades. The history says of each row where it is, and of each pair of a
row and a label whether there is one.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from random import Random
from typing import Any

from pydantic import BaseModel
from sqlalchemy import BigInteger, Column, ForeignKey, Table, delete, func, insert, literal, select, text, update
from sqlalchemy.dialects import mysql, postgresql, sqlite
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import Mapped, mapped_column, relationship, selectinload

from benchmarks.consistency import database
from benchmarks.consistency.address import Address
from benchmarks.consistency.database import Base, Past
from benchmarks.consistency.rules import ABSENT, PRESENT
from benchmarks.consistency.settings import Settings
from benchmarks.consistency.subjects import LIFE, Attempt, FastRDBSubject, Fields
from benchmarks.consistency.workload import BLOCK, Style, block_of
from fastrdb import Cache
from tests.support.servers import databases

PLACES, LABELS = 3, 2
"""Of each block: where its rows are, and what they can be labelled with."""
NOWHERE = (1 << 31) - 1
PAIRS = 1 << 24
"""From here on numbers of rows in the history stand for pairs of a row and a label."""
_number: ContextVar[int] = ContextVar("number", default=0)


class Placed(Base):
    """A row in a place. `attempt` is the number of the write that made this version."""

    __tablename__ = "placed"
    __mapper_args__ = {"confirm_deleted_rows": False}  # noqa: RUF012  # another writer may have been faster
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    place: Mapped[int] = mapped_column(index=True)
    attempt: Mapped[int] = mapped_column(BigInteger)
    labels: Mapped[list[Label]] = relationship(secondary=lambda: labelled, passive_deletes=True)


class Label(Base):
    """What rows are labelled with."""

    __tablename__ = "label"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)


labelled: Table = Table(
    "labelled",
    Base.metadata,
    Column("row_id", ForeignKey(Placed.id, ondelete="CASCADE"), primary_key=True),
    Column("label_id", ForeignKey(Label.id), primary_key=True, index=True),
    Column("attempt", BigInteger, default=_number.get),
)


class PlacedOut(BaseModel, from_attributes=True, frozen=True):
    """What a caller gets of a row."""

    id: int
    place: int
    attempt: int


def places_of(row: int) -> range:
    """Give the places in which a row can be."""
    return range(block_of(row) * PLACES, (block_of(row) + 1) * PLACES)


def labels_of(row: int) -> range:
    """Give the labels that a row can have."""
    return range(block_of(row) * LABELS, (block_of(row) + 1) * LABELS)


def neighbours(row: int) -> range:
    """Give the rows of the block that a row is in."""
    return range(block_of(row) * BLOCK, (block_of(row) + 1) * BLOCK)


def pair(row: int, label: int) -> int:
    """Give the number that a pair has in the history."""
    return PAIRS + row * LABELS + label % LABELS


class Reads:
    """The cached functions, as users write them: each says how to read, and nothing of what it depends on."""

    def __init__(self, cache: Cache, table: database.Table) -> None:
        @cache.cached("placed:{row}", exp=LIFE, schema=PlacedOut)
        async def one(db: AsyncSession, row: int) -> Placed | None:
            found = await db.get(Placed, row)
            await table.linger()
            return found

        @cache.cached("place:{place}", exp=LIFE)
        async def of_place(db: AsyncSession, place: int) -> list[tuple[int, int]]:
            chosen = select(Placed.id, Placed.attempt).where(Placed.place == place).order_by(Placed.id)
            found = [(row, attempt) for row, attempt in await db.execute(chosen)]
            await table.linger()
            return found

        @cache.cached("block:{block}", exp=LIFE)
        async def of_block(db: AsyncSession, block: int) -> list[tuple[int, int, int]]:
            chosen = select(Placed.id, Placed.place, Placed.attempt).where(
                Placed.id >= block * BLOCK, Placed.id < (block + 1) * BLOCK
            )
            found = [(row, place, attempt) for row, place, attempt in await db.execute(chosen)]
            await table.linger()
            return found

        @cache.cached("labels:{row}", exp=LIFE)
        async def labels(db: AsyncSession, row: int) -> list[int]:
            found = list(await db.scalars(select(labelled.c.label_id).where(labelled.c.row_id == row)))
            await table.linger()
            return found

        @cache.cached("labelled:{label}", exp=LIFE)
        async def with_label(db: AsyncSession, label: int) -> list[tuple[int, int, int]]:
            chosen = select(Placed.id, Placed.place, Placed.attempt).join(labelled).where(labelled.c.label_id == label)
            found = [(row, place, attempt) for row, place, attempt in await db.execute(chosen)]
            await table.linger()
            return found

        @cache.cached("card:{row}", exp=LIFE)
        async def card(db: AsyncSession, row: int) -> tuple[PlacedOut | None, list[int]]:
            return await one(db, row), await labels(db, row)

        self.one, self.of_place, self.of_block = one, of_place, of_block
        self.labels, self.with_label, self.card = labels, with_label, card


class FollowedSubject(FastRDBSubject):
    """fastrdb with `auto=True`."""

    model = Placed
    kinds: Mapping[str, int] = {"row": 6, "place": 5, "labels": 3, "card": 3, "labelled": 1, "block": 1}

    def __init__(self, settings: Settings, address: Address) -> None:
        super().__init__(settings, address, auto=True)
        self._table = database.Table(settings.faults)
        self._reads = Reads(self.cache, self._table)
        self._writes = Writes(self._table)
        self._kept: list[AsyncSession] = []

    async def ask(self, db: AsyncSession, kind: str, row: int) -> list[Fields]:
        """Read something of a row, and say of each row that it might hold what it holds."""
        reads = self._reads
        match kind:
            case "row":
                return _one(row, await reads.one(db, row))
            case "card":
                one, labels = await reads.card(db, row)
                return _one(row, one) + _labels(row, labels)
            case "labels":
                return _labels(row, await reads.labels(db, row))
            case "place":
                place = places_of(row)[row % PLACES]
                inside = dict(await reads.of_place(db, place))
                return [(each, place, inside.get(each, ABSENT)) for each in neighbours(row)]
            case "block":
                known = {found[0]: found for found in await reads.of_block(db, block_of(row))}
                return [known.get(each, (each, NOWHERE, PRESENT)) for each in neighbours(row)]
        label = labels_of(row)[row % LABELS]
        known = {found[0]: found for found in await reads.with_label(db, label)}
        pairs = [_pair(each, label, there=each in known) for each in neighbours(row)]
        return [*known.values(), *pairs]

    async def write(self, db: AsyncSession, attempt: Attempt, rows: Sequence[int], style: Style) -> None:
        """Write without a word to the cache."""
        token = _number.set(attempt.number)
        try:
            await self._writes.write(db, style, rows[0], attempt.number)
            if style != "undone":
                await attempt.commit(db)
                return
            await self.ask(db, "row", rows[0])  # what it has not committed is its own, and nobody else's
            await db.rollback()
        finally:
            _number.reset(token)

    @asynccontextmanager
    async def session(self, engine: AsyncEngine, style: Style) -> AsyncIterator[AsyncSession]:
        """With the style `kept` a session whose objects were loaded long ago."""
        if style != "kept":
            async with super().session(engine, style) as db:
                yield db
            return
        db = self._kept.pop() if self._kept else AsyncSession(engine, expire_on_commit=False)
        try:
            yield db
        except BaseException:
            await db.close()
            raise
        self._kept.append(db)

    async def aclose(self, limit: float) -> None:
        """Sessions that were kept are closed, too."""
        for db in self._kept:
            await db.close()
        await super().aclose(limit)


class Writes:
    """The ways to write, and what each leaves in the history."""

    def __init__(self, table: database.Table) -> None:
        self._table, self._chance = table, Random()

    async def write(self, db: AsyncSession, style: Style, row: int, number: int) -> None:
        """Make new versions, and put them into the history."""
        await self._table.slow_down(db)
        way = "flush" if style in ("kept", "undone") else style
        await getattr(self, f"_{way.replace('-', '_')}")(db, row, number)
        await db.flush()
        await _remember(db, neighbours(row), number)

    def _move(self, row: int) -> int:
        return self._chance.choice(places_of(row))

    async def _flush(self, db: AsyncSession, row: int, number: int) -> None:
        """Change an object, with a place that is written only where it differs from what the session believes."""
        found = await db.get(Placed, row)
        if found is None:
            db.add(Placed(id=row, place=self._move(row), attempt=number))
            return
        _keep(db, found)
        found.attempt = number
        if self._chance.random() < 0.4:
            found.place = self._move(row)

    async def _come_or_go(self, db: AsyncSession, row: int, number: int) -> None:
        """Delete an object and what labels it has, by the foreign key; or put it back."""
        found = await db.get(Placed, row)
        if found is not None and self._chance.random() < 0.5:
            await db.delete(found)
        else:
            await self._flush(db, row, number)

    async def _label(self, db: AsyncSession, row: int, number: int) -> None:
        """Give a label to an object, or take it away: rows of the association only."""
        found = await db.get(Placed, row, options=[selectinload(Placed.labels)])
        label = await db.get_one(Label, self._chance.choice(labels_of(row)))
        if found is None:
            return
        if label in found.labels:
            found.labels.remove(label)
        else:
            found.labels.append(label)

    async def _bulk(self, db: AsyncSession, row: int, number: int) -> None:
        """Change all rows of a place, or some by their keys, and move some of them."""
        chosen: Any = Placed.place == self._move(row)
        if self._chance.random() < 0.5:
            chosen = Placed.id.in_([row, self._chance.choice(neighbours(row))])
        values: dict[str, Any] = {"attempt": number}
        if self._chance.random() < 0.4:
            values["place"] = self._move(row)
        await db.execute(update(Placed).where(chosen).values(values), execution_options={"synchronize_session": False})

    async def _sweep(self, db: AsyncSession, row: int, number: int) -> None:
        """Delete all rows of a place."""
        chosen = Placed.place == self._move(row)
        await db.execute(delete(Placed).where(chosen), execution_options={"synchronize_session": False})

    async def _upsert(self, db: AsyncSession, row: int, number: int) -> None:
        """Insert a row, or change the one that is there."""
        values = {"id": row, "place": self._move(row), "attempt": number}
        match db.get_bind().dialect.name:
            case "postgresql":
                one = postgresql.insert(Placed).values(values)
                await db.execute(one.on_conflict_do_update(index_elements=["id"], set_=values))
            case "sqlite":
                other = sqlite.insert(Placed).values(values)
                await db.execute(other.on_conflict_do_update(index_elements=["id"], set_=values))
            case _:
                await db.execute(mysql.insert(Placed).values(values).on_duplicate_key_update(values))

    async def _text(self, db: AsyncSession, row: int, number: int) -> None:
        """Change a row by a text."""
        await db.execute(
            text("UPDATE placed SET place = :place, attempt = :attempt WHERE id = :id"),
            {"place": self._move(row), "attempt": number, "id": row},
        )


def _keep(db: AsyncSession, found: Placed) -> None:
    """Hold an object for as long as its session lives, as a user's own list would."""
    db.info.setdefault("held", {})[found.id] = found


def _one(row: int, found: PlacedOut | None) -> list[Fields]:
    return [(row, NOWHERE, PRESENT) if found is None else (row, found.place, found.attempt)]


def _labels(row: int, labels: Sequence[int]) -> list[Fields]:
    return [_pair(row, label, there=label in labels) for label in labels_of(row)]


def _pair(row: int, label: int, *, there: bool) -> Fields:
    return (pair(row, label), label, PRESENT if there else ABSENT)


async def _remember(db: AsyncSession, rows: Iterable[int], number: int) -> None:
    """Put into the history what this transaction has made, and what it has taken away.

    Rows that it has changed are locked, so each statement sees their last version. What is gone without an entry in the
    history has gone by this transaction: that of another one would be seen together with its entry.
    """
    numbers = list(rows)
    pairs = [pair(row, label) for row in numbers for label in labels_of(row)]
    here = PAIRS + labelled.c.row_id * LABELS + labelled.c.label_id % LABELS
    made = (
        (Placed.id, Placed.place, (Placed.id.in_(numbers), Placed.attempt == number)),
        (here, labelled.c.label_id, (labelled.c.row_id.in_(numbers), labelled.c.attempt == number)),
    )
    for each, place, chosen in made:
        older = select(func.coalesce(func.max(Past.version), -1) + 1).where(Past.row == each).scalar_subquery()
        news = select(literal(number), each, older, place).where(*chosen)
        await db.execute(insert(Past).from_select(["attempt", "row", "version", "place"], news))
    past = Past.__table__.alias()
    last = select(func.max(past.c.version)).where(past.c.row == Past.row).scalar_subquery()
    for all_of, present in (
        (numbers, select(Placed.id).where(Placed.id.in_(numbers))),
        (pairs, select(here).where(labelled.c.row_id.in_(numbers))),
    ):
        gone = select(literal(number), Past.row, Past.version + 1, literal(NOWHERE)).where(
            Past.row.in_(all_of), Past.version == last, Past.place != NOWHERE, Past.row.not_in(present)
        )
        await db.execute(insert(Past).from_select(["attempt", "row", "version", "place"], gone))


async def create(url: str, rows: int) -> None:
    """Make the tables and the labels, and all rows, without labels, as version 0."""
    async with databases.opened(url) as made, made.engine.begin() as connection:
        await connection.run_sync(Base.metadata.create_all)
        await connection.execute(insert(Label), [{"id": n} for n in range(rows // BLOCK * LABELS)])
        for start in range(0, rows, 1000):
            numbers = range(start, min(start + 1000, rows))
            await connection.execute(
                insert(Placed), [{"id": n, "place": places_of(n)[0], "attempt": 0} for n in numbers]
            )
            first = [{"row": n, "version": 0, "attempt": 0, "place": places_of(n)[0]} for n in numbers]
            unlabelled = [
                {"row": pair(n, label), "version": 0, "attempt": 0, "place": NOWHERE}
                for n in numbers
                for label in labels_of(n)
            ]
            await connection.execute(insert(Past), first + unlabelled)
