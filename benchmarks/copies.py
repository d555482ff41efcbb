"""Fills a server with entries as a contestant leaves them, without making each by a call.

The contestant makes one; what the server then holds about that key is copied as often as wanted: the entry itself, and
its membership in sorted sets, sets and hashes, whatever they are called. Nothing is known here of anybody's layout.
"""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, cast

from redis.asyncio import Redis

CHUNK = 2_000
SCRIPT = """
local stem, first, last = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3])
for number = first, last do
    local name = stem .. string.format('%d', number)
    redis.call('COPY', KEYS[1], name)
    for at = 4, #ARGV, 3 do
        local kind, holder, value = ARGV[at], ARGV[at + 1], ARGV[at + 2]
        if kind == 'zset' then redis.call('ZADD', holder, value, name)
        elseif kind == 'set' then redis.call('SADD', holder, name)
        else redis.call('HSET', holder, name, value) end
    end
end
"""


async def entry_key(client: Redis, head: str, number: int) -> str:
    """The key of the one entry that a contestant has made for this number under `head`."""
    found = {key async for key in client.scan_iter(match=f"*{head}:{number}", _type="string")}  # may come twice
    assert len(found) == 1, f"{head}:{number}: {found!r}"
    return str(found.pop().decode())


async def copies(client: Redis, key: str, count: int) -> str:
    """Copy what the server holds about `key`, a name that ends in `:0`, for the numbers 1 to `count`; give the last."""
    stem, digit = key[:-1], key[-1]
    assert digit == "0"
    held = [text for holder in await _holders(client, key) for text in holder]
    script = client.register_script(SCRIPT)
    for first in range(1, count + 1, CHUNK):
        last = min(first + CHUNK - 1, count)
        await script(keys=[key], args=[stem, first, last, *held])
    return f"{stem}{count}"


async def _holders(client: Redis, key: str) -> list[tuple[Any, Any, Any]]:
    """Which keys of the server have `key` as a member: their type and name, and its score or value."""
    found: list[tuple[Any, Any, Any]] = []
    for name in await client.keys("*"):
        kind: Any = await client.type(name)
        value: Any = None
        if kind == b"zset":
            score = await client.zscore(name, key)
            value = None if score is None else f"{score:.17g}"
        elif kind == b"set":
            value = await cast("Awaitable[int]", client.sismember(name, key)) or None
        elif kind == b"hash":
            value = await cast("Awaitable[Any]", client.hget(name, key))
        if value is not None:
            found.append((kind, name, value))
    return found
