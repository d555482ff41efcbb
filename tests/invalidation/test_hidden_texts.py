"""`Cache(auto=True)`: tables and functions that stand in a text, a part of a statement, or the type of a column."""

from __future__ import annotations

from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.types import TypeDecorator

from fastrdb import Cache
from tests.support.servers.databases import Database

from .hidden import META, ORGS, POSTS, PRICES, Case, answered_anew

ORG = sa.select(ORGS.c.name).where(ORGS.c.id == 1)
RENAME = sa.update(ORGS).where(ORGS.c.id == 1).values(name="new")
KNOWN = ("first", "last", "list", "search", "month", "json_table", "date_add", "log", "lower", "count")
"""Names of functions that sqlglot or the list of built-in ones has: a database may have another function of each."""
POSTGRESQL, MARIADB, SQLITE = ("postgresql",), ("mariadb",), ("sqlite",)


def _reads_org(name: str) -> dict[str, tuple[str, ...]]:
    """Return what makes a function that reads."""
    return {
        "postgresql": (
            f"CREATE FUNCTION {name}(n int) RETURNS text STABLE LANGUAGE sql AS 'SELECT name FROM orgs WHERE id = n'",
        ),
        "mariadb": (
            f"CREATE FUNCTION {name}(n int) RETURNS text READS SQL DATA RETURN (SELECT name FROM orgs WHERE id = n)",
        ),
    }


def _renames_org(name: str) -> dict[str, tuple[str, ...]]:
    """Return what makes a function that writes."""
    return {
        "postgresql": (
            f"""CREATE FUNCTION {name}(n int) RETURNS int LANGUAGE sql
            AS 'UPDATE orgs SET name = ''new'' WHERE id = n; SELECT 30'""",
        ),
        "mariadb": (
            f"""CREATE FUNCTION {name}(n int) RETURNS int MODIFIES SQL DATA
            BEGIN UPDATE orgs SET name = 'new' WHERE id = n; RETURN 30; END""",
        ),
    }


FOUND = {
    "sqlite": (
        "CREATE VIRTUAL TABLE found USING fts5(name)",
        "INSERT INTO found (name) VALUES ('name old')",
        "CREATE VIRTUAL TABLE of_orgs USING fts5(name, content = 'orgs', content_rowid = 'id')",
    )
}
OF_A_ROW = {
    "postgresql": (
        """CREATE FUNCTION org_name(posts) RETURNS text STABLE LANGUAGE sql
        AS 'SELECT name FROM orgs WHERE id = $1.org_id'""",
        """CREATE FUNCTION twice(posts) RETURNS text STABLE LANGUAGE sql AS 'SELECT $1.org_name || $1.org_name'""",
    )
}
"""Functions that a query may call by the names of columns."""


class Decorated(TypeDecorator[str]):
    """A type whose values a function of the database makes."""

    impl = sa.Integer
    cache_ok = True

    def column_expression(self, column: Any) -> Any:
        return sa.func.decorated(column)


class Searched(TypeDecorator[str]):
    """A type whose parameters a function of the database makes."""

    impl = sa.Integer
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return sa.func.decorated(bindparam)


class Touched(TypeDecorator[int]):
    """A type whose parameters are written by a function of the database, which writes more."""

    impl = sa.Integer
    cache_ok = True

    def bind_expression(self, bindparam: Any) -> Any:
        return sa.func.touched(bindparam)


OTHERS = sa.MetaData()
DECORATED = sa.Table("prices", OTHERS, sa.Column("id", Decorated, primary_key=True), sa.Column("net", sa.Integer))
TOUCHED = sa.Table("prices", sa.MetaData(), sa.Column("id", sa.Integer, primary_key=True), sa.Column("net", Touched))
UNIQUE = sa.Table(
    "emails",
    META,
    *(
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("email", sa.String(20), sqlite_on_conflict_unique="REPLACE"),
    ),
)
ROOMS = sa.Table("rooms", META, sa.Column("id", sa.Integer, primary_key=True), sa.Column("number", sa.Integer))
EMAILS = {
    "sqlite": (
        "CREATE TABLE emails (id INTEGER PRIMARY KEY, email VARCHAR(20) UNIQUE ON CONFLICT REPLACE)",
        "CREATE TABLE uses (id INTEGER PRIMARY KEY, email_id INTEGER REFERENCES emails (id) ON DELETE CASCADE)",
        "CREATE TABLE rooms (id INTEGER PRIMARY KEY, number INTEGER UNIQUE)",
        "INSERT INTO emails VALUES (1, 'a'), (2, 'b')",
        "INSERT INTO uses VALUES (1, 1)",
        "INSERT INTO rooms VALUES (1, 10), (2, 20)",
    )
}
EMAIL = sa.select(UNIQUE.c.email).where(UNIQUE.c.id == 1)
IGNORING = (
    "UPDATE IGNORE orgs SET name = 'new'",
    "UPDATE LOW_PRIORITY orgs SET name = 'new'",
    "UPDATE LOW_PRIORITY IGNORE orgs SET name = 'new'",
    "UPDATE /*! IGNORE */ orgs SET name = 'new'",
    "/*! UPDATE orgs SET name = 'new' */",
    "UPDATE posts /*M!100100 , orgs */ SET orgs.name = 'new'",
    "REPLACE LOW_PRIORITY INTO orgs (id, name) VALUES (1, 'new')",
    "DELETE LOW_PRIORITY QUICK IGNORE FROM orgs WHERE id = 1",
    "WITH x AS (SELECT 1) SELECT * FROM x; UPDATE LOW_PRIORITY orgs SET name = 'new'",
)
IN_FEW: dict[str, Any] = {
    "a part that is text": sa.text("'new' NOT IN few"),
    "a literal column": sa.literal_column("'new' NOT IN main.\"few\"", sa.Boolean),
}
CASES = {
    **{
        f"a text calls an own function {name}": Case(
            sa.text(f"SELECT {name}(1)"),
            RENAME,
            _reads_org(name),
            POSTGRESQL if name in KNOWN[4:] else POSTGRESQL + MARIADB,
        )
        for name in KNOWN
    },
    **{
        f"a statement calls an own function {name}": Case(
            sa.select(getattr(sa.func, name)(1)), RENAME, _reads_org(name), POSTGRESQL
        )
        for name in KNOWN
    },
    **{
        f"a text inserts what an own function {name} makes": Case(
            ORG,
            sa.text(f"INSERT INTO prices (id, net) VALUES (3, {name}(1))"),
            _renames_org(name),
            POSTGRESQL + MARIADB,
        )
        for name in KNOWN[:4]
    },
    "a full-text table as a function": Case(
        sa.text("SELECT name FROM found('name')"), sa.text("UPDATE found SET name = 'name new'"), FOUND, SQLITE
    ),
    "a full-text table as a function of a statement": Case(
        sa.select(sa.func.found("name").table_valued("name").c.name),
        sa.text("UPDATE found SET name = 'name new'"),
        FOUND,
        SQLITE,
    ),
    "a full-text table without rows of its own": Case(
        sa.text("SELECT name FROM of_orgs WHERE rowid = 1"), RENAME, FOUND, SQLITE
    ),
    "a text has a function of a row as an attribute": Case(
        sa.text("SELECT p.org_name FROM posts p WHERE p.id = 1"), RENAME, OF_A_ROW, POSTGRESQL
    ),
    "a statement has a function of a row as a column": Case(
        sa.select(sa.literal_column("posts.Org_Name"), POSTS.c.id).where(POSTS.c.id == 1), RENAME, OF_A_ROW, POSTGRESQL
    ),
    "a function of a row has another one as an attribute": Case(
        sa.text("SELECT twice(p) FROM posts p WHERE p.id = 1"), RENAME, OF_A_ROW, POSTGRESQL
    ),
    "an INSERT calls a function that writes": Case(
        ORG, sa.insert(PRICES).values(id=3, net=sa.func.first(1)), _renames_org("first"), POSTGRESQL + MARIADB
    ),
    "the WHERE of an UPDATE calls a function that writes": Case(
        ORG,
        sa.update(PRICES).where(PRICES.c.net == sa.func.first(1)).values(net=1),
        _renames_org("first"),
        POSTGRESQL + MARIADB,
    ),
    **{f"text of {text}": Case(ORG, sa.text(text), {}, MARIADB) for text in IGNORING[:-1]},
    "INSERT DELAYED": Case(
        sa.select(ORGS.c.name).where(ORGS.c.id == 3),
        sa.text("INSERT DELAYED INTO orgs (id, name) VALUES (3, 'c')"),
        {"mariadb": ("ALTER TABLE orgs ENGINE = MyISAM",)},
        MARIADB,
    ),
    "a table behind IN, in text": Case(
        sa.text("SELECT id FROM posts WHERE 'new' NOT IN few"),
        RENAME,
        {"sqlite": ("CREATE VIEW few AS SELECT name FROM orgs",)},
        SQLITE,
    ),
    **{
        f"a table behind IN, in {kind}": Case(
            sa.select(POSTS.c.id).where(part), RENAME, {"sqlite": ("CREATE VIEW few AS SELECT name FROM orgs",)}, SQLITE
        )
        for kind, part in IN_FEW.items()
    },
    "a column replaces on conflict": Case(EMAIL, sa.insert(UNIQUE).values(id=3, email="a"), EMAILS, SQLITE),
    "a column replaces on conflict with an UPDATE": Case(
        EMAIL, sa.update(UNIQUE).where(UNIQUE.c.id == 2).values(email="a"), EMAILS, SQLITE
    ),
    "a column replaces on conflict, and a key cascades": Case(
        sa.text("SELECT id FROM uses"), sa.insert(UNIQUE).values(id=3, email="a"), EMAILS, SQLITE
    ),
    "a column replaces on conflict with a text": Case(
        sa.text("SELECT id FROM uses"), sa.text("UPDATE emails SET email = 'a' WHERE id = 2"), EMAILS, SQLITE
    ),
    "UPDATE OR REPLACE": Case(
        sa.select(ROOMS.c.number).where(ROOMS.c.id == 1),
        sa.update(ROOMS).prefix_with("OR REPLACE").where(ROOMS.c.id == 2).values(number=10),
        EMAILS,
        SQLITE,
    ),
    **{
        f"{kind} with a query": Case(statement, RENAME, {}, SQLITE)
        for kind, statement in {
            "a suffix": sa.select(PRICES.c.net).suffix_with("UNION ALL SELECT name FROM orgs"),
            "a hint": sa.select(PRICES.c.net).with_statement_hint("UNION ALL SELECT name FROM orgs"),
            "a prefix": sa.select(PRICES.c.net).prefix_with("(SELECT name FROM orgs),"),
            "the prefix of a CTE": sa.select(
                sa.select(PRICES.c.net).cte("some").suffix_with(", others AS (SELECT name FROM orgs)")
            ).where(sa.text("'new' NOT IN others")),
            "an operator": sa.select(PRICES.c.net.op("+ (SELECT count(*) FROM orgs WHERE name = 'new') +")(0)),
        }.items()
    },
    **{
        f"{kind} that calls a function": Case(statement, RENAME, _reads_org("decorated"), POSTGRESQL)
        for kind, statement in {
            "a suffix": sa.select(sa.cast(PRICES.c.net, sa.Text)).suffix_with("UNION ALL VALUES (decorated(1))"),
            "an operator": sa.select(sa.cast(PRICES.c.net, sa.Text).op("|| decorated(1) ||")("")),
            "a column's type": sa.select(DECORATED.c.id).where(DECORATED.c.net == 10),
            "a table's type": sa.select(DECORATED).where(DECORATED.c.net == 10),
            "a parameter's type": sa.select(sa.literal(1, Searched)),
        }.items()
    },
    "the type of a parameter calls a function that writes": Case(
        ORG, sa.insert(TOUCHED).values(id=3, net=1), _renames_org("touched"), POSTGRESQL + MARIADB
    ),
    "a view whose name differs by its case from a table's": Case(
        sa.select(sa.table("Orgs", sa.column("id"), sa.column("name")).c.name),
        sa.update(POSTS).where(POSTS.c.id == 1).values(org_id=7),
        {"postgresql": ('CREATE VIEW "Orgs" AS SELECT id, cast(org_id AS text) AS name FROM posts',)},
        POSTGRESQL,
    ),
}


@pytest.mark.parametrize(
    ("database", "name"),
    [(database, name) for name, case in CASES.items() for database in case.databases],
    indirect=["database"],
)
async def test_a_hidden_name_drops_the_answer(database: Database, following: Cache, name: str) -> None:
    """The answer after the commit is that of the database."""
    await answered_anew(CASES[name], database, following)


def _common() -> dict[str, Any]:
    """Return queries of one row, with what a statement often has in front of a parenthesis."""
    one, name = ORGS.c.id == 1, ORGS.c.name
    numbers = sa.select(ORGS.c.id).where(one).cte("numbers", recursive=True)
    numbers = numbers.union_all(sa.select(numbers.c.id + 1).where(numbers.c.id < 3))
    others = sa.select(ORGS.c.id).where(one).cte("others", recursive=True)
    others = others.union_all(sa.select(others.c.id).where(others.c.id < 0))
    number = sa.func.row_number().over(partition_by=name, order_by=ORGS.c.id)
    return {
        "functions": sa.select(
            sa.func.coalesce(sa.func.nullif(sa.func.lower(name), ""), sa.func.substr(name, 1, 2)), sa.func.abs(number)
        ).where(one),
        "casts": sa.select(sa.cast(ORGS.c.id, sa.Numeric(10, 2)), sa.cast(name, sa.String(7))).where(one),
        "aggregates": sa.select(sa.func.count(), sa.func.max(name), sa.func.sum(ORGS.c.id)).where(one),
        "words": sa.select(ORGS.c.id).where(one, ORGS.c.id.in_([1, 2]), sa.or_(name == "a", sa.not_(name.like("b%")))),
        "CTEs": sa.select(numbers.c.id, others.c.id).where(numbers.c.id == others.c.id),
        "times": sa.select(sa.func.current_timestamp(), ORGS.c.id).where(one),
        "a case": sa.select(sa.case((ORGS.c.id > 1, sa.func.length(name)), else_=0)).where(
            one, ORGS.c.id.between(0, 2)
        ),
    }


def _common_on_postgresql() -> dict[str, Any]:
    one, name = ORGS.c.id == 1, ORGS.c.name
    given = sa.values(sa.column("n", sa.Integer), name="given").data([(1,), (2,)])
    series = sa.func.generate_series(1, 2).table_valued("n", with_ordinality="o").render_derived()
    return {
        "filters": sa.select(sa.func.count().filter(ORGS.c.id > 1), sa.func.string_agg(name, ",")).where(one),
        "groups": sa.select(sa.func.percentile_cont(0.5).within_group(ORGS.c.id)).where(one),
        "sets": sa.select(sa.func.count()).where(one).group_by(sa.func.grouping_sets(sa.tuple_(name), sa.tuple_())),
        "series": sa.select(series.c.n).where(one, series.c.n == ORGS.c.id),
        "values": sa.select(ORGS.c.id).where(one, ORGS.c.id.in_(sa.select(given.c.n))),
        "documents": sa.select(sa.func.jsonb_build_object("a", sa.func.array_agg(name))).where(one),
        "times": sa.select(sa.extract("year", sa.func.now()), sa.func.date_trunc("day", sa.func.now())).where(one),
        "keys": sa.select(sa.func.gen_random_uuid(), sa.func.greatest(ORGS.c.id, 2), sa.func.left(name, 1)).where(one),
    }


@pytest.mark.parametrize(
    ("database", "name"),
    [
        *((database, name) for name in _common() for database in ("sqlite", "postgresql", "mariadb")),
        *(("postgresql", name) for name in _common_on_postgresql()),
    ],
    indirect=["database"],
)
async def test_common_statements_depend_on_their_rows_alone(database: Database, following: Cache, name: str) -> None:
    """No word and no built-in function counts as one that may read anything."""
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE orgs (id INTEGER PRIMARY KEY, name VARCHAR(20))")
    statement = {**_common(), **(_common_on_postgresql() if database.name == "postgresql" else {})}[name]

    @following.cached("common:rows")
    async def rows(db: AsyncSession) -> int:
        return len((await db.execute(statement)).all())

    async with database.sessions() as db:
        await rows(db)
        assert (await rows.explain(db)).depends_on == ("orgs where id = 1",)


WRITES: dict[str, Any] = {
    "an INSERT": sa.insert(ORGS).values(id=3, name=sa.func.lower(sa.func.coalesce("C", "D"))),
    "several rows": sa.insert(ORGS).values([{"id": 3, "name": "c"}, {"id": 4, "name": "d"}]),
    "an UPDATE": sa.update(ORGS).where(ORGS.c.id == 2, ORGS.c.name.in_(["a", "b"])).values(name=sa.func.upper("x")),
    "a DELETE": sa.delete(ORGS).where(sa.func.length(ORGS.c.name) < 9, ORGS.c.id == 2),
    "a text": sa.text("UPDATE orgs SET name = upper(name) WHERE id IN (2) AND (name = 'b')"),
    "an INSERT as text": sa.text("INSERT INTO orgs (id, name) VALUES (3, lower('C'))"),
}


@pytest.mark.parametrize("database", ["sqlite", "postgresql", "mariadb"], indirect=True)
@pytest.mark.parametrize("name", WRITES)
async def test_common_writes_reach_their_table_alone(database: Database, following: Cache, name: str) -> None:
    """No word and no built-in function counts as one that may write anything."""
    async with database.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE orgs (id INTEGER PRIMARY KEY, name VARCHAR(20))")
        await connection.exec_driver_sql("CREATE TABLE posts (id INTEGER PRIMARY KEY, org_id INTEGER)")
        await connection.exec_driver_sql("INSERT INTO orgs (id, name) VALUES (1, 'a'), (2, 'b')")

    @following.cached("common:posts")
    async def posts(db: AsyncSession) -> int:
        return len((await db.scalars(sa.select(POSTS.c.id))).all())

    async with database.sessions() as db:
        await posts(db)
        await db.rollback()
        await db.execute(WRITES[name])
        await db.commit()
        assert (await posts.explain(db)).state == "hit"
