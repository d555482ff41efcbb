"""`fastrdb doctor`: checks whether a server or a cluster is fit for a cache, each finding with what to do.

Rights are checked by doing what a cache does: a lease, a fill, a read and an invalidation of a key of its own.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from statistics import median
from time import monotonic, time
from typing import Any, Literal

from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import NoPermissionError, RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError

from fastrdb import Cache, Inspector
from fastrdb.protocol import is_cluster

Level = Literal["ok", "warning", "failure"]
_PINGS = 30
_SLOW_S, _TIMEOUT_S, _PATIENT_S = 0.02, 0.25, 5.0
_SKEW_S = 1.0
_MOST_KEYS = 1_000_000
_COMMANDS = (
    *("GET key", "MGET key", "SET key 1 PX 1", "DEL key", "UNLINK key", "EXISTS key", "PTTL key"),
    *("ZADD key 0 a", "ZCARD key", "ZSCORE key a", "ZREM key a", "ZRANGEBYLEX key - +", "ZRANGEBYSCORE key 0 1"),
    *("STRLEN key", "GETRANGE key 0 1", "SCAN 0 COUNT 1", "TIME", "EVAL return(1) 1 key", "DEL key"),
)
_TAG_COMMANDS = (
    *("HSET key a 1", "HGET key a", "HEXISTS key a", "HDEL key a"),
    *("ZREVRANGEBYSCORE key 1 0", "ZREMRANGEBYSCORE key 0 1"),
)
STATUS = {"ok": 0, "warning": 1, "failure": 2}


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """The finding of one check: what was found, and what to do if that is not well."""

    check: str
    level: Level
    found: str
    advice: str = ""

    def as_json(self) -> dict[str, str]:
        """Return the fields."""
        return asdict(self)


def ok(check: str, found: str) -> Diagnosis:
    """Return a finding that needs no action."""
    return Diagnosis(check, "ok", found)


class Doctor:
    """The examination of one namespace of a server or a cluster."""

    def __init__(self, client: Any, namespace: str) -> None:
        self._client, self._namespace = client, namespace
        self._cluster = is_cluster(client)
        self._inspector = Inspector(client, namespace)
        self._infos: dict[str, dict[str, Any]] = {}
        self._silent: dict[str, str] = {}  # masters, with their errors
        self._other_data = self._down = False

    async def examine(self) -> AsyncIterator[Diagnosis]:
        """Yield each finding as it is made. A check that the server refuses is a finding, too."""
        checks: list[Callable[[], Awaitable[list[Diagnosis]]]] = [
            *(self.info, self.version, self.role, self.slots, self.policy, self.trust),
            *(self.index, self.barriers, self.leases, self.processes),  # before the next, which leaves marks of its own
            *(self.rights, self.near, self.tags, self.clock, self.latency),
        ]
        for check in checks:
            if check == self.trust and self._down:  # the checks from here on need each slot
                yield Diagnosis("entries", "warning", "not examined: see slots", "Run this again when slots are well")
                return
            try:
                for found in await check():
                    yield found
            except NoPermissionError as error:  # a cache itself does without this
                yield ok(check.__name__, f"not checked, the user lacks the right: {error}")
            except RedisError as error:
                yield Diagnosis(check.__name__, "warning", f"not known: {error}", "Run this again")

    async def _each(self, *command: Any) -> dict[str, Any]:
        """Return the reply of each master that answers, by its address. One that does not is asked only once."""
        if not self._cluster:
            return {"": await self._client.execute_command(*command)}
        masters, found = self._client.get_primaries(), dict[str, Any]()
        for node in masters:
            if node.name not in self._silent:
                try:
                    reply = await self._client.execute_command(*command, target_nodes=node)
                except (RedisConnectionError, RedisTimeoutError) as error:
                    self._silent[node.name] = str(error)
                else:
                    found[node.name] = next(iter(reply.values())) if _wrapped(reply, masters) else reply
        if not found:
            raise RedisConnectionError("no master answers")
        return found

    # --- the server

    async def info(self) -> list[Diagnosis]:
        """Read INFO, on which other checks depend."""
        try:
            self._infos = await self._each("INFO")
        except ResponseError as error:
            advice = "Allow +info: without it a restart with old data and an evicting policy are not noticed"
            return [Diagnosis("info", "warning", f"INFO is refused ({error})", advice)]
        return []

    async def version(self) -> list[Diagnosis]:
        """Compare the version with what a cache needs."""
        found = []
        for name, info in self._infos.items():
            valkey = info.get("valkey_version")
            text = f"Valkey {valkey}" if valkey else f"Redis {info.get('redis_version', '?')}"
            least = (7, 2) if valkey else (6, 2)
            number = tuple(int(each) for each in str(valkey or info.get("redis_version", "0.0")).split(".")[:2])
            if number < least:
                advice = "Redis 6.2 or Valkey 7.2 is needed"
                found.append(Diagnosis("version", "failure", _at(name, text), advice))
            else:
                found.append(ok("version", _at(name, text)))
        return found

    async def role(self) -> list[Diagnosis]:
        """Check that the server is a master: a replica may be behind."""
        found = []
        for name, info in self._infos.items():
            if info.get("role") == "slave":
                master = f"{info.get('master_host')}:{info.get('master_port')}"
                advice = f"Connect to its master, {master}: a replica may be behind and takes no writes"
                found.append(Diagnosis("role", "failure", _at(name, "a replica"), advice))
            else:
                found.append(
                    ok("role", _at(name, f"a master with {counted(int(info.get('connected_slaves', 0)), 'replica')}"))
                )
        return found

    async def slots(self) -> list[Diagnosis]:
        """Check that each slot of a cluster has a master, and name the slots that are moving."""
        if not self._cluster:
            return []
        found, advice = [], "See CLUSTER NODES: slots without a master are bypassed"
        for name, info in (await self._each("CLUSTER", "INFO")).items():
            state = info.get("cluster_state") if isinstance(info, dict) else _field(info, "cluster_state")
            if state != "ok":
                found.append(Diagnosis("slots", "failure", _at(name, f"cluster_state {state}"), advice))
        for name, error in self._silent.items():
            found.append(Diagnosis("slots", "failure", _at(name, f"this master does not answer ({error})"), advice))
        self._down = bool(found)
        moving = await self._moving()
        if moving:
            shown = ", ".join(moving[:8])
            advice = "Nothing to do: keys of these slots are asked for at both masters until the move ends"
            found.append(Diagnosis("slots", "warning", f"moving: {shown}", advice))
        return found or [ok("slots", f"whole, {len(self._client.get_primaries())} masters, no slot moves")]

    async def _moving(self) -> list[str]:
        slots = dict[str, None]()
        for name, reply in (await self._each("CLUSTER", "NODES")).items():
            if isinstance(reply, dict):  # as redis-py reads it
                nodes = [each for each in reply.values() if "myself" in str(each.get("flags"))]
                moves = [move for node in nodes for move in node.get("migrations", ())]
                parts = [str(move.get("slot")) for move in moves if move.get("state") == "migrating"]
            else:
                text = reply.decode() if isinstance(reply, bytes) else str(reply)
                lines = [line for line in text.splitlines() if "myself" in line]
                parts = [part[1:].split("-")[0] for line in lines for part in line.split() if "->-" in part]
            slots.update(dict.fromkeys(_at(name, part) for part in parts))
        return [*slots]

    async def policy(self) -> list[Diagnosis]:
        """Check that neither the index nor the barriers can be evicted, and how full the memory is."""
        found = []
        for name, info in self._infos.items():
            limit, policy = int(info.get("maxmemory", 0)), str(info.get("maxmemory_policy", "?"))
            used = int(info.get("used_memory", 0))
            if limit and policy.startswith("allkeys"):
                advice = "CONFIG SET maxmemory-policy volatile-lru: the index has no TTL and must not be evicted"
                found.append(Diagnosis("policy", "warning", _at(name, f"{policy} with maxmemory"), advice))
            elif limit and used > 0.9 * limit:
                advice = "Raise maxmemory, or shorten exp: a full server stores nothing more"
                found.append(Diagnosis("policy", "warning", _at(name, f"{used / limit:.0%} of maxmemory"), advice))
            else:
                text = f"{policy}, {used / limit:.0%} of maxmemory used" if limit else f"{policy}, no maxmemory"
                found.append(ok("policy", _at(name, text)))
        return found

    # --- what a cache does

    async def rights(self) -> list[Diagnosis]:
        """Check the rights by doing what a cache does, with a key of this command's own."""
        if any(info.get("role") == "slave" for info in self._infos.values()):
            return []
        if self._other_data:  # using a cache here would begin to delete all of the data
            return [Diagnosis("rights", "warning", "not tried: see trust", "Run this again when the data is trusted")]
        async with Cache(self._client, namespace=self._namespace, timeout=_PATIENT_S) as cache:
            ready = await cache.ready()
        if ready:
            return [ok("rights", "lease, fill, read and invalidation work")]
        if ready.pending:
            return [Diagnosis("rights", "warning", ready.pending, "Run this again in a minute")]
        # Where entries have tags, those rights are needed as well.
        refused = await self._refused() or await self._refused(_TAG_COMMANDS)
        advice = "`fastrdb docs security` has the line of the ACL: copy it, with the beginnings of your keys"
        text = f"refused: {', '.join(refused)}" if refused else ready.refused or ready.unreachable
        return [Diagnosis("rights", "failure", text, advice)]

    async def _refused(self, commands: Sequence[str] = _COMMANDS) -> list[str]:
        """Return the commands that the user may not run, each tried on a key that does not exist."""
        key, found = f"fastrdb:doctor:{{{secrets.token_hex(8)}}}", list[str]()
        for name, *arguments in (each.split() for each in commands):
            try:
                await self._client.execute_command(name, *(key if each == "key" else each for each in arguments))
            except NoPermissionError:
                found.append(name)
            except RedisError:
                pass  # refused for another reason than a missing right
        return list(dict.fromkeys(found))

    async def near(self) -> list[Diagnosis]:
        """Check the additional rights that a near cache needs."""
        try:
            await self._each("CLIENT", "TRACKING", "OFF")
        except NoPermissionError:
            return [ok("near", "tracking is refused: near caches need +client|tracking, on a cluster +role")]
        return [ok("near", "tracking is allowed")]

    async def tags(self) -> list[Diagnosis]:
        """Check the rights of functions with depends_on= or auto=."""
        refused = await self._refused(_TAG_COMMANDS)
        if refused:
            return [ok("tags", f"functions with depends_on= or auto= also need: {', '.join(refused)}")]
        return [ok("tags", "functions may have depends_on= and auto=")]

    # --- the namespace

    async def index(self) -> list[Diagnosis]:
        """Check whether the index is whole."""
        index = await self._inspector.index()
        if index.exists and not index.whole:
            advice = "The next write of a prefix scans all keys once. New here, or was the index evicted or deleted?"
            return [Diagnosis("index", "warning", f"not whole, {counted(index.keys, 'key')}", advice)]
        return [
            ok("index", f"whole, {counted(index.keys, 'key')}" if index.exists else "none yet: nothing is cached here")
        ]

    async def trust(self) -> list[Diagnosis]:
        """Check that the data is the server's own: a restart or a failover may bring back old data."""
        ids = {str(info["master_replid"]) for info in self._infos.values() if "master_replid" in info}
        trusted = await self._inspector.trusted()
        if not trusted or not ids or ids <= trusted:
            return [ok("trust", "the data is this server's own" if trusted else "nothing is noted yet")]
        self._other_data = True
        advice = "Nothing to do: the next process deletes all entries once. Was there a restart or a failover?"
        return [Diagnosis("trust", "warning", "the server has other data than it had", advice)]

    async def barriers(self) -> list[Diagnosis]:
        """Show the commits that are on their way."""
        found = await self._inspector.barriers()
        if not found:
            return [ok("barriers", "none: no commit is on its way")]
        shown = ", ".join(f"{each.reach} ({each.left:.1f} s left)" for each in found[:5])
        advice = "Each lapses by itself. If one stays for seconds, a COMMIT is slow, or its process died"
        return [Diagnosis("barriers", "warning", f"{len(found)}: {shown}", advice)]

    async def leases(self) -> list[Diagnosis]:
        """Count the loads that are running."""
        if sum(int(size) for size in (await self._each("DBSIZE")).values()) > _MOST_KEYS:
            return [ok("leases", "not counted: there are more than a million keys")]
        found = await self._inspector.leases()
        return [ok("leases", f"running: {counted(found, 'load')}")]

    async def clock(self) -> list[Diagnosis]:
        """Compare the clocks of masters: barriers are kept by the server's time."""
        here, found = time(), []
        for name, reply in (await self._each("TIME")).items():
            found.append((name, int(reply[0]) + int(reply[1]) / 1e6 - here))
        apart = max(skew for _, skew in found) - min(skew for _, skew in found)
        if apart > _SKEW_S:
            advice = "Run NTP on all servers: barriers and leases are kept by their clocks"
            return [Diagnosis("clock", "warning", f"the masters are {apart:.1f} s apart", advice)]
        return [ok("clock", f"{found[0][1]:+.2f} s from this machine's (which does not matter)")]

    async def latency(self) -> list[Diagnosis]:
        """Measure the round trip."""
        times = []
        for _ in range(_PINGS):
            begun = monotonic()
            await self._each("PING")
            times.append(monotonic() - begun)
            await asyncio.sleep(0)
        masters = len(self._client.get_primaries()) if self._cluster else 1
        middle, worst = median(times) / masters, max(times) / masters
        text = f"median {middle * 1000:.1f} ms, longest {worst * 1000:.1f} ms"
        if middle > _SLOW_S or worst > _TIMEOUT_S:
            advice = f"A call goes on without Redis after timeout={_TIMEOUT_S} s: move closer, or raise timeout="
            return [Diagnosis("latency", "warning", text, advice)]
        return [ok("latency", text)]

    async def processes(self) -> list[Diagnosis]:
        """Show which processes publish counts, and whether one has missed an invalidation."""
        found = await self._inspector.published()
        late = [record for record in found.values() if record.get("pending")]
        if late:
            names = ", ".join(f"{each['host']} pid {each['pid']}" for each in late)
            advice = "Nothing to do: each repeats it, and reads past the cache until then"
            return [Diagnosis("processes", "warning", f"a pending invalidation: {names}", advice)]
        none = "none publishes its counts (Cache(publish=True))"
        return [ok("processes", f"{len(found)} publish their counts" if found else none)]


def worst(found: list[Diagnosis]) -> int:
    """Return the status of the command: 0 if all is well, 1 for warnings, 2 for failures."""
    return max((STATUS[each.level] for each in found), default=0)


def _at(name: str, text: str) -> str:
    return f"{name}: {text}" if name else text


def _wrapped(reply: Any, masters: list[Any]) -> bool:
    return isinstance(reply, dict) and len(reply) == 1 and next(iter(reply)) in {node.name for node in masters}


def _field(text: Any, name: str) -> str:
    lines = (text.decode() if isinstance(text, bytes) else str(text)).splitlines()
    return next((line.partition(":")[2] for line in lines if line.startswith(name)), "?")


def counted(count: int, one: str) -> str:
    """Return a number with its noun."""
    many = f"{one[:-1]}ies" if one.endswith("ry") else f"{one}es" if one.endswith("s") else f"{one}s"
    return f"{count:,} {one if count == 1 else many}"
