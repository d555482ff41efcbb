"""The options of a function as numbers: checked, frozen, in milliseconds."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrdb.errors import OptionError
from fastrdb.policy import Policy, seconds


@pytest.mark.parametrize(
    ("value", "expected"), [(1, 1.0), (0.5, 0.5), (timedelta(minutes=1), 60.0), (timedelta(milliseconds=5), 0.005)]
)
def test_durations_are_seconds(value: Any, expected: float) -> None:
    """A number or a timedelta."""
    assert seconds(value, name="exp", owner="f") == expected


@pytest.mark.parametrize("value", [0, -1, True, "1", None, float("nan"), float("inf"), timedelta(0), 10**10])
def test_impossible_durations_are_refused(value: Any) -> None:
    """By the name of owner and option, with the value."""
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
    """If they have one at all: without `negative_exp`, None lives like any value."""
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
