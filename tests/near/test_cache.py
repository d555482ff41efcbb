"""The near cache by itself: what it keeps, for how long, and when no entry answers."""

from __future__ import annotations

import gc
import os
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fastrdb.errors import OptionError
from fastrdb.near.cache import Channel, Kept, Near, NearCache
from tests.support.network.clocks import ManualClock

FOREVER = 10**9


@pytest.fixture
def clock() -> ManualClock:
    """Return a clock that stands."""
    return ManualClock()


def opened(near: NearCache, *heads: str) -> Channel:
    """Return a channel that reports everything (or these heads) and never dies."""
    channel = near.channel()
    channel.open(float("inf"), heads or ("",))
    return channel


def made(clock: ManualClock, near: Near | None = None, before: bytes = b"") -> NearCache:
    """Return a near cache whose only channel is open."""
    cache = NearCache(near or Near(), before=before, clock=clock)
    opened(cache)
    return cache


def keep(near: NearCache, key: str, value: Any = b"1", **options: Any) -> bool:
    """Keep an entry as a reader does when nothing happens between the steps."""
    token = near.begin(key)
    assert token is not None
    return near.keep(token, value, **{"size": 1, "ttl_ms": FOREVER, **options})


def value(near: NearCache, key: str) -> Any:
    """Return the value that is kept, or None."""
    kept = near.lookup(key)
    return None if kept is None else kept.value


# --- settings


@pytest.mark.parametrize(
    ("option", "wrong"),
    [
        *(("entries", wrong) for wrong in (0, -1, 1.5, True, "10", None)),
        *(("bytes", wrong) for wrong in (0, -1, 1.5, True)),
        *(("ttl", wrong) for wrong in (0, -1, True, "60", None)),
        *(("heartbeat", wrong) for wrong in (0, timedelta(0), float("nan"))),
    ],
)
def test_settings_are_checked(option: str, wrong: Any) -> None:
    """Settings are checked when made, by name and value."""
    with pytest.raises(OptionError, match=f"Near: {option}=") as caught:
        Near(**{option: wrong})
    assert repr(wrong) in str(caught.value)


def test_durations_may_be_timedeltas() -> None:
    """Durations as timedeltas are seconds afterwards."""
    assert Near(ttl=timedelta(minutes=1), heartbeat=timedelta(seconds=2)) == Near(ttl=60.0, heartbeat=2.0)


# --- keeping


def test_what_is_kept_is_found(clock: ManualClock) -> None:
    """The value itself, under its key and no other."""
    near, object_ = made(clock), object()
    assert keep(near, "a", object_, owner="f")
    kept = near.lookup("a")
    assert isinstance(kept, Kept)
    assert (kept.value, kept.owner) == (object_, "f")
    assert near.lookup("b") is None


def test_nothing_is_kept_before_a_channel_is_open(clock: ManualClock) -> None:
    """Without one, or with one that is not open yet, there is no token."""
    near = NearCache(Near(), clock=clock)
    assert near.begin("a") is None
    near.channel()
    assert near.begin("a") is None


def test_an_entry_lives_no_longer_than_in_redis(clock: ManualClock) -> None:
    """From when it was asked for: its rest of life was measured after that."""
    near = made(clock)
    token = near.begin("a")
    assert token is not None
    clock.advance(1.0)
    assert near.keep(token, b"1", size=1, ttl_ms=3000)
    clock.advance(1.999)
    assert value(near, "a") == b"1"
    clock.advance(0.001)
    assert near.lookup("a") is None


@pytest.mark.parametrize("ttl_ms", [FOREVER, -1])
def test_an_entry_lives_no_longer_than_ttl(clock: ManualClock, ttl_ms: int) -> None:
    """However long it lives in Redis, and if it never expires there."""
    near = made(clock, Near(ttl=5))
    assert keep(near, "a", ttl_ms=ttl_ms)
    clock.advance(4.999)
    assert value(near, "a") == b"1"
    clock.advance(0.001)
    assert near.lookup("a") is None


def test_what_was_gone_by_the_time_it_was_measured_is_not_kept(clock: ManualClock) -> None:
    """PTTL says -2: it expired between GET and PTTL."""
    near = made(clock)
    assert not keep(near, "a", ttl_ms=-2)
    assert near.lookup("a") is None


# --- bounds


def test_entries_are_bounded_by_number(clock: ManualClock) -> None:
    """The one that was not asked for the longest goes first."""
    near = made(clock, Near(entries=3))
    for key in "abc":
        keep(near, key)
    near.lookup("a")
    keep(near, "d")
    assert len(near) == 3
    assert [key for key in "abcd" if near.lookup(key)] == ["a", "c", "d"]


def test_entries_are_bounded_by_bytes(clock: ManualClock) -> None:
    """Keys and JSON count, and what is around them; a value that is replaced does not count twice."""
    near = made(clock, Near(bytes=4000))
    for _ in range(3):
        keep(near, "a", size=1000)
    keep(near, "b", size=1000)
    keep(near, "c", size=1000)
    assert all(near.lookup(key) for key in "abc")
    keep(near, "d", size=1000)
    assert [key for key in "abcd" if near.lookup(key)] == ["b", "c", "d"]


def test_what_is_too_large_is_not_kept(clock: ManualClock) -> None:
    """Nor is what it was before, and nothing else makes room for it."""
    near = made(clock, Near(bytes=4000))
    keep(near, "a")
    keep(near, "b")
    assert not keep(near, "a", size=4000)
    assert near.lookup("a") is None
    assert value(near, "b") == b"1"


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 2000)), max_size=200))
def test_bounds_hold_whatever_is_kept(kept: list[tuple[int, int]]) -> None:
    """A cache with losses: what it gives was the last that was kept."""
    near, last = made(ManualClock(), Near(entries=10, bytes=10_000)), dict[str, int]()
    for number, size in kept:
        key = str(number)
        keep(near, key, size, size=size)
        last[key] = size
        assert len(near) <= 10
        found = {key: value(near, key) for key in last}
        assert sum(size for size in found.values() if size is not None) <= 10_000
        assert all(size in (None, last[key]) for key, size in found.items())


# --- tokens


def test_a_push_takes_the_entry_and_what_is_on_its_way(clock: ManualClock) -> None:
    """And nothing else."""
    near = made(clock)
    keep(near, "a")
    keep(near, "b")
    token, other = near.begin("a"), near.begin("b")
    assert token is not None
    assert other is not None
    near.pushed([b"a"])
    assert near.lookup("a") is None
    assert not near.keep(token, b"old", size=1, ttl_ms=-1)
    assert near.keep(other, b"2", size=1, ttl_ms=-1)
    assert (value(near, "a"), value(near, "b")) == (None, b"2")


def test_a_token_of_another_reader_is_not_ones_own(clock: ManualClock) -> None:
    """ABA: a push came, and a second reader has put down a token since; the first one's value may be old."""
    near = made(clock)
    first = near.begin("a")
    near.pushed([b"a"])
    second = near.begin("a")
    assert first is not None
    assert second is not None
    assert not near.keep(first, b"old", size=1, ttl_ms=-1)
    assert near.keep(second, b"new", size=1, ttl_ms=-1)
    assert value(near, "a") == b"new"


def test_a_token_is_good_once(clock: ManualClock) -> None:
    """It is used up by what was kept with it."""
    near = made(clock)
    token = near.begin("a")
    assert token is not None
    assert near.keep(token, b"1", size=1, ttl_ms=-1)
    assert not near.keep(token, b"2", size=1, ttl_ms=-1)


def test_a_reader_that_gives_up_leaves_nothing(clock: ManualClock) -> None:
    """Its token goes with it: no list grows with cancelled readers."""
    near = made(clock)
    for number in range(100):
        assert near.begin(str(number)) is not None
    gc.collect()
    assert len(near._tokens) == 0


def test_everything_has_changed(clock: ManualClock) -> None:
    """A push without names (FLUSHALL): all entries go, and all that are on their way."""
    near = made(clock)
    keep(near, "a")
    token = near.begin("b")
    assert token is not None
    near.pushed(None)
    assert near.lookup("a") is None
    assert not near.keep(token, b"1", size=1, ttl_ms=-1)


def test_pushes_bear_the_names_of_redis(clock: ManualClock) -> None:
    """A pushed name has the namespace in front, in UTF-8; a name that is no UTF-8 is no key of the cache."""
    near = made(clock, before="früh:".encode())
    keep(near, "é")
    near.pushed([b"\xff\xfe", b"fr\xc3\xbch:\xff", "früh:e".encode()])
    assert near.lookup("é")
    near.pushed(["früh:é".encode()])
    assert near.lookup("é") is None


# --- own invalidations


def test_what_one_invalidates_oneself_is_gone_at_once(clock: ManualClock) -> None:
    """Under heads and by name, in the cache and on its way; the rest stays."""
    near = made(clock, before=b"ns:")
    for key in ("user:1", "user:2", "post:1", "post:2"):
        keep(near, key)
    near.lookup("user:1")
    tokens = {key: near.begin(key) for key in ("user:1", "user:3", "post:1", "post:2")}
    with near.shut(heads=[b"ns:user:"], names=[b"ns:post:1"]):
        assert [key for key in ("user:1", "user:2", "post:1", "post:2") if near.lookup(key)] == ["post:2"]
        kept = {key: near.keep(token, b"2", size=1, ttl_ms=-1) for key, token in tokens.items() if token}
        assert kept == {"user:1": False, "user:3": False, "post:1": False, "post:2": True}


def test_nothing_is_kept_under_an_invalidation_that_is_being_sent(clock: ManualClock) -> None:
    """A read that begins meanwhile may reach the server first; afterwards all is as before."""
    near = made(clock)
    with near.shut(heads=[b"user:"], names=[b"post:1"]):
        assert near.begin("user:1") is None
        assert near.begin("post:1") is None
        assert near.begin("post:2") is not None
        with near.shut(heads=[b"user:"]):
            pass
        assert near.begin("user:1") is None
    assert near.begin("user:1") is not None
    assert near.begin("post:1") is not None


def test_an_invalidation_that_fails_is_over_too(clock: ManualClock) -> None:
    """A failed invalidation opens the near cache again; the caller handles the error."""
    near = made(clock)
    with pytest.raises(ZeroDivisionError), near.shut(names=[b"a"]):
        raise ZeroDivisionError
    assert near.begin("a") is not None


def test_a_head_of_nothing_reaches_all(clock: ManualClock) -> None:
    """The whole namespace."""
    near = made(clock, before=b"ns:")
    keep(near, "a")
    with near.shut(heads=[b"ns:"]):
        assert near.lookup("a") is None
        assert near.begin("b") is None


KEYS = [f"{head}{rest}" for head in ("", "a:", "a:b:", "c:") for rest in ("1", "2", "é")]
HEADS = ["", "a", "a:", "a:b:", "a:b:1", "c:", "d:"]
KEEPS = st.tuples(st.just("keep"), st.sampled_from(KEYS), st.sampled_from(HEADS), st.integers(0, 3000))
DROPS = st.tuples(st.sampled_from(["push", "name"]), st.sampled_from(KEYS), st.just(""), st.just(0))
PREFIXES = st.tuples(st.just("prefix"), st.just(""), st.sampled_from(HEADS), st.just(0))


@given(st.lists(KEEPS | DROPS | PREFIXES, max_size=60))
def test_it_is_a_dictionary_with_losses(steps: list[tuple[str, str, str, int]]) -> None:
    """Whatever is kept and dropped in any order: nothing that was dropped is found, and the accounts are right."""
    near, expected = made(ManualClock(), Near(entries=8, bytes=8000)), dict[str, int]()
    for number, (step, key, head, size) in enumerate(steps):
        if step == "keep":
            token = near.begin(key, head)
            assert token is not None
            near.keep(token, number, size=size, ttl_ms=-1)
            expected[key] = number
        elif step == "push":
            near.pushed([key.encode()])
            expected.pop(key, None)
        else:
            with near.shut(heads=[head.encode()] if step == "prefix" else [], names=[key.encode()] if key else []):
                pass
            gone = [each for each in expected if (each.startswith(head) if step == "prefix" else each == key)]
            for each in gone:
                del expected[each]
        found = {each: near.lookup(each) for each in KEYS}
        kept = {each: entry for each, entry in found.items() if entry is not None}
        assert all(entry.value == expected[each] for each, entry in kept.items())
        assert len(kept) == len(near) <= 8
        assert near._size == sum(entry.size for entry in kept.values()) <= 8000
        assert sorted(each for group in near._groups.values() for each in group) == sorted(kept)


# --- channels


def test_a_channel_is_believed_until_its_time(clock: ManualClock) -> None:
    """A channel counts as alive until its time and no longer.

    A new sign of life makes the kept entries answer again.
    """
    near = NearCache(Near(), clock=clock)
    channel = near.channel()
    channel.open(clock.now + 1.0)
    keep(near, "a")
    clock.advance(0.999)
    assert near.lookup("a")
    clock.advance(0.001)
    assert near.lookup("a") is None
    assert near.begin("b") is None
    channel.alive(clock.now + 1.0)
    assert near.lookup("a")


def test_a_lost_channel_takes_all_along(clock: ManualClock) -> None:
    """A lost channel may have missed reports: nothing comes back when it is open again."""
    near = NearCache(Near(), clock=clock)
    channel = opened(near)
    keep(near, "a")
    token = near.begin("b")
    channel.lost()
    channel.open(float("inf"))
    assert near.lookup("a") is None
    assert token is not None
    assert not near.keep(token, b"1", size=1, ttl_ms=-1)


def test_all_channels_must_be_alive(clock: ManualClock) -> None:
    """One for each server of a cluster: the first that dies decides."""
    near = NearCache(Near(), clock=clock)
    first, second = opened(near), near.channel()
    assert near.begin("a") is None
    second.open(clock.now + 5)
    keep(near, "a")
    first.alive(clock.now + 1)
    clock.advance(2)
    assert near.lookup("a") is None
    first.alive(clock.now + 5)
    assert near.lookup("a")
    second.lost()
    assert near.lookup("a") is None


def test_only_what_every_channel_tells_of_is_kept(clock: ManualClock) -> None:
    """A key outside of the heads that are tracked gets no token."""
    near = NearCache(Near(), clock=clock)
    opened(near, "user:", "post:1")
    opened(near, "user:email:", "post:")
    assert near.begin("user:email:a") is not None
    assert near.begin("post:11") is not None
    assert near.begin("user:id:1") is None
    assert near.begin("post:2") is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_forked_child_believes_nothing(clock: ManualClock) -> None:
    """The pushes go to its parent, which goes on."""
    near = made(clock)
    keep(near, "a")
    child = os.fork()
    if not child:
        os._exit(1 if near.lookup("a") or near.begin("b") else 0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert near.lookup("a")
