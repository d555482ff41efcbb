"""The look before a write: it never makes the write fail, and what it has read is trusted after a check alone."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy import text
from sqlalchemy.dialects import mysql
from sqlalchemy.orm import Session, registry

from fastrdb.inference import Change, Names, writes_of
from fastrdb.inference.look import is_denied
from fastrdb.inference.postgresql import PostgreSQL
from fastrdb.transactions import add_follower
from tests.support.servers.databases import Database, opened

from .followers import NotingFollower
from .test_followed_writes import COLUMNS, PEOPLE, fill, known


class Old:
    """A row of a table with the names of an older program."""


OLD = sa.Table(
    "old people",
    sa.MetaData(),
    sa.Column("id (new)", sa.Integer, primary_key=True, key="id", autoincrement=False),
    sa.Column("first name", sa.Integer),
)
registry().map_imperatively(Old, OLD, properties={"name": OLD.c["first name"]})


RIGHTS = "SELECT (id, score), UPDATE (score)"
SCORE = sa.update(PEOPLE).where(PEOPLE.c.id == 1).values(score=5)


@pytest.fixture
def follower() -> NotingFollower:
    """Return a follower whose entries are tagged by several columns."""
    made = NotingFollower({"people": COLUMNS, "old people": ("id (new)", "first name")})
    add_follower(made)
    return made


@contextlib.asynccontextmanager
async def role(database: Database, *grants: str) -> AsyncIterator[str]:
    """Make a role of PostgreSQL for the block."""
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE ROLE fastrdb_looking")
        for grant in grants:
            await connection.exec_driver_sql(f"GRANT {grant} TO fastrdb_looking")
    try:
        yield "fastrdb_looking"
    finally:
        async with database.engine.begin() as connection:
            await connection.exec_driver_sql("DROP OWNED BY fastrdb_looking")
            await connection.exec_driver_sql("DROP ROLE fastrdb_looking")


def assert_unknown(follower: NotingFollower) -> None:
    """Check that the row is known by its key alone."""
    (image,) = follower.images
    assert (known(image, "id"), known(image, "org_id"), known(image, "number")) == ({"1"}, None, None)


@pytest.mark.parametrize("chosen", ["SET LOCAL ROLE {}", "SELECT set_config('role', '{}', true)"])
async def test_a_role_needs_no_more_rights_than_its_write(
    postgresql: Database, follower: NotingFollower, chosen: str
) -> None:
    """The rights were asked for with those of the login. PostgreSQL would abort the transaction."""
    await fill(postgresql)
    async with role(postgresql, "USAGE ON SCHEMA public", f"{RIGHTS} ON people") as name:
        async with postgresql.engine.begin() as connection:
            await connection.execute(SCORE)
        async with postgresql.engine.begin() as connection:
            await connection.execute(text(chosen.format(name)))
            follower.images.clear()
            await connection.execute(SCORE)
        assert_unknown(follower)


async def test_a_role_with_rights_has_looks(postgresql: Database, follower: NotingFollower) -> None:
    """Its writes stay exact."""
    await fill(postgresql)
    async with role(postgresql, "USAGE ON SCHEMA public", "SELECT, UPDATE ON people") as name:
        async with postgresql.engine.begin() as connection:
            await connection.execute(text(f"SET LOCAL ROLE {name}"))
            follower.images.clear()
            await connection.execute(SCORE)
        assert [known(image, "number") for image in follower.images] == [{"101"}]


@pytest.mark.parametrize("rights", [RIGHTS, "UPDATE, INSERT"])
async def test_a_user_of_mariadb_needs_no_more_rights_than_its_write(
    mariadb: Database, follower: NotingFollower, rights: str
) -> None:
    """Without the right to read all columns, the columns are unknown."""
    await fill(mariadb)
    name = f"{mariadb.engine.url.database}"[-12:]
    users = [f"'{name}'@'{host}'" for host in ("localhost", "%")]
    written: Any = SCORE if rights == RIGHTS else sa.update(PEOPLE).values(score=5)
    try:
        async with mariadb.engine.begin() as connection:
            for user in users:
                await connection.execute(text(f"CREATE USER {user} IDENTIFIED BY 'looking'"))
                await connection.execute(text(f"GRANT {rights} ON people TO {user}"))
        async with opened(mariadb.engine.url.set(username=name, password="looking")) as database:
            follower.images.clear()
            async with database.engine.begin() as connection:
                assert (await connection.execute(written)).rowcount > 0
            (image,) = follower.images
            assert known(image, "org_id") is None
    finally:
        async with mariadb.engine.begin() as connection:
            for user in users:
                await connection.execute(text(f"DROP USER IF EXISTS {user}"))


@pytest.mark.parametrize(
    ("error", "denied"),
    [
        (SimpleNamespace(sqlstate="42501"), True),  # asyncpg, psycopg
        (SimpleNamespace(pgcode="42501", args=("permission denied",)), True),  # psycopg2
        (SimpleNamespace(args=(1143, "SELECT command denied")), True),  # aiomysql, asyncmy, PyMySQL
        (SimpleNamespace(errno=1142, sqlstate="42000"), True),  # MySQL's own driver
        (SimpleNamespace(args=({"C": "55P03"},)), False),  # pg8000
        (SimpleNamespace(sqlstate="55P03"), False),
        (SimpleNamespace(args=(1205, "Lock wait timeout exceeded")), False),
        (None, False),
    ],
)
def test_other_errors_of_a_look_are_those_of_its_write(error: Any, denied: bool) -> None:
    """A timeout of a lock is raised unchanged, whatever a driver puts into its errors."""
    assert is_denied(error) is denied


async def test_a_question_that_fails_leaves_the_transaction(
    postgresql: Database, follower: NotingFollower, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PostgreSQL would refuse all that follows, as after a `statement_timeout`. The table then counts as unknown."""
    await fill(postgresql)
    failing = text("SELECT CAST(:oid AS oid), 'public', CAST(1 / (SELECT 0) AS text)")
    async with postgresql.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE IF NOT EXISTS other (id integer)")  # the facts are asked anew
    follower.images.clear()
    with monkeypatch.context() as patch:
        patch.setattr(PostgreSQL, "_RELATIVES", failing)
        async with postgresql.engine.begin() as connection:
            await connection.execute(SCORE)
    assert None in {image.table for image in follower.images}
    async with postgresql.engine.connect() as connection:
        assert await connection.scalar(sa.select(PEOPLE.c.score).where(PEOPLE.c.id == 1)) == 5


@pytest.mark.parametrize(
    "options", [{"isolation_level": "AUTOCOMMIT"}, {"connect_args": {"autocommit": True}}], ids=str
)
async def test_the_catalog_is_asked_where_each_statement_commits(
    postgresql: Database, follower: NotingFollower, options: dict[str, Any]
) -> None:
    """PostgreSQL has no savepoints there."""
    await fill(postgresql)
    url = postgresql.engine.url.set(drivername="postgresql+psycopg")
    async with opened(url, **options) as database, database.engine.connect() as connection:
        follower.images.clear()
        await connection.execute(SCORE)
    assert_unknown(follower)


async def test_a_name_of_a_column_may_have_any_character(database: Database, follower: NotingFollower) -> None:
    """SQLAlchemy gives the parameter of such a column another name in the statement."""
    async with database.engine.begin() as connection:
        await connection.run_sync(OLD.metadata.create_all)

    def write(session: Session) -> None:
        old: Any = Old()
        old.id, old.name = 1, 10
        session.add(old)
        session.flush()
        old.name = 11
        session.flush()
        session.execute(sa.update(OLD).where(OLD.c["first name"] == 11).values(id=2))

    async with database.sessions() as db:
        await db.run_sync(write)
        follower.images.clear()
        await db.commit()
    assert [(image.columns or {}) for image in follower.images][1:] == [
        {"id (new)": frozenset({"1"}), "first name": frozenset({"10", "11"})},
        {"id (new)": frozenset({"1", "2"}), "first name": frozenset({"11"})},
    ]


@pytest.mark.parametrize("kind", [sa.update, sa.delete])
def test_a_write_with_a_limit_has_no_look(kind: Any) -> None:
    """It would lock more rows than the statement, which may then choose another one."""
    for options, by_row in (({}, True), ({"mysql_limit": 1}, False)):
        statement = kind(PEOPLE).where(PEOPLE.c.org_id == 1).with_dialect_options(**options)
        compiled = statement.compile(dialect=mysql.dialect())
        assert [change.by_row for change in writes_of(compiled, Names()).of([compiled.params], {})] == [by_row]


async def test_a_value_in_the_statement_itself_is_no_parameter(database: Database, follower: NotingFollower) -> None:
    """The look has no value for its condition then."""
    await fill(database)
    follower.images.clear()
    one: Any = sa.bindparam("one", 1, literal_execute=True)
    async with database.engine.begin() as connection:
        await connection.execute(sa.update(PEOPLE).where(PEOPLE.c.id == one).values(score=5))
    (image,) = follower.images
    assert not image.columns


def test_a_look_without_a_check_is_not_trusted() -> None:
    """A listener of the user's may run another write before the statement, which then has no check."""
    change = Change("update", "people", looked={"org_id": frozenset({"5"})}, rows=1)
    assert change.image().columns == {}
