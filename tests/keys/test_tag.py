"""Tags and the names of what a write reaches: literal prefixes of tags, without collisions."""

from __future__ import annotations

from datetime import UTC, date, datetime, time
from decimal import Decimal
from enum import Enum, StrEnum
from itertools import product
from uuid import UUID

import pytest

from fastrdb.keys import ANYTHING, EVERYTHING, Image, bounded, hashed, hiding, row_tag, table_tag, value_text
from fastrdb.orm import readable


class _Kind(Enum):
    ONE = "one"


class _Color(StrEnum):
    RED = "red"


def test_tag_of_table_and_row_is_written_in_lower_case() -> None:
    """A table's tag is its name, a row's tag names one value of one column."""
    assert table_tag("Users") == "users\0"
    assert row_tag("Users", "Org_ID", 5) == "users:org_id=5\0"
    assert row_tag("users", "org_id", None) == "users:org_id=%none\0"


@pytest.mark.parametrize(
    ("one", "other"),
    [(1, True), (0, False), (5, "5"), ("red", _Color.RED), ("one", _Kind.ONE), ("a" * 100, "a" * 100)],
)
def test_equal_values_have_one_text(one: object, other: object) -> None:
    """A reader and a writer may give the same value as different types."""
    assert value_text(one) == value_text(other)


@pytest.mark.parametrize("value", [1.5, Decimal(1), datetime.now(UTC), time(1), b"x", [1], {}, object()])
def test_value_that_a_database_may_round_has_no_tag(value: object) -> None:
    """Where equality in the database may differ from equality here, there is no tag of the row."""
    assert row_tag("t", "c", value) is None


def test_long_value_is_replaced_by_digest() -> None:
    """A text of more than 64 bytes is a digest, which no short text reads like."""
    text = value_text("x" * 65)
    assert text is not None
    assert len(text) < 64
    assert text.startswith("%h")
    assert value_text("x" * 64) == "x" * 64
    assert value_text(text) != text
    assert text != value_text("x" * 66)


def test_names_and_values_with_marks_in_them_do_not_collide() -> None:
    """Each of `\\0`, `:`, `=`, `*` and `%` in a table, a column or a value gives a tag of its own."""
    parts = ["a", "a:b", "a=b", "a\0b", "*", "a%3Ab", "b"]
    tags = [row_tag(table, column, value) for table, column, value in product(parts, repeat=3)]
    tags += [table_tag(table) for table in parts]
    assert len(set(tags)) == len(tags)
    assert ANYTHING not in tags


def test_row_write_reaches_its_table_and_its_values() -> None:
    """The names of a known row are its table, the values before and after, and the tag of anything."""
    image = Image("Users", {"ID": frozenset({"7"}), "org_id": frozenset({"2", "1"}), "name": None})
    assert image.names() == [ANYTHING, "users\0", "users:id=7\0", "users:org_id=1\0", "users:org_id=2\0", "users:name="]
    assert image.names(["id", "email"]) == [ANYTHING, "users\0", "users:id=7\0", "users:email="]


def test_write_of_any_rows_reaches_all_tags_of_the_table() -> None:
    """Unknown rows reach each tag of the table and of no other; an unknown table reaches everything."""
    assert Image("users").names() == [ANYTHING, "users\0", "users:"]
    assert Image(None).names() == [EVERYTHING]
    assert not any("users_old:id=1\0".startswith(name) for name in Image("users").names())


def test_image_hits_the_tags_that_its_names_reach() -> None:
    """The names in Redis and the comparison in this process have the same reach."""
    images = [
        Image(None),
        Image("a"),
        Image("A", {"x": frozenset({"1", "2"})}),
        Image("a", {"x": None, "Y": frozenset({"3"})}),
        Image("b", {}),
    ]
    tags = [ANYTHING, table_tag("a"), table_tag("b"), table_tag("ab")]
    tags += [tag for t, c, v in product("ab", "xyz", (1, 2, 3, 12)) if (tag := row_tag(t, c, v)) is not None]
    for image, tag in product(images, tags):
        assert image.hits(tag) is any(tag.startswith(name) for name in image.names("xyz")), (image, tag)


def test_many_names_become_the_table() -> None:
    """A bulk write names its table instead of each row, and everything instead of very many tables."""
    rows = Image("a", {"id": frozenset(map(str, range(100)))}).names()
    few = Image("b", {"id": frozenset({"1"})}).names()
    assert bounded([*rows, *few], 64) == [ANYTHING, "b\0", "b:id=1\0", "a\0", "a:"]
    assert bounded(few, 64) == few
    assert bounded([name for n in range(50) for name in Image(f"t{n}").names()], 64) == [EVERYTHING]


def test_tag_of_uuid_and_date_is_the_canonical_text() -> None:
    """The text is that of keys, so that a person can read it."""
    assert value_text(UUID(int=1)) == "00000000-0000-0000-0000-000000000001"
    assert value_text(date(2026, 1, 2)) == "2026-01-02"


def test_hidden_tag_stays_as_it_is_when_hidden_again() -> None:
    """Tags that were read from Redis go back there, with those of a load around."""
    seal = hashed(b"secret", "Cache")
    hide = hiding(seal)
    tag = row_tag("users", "email", "ada@x.org")
    assert tag is not None
    hidden = hide(tag)
    assert "ada" not in hidden
    assert hide(hidden) == hidden
    assert hidden.startswith(hide("users:email="))
    assert hide(table_tag("users")) == table_tag("users")
    assert Image("users", {"email": frozenset({"bob"})}).hits(hidden)
    assert readable(hidden) == "users where email = (hidden)"
