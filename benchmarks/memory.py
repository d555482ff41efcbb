"""What the index weighs, in bytes for each key."""

from __future__ import annotations

from redis.asyncio import Redis

from benchmarks.filling import entries, index
from benchmarks.harness import Row, Sizes
from fastrdb.embedded import EmbeddedServer

HEAD = "user:email:someone@example.com"


async def rows(sizes: Sizes, client: Redis) -> list[Row]:
    """Weigh a server of its own before and after its keys are indexed."""
    count = sizes.indexed
    with EmbeddedServer() as server:
        async with Redis(host="127.0.0.1", port=server.port) as own:
            empty = await _used(own)
            await entries(own, HEAD, count)
            stored = await _used(own)
            await index(own, HEAD, count)
            indexed = await _used(own)
            parts = [await own.memory_usage(f"fastrdb:{name}", samples=0) or 0 for name in ("index", "expiry")]
    length = len(f"{HEAD}:{count}")
    a_key, an_entry = (indexed - stored) / count, (stored - empty) / count
    both, one = sum(parts) / count, parts[0] / count
    return [
        Row(f"memory of index and expiry, {count:,} keys of {length} bytes", f"{a_key:.0f} B a key", _plain(an_entry)),
        Row("the same by MEMORY USAGE", f"{both:.0f} B a key", f"the index alone: {one:.0f} B a key"),
    ]


def _plain(size: float) -> str:
    return f"the entry itself: {size:.0f} B a key"


async def _used(client: Redis) -> int:
    info = await client.info("memory")
    return int(info["used_memory"])
