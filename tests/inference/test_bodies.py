"""The texts of triggers and functions are split by the rules of each database, and common ones are read exactly."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from fastrdb.inference.bodies import NO_FUNCTION, UNKNOWN_FUNCTION, Function, columns_set_in, facts_in
from fastrdb.inference.lexer import BACKSLASHES, calls, tokens

READ: dict[str, list[tuple[str, str, str]]] = {
    # the text, the mode, and the names in it
    "postgresql": [
        ("a 'b' E'\\'c' d", "", "a d"),
        ("a '\\' b", "", "a b"),
        ("a '\\' b' c", BACKSLASHES, "a c"),
        ("a 'it''s' b", "", "a b"),
        ("a $$it's$$ b $x_1$ $$ ' $x_1$ c", "", "a b c"),
        ("a$b$c d$$", "", "a$b$c d$$"),
        ('a "it\'s" "a--b" "C""D"', "", "a it's a--b C\"D"),
        ("a /* b /* c */ it's */ d -- e's\nf", "", "a d f"),
        ("a 1FROM b 1..2 1.5e3c", "", "a from b c"),
        ("U&'it\\0027s' B'1' x", "", "x"),
        ("ärger.Über $1 :x", "", "ärger über x"),
    ],
    "mariadb": [
        ("a 'it\\'s' \"b\\\"c\" d", "", 'a b\\"c d'),
        ("a '\\' b \"c\\\" d", "NO_BACKSLASH_ESCAPES", "a b c\\ d"),
        ('a "b\\" c', "ANSI_QUOTES", "a b\\ c"),
        ("a # it's\nb -- it's\nc--it -- ", "", "a b c it"),
        ("a /* it's */ b /*! c */ d /*+ e */", "", "a b c d"),
        ("`a``b` 1st.2nd", "", "a`b 1st 2nd"),
    ],
    "sqlite": [
        ("a [it's] `b'c` \"d'e\" 'f' -- g'\nh /* i'", "", "a it's b'c d'e h"),
    ],
}
UNREAD = {
    "postgresql": [
        "'a",
        'a "b',
        "/* a /* b */",
        "$$a",
        "$a$ $b$",
        "E'\\'",
        'U&"d\\0061ta"',
        "a" * 64,
        '"' + "ä" * 40 + '"',
    ],
    "mariadb": ["/*!50001 a */", "/*M! a */", "'a\\'", "`a", "/* a", '"a'],
    "sqlite": ["'a", '"a', "`a"],
}


@pytest.mark.parametrize(("dialect", "case"), [(dialect, case) for dialect, cases in READ.items() for case in cases])
def test_each_database_has_its_own_quotes_and_comments(dialect: str, case: tuple[str, str, str]) -> None:
    """Names are found, and nothing of a literal or comment."""
    text, modes, names = case
    found = tokens(text, dialect, modes)
    assert found is not None
    assert " ".join(token.text for token in found if token.is_name) == names
    assert text[: found[-1].end].strip()


@pytest.mark.parametrize(("dialect", "text"), [(dialect, text) for dialect, texts in UNREAD.items() for text in texts])
def test_a_text_without_an_end_is_not_read(dialect: str, text: str) -> None:
    """A guess could take a name for a part of a string, or a name that the database cuts for the whole."""
    assert tokens(text, dialect) is None
    assert facts_in(text, {}, lambda name: Function(), dialect) is UNKNOWN_FUNCTION
    assert columns_set_in(text, dialect) is None


def test_calls_have_their_schema_and_the_word_before() -> None:
    """A procedure of MariaDB needs no parentheses."""
    found = tokens('SELECT f(x), a . "B" (y); INSERT INTO t (z) SELECT t.w; CALL p; CALL s.q;', "mariadb")
    assert [tuple(each) for each in calls(found or ())] == [
        ("f", "select", True),
        ("a.b", "", False),
        ("t", "into", True),
        ("p", "call", True),
        ("s.q", "call", False),
    ]


def test_a_function_that_has_the_name_of_a_table_counts() -> None:
    """A table before its columns does not."""
    tables = {"orders": [("public", "orders")], "notes": [("public", "notes")]}
    calling, inserting = "PERFORM orders(1)", "INSERT INTO orders (id) SELECT 1"
    by_name = {"orders": Function(frozenset({"notes"}), frozenset({"stamps"}))}

    def found(text: str, function: Callable[[str], Function]) -> Function:
        return facts_in(text, tables, function, "postgresql")

    both = frozenset({"orders", "notes", "stamps"})
    assert found(calling, by_name.__getitem__) == Function(both, frozenset({"stamps"}))
    assert found(calling, lambda name: UNKNOWN_FUNCTION) is UNKNOWN_FUNCTION
    assert found("WITH orders (id) AS (SELECT 1) x", lambda name: NO_FUNCTION).reads == frozenset({"orders"})
    assert found(inserting, by_name.__getitem__) == Function(frozenset({"orders"}))


EXACT = {
    ("postgresql", "BEGIN NEW.updated_at := now(); RETURN NEW; END"): {"updated_at"},
    ("postgresql", 'BEGIN IF NEW.a = OLD.a THEN NEW."Slug" = lower(NEW.name); END IF; RETURN NEW; END'): {"Slug"},
    ("postgresql", "BEGIN INSERT INTO audit (id) VALUES (NEW.id) RETURNING id INTO n; RETURN NEW; END"): set(),
    ("postgresql", "BEGIN SELECT x INTO v FROM t WHERE t.id = NEW.id; NEW.x := v; RETURN NEW; END"): {"x"},
    ("postgresql", "BEGIN IF NEW IS DISTINCT FROM OLD THEN NEW.n = 1; END IF; RETURN NEW; END"): {"n"},
    ("postgresql", "BEGIN IF (OLD IS DISTINCT FROM NEW) OR OLD <> NEW THEN RAISE 'x'; END IF; RETURN NULL; END"): set(),
    (
        "postgresql",
        "BEGIN INSERT INTO h SELECT NEW.*; PERFORM f(to_jsonb(NEW), 1); RETURN COALESCE(NEW, OLD); END",
    ): set(),
    ("postgresql", "BEGIN UPDATE t SET a = NEW.a, b = 1 WHERE id = NEW.id AND NEW.c = t.c; RETURN NEW; END"): set(),
    ("postgresql", "DECLARE old_row orgs := NEW; BEGIN NEW.tags[1] := 'x'; NEW.at.x := 1; RETURN NEW; END"): {
        "tags",
        "at",
    },
    ("postgresql", "BEGIN PERFORM 1 FROM t WHERE t.id = NEW.id FOR UPDATE; RETURN OLD; END"): set(),
    ("mariadb", "SET NEW.a = lower(NEW.b), NEW.c = 1"): {"a", "c"},
    ("mariadb", "BEGIN IF NEW.a = OLD.a THEN SET NEW.b = (SELECT max(x) FROM t WHERE y = NEW.c); END IF; END"): {"b"},
    ("mariadb", "BEGIN GET DIAGNOSTICS CONDITION 1 NEW.a = MESSAGE_TEXT; END"): {"a"},
}


@pytest.mark.parametrize(("dialect", "body"), EXACT)
def test_columns_that_a_trigger_only_reads_stay_known(dialect: str, body: str) -> None:
    """The rows of such a column are still named by its values."""
    assert columns_set_in(body, dialect) == frozenset(EXACT[dialect, body])
