"""Keys: what a pattern may say, how values are written, and that no two different calls share a key."""

from __future__ import annotations

import enum
import sys
import uuid
from collections import OrderedDict
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Annotated, Any, Literal, NewType

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from fastrdb.errors import KeyValueError, PatternError
from fastrdb.keys import MISSING, Pattern
from fastrdb.keys.encoding import NONE, forms_of
from fastrdb.keys.pattern import fit
from tests.keys.texts import encode_value


class Colour(enum.StrEnum):
    RED = "red"


class Level(enum.IntEnum):
    LOW = 1


class Odd(enum.Enum):
    NOTHING = None
    ONE = 1
    TEXT = "1"
    EMPTY = ""
    EXACT = Decimal(1)


@dataclass
class Point:
    x: Any
    y: Any = 0


@dataclass
class Place:
    x: Any
    y: Any = 0


class Filter(BaseModel):
    name: str | None = None
    limit: int = 10


class Base(DeclarativeBase):
    pass


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)


UserId = NewType("UserId", int)
NOON = datetime.fromisoformat("2020-01-01T12:00:00")

TEXT = st.text(alphabet=st.one_of(st.sampled_from("a1:?&=%*[]{}\\ \n-éT.s\ud800"), st.characters()), max_size=6)
NUMBERLIKE = st.sampled_from(
    ["1", "-1", "1.0", "true", "None", "nan", "inf", "2020-01-01", "10:00:00", "%i1", "0x1", ""]
)
SCALARS = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-3, 3),
    st.sampled_from([0.0, 1.0, -1.5, 1e300, float("inf"), float("nan")]),
    TEXT,
    NUMBERLIKE,
    st.just(uuid.UUID(int=1)).flatmap(lambda value: st.sampled_from([value, str(value), value.hex, value.bytes])),
    st.sampled_from([date(2020, 1, 1), NOON, NOON.replace(tzinfo=UTC), time(10), "2020-01-01T12:00:00"]),
    st.sampled_from([Decimal(1), Decimal("1.0"), timedelta(seconds=1), b"", b"1", *Odd]),
)
HASHABLE = SCALARS.filter(lambda value: repr(value) != "nan")
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=2),
        st.lists(inner, max_size=2).map(tuple),
        st.sets(HASHABLE, max_size=2),
        st.frozensets(HASHABLE, max_size=2),
        st.dictionaries(st.one_of(st.integers(0, 2), TEXT), inner, max_size=2),
        st.builds(Point, inner, inner),
        st.builds(Place, inner, inner),
    ),
    max_leaves=4,
)
DECLARED = st.sampled_from(
    [
        MISSING,
        Any,
        str,
        int,
        bool,
        float,
        bytes,
        date,
        datetime,
        uuid.UUID,
        Decimal,
        str | None,
        int | str,
        Odd,
        Odd | None,
        list[str],
        list[int] | None,
        tuple[int, ...],
        list[Odd],
        list[bytes],
        dict[str, int],
        dict[int, str],
        set[str],
        Point,
    ]
)


def identity(value: Any) -> Any:
    """Return what makes two values the same: type and content, all the way down.

    This shares no code with the package.
    """
    if isinstance(value, (list, tuple)):
        return (type(value), tuple(identity(each) for each in value))
    if isinstance(value, (set, frozenset)):
        return (type(value), tuple(sorted(repr(identity(each)) for each in value)))
    if isinstance(value, dict):
        return (dict, tuple((identity(name), identity(each)) for name, each in value.items()))
    if isinstance(value, (Point, Place)):
        return (type(value), identity(value.x), identity(value.y))
    return (type(value), repr(value))


@settings(max_examples=500)
@given(VALUES, VALUES, DECLARED)
def test_equal_text_means_equal_value(first: Any, second: Any, declared: Any) -> None:
    """Whatever is declared, two texts are equal if and only if their values are equal and of the same type."""
    alike = encode_value(first, declared) == encode_value(second, declared)
    assert (identity(first) == identity(second)) == alike


@settings(max_examples=200)
@given(st.lists(SCALARS, min_size=2, max_size=12), DECLARED)
def test_many_scalars_keep_apart(values: list[Any], declared: Any) -> None:
    """Among many values there are as many texts as there are different values."""
    assert len({encode_value(each, declared) for each in values}) == len({identity(each) for each in values})


@settings(max_examples=300)
@given(TEXT)
def test_text_holds_nothing_that_means_something(text: str) -> None:
    """A declared str is written without separators, wildcards, blanks or controls, and can be sent."""
    written = encode_value(text, str)
    assert not set(":?&=*[]\\{} \n\t\x00\x7f\x85\u2028") & set(written)
    assert written.encode().decode() == written


@pytest.mark.parametrize(
    ("value", "declared", "text"),
    [
        ("john@example.com", str, "john@example.com"),
        ("a.b+c-d_e~f/g@h", MISSING, "a.b+c-d_e~f/g@h"),
        (":?&=%*[]\\{} ", str, "%3A%3F%26%3D%25%2A%5B%5D%5C%7B%7D%20"),
        ("é\u00a0\ud800", str, "é%C2%A0%ED%A0%80"),
        (None, str | None, NONE),
        ("None", str | None, "None"),
        (True, MISSING, "true"),
        (True, int, "1%ab"),
        (1, str, "1%ai"),
        (1, int | None, "1"),
        ("1", MISSING, "1%as"),
        ("a", Any, "a"),
        ("1", object, "1%as"),
        ("1", str, "1"),
        ("1", Annotated[str | None, "doc"], "1"),
        ("1", Literal["1", "2"], "1"),
        (1, UserId, "1"),
        (1.5, float, "1.5"),
        (date(2020, 1, 2), MISSING, "2020-01-02"),
        (datetime(2020, 1, 2, 3, tzinfo=UTC), MISSING, "2020-01-02T03%3A00%3A00+00%3A00"),
        (uuid.UUID(int=1), MISSING, "00000000-0000-0000-0000-000000000001"),
        (Decimal("1.5"), Decimal, "1.5"),
        (Decimal("1.5"), MISSING, "1.5%aq"),
        (Colour.RED, Colour, "red"),
        ("red", Colour, "red%as"),
        (Level.LOW, Level, "1"),
        (Level.LOW, MISSING, "1%ai~tests.keys.test_pattern.Level"),
        (Odd.ONE, Odd, "1"),
        ([1, 2], list[int], "%l[1&2]"),
        ([], list[str], "%l[]"),
        ([""], list[str], "%l[%s]"),
        ({"b": 1, "a": 2}, dict[str, int], "%m[b=1&a=2]"),
        (Point(1, 2), Point, "%o[x=1&y=2]"),
    ],
)
def test_how_values_are_written(value: Any, declared: Any, text: str) -> None:
    """The documented forms, to the letter: keys stay the same from one version to the next."""
    assert encode_value(value, declared) == text


def test_numbers_of_any_size_have_a_form() -> None:
    """An int with more digits than Python prints is written in hexadecimal, and no str reads like it."""
    huge = 10 ** (sys.get_int_max_str_digits() + 1)
    assert encode_value(huge, int) == hex(huge)
    assert encode_value(hex(huge)) == f"{hex(huge)}%as"
    assert forms_of(huge) == (hex(huge),)
    assert [forms_of(each) for each in (0, 1, 2, -1)] == [
        *(("0", "0.0", "false"), ("1", "1.0", "true"), ("2", "2.0"), ("-1", "-1.0")),
    ]


def test_models_tell_given_from_default() -> None:
    """`exclude_unset` sees whether a field was given, so the key does too; and one model is not another."""
    texts = {encode_value(each) for each in (Filter(), Filter(limit=10), Filter(name="a"), {"name": None, "limit": 10})}
    assert len(texts) == 4
    assert encode_value(Filter(name="a"), Filter) == encode_value(Filter(name="a"), Filter)


def test_order_of_a_dict_counts() -> None:
    """A function may go by it, as in ORDER BY."""
    assert encode_value({"a": 1, "b": 2}) != encode_value({"b": 2, "a": 1})
    assert encode_value(OrderedDict(a=1, b=2)) != encode_value(OrderedDict(b=2, a=1))


@pytest.mark.parametrize("value", [object(), User(id=1), User, int, lambda: 1, iter([]), [User(id=1)], {"a": object()}])
def test_values_without_a_form_are_refused(value: Any) -> None:
    """An ORM row, a class, a function: a TypeError that says which type it was."""
    with pytest.raises(KeyValueError, match="cannot be part of a cache key") as caught:
        encode_value(value)
    assert isinstance(caught.value, TypeError)
    assert caught.value.value_type


def test_what_holds_itself_is_refused() -> None:
    """A list that holds itself is a KeyValueError too, not a RecursionError."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(KeyValueError):
        encode_value(value)


def test_recursive_and_strange_declarations_count_as_none() -> None:
    """A declaration that cannot be read counts as none."""
    assert encode_value("1", "SomewhereElse") == encode_value("1") == "1%as"
    assert encode_value("1", list[str] | dict[str, str] | None) == "1%as"


# --- templates --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a{",
        "a}",
        "a:{}",
        "a:{0}",
        "a:{x()}",
        "a:{x[0]}",
        "a:{x!r}",
        "a:{x:>3}",
        "a:{_x}",
        "a:{x._y}",
        "a:{x.}",
        "a:{x y}",
        "a:*",
        "a:?{x}",
        "a[b]:{x}",
        "a%3A{x}",
        "a b:{x}",
        "a\n:{x}",
        "a\u2028:{x}",
        "a\ud800:{x}",
        "fastrdb:{x}",
        "{x}{y}",
        "{x}and{y}",
        "a:{{}}:{x}",
        "a:}}{x}{{",
        "{{a}}{{b}}:{x}",
        "{{a:{x}",
    ],
)
def test_wrong_patterns_are_refused(text: str) -> None:
    """A PatternError, which is a ValueError, names the owner and the text."""
    with pytest.raises(PatternError) as caught:
        Pattern.parse(text, owner="@cached on get_user", kind="pattern")
    assert "get_user" in str(caught.value)
    assert repr(text) in str(caught.value)
    assert isinstance(caught.value, ValueError)


def test_a_template_tells_its_parts() -> None:
    """Placeholders in full, their roots, and the literal head."""
    template = Pattern.parse("user:{user.org.id}:p:{page}!", owner="f", kind="pattern")
    assert template.fields == ("user.org.id", "page")
    assert template.names == {"user", "page"}
    assert template.head == "user:"
    assert template.join(["1", "2"]) == "user:1:p:2!"


def test_a_hash_tag_is_written_with_double_braces() -> None:
    """One hash tag is allowed, also around a placeholder."""
    assert Pattern.parse("{{{tenant}}}:user:{id}", owner="f", kind="pattern").join(["t", "1"]) == "{t}:user:1"


@pytest.mark.parametrize("text", ["user:*", "a?b*", "a%3A*", "{x}*", "", "*", "{{t", "{{{x}}}:*"])
def test_prefixes_may_hold_wildcards(text: str) -> None:
    """In a prefix `*` and `?` are wildcards, `%` is as it stands in keys, and a hash tag may be broken off."""
    assert Pattern.parse(text, owner="f", kind="prefix").text == text


SEPARATORS = ["-", ":", "x-", "-x", "::", "_", ".", "@", "a:b", "&b=", "→", "-:", "/"]


@settings(max_examples=500)
@given(st.data(), st.sampled_from(SEPARATORS), st.sampled_from(SEPARATORS))
def test_separators_keep_placeholders_apart(data: st.DataObject, first: str, second: str) -> None:
    """Three values in one key stay apart, whatever separates them."""
    template = Pattern.parse(f"k:{{a}}{first}{{b}}{second}{{c}}", owner="f", kind="pattern")
    values = st.one_of(
        st.text(alphabet=f"x1:{first}{second}", max_size=4), st.integers(-1, 1), st.lists(TEXT, max_size=2)
    )
    calls = [data.draw(st.tuples(values, values, values)) for _ in range(2)]
    keys = [
        template.join([encode_value(each, also=part.also) for each, part in zip(call, template.parts, strict=True)])
        for call in calls
    ]
    assert (identity(calls[0]) == identity(calls[1])) == (keys[0] == keys[1])


@settings(max_examples=300)
@given(st.text(alphabet="a%é€😀:3A", min_size=0, max_size=900))
def test_long_keys_end_in_a_digest(text: str) -> None:
    """A key has at most 512 bytes of UTF-8, breaks off between characters and escapes, and is itself if it is short."""
    key = "".join(f"%{ord(char):02X}" if char == "%" else char for char in text)
    fitted = fit(key)
    assert len(fitted.encode()) <= 512
    if len(key.encode()) <= 512:
        assert fitted == key
        return
    kept, digest = fitted.split("%h")
    assert key.startswith(kept)
    assert len(digest) == 40
    assert kept[-1] != "%"
    assert kept[-2] != "%"


def test_long_keys_differ_beyond_the_cut() -> None:
    """Two long keys that differ in their last character only are two keys."""
    assert fit("a" * 600 + "b") != fit("a" * 600 + "c")


@pytest.mark.parametrize("start", range(466, 472))
def test_a_long_key_does_not_break_off_inside_an_escape(start: int) -> None:
    """Wherever the cut falls, what is kept are whole escapes."""
    kept = fit("a" * start + "%3A" * 30).partition("%h")[0]
    assert kept.lstrip("a").replace("%3A", "") == ""


@pytest.mark.parametrize("member", Odd)
def test_an_enum_member_is_not_its_value(member: Odd) -> None:
    """A member with the value None, "" or a Decimal is another argument than that value; in a list too."""
    assert encode_value(member, Odd | None) != encode_value(member.value, Odd | None)
    assert encode_value([member], list[Odd | None]) != encode_value([member.value], list[Odd | None])
