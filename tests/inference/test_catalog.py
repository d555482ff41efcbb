"""The facts that a statement does not show are asked of each database once: views, triggers, partitions, functions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import sqlalchemy as sa
from sqlalchemy import event
from sqlalchemy.exc import ProgrammingError

from fastrdb.inference import Catalog, Change, Origins, Spread, declare_views
from fastrdb.inference import catalog as catalog_module
from fastrdb.inference.bodies import Function
from fastrdb.keys import ANYTHING, Image, table_tag
from tests.support.availability import missing
from tests.support.servers.databases import Database, opened

T = TypeVar("T")

TABLES = (
    "CREATE TABLE orgs (id INTEGER PRIMARY KEY, name VARCHAR(40), score INTEGER)",
    """CREATE TABLE people (id INTEGER PRIMARY KEY, org_id INTEGER, name VARCHAR(40),
    FOREIGN KEY (org_id) REFERENCES orgs (id) ON DELETE CASCADE)""",
    "CREATE TABLE audit (id INTEGER)",
    "CREATE VIEW org_names AS SELECT id, name FROM orgs",
    "CREATE VIEW large AS SELECT n.id FROM org_names n JOIN people p ON p.org_id = n.id",
)
POSTGRESQL = (
    """CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN IF (NEW.id > 0) THEN INSERT INTO audit (id) VALUES (NEW.id); END IF; RETURN NEW; END $$""",
    "CREATE TRIGGER noted AFTER INSERT OR UPDATE ON orgs FOR EACH ROW EXECUTE FUNCTION note()",
    """CREATE FUNCTION low() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN NEW.name := lower(NEW.name); RETURN NEW; END $$""",
    "CREATE TRIGGER lowered BEFORE INSERT OR UPDATE ON orgs FOR EACH ROW EXECUTE FUNCTION low()",
    """CREATE FUNCTION wild() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN EXECUTE 'DELETE FROM ' || TG_ARGV[0]; RETURN NULL; END $$""",
    "CREATE TRIGGER wild AFTER DELETE ON people FOR EACH ROW EXECUTE FUNCTION wild('audit')",
    "CREATE FUNCTION total() RETURNS bigint STABLE LANGUAGE sql AS 'SELECT count(*) FROM org_names'",
    "CREATE FUNCTION close_all() RETURNS void LANGUAGE plpgsql AS $$ BEGIN DELETE FROM people; END $$",
    "CREATE FUNCTION twice(n integer) RETURNS integer IMMUTABLE LANGUAGE sql AS 'SELECT 2 * n'",
    "CREATE TABLE days (id INTEGER, day INTEGER) PARTITION BY RANGE (day)",
    "CREATE TABLE days_1 PARTITION OF days FOR VALUES FROM (0) TO (10)",
    "CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM orgs",
    "CREATE TABLE secrets (id INTEGER, org_id INTEGER)",
    "ALTER TABLE secrets ENABLE ROW LEVEL SECURITY",
    "CREATE POLICY own ON secrets USING (org_id IN (SELECT id FROM orgs))",
)
MARIADB = (
    "CREATE TRIGGER noted AFTER UPDATE ON orgs FOR EACH ROW INSERT INTO audit (id) VALUES (NEW.id)",
    "CREATE TRIGGER lowered BEFORE INSERT ON orgs FOR EACH ROW SET NEW.name = lower(NEW.name)",
    "CREATE FUNCTION total() RETURNS INTEGER READS SQL DATA RETURN (SELECT count(*) FROM org_names)",
)
SQLITE = ("CREATE TRIGGER noted AFTER UPDATE ON orgs BEGIN INSERT INTO audit (id) VALUES (NEW.id); END",)
ALSO = {"postgresql": POSTGRESQL, "mariadb": MARIADB, "sqlite": SQLITE}


@pytest.fixture
async def made(database: Database) -> Database:
    """Prepare each database in turn, with views, triggers and functions."""
    async with database.engine.begin() as connection:
        for statement in (*TABLES, *ALSO[database.name]):
            await connection.exec_driver_sql(statement.replace("%", "%%"))
    return database


async def asked(database: Database, ask: Callable[[sa.Connection, Catalog], T]) -> T:
    """Ask a new catalog, in a transaction."""
    async with database.engine.connect() as connection:
        return await connection.run_sync(lambda inner: ask(inner, Catalog(inner.dialect)))


def depending(*tables: str, functions: tuple[str, ...] = ()) -> Origins:
    """Return what a statement names."""
    return Origins(frozenset(tables), frozenset(functions))


async def test_a_view_depends_on_its_tables(made: Database) -> None:
    """A view over a view is followed down to the tables."""
    tags, coarse = await asked(made, lambda db, catalog: catalog.besides(db, depending("large")))
    assert {table_tag("orgs"), table_tag("people")} <= tags <= set(map(table_tag, ("orgs", "people", "org_names")))
    assert "orgs: any row, because large reads it" in coarse


async def test_what_is_being_asked_is_not_taken_for_nothing(made: Database) -> None:
    """A reader that is cancelled meanwhile leaves nothing, and another connection asks for itself."""
    seen = []

    def read(db: sa.Connection, catalog: Catalog) -> Any:
        source: Any = catalog._source
        real = source.facts

        def cancelled(connection: sa.Connection, table: str) -> Any:
            raise asyncio.CancelledError

        def meanwhile(connection: sa.Connection, table: str) -> Any:
            source.facts = real
            with db.engine.connect() as other:
                seen.append(catalog.facts(other, table).reads)
            return real(connection, table)

        source.facts = cancelled
        with pytest.raises(asyncio.CancelledError):
            catalog.facts(db, "org_names")
        source.facts = meanwhile
        return catalog.facts(db, "org_names").reads

    reads = await asked(made, read)
    assert "orgs" in reads
    assert seen == [reads]


async def test_a_trigger_writes_other_tables(made: Database) -> None:
    """A write to the table reaches what its triggers write."""
    facts = await asked(made, lambda db, catalog: catalog.facts(db, "orgs"))
    assert facts.writes == frozenset({"audit"})
    assert facts.changes == frozenset(() if made.name == "sqlite" else ("name",))


async def test_a_foreign_key_carries_a_delete_on(made: Database) -> None:
    """The database's own foreign keys count, whatever the metadata says."""

    def spread(db: sa.Connection, catalog: Catalog) -> list[Image]:
        catalog.warm(db, "orgs")
        change = Change("delete", "orgs", old={"id": frozenset({"1"})})
        return list(Spread(catalog.known, {}).of(change))

    images = await asked(made, spread)
    assert Image("people", {"org_id": frozenset({"1"})}) in images
    assert Image("audit") in images
    assert (Image(None) in images) is (made.name == "postgresql")  # its trigger on people runs any SQL


async def test_a_function_that_reads_tables_is_followed(made: Database) -> None:
    """A stored function counts with the tables that its text names; the database's own read none."""
    expected = {"sqlite": set[str]()}.get(made.name, {table_tag("org_names"), table_tag("orgs")})
    tags, _ = await asked(made, lambda db, catalog: catalog.besides(db, depending(functions=("total", "hex"))))
    if made.name == "postgresql":  # which has no hex()
        assert tags == {ANYTHING, *expected}
    else:
        assert tags == expected


async def test_facts_are_asked_once(made: Database) -> None:
    """The second question of a table sends nothing, and a statement of DDL makes the catalog forget."""
    sent = list[str]()
    event.listen(made.engine.sync_engine, "before_cursor_execute", lambda *args: sent.append(args[2]))

    def ask(db: sa.Connection, catalog: Catalog) -> tuple[int, int]:
        catalog.warm(db, "orgs")
        first = len(sent)
        catalog.warm(db, "orgs")
        return first, len(sent)

    first, second = await asked(made, ask)
    assert first == second > 0


async def test_a_table_takes_few_questions(made: Database) -> None:
    """A first miss and a first write wait for them. The schemas that are searched are asked once for all tables.

    On PostgreSQL the questions of each kind are within a savepoint.
    """
    sent = list[str]()
    event.listen(made.engine.sync_engine, "before_cursor_execute", lambda *args: sent.append(args[2]))
    await asked(made, lambda db, catalog: catalog.warm(db, "audit"))
    assert len(sent) == {"sqlite": 1 + 3, "postgresql": (2 + 1) + (2 + 6), "mariadb": 4}[made.name]


def test_connections_that_have_the_catalog_forget_it_too() -> None:
    """A transaction that changes tables has its own; when it is over, each connection of the engine asks anew."""
    engine = sa.create_engine("sqlite://", poolclass=sa.QueuePool)
    with engine.connect() as one, engine.connect() as other:
        shared = catalog_module.catalog_of(one)
        assert catalog_module.catalog_of(other) is shared
        catalog_module.forget(one, "CREATE TABLE t (id INTEGER)")
        between = catalog_module.catalog_of(other)
        assert len({shared, catalog_module.catalog_of(one), between}) == 3
        catalog_module.transaction_commits(one.info)
        assert catalog_module.catalog_of(other) is catalog_module.catalog_of(one)
        assert catalog_module.catalog_of(other) not in (shared, between)
    engine.dispose()


# --- PostgreSQL alone


@pytest.fixture
async def postgres(postgresql: Database) -> Database:
    """Prepare PostgreSQL with all of it."""
    async with postgresql.engine.begin() as connection:
        for statement in (*TABLES, *POSTGRESQL):
            await connection.exec_driver_sql(statement)
    return postgresql


async def test_functions_of_postgresql(postgres: Database) -> None:
    """A volatile function writes what its text names, a stable one only reads, an immutable one does neither."""

    def ask(db: sa.Connection, catalog: Catalog) -> list[Any]:
        return [catalog.function(db, name) for name in ("close_all", "total", "twice", "lower", "no_such")]

    closes, total, twice, lower, unknown = await asked(postgres, ask)
    assert closes.writes == {"people"}
    assert total.writes == set()
    assert total.reads == {"org_names", "orgs"}
    assert twice.reads == twice.writes == lower.reads == set()
    assert unknown.reads is None


async def test_a_partition_holds_rows_of_its_table(postgres: Database) -> None:
    """A write to one reaches the other, in both directions."""
    facts = await asked(postgres, lambda db, catalog: (catalog.facts(db, "days"), catalog.facts(db, "days_1")))
    assert [each.relatives for each in facts] == [{"days_1"}, {"days"}]


async def test_the_parents_of_a_child_hold_its_rows(postgres: Database) -> None:
    """A write to one parent reaches the other."""
    async with postgres.engine.begin() as connection:
        for name, of in (("ships", ""), ("houses", ""), ("houseboats", "INHERITS (ships, houses)")):
            await connection.exec_driver_sql(f"CREATE TABLE {name} ({'' if of else 'id INTEGER'}) {of}")
    facts = await asked(postgres, lambda db, catalog: catalog.facts(db, "ships"))
    assert facts.relatives == {"houses", "houseboats"}


async def test_a_table_with_versions_is_a_table(mariadb: Database) -> None:
    """A write to it reaches no other table."""
    async with mariadb.engine.begin() as connection:
        await connection.exec_driver_sql("CREATE TABLE kept (id INTEGER PRIMARY KEY) WITH SYSTEM VERSIONING")
    facts = await asked(mariadb, lambda db, catalog: catalog.facts(db, "kept"))
    assert (facts.reads, facts.writes, facts.may_lock) == (frozenset(), frozenset(), True)


async def test_a_materialized_view_may_hold_anything(postgres: Database) -> None:
    """It changes by a REFRESH alone, unless the user declares what is enough."""
    tags, coarse = await asked(postgres, lambda db, catalog: catalog.besides(db, depending("totals")))
    assert tags == {ANYTHING}
    assert coarse == ("anything: the tables that totals reads are not known",)

    declare_views({"totals": frozenset({"orgs"})})
    try:
        tags, _ = await asked(postgres, lambda db, catalog: catalog.besides(db, depending("totals")))
    finally:
        catalog_module._views.clear()
    assert tags == {table_tag("orgs")}


async def test_a_question_without_an_answer_is_asked_again(postgres: Database) -> None:
    """A transaction that has failed answers none. What followed from that holds for it alone."""

    def ask(db: sa.Connection, catalog: Catalog) -> tuple[set[str], bool]:
        catalog.names(db)
        with pytest.raises(ProgrammingError):
            db.exec_driver_sql("SELECT nothing")
        failed = [set(catalog.besides(db, depending("large"))[0]), catalog.known("large").reads]
        assert failed == [{ANYTHING}, None]
        db.rollback()
        return set(catalog.besides(db, depending("large"))[0]), catalog.known("large").reads is not None

    assert await asked(postgres, ask) == ({table_tag(each) for each in ("orgs", "people", "org_names")}, True)


async def test_a_policy_reads_tables(postgres: Database) -> None:
    """Row-level security hides rows because of other tables."""
    facts = await asked(postgres, lambda db, catalog: catalog.facts(db, "secrets"))
    assert facts.reads == frozenset({"orgs"})


async def test_a_user_without_the_right_to_lock_does_not_look(postgres: Database) -> None:
    """SELECT ... FOR UPDATE needs the right to update; without it the transaction would fail."""
    async with postgres.engine.begin() as connection:
        await connection.exec_driver_sql("DROP ROLE IF EXISTS fastrdb_reader")
        await connection.exec_driver_sql("CREATE ROLE fastrdb_reader")
        await connection.exec_driver_sql("GRANT USAGE ON SCHEMA public TO fastrdb_reader")
        await connection.exec_driver_sql("GRANT SELECT, DELETE ON orgs TO fastrdb_reader")

    def ask(db: sa.Connection, catalog: Catalog) -> bool:
        db.exec_driver_sql("SET LOCAL ROLE fastrdb_reader")
        return catalog.facts(db, "orgs").may_lock

    try:
        assert not await asked(postgres, ask)
        assert await asked(postgres, lambda db, catalog: catalog.facts(db, "orgs").may_lock)
    finally:
        async with postgres.engine.begin() as connection:
            await connection.exec_driver_sql("DROP OWNED BY fastrdb_reader")
            await connection.exec_driver_sql("DROP ROLE fastrdb_reader")


EXTENSIONS = ("tablefunc", "dblink", "refint", "uuid-ossp", "moddatetime")


@pytest.fixture
async def extended(postgres: Database) -> Database:
    """Add functions in C, which are parts of extensions."""
    async with postgres.engine.begin() as connection:
        there = set(await connection.scalars(sa.text("SELECT name FROM pg_available_extensions")))
        if not there.issuperset(EXTENSIONS):
            missing("PostgreSQL lacks its contrib extensions")
        for name in EXTENSIONS:
            await connection.exec_driver_sql(f'CREATE EXTENSION "{name}"')
        for statement in (
            """CREATE TRIGGER refers BEFORE DELETE ON orgs FOR EACH ROW
            EXECUTE FUNCTION check_foreign_key(1, 'cascade', 'id', 'people', 'org_id')""",
            "CREATE TABLE stamped (id INTEGER, at TIMESTAMP)",
            """CREATE TRIGGER stamps BEFORE UPDATE ON stamped FOR EACH ROW EXECUTE FUNCTION moddatetime(at)""",
            "CREATE FUNCTION own() RETURNS float8 STABLE LANGUAGE c AS '$libdir/tablefunc', 'normal_rand'",
        ):
            await connection.exec_driver_sql(statement)
    return postgres


async def test_a_compiled_function_may_do_anything(extended: Database) -> None:
    """Unless it is immutable, a part of the server, or a part of an extension that is known to touch no table."""

    def ask(db: sa.Connection, catalog: Catalog) -> dict[str, Any]:
        names = ("crosstab", "dblink", "own", "uuid_generate_v4", "lower", "lo_put")
        return {name: catalog.function(db, name) for name in names}

    found = await asked(extended, ask)
    for name in ("crosstab", "dblink", "own", "lo_put"):
        assert found[name].reads is None, name
    assert found["dblink"].writes is found["lo_put"].writes is None
    assert found["uuid_generate_v4"] == found["lower"] == Function()


async def test_a_compiled_trigger_may_do_anything(extended: Database) -> None:
    """One of a known extension may set any column of its row, and writes nothing else."""
    found = await asked(extended, lambda db, catalog: (catalog.facts(db, "orgs"), catalog.facts(db, "stamped")))
    assert [(each.writes, each.changes) for each in found] == [(None, None), (set(), None)]


async def test_a_trigger_calls_the_functions_of_its_own_database(mariadb: Database) -> None:
    """On MariaDB, a name in a body is one of the database that the body lies in."""
    other = f"{mariadb.engine.url.database}_other"
    made = (
        f"CREATE DATABASE {other}",
        f"CREATE TABLE {other}.orgs (id INTEGER)",
        f"CREATE TABLE {other}.audit (id INTEGER)",
        f"CREATE FUNCTION {other}.note() RETURNS INTEGER BEGIN UPDATE audit SET id = 1; RETURN 1; END",
        f"CREATE TRIGGER {other}.noted AFTER UPDATE ON {other}.orgs FOR EACH ROW SET @x = note()",
        f"CREATE TABLE {other}.`a.b` (id INTEGER)",
        f"CREATE TRIGGER {other}.dotted AFTER UPDATE ON {other}.`a.b` FOR EACH ROW SET @x = note()",
    )
    async with mariadb.engine.begin() as connection:
        for statement in made:
            await connection.exec_driver_sql(statement)
    try:
        facts = await asked(mariadb, lambda db, catalog: catalog.facts(db, f"{other}.orgs"))
        assert facts.writes == frozenset({f"{other}.audit"})
        async with opened(mariadb.engine.url.set(database=other)) as database:
            assert (await asked(database, lambda db, catalog: catalog.facts(db, "a.b"))).writes == frozenset({"audit"})
    finally:
        async with mariadb.engine.begin() as connection:
            await connection.exec_driver_sql(f"DROP DATABASE {other}")


async def test_what_stands_in_a_circle_has_all_of_it(postgres: Database) -> None:
    """Each of two that need each other, whichever is asked first."""
    made = (
        """CREATE FUNCTION even(n int) RETURNS bool STABLE LANGUAGE plpgsql AS $$ BEGIN
        PERFORM 1 FROM audit; RETURN n = 0 OR odd(n - 1); END $$""",
        """CREATE FUNCTION odd(n int) RETURNS bool STABLE LANGUAGE plpgsql AS $$ BEGIN
        PERFORM 1 FROM people; RETURN n <> 0 AND (even(n - 1) OR total() > 9); END $$""",
        "CREATE TABLE hidden (id INTEGER)",
        "ALTER TABLE hidden ENABLE ROW LEVEL SECURITY",
        "CREATE POLICY own ON hidden USING (id IN (SELECT id FROM secrets))",
        "CREATE POLICY more ON secrets USING (id IN (SELECT id FROM hidden))",
    )
    async with postgres.engine.begin() as connection:
        await connection.exec_driver_sql("SET check_function_bodies = off")
        for statement in made:
            await connection.exec_driver_sql(statement)

    def ask(db: sa.Connection, catalog: Catalog) -> list[Any]:
        functions = [catalog.function(db, name).reads for name in ("even", "odd")]
        return [*functions, *(catalog.facts(db, name).reads for name in ("hidden", "secrets"))]

    even, odd, hidden, secrets = await asked(postgres, ask)
    assert even == odd == {"audit", "people", "org_names", "orgs"}
    assert hidden == secrets == {"hidden", "secrets", "orgs"}


async def test_tables_whose_names_differ_in_their_case_have_facts_of_their_own(postgres: Database) -> None:
    """Whichever is asked first; a name without quotes, in a text, is the one in small letters."""
    async with postgres.engine.begin() as connection:
        await connection.exec_driver_sql('CREATE TABLE "Orgs" (id INTEGER)')
        await connection.exec_driver_sql('CREATE TABLE "a.B" (id INTEGER)')
        for table in ("Orgs", "a.B"):
            await connection.exec_driver_sql(
                f'CREATE TRIGGER noted AFTER DELETE ON "{table}" FOR EACH ROW EXECUTE FUNCTION wild()'
            )

    def ask(db: sa.Connection, catalog: Catalog) -> list[Any]:
        return [catalog.facts(db, name).writes for name in ("orgs", "ORGS", "Orgs", "a.B", "public.a.B")]

    audit = frozenset({"audit"})
    assert await asked(postgres, ask) == [audit, audit, None, None, None]
