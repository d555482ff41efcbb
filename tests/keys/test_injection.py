"""No argument, whatever it holds, reaches another key, another prefix, another slot or a wildcard."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from random import Random
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from redis.crc import key_slot

import fastrdb
from fastrdb import Cache
from fastrdb.keys import CallPlan, hashed
from fastrdb.keys.pattern import DIGEST_MARK, Pattern
from fastrdb.keys.prefix import Template
from fastrdb.protocol.keyspace import Keyspace, Target
from fastrdb.protocol.lua import read
from tests.support.world import fuzz
from tests.support.world.stores import members

PACKAGE = Path(fastrdb.__file__).parent
SEALS = {"plain": None, "hidden": hashed(b"secret", "test")}
FORBIDDEN = re.compile(r"[*?\[\]{}\\\s\x00-\x1f\x7f-\x9f\ud800-\udfff]")


async def call(a: Any, b: str = "x", *rest: int, c: str | None = None, **more: Any) -> int:
    """Take arguments of every kind."""
    return 0


def plan_of(pattern: str, seal: Any = None) -> CallPlan:
    """Return the plan of `call` under a pattern."""
    return CallPlan.of(call, pattern=pattern, decorator="cached", seal=seal)


def key_of(plan: CallPlan, *args: Any, **kwargs: Any) -> str:
    """Return the key of one call."""
    return plan.locate(None, args, kwargs)[2]


# --- S1: keys


@pytest.mark.parametrize("seal", SEALS.values(), ids=SEALS)
@pytest.mark.parametrize("pattern", ["k:{a}:x:{b}", "{a}", "k:{b}-{a}_{c}.x"])
def test_two_calls_that_differ_have_two_keys(pattern: str, seal: Any) -> None:
    """And a call has one, among many thousand at once: 30,000 calls that differ in one argument, or in several."""
    plan, random = plan_of(pattern, seal), Random(1)
    makers = {"a": fuzz.value, "b": fuzz.scalar, "c": fuzz.scalar, "d": fuzz.value}
    calls: dict[str, Any] = {}
    keys: dict[Any, str] = {}
    for _ in range(5_000):
        chosen = random.sample([*makers], k=random.choice([1, 1, 2, 4]))
        given = {"a": 0, "b": "x", "c": None, **{name: makers[name](random) for name in chosen}}
        key = key_of(plan, **given)
        same = fuzz.identity(given)
        assert calls.setdefault(key, same) == same, given
        assert keys.setdefault(same, key) == key, given
        assert len(key.encode()) <= 512
    assert len(calls) > 3_000


def test_a_key_says_only_what_its_pattern_says() -> None:
    """20,000 values: between the pattern's own separators there are none but those that the pattern has."""
    plan = plan_of("k:{a}:x:{b}")
    for given in fuzz.many(fuzz.text, 20_000, seed=2):
        key = key_of(plan, given, given)
        if DIGEST_MARK in key:
            continue
        assert FORBIDDEN.search(key) is None, ascii(given)
        head, first, middle, second = key.split(":")
        assert (head, middle) == ("k", "x")
        assert not set("?&=") & set(first + second)
        assert key.encode().decode() == key


def test_no_key_lies_among_fastrdbs_own() -> None:
    """20,000 values at the very beginning of a key."""
    plan = plan_of("{a}:index")
    for given in fuzz.many(fuzz.value, 20_000, seed=3):
        assert not key_of(plan, given).startswith("fastrdb:"), ascii(given)


# --- S2, S3: prefixes


@pytest.mark.parametrize("seal", SEALS.values(), ids=SEALS)
def test_a_prefix_with_a_value_reaches_that_value_alone(seal: Any) -> None:
    """20,000 pairs of values: each reaches its own keys, what lies below them too, and none of the other's."""
    plan = CallPlan.of(call, pattern="k:{b}:{a}", decorator="cached", seal=seal)
    template = Template(Pattern.parse("k:{x}", owner="f", kind="prefix"), [str], "f", seal)
    texts = list(fuzz.many(fuzz.text, 10_001, seed=4))
    for mine, other in pairwise(texts):
        [*prefixes] = template.prefixes({"x": mine})
        assert any(prefix.matches(key_of(plan, "below", mine)) for prefix in prefixes), ascii(mine)
        reached = any(prefix.matches(key_of(plan, "below", other)) for prefix in prefixes)
        # A long key's value is not to be read from its digest: then more is reached, never less.
        assert mine == other or not reached or DIGEST_MARK in key_of(plan, "below", other), (ascii(mine), ascii(other))


@pytest.fixture(scope="module")
def lua(redis_server: Any) -> Iterator[redis.Redis]:
    """Yield a client whose server runs Lua."""
    with redis.Redis.from_url(redis_server.url) as client:
        yield client


def test_lua_reaches_what_python_reaches(lua: redis.Redis) -> None:
    """The patterns that the server's Lua is given hold no value that means something to it: 10,000 values."""
    script = lua.register_script(
        f"{read()}\nlocal found = {{}}\n"
        "for i = 1, #ARGV, 3 do found[#found + 1] = reaches(ARGV[i], ARGV[i + 1], ARGV[i + 2]) and 1 or 0 end\n"
        "return found"
    )
    plan = CallPlan.of(call, pattern="k:{b}:x", decorator="cached")
    template = Template(Pattern.parse("k:{x}", owner="f", kind="prefix"), [str])
    texts = list(fuzz.many(fuzz.text, 10_000, seed=5))
    for start in range(0, len(texts), 500):
        part = texts[start : start + 500]
        asked = [
            (prefix, key_of(plan, 1, each))
            for mine, other in zip(part, [*part[1:], part[0]], strict=True)
            for prefix in template.prefixes({"x": mine})
            for each in (mine, other)
        ]
        arguments = [argument for prefix, key in asked for argument in (prefix.head, prefix.filter, key)]
        assert script(args=arguments) == [int(prefix.matches(key)) for prefix, key in asked]


async def test_an_invalidation_deletes_its_own_and_nothing_else(client: Redis) -> None:
    """1,000 entries of harmful values on a real server, beside keys that are none: each write takes one away."""
    values = list(dict.fromkeys(fuzz.many(fuzz.text, 1_200, seed=6)))[:1_000]
    strangers = ["k", "k;", "session:1", "fastrdb", "*", "k:*", "{k:x}"]
    async with Cache(client, timeout=5) as cache:

        @cache.cached("k:{value}")
        async def load(value: str) -> str:
            return value

        @cache.invalidates("k:{value}")
        async def change(value: str) -> None: ...

        for each in values:
            assert await load(each) == each
        for stranger in strangers:
            await client.set(stranger, "mine")
        short = [each for each in values if DIGEST_MARK not in load.key(each)]
        known = await members(client, "index")  # not of those that no JSON can hold
        assert len(known) > 0.9 * len(values)
        for each in short[:300]:
            await change(each)
            known.discard(load.key(each).encode())
            assert await client.exists(load.key(each)) == 0
            assert await members(client, "index") == known, ascii(each)
        await cache.invalidate("k:*")
        assert await members(client, "index") == set()
        own = {"fastrdb:trusted", "fastrdb:index", "fastrdb:expiry", "fastrdb:barriers"}
        left: list[Any] = await client.keys("*")
        assert {key.decode() for key in left} - own == set(strangers)


# --- S4: slots


def test_no_value_chooses_a_cluster_slot() -> None:
    """20,000 values: without a tag of the pattern's own a key has none, with one the tag alone decides."""
    untagged, tagged, names = plan_of("k:{a}:x"), plan_of("{{{b}}}:k:{a}"), Keyspace("")
    for given in fuzz.many(fuzz.text, 20_000, seed=7):
        key = key_of(untagged, given)
        assert "{" not in key
        assert "}" not in key
        assert key_slot(names.lease(names.entry(key))) == key_slot(key.encode())
        key = key_of(tagged, given, "tenant")
        assert key_slot(key.encode()) == key_slot(b"tenant"), ascii(given)


# --- S5: ranges


async def test_a_range_has_every_byte(client: Redis) -> None:
    """All 256 that may follow a head, at its end and in its middle, and none of the neighbours."""
    for head in (b"k:", b"k\xff", b"k:\xff\xff", "é".encode()):
        await client.delete("range")
        inside = {head + bytes([byte]) + rest for byte in range(256) for rest in (b"", b"x", b"\xff")} | {head}
        outside = {head[:-1], head[:-1] + bytes([head[-1] - 1]) + b"\xff", b"a", b"z\xff", b"\xff\xff\xff"} - inside
        await client.zadd("range", dict.fromkeys(inside | outside, 0))
        found = Target(head).range()
        assert set(await client.zrangebylex("range", found.start, found.stop)) == inside


# --- S3: no search by the server

SCANS = {
    "commands.py",
    "shared.lua",
    "greet.lua",
    "search.lua",
    "scan.lua",
    "cluster_index.py",
    "inspector.py",
}  # commands.py has commands without a key
"""Files that may scan the keyspace: the documented way of servers that evict the index, and what people look with."""


def test_nothing_asks_the_server_to_search() -> None:
    """No KEYS, no SCAN, in Lua or in Python: neither a cost that grows with others' keys, nor a glob to inject into."""
    for file in sorted(PACKAGE.rglob("*.lua")):
        words = re.findall(r"redis\.p?call\(\s*['\"](\w+)", file.read_text("utf-8"))
        assert file.name in SCANS or not {"KEYS", "SCAN"} & {word.upper() for word in words}, file.name
    for file in sorted(PACKAGE.rglob("*.py")):
        if "testing" not in file.parts and "demo" not in file.parts:
            assert file.name in SCANS or not set(searches(ast.parse(file.read_text("utf-8")))), file.name


def searches(tree: ast.AST) -> Iterator[str]:
    """Return the ways to search that stand in a module: as a command, or as a method of a client."""
    names = {id(name) for node in ast.walk(tree) if isinstance(node, ast.Dict) for name in node.keys}
    for node in ast.walk(tree):
        if id(node) in names:  # of a field of JSON
            continue
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.upper() in ("KEYS", "SCAN"):
            yield node.value
        if isinstance(node, ast.Attribute) and node.attr in ("scan", "scan_iter", "zscan", "sscan", "hscan"):
            yield node.attr


def test_searches_would_be_found() -> None:
    """The test above sees what it looks for."""
    code = "client.scan_iter('*'); client.execute_command('KEYS', '*'); link.command(client, b'GET')"
    assert set(searches(ast.parse(code))) == {"scan_iter", "KEYS"}
