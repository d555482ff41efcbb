"""The options of a function as numbers: checked, frozen, in milliseconds."""

from __future__ import annotations

import math
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrdb.errors import OptionError
from fastrdb.loading.policy import Decision, Pace, Policy
from fastrdb.options import seconds


@pytest.mark.parametrize(
    ("value", "expected"), [(1, 1.0), (0.5, 0.5), (timedelta(minutes=1), 60.0), (timedelta(milliseconds=5), 0.005)]
)
def test_durations_are_seconds(value: Any, expected: float) -> None:
    """A number or a timedelta."""
    assert seconds(value, name="exp", owner="f") == expected


@pytest.mark.parametrize("value", [0, -1, True, "1", None, float("nan"), float("inf"), timedelta(0), 10**10])
def test_impossible_durations_are_refused(value: Any) -> None:
    """The error names owner, option and value."""
    with pytest.raises(OptionError, match=r"^f: exp=") as caught:
        seconds(value, name="exp", owner="f")
    assert repr(value) in str(caught.value)


def test_a_policy_keeps_milliseconds() -> None:
    """As Redis wants them; what is shorter than one is one."""
    policy = Policy.of("f", exp=1.5, negative_exp=timedelta(seconds=2), wait=3)
    assert (policy.exp_ms, policy.negative_ms, policy.wait) == (1500, 2000, 3.0)
    assert Policy.of("f", exp=0.0001).exp_ms == 1


def test_not_waiting_is_a_choice() -> None:
    """`wait=0` is allowed, and nothing below."""
    assert Policy.of("f", exp=1, wait=0).wait == 0.0
    with pytest.raises(OptionError, match="wait=-1"):
        Policy.of("f", exp=1, wait=-1)


def test_negative_entries_have_their_own_life() -> None:
    """Without `negative_exp`, None lives like any value."""
    assert Policy.of("f", exp=60, negative_exp=5).ttl_ms(negative=True, random=0.0) == 5000
    assert Policy.of("f", exp=60, negative_exp=5).ttl_ms(negative=False, random=0.0) == 60_000
    assert Policy.of("f", exp=60).ttl_ms(negative=True, random=0.0) == 60_000


@given(exp=st.floats(0.001, 1e6), jitter=st.floats(0, 0.999), random=st.floats(0, 1, exclude_max=True))
def test_jitter_shortens_by_at_most_its_fraction(exp: float, jitter: float, random: float) -> None:
    """A life is never longer than `exp`, nor shorter than `exp * (1 - jitter)`, nor nothing."""
    policy = Policy.of("f", exp=exp, jitter=jitter)
    life = policy.ttl_ms(negative=False, random=random)
    assert 1 <= life <= policy.exp_ms
    assert life >= policy.exp_ms * (1 - jitter) - 1


def test_more_chance_means_a_shorter_life() -> None:
    """Monotone in the random number."""
    policy = Policy.of("f", exp=10, jitter=0.5)
    lives = [policy.ttl_ms(negative=False, random=step / 10) for step in range(10)]
    assert lives == sorted(lives, reverse=True)
    assert lives[0] == 10_000
    assert lives[5] == 7_500


def test_a_policy_cannot_be_changed() -> None:
    """It is shared by all calls."""
    with pytest.raises(AttributeError):
        Policy.of("f", exp=1).exp_ms = 3  # type: ignore[misc]


# --- the age of an entry


def aged(**options: Any) -> Policy:
    """Return a policy whose entries live for a minute."""
    return Policy.of("f", exp=60, **options)


def test_what_is_kept_longer_is_as_old_as_before() -> None:
    """`stale` and `fail_safe` lengthen an entry's life in Redis, and what is left of `exp` is counted without them."""
    for options, beyond in (({"stale": 30, "fail_safe": 5}, 30_000), ({"fail_safe": 90}, 90_000), ({"early": 1}, 0)):
        policy = aged(**options)
        assert policy.ttl_ms(negative=False, random=0.0) == 60_000 + beyond
        assert policy.left_ms(60_000 + beyond, negative=False) == 60_000
        assert policy.left_ms(beyond, negative=False) == 0
        assert policy.left_ms(-1, negative=False) == math.inf


def test_what_is_not_there_is_not_kept_longer() -> None:
    """With `negative_exp` it lives that long and no longer; without, None is a value like others."""
    policy = aged(negative_exp=5, stale=30)
    assert policy.ttl_ms(negative=True, random=0.0) == 5000
    assert policy.left_ms(5000, negative=True) == 5000
    assert aged(stale=30).ttl_ms(negative=True, random=0.0) == 90_000


def test_jitter_does_not_shorten_what_comes_after_exp() -> None:
    """Only `exp` is spread."""
    assert aged(jitter=0.5, stale=30).ttl_ms(negative=False, random=0.5) == 45_000 + 30_000


@pytest.mark.parametrize(
    ("left_ms", "expected"),
    [
        (60_000, Decision.FRESH),
        (1, Decision.FRESH),
        (0, Decision.STALE),
        (-29_999, Decision.STALE),
        (-30_000, Decision.OVER),
        (-60_000, Decision.OVER),
    ],
)
def test_exp_and_stale_end_to_the_millisecond(left_ms: int, expected: object) -> None:
    """Fresh while there is something left, stale as long as `stale` says."""
    assert aged(stale=30).decide(left_ms, load_ms=100, random=0.5) == expected


def test_fail_safe_ends_to_the_millisecond() -> None:
    """Whatever is within `exp` may be fallen back on, too."""
    policy = aged(fail_safe=30)
    assert [policy.falls_back(left) for left in (1, 0, -29_999, -30_000)] == [True, True, True, False]
    assert not aged().falls_back(0)


def test_xfetch_by_the_book() -> None:
    """Early if delta * beta * -ln(random) >= what is left: sooner for slow loads, and for a larger beta."""
    at = math.exp(-3)  # three times delta * beta before the end
    for beta, load_ms in ((1, 100), (2, 50), (0.5, 200)):
        policy = aged(early=beta)
        assert policy.decide(299, load_ms=load_ms, random=at) == Decision.EARLY
        assert policy.decide(301, load_ms=load_ms, random=at) == Decision.FRESH
    assert aged().decide(1, load_ms=1e9, random=1e-300) == Decision.FRESH
    assert aged(early=1e9).decide(1, load_ms=0, random=1e-300) == Decision.FRESH  # no load has been seen yet
    assert aged(early=1e9).decide(1, load_ms=100, random=1.0) == Decision.FRESH


ORDER = list(Decision)


@given(
    stale=st.floats(0, 100),
    early=st.floats(0, 1e9),
    load_ms=st.floats(0, 1e6),
    random=st.floats(0, 1, exclude_min=True),
    times=st.lists(st.floats(-200_000, 200_000), min_size=2, max_size=6),
)
def test_an_entry_never_gets_younger(
    stale: float, early: float, load_ms: float, random: float, times: list[float]
) -> None:
    """As time passes an entry is fresh, early, stale, over, in this order; what cannot be fallen back on stays so."""
    policy = aged(stale=stale, early=early, fail_safe=stale / 2)
    lefts = sorted(times, reverse=True)
    ages = [ORDER.index(policy.decide(left, load_ms=load_ms, random=random)) for left in lefts]
    assert ages == sorted(ages)
    falls = [policy.falls_back(left) for left in lefts]
    assert falls == sorted(falls, reverse=True)


@given(early=st.floats(0, 1e6), load_ms=st.floats(0, 1e6), left=st.floats(0.001, 1e6), first=st.floats(1e-9, 1))
def test_more_chance_is_never_earlier(early: float, load_ms: float, left: float, first: float) -> None:
    """The caller that draws the smaller number reloads first."""
    policy = aged(early=early)
    draws = [first, math.sqrt(first)]
    found = [policy.decide(left, load_ms=load_ms, random=draw) for draw in draws]
    assert found != [Decision.FRESH, Decision.EARLY]


def test_the_pace_of_loads_is_a_running_mean() -> None:
    """The first counts in full, each later one an eighth."""
    pace = Pace()
    assert pace.ms == 0
    for ms, mean in ((80, 80), (160, 90), (90, 90)):
        pace.took(ms)
        assert pace.ms == mean
