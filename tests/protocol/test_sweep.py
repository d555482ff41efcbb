"""Which keys an invalidation reaches, and in which order and portions."""

from __future__ import annotations

import pytest
from redis.asyncio import Redis

from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Granted, Store
from fastrdb.protocol.keyspace import Target, batches
from fastrdb.testing import GatedClient
from tests.protocol.test_store import prefix
from tests.support.world.stores import acquire, acquire_many, fill_many, members, names_in, put, store_on


async def stored(client: Redis, store: Store, keys: list[str]) -> None:
    """Put an entry under each key, as readers do."""
    await acquire_many(store, client, dict.fromkeys(keys, "t"))
    assert await fill_many(store, client, [(key, "t", b"1", 60_000) for key in keys]) == [True] * len(keys)


@pytest.mark.parametrize("chunk", [1, 7, 256])
async def test_a_thousand_keys_in_portions(any_client: Redis, chunk: int) -> None:
    """All entries and leases under a prefix go, and nothing beside it, whatever the size of a portion."""
    store = store_on(any_client, chunk=chunk)
    inside = [f"user:{n}" for n in range(1000 if chunk > 1 else 50)]
    await stored(any_client, store, [*inside, "use", "user", "user;", "users:1"])
    await acquire(store, any_client, "user:leased", "t")
    assert await store.invalidate(any_client, [prefix("user:*")]) == len(inside)
    assert await names_in(any_client, "[^f]*") == {b"use", b"user", b"user;", b"users:1"}
    assert not (await store.inspect(any_client, "user:leased")).leased
    left = {b"use", b"user", b"user;", b"users:1"}
    assert await members(any_client, "index") >= left


async def test_every_byte_is_inside_the_range(any_client: Redis) -> None:
    """No byte that a key may go on with falls out of the range, 0xff least of all."""
    store = store_on(any_client)
    assert await store.get(any_client, "k") is None
    names = [b"p:" + bytes([n]) for n in range(256)]
    for name in names:
        await any_client.set(name, b"1")
    await put(any_client, "index", dict.fromkeys(names, 0))
    assert await store.invalidate(any_client, [prefix("p:*")]) == 256


@pytest.mark.parametrize(
    ("head", "first", "last"),
    [(b"a", b"[a", b"(b"), (b"a\xff", b"[a\xff", b"(b"), (b"\xff", b"[\xff", b"+"), (b"", b"[\1", b"+")],
)
def test_a_range_ends_behind_its_last_key(head: bytes, first: bytes, last: bytes) -> None:
    """A range ends at its head with the last byte incremented, or at the end of all keys."""
    assert Target(head).range()[:2] == (first, last)


async def test_a_filter_takes_only_what_it_matches(any_client: Redis) -> None:
    """A key in the range that does not match the filter stays, under a namespace too."""
    for namespace in ("", "ns"):
        store = store_on(any_client, namespace=namespace, chunk=3)
        keys = [f"user:{n}:{part}" for n in range(9) for part in ("name", "mail")] + ["user:4", "user:42", "user:4?a=1"]
        await stored(any_client, store, keys)
        assert await store.invalidate(any_client, [prefix("user:*:name")]) == 9
        whole = Prefix.of("user:4", whole=True)
        assert whole is not None
        assert await store.invalidate(any_client, [whole]) == 3
        left = {f"user:{n}:mail" for n in range(9) if n != 4} | {"user:42"}
        assert {key for key in keys if await store.get(any_client, key)} == left


async def test_a_filter_bars_only_what_it_matches(any_client: Redis) -> None:
    """Readers of keys beside the filter are not barred."""
    store = store_on(any_client, namespace="ns")
    intent = store.intent(any_client)
    intent.add([prefix("user:*:name")])
    await intent.begin()
    assert (await store.inspect(any_client, "user:1:name")).barred
    assert not (await store.inspect(any_client, "user:1:mail")).barred


async def test_filter_of_another_version_reaches_all(any_client: Redis) -> None:
    """More is invalidated, never less: a filter that cannot be read lets every key of the range through."""
    store = store_on(any_client)
    await stored(any_client, store, ["a:1", "b:1"])
    assert (await store._backend.delete(any_client, [Target(b"a:", b"^a:%")])).deleted == 1
    assert await store.get(any_client, "b:1") == b"1"


async def test_nothing_at_all_sends_nothing(gated: GatedClient) -> None:
    """An invalidation of nothing costs no round trip."""
    assert await Store().invalidate(gated, [], []) == 0
    intent = Store().intent(gated)
    await intent.begin()
    await intent.end(committed=True)
    assert gated.log == []


async def test_a_portion_is_bounded_though_nothing_matches(gated: GatedClient) -> None:
    """A script looks at `chunk` members and no more, also when its filter rejects them all."""
    store = Store(timeout=5, chunk=10)
    await stored(gated, store, [f"user:{n}:mail" for n in range(95)])
    gated.log.clear()
    assert await store.invalidate(gated, [prefix("user:*:name"), prefix("none:*")]) == 0
    assert len(gated.log) in {10, 11}  # one more where the script had to be sent


async def test_all_that_one_call_does_is_bounded(gated: GatedClient) -> None:
    """Ranges share the budget of a call, and keys are cut into portions too."""
    store = Store(timeout=5, chunk=10)
    await stored(gated, store, [f"p{n}:{m}" for n in range(5) for m in range(9)])
    assert await store.invalidate(gated, keys=["loads the script"]) == 0
    gated.log.clear()
    assert await store.invalidate(gated, [prefix(f"p{n}:") for n in range(5)]) == 45
    assert len(gated.log) == 5
    gated.log.clear()
    await store.invalidate(gated, keys=[f"k:{n}" for n in range(25)])
    assert len(gated.log) == 3


async def test_exact_keys_need_no_index(any_client: Redis) -> None:
    """A key named in full is deleted though the index does not know it."""
    await any_client.set("k", b"1")
    assert await store_on(any_client).invalidate(any_client, keys=["k", "absent"]) == 1


async def test_hand_invalidation_sets_no_barrier(any_client: Redis) -> None:
    """After an invalidation by hand, the next reader may store."""
    store = store_on(any_client)
    await store.invalidate(any_client, [prefix("*")], ["k"])
    assert await acquire(store, any_client, "k", "t") == Granted()


def test_batches_keep_the_order_of_all_lists() -> None:
    """No item of a later list comes in an earlier call than any item of an earlier list; calls are bounded."""
    calls = list(batches(3, [b"1", b"2", b"3", b"4"], [(b"5", b"1")], [], [b"6", b"7"]))
    assert calls == [[[b"1", b"2", b"3"], [], [], []], [[b"4"], [(b"5", b"1")], [], [b"6"]], [[], [], [], [b"7"]]]
    assert len(list(batches(100, [b"x" * 100_000] * 5))) == 3
    assert list(batches(3, [], [])) == []
