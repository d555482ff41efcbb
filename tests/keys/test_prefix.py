"""Prefixes: which keys one reaches, in Python and in the Lua of a real server alike."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import redis
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fastrdb.errors import KeyValueError, MissingKeyFieldError
from fastrdb.keys import MISSING, Pattern, Prefix
from fastrdb.keys.pattern import fit
from fastrdb.keys.prefix import Template
from fastrdb.protocol.lua import read
from tests.keys.texts import encode_value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from fastrdb.testing.server import EmbeddedServer

REACHES = f"""{read()}
local all = {{}}
for i, key in ipairs(KEYS) do all[i] = reaches(ARGV[1], ARGV[2], key) and 1 or 0 end
return all
"""

VALUES = st.one_of(
    st.none(),
    st.integers(0, 12),
    st.booleans(),
    st.text(alphabet="a1*?:&%[é -", max_size=3),
    st.text(alphabet="aé%", min_size=440, max_size=480),
)


def filled(text: str, declared: list[Any] | None = None, **values: Any) -> list[Prefix]:
    """Return the prefixes that *text* means for *values*."""
    return Template(Pattern.parse(text, owner="f", kind="prefix"), declared, "f").prefixes(values)


def reached(text: str, *keys: str, **values: Any) -> list[str]:
    """Return those of *keys* that are reached."""
    return [key for key in keys if any(prefix.matches(key) for prefix in filled(text, **values))]


def key_of(pattern: str, **values: Any) -> str:
    """Return the key that *pattern* makes of *values*."""
    template = Pattern.parse(pattern, owner="f", kind="pattern")
    return fit(template.join([encode_value(values[part.field], also=part.also) for part in template.parts]))


@pytest.fixture(scope="module")
def lua(server: EmbeddedServer) -> Iterator[redis.Redis]:
    """Yield a client whose server runs Lua."""
    with redis.Redis.from_url(server.url) as client:
        yield client


def found_by_lua(client: redis.Redis, prefix: Prefix, keys: list[str]) -> list[bool]:
    """Return for each of *keys* whether the server's Lua finds it."""
    reply: Any = client.eval(REACHES, len(keys), *keys, prefix.head, prefix.filter)
    return [int(each) == 1 for each in reply]


@pytest.mark.parametrize(
    ("text", "values", "hits", "misses"),
    [
        ("user:*", {}, ["user:1", "user:", "user:a:b?c=d"], ["users:1", "use"]),
        ("user:", {}, ["user:1"], ["users:1"]),
        ("*", {}, ["", "anything"], []),
        (
            "user:{x}",
            {"x": 1},
            ["user:1", "user:1:a", "user:1?b=1", "user:1&c"],
            ["user:12", "user:", "user:1-2", "user:1%3A"],
        ),
        ("user:{x}:*", {"x": 1}, ["user:1:", "user:1:a"], ["user:1", "user:12:a"]),
        ("user:{x}", {"x": "*"}, ["user:%2A", "user:%2A:a"], ["user:1", "user:*"]),
        ("user:{x}:*", {"x": "?"}, ["user:%3F:a"], ["user:a:a", "user:?:a"]),
        ("user:{x}", {"x": ""}, ["user:", "user::a", "user:?b=1"], ["user:1"]),
        ("user:{x}", {"x": None}, ["user:%none"], ["user:None", "user:%nonee"]),
        ("a:*:b", {}, ["a:1:b", "a::b", "a:1:2:bc", "a:x:b?d=e"], ["a:b", "a:1:c"]),
        ("a:?:b", {}, ["a:1:b", "a:é:b", "a:€:bc"], ["a::b", "a:12:b"]),
        ("a:*:{x}", {"x": 1}, ["a:b:1", "a:b:1:c"], ["a:b:12", "a:1"]),
        ("a:*{x}", {"x": ""}, ["a:", "a:b", "a:b?c=d"], ["b:"]),
        ("a.b+c:*-%3A", {}, ["a.b+c:x-%3A1"], ["aXb+c:x-%3A1", "a.b+c:x%3A1"]),
        ("{{t}}:*", {}, ["{t}:1"], ["t:1"]),
        ("x-{x}-*", {"x": "a-b"}, ["x-a%2Db-c"], ["x-a-b-c"]),
        ("x-{x}*", {"x": "a-b.c"}, ["x-a-b.c", "x-a%2Db.c-d", "x-a-b%2Ec.d"], ["x-a", "x-a-b:c"]),
        ("x-{x}y", {"x": -5}, ["x--5y", "x-%2D5y-z", "x--5.0y"], ["x--5", "x-5y"]),
        ("x-{x}?{y}", {"x": "a-b", "y": 1}, ["x-a%2Db-1", "x-a-b.1"], ["x-a%2Db1"]),
    ],
)
def test_what_a_prefix_reaches(
    lua: redis.Redis, text: str, values: dict[str, Any], hits: list[str], misses: list[str]
) -> None:
    """Each of these keys is reached, and none of those; Lua says the same of all keys in the range."""
    assert reached(text, *hits, *misses, **values) == hits
    for prefix in filled(text, **values):
        keys = [*hits, *misses]
        assert found_by_lua(lua, prefix, keys) == [prefix.matches(key) for key in keys]


def test_the_empty_prefix_is_no_prefix() -> None:
    """Nothing is invalidated by the empty text, and everything by a bare star alone."""
    assert filled("") == []
    assert Prefix.of("") is None
    assert filled("*") == [Prefix("")]
    assert Prefix("") not in [each for text in ("a*", "*a", "?*", "{x}") for each in filled(text, x="")]


@pytest.mark.parametrize("pattern", ["k:{a}", "k:{a}:x:{b}", "k:{a}-{b}", "k:{a}_x"])
@settings(max_examples=150)
@given(mine=VALUES, other=VALUES, rest=st.sampled_from(["b", "b:c", "", "1"]))
def test_a_value_reaches_only_its_own_keys(pattern: str, mine: Any, other: Any, rest: str) -> None:
    """A prefix that holds a value reaches all keys that have an equal one there, and no key that has another.

    The text of a number is equal to the number. The parameter is undeclared, so True is written as `true` there: the
    text "1" is not equal to it, although True is 1 where a str is declared.
    """
    key = key_of(pattern, a=other, b=rest)

    def alike(declared: Any) -> bool:
        return encode_value(mine, declared).partition("%a")[0] == encode_value(other, declared).partition("%a")[0]

    equal = mine == other or alike(MISSING) or (alike(str) and not isinstance(other, bool))
    for text in {pattern.partition("{b}")[0], pattern.replace("{b}", "*")}:
        hit = bool(reached(text, key, a=mine))
        assert hit or not equal
        assert equal or not hit or "%h" in key  # of a value that is hidden or long, nothing can be read


@pytest.mark.parametrize("given_as", [MISSING, int, str])
@pytest.mark.parametrize("declared", [MISSING, int, str])
@pytest.mark.parametrize("value", [1, "1", "a", "true", None])
def test_functions_may_declare_differently(value: Any, declared: Any, given_as: Any) -> None:
    """A prefix reaches the keys of a function that declares its parameter otherwise, or not at all."""
    if declared is MISSING or value is None or isinstance(value, declared):  # else a mistake that type checkers find
        key = f"user:{encode_value(value, declared)}"
        assert any(prefix.matches(key) for prefix in filled("user:{x}", [given_as], x=value))


@pytest.mark.parametrize("kind", [list, tuple, set, frozenset])
def test_a_list_reaches_each_element_and_the_whole(kind: type) -> None:
    """The pattern of `cached_many` has one element where its function takes the list."""
    keys = "user:1", "user:2:x", "user:3", "user:12"
    assert reached("user:{ids}", *keys, ids=kind([1, 2])) == ["user:1", "user:2:x"]
    assert reached("user:{ids}:x", *keys, ids=kind([1, 2])) == ["user:2:x"]
    assert reached("user:{ids}", f"user:{encode_value(kind([1, 2]))}", ids=kind([1, 2]))
    assert reached("user:{ids}", *keys, ids=kind(range(4, 400))) == [*keys], "too many to name each"
    assert not reached("user:{ids}", *keys, ids=kind())
    single = Template(Pattern.parse("user:{ids}", owner="f", kind="pattern"), None, "f")
    assert {"user:1", "user:2"} <= {*single.keys({"ids": kind([1, 2])}).keys}


def test_what_is_not_known_cuts_the_prefix() -> None:
    """More is reached, never less: the text before the first placeholder that cannot be filled is the prefix."""
    assert filled("list:{a}:{b}:x", a=1.5) == [Prefix("list:1.5:"), Prefix("list:1.5%a", "*:*")]
    assert filled("list:{a}:{b}:x", b=1) == [Prefix("list:")]
    assert filled("{a}:x") == [Prefix("")]
    lenient = Template(Pattern.parse("list:{a.b}:x", owner="f", kind="prefix"), None, "f")
    assert lenient.prefixes({"a": object()}, lenient=True) == [Prefix("list:")]
    assert lenient.prefixes({"a": None}, lenient=True) == [Prefix("list:")]


def test_single_keys_are_whole_or_not_at_all() -> None:
    """A key whose value is missing is an error that names it, or none where that is allowed."""
    filling = Template(Pattern.parse("user:{a.b}", owner="f", kind="pattern"), None, "f")
    assert filling.keys({"a": {"b": 7}}).keys == ["user:7", "user:7.0"]
    assert filling.keys({"a": {"b": "7"}}).keys == ["user:7", "user:7.0"]
    with pytest.raises(MissingKeyFieldError, match=r"a\.b"):
        filling.keys({})
    with pytest.raises(KeyValueError, match=r"a\.b"):
        filling.keys({"a": 1})


def test_no_key_lies_among_those_of_fastrdb() -> None:
    """A leading value of `fastrdb` is escaped, in the key and in the prefix alike."""
    filling = Template(Pattern.parse("{a}:index", owner="f", kind="pattern"), None, "f")
    assert filling.keys({"a": "fastrdb"}).keys == ["%66astrdb:index"]
    assert reached("{a}:*", "%66astrdb:index", a="fastrdb") == ["%66astrdb:index"]


def test_a_namespace_goes_in_front() -> None:
    """Under a namespace the same keys are reached, with the namespace in front of each."""
    prefix = Prefix("a:", "*:b*").under("n.s:")
    assert prefix.matches("n.s:a:1:b")
    assert not prefix.matches("a:1:b")
    assert not prefix.matches("nxs:a:1:b")
    assert (prefix.head, prefix.filter) == ("n.s:a:", "*:b*")


@pytest.mark.parametrize("text", ["k:{a}", "k:{a}:*", "k:*:{a}", "k:{a}*b"])
@pytest.mark.parametrize("size", [440, 459, 460, 461, 469, 470, 471, 512, 700])
@pytest.mark.parametrize("unit", ["a", "é", "€", " "])
def test_digests_are_reached(lua: redis.Redis, text: str, size: int, unit: str) -> None:
    """A key that ends in a digest is reached by all prefixes that its full text might have matched."""
    value = (unit * size)[:size]
    prefixes = filled(text, a=value)
    for tail in ("", ":b", ":b" * 40):
        key = f"k:{encode_value(value)}{tail}"
        before = f"k:x{tail}:{encode_value(value)}"
        for full in (key, before):
            for prefix in prefixes:
                fitted = fit(full)
                wanted = Prefix.matches(prefix, full)
                if full == fitted or wanted:
                    assert prefix.matches(fitted) == wanted
                if fitted.startswith(prefix.head):
                    assert found_by_lua(lua, prefix, [fitted]) == [prefix.matches(fitted)]


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(alphabet="ab:*?%.-^$é", max_size=6),
    keys=st.lists(st.text(alphabet="ab:?%.-^$é&", max_size=8), min_size=1, max_size=8),
    value=st.sampled_from([None, "", "a", "*", "é", "%h"]),
)
def test_lua_and_python_agree(lua: redis.Redis, text: str, keys: list[str], value: str | None) -> None:
    """For any glob and any keys in its range the server's Lua finds what `matches` finds."""
    whole = value is not None
    prefix = Prefix.of(text + encode_value(value, str) if whole else text, whole=whole)
    assume(prefix is not None)
    assert prefix is not None
    inside = [prefix.head + key for key in keys] + [f"{prefix.head}b%h{'0' * 40}"]
    assert found_by_lua(lua, prefix, inside) == [prefix.matches(key) for key in inside]


@pytest.mark.parametrize(("given_to_writer", "given_to_reader"), [(1, 1), (1, "1"), ("1", 1), ("1", "1")])
@pytest.mark.parametrize("declared", [int, str, MISSING])
def test_a_call_against_the_declared_type_is_reached(given_to_writer: Any, given_to_reader: Any, declared: Any) -> None:
    """A writer reaches the entry of a caller that passes `1` where `"1"` is declared, or the reverse."""
    key = f"user:{encode_value(given_to_reader, declared)}"
    filling = Template(Pattern.parse("user:{x}", owner="f", kind="prefix"), [declared])
    assert any(prefix.matches(key) for prefix in filling.prefixes({"x": given_to_writer}))
