"""Whatever is done, and whatever arguments hold: each command is about one slot, and goes to the master that has it."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fastrdb import Cache
from fastrdb.keys import Image
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Fill, Granted, Store, scripts
from fastrdb.protocol.keyspace import Target
from tests.support.network.recorder import tapped
from tests.support.servers.cluster import Cluster
from tests.support.servers.databases import Database
from tests.support.world import fuzz
from tests.support.world.stores import lose, members, put
from tests.support.world.walkthrough import Whole
from tests.transport.test_moving_slots import OfItsOwn

OF_TAGS = {"tag", "retag", "complete_tags"}
IN_SLOTS = {script.name for script in scripts()} - OF_TAGS
IN_SLOTS -= {"acquire", "begin", "end", "inspect", "nested", "search", "watched"}  # watched: of one key, and read only
PLAIN = {"GET", "PTTL", "DEL", "UNLINK", "STRLEN", "EXISTS", "ZRANGEBYSCORE", "ZADD", "SET"}


class WholeInSlots(Whole):
    """All of the API on a cluster, with arguments that mean harm; and a process that comes when all has happened."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)

        @self.cache.cached("one:{value}")
        async def one(redis: Any, value: str) -> str:
            return value

        self.one = one

    async def everything(self, values: list[str]) -> None:
        """Do all that there is to be done."""
        await self.run()
        await self.harmful(values)
        await self.begun_twice()
        await self.owed()
        await self.dead()

    async def harmful(self, values: list[str]) -> None:
        """Use arguments in keys with and without a hash tag, one by one, many at once, kept near, stale and early."""
        cache, client = self.cache, self.client

        @cache.cached_many("many:{{{tenant}}}:{values}", negative_exp=5)
        async def many(redis: Any, tenant: str, values: list[str]) -> dict[str, str]:
            return {value: value for value in values if len(value) % 2}

        @cache.cached("near:{{{tenant}}}:{value}", near=True)
        async def near(redis: Any, tenant: str, value: str) -> str:
            return value

        @cache.cached("timed:{value}", exp=0.001, stale=60, early=1.0)
        async def timed(redis: Any, value: str) -> str:
            return value

        @cache.invalidates(["many:{{{value}}}:*", "near:{{{value}}}:*"], keys=["one:{value}"])
        async def change(redis: Any, value: str) -> None: ...

        for value in values:
            for _ in range(2):
                assert await self.one(client, value) == value
                assert await timed(client, value) == value
                assert await near(client, value, value) == value
        for at in range(0, len(values), 40):
            part = values[at : at + 40]
            for tenant in part[:2] * 2:
                await many(client, tenant, part)
            await asyncio.gather(
                *(self.one(client, value) for value in part), *(self.one(client, value) for value in part)
            )
        for value in values[::7]:
            await change(client, value)

    async def begun_twice(self) -> None:
        """Write on in a transaction after its COMMIT has begun."""
        intent = self.cache.runtime.store(self.client).intent(self.client)
        intent.put("one:}{", b'"}{"', 60_000)
        await intent.begin()
        intent.add([Prefix("one:}")])
        intent.put("one:{}", b'"{}"', 60_000)
        await intent.begin()
        await intent.end(committed=True)

    async def owed(self) -> None:
        """Repair an invalidation that Redis has missed."""
        store = self.cache.runtime.store(self.client)
        await store.renew(self.client, {"one:}{": "token", "one:{}": "token"})  # as in a load that lasts
        store.add_pending(self.client, {Target(b"timed:"): True, Target(b"near:{a", b"="): False})
        while store.bypass_reason(self.client):
            await self.read()

    async def dead(self) -> None:
        """Remove members of the index whose entries are gone."""
        await put(self.admin, "index", dict.fromkeys(("one:a}{b", "one:gone"), 0))
        await put(self.admin, "expiry", dict.fromkeys(("one:a}{b", "one:gone"), 1))
        for number in range(60):
            await self.one(self.client, f"alive {number}")
        await self.cache.aclose()
        assert not {b"one:a}{b", b"one:gone"} & await members(self.admin, "index")

    async def restarted(self) -> None:
        """Change a master's history to one that is not trusted."""
        store = self.cache.runtime.store(self.client)
        trust = store._backend.trust
        await lose(self.admin, "trusted")
        trust._newest, trust._met, trust._unknown, trust._noted = set(), set(), set(), {}
        await store._link.aclose()
        store._link._routes.clear()  # as after a second without use: the next reader asks again
        store._link._latest = lambda: None
        await self.read()
        assert store.obstacles
        while store.bypass_reason(self.client):
            await self.read()

    async def evicted(self) -> None:
        """Delete shards of the index."""
        await lose(self.admin, "index")
        await self.cache.invalidate(["known:*"], redis=self.client)


HEADS = ("person", "people", "known", "one", "many", "near", "timed")


@pytest.fixture
def user(cluster: Cluster) -> Iterator[dict[str, Any]]:
    """Yield the documented user, for the keys of this test: with what it needs on a cluster besides, and no more."""
    page = (Path(__file__).parents[2] / "fastrdb" / "docs" / "security.md").read_text("utf-8")
    [line] = re.findall(r"^ACL SETUSER (.*)$", page, re.MULTILINE)
    [(besides, near)] = re.findall(r"^On a cluster it needs besides, .*?`(.*?)`.*?`(.*?)`", page, re.MULTILINE)
    keys = " ".join(f"~{head}:*" for head in HEADS)
    words = f"{line} {besides} {near}".replace("~user:* ~post:*", keys).split()
    for node in cluster.masters:
        node.ask("ACL", "SETUSER", *words)
    yield {"username": words[0], "password": "password"}
    for node in cluster.masters:
        node.ask("ACL", "DELUSER", words[0])


VALUES = [*dict.fromkeys(fuzz.many(fuzz.text, 80, seed=8))]


async def test_all_of_the_api(
    cluster: Cluster,
    user: dict[str, Any],
    sqlite: Database,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """No command has keys in two slots or goes to another master; no script touches a key that is not in its KEYS.

    The documented user does it, and may do all of it.
    """
    cluster.flush()
    async with (
        tapped(cluster, monkeypatch) as tap,
        cluster.client(protocol=3, **user) as client,
        cluster.client() as admin,
    ):
        cache = Cache(timeout=5, near=True)
        await WholeInSlots(sqlite, client, admin, cache).everything(VALUES)
        assert cache.stats().outages == 0
        assert cache.stats().near > 0
        assert cache.stats().unavailable == 1, "the read that found other data"
    assert "refuses" not in caplog.text
    assert [*tap.misplaced()] == []
    assert [*tap.undeclared()] == []
    assert {words[0].decode() for _, words in tap.sent} >= PLAIN
    named = {key: script.name for script in scripts() for key in (script.text, script.sha)}
    assert {named[words[1].decode()] for _, words in tap.sent if words[0] in (b"EVALSHA", b"EVAL")} == IN_SLOTS
    assert {named[run.words[1].decode()] for run in tap.runs if run.inside} == IN_SLOTS


async def test_tags_in_slots(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The scripts of tags touch the keys in their KEYS only, and these are in one slot."""
    cluster.flush()
    async with tapped(cluster, monkeypatch) as tap, cluster.client() as client:
        store = Store(timeout=5, cluster=True)
        for round_, tags in enumerate([("person:team=1\0",), ("person:team=2\0",)]):
            for number in range(40):
                key, token = f"one:}}{number}{{", f"{round_:032}"
                outcome = (await store.acquire(client, {key: token}, tagged=True, refresh=True))[key]
                assert isinstance(outcome, Granted)
                await store.fill(client, [Fill(key, outcome.lease, b"1", 60_000, tags, outcome.since)])
        assert await store.invalidate(client, images=[Image("person", {"team": frozenset(["2"])})]) > 0
        await lose(client, "tagged")
        await store.invalidate(client, images=[Image("person")])
        await store.aclose()
    assert [*tap.misplaced()] == []
    assert [*tap.undeclared()] == []
    named = {key: script.name for script in scripts() for key in (script.text, script.sha)}
    assert {named[run.words[1].decode()] for run in tap.runs if run.inside} >= OF_TAGS


async def test_a_client_that_is_asked_itself(
    cluster: Cluster, sqlite: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The same of what goes through the client's own methods, which would refuse some of it without sending it."""
    cluster.flush()
    async with tapped(cluster, monkeypatch) as tap, cluster.client(OfItsOwn) as client:
        whole = WholeInSlots(sqlite, client, client, Cache(timeout=5))
        await whole.harmful(VALUES[:40])
        await whole.cache.aclose()
    assert "refuses" not in caplog.text
    assert "CROSSSLOT" not in caplog.text
    assert [*tap.misplaced()] == []
    assert [*tap.undeclared()] == []
    assert {b"EVALSHA", b"GET", b"UNLINK"} <= {words[0] for _, words in tap.sent}
