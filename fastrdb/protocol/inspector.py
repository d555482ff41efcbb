"""What Redis holds of one namespace, for people: entries, barriers, leases, and the counts that processes publish.

Reads only, by plain commands on the caller's client: no script is run, no lease is taken, and no connection is opened.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from fastrdb.keys import Prefix, asked
from fastrdb.transport import is_cluster

from .keyspace import COMPLETE, NO_BARRIER, TAG, ClusterKeyspace, Keyspace, Shard, Target

_AT_ONCE = 512
_MOST_LEASES = 1_000
_BEAT = "\0alive"
"""The end of a field with a heartbeat, behind the database; other fields are positions."""
PUBLISHED_S = 30
"""Counts of a process that has published none for so many seconds are gone."""


@dataclass(frozen=True, slots=True)
class KeyInfo:
    """An entry in Redis: its key without the namespace, the seconds that Redis keeps it, its size in bytes.

    `ttl` is None for an entry that never expires.
    """

    key: str
    ttl: float | None
    size: int


@dataclass(frozen=True, slots=True)
class BarrierInfo:
    """A barrier: what a commit on its way is about to invalidate, and the seconds until the barrier lapses."""

    reach: str
    left: float


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """The index: how many keys it has, and whether it has all keys there are. A new namespace has none yet.

    `exists` is True for one that was lost.
    """

    keys: int
    whole: bool
    exists: bool


class Inspector:
    """A view of one namespace through a client of redis.asyncio, of one server or of a cluster.

    Every method raises what the client raises.
    """

    def __init__(self, client: Any, namespace: str = "") -> None:
        self._client = client
        self.keyspace = ClusterKeyspace(namespace) if is_cluster(client) else Keyspace(namespace)

    async def _do(self, *command: Any) -> Any:
        return await self._client.execute_command(*command)

    def _key(self, name: Any) -> str:
        return _text(name).removeprefix(self.keyspace.before.decode())

    # --- entries

    async def names(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that the index has under a prefix such as `user:*`, shard by shard. `""` is all of them.

        Raises PatternError for a prefix with placeholders.
        """
        found = next(iter(Prefix.plain(prefix, "Inspector")), Prefix(""))
        for shard in self.keyspace.shards:
            span = self.keyspace.under(found).range()
            while names := await self._do("ZRANGEBYLEX", shard.index, span.start, span.stop, "LIMIT", 0, _AT_ONCE):
                for name in map(_bytes, names):
                    if name >= b"\1" and found.matches(key := self._key(name)):
                        yield key
                span = span.behind(_bytes(names[-1]))

    async def keys(self, prefix: str = "", *, limit: int = 100) -> list[KeyInfo]:
        """Return at most `limit` entries under a prefix."""
        found = list[KeyInfo]()
        async for key in self.names(prefix):
            if (info := await self.entry(key)) is not None:
                found.append(info)
            if len(found) >= limit:
                break
        return found

    async def count(self, prefix: str = "") -> int:
        """Return how many keys the index has under a prefix: entries, leases, and entries that have just ended."""
        return len([None async for _ in self.names(prefix)])

    async def entry(self, key: str) -> KeyInfo | None:
        """Return the entry of a key, None without one."""
        name = self.keyspace.entry(key)
        ttl_ms, size = await self._do("PTTL", name), await self._do("STRLEN", name)
        return None if ttl_ms == -2 else KeyInfo(key, None if ttl_ms < 0 else ttl_ms / 1000, size)

    async def value(self, key: str) -> bytes | None:
        """Return the bytes of an entry, None without one."""
        found = await self._do("GET", self.keyspace.entry(key))
        return None if found is None else _bytes(found)

    async def lease(self, key: str) -> float | None:
        """Return the seconds for which a caller may still load this key, None if no caller loads it."""
        ttl_ms = await self._do("PTTL", self.keyspace.lease(self.keyspace.entry(key)))
        return None if ttl_ms < 0 else ttl_ms / 1000

    async def reasons(self, key: str) -> list[str]:
        """Return in words what is there of a key: entry, lease, commits on their way, pending invalidations."""
        found, lease = await self.entry(key), await self.lease(key)
        words = ["there is no entry"]
        if found is not None:
            left = "which never expires" if found.ttl is None else f"for another {found.ttl:.0f} s"
            words = [f"there is an entry of {found.size:,} bytes, {left}"]
        if lease is not None:
            words.append(f"a caller loads or writes it: others wait for at most {lease:.1f} s")
        words += [
            f"a commit on its way reaches it ({each.reach}): nothing is stored" for each in await self.barriers(key)
        ]
        index = await self.index()
        if index.exists and not index.whole:
            words.append("the index is not whole: the next write of a prefix scans all keys")
        for process in (await self.published()).values():
            if process.get("pending"):
                words.append(f"{process['host']} pid {process['pid']} reads past the cache: it repeats an invalidation")
        if found is None and len(words) == 1:
            words.append("the next call loads it; `await f.explain(...)` in the application says why it was not stored")
        for name, age in (await self.heartbeats()).items():
            words.append(f"the watcher of {name} is {age:.1f} s behind: Cache(watched=) with a lower bound bypasses it")
        return words

    # --- what entries depend on

    async def tags(self, key: str) -> list[str]:
        """Return what an entry depends on: `table`, or `table:column=value`. Empty for a function without tags."""
        name = self.keyspace.entry(key)
        found = await self._do("HGET", self.keyspace.shard(name).tagged, name)
        return [] if found is None else sorted(line.rstrip("\0") for line in _text(found).split("\n") if line)

    async def tagged(self, tag: str, *, limit: int = 100) -> list[str]:
        """Return at most `limit` keys of entries with a tag: of a table, or of a row, such as `table:column=value`."""
        found = dict[str, None]()
        for shard, head in product(self.keyspace.shards, map(str.encode, asked(tag))):
            start, stop = b"[" + head, b"(" + head[:-1] + bytes([head[-1] + 1])
            while rows := await self._do("ZRANGEBYLEX", shard.tags, start, stop, "LIMIT", 0, _AT_ONCE):
                found.update((self._key(_bytes(row).rpartition(b"\0")[2]), None) for row in rows)
                start = b"(" + _bytes(rows[-1])
                if len(found) > limit:
                    break
        return [key for key in found if key][:limit]

    # --- the state of the namespace

    async def index(self) -> IndexInfo:
        """Return what the index says of itself."""
        known, whole, exists = 0, True, False
        for shard in self.keyspace.shards:
            there = bool(await self._do("EXISTS", shard.index))
            marks = await self._do("ZRANGEBYLEX", shard.index, b"-", b"(\1")
            known += await self._do("ZCARD", shard.index) - len(marks)
            # An index that was evicted, or deleted by hand, leaves the times until when its entries live.
            lost = not there and await self._do("ZRANGEBYSCORE", shard.expiry, "-inf", "(inf", "LIMIT", 0, 1)
            whole = whole and not lost and (not there or await self._do("ZSCORE", shard.index, COMPLETE) is not None)
            exists = bool(exists or there or lost)
        return IndexInfo(known, whole, exists)

    async def barriers(self, key: str | None = None) -> list[BarrierInfo]:
        """Return the barriers that stand, or those that reach a key."""
        shards: Sequence[Shard] = self.keyspace.shards
        if key is not None:
            shards = [self.keyspace.shard(self.keyspace.entry(key))]
        found = dict[str, BarrierInfo]()
        for shard in shards:
            now_ms = await self._now_ms(shard.barriers)
            rows = await self._do("ZRANGEBYSCORE", shard.barriers, now_ms, "+inf", "WITHSCORES")
            for member, score in _pairs(rows):
                head, _, glob = member[32:].partition(b"\n")
                if member != NO_BARRIER and (key is None or self._reaches(Target(head, glob), key)):
                    reach = self._named(Target(head, glob))
                    found[reach] = BarrierInfo(reach, (float(score) - now_ms) / 1000)
        return [*found.values()]

    def _named(self, target: Target) -> str:
        if target.filter == TAG:
            return f"rows {_text(target.head).strip(chr(0))}"
        return self._key(target.head) + ("" if target.exact else _text(target.filter) or "*")

    def _reaches(self, target: Target, key: str) -> bool:
        if target.filter == TAG:
            return False  # which entries depend on the rows is known at the end of the commit
        if target.exact:
            return self._key(target.head) == key
        glob = _text(target.filter) or "*"
        return Prefix(self._key(target.head), glob.removesuffix("$"), glob.endswith("$")).matches(key)

    async def _now_ms(self, name: bytes) -> float:
        """Return the time of the server that has a key."""
        target = {"target_nodes": self._client.get_node_from_key(_text(name))} if is_cluster(self._client) else {}
        reply = await self._client.execute_command("TIME", **target)
        seconds, micros = next(iter(reply.values())) if isinstance(reply, dict) else reply
        return int(seconds) * 1000 + int(micros) / 1000

    async def trusted(self) -> set[str]:
        """Return the replication ids of the servers whose data this is, with the marks of each heal."""
        found = set[str]()
        for shard in self.keyspace.shards:
            found |= {_text(each) for each in await self._do("ZRANGEBYSCORE", shard.trusted, "-inf", "+inf")}
        return found

    async def leases(self) -> int:
        """Return how many callers load at the moment, at most 1,000. Goes over all keys of the server, in portions."""
        found = 0
        async for _ in self._client.scan_iter(match=self.keyspace.leases + b"*", count=1000):
            found += 1
            if found >= _MOST_LEASES:
                break
        return found

    async def heartbeats(self) -> dict[str, float]:
        """Return for each database whose writes from outside are watched the seconds since its watcher's heartbeat."""
        found = {_text(name): value for name, value in (await self._do("HGETALL", self.keyspace.watch)).items()}
        beats = {name.removesuffix(_BEAT): float(found[name]) for name in found if name.endswith(_BEAT)}
        now_ms = await self._now_ms(self.keyspace.watch) if beats else 0
        return {name: max(0.0, now_ms - beat) / 1000 for name, beat in beats.items()}

    # --- what processes publish

    @property
    def _published(self) -> str:
        return f"{self.keyspace.room}{{stats}}"

    async def publish(self, process: str, record: Any) -> None:
        """Keep a record of this process for half a minute, for `published` of every other one."""
        name = f"{self._published}:{process}"
        await self._do("HSET", name, "record", json.dumps(record, separators=(",", ":")))
        await self._do("EXPIRE", name, PUBLISHED_S)
        await self._do("SADD", self._published, process)

    async def published(self) -> dict[str, Any]:
        """Return the records of all processes that have published lately, and forget the others' names."""
        found = dict[str, Any]()
        for process in sorted(map(_text, await self._do("SMEMBERS", self._published))):
            raw = await self._do("HGET", f"{self._published}:{process}", "record")
            if raw is None:
                await self._do("SREM", self._published, process)
            else:
                found[process] = json.loads(raw)
        return found

    @staticmethod
    def totals(published: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
        """Return the counts of each function over the processes of `published`. Times are [how often, seconds]."""
        found: dict[str, dict[str, Any]] = {}
        for each in (function for process in published.values() for function in process["functions"]):
            empty: dict[str, Any] = {"pattern": each["pattern"], "stats": {}, "times": {}, "dropped": {}}
            total = found.setdefault(each["function"], empty)
            for counts in ("stats", "dropped"):
                for name, count in each.get(counts, {}).items():  # of an older version, `dropped` is not there
                    total[counts][name] = total[counts].get(name, 0) + count
            for name, (count, seconds) in each["times"].items():
                before = total["times"].get(name, [0, 0.0])
                total["times"][name] = [before[0] + count, before[1] + seconds]
        return found


def _bytes(text: bytes | str) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


def _text(name: bytes | str) -> str:
    return name.decode("utf-8", "replace") if isinstance(name, bytes) else name


def _pairs(rows: Sequence[Any]) -> list[tuple[bytes, float]]:
    """Return members with their scores, however the client has read them: a flat list, or pairs."""
    if rows and isinstance(rows[0], list | tuple):
        return [(_bytes(member), float(score)) for member, score in rows]
    return [(_bytes(rows[at]), float(rows[at + 1])) for at in range(0, len(rows), 2)]
