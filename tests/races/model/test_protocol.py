"""The protocol holds in every interleaving of a small world, and each thing that is taken out of it is missed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from tests.races.model.protocol import Fault, Layout, Model, Mutant, Setup
from tests.races.model.search import Rule

ALL = frozenset({Fault.CANCEL, Fault.CRASH, Fault.EXPIRY})
WITHOUT_CANCEL = frozenset({Fault.CRASH, Fault.EXPIRY})
RESTART = frozenset({Fault.CANCEL, Fault.EXPIRY, Fault.RESTART})
# If a barrier goes in the middle of a COMMIT, only the end of that commit puts things right.
IN_THE_END = frozenset({Rule.ACKNOWLEDGED, Rule.CONVERGED})
OF_A_LOSS = {
    Mutant.NO_LOOK_AT_THE_INDEX,
    Mutant.WHOLE_THOUGH_LOST,
    Mutant.LEASES_OVERLOOKED,
    Mutant.ENTRY_BEFORE_LEASE,
}
# These have tests of their own.
ELSEWHERE = {
    Mutant.UNINDEXED_AT_INVALIDATION,
    Mutant.NO_SECOND_SWEEP,
    Mutant.NO_LOOK_AT_BARRIERS,
    Mutant.INDEXED_ONCE,
    *(OF_A_LOSS - {Mutant.ENTRY_BEFORE_LEASE}),
}
PER_SLOT_ONLY = {Mutant.BARRIER_CHECK_FIRST, Mutant.ENTRY_BEFORE_LEASE, Mutant.BURIED_BLINDLY}
INDEX_ONLY = {Mutant.READS_NOT_INDEXED, Mutant.WRITE_LEASE_NOT_INDEXED}
NOT_OF = {
    Layout.SCRIPT: ELSEWHERE | PER_SLOT_ONLY,
    Layout.CHUNKS: ELSEWHERE | PER_SLOT_ONLY,
    Layout.SLOTS: ELSEWHERE,
    Layout.SCAN: ELSEWHERE | INDEX_ONLY | PER_SLOT_ONLY - {Mutant.ENTRY_BEFORE_LEASE},
}
MUTANTS = [(layout, mutant) for layout in Layout for mutant in Mutant if mutant not in NOT_OF[layout]]


def name(value: object) -> str | None:
    """Name a layout or a mutant in a test's id."""
    return value.name.lower() if isinstance(value, (Layout, Mutant)) else None


def test_two_readers_and_two_writers_on_one_server() -> None:
    """As it is built, with every fault: no reachable state breaks a rule."""
    outcome = Model(Setup(Layout.CHUNKS, readers=2, writers=2, faults=ALL)).explore()
    assert outcome.rule is None, str(outcome)
    assert outcome.states > 90_000, "the search has seen too little to prove anything"


@pytest.mark.parametrize(("readers", "writers"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("layout", [Layout.SCRIPT, Layout.SLOTS, Layout.SCAN], ids=name)
def test_other_layouts(layout: Layout, readers: int, writers: int) -> None:
    """Neither longer scripts nor a step per cluster slot break a rule."""
    outcome = Model(Setup(layout, readers, writers, ALL)).explore()
    assert outcome.rule is None, str(outcome)


@pytest.mark.parametrize(("layout", "mutant"), MUTANTS, ids=name)
def test_mutants_are_refuted(layout: Layout, mutant: Mutant) -> None:
    """One mechanism taken out, or one order changed, breaks a rule."""
    assert Model(Setup(layout, 1, 2, WITHOUT_CANCEL, mutant)).explore().rule is not None


def test_cluster_must_not_unindex_at_invalidation() -> None:
    """Where index and entry lie in two slots, a writer that takes the key out of the index leaves a stale entry."""
    setup = Setup(Layout.SLOTS, readers=1, writers=3, faults=WITHOUT_CANCEL, mutant=Mutant.UNINDEXED_AT_INVALIDATION)
    assert Model(setup).explore().rule is not None


@pytest.mark.parametrize(("readers", "writers"), [(2, 1), (1, 2)])
@pytest.mark.parametrize("layout", [Layout.SCRIPT, Layout.CHUNKS], ids=name)
def test_a_restart_between_begin_and_end(layout: Layout, readers: int, writers: int) -> None:
    """The barrier is gone before the COMMIT: once the writer has seen that and swept again, nothing stale is left."""
    outcome = Model(Setup(layout, readers, writers, RESTART, rules=IN_THE_END)).explore()
    assert outcome.rule is None, str(outcome)


@pytest.mark.parametrize("layout", [Layout.SCRIPT, Layout.CHUNKS], ids=name)
def test_a_restart_needs_the_second_sweep(layout: Layout) -> None:
    """A writer that does not look whether its barrier stood until the end leaves a stale entry."""
    setup = Setup(layout, 1, 1, RESTART, Mutant.NO_SECOND_SWEEP, IN_THE_END)
    assert Model(setup).explore().rule is not None


@pytest.mark.parametrize("layout", [Layout.SCRIPT, Layout.CHUNKS, Layout.SLOTS], ids=name)
def test_losing_the_index(layout: Layout) -> None:
    """Evicted or deleted by hand, at any time and as often as may be: it says so itself, and all keys are looked at."""
    outcome = Model(Setup(layout, 1, 2, WITHOUT_CANCEL | {Fault.INDEX_LOSS})).explore()
    assert outcome.rule is None, str(outcome)


@pytest.mark.parametrize("mutant", [mutant for mutant in Mutant if mutant in OF_A_LOSS], ids=name)
@pytest.mark.parametrize("layout", [Layout.SCRIPT, Layout.CHUNKS, Layout.SLOTS], ids=name)
def test_what_losing_the_index_needs(layout: Layout, mutant: Mutant) -> None:
    """A search that overlooks the loss, a part of what there is, or one more loss meanwhile, leaves a stale entry."""
    assert Model(Setup(layout, 1, 2, frozenset({Fault.INDEX_LOSS}), mutant)).explore().rule is not None


def test_a_cluster_that_evicts_needs_the_key_indexed_twice() -> None:
    """Before the lease is taken, for others to find it, and after that, for the index may have been lost in between."""
    setup = Setup(Layout.SLOTS, 1, 2, frozenset({Fault.INDEX_LOSS}), Mutant.INDEXED_ONCE)
    assert Model(setup).explore().rule is not None


def test_looking_at_all_keys_needs_no_index() -> None:
    """Leases first, and then entries."""
    outcome = Model(Setup(Layout.SCAN, 2, 2, frozenset({Fault.INDEX_LOSS, Fault.CRASH}))).explore()
    assert outcome.rule is None, str(outcome)


EVICTED = frozenset({Fault.INDEX_LOSS, Fault.BARRIERS_EVICTED})


def test_index_and_barriers_are_evicted() -> None:
    """At any time, and writers die besides: no rule is broken, not even while a COMMIT is under way."""
    outcome = Model(Setup(Layout.CHUNKS, 1, 2, EVICTED | {Fault.CRASH})).explore()
    assert outcome.rule is None, str(outcome)


def test_losing_barriers_must_be_noticed() -> None:
    """Else a reader is meanwhile answered with a value that is not committed any more; for good, if the writer dies."""
    faults = frozenset({Fault.EXPIRY, Fault.BARRIERS_EVICTED})
    mutant = Setup(Layout.CHUNKS, 2, 1, faults, Mutant.NO_LOOK_AT_BARRIERS)
    assert Model(mutant).explore().rule is Rule.COMMITTED
    mutant = replace(mutant, readers=1, faults=faults | {Fault.CRASH})
    assert Model(mutant).explore().rule is Rule.CONVERGED


@pytest.mark.parametrize("layout", Layout, ids=name)
def test_a_barrier_that_goes_too_early(layout: Layout) -> None:
    """Lapsed, or lost in a failover: a writer that sweeps once more before its write is acknowledged leaves nothing."""
    setup = Setup(layout, 1, 2, frozenset({Fault.BARRIER_LOSS, Fault.CANCEL}), rules=IN_THE_END)
    outcome = Model(setup).explore()
    assert outcome.rule is None, str(outcome)
    assert Model(replace(setup, mutant=Mutant.NO_SECOND_SWEEP)).explore().rule is not None
