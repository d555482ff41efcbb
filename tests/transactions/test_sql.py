"""The effect of a statement is found from its text, wrong only on the careful side."""

from __future__ import annotations

import pytest

from fastrdb.transactions.sql import Effect, effect, is_rowless, sets_isolation

READS = [
    "SELECT a FROM t",
    "  (SELECT 1) UNION (SELECT 2)",
    "-- a comment\n/* another */ SELECT 1",
    "SELECT count(*), lower(a) FROM t WHERE a IN ($1, $2) AND EXISTS (SELECT 1)",
    "SELECT concat(a, '; ') FROM t",
    "SELECT replace(a, 'insert into', 'x') FROM t",
    "WITH x AS (SELECT a FROM t FOR NO KEY UPDATE) SELECT a FROM x",
    "SAVEPOINT a",
    "RELEASE SAVEPOINT a",
    "XA BEGIN 'x'",
    "SHOW max_connections",
]
WRITES = [
    "/* a comment */ UPDATE t SET a = 1",
    "WITH x AS (UPDATE t SET a = 1 RETURNING a) SELECT a FROM x",
    "EXPLAIN ANALYZE DELETE FROM t",
    "SELECT a INTO x FROM t",
    "SELECT 1; UPDATE t SET a = 1",
    r"SELECT 'a\b' ; UPDATE t SET a = 'b'",
    "/* /* */ SELECT */ UPDATE t SET a = 1",
    "SELECT $$it's$$; UPDATE t SET a = 'x'",
    "SELECT a AS \"it's\"; UPDATE t SET a = 'x'",
    "SET LOCAL role = 'x'",
]
ENDS = ["COMMIT", "commit and chain", "END", "SELECT 1; COMMIT", "COMMIT PREPARED 'x'", "XA  COMMIT 'x'"]
ENDS += ["ROLLBACK", "ROLLBACK TO SAVEPOINT a", "ABORT", "XA ROLLBACK 'x'", "PREPARE TRANSACTION 'x'"]
IMPLICIT = ["CREATE TABLE x (a int)", "TRUNCATE t", "CALL p()", "BEGIN", "SET autocommit = 1", "LOCK TABLES t WRITE"]


ROWLESS = [
    ("postgresql", "BEGIN"),
    ("postgresql", "BEGIN ISOLATION LEVEL SERIALIZABLE"),
    ("mariadb", "START TRANSACTION READ ONLY"),
    ("postgresql", "SET LOCAL app.tenant = 'update'"),
    ("mariadb", "SET @x = coalesce(@x, 0) + 1"),
    ("mariadb", "SET STATEMENT max_statement_time=10 FOR SELECT a FROM t"),
    ("postgresql", "CREATE TEMP TABLE x AS SELECT lower(a) FROM t"),
    ("postgresql", "CREATE TABLE x (a int CHECK (a > own(1)), b int REFERENCES t ON DELETE CASCADE)"),
    ("mariadb", "CREATE TABLE x (a datetime ON UPDATE now())"),
    ("mariadb", "CREATE DEFINER=root@localhost TRIGGER r AFTER UPDATE ON t FOR EACH ROW DELETE FROM u"),
    ("postgresql", "CREATE FUNCTION f() RETURNS int LANGUAGE sql AS 'UPDATE t SET a = 1 RETURNING a'"),
    ("postgresql", "CREATE VIEW v AS SELECT own(a) FROM t"),
    ("postgresql", "CREATE INDEX i ON t (own(a))"),
    ("postgresql", "DECLARE c CURSOR FOR SELECT a FROM t FOR UPDATE"),
    ("postgresql", "GRANT INSERT, UPDATE ON t TO x"),
    ("postgresql", "ANALYZE t (a, b)"),
]
RUNNING = [
    ("mariadb", "BEGIN NOT ATOMIC UPDATE t SET a = 1; END"),
    ("mariadb", "BEGIN NOT ATOMIC SELECT own(1); END"),
    ("mariadb", "SET STATEMENT max_statement_time=10 FOR UPDATE t SET a = 1"),
    ("mariadb", "SET STATEMENT max_statement_time=10 FOR SELECT own(1)"),
    ("mariadb", "SET @x = own(1)"),
    ("mariadb", "ANALYZE SELECT own(1)"),
    ("mariadb", "CREATE TABLE x (a int) SELECT own(1) AS a"),
    ("postgresql", "CREATE TABLE x AS WITH q AS (DELETE FROM t RETURNING *) SELECT * FROM q"),
    ("postgresql", "CREATE TABLE x AS SELECT own(1)"),
    ("postgresql", "CREATE TABLE x AS VALUES (own(1))"),
    ("postgresql", "CREATE TABLE x AS EXECUTE prepared"),
    ("postgresql", "CREATE MATERIALIZED VIEW x AS SELECT own(1)"),
    ("postgresql", "DECLARE c CURSOR FOR SELECT own(1)"),
    ("postgresql", "CREATE POLICY p ON t USING (a > 1)"),
    ("postgresql", "EXPLAIN ANALYZE UPDATE t SET a = 1"),
]


@pytest.mark.parametrize(("dialect", "statement"), ROWLESS)
def test_what_changes_no_row(dialect: str, statement: str) -> None:
    """Neither bodies that run later, nor locks, nor the functions of a definition."""
    assert is_rowless(statement, dialect)


@pytest.mark.parametrize(("dialect", "statement"), RUNNING)
def test_what_may_run_a_write(dialect: str, statement: str) -> None:
    """A block, a query or an expression inside of a statement whose first word changes no row."""
    assert not is_rowless(statement, dialect)


@pytest.mark.parametrize("statement", READS)
def test_what_reads(statement: str) -> None:
    """Comments, parentheses, literals and locks make no write of it."""
    assert effect(statement, "postgresql") is Effect.NOTHING
    assert effect(statement, "mysql") is Effect.NOTHING


@pytest.mark.parametrize("statement", WRITES)
def test_what_writes(statement: str) -> None:
    """None of these hides a write; an unknown statement is a write."""
    assert effect(statement, "postgresql") is Effect.WRITES


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT writer($1) AS a",
        'SELECT "count"(a) FROM t',
        "SELECT own . count(a) FROM t",
        "SELECT $$it's$$, writer($1), 'x'",
    ],
)
def test_what_calls(statement: str) -> None:
    """A function of unknown name, or of a schema, may do anything."""
    assert effect(statement, "postgresql") is Effect.CALLS


@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL statement_timeout = '5s'",
        "SET LOCAL lock_timeout TO 500",
        "set session idle_in_transaction_session_timeout = 0",
        "RESET statement_timeout",
        "SET LOCAL work_mem = '64MB'",
        "SET application_name = 'worker 7'",
        "SET max_execution_time=1000",
        "SET @@session.innodb_lock_wait_timeout = 5",
        "PRAGMA busy_timeout = 5000",
        "SET LOCAL statement_timeout = 1; SELECT 1",
    ],
)
def test_setting_that_changes_no_row_is_no_write(statement: str) -> None:
    """A setting of how long a statement may take, or how it is planned, has no effect on what is stored."""
    assert effect(statement, "postgresql") is Effect.NOTHING
    assert effect(statement, "mysql") is Effect.NOTHING


@pytest.mark.parametrize(
    "statement",
    [
        "SET LOCAL search_path = tenant_b",
        "SET LOCAL app.tenant = 'b'",
        "SET ROLE other",
        "SET TIME ZONE 'UTC'",
        "SET LOCAL statement_timeout = 1, search_path = x",
        "SET max_execution_time = (SELECT writer())",
        "SET statement_timeout = 1; UPDATE t SET a = 1",
        "RESET ALL",
    ],
)
def test_setting_that_may_change_what_is_read_counts_as_a_write(statement: str) -> None:
    """An entry was stored under other settings: the cache must not be read."""
    assert effect(statement, "postgresql") is Effect.WRITES
    assert effect(statement, "mysql") is Effect.WRITES or "RESET" in statement


@pytest.mark.parametrize("statement", ENDS)
def test_what_controls_the_transaction(statement: str) -> None:
    """COMMIT, ROLLBACK and their like do in every database."""
    assert effect(statement, "postgresql") is Effect.CONTROLS
    assert effect(statement, "mysql") is Effect.CONTROLS


@pytest.mark.parametrize("statement", IMPLICIT)
def test_what_commits_implicitly(statement: str) -> None:
    """MariaDB commits before what it cannot roll back; PostgreSQL does not."""
    assert effect(statement, "mariadb") is Effect.CONTROLS
    assert effect(statement, "postgresql") < Effect.CONTROLS


def test_what_begins() -> None:
    """The BEGIN of SQLAlchemy's recipe for SQLite is not a write; one that names an isolation level may be anything."""
    assert effect("BEGIN IMMEDIATE", "sqlite") is Effect.NOTHING
    assert effect("BEGIN ISOLATION LEVEL SERIALIZABLE", "postgresql") is Effect.WRITES
    assert sets_isolation("/* x */ SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE")
    assert not sets_isolation("SET search_path = x")
