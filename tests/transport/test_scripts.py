"""How the store speaks to Redis: scripts that the server may not know, deadlines, errors, cancellation."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from redis.asyncio import Redis

import fastrdb
from fastrdb.errors import CacheUnavailableError
from fastrdb.keys.prefix import Prefix
from fastrdb.protocol import Granted, Store
from fastrdb.protocol.keyspace import Keyspace
from fastrdb.protocol.lua import IN_FRONT, load_script
from fastrdb.testing import GatedClient
from tests.support.world.stores import acquire, acquire_many, fill, release


@contextlib.asynccontextmanager
async def black_hole() -> AsyncIterator[Redis]:
    """Yield a client of a server that accepts everything and answers nothing; not even the handshake."""
    held: list[asyncio.StreamWriter] = []
    listener = await asyncio.start_server(lambda _, writer: held.append(writer), "127.0.0.1", 0)
    try:
        async with Redis(port=listener.sockets[0].getsockname()[1]) as client:
            yield client
    finally:
        for writer in held:
            writer.close()
        listener.close()


@pytest.mark.parametrize(
    "path",
    sorted((Path(fastrdb.__file__).parent / "protocol" / "lua").rglob("*.lua")),
    ids=lambda path: f"{path.parent.name}-{path.stem}",
)
def test_every_script_says_what_it_takes_and_gives(path: Path) -> None:
    """A script states its KEYS, its ARGV and its result, and is short."""
    text = path.read_text("utf-8")
    assert len(text.splitlines()) < 220
    if path.stem not in (*IN_FRONT, "shared"):
        assert all(f"\n-- {part}: " in text for part in ("KEYS", "ARGV", "Result"))


async def test_a_script_is_sent_once(gated: GatedClient) -> None:
    """The text goes out only to a server that does not know the script, and after SCRIPT FLUSH again."""
    store = Store(timeout=5)
    await gated.script_flush()
    for _ in range(2):
        gated.log.clear()
        for n in range(3):
            await release(store, gated, f"k:{n}", "t")
        assert [args[0] for _, args in gated.log] == ["EVALSHA", "EVAL", "EVALSHA", "EVALSHA"]
        await gated.script_flush()


async def test_a_batch_brings_its_script_along_once(gated: GatedClient) -> None:
    """Of many calls that the server does not know, one carries the text."""
    await gated.script_flush()
    gated.log.clear()
    outcomes = await acquire_many(Store(timeout=5), gated, {f"k:{n}": "t" for n in range(4)})
    assert [args[0] for _, args in gated.log] == ["EVALSHA"] * 4 + ["EVAL"] + ["EVALSHA"] * 3
    assert set(outcomes.values()) == {Granted()}


async def test_a_server_that_never_answers_costs_the_deadline() -> None:
    """Each operation ends at the store's own deadline, and says that it was one."""
    async with black_hole() as client:
        operations: list[Callable[[Store], Awaitable[object]]] = [
            lambda store: store.get(client, "k"),
            lambda store: store.get_many(client, ["k"]),
            lambda store: acquire(store, client, "k", "t"),
            lambda store: acquire_many(store, client, {"k": "t"}),
            lambda store: fill(store, client, "k", "t", b"1", 1000),
            lambda store: release(store, client, "k", "t"),
            lambda store: store.discard(client, "k", b"1"),
            lambda store: store.invalidate(client, keys=["k"]),
            lambda store: store.inspect(client, "k"),
        ]
        for operation in operations:
            with pytest.raises(CacheUnavailableError, match="no answer within"):
                await asyncio.wait_for(operation(Store(timeout=0.02)), 5)


async def test_a_cancellation_is_not_taken_for_a_deadline(gated: GatedClient) -> None:
    """A caller that is cancelled while it waits for Redis is cancelled, though a deadline is running."""
    gate = gated.before("GET")
    task = asyncio.ensure_future(Store(timeout=60).get(gated, "k"))
    await gate.reached()
    task.cancel("from outside")
    with pytest.raises(asyncio.CancelledError, match="from outside"):
        await task


async def test_a_cancelled_read_leaves_no_reply_to_others(client: Redis) -> None:
    """The replies of cancelled reads reach no other caller."""
    store = Store(timeout=5)
    await client.mset({f"k:{n}": n for n in range(20)})

    async def read(n: int) -> bytes | None:
        return await store.get(client, f"k:{n}")

    for at in range(20):
        tasks = [asyncio.create_task(read(n)) for n in range(20)]
        for _ in range(at % 7):
            await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        replies = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(reply == b"%d" % n for n, reply in enumerate(replies) if n % 2)


async def test_a_server_without_memory(client: Redis) -> None:
    """Out of memory, nothing is stored and no call fails otherwise; invalidating by hand still works."""
    store = Store(timeout=5)
    await acquire(store, client, "k", "t")
    await fill(store, client, "k", "t", b"1", 60_000)
    await client.config_set("maxmemory", 1)
    try:
        with pytest.raises(CacheUnavailableError, match=r"OOM|maxmemory"):
            await acquire(store, client, "new", "t")
        assert await store.invalidate(client, [Prefix("k")]) == 1
    finally:
        await client.config_set("maxmemory", 0)
    assert await store.get(client, "k") is None


def test_lease_names_follow_the_slot() -> None:
    """The lease lies in its key's slot: by new braces, or by the key's own hash tag where it has one."""
    names = Keyspace("ns")
    assert names.lease(b"ns:a") == b"fastrdb:ns:lease:{ns:a}"
    assert names.lease(b"ns:{a}:b") == b"fastrdb:ns:lease:ns:{a}:b"
    assert names.lease(b"ns:a{}b") == b"fastrdb:ns:lease:{ns:a{}b}"


def test_the_sha_is_that_of_what_is_sent() -> None:
    """Redis knows a script by the SHA-1 of its text."""
    script = load_script("server", "acquire")
    assert len(script.sha) == 40
    assert script.text.endswith("return {'granted', held}\n")
