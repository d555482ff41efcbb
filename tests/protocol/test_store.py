"""The operations of the store, each on a real server."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from fastrdb.errors import CacheUnavailableError
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Barred, Busy, Entry, Granted, Hit, Store, Timed
from fastrdb.protocol.lua import load_script
from fastrdb.testing import GatedClient
from fastrdb.testing.server import EmbeddedServer
from fastrdb.transport import Command
from tests.support.world.stores import (
    acquire,
    acquire_many,
    fill,
    fill_many,
    get_timed,
    is_cluster,
    key_of,
    members,
    put,
    release,
    store_on,
)

SHORT = 20  # ms


def prefix(text: str) -> Prefix:
    """Return the prefix that `text` means."""
    made = Prefix.of(text)
    assert made is not None
    return made


@pytest.fixture
async def store(request: pytest.FixtureRequest) -> AsyncIterator[Store]:
    """Yield a store with a deadline that a busy machine keeps, on what the test runs on."""
    made = store_on(request.getfixturevalue("any_client") if "any_client" in request.fixturenames else None)
    yield made
    await made.aclose()


async def lapse(client: Redis, name: str) -> None:
    """End the life of a key."""
    await client.pexpire(name, 0)


async def test_a_round_of_miss_fill_hit(any_client: Redis, store: Store) -> None:
    """The holder of the lease may fill, and then every caller is answered; the entry is plain bytes under its key."""
    assert await store.get(any_client, "user:1") is None
    assert await acquire(store, any_client, "user:1", "me") == Granted()
    assert await fill(store, any_client, "user:1", "me", b'{"id":1}', 60_000)
    assert await store.get(any_client, "user:1") == b'{"id":1}'
    assert await acquire(store, any_client, "user:1", "other") == Hit(b'{"id":1}')
    assert await any_client.get("user:1") == b'{"id":1}'
    assert 0 < await any_client.pttl("user:1") <= 60_000


async def test_every_protocol_and_decoding(resp: Redis, store: Store) -> None:
    """The answer is bytes for RESP2 and RESP3, whatever the client decodes."""
    raw = b"\xff\x00 not text"
    assert await acquire(store, resp, "k:é", "me") == Granted()
    assert await acquire(store, resp, "k:é", "other") == Busy("me")
    assert await fill(store, resp, "k:é", "me", raw, 60_000)
    assert await store.get(resp, "k:é") == raw
    assert await store.get_many(resp, ["none", "k:é"]) == [None, raw]
    assert await acquire(store, resp, "k:é", "other") == Hit(raw)
    assert await acquire_many(store, resp, {"k:é": "a", "new": "b"}) == {"k:é": Hit(raw), "new": Granted()}
    assert await fill_many(store, resp, [("new", "b", b"1", 1000), ("k:é", "a", b"2", 1000)]) == [True, False]
    assert await store.inspect(resp, "absent") == Entry(None, 0, leased=False, barred=False)
    intent = store.intent(resp)
    intent.add([prefix("k:*")])
    intent.put("k:é", b"3", 1000)
    await intent.begin()
    assert (await store.inspect(resp, "k:é")).barred
    await intent.end(committed=True)
    assert await store.get(resp, "k:é") == b"3"
    assert await store.invalidate(resp, [prefix("*")]) == 2


async def test_a_hit_is_one_get(gated: GatedClient, store: Store) -> None:
    """A read sends one GET, many reads one MGET, none nothing."""
    await store.get(gated, "a")
    await store.get_many(gated, ["a", "b"])
    assert await store.get_many(gated, []) == []
    assert await acquire_many(store, gated, {}) == {}
    assert await fill_many(store, gated, []) == []
    await store.release(gated, {})
    assert [command for _, command in gated.log] == [("GET", b"a"), ("MGET", b"a", b"b")]


async def test_an_entry_with_its_life(resp: Redis, store: Store) -> None:
    """Milliseconds left, -1 for an entry that never expires; None for what is not there."""
    await acquire(store, resp, "k:1", "me")
    await fill(store, resp, "k:1", "me", b"1", 60_000)
    await resp.set("k:2", "2")
    first, none, second = await store.get_many(resp, ["k:1", "none", "k:2"], timed=True)
    assert first is not None
    assert (first.raw, none, second) == (b"1", None, Timed(b"2", -1))
    assert 50_000 < first.ttl_ms <= 60_000
    assert await get_timed(store, resp, "k:2") == Timed(b"2", -1)
    assert await get_timed(store, resp, "none") is None
    assert await store.get_many(resp, [], timed=True) == []


async def test_an_entry_that_goes_while_it_is_read_is_none(gated: GatedClient, store: Store) -> None:
    """A value without a life is not there: it ran out, or another client has deleted it."""

    class Late(GatedClient):
        def pipeline(self, *args: Any, **options: Any) -> Any:
            made = super().pipeline(*args, **options)
            send = made.execute

            async def execute(raise_on_error: bool = True) -> list[Any]:
                made.command_stack.insert(1, (("DEL", "k"), {}))  # between the value and its life
                value, _, life = await send(raise_on_error)
                return [value, life]

            made.execute = execute  # type: ignore[method-assign]
            return made

    await gated.set("k", "1")
    assert await get_timed(store, Late(gated), "k") is None


async def test_an_entry_that_was_seen_does_not_answer(any_client: Redis, store: Store) -> None:
    """A caller that has seen the entry wants to load, or what came after it: that lives longer, or for ever."""
    await acquire(store, any_client, "k", "a")
    await fill(store, any_client, "k", "a", b"1", 10_000)
    seen = await get_timed(store, any_client, "k")
    assert seen is not None
    assert await acquire(store, any_client, "k", "b") == Hit(b"1")
    assert await acquire(store, any_client, "k", "b", seen_ms=seen.ttl_ms) == Granted()
    assert await acquire(store, any_client, "k", "c", seen_ms=seen.ttl_ms) == Busy("b")
    await fill(store, any_client, "k", "b", b"2", 20_000)
    assert await acquire(store, any_client, "k", "c", seen_ms=seen.ttl_ms) == Hit(b"2")
    outcomes = await acquire_many(store, any_client, {"k": "d", "new": "e"}, seen={"k": Timed(b"", 20_000)})
    assert outcomes == {"k": Granted(), "new": Granted()}
    await any_client.persist("k")
    assert await acquire(store, any_client, "k", "d", seen_ms=20_000) == Hit(b"2")


async def test_busy_names_the_holder(any_client: Redis, store: Store) -> None:
    """The second caller gets the token of the first, until that one releases; a stranger cannot release it."""
    await acquire(store, any_client, "k", "first")
    await release(store, any_client, "k", "second")
    assert await acquire(store, any_client, "k", "second") == Busy("first")
    await release(store, any_client, "k", "first")
    assert await acquire(store, any_client, "k", "second") == Granted()


async def test_a_lost_reply_of_acquire_is_granted_again(gated: GatedClient, store: Store) -> None:
    """The server took the lease and the reply was lost: the same token is granted when it asks again."""
    gated.fail_with(ConnectionError("cut"), times=1, sent=True)
    with pytest.raises(CacheUnavailableError):
        await acquire(store, gated, "k", "me")
    assert (await store.inspect(gated, "k")).leased
    assert await acquire(store, gated, "k", "me") == Granted()


async def test_a_cancelled_acquire_can_be_released(gated: GatedClient, store: Store) -> None:
    """A caller that is cancelled after the grant gives the lease back by its token."""
    gate = gated.after(gated.name_of(("EVALSHA", load_script("server", "acquire").sha)))
    await acquire(store, Redis(connection_pool=gated.connection_pool), "other", "loads the script")
    task = asyncio.create_task(acquire(store, gated, "k", "me"))
    await gate.reached()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert (await store.inspect(gated, "k")).leased
    await release(store, gated, "k", "me")
    assert not (await store.inspect(gated, "k")).leased


async def test_fill_needs_the_lease(any_client: Redis, store: Store) -> None:
    """A load that lost its lease (time, another holder, an invalidation) is not stored."""
    await acquire(store, any_client, "k", "slow")
    await lapse(any_client, "fastrdb:lease:{k}")
    assert not await fill(store, any_client, "k", "slow", b"old", 60_000)
    await acquire(store, any_client, "k", "next")
    assert not await fill(store, any_client, "k", "slow", b"old", 60_000)
    await store.invalidate(any_client, keys=["k"])
    assert not await fill(store, any_client, "k", "next", b"old", 60_000)
    assert await store.get(any_client, "k") is None


async def test_a_fill_uses_the_lease_up(any_client: Redis, store: Store) -> None:
    """One lease is one fill: the same token cannot store a second time."""
    await acquire(store, any_client, "k", "me")
    assert await fill(store, any_client, "k", "me", b"1", 60_000)
    assert not await fill(store, any_client, "k", "me", b"2", 60_000)
    assert await store.get(any_client, "k") == b"1"


async def test_refresh_loads_past_an_entry(any_client: Redis, store: Store) -> None:
    """A refresh is granted though there is an entry, and only to one at a time; the entry stays until the fill."""
    await acquire(store, any_client, "k", "a")
    await fill(store, any_client, "k", "a", b"1", 60_000)
    assert await acquire(store, any_client, "k", "b", refresh=True) == Granted()
    assert await acquire(store, any_client, "k", "c", refresh=True) == Busy("b")
    assert await store.get(any_client, "k") == b"1"
    assert await fill(store, any_client, "k", "b", b"2", 60_000)
    assert await store.get(any_client, "k") == b"2"


async def test_discard_spares_a_better_entry(any_client: Redis, store: Store) -> None:
    """An unreadable entry goes; one that has replaced it meanwhile stays."""
    await any_client.set("k", b"broken")
    assert not await store.discard(any_client, "k", b"other")
    assert await store.discard(any_client, "k", b"broken")
    assert not await store.discard(any_client, "k", b"broken")


@pytest.mark.parametrize("size", [0, 1, 127, 128, 129, 4095, 4096])
async def test_discard_compares_a_small_entry_as_a_whole(any_client: Redis, store: Store, size: int) -> None:
    """One byte that differs, wherever it is, or one more, is another entry."""
    raw = bytes(at % 251 for at in range(size))
    await any_client.set("k", raw)
    for at in {0, size // 2, size - 1} if size else ():
        assert not await store.discard(any_client, "k", raw[:at] + b"\xff" + raw[at + 1 :])
    assert not await store.discard(any_client, "k", raw + b"x")
    assert await store.discard(any_client, "k", raw)
    assert not await any_client.exists("k")


@pytest.mark.parametrize("size", [4097, 8191, 8193, 1024 * 1024 - 1, 1024 * 1024])
async def test_discard_sends_little_of_a_large_entry(
    any_client: Redis, store: Store, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    """A script that is given a megabyte, or reads one, holds the server up for milliseconds."""
    sent: list[Command] = []
    send = store._link.many

    async def many(client: Redis, commands: Sequence[Command], **options: Any) -> list[Any]:
        sent.extend(commands)
        return await send(client, commands, **options)

    monkeypatch.setattr(store._link, "many", many)
    raw = bytes(at % 251 for at in range(size))
    await any_client.set("k", raw)
    for other in (raw[:-1], raw + b"x", b"\xff" + raw[1:], b"\xff" * size):
        assert not await store.discard(any_client, "k", other)
    assert await store.discard(any_client, "k", raw)
    assert not await any_client.exists("k")
    assert all(sum(len(part) for part in command[4:] if isinstance(part, bytes)) <= 4096 for command in sent)


async def test_inspect(any_client: Redis, store: Store) -> None:
    """TTL, size, lease and barrier are returned without a change of any of them."""
    await any_client.set("forever", b"12345")
    await acquire(store, any_client, "leased", "me")
    intent = store.intent(any_client)
    intent.add(keys=["barred"])
    await intent.begin()
    assert await store.inspect(any_client, "forever") == Entry(-1, 5, leased=False, barred=False)
    assert await store.inspect(any_client, "leased") == Entry(None, 0, leased=True, barred=False)
    assert await store.inspect(any_client, "barred") == Entry(None, 0, leased=False, barred=True)


async def test_many_at_once(any_client: Redis, store: Store) -> None:
    """One pipeline asks for many keys, each with its own outcome, and one stores many, also after SCRIPT FLUSH."""
    await acquire(store, any_client, "k:1", "other")
    intent = store.intent(any_client)
    intent.add(keys=["k:2"])
    await intent.begin()
    await any_client.script_flush()
    outcomes = await acquire_many(store, any_client, {f"k:{n}": f"t{n}" for n in range(5)})
    assert [outcomes[f"k:{n}"] for n in range(5)] == [Granted(), Busy("other"), Barred(), Granted(), Granted()]
    await any_client.script_flush()
    fills = [(f"k:{n}", f"t{n}", b"%d" % n, 60_000) for n in range(5)]
    assert await fill_many(store, any_client, fills) == [True, False, False, True, True]
    assert await store.get_many(any_client, [f"k:{n}" for n in range(5)]) == [b"0", None, None, b"3", b"4"]


async def test_very_many_go_in_parts(gated: GatedClient) -> None:
    """So that others need not wait for all of them; all are answered, in order."""
    store = Store(timeout=5, chunk=2)
    tokens = {f"k:{n}": f"t{n}" for n in range(5)}
    assert await acquire_many(store, gated, tokens) == dict.fromkeys(tokens, Granted())
    assert await acquire_many(store, gated, {"k:4": "t"}, refresh=True) == {"k:4": Busy("t4")}
    await store.release(gated, {"k:none": "t"})  # brings the script: it would be sent twice else
    gated.log.clear()
    gate = gated.after("release")
    releasing = asyncio.create_task(store.release(gated, tokens))
    await gate.reached()
    assert gated.names() == ["release"] * 2
    gate.open()
    await releasing
    assert gated.names() == ["release"] * 5
    assert await gated.keys("fastrdb:lease:*") == []


async def test_an_error_of_one_of_many_is_an_error(any_client: Redis, store: Store) -> None:
    """A key that holds something else makes the whole call fail, when all others have been asked for."""
    await any_client.rpush("k:1", "not a string")
    with pytest.raises(CacheUnavailableError, match="WRONGTYPE"):
        await acquire_many(store, any_client, {f"k:{n}": "t" for n in range(3)})
    assert (await store.inspect(any_client, "k:2")).leased


async def test_namespaces_do_not_meet(any_client: Redis) -> None:
    """Everything of one namespace is invalidated, and nothing of another or of none."""
    stores = {name: store_on(any_client, namespace=name) for name in ("", "a", "ab")}
    for store in stores.values():
        await acquire(store, any_client, "k", "t")
        await fill(store, any_client, "k", "t", b"1", 60_000)
    assert await any_client.exists("k", "a:k", "ab:k") == 3
    assert stores["a"].name("k") == "a:k"
    intent = stores["a"].intent(any_client)
    intent.add([prefix("*")])
    await intent.begin()
    assert {name: await store.get(any_client, "k") for name, store in stores.items()} == {
        "": b"1",
        "a": None,
        "ab": b"1",
    }
    assert await acquire(stores["a"], any_client, "k", "t") == Barred()
    assert await acquire(stores["ab"], any_client, "new", "t") == Granted()
    assert await members(any_client, "index", "a") == (set() if not is_cluster(any_client) else {b"a:k"})


async def test_a_hash_tag_of_the_key_is_kept(any_client: Redis, store: Store) -> None:
    """A key with its own hash tag gives its lease no second pair of braces, in Python and in the sweep alike."""
    await acquire(store, any_client, "user:{7}:name", "t")
    assert await any_client.exists("fastrdb:lease:user:{7}:name") == 1
    await store.invalidate(any_client, [prefix("user:*")])
    assert await any_client.exists("fastrdb:lease:user:{7}:name") == 0


async def test_the_dead_are_swept_by_fills(any_client: Redis, store: Store) -> None:
    """Index members whose time is over and whose entry and lease are gone go with later fills; the living stay."""
    for n in range(30):
        await acquire(store, any_client, f"dead:{n}", "t")
        await lapse(any_client, f"fastrdb:lease:{{dead:{n}}}")
    await acquire(store, any_client, "alive", "t")
    await fill(store, any_client, "alive", "t", b"1", 60_000)
    await put(any_client, "expiry", {"alive": 1, **{f"dead:{n}": 1 for n in range(30)}})
    fills = 60 if is_cluster(any_client) else 5  # in each shard one at least
    for n in range(fills):
        await acquire(store, any_client, f"new:{n}", "t")
        await fill(store, any_client, f"new:{n}", "t", b"1", 60_000)
    await store.aclose()
    expected = {b"alive", *(b"new:%d" % n for n in range(fills))}
    assert await members(any_client, "index") == expected
    assert await members(any_client, "expiry") == expected


@pytest.mark.parametrize("ttl_ms", [SHORT, 3_600_000])
async def test_an_index_member_outlives_entry_and_lease(any_client: Redis, ttl_ms: int) -> None:
    """The score of a member lies behind the death of its entry and of its lease, as long as there is one."""
    store, expiry = store_on(any_client, lease=60), key_of(any_client, "expiry", "k")
    now = time.time() * 1000  # it is one machine
    await acquire(store, any_client, "k", "a")
    assert (await any_client.zscore(expiry, "k") or 0) > now + 60_000
    await fill(store, any_client, "k", "a", b"1", ttl_ms)
    left = 60_000 if is_cluster(any_client) else 0  # there the score is not that near
    assert (await any_client.zscore(expiry, "k") or 0) > now + max(left, ttl_ms)


async def test_a_grant_that_arrives_twice(any_client: Any) -> None:
    """An acquire that was sent again, and whose first copy arrives when a writer has come between: what was loaded
    before the writer is not stored under it. Sent again with nothing between, it is one grant."""
    store, copy = store_on(any_client), store_on(any_client)
    for written in (True, False):
        assert await acquire(store, any_client, "k", "me") == Granted()
        if written:
            await store.invalidate(any_client, keys=["k"])
        assert await acquire(copy, any_client, "k", "me") == Granted()
        assert await fill(store, any_client, "k", "me", b"old", 60_000) is not written
        await release(store, any_client, "k", "me")


async def test_what_redis_does_not_do_is_said_in_one_way(server: EmbeddedServer, store: Store) -> None:
    """An error of the network or of the server becomes CacheUnavailableError, naming operation and reason."""
    once = Retry(NoBackoff(), 0)
    dead = Redis(host="127.0.0.1", port=1, retry=once)
    with pytest.raises(CacheUnavailableError) as caught:
        await store.get(dead, "k")
    assert caught.value.operation == "GET"
    assert caught.value.reason
    async with Redis(port=server.port, username="nobody", password="none", retry=once) as denied:
        with pytest.raises(CacheUnavailableError, match="acquire: invalid username"):
            await acquire(store, denied, "k", "t")
