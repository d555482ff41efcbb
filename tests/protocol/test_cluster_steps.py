"""The steps on a cluster, one by one: nothing stale, whatever comes between two; and each mechanism is needed."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

import pytest
from redis.asyncio.cluster import RedisCluster

from fastrdb.protocol import cluster_leases, cluster_sweep
from fastrdb.protocol.cluster_sweep import ClusterSweeper
from fastrdb.protocol.outcomes import Asked, Barred, Outcome
from fastrdb.testing import script_texts
from fastrdb.transport.scripts import Script
from tests.races.scenarios import cluster as scenarios
from tests.races.scenarios.cluster import Scenario, Slots
from tests.support.servers.cluster import Cluster
from tests.support.world.world import rewritten

Mutation = Callable[[pytest.MonkeyPatch, Slots], None]

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
    scenarios.barrier_that_lapsed,
]


def name(value: object) -> str | None:
    """Name a scenario or a mutation in a test's id."""
    return getattr(value, "__name__", None)


@pytest.fixture
async def w(cluster: Cluster, cluster_client: RedisCluster) -> AsyncIterator[Slots]:
    """Give two processes on a cluster that knows all scripts."""
    cluster.load(script_texts().values())
    made = Slots(cluster_client)
    await made.empty()
    yield made
    await made.end()


@pytest.mark.parametrize("scenario", SCENARIOS, ids=name)
async def test_steps(w: Slots, scenario: Scenario) -> None:
    """Nobody is answered with anything older than what was committed, whoever comes when."""
    await scenario(w)


def without(module: Any, script: str, old: str, new: str = "") -> Mutation:
    """A script without a line, or with another."""

    def mutate(monkeypatch: pytest.MonkeyPatch, w: Slots) -> None:
        scripts = {value.name: key for key, value in vars(module).items() if isinstance(value, Script)}
        mutant = rewritten(getattr(module, scripts[script]), old, new)
        monkeypatch.setattr(module, scripts[script], mutant)
        for client in (w.reader, w.writer):
            client.knows(mutant.sha, script)

    mutate.__name__ = f"{script} without {old}"
    return mutate


def shard_before_lease(monkeypatch: pytest.MonkeyPatch, w: Slots) -> None:
    """A reader enters the index and looks for barriers first, and takes its lease then."""
    leases: Any = w.reads._leases

    async def acquire(client: Any, asked: Sequence[Asked]) -> list[Outcome]:
        barred = await leases._enter(client, asked)
        await client.gates.leave("acquire")
        replies = await leases._link.many(client, [leases._lease(ask) for ask in asked])
        outcomes = [leases._outcome(ask, reply) for ask, reply in zip(asked, replies, strict=True)]
        return [Barred() if ask.entry in barred else outcome for ask, outcome in zip(asked, outcomes, strict=True)]

    monkeypatch.setattr(leases, "acquire", acquire)


def _away(monkeypatch: pytest.MonkeyPatch, order: Callable[[Any, Any], tuple[Any, ...]]) -> None:
    async def away(
        sweeper: ClusterSweeper, client: Any, first: Sequence[Any], entries: Sequence[bytes]
    ) -> tuple[list[bytes], int]:
        held = []
        for lease, entry in zip(first, entries, strict=True):
            replies = await sweeper._link.many(client, order(lease, ("UNLINK", entry)))
            held.append(next((reply for reply in replies if isinstance(reply, bytes)), b""))
        return held, 0

    monkeypatch.setattr(ClusterSweeper, "_away", away)


def leases_survive(monkeypatch: pytest.MonkeyPatch, w: Slots) -> None:
    """A writer deletes entries, and not their leases."""
    _away(monkeypatch, lambda lease, entry: (entry,))


def entries_survive(monkeypatch: pytest.MonkeyPatch, w: Slots) -> None:
    """A writer deletes leases, and not the entries."""
    _away(monkeypatch, lambda lease, entry: (lease,))


def entry_before_lease(monkeypatch: pytest.MonkeyPatch, w: Slots) -> None:
    """A writer deletes the entry, and then its lease."""
    _away(monkeypatch, lambda lease, entry: (entry, lease))


def no_second_sweep(monkeypatch: pytest.MonkeyPatch, w: Slots) -> None:
    """A writer does not look whether its barriers stood."""
    end = ClusterSweeper.end

    async def always(*args: Any) -> bool:
        await end(*args)
        return True

    monkeypatch.setattr(ClusterSweeper, "end", always)


ENTER = "put_in_index(index, expiry, ARGV[i], tonumber(ARGV[1]))"
ENTER_TOO = "put_in_index(index, expiry, ARGV[i], barrier_ms)"
BAR = "redis.call('ZADD', barriers, 'GT', deadline, ARGV[i])"
REACH = "reached[#reached + 1] = key"
HELD = "if held ~= token or not (is_sealed(held, READS) or is_sealed(held, WRITES)) then return 0 end"
SAME = "tonumber(score) == tonumber(seen) and tonumber(score) <= now"
MUTANTS: list[tuple[Mutation, list[Scenario]]] = [
    (shard_before_lease, [scenarios.begun_between_lease_and_shard]),
    (leases_survive, [scenarios.lease_before_the_writer]),
    (entries_survive, [scenarios.reader_behind_the_sweep, scenarios.found_by_its_prefix]),
    (entry_before_lease, [scenarios.lease_goes_first]),
    (no_second_sweep, [scenarios.barrier_that_lapsed]),
    (
        without(cluster_leases, "shard_enter", "barred(barriers, ARGV[i])", "false"),
        [scenarios.begun_between_lease_and_shard, scenarios.reader_behind_the_sweep],
    ),
    (
        without(cluster_leases, "shard_enter", ENTER),
        [scenarios.lease_before_the_writer, scenarios.found_by_its_prefix],
    ),
    (without(cluster_sweep, "shard_fence", BAR), [scenarios.reader_behind_the_sweep]),
    (without(cluster_sweep, "shard_fence", ENTER_TOO), [scenarios.written_through_and_found]),
    (
        without(cluster_sweep, "shard_fence", REACH, f"{REACH} redis.call('ZREM', index, key)"),
        [scenarios.second_writer_between_range_and_deletion],
    ),
    (
        without(cluster_leases, "slot_fill", HELD),
        [scenarios.lease_before_the_writer, scenarios.written_through_against_another],
    ),
    (without(cluster_leases, "shard_bury", SAME, "true"), [scenarios.entered_again_while_it_is_buried]),
]


@pytest.mark.parametrize(
    ("mutate", "scenario"), [(mutate, scenario) for mutate, found in MUTANTS for scenario in found], ids=name
)
async def test_mutants(w: Slots, monkeypatch: pytest.MonkeyPatch, mutate: Mutation, scenario: Scenario) -> None:
    """With one mechanism taken out, or one order changed, somebody is answered wrongly."""
    mutate(monkeypatch, w)
    with pytest.raises(AssertionError):
        await scenario(w)
