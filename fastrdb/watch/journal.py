"""The record of a watcher in Redis: the position behind the last change that reached Redis, and a heartbeat.

One hash for each namespace, with two fields for each database. The heartbeat is the moment up to which all commits
are in Redis. The moment is by the clock of Redis, so that the clocks of other machines do not matter.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from fastrdb.keys import shown
from fastrdb.protocol import Inspector

if TYPE_CHECKING:
    from fastrdb.cache import Cache
    from fastrdb.protocol import Store

SILENT_S: Final = 10.0
"""The age in seconds from which a heartbeat means a silent watcher: a running one renews it each half second."""
_CLOCK: Final = """
local now = redis.call('TIME')
return now[1] * 1000 + math.floor(now[2] / 1000)
"""


class Journal:
    """The fields of one database in the hash of a cache's namespace. Used in an event loop."""

    def __init__(self, cache: Cache, name: str) -> None:
        self._cache, self._name = cache, name
        self._client: Any = cache.redis

    @property
    def _key(self) -> bytes:
        return _store(self._cache).keyspace.watch

    async def position(self) -> str | None:
        """Return the position that the last poll reached; None if there was no poll."""
        found = await self._client.hget(self._key, f"{self._name}\0position")
        return found.decode() if isinstance(found, bytes) else found

    async def clock(self) -> int:
        """Return the time of Redis in milliseconds, for `save`."""
        return int(await self._client.eval(_CLOCK, 1, self._key))

    async def save(self, position: str, moment: int | None = None) -> None:
        """Store the position, and the heartbeat if `moment` is given. May be repeated.

        Args:
            position: behind the last change that is in Redis.
            moment: what `clock` returned before the poll that reached the position, in milliseconds.
        """
        fields: dict[str, str | int] = {f"{self._name}\0position": position}
        if moment is not None:
            fields[f"{self._name}\0alive"] = moment
        await self._client.hset(self._key, mapping=fields)

    async def forget(self) -> bool:
        """Delete the fields of this database: the next watcher begins by invalidating everything.

        Return False if there were none. May be repeated.
        """
        return bool(await self._client.hdel(self._key, f"{self._name}\0position", f"{self._name}\0alive"))


async def ages(cache: Cache) -> dict[str, float]:
    """Return for each database the seconds since its watcher's heartbeat, by Redis' clock."""
    return await Inspector(cache.redis, cache.namespace).heartbeats()


async def columns_in_use(cache: Cache) -> list[str]:
    """Return the columns that entries in Redis are tagged by, as `table:column`."""
    client: Any = cache.redis
    found = set[str]()
    for shard in _store(cache).keyspace.shards:
        found.update(map(_text, await client.zrange(shard.columns, 0, -1)))
    return sorted({shown(name) for name in found if ":" in name})


def _store(cache: Cache) -> Store:
    return cache.runtime.store(cache.redis)


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
