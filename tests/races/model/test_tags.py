"""The protocol of late tags holds in every interleaving of a small world, and misses each thing that is taken out."""

from __future__ import annotations

import pytest

from tests.races.model.tags import Fault, Layout, Model, Mutant, Setup

WITHOUT_CANCEL = frozenset({Fault.CRASH, Fault.EXPIRY})
BY_HAND = {Mutant.BY_HAND_WITHOUT_STAMP, Mutant.SWEPT_BEFORE_STAMP}
NEW_COLUMN = {Mutant.NEW_COLUMN_BELIEVED, Mutant.NEW_COLUMN_COUNTS_AT_ONCE}
# Where look, tag and entry are one step, stamps and barriers alone decide: there, leases only save work.
SPARED = {Mutant.LEASES_SURVIVE, Mutant.FILL_WITHOUT_LEASE}
NOT_OF = {
    Layout.SERVER: {*SPARED, Mutant.ENTRY_BEFORE_TAG},
    Layout.CLUSTER: {Mutant.TAG_NOT_INDEXED},  # its fill does not touch the tag
}
MUTANTS = [(layout, mutant) for layout in Layout for mutant in Mutant if mutant not in NOT_OF[layout]]
SHORT = {
    "two readers and a writer": {"writers": 1, "faults": WITHOUT_CANCEL},
    "a reader and two writers": {"readers": 1},
    "readers that join each other": {"writers": 1, "joining": True},
    "writers that have only the tag": {"readers": 1, "puts": False},
    "a program outside": {"writers": 0, "outside": 1},
    "a column that nothing used": {"readers": 1, "writers": 1, "unused": True},
}
LONG = {
    "two readers and two writers": {},
    "three readers that join each other": {"readers": 3, "writers": 1, "joining": True},
    "two readers that join, and writers that have only the tag": {"joining": True, "puts": False},
    "three writers": {"readers": 1, "writers": 3, "faults": WITHOUT_CANCEL},
    "a program outside, and a writer": {"writers": 1, "outside": 1},
    "a column that nothing used, and a program outside": {"writers": 1, "outside": 1, "unused": True},
    "a column that nothing used, two readers and two writers": {"unused": True, "faults": WITHOUT_CANCEL},
}


def name(value: object) -> str | None:
    """Name a layout or a mutant in a test's id."""
    return value.name.lower() if isinstance(value, (Layout, Mutant)) else None


def setup_of(layout: Layout, mutant: Mutant) -> Setup:
    """Return the smallest setup that refutes a mutant."""
    if mutant in BY_HAND:
        return Setup(layout, readers=1, writers=0, outside=1, faults=WITHOUT_CANCEL, mutant=mutant)
    if mutant is Mutant.PUT_WITHOUT_COLUMN:
        return Setup(layout, readers=0, writers=2, unused=True, faults=frozenset(), mutant=mutant)
    if mutant in NEW_COLUMN:
        return Setup(layout, readers=2, writers=1, puts=False, unused=True, faults=frozenset(), mutant=mutant)
    if mutant is Mutant.TOLD_BEFORE_FILL:
        return Setup(layout, readers=2, writers=1, joining=True, puts=False, faults=WITHOUT_CANCEL, mutant=mutant)
    return Setup(layout, readers=1, writers=2, faults=WITHOUT_CANCEL, mutant=mutant)


@pytest.mark.parametrize("small", SHORT)
@pytest.mark.parametrize("layout", Layout, ids=name)
def test_small_worlds(layout: Layout, small: str) -> None:
    """As it is built, with every fault: no reachable state breaks a rule."""
    outcome = Model(Setup(layout, **SHORT[small])).explore()  # type: ignore[arg-type]
    assert outcome.rule is None, str(outcome)
    assert outcome.states > 500, "the search has seen too little to prove anything"


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("large", LONG)
@pytest.mark.parametrize("layout", Layout, ids=name)
def test_larger_worlds(layout: Layout, large: str) -> None:
    """The same with more processes: some hundred thousand states or some millions each."""
    outcome = Model(Setup(layout, **LONG[large])).explore()  # type: ignore[arg-type]
    assert outcome.rule is None, str(outcome)
    assert outcome.states > 50_000, "the search has seen too little to prove anything"


@pytest.mark.parametrize(("layout", "mutant"), MUTANTS, ids=name)
def test_mutants_are_refuted(layout: Layout, mutant: Mutant) -> None:
    """One mechanism taken out, or one order changed, breaks a rule."""
    assert Model(setup_of(layout, mutant)).explore().rule is not None


@pytest.mark.parametrize("mutant", [mutant for mutant in Mutant if mutant in SPARED], ids=name)
def test_one_server_does_without_leases(mutant: Mutant) -> None:
    """Where the look and the fill are one step, stamps and barriers alone are enough."""
    outcome = Model(Setup(Layout.SERVER, 1, 2, faults=WITHOUT_CANCEL, mutant=mutant)).explore()
    assert outcome.rule is None, str(outcome)
