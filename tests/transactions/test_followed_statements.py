"""Statements that change rows in other ways than by their own table: CTEs, functions, savepoints, foreign keys."""

from __future__ import annotations

import asyncio
import logging
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import event, text
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.exc import DBAPIError

from fastrdb.inference import Change, Names, Spread, changes_of_text, check, writes_of
from fastrdb.inference.facts import Facts, Link
from fastrdb.keys import Image
from fastrdb.transactions import add_follower
from tests.support.servers.databases import Database
from tests.support.waiting import until

from .followers import NotingFollower
from .test_followed_writes import PEOPLE, Person, fill, known


@pytest.fixture
def follower() -> NotingFollower:
    """Return a follower that knows of no column in use."""
    made = NotingFollower({})
    add_follower(made)
    return made


@pytest.fixture
async def people(postgresql: Database, follower: NotingFollower) -> Database:
    """Prepare PostgreSQL with rows."""
    await fill(postgresql)
    follower.images.clear()
    return postgresql


async def test_a_write_inside_of_a_select_is_followed(people: Database, follower: NotingFollower) -> None:
    """DML in a CTE of a SELECT is no DML for SQLAlchemy."""
    gone = sa.delete(Person).where(Person.id == 2).returning(Person.id).cte("gone")
    async with people.sessions() as db:
        assert (await db.execute(sa.select(gone.c.id))).scalars().all() == [2]
        await db.commit()
    assert Image("people") in follower.images


async def test_a_function_that_writes_is_followed(people: Database, follower: NotingFollower) -> None:
    """A SELECT of a volatile function reaches the tables that its text names, and no others."""
    async with people.engine.begin() as connection:
        await connection.exec_driver_sql(
            "CREATE FUNCTION wipe() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DELETE FROM stamps; END $$"
        )
    follower.images.clear()
    async with people.sessions() as db:
        await db.execute(sa.select(sa.func.wipe()))
        await db.commit()
    assert {image.table for image in follower.images} == {"stamps"}


async def test_a_function_that_writes_and_commits_by_itself_is_followed(
    people: Database, follower: NotingFollower
) -> None:
    """In AUTOCOMMIT, a session that is closed has committed each of its statements."""
    async with people.engine.begin() as connection:
        await connection.exec_driver_sql(
            "CREATE FUNCTION wipe() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DELETE FROM stamps; END $$"
        )
    follower.images.clear()
    async with people.engine.execution_options(isolation_level="AUTOCOMMIT").connect() as connection:
        await connection.execute(sa.select(sa.func.wipe()))
    assert {image.table for image in follower.images} == {"stamps"}


async def test_a_savepoint_that_is_rolled_back_reaches_more(people: Database, follower: NotingFollower) -> None:
    """Its images stay: more is invalidated, never less."""
    async with people.sessions() as db:
        savepoint = await db.begin_nested()
        await db.execute(sa.update(Person).where(Person.id == 1).values(score=1))
        await savepoint.rollback()
        await db.execute(sa.update(Person).where(Person.id == 2).values(score=1))
        await db.commit()
    assert [known(image, "id") for image in follower.images] == [{"1"}, {"2"}]


async def test_a_statement_that_cannot_be_read_reaches_everything(
    people: Database, follower: NotingFollower, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once for each kind of statement."""
    with caplog.at_level(logging.WARNING, "fastrdb"):
        for _ in range(2):
            async with people.sessions() as db:
                await db.execute(text("TRUNCATE stamps"))
                await db.commit()
    assert follower.images == [Image(None), Image(None)]
    assert len([each for each in caplog.messages if "TRUNCATE stamps" in each]) == 1


async def test_an_upsert_reaches_the_values_of_its_conflict(people: Database, follower: NotingFollower) -> None:
    """The row that was there has the same value in the conflict's column; its others are unknown."""
    row = upsert(Person).values(org_id=1, number=102, score=0)
    async with people.sessions() as db:
        await db.execute(row.on_conflict_do_update(index_elements=["number"], set_={"org_id": 5}))
        await db.commit()
    (image,) = follower.images
    assert known(image, "number") == {"102"}
    assert known(image, "org_id") is None


async def test_connections_that_are_made_anew_are_followed(people: Database, follower: NotingFollower) -> None:
    """A session goes on with another connection when the database has ended the first one, as it does when it stops."""
    written = sa.update(Person).where(Person.id == 1).values(score=1)
    async with people.sessions() as lost, people.sessions() as other:
        first = await lost.scalar(text("SELECT pg_backend_pid()"))
        assert await other.scalar(text("SELECT pg_terminate_backend(:pid, 30000)"), {"pid": first})
        with pytest.raises(DBAPIError):
            await lost.execute(written)
        await lost.rollback()
        follower.images.clear()
        assert await lost.scalar(text("SELECT pg_backend_pid()")) != first
        await lost.execute(written)
        await lost.commit()
    assert [known(image, "id") for image in follower.images] == [{"1"}]


HELD = (sa.select(Person.id).where(Person.id == 1).with_for_update(read=True, key_share=True),)
"""The lock that an INSERT of a row with a foreign key takes."""


async def test_a_look_waits_where_its_statement_would(people: Database, follower: NotingFollower) -> None:
    """Two sessions that change the same rows in the same order come to their ends, as without a look."""
    follower.columns, looks = {"people": ("id", "org_id")}, list[str]()
    event.listen(
        people.engine.sync_engine,
        "before_cursor_execute",
        lambda *args: looks.append(args[2]) if "FOR NO KEY UPDATE" in args[2] else None,
    )

    def changed(number: int) -> sa.Update:
        return sa.update(Person).where(Person.id == number).values(score=Person.score + 1)

    async with people.sessions() as one, people.sessions() as other, people.sessions() as third:
        pid = await other.scalar(text("SELECT pg_backend_pid()"))

        async def is_waiting() -> bool:
            return bool(await third.scalar(text("SELECT cardinality(pg_blocking_pids(:pid)) > 0"), {"pid": pid}))

        await one.execute(changed(1))
        second = asyncio.create_task(other.execute(changed(1)))
        await until(is_waiting)
        await one.execute(changed(2))
        await one.commit()
        await second
        await other.execute(changed(2))
        await other.commit()
        found = await third.scalars(sa.select(Person.score).where(Person.id < 3))
    assert len(looks) == 4
    assert set(found) == {2}


def raised(number: int) -> tuple[sa.Update]:
    """Return a statement, which changes no key."""
    return (sa.update(Person).where(Person.id == number).values(score=Person.score + 1),)


BY_KEY: Any = sa.update(PEOPLE).where(PEOPLE.c.id == sa.bindparam("row")).values(score=5)


@pytest.mark.parametrize(
    ("first", "waiting"),
    [
        (HELD, (sa.delete(Person).where(Person.id == 1),)),
        (HELD, (sa.update(Person).where(Person.id == 1).values(number=999),)),
        (raised(2), (BY_KEY, [{"row": 2}, {"row": 1}])),
    ],
    ids=["delete", "unique key", "several rows"],
)
async def test_a_look_holds_no_lock_for_which_another_waits(
    people: Database, follower: NotingFollower, first: Any, waiting: Any
) -> None:
    """It takes the locks of its statement, in the statement's order: else one of the two would be ended."""
    follower.columns, looks = {"people": ("id", "org_id")}, list[str]()
    event.listen(
        people.engine.sync_engine,
        "before_cursor_execute",
        lambda *args: looks.append(args[2]) if "UPDATE" in args[2] and "LIMIT" in args[2] else None,
    )
    async with people.engine.connect() as one, people.engine.connect() as other, people.engine.connect() as third:
        pid = await other.scalar(text("SELECT pg_backend_pid()"))

        async def is_waiting() -> bool:
            return bool(await third.scalar(text("SELECT cardinality(pg_blocking_pids(:pid)) > 0"), {"pid": pid}))

        await one.execute(*first)
        second = asyncio.create_task(other.execute(*waiting))
        await until(is_waiting)
        await one.execute(*raised(1))
        await one.commit()
        await second
        await other.commit()
    assert len(looks) == (3 if first is not HELD else 2)


async def test_a_look_takes_tuples_of_values(people: Database, follower: NotingFollower) -> None:
    """SQLAlchemy sends the values of an IN of tuples one by one."""
    follower.columns = {"people": ("id", "org_id")}
    pairs = sa.tuple_(Person.id, Person.number).in_([(1, 101), (2, 102), (3, 999)])
    async with people.sessions() as db:
        await db.execute(sa.update(Person).where(pairs).values(score=5))
        await db.commit()
    (image,) = follower.images
    assert known(image, "id") == {"1", "2"}


TRIGGER = (
    "CREATE FUNCTION noted() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN DELETE FROM stamps; RETURN NULL; END $$",
    "CREATE TRIGGER noted AFTER UPDATE ON people FOR EACH ROW EXECUTE FUNCTION noted()",
)


async def written_in(people: Database, follower: NotingFollower) -> set[str | None]:
    """Change a row; return the tables that the commit has reached."""
    follower.images.clear()
    async with people.sessions() as db:
        await db.execute(sa.update(Person).where(Person.id == 1).values(score=sa.func.coalesce(Person.score, 0) + 1))
        await db.commit()
    return {image.table for image in follower.images}


@pytest.mark.parametrize("tracked", [True, False])
async def test_the_catalog_is_asked_again_after_a_migration(
    people: Database, follower: NotingFollower, tracked: bool
) -> None:
    """The facts that others have asked for before the COMMIT are old, and are forgotten."""
    assert await written_in(people, follower) == {"people"}
    async with people.engine.connect() as connection:
        follower.tracked = tracked
        await connection.exec_driver_sql(TRIGGER[0])
        follower.tracked = True
        async with people.engine.connect() as other:
            await other.execute(sa.update(Person).where(Person.id == 2).values(score=4))
            await other.rollback()
        follower.tracked = tracked
        await connection.exec_driver_sql(TRIGGER[1])
        await connection.commit()
        follower.tracked = True
    assert await written_in(people, follower) == {"people", "stamps"}


async def test_a_migration_that_is_rolled_back_changes_no_facts(people: Database, follower: NotingFollower) -> None:
    """Only its own transaction has seen them."""
    async with people.engine.begin() as connection:
        for statement in TRIGGER:
            await connection.exec_driver_sql(statement)
    async with people.engine.connect() as connection:
        await connection.exec_driver_sql("DROP TRIGGER noted ON people")
        await connection.execute(sa.update(Person).where(Person.id == 2).values(score=4))
        await connection.rollback()
        await connection.execute(sa.update(Person).where(Person.id == 2).values(score=4))
        await connection.rollback()
    assert await written_in(people, follower) == {"people", "stamps"}


async def test_the_replacement_of_a_view_reaches_everything(people: Database, follower: NotingFollower) -> None:
    """Answers change with it; a new view changes none."""
    for statement, expected in (
        ("CREATE VIEW names AS SELECT id FROM people", []),
        ("CREATE OR REPLACE VIEW names AS SELECT id FROM people WHERE id > 1", [Image(None)]),
    ):
        follower.images.clear()
        async with people.engine.begin() as connection:
            await connection.exec_driver_sql(statement)
        assert follower.images == expected


async def test_a_commit_reaches_each_cache_that_follows(people: Database, follower: NotingFollower) -> None:
    """Two caches in one process are each given the images."""
    other = NotingFollower({})
    add_follower(other)
    async with people.sessions() as db:
        await db.execute(sa.update(Person).where(Person.id == 1).values(score=1))
        await db.commit()
    other.tracked = False
    assert other.images == follower.images != []


TABLE = sa.Table(
    "t",
    sa.MetaData(),
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("a", sa.Integer),
    sa.Column("b", sa.Text),
)
OTHER = TABLE.alias()


@pytest.mark.parametrize(
    ("where", "by_row"),
    [
        (TABLE.c.a == 1, True),
        (sa.or_(TABLE.c.a > TABLE.c.id, TABLE.c.b.in_(["x"])), True),
        (sa.func.lower(TABLE.c.b) == "x", True),
        (TABLE.c.a == sa.select(sa.func.max(OTHER.c.a)).scalar_subquery(), False),
        (sa.exists().where(OTHER.c.a == TABLE.c.id), False),
        (TABLE.c.a == OTHER.c.a, False),
        (sa.func.random() < 5, False),
        (sa.func.mine(TABLE.c.a) == 1, False),
        (sa.text("a = 1"), False),
        (sa.literal_column("a") == 1, False),
    ],
    ids=str,
)
def test_a_look_needs_rows_that_decide_alone(where: sa.ColumnElement[bool], by_row: bool) -> None:
    """A subquery or a function may find another row when the statement runs, and as many rows."""
    compiled = sa.delete(TABLE).where(where).compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
    (change,) = writes_of(compiled, Names()).of([compiled.params], {})
    assert change.by_row is by_row


@pytest.mark.parametrize(
    ("statement", "sets", "counted"),
    [
        (sa.delete(TABLE), 1, True),
        (sa.update(TABLE).values(a=1), 1, True),
        (sa.update(TABLE).values(a=1), 2, False),  # a driver may count the rows of the last one
        (sa.delete(TABLE).returning(TABLE.c.a), 1, False),  # SQLite has counted them when the result is read
        (sa.update(TABLE).values(a=1).return_defaults(TABLE.c.b), 1, False),
        (sa.insert(TABLE), 1, False),
    ],
)
def test_rows_are_counted_when_the_statement_returns(statement: Any, sets: int, counted: bool) -> None:
    """A statement that has then changed no row reaches nothing."""
    compiled = statement.compile(dialect=postgresql.dialect())  # type: ignore[no-untyped-call]
    (change,) = writes_of(compiled, Names()).of([compiled.params] * sets, {})
    check(SimpleNamespace(rowcount=0), change)
    assert change.empty is counted


async def test_a_write_of_no_row_reaches_what_its_triggers_write(people: Database, follower: NotingFollower) -> None:
    """A trigger for each statement runs for no row, too."""
    async with people.engine.begin() as connection:
        for statement in TRIGGER:
            await connection.exec_driver_sql(statement.replace("EACH ROW", "EACH STATEMENT"))
    follower.images.clear()
    async with people.sessions() as db:
        await db.execute(sa.update(Person).where(Person.number == 999).values(score=1))
        await db.commit()
    assert Image("stamps") in follower.images


def test_another_count_of_rows_makes_the_look_worthless() -> None:
    """A row has come in between the look and the statement: its old values are unknown."""
    for count, looked in ((1, {"org_id": frozenset({"5"})}), (2, {})):
        change = Change("update", "people", looked={"org_id": frozenset({"5"})}, rows=1)
        check(SimpleNamespace(rowcount=count), change)
        assert change.looked == looked


def test_on_update_cascade_reaches_the_child_by_both_keys() -> None:
    """The child's rows had the old key, and have the new one."""
    link = Link("letters", "person_id", "id", "NO ACTION", "CASCADE")
    spread = Spread({"people": Facts(links=(link,)), "letters": Facts()}.__getitem__, {})
    change = Change("update", "people", old={"id": frozenset({"1"})}, new={"id": frozenset({"9"})})
    assert [*spread.of(change)][1:] == [Image("letters", {"person_id": frozenset({"1", "9"})})]


def test_a_computed_column_is_unknown() -> None:
    """The database changes it with any other column."""
    table = sa.Table(
        "t",
        sa.MetaData(),
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("a", sa.Integer),
        sa.Column("b", sa.Integer, sa.Computed("a + 1")),
    )
    compiled = sa.update(table).where(table.c.b == 1).values(a=2).compile(dialect=sa.create_engine("sqlite://").dialect)
    (change,) = writes_of(compiled, Names()).of([compiled.params], {})
    assert change.old == {"b": frozenset({"1"})}
    assert (change.image().columns or {})["b"] is None


@pytest.mark.parametrize(
    ("written", "dialect", "kinds"),
    [
        ("UPDATE log SET x = 1; DELETE FROM par WHERE id = 1", "mysql", {"any"}),
        ("INSERT INTO log VALUES (1); DELETE FROM par WHERE id = 1", "mysql", {"any"}),
        ("DELETE FROM par WHERE id = 1;", "mysql", {"delete"}),
        ("INSERT INTO par VALUES (1) ON CONFLICT (id)DO/**/UPDATE SET id = 9", "postgresql", {"update"}),
        ("DELETE FROM ta.*, tb.* USING ta JOIN tb ON ta.id = tb.id", "mysql", None),
        ("DELETE FROM ta, tb USING ta JOIN tb ON ta.id = tb.id", "mariadb", None),
    ],
)
def test_a_text_is_of_the_widest_kind_that_it_may_be(written: str, dialect: str, kinds: set[str] | None) -> None:
    """Several statements in one text, an upsert without spaces, and a DELETE from several tables."""
    changes, _ = changes_of_text(written, dialect, Names())
    assert (changes and {change.kind for change in changes}) == kinds
