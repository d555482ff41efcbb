"""The index is lost, by hand or by eviction: a write finds what it reaches all the same, and makes it whole again."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.asyncio import Redis

import fastrdb.protocol.server
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Store
from fastrdb.protocol.interface import Barred, Granted
from fastrdb.protocol.server import ServerBackend
from fastrdb.testing import GatedClient
from fastrdb.testing.server import EmbeddedServer
from tests.races.mechanisms import label, without
from tests.races.seams import Change
from tests.support.programs.apps import App
from tests.support.waiting import until
from tests.support.world.stores import acquire, acquire_many, fill, fill_many, lapse_barriers, members
from tests.support.world.world import spawn

DEADLINE = 5.0
TTL = 60_000
SAID = "does not have all keys"


@pytest.fixture(params=["redis", "valkey"])
async def client(request: pytest.FixtureRequest) -> Any:
    """Provide a client of each kind of server in turn, which is empty."""
    server: EmbeddedServer = request.getfixturevalue(f"{request.param}_server")
    async with Redis(port=server.port) as made:
        await made.flushall()
        yield made


def under(text: str) -> Prefix:
    """Return the prefix that a text means."""
    found = Prefix.of(text)
    assert found is not None
    return found


def store_of(**settings: Any) -> Store:
    """Return a store whose functions have keys under `user:` and `post:`."""
    return Store(**{"timeout": DEADLINE, "owned": {"user:", "post:"}, **settings})


def gates(client: Redis) -> GatedClient:
    """Return a client that stops at scripts, also at those that a test has rewritten."""
    gated = GatedClient(client)
    for script in (fastrdb.protocol.server.SEARCH, fastrdb.protocol.server.BEGIN):
        gated.name_script(script.sha, script.name)
    return gated


async def put_entries(client: Redis, store: Store, *keys: str, ttl_ms: int = TTL) -> None:
    """Put an entry under each key, as readers do."""
    assert set((await acquire_many(store, client, dict.fromkeys(keys, "t"))).values()) == {Granted()}
    assert await fill_many(store, client, [(key, "t", b"1", ttl_ms) for key in keys]) == [True] * len(keys)


async def lose(client: Redis, *parts: str) -> None:
    """Delete the parts, or whatever is fastrdb's own."""
    own: list[Any] = [f"fastrdb:{part}" for part in parts] or await client.keys("fastrdb:*")
    await client.delete(*own)


async def looks(client: Redis) -> int:
    """Return how often all keys, or some, were looked at."""
    found: Any = await client.info("commandstats")
    return int(found.get("cmdstat_scan", {"calls": 0})["calls"])


async def left(client: Redis) -> set[str]:
    """Return the keys that are not fastrdb's own."""
    found: list[Any] = await client.keys("*")
    return {key.decode() for key in found if not key.startswith(b"fastrdb:")}


@pytest.mark.parametrize("parts", [("index",), ("index", "expiry"), ()], ids=["index", "both", "all"])
async def test_write_after_a_loss_finds_all_entries(
    client: Redis, parts: tuple[str, ...], caplog: pytest.LogCaptureFixture
) -> None:
    """An invalidation or a commit finds the entries; then the index is whole for the cache. One line is logged."""
    store = store_of()
    for _ in range(2 if parts else 1):
        await put_entries(client, store, "user:1", "user:2", "user:2:name", "post:1", "post:2")
        await lose(client, *parts)
        assert await store.invalidate(client, [under("user:2")]) == 3, "all under the pattern's literal beginning"
        assert await left(client) == {"post:1", "post:2"}
        if not parts:  # it has lost the note of its data, too
            break
        before = await looks(client)
        await put_entries(client, store, "user:1", "user:2")
        assert await store.invalidate(client, [under("user:2")]) == 1
        assert await store.invalidate(client, keys=["user:1"]) == 1
        assert await looks(client) == before, "it is complete there"
        intent = store.intent(client)
        intent.add([under("post:")])
        await intent.begin()
        assert await left(client) == set()
        await intent.end(committed=True)
        assert await members(client, "index") == set()
    assert [record.levelname for record in caplog.records if SAID in record.message] == ["WARNING"]


@pytest.mark.parametrize("ttl_ms", [None, TTL])
async def test_first_write_beside_other_keys_searches_only_if_one_may_be_an_entry(
    client: Redis, ttl_ms: int | None
) -> None:
    """A string that expires may be an entry: the index and the note of the server may have been evicted."""
    store = store_of()
    await client.set("theirs", "1", px=ttl_ms)
    assert await store.get(client, "user:1") is None
    before = await looks(client)
    await store.invalidate(client, [under("user:")])
    assert (await looks(client) > before) is (ttl_ms is not None)
    assert await left(client) == {"theirs"}
    await store.aclose()


async def test_entries_that_outlive_index_and_note_are_found(client: Redis) -> None:
    """A server evicted index and note, and was given room since: the empty index does not pass for a complete one."""
    store = store_of()
    await put_entries(client, store, "user:1", "user:2")
    await lose(client)
    other = store_of()
    assert await other.get(client, "user:1") == b"1"
    assert await other.invalidate(client, [under("user:")]) == 2
    assert await left(client) == set()
    await other.aclose()


async def test_load_from_before_the_loss_is_not_stored(client: Redis) -> None:
    """A load is not stored if the write that finds the index lost reaches it, nor if a later one does."""
    store = store_of()
    await put_entries(client, store, "user:0")
    for key in ("user:1", "post:1"):
        assert await acquire(store, client, key, key) == Granted()
    await lose(client, "index")
    await store.invalidate(client, [under("user:")])
    await store.invalidate(client, [under("post:")])
    for key in ("user:1", "post:1"):
        assert not await fill(store, client, key, key, b"old", TTL)
    assert await left(client) == set()


async def test_load_that_ends_during_a_search_is_not_stored(client: Redis) -> None:
    """Between the look at leases and the look at entries: it finds its lease gone."""
    gated, store = gates(client), store_of()
    await put_entries(client, store, "user:0", "other:1")
    assert await acquire(store, client, "user:1", "t") == Granted()
    await lose(client, "index")
    gate = gated.after("search")
    deleting = spawn(store.invalidate(gated, [under("user:")]))
    await gate.reached()
    await fill(store, client, "user:1", "t", b"old", TTL)
    gate.open()
    await deleting
    assert await left(client) == {"other:1"}


async def test_index_lost_during_a_sweep_is_searched_for(client: Redis) -> None:
    """Entries that the sweep has not come to yet are found."""
    gated, store = gates(client), store_of(chunk=2)
    await put_entries(client, store, *(f"user:{n}" for n in range(9)), "post:1")
    gate = gated.after("begin")
    deleting = spawn(store.invalidate(gated, [under("user:")]))
    await gate.reached()
    await lose(client, "index")
    gate.open()
    assert await deleting == 9
    assert await left(client) == {"post:1"}


async def test_index_lost_during_a_search_is_searched_for_again(client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """While all keys are looked at: what was stored meanwhile behind the look is not in it, so it is not whole yet."""
    monkeypatch.setattr(fastrdb.protocol.server, "_SEARCH_COUNTS", {"leases": 1, "entries": 1})
    store, deleted, later = store_of(), [0], [f"user:later:{n}" for n in range(100)]
    await put_entries(client, store, *(f"user:{n}" for n in range(40)))
    await lose(client, "index")
    look = ServerBackend._look

    async def halfway(search: ServerBackend, *arguments: Any) -> Any:
        found = await look(search, *arguments)
        deleted.append(deleted[-1] + found[2])
        if deleted[-2] < 20 <= deleted[-1] < 40:
            await put_entries(client, store, *later)
            await lose(client, "index")
        return found

    monkeypatch.setattr(ServerBackend, "_look", halfway)
    assert 40 <= await store.invalidate(client, [under("user:")]) < 140
    monkeypatch.setattr(ServerBackend, "_look", look)
    await store.invalidate(client, [under("user:")])
    assert await left(client) == set()
    before = await looks(client)
    await store.invalidate(client, [under("user:")])
    assert await looks(client) == before


async def test_keys_of_other_programs_stay(client: Redis) -> None:
    """Also where the whole cache goes. An entry that this process does not know is found where a prefix reaches it."""
    store = store_of()
    others = {"session:9", "user", "user:visits", "user:cart"}
    await client.set("session:9", "x", px=TTL)
    await client.set("user", "x")
    await client.set("user:visits", 1)
    await client.hset("user:cart", "x", "y")
    await put_entries(client, store, "user:1", "post:1", "elsewhere:1")
    assert await store.invalidate(client, [under("user:")]) == 1
    before = await looks(client)
    await put_entries(client, store, "user:1")
    assert await store.invalidate(client, [under("user:*")]) == 1
    assert await looks(client) == before
    assert await store.invalidate(client, [under("*:1")]) == 2
    await client.pexpire("session:9", 0)
    await lose(client, "index")
    await put_entries(client, store, "user:1", "elsewhere:1")
    await client.set("session:8", "x", px=TTL)
    await lose(client, "index")
    assert (await store._backend.delete(client, [store.keyspace.everything])).deleted == 1
    assert await left(client) == others - {"session:9"} | {"session:8"} | {"elsewhere:1"}


async def test_index_is_whole_when_all_old_keys_have_expired(client: Redis) -> None:
    """Others' keys do not keep writers looking for ever, nor do entries under heads that no function here has."""
    store = store_of(owned=())
    await client.set("session:2", "x", px=300)
    await put_entries(client, store, "user:2", ttl_ms=300)
    await lose(client, "index")
    await store.invalidate(client, [under("*:1")])
    before = await looks(client)
    await store.invalidate(client, [under("*:1")])
    assert await looks(client) > before

    async def quiet() -> bool:
        before = await looks(client)
        await store.invalidate(client, [under("*:1")])
        return await looks(client) == before

    await until(quiet)


async def test_namespace_is_searched_whole(client: Redis) -> None:
    """All entries in a namespace are found, whatever their function; and nothing beside the namespace."""
    store, other = store_of(namespace="a", owned=()), store_of(namespace="b")
    for each in (store, other):
        await put_entries(client, each, "user:1", "any:1")
    await client.delete("fastrdb:a:index")
    assert await store.invalidate(client, [under("user:")]) == 2
    before = await looks(client)
    assert await store.invalidate(client, [under("any:")]) == 0
    assert await looks(client) == before
    assert await left(client) == {"b:user:1", "b:any:1"}


async def test_index_without_deaths_begins_anew(client: Redis) -> None:
    """No sweep would ever reach its members. A look at all keys finds them."""
    store = store_of()
    await put_entries(client, store, *(f"user:{n}" for n in range(20)))
    await lose(client, "expiry")
    await put_entries(client, store, "post:1")
    assert len(await members(client, "index")) == len(await members(client, "expiry")) <= 1
    assert await store.invalidate(client, [under("user:")]) == 20
    assert await members(client, "index") == set()
    assert await store.invalidate(client, [under("post:")]) == 1


async def test_index_lost_again_and_again_does_not_grow(client: Redis) -> None:
    """However often the index is lost, what is said of it does not pile up."""
    store = store_of()
    await client.set("session:1", "x", px=TTL)
    for _ in range(5):
        await put_entries(client, store, "user:1")
        await lose(client, "index")
        await store.invalidate(client, [under("user:")])
        await put_entries(client, store, "user:2")
    assert await client.zcard("fastrdb:index") <= 5
    assert await client.zcard("fastrdb:expiry") <= 6


async def test_search_of_many_keys_takes_short_scripts(client: Redis) -> None:
    """A script looks at some hundred keys, however many there are."""
    store = store_of()
    for start in range(0, 5_000, 500):
        await put_entries(client, store, *(f"user:{n}" for n in range(start, start + 500)))
    await lose(client, "index")
    await client.config_resetstat()
    assert await store.invalidate(client, [under("user:")]) == 5_000
    counted: Any = await client.info("commandstats")
    assert counted["cmdstat_scan"]["calls"] >= 2 * 5_000 / 1_000


# --- barriers


async def test_lost_barriers_bar_every_key(client: Redis) -> None:
    """A reader between a writer's begin and its COMMIT stores nothing, though the barrier is gone; for its time."""
    app = App({1: "old"}, client, timeout=DEADLINE)
    assert await app.read() == "old"
    intent = app.store.intent(client)
    intent.add([under("item:")])
    await intent.begin()
    await lose(client, "barriers")
    assert await app.read() == "old"
    app.truth[1] = "new"
    assert await app.read() == "new"
    assert await acquire(app.store, client, "elsewhere", "t") == Barred()
    await lapse_barriers(client)
    assert await acquire(app.store, client, "elsewhere", "t") == Granted()
    await intent.end(committed=True)
    assert await app.read() == "new"
    await app.cache.aclose()


# --- the policy


async def test_policy_that_evicts_the_index_is_logged(
    client: Redis, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, when it is seen; on connecting, and when it is changed while the connection stays open."""

    async def policies(policy: str, maxmemory: int = 2**30) -> list[str]:
        await client.config_set("maxmemory", maxmemory)
        await client.config_set("maxmemory-policy", policy)
        for _ in range(2):
            await app.read()
            await app.store._link.aclose()  # as after a second without use
        said = [record.getMessage() for record in caplog.records if "maxmemory-policy" in record.message]
        caplog.clear()
        return said

    app = App({1: "old"}, client, timeout=DEADLINE)
    try:
        assert await policies("allkeys-lru", 0) == []
        [said] = await policies("allkeys-lru")
        assert "allkeys-lru" in said
        assert await policies("allkeys-lru") == []
        assert await policies("volatile-lru") == []
        assert await policies("noeviction") == []
        [said] = await policies("allkeys-random")
        assert "allkeys-random" in said
    finally:
        await client.config_set("maxmemory", 0)
        await client.config_set("maxmemory-policy", "noeviction")
        await app.cache.aclose()


# --- each of these mechanisms is needed

Race = Callable[..., Awaitable[None]]


async def play(race: Race, client: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test of above, which must fail now."""
    wants = race.__code__.co_varnames[: race.__code__.co_argcount]
    await race(client, *([monkeypatch] if "monkeypatch" in wants else []))


@pytest.mark.parametrize(
    ("change", "race"),
    [
        (without("index-is-whole"), test_namespace_is_searched_whole),
        (without("index-is-whole"), test_index_lost_during_a_sweep_is_searched_for),
        (without("search-deletes-leases"), test_load_from_before_the_loss_is_not_stored),
        (without("search-uninterrupted"), test_index_lost_during_a_search_is_searched_for_again),
        (without("search-spares-unknown"), test_keys_of_other_programs_stay),
        (without("search-spares-lasting"), test_keys_of_other_programs_stay),
        (without("index-without-deaths"), test_index_without_deaths_begins_anew),
        (without("lost-barriers-noticed"), test_lost_barriers_bar_every_key),
        (without("leases-before-entries"), test_load_that_ends_during_a_search_is_not_stored),
    ],
    ids=label,
)
async def test_race_is_lost(client: Redis, monkeypatch: pytest.MonkeyPatch, change: Change, race: Race) -> None:
    """One line less, and something stale is left."""
    change.apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await play(race, client, monkeypatch)
