"""The tables and functions that hand-written SQL names, with sqlglot and without."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fastrdb.inference import text as texts
from fastrdb.inference.text import functions_in, named_in, reads_nothing

QUERIES: dict[str, tuple[set[str], set[str], bool]] = {
    "SELECT * FROM users WHERE id = :id": ({"users"}, set(), True),
    "SELECT u.x FROM app.users u LEFT JOIN orders o ON o.user_id = u.id": ({"app.users", "orders"}, set(), True),
    "WITH recent AS (SELECT * FROM orders) SELECT * FROM recent JOIN users USING (id)": (
        {"orders", "users", "recent"},  # a table may have the name of a CTE
        set(),
        True,
    ),
    "WITH users AS (SELECT * FROM users) SELECT * FROM users": ({"users"}, set(), True),
    "SELECT (SELECT max(x) FROM prices) FROM t WHERE id IN (SELECT id FROM bans)": (
        {"prices", "t", "bans"},
        set(),
        True,
    ),
    "SELECT updated_at FROM notebook": ({"notebook"}, set(), True),
    "UPDATE users SET name = :n FROM orgs WHERE orgs.id = users.org_id": ({"orgs"}, {"users"}, True),
    "INSERT INTO archive SELECT * FROM users": ({"users"}, {"archive"}, True),
    "INSERT INTO users (id, name) VALUES (1, 'x')": (set(), {"users"}, True),
    "WITH gone AS (DELETE FROM queue RETURNING *) INSERT INTO done SELECT * FROM gone": (
        {"gone"},
        {"queue", "done"},
        True,
    ),
    "MERGE INTO t USING s ON t.id = s.id WHEN MATCHED THEN UPDATE SET x = s.x": ({"s"}, {"t"}, True),
    "UPDATE a SET x = 1; DELETE FROM b": (set(), {"a", "b"}, True),
    "CALL refresh_all()": (set(), set(), False),
    "COPY users FROM STDIN": (set(), set(), False),
    "TRUNCATE users": (set(), set(), False),
}


@pytest.mark.parametrize("text", QUERIES)
def test_sqlglot_takes_a_text_apart(text: str) -> None:
    """Names of CTEs are no tables, nor are words inside of names; what it does not know is not sure."""
    pytest.importorskip("sqlglot")
    reads, writes, sure = QUERIES[text]
    found = named_in(text, "postgresql")
    assert found.sure is sure
    if sure:
        assert (found.reads, found.writes) == (frozenset(reads), frozenset(writes))


def test_functions_of_a_text_are_named() -> None:
    """The catalog says what these read."""
    pytest.importorskip("sqlglot")
    assert named_in("SELECT * FROM monthly_report(:m)", "postgresql").functions == {"monthly_report"}


# --- without sqlglot


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Take sqlglot away."""
    named_in.cache_clear()
    monkeypatch.setattr(texts, "_parser", lambda: None)
    yield
    named_in.cache_clear()


TARGETS = {
    "UPDATE users SET name = 'x'": "users",
    'update only "App"."Users" u set name = 1': "App.Users",
    "INSERT INTO users (id, name) VALUES (1, 'X')": "users",
    "INSERT INTO users (id) SELECT 1 ON CONFLICT (id) DO UPDATE SET name = 'x'": "users",
    "INSERT OR REPLACE INTO users VALUES (1)": "users",
    "REPLACE INTO users VALUES (1)": "users",
    "DELETE FROM app.users WHERE id = 1;": "app.users",
    "UPDATE users SET name = $$it's$$ -- and more": "users",
    "/* of today */ UPDATE users SET name = E'\\''": "users",
    "DELETE FROM users USING orgs WHERE orgs.id = users.org_id": "users",
}


@pytest.mark.parametrize("text", TARGETS)
@pytest.mark.usefixtures("plain")
def test_a_plain_target_is_found(text: str) -> None:
    """The first words of a write name its table."""
    found = named_in(text, "postgresql")
    assert found.sure
    assert not found.reads
    assert found.writes == {TARGETS[text]}
    assert found.functions <= {"conflict"}  # which the catalog has for no function


@pytest.mark.parametrize(
    "text",
    [
        "SELECT * FROM users",
        "UPDATE users, orgs SET users.name = orgs.name",
        "UPDATE users JOIN orgs ON true SET users.name = 1",
        "UPDATE users SET name = 1; DELETE FROM orgs",
        "INSERT INTO a WITH x AS (DELETE FROM b RETURNING 1) SELECT * FROM x",
        "UPDATE users SET name = 'x",
        "UPDATE users SET name = $$it's$$; DELETE FROM orgs WHERE name = 'x'",
        "WITH x AS (DELETE FROM a RETURNING 1) DELETE FROM b",
        "DELETE a, b FROM a JOIN b",
        "CALL f()",
    ],
)
@pytest.mark.usefixtures("plain")
def test_what_is_not_plain_is_not_sure(text: str) -> None:
    """It may touch anything."""
    assert not named_in(text, "postgresql").sure


@pytest.mark.usefixtures("plain")
def test_functions_of_a_plain_write_are_named() -> None:
    """A function may write as well."""
    assert named_in("INSERT INTO users (id) SELECT make_user(1)", "postgresql").functions == {"make_user"}


@pytest.mark.parametrize("reader", ["sqlglot", "plain"])
@pytest.mark.parametrize(
    "text",
    [
        "UPDATE IGNORE `users` SET name = 'x'",
        "UPDATE LOW_PRIORITY IGNORE users SET name = 'x'",
        "INSERT DELAYED INTO users (id) VALUES (1)",
        "INSERT HIGH_PRIORITY IGNORE INTO users (id) VALUES (1)",
        "REPLACE DELAYED INTO users (id) VALUES (1)",
        "DELETE LOW_PRIORITY FROM users WHERE id = 1 # and more",
    ],
)
def test_modifiers_are_no_tables(text: str, reader: str, request: pytest.FixtureRequest) -> None:
    """MariaDB has them between the verb and the table."""
    if reader == "plain":
        request.getfixturevalue("plain")
    found = named_in(text, "mariadb")
    assert found.sure
    assert found.writes == {"users"}


@pytest.mark.parametrize(
    ("text", "dialect"),
    [
        ("UPDATE users /*! , orgs */ SET orgs.name = 'x'", "mariadb"),
        ("SELECT * FROM users /*M!100100 JOIN orgs */", "mariadb"),
        ("SELECT * FROM users WHERE id IN orgs", "sqlite"),
        ("SELECT * FROM users WHERE id NOT IN main.orgs", "sqlite"),
        ("SELECT 'open", "postgresql"),
    ],
)
def test_what_hides_a_table_is_not_sure(text: str, dialect: str) -> None:
    """A comment that is executed, a table behind IN, and quotes that are not closed."""
    assert not named_in(text, dialect).sure


CALLED = {
    "SELECT first(1), list(x), month(y), json_table(z) FROM t": {"first", "list", "month", "json_table"},
    "WITH RECURSIVE f(a) AS (SELECT 1), g(b) AS (SELECT 2) SELECT * FROM f, g h(c) WHERE f.a IN (1)": set(),
    'WITH f(a) AS (SELECT 1) SELECT f(a), "coalesce"(a) FROM f': {"f", "coalesce"},
    "INSERT INTO f (a) SELECT f(1) FROM app.f": {"f"},
    "INSERT INTO app.f (a) VALUES (app.g(1))": {"app.g"},
    "SELECT cast(x AS numeric(10, 2)), 'g(1)' FROM t AS u(a, b) -- h(1)": {"cast"},
}


@pytest.mark.parametrize("text", CALLED)
def test_each_function_of_a_text_is_named(text: str) -> None:
    """Whatever sqlglot has of that name; no name of a CTE, an alias or a table in front of its columns."""
    pytest.importorskip("sqlglot")
    assert named_in(text, "postgresql").functions == CALLED[text]


def test_fragments() -> None:
    """A fragment of an expression reads no table unless it has a SELECT; a text inside of quotes is no word."""
    assert reads_nothing("id = 5 AND name = 'from here'", "sqlite")
    assert not reads_nothing("(SELECT max(id) FROM users)", "sqlite")
    assert not reads_nothing("$$it's$$ || (SELECT max(name) FROM users) || 'x'", "postgresql")
    assert not reads_nothing("'x", "postgresql")
    assert not reads_nothing("id IN users", "sqlite")
    assert reads_nothing("position('x' IN name)", "postgresql")


CALLS: dict[tuple[str, str], set[str]] = {
    ("sqlite", "nullif(a, f(b), 'g(') IN (1)"): {"nullif", "f"},
    ("postgresql", "total(a)"): {"total"},
    ("postgresql", "$$it's$$ || f(1) || 'x' || \"lower\"(a) || s . g (b)"): {"f", "lower", "s.g"},
    ("mariadb", "\"it's\" || f(1) # it's\n || g(1)"): {"f", "g"},
}


@pytest.mark.parametrize(("dialect", "text"), CALLS)
def test_functions_are_named(dialect: str, text: str) -> None:
    """Words that no function has for a name are left out."""
    assert functions_in(text, dialect) == frozenset(CALLS[dialect, text])
    assert functions_in(f"{text}'", dialect) is None
