"""Stores on whatever there is, and what a test looks at beneath them: on one server, or on all shards of a cluster."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any
from weakref import WeakKeyDictionary

from redis.asyncio.cluster import RedisCluster

from fastrdb.protocol import Fill, Granted, Outcome, Store, Timed, scripts
from fastrdb.protocol.keyspace import ClusterKeyspace

MARK = b"\0"
"""What members of an index begin with that say where it is whole."""
NOBODY = b"0" * 32 + b"\0\n"
"""What is in the barriers of each shard at any time."""


def is_cluster(client: Any) -> bool:
    """Return True for the client of a cluster."""
    return isinstance(client, RedisCluster)


def store_on(client: Any, **settings: Any) -> Store:
    """Return a store with a deadline that a busy machine keeps."""
    return Store(**{"timeout": 5, "cluster": is_cluster(client), **settings})


@asynccontextmanager
async def open_store(client: Any, **settings: Any) -> AsyncIterator[Store]:
    """Open a store, and close it, however the block is left."""
    made = store_on(client, **settings)
    try:
        yield made
    finally:
        await made.aclose()


_granted: WeakKeyDictionary[Store, dict[tuple[str, str], bytes]] = WeakKeyDictionary()
"""The lease that a key's token was granted last by a store: tests name leases by their tokens."""


async def acquire(
    store: Store, client: Any, key: str, token: str, *, refresh: bool = False, seen_ms: int | None = None
) -> Outcome:
    """Ask for one lease."""
    seen = {} if seen_ms is None else {key: Timed(b"", seen_ms)}
    return (await acquire_many(store, client, {key: token}, refresh=refresh, seen=seen))[key]


async def acquire_many(store: Store, client: Any, tokens: dict[str, str], **options: Any) -> dict[str, Outcome]:
    """Ask for leases, and remember those that are granted."""
    outcomes = await store.acquire(client, tokens, **options)
    for key, outcome in outcomes.items():
        if isinstance(outcome, Granted):
            _granted.setdefault(store, {})[key, tokens[key]] = outcome.lease
    return outcomes


async def fill(store: Store, client: Any, key: str, token: str, raw: bytes, ttl_ms: int) -> bool | bytes:
    """Store one entry under the lease that the token was granted."""
    (stored,) = await fill_many(store, client, [(key, token, raw, ttl_ms)])
    return stored


async def fill_many(store: Store, client: Any, fills: Sequence[tuple[str, str, bytes, int]]) -> list[bool | bytes]:
    """Store entries under the leases that the tokens were granted."""
    granted = _granted.get(store, {})
    return await store.fill(
        client, [Fill(key, granted.get((key, token), b"none"), raw, ttl_ms) for key, token, raw, ttl_ms in fills]
    )


async def release(store: Store, client: Any, key: str, token: str) -> None:
    """Release one lease."""
    await store.release(client, {key: token})


async def get_timed(store: Store, client: Any, key: str) -> Timed | None:
    """Return one entry with what is left of its life."""
    (found,) = await store.get_many(client, [key], timed=True)
    return found


def keys_of(client: Any, part: str, namespace: str = "") -> list[bytes]:
    """Return the keys that hold a part of the store's own: its index, expiry or barriers."""
    if not is_cluster(client):
        return [f"fastrdb:{namespace + ':' if namespace else ''}{part}".encode()]
    return [getattr(shard, part) for shard in ClusterKeyspace(namespace).shards]


def key_of(client: Any, part: str, entry: str) -> bytes:
    """Return the key of a part of the store's own that concerns an entry."""
    if not is_cluster(client):
        return f"fastrdb:{part}".encode()
    found: bytes = getattr(ClusterKeyspace("").shard(entry.encode()), part)
    return found


async def members(client: Any, part: str, namespace: str = "") -> set[bytes]:
    """Return the members of a part."""
    found: set[bytes] = set()
    for key in keys_of(client, part, namespace):
        found.update(await client.zrange(key, 0, -1))
    return {member for member in found if not member.startswith(MARK)} - {NOBODY}


async def put(client: Any, part: str, scores: dict[Any, float]) -> None:
    """Put members into a part, each where it belongs."""
    for member, score in scores.items():
        name = member.decode("latin-1") if isinstance(member, bytes) else member
        key = key_of(client, part, name) if part != "barriers" else None
        for each in [key] if key is not None else keys_of(client, part):
            await client.zadd(each, {member: score})


async def load_scripts(client: Any) -> None:
    """Bring all scripts to the server: the first call of each would be sent twice, and be counted twice."""
    for script in scripts():
        await client.script_load(script.text)


async def lose(client: Any, *parts: str) -> None:
    """Delete parts."""
    for part in parts:
        for key in keys_of(client, part):
            await client.delete(key)


async def lapse_barriers(client: Any) -> None:
    """Delete all barriers, as when their time is over."""
    for key in keys_of(client, "barriers"):
        await client.zremrangebyscore(key, "-inf", "(+inf")


async def names_in(client: Any, pattern: str = "*") -> set[bytes]:
    """Return all keys that match, wherever these are."""
    if not is_cluster(client):
        return set(await client.keys(pattern))
    return set(await client.keys(pattern, target_nodes=RedisCluster.PRIMARIES))


async def entries(client: Any) -> set[str]:
    """Return the keys of entries."""
    return {key.decode() for key in await names_in(client) if not key.startswith(b"fastrdb:")}
