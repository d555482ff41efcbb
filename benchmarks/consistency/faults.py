"""The faults of a run, each a short story with the servers, the proxies and the processes; and what they are called.

`unreachable` faults take Redis away from some process: what it commits meanwhile, Redis may miss. Their outages are
written down, because a read has an excuse then, and no other time.
"""

from __future__ import annotations

import asyncio
import math
import os
import random
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import monotonic, monotonic_ns
from typing import Any, NamedTuple, Protocol

from redis.asyncio import Redis
from redis.exceptions import RedisError

from benchmarks.consistency.control import Control
from benchmarks.consistency.rules import Outage
from benchmarks.consistency.servers import NetworkFault, Servers, restart
from benchmarks.consistency.settings import GATHERING, STALL
from fastrdb.testing.server import EmbeddedServer
from tests.support.servers.sentinels import SERVICE

_AWAY = 0.4
"""Seconds that Redis is out of reach: longer than the deadline of an operation."""
_SHOWING = 1.0
"""Seconds without a write, in which a stale entry stays, and is read."""
_FAILOVER_LIMIT = 15.0
_SLOW = ("sqlite", "postgresql")
_REMOTE = ("postgresql", "mariadb")
_SNAPSHOT_AGE = 0.7


class Victims(Protocol):
    """What a fault can do to the processes."""

    async def kill_a_writer(self) -> None:
        """End one at its next COMMIT, and start another."""
        ...

    async def kill_a_writer_late(self) -> bool:
        """End one between its next COMMIT and end; True if it has ended.

        It stands still before the COMMIT for GATHERING seconds. From then on, loads that have read do not end.
        """
        ...

    def start_a_writer(self) -> None:
        """Start one more."""
        ...

    def kill_watchers(self, number: int | None) -> None:
        """End so many, the one that leads first; None for all."""
        ...

    def start_watchers(self) -> None:
        """Start as many as are missing."""
        ...

    async def stall_a_writer(self) -> bool:
        """Have one stand still at its next COMMIT for STALL seconds; True as soon as it does."""
        ...

    async def delay_a_commit(self) -> None:
        """Have the next COMMIT of one arrive at the database when its caller has been cancelled, LATE seconds later."""
        ...


@dataclass(slots=True)
class Stage:
    """Where the faults happen."""

    servers: Servers
    control: Control
    victims: Victims
    chance: random.Random
    repair: float
    barrier: float
    outages: list[Outage]
    allowed: float = 0.0
    """Seconds for which an answer may be out of date."""

    def server(self) -> EmbeddedServer:
        """Give one of the servers."""
        return self.chance.choice(self.servers.servers)

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Redis]:
        """Give a client of one of them."""
        async with self.servers.client(self.server()) as client:
            yield client

    @asynccontextmanager
    async def outage(self) -> AsyncIterator[None]:
        """Inside, Redis is out of reach for some process."""
        self.control.unwell(math.inf)
        start = monotonic_ns()
        try:
            yield
        finally:
            self.outages.append(Outage(start, monotonic_ns()))
            self.control.unwell(monotonic() + self.repair)


Act = Callable[[Stage], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Fault:
    """One kind of fault. Without an act it is done by the processes themselves."""

    name: str
    what: str
    act: Act | None = None
    proxied: bool = False
    default: bool = True
    watchers: bool = False
    """It needs watchers."""
    sentinel: bool = False
    """It needs a master and a replica with sentinels; there it is done beside the faults without an act only."""
    databases: tuple[str, ...] = ("sqlite", "postgresql", "mariadb")
    """Where it can be had."""


async def _kill(stage: Stage) -> None:
    while not stage.control.calm:  # noqa: ASYNC110  # what it owes to Redis is lost with it
        await asyncio.sleep(0.05)
    await stage.victims.kill_a_writer()


async def _kill_under_loads(stage: Stage) -> None:
    """Loads that have read before a COMMIT end when the barrier has lapsed of the writer, killed after its COMMIT.

    The loads begin while the writer stands still before its COMMIT. With one process that writes, no other writer
    leaves a stamp meanwhile.
    """
    try:
        if not await stage.victims.kill_a_writer_late():
            return
        await asyncio.sleep(stage.barrier + GATHERING)
    finally:
        stage.control.holds_loads = False
    await asyncio.sleep(_SHOWING)
    stage.victims.start_a_writer()


async def _kill_a_watcher(stage: Stage) -> None:
    stage.victims.kill_watchers(1)
    stage.victims.start_watchers()


async def _kill_watchers(stage: Stage) -> None:
    """All of them are away for longer than any answer may be out of date."""
    stage.victims.kill_watchers(None)
    await asyncio.sleep(1.5 * stage.allowed + 0.5)
    stage.victims.start_watchers()
    await asyncio.sleep(2.0)  # until they lead, and entries are read again


async def _stall(stage: Stage) -> None:
    if await stage.victims.stall_a_writer():
        await asyncio.sleep(STALL)


async def _delay_a_commit(stage: Stage) -> None:
    await stage.victims.delay_a_commit()


async def _lose_barriers(stage: Stage) -> None:
    """What a writer has barred is forgotten before its COMMIT."""
    if await stage.victims.stall_a_writer():
        await _restart(stage)
        await asyncio.sleep(STALL)


async def _kill_clients(stage: Stage) -> None:
    async with stage.client() as client:
        await client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")


async def _evict(stage: Stage) -> None:
    """As a `volatile-*` policy does it: index and barriers have no TTL, and stay."""
    async with stage.client() as client:
        async for name in client.scan_iter(count=1000):
            if stage.chance.random() < 1 / 3 and await client.pttl(name) > 0:
                await client.delete(name)


async def _maxmemory(stage: Stage) -> None:
    """The server evicts by itself, as much as makes room; with no room at all it refuses to write."""
    async with stage.outage(), stage.client() as client:
        used = (await client.info("memory"))["used_memory"]
        await client.config_set("maxmemory-policy", "volatile-random")
        await client.config_set("maxmemory", int(used * 0.97))
        try:
            await asyncio.sleep(_AWAY)
        finally:
            await client.config_set("maxmemory", 0)


async def _flush_scripts(stage: Stage) -> None:
    for _ in range(10):
        async with stage.client() as client:
            await client.script_flush()
        await asyncio.sleep(0.02)


async def _pause(stage: Stage) -> None:
    async with stage.outage(), stage.client() as client:
        await client.execute_command("CLIENT", "PAUSE", int(_AWAY * 1000), "ALL")
        await asyncio.sleep(_AWAY)


async def _restart(stage: Stage) -> None:
    """Killed, and started again with nothing."""
    server = stage.server()
    folder = await _folder(stage, server)
    async with stage.outage():
        restart(server, folder=folder)
        await stage.servers.serving(server)


async def _snapshot(stage: Stage) -> None:
    """Killed, and started again with what it had a moment ago: all that was invalidated since is back."""
    server = stage.server()
    async with stage.servers.client(server) as client:
        await client.save()
    await asyncio.sleep(_SNAPSHOT_AGE)
    async with stage.outage():
        restart(server, folder=None)
        await stage.servers.serving(server)


async def _folder(stage: Stage, server: EmbeddedServer) -> Path:
    async with stage.servers.client(server) as client:
        return Path(str((await client.config_get("dir"))["dir"]))


async def _fail_over(stage: Stage) -> None:
    """The sentinels make the replica the master, and the master a replica; the next time they change places again."""
    group = stage.servers.group
    assert group is not None
    async with stage.outage(), Redis(port=group.sentinels[0]) as sentinel:
        await sentinel.execute_command("SENTINEL", "FAILOVER", SERVICE)
        group.master, group.replica = group.replica, group.master
        await _settled(stage)


async def _kill_master(stage: Stage) -> None:
    """The master dies while its replica is behind. It comes back empty, and is made a replica."""
    group = stage.servers.group
    assert group is not None
    async with stage.outage():
        os.kill(group.replica.pid, signal.SIGSTOP)
        await asyncio.sleep(_AWAY)
        group.master.kill()
        os.kill(group.replica.pid, signal.SIGCONT)
        group.master, group.replica = group.replica, group.master
        async with Redis(port=group.master.port) as client, asyncio.timeout(_FAILOVER_LIMIT):
            while (await client.info("replication"))["role"] != "master":  # noqa: ASYNC110  # theirs to say
                await asyncio.sleep(0.05)
        group.replica.start()
        await _settled(stage)


async def _settled(stage: Stage) -> None:
    """Wait until one server is the master, the other follows, and the sentinels say the same."""
    group = stage.servers.group
    assert group is not None
    end = monotonic() + _FAILOVER_LIMIT
    async with Redis(port=group.replica.port) as client, Redis(port=group.sentinels[0]) as sentinel:
        while monotonic() < end:
            with suppress(RedisError, OSError):
                info = await client.info("replication")
                address: Any = await sentinel.execute_command("SENTINEL", "GET-MASTER-ADDR-BY-NAME", SERVICE)
                if info.get("master_link_status") == "up" and int(address[1]) == group.master.port:
                    return
            await asyncio.sleep(0.05)


def _through(fault: NetworkFault) -> Act:
    async def act(stage: Stage) -> None:
        async with stage.outage():
            await stage.servers.take_away(fault)
            await asyncio.sleep(_AWAY)
            await stage.servers.give_back()

    return act


FAULTS = {
    fault.name: fault
    for fault in (
        Fault("cancel", "2 % of the reads are cancelled"),
        Fault("cancel-writes", "2 % of the writes are cancelled, some of them in COMMIT"),
        Fault("kill", "a writer is killed before COMMIT, or between COMMIT and end", _kill),
        Fault(
            "watcher-killed", "the watcher that leads is killed, and another takes over", _kill_a_watcher, watchers=True
        ),
        Fault("watchers-killed", "all watchers are killed, and start later", _kill_watchers, watchers=True),
        Fault(
            "kill-under-loads",
            "a writer is killed between COMMIT and end, and its barrier lapses under loads",
            _kill_under_loads,
            default=False,
        ),
        Fault("stall", "a writer stands still before COMMIT, or between COMMIT and end", _stall),
        Fault("slow-load", "one load in five does something else after its query"),
        Fault("long-load", "one load in five may take longer than a short barrier", default=False),
        Fault("slow-commit", "one COMMIT in five takes its time (not on MariaDB)", databases=_SLOW),
        Fault("late-commit", "a COMMIT is cancelled, and arrives all the same", _delay_a_commit, databases=_REMOTE),
        Fault("client-kill", "CLIENT KILL of all connections", _kill_clients),
        Fault("evict", "a third of the keys that have a TTL are deleted", _evict),
        Fault("maxmemory", "the server has to evict, and may refuse to write", _maxmemory),
        Fault("script-flush", "SCRIPT FLUSH, ten times", _flush_scripts),
        Fault("pause", "CLIENT PAUSE, longer than the deadline", _pause),
        Fault("restart", "the server is killed, and starts again empty", _restart),
        Fault("lost-barriers", "the same, while a writer stands still at its COMMIT", _lose_barriers, default=False),
        Fault("snapshot", "the server is killed, and starts again with an old snapshot", _snapshot),
        Fault("black-hole", "a proxy swallows what some processes send", _through("drop"), proxied=True),
        Fault(
            "delay", "a proxy keeps back what some processes send, and sends it later", _through("hold"), proxied=True
        ),
        Fault("failover", "the sentinels change master and replica, there and back", _fail_over, sentinel=True),
        Fault("master-killed", "the master dies while its replica is behind", _kill_master, sentinel=True),
        Fault("loop-stall", "event loops stand still for longer than the deadline", default=False),
        Fault("cut", "a proxy cuts the connections of some processes", _through("refuse"), proxied=True),
    )
}


def chosen(text: str, database: str, *, sentinel: bool = False, watchers: Collection[str] = ()) -> tuple[str, ...]:
    """Read `all`, `none` or names with commas between. ValueError names the unknown one.

    `watchers`: the faults of watchers that are among all.
    """
    if text == "none":
        return ()
    if text == "all":
        fit = (f for f in FAULTS.values() if f.default and database in f.databases)
        fit = (f for f in fit if not f.watchers or f.name in watchers)
        return tuple(f.name for f in fit if f.sentinel == sentinel or (sentinel and f.act is None))
    names = tuple(text.split(","))
    for name in names:
        if name not in FAULTS:
            raise ValueError(f"--faults {text}: {name!r} is none of {', '.join(FAULTS)}, all, none")
    return names


class Happened(NamedTuple):
    """A fault, from when to when (ns)."""

    name: str
    start: int
    end: int


async def play(stage: Stage, names: tuple[str, ...], ends: float) -> list[Happened]:
    """Let the faults happen one by one, in a new order each round, until shortly before the end."""
    acts = {name: act for name in names if (act := FAULTS[name].act) is not None}
    happened: list[Happened] = []
    left: list[str] = []
    while acts and monotonic() < ends - 1.5:
        left = left or stage.chance.sample(list(acts), len(acts))
        name, start = left.pop(), monotonic_ns()
        with suppress(RedisError, OSError):  # a server that is just coming back: the next fault comes soon
            await acts[name](stage)
        happened.append(Happened(name, start, monotonic_ns()))
        await asyncio.sleep(0.4 + 0.8 * stage.chance.random())
    return happened
