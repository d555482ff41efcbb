"""The steps on a cluster, one by one: nothing stale, whatever comes between two; and each mechanism is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from fastrdb.protocol.cluster import ClusterBackend
from fastrdb.protocol.interface import Ask, Barred, Outcome
from fastrdb.testing import script_texts
from tests.races.mechanisms import label, without
from tests.races.scenarios import cluster as scenarios
from tests.races.scenarios.cluster import Scenario, Slots
from tests.races.seams import Change
from tests.support.servers.cluster import Cluster

SCENARIOS: list[Scenario] = [
    scenarios.begun_between_lease_and_shard,
    scenarios.committed_between_lease_and_shard,
    scenarios.lease_before_the_writer,
    scenarios.reader_behind_the_sweep,
    scenarios.second_writer_between_range_and_deletion,
    scenarios.lease_goes_first,
    scenarios.entered_again_while_it_is_buried,
    scenarios.found_by_its_prefix,
    scenarios.written_through_and_found,
    scenarios.written_through_against_another,
    scenarios.written_through_and_evicted,
    scenarios.barrier_that_lapsed,
]


@pytest.fixture
async def w(cluster: Cluster, cluster_client: RedisCluster) -> AsyncIterator[Slots]:
    """Yield two processes on a cluster that has all scripts."""
    cluster.load(script_texts())
    made = Slots(cluster_client)
    await made.empty()
    yield made
    await made.end()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=label)
async def test_steps(w: Slots, scenario: Scenario) -> None:
    """No caller is answered with anything older than what was committed, in any order of steps."""
    await scenario(w)


_acquire = ClusterBackend.acquire


async def shard_before_lease(backend: Any, client: Any, asks: Sequence[Ask], budget: Any = None) -> list[Outcome]:
    """Enter the index as a reader and look for barriers first, and take the lease then."""
    entered = await ClusterBackend._enter(backend, client, asks, budget)
    await client.gates.leave("acquire")
    backend._enter = _nothing_barred
    outcomes = await _acquire(backend, client, asks, budget)
    return [outcome if ask.entry in entered else Barred() for ask, outcome in zip(asks, outcomes, strict=True)]


async def _nothing_barred(client: Any, asks: Sequence[Ask], budget: Any) -> dict[bytes, bytes]:
    return {ask.entry: b"" for ask in asks}


async def _away(
    sweeper: Any, client: Any, entries: Sequence[bytes], commands: list[tuple[Any, ...]]
) -> tuple[list[bytes], list[bytes]]:
    held = []
    for each in commands:
        replies = await sweeper.link.many(client, each)
        held.append(next((reply for reply in replies if isinstance(reply, bytes)), b""))
    return held, []


def leases_survive(sweeper: Any, client: Any, first: Sequence[Any], entries: Sequence[bytes], _: Any) -> Any:
    """Delete entries as a writer, and not their leases."""
    return _away(sweeper, client, entries, [(("UNLINK", entry),) for entry in entries])


def entries_survive(sweeper: Any, client: Any, first: Sequence[Any], entries: Sequence[bytes], _: Any) -> Any:
    """Delete leases as a writer, and not the entries."""
    return _away(sweeper, client, entries, [(lease,) for lease in first])


def entry_before_lease(sweeper: Any, client: Any, first: Sequence[Any], entries: Sequence[bytes], _: Any) -> Any:
    """Delete the entry as a writer, and then its lease."""
    pairs = zip(first, entries, strict=True)
    return _away(sweeper, client, entries, [(("UNLINK", entry), lease) for lease, entry in pairs])


_end = ClusterBackend.end


async def no_second_sweep(*args: Any, **options: Any) -> bool:
    """End a write without a look at the barriers."""
    await _end(*args, **options)
    return True


MUTANTS: list[tuple[Change, list[Scenario]]] = [
    (without("cluster-acquire", shard_before_lease), [scenarios.begun_between_lease_and_shard]),
    (without("cluster-sweep", leases_survive), [scenarios.lease_before_the_writer]),
    (without("cluster-sweep", entries_survive), [scenarios.reader_behind_the_sweep, scenarios.found_by_its_prefix]),
    (without("cluster-sweep", entry_before_lease), [scenarios.lease_goes_first]),
    (without("cluster-end", no_second_sweep), [scenarios.barrier_that_lapsed]),
    (
        without("shard-barrier-check"),
        [scenarios.begun_between_lease_and_shard, scenarios.reader_behind_the_sweep],
    ),
    (without("shard-lease-indexed"), [scenarios.lease_before_the_writer, scenarios.found_by_its_prefix]),
    (without("barrier-set"), [scenarios.reader_behind_the_sweep]),
    (without("shard-write-indexed"), [scenarios.written_through_and_found]),
    (without("write-indexed-again"), [scenarios.written_through_and_evicted]),
    (without("fence-leaves-index"), [scenarios.second_writer_between_range_and_deletion]),
    (
        without("lease-check"),
        [scenarios.lease_before_the_writer, scenarios.written_through_against_another],
    ),
    (without("bury-unchanged-only"), [scenarios.entered_again_while_it_is_buried]),
]


@pytest.mark.parametrize(
    ("change", "scenario"), [(change, scenario) for change, found in MUTANTS for scenario in found], ids=label
)
async def test_mutants(w: Slots, monkeypatch: pytest.MonkeyPatch, change: Change, scenario: Scenario) -> None:
    """With one mechanism taken out, or one order changed, a caller is answered wrongly."""
    w.change(change, monkeypatch)
    with pytest.raises(AssertionError):
        await scenario(w)
