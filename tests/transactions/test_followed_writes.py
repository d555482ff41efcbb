"""The images of each kind of write, on each database: what SQLAlchemy sends, and not what a session remembers."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column, relationship

from fastrdb.keys import Image, value_text
from fastrdb.transactions import add_follower, follow
from tests.support.servers import databases
from tests.support.servers.databases import Database, ServerDatabase

from .followers import NotingFollower

COLUMNS = ("id", "org_id", "number")


class Base(DeclarativeBase):
    pass


MEMBERS = sa.Table(
    "members",
    Base.metadata,
    sa.Column("person_id", sa.ForeignKey("people.id", ondelete="CASCADE"), primary_key=True),
    sa.Column("club_id", sa.ForeignKey("clubs.id", ondelete="CASCADE"), primary_key=True),
)


class Club(Base):
    __tablename__ = "clubs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    people: Mapped[list[Person]] = relationship(secondary=MEMBERS, passive_deletes=True)


class Person(Base):
    __tablename__ = "people"
    id: Mapped[int] = mapped_column(primary_key=True)
    org_id: Mapped[int | None] = mapped_column(index=True)
    number: Mapped[int] = mapped_column(unique=True)
    score: Mapped[int] = mapped_column(default=0)


PEOPLE: Any = Person.__table__


class Letter(Base):
    __tablename__ = "letters"
    id: Mapped[int] = mapped_column(primary_key=True)
    person_id: Mapped[int] = mapped_column(sa.ForeignKey("people.id", ondelete="CASCADE"))


class Stamp(Base):
    __tablename__ = "stamps"
    id: Mapped[int] = mapped_column(primary_key=True)
    letter_id: Mapped[int] = mapped_column(sa.ForeignKey("letters.id", ondelete="CASCADE"))


@pytest.fixture
def follower() -> NotingFollower:
    """Return a follower whose entries are tagged by three columns of one table."""
    made = NotingFollower({"people": COLUMNS, "members": ("person_id", "club_id"), "letters": ("person_id", "id")})
    add_follower(made)
    return made


async def fill(database: Database) -> None:
    """Make the tables, with ten people in three organisations."""
    await database.create(Base)
    async with database.sessions() as db:
        db.add_all([Person(org_id=n % 3, number=100 + n) for n in range(1, 11)])
        db.add_all([Club(id=1), Club(id=2)])
        await db.flush()
        db.add(Letter(id=1, person_id=1))
        await db.flush()
        db.add(Stamp(id=1, letter_id=1))
        await db.commit()


@pytest.fixture
async def filled(database: Database, follower: NotingFollower) -> Database:
    """Yield each database in turn, with rows."""
    await fill(database)
    follower.images.clear()
    return database


Write = Callable[[AsyncSession], Awaitable[Any]]
UNSYNCHRONIZED = {"synchronize_session": False}


async def flush_one(db: AsyncSession) -> None:
    """Change a column by which nothing is tagged."""
    (await db.get_one(Person, 1)).score = 5


async def flush_moved(db: AsyncSession) -> None:
    """Change a tag column."""
    (await db.get_one(Person, 2)).org_id = 7


async def flush_several(db: AsyncSession) -> None:
    """Flush two rows by one statement."""
    for key in (3, 4):
        (await db.get_one(Person, key)).number = 1000 + key


async def flush_deleted(db: AsyncSession) -> None:
    """Delete by the ORM."""
    await db.delete(await db.get_one(Person, 5))


async def flush_new(db: AsyncSession) -> None:
    """Flush two rows, whose keys the database makes."""
    db.add_all([Person(org_id=4, number=500), Person(org_id=5, number=501)])


def changed(person: sa.ColumnElement[bool], **values: Any) -> Write:
    """Return a bulk UPDATE of the ORM."""
    return lambda db: db.execute(sa.update(Person).where(person).values(**values), execution_options=UNSYNCHRONIZED)


EXACT: dict[str, Write] = {
    "flush of one": flush_one,
    "flush that moves": flush_moved,
    "flush of several": flush_several,
    "flush that deletes": flush_deleted,
    "flush of new rows": flush_new,
    "bulk delete": lambda db: db.execute(sa.delete(Person).where(Person.org_id == 1)),
    "bulk update": changed(Person.org_id == 0, score=9),
    "bulk update that moves": changed(Person.org_id == 1, org_id=2),
    "bulk update, IN": changed(Person.number.in_([107, 108]), org_id=8),
    "bulk update by key": lambda db: db.execute(sa.update(Person), [{"id": 7, "number": 77}, {"id": 8, "number": 88}]),
    "legacy bulk update": lambda db: db.run_sync(
        lambda inner: inner.bulk_update_mappings(sa.inspect(Person), [{"id": 9, "org_id": 5}])
    ),
    "insert": lambda db: db.execute(sa.insert(Person).values(id=20, org_id=4, number=20, score=0)),
    "bulk insert": lambda db: db.execute(
        sa.insert(Person), [{"id": 21, "org_id": 1, "number": 21}, {"id": 22, "org_id": 2, "number": 22}]
    ),
    "insert of several rows": lambda db: db.execute(
        sa.insert(PEOPLE).values(
            [{"id": 23, "org_id": 1, "number": 23, "score": 0}, {"id": 24, "org_id": 2, "number": 24, "score": 0}]
        )
    ),
    "no row": changed(Person.id == 999, org_id=1),
}
WIDE: dict[str, tuple[Write, set[str]]] = {
    "an expression": (changed(Person.id == 9, org_id=Person.org_id + 50), {"org_id"}),
    "a primary key": (changed(Person.id == 6, id=60), set()),
    "insert from select": (
        lambda db: db.execute(
            sa.insert(Person).from_select(
                ["id", "org_id", "number", "score"],
                sa.select(Person.id + 50, Person.org_id, Person.number + 50, Person.score).where(Person.id < 3),
            )
        ),
        set(COLUMNS),
    ),
    "a subquery": (changed(Person.id.in_(sa.select(Letter.person_id)), score=3), set(COLUMNS)),
    "text": (lambda db: db.execute(sa.text("UPDATE people SET org_id = 9 WHERE id = 3")), set(COLUMNS)),
    "more than 64 rows": (
        lambda db: db.execute(sa.insert(Person), [{"id": n, "org_id": 1, "number": n} for n in range(200, 270)]),
        set(COLUMNS),
    ),
}


async def rows(database: Database) -> dict[int, Any]:
    """Return all people by their keys, as the database has them."""
    async with database.engine.connect() as connection:
        found = await connection.execute(sa.select(*(PEOPLE.c[name] for name in ("id", "org_id", "number", "score"))))
        return {row.id: row for row in found}


async def played(database: Database, follower: NotingFollower, write: Write) -> list[dict[str, set[str]]]:
    """Commit the write; return the values of each row that it has changed, before and after."""
    before = await rows(database)
    follower.images.clear()
    async with database.sessions() as db:
        await write(db)
        await db.commit()
    after = await rows(database)
    pairs = [(before.get(key), after.get(key)) for key in {*before, *after} if before.get(key) != after.get(key)]
    return [
        {name: {value_text(getattr(row, name)) or "" for row in pair if row is not None} for name in COLUMNS}
        for pair in pairs
    ]


def known(image: Image, name: str) -> set[str] | None:
    """Return what an image says of a column; None if nothing."""
    texts = (image.columns or {}).get(name)
    return set(texts) if texts else None


def assert_covered(changes: list[dict[str, set[str]]], images: list[Image]) -> None:
    """Check that each changed row is within an image."""
    for values in changes:
        assert any(
            all(known(image, name) is None or values[name] <= (known(image, name) or set()) for name in COLUMNS)
            for image in images
        ), (values, images)


@pytest.mark.parametrize("kind", EXACT)
async def test_an_image_has_the_values_before_and_after(filled: Database, follower: NotingFollower, kind: str) -> None:
    """A write is known in each tag column: by its values, and by a look under a lock."""
    changes = await played(filled, follower, EXACT[kind])
    images = [image for image in follower.images if image.table == "people"]
    assert_covered(changes, images)
    if changes:
        for name in COLUMNS:
            exact = set[str]().union(*(values[name] for values in changes))
            assert set().union(*(known(image, name) or {"unknown"} for image in images)) == exact, name


@pytest.mark.parametrize("kind", WIDE)
async def test_an_image_is_wide_where_values_are_unknown(filled: Database, follower: NotingFollower, kind: str) -> None:
    """A column that is set to an expression is unknown, and so are the rows of a statement that is text."""
    write, unknown = WIDE[kind]
    changes = await played(filled, follower, write)
    images = [image for image in follower.images if image.table == "people"]
    assert changes
    assert_covered(changes, images)
    assert {name for name in COLUMNS if any(known(image, name) is None for image in images)} == unknown


@pytest.mark.parametrize("person", [Person.number == 999, Person.score > 10**6], ids=["a value", "a range"])
async def test_a_write_that_changes_no_row_reaches_nothing(
    filled: Database, follower: NotingFollower, person: sa.ColumnElement[bool]
) -> None:
    """So a periodic task that finds nothing to do drops nothing. A trigger may write all the same."""
    await played(filled, follower, changed(person, org_id=1))
    assert not follower.images
    await played(filled, follower, lambda db: db.execute(sa.delete(Person).where(person)))
    assert not follower.images
    follower.effects = {"people": frozenset({"stamps"})}
    await played(filled, follower, changed(person, org_id=1))
    assert Image("stamps") in follower.images


@pytest.mark.parametrize("keys", [(1, 999), (999, 1)])
async def test_one_of_several_writes_may_change_no_row(
    filled: Database, follower: NotingFollower, keys: tuple[int, int]
) -> None:
    """A driver may count the rows of one of them."""
    statement = sa.update(PEOPLE).where(PEOPLE.c.id == sa.bindparam("row")).values(score=5)

    async def write(db: AsyncSession) -> None:
        await (await db.connection()).execute(statement, [{"row": key} for key in keys])

    assert_covered(await played(filled, follower, write), follower.images)
    assert follower.images


async def test_what_a_session_remembers_is_not_trusted(filled: Database, follower: NotingFollower) -> None:
    """A row that another session has moved since it was loaded is invalidated where it is, and not where it was."""
    async with filled.sessions() as old, filled.sessions() as other:
        person = await old.get_one(Person, 1)
        await old.commit()
        (await other.get_one(Person, 1)).org_id = 8
        await other.commit()
        follower.images.clear()
        person.score = 1
        await old.commit()
    (image,) = follower.images
    assert known(image, "org_id") == {"8"}


async def test_many_to_many_is_known_by_both_keys(filled: Database, follower: NotingFollower) -> None:
    """Rows of the association table have statements of their own."""

    async def join(db: AsyncSession) -> None:
        club, person = await db.get_one(Club, 1), await db.get_one(Person, 1)
        await db.run_sync(lambda _: club.people.append(person))

    await played(filled, follower, join)
    (image,) = [image for image in follower.images if image.table == "members"]
    assert known(image, "person_id") == {"1"}
    assert known(image, "club_id") == {"1"}


async def test_cascades_of_the_database_are_followed(filled: Database, follower: NotingFollower) -> None:
    """ON DELETE CASCADE reaches the child by the foreign key's value, and the child's child as a whole."""
    await played(filled, follower, lambda db: db.execute(sa.delete(Person).where(Person.id == 1)))
    images = {image.table: image for image in follower.images}
    assert images.keys() == {"people", "letters", "stamps", "members"}
    assert known(images["letters"], "person_id") == {"1"}
    assert known(images["letters"], "id") is None
    assert images["stamps"].columns is None


async def test_a_rolled_back_write_reaches_nothing(filled: Database, follower: NotingFollower) -> None:
    """The next transaction of the connection does not carry it, nor does a failed flush hide the next write."""
    async with filled.sessions() as db:
        db.add(Person(id=1, org_id=1, number=1))
        with pytest.raises(IntegrityError):
            await db.flush()
        await db.rollback()
        await db.execute(sa.update(Person).where(Person.id == 2).values(score=4))
        await db.commit()
    (image,) = follower.images
    assert known(image, "id") == {"2"}


async def test_writes_of_a_plain_connection_are_followed(filled: Database, follower: NotingFollower) -> None:
    """A connection needs no session."""
    connection: AsyncConnection
    async with filled.engine.begin() as connection:
        await connection.execute(sa.update(PEOPLE).where(PEOPLE.c.id == 2).values(org_id=6))
    (image,) = follower.images
    assert known(image, "org_id") == {"2", "6"}


async def test_the_number_of_changes_is_bounded(filled: Database, follower: NotingFollower) -> None:
    """One transaction with many statements ends with the table."""

    async def many(db: AsyncSession) -> None:
        for number in range(300):
            await db.execute(
                sa.update(Person).where(Person.id == 1).values(score=number), execution_options=UNSYNCHRONIZED
            )

    await played(filled, follower, many)
    assert len(follower.images) <= 256
    assert any(image.columns is None for image in follower.images)


async def test_the_change_that_stands_for_all_others_may_change_no_row(
    filled: Database, follower: NotingFollower
) -> None:
    """It still means any row of the table."""

    async def many(db: AsyncSession) -> None:
        for number in range(1, 258):
            row = {256: 999, 257: 2}.get(number, 1)
            await db.execute(
                sa.update(Person).where(Person.id == row).values(score=number), execution_options=UNSYNCHRONIZED
            )

    changes = await played(filled, follower, many)
    assert len(changes) == 2
    assert_covered(changes, follower.images)


async def test_each_follower_has_the_table_after_many_changes(filled: Database, follower: NotingFollower) -> None:
    """A follower that does not track the statement that stands for all others gets the later ones."""
    other = NotingFollower({})
    add_follower(other)
    async with filled.sessions() as db:
        for number in range(300):
            follower.tracked = number != 255
            chosen = sa.update(Person).where(Person.id == 1).values(score=number)
            await db.execute(chosen, execution_options=UNSYNCHRONIZED)
        await db.execute(sa.update(Person).where(Person.id == 2).values(org_id=50), execution_options=UNSYNCHRONIZED)
        await db.commit()
    other.tracked = False
    for images in (follower.images, other.images):
        assert any(known(image, "org_id") is None or "50" in (known(image, "org_id") or ()) for image in images)


async def test_the_change_that_stands_for_many_may_delete(filled: Database, follower: NotingFollower) -> None:
    """After many INSERTs a DELETE is followed no more by itself, and its cascades are."""
    async with filled.sessions() as db:
        for number in range(300):
            await db.execute(sa.insert(Person).values(id=1000 + number, org_id=1, number=1000 + number, score=0))
        await db.execute(sa.delete(Person).where(Person.id == 1))
        await db.commit()
    assert {"letters", "stamps", "members"} <= {image.table for image in follower.images}


async def test_quiet_columns_reach_nothing(filled: Database, follower: NotingFollower) -> None:
    """An UPDATE of nothing but quiet columns is not followed, and is not looked at."""
    follower.quiet = {"people": frozenset({"score"})}
    await played(filled, follower, changed(Person.id == 1, score=77))
    assert not follower.images
    await played(filled, follower, changed(Person.id == 1, score=78, org_id=1))
    assert follower.images


async def test_untracked_writes_reach_nothing(filled: Database, follower: NotingFollower) -> None:
    """Another program reports them."""
    follower.tracked = False
    await played(filled, follower, changed(Person.id == 1, org_id=77))
    assert not follower.images


@pytest.mark.parametrize("driver", ["postgresql+psycopg", "mariadb+asyncmy"])
async def test_other_drivers_look_as_well(
    request: pytest.FixtureRequest, driver: str, follower: NotingFollower
) -> None:
    """psycopg and asyncmy run the look inside of the event, and count rows as the others do."""
    name, _, module = driver.partition("+")
    pytest.importorskip(module)
    server: ServerDatabase = request.getfixturevalue(f"{name}_server")
    await server.clear()
    async with databases.opened(server.url.set(drivername=driver)) as database:
        await fill(database)
        for kind in (
            "flush of one",
            "flush that moves",
            "flush of several",
            "bulk update",
            "bulk delete",
            "flush of new rows",
        ):
            changes = await played(database, follower, EXACT[kind])
            images = [image for image in follower.images if image.table == "people"]
            assert_covered(changes, images)
            for column in COLUMNS:
                assert all(known(image, column) for image in images), (kind, column)


def test_caches_one_after_the_other_listen_once() -> None:
    """A program may make many, each behind the end of the one before: no statement is looked at twice."""
    for _ in range(3):
        follow.followers.clear()
        add_follower(NotingFollower({}))
    engine = sa.create_engine("sqlite://")
    assert list(engine.dispatch.after_cursor_execute).count(follow._on_executed) == 1
    engine.dispose()


SEVERAL = (
    "SET LOCAL application_name = 'it''s'; UPDATE people SET score = 1",
    "CREATE TEMPORARY TABLE t (id int); UPDATE people SET score = 1",
    "SAVEPOINT a; RELEASE SAVEPOINT a; DELETE FROM people",
)


@pytest.mark.parametrize("statements", SEVERAL)
async def test_several_statements_in_one_text_count(
    postgresql: Database, follower: NotingFollower, statements: str
) -> None:
    """Each of them is looked at, and not the first one alone."""
    async with databases.opened(postgresql.engine.url.set(drivername="postgresql+psycopg")) as database:
        await fill(database)
        follower.images.clear()
        async with database.engine.begin() as connection:
            await connection.exec_driver_sql(statements)
    assert follower.images


async def test_a_declared_effect_reaches_its_tables_alone(filled: Database, follower: NotingFollower) -> None:
    """The facts of these are asked as well, with the tables that cascades of theirs reach."""
    follower.effects = {"clubs": frozenset({"people"})}
    async with filled.engine.begin() as connection:  # after this, nothing is known of any table
        await connection.execute(sa.text("CREATE TABLE fresh (id INTEGER)"))
    follower.images.clear()
    async with filled.sessions() as db:
        await db.execute(sa.insert(Club).values(id=3))
        await db.commit()
    tables = {image.table for image in follower.images}
    assert "people" in tables
    assert None not in tables
