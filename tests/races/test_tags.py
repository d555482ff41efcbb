"""The races of late tags are won on one server and on a cluster, and lost without the mechanism that decides each."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from itertools import combinations
from typing import Any

import pytest

from fastrdb.keys import Image, hashed
from tests.races.mechanisms import label, without
from tests.races.scenarios import tags
from tests.races.scenarios.tags import KEY, OTHER, Tags, row, tag
from tests.races.seams import Change
from tests.support.waiting import until
from tests.support.world.gates import gated
from tests.support.world.stores import is_cluster, keys_of, lapse_barriers, lose, members, open_store, put

Race = Callable[[Tags], Awaitable[None]]
RACES: list[Race] = [
    tags.written_during_the_load,
    tags.written_by_hand_during_the_load,
    tags.writer_stands,
    tags.writer_died,
    tags.put_and_found_by_its_tag,
    tags.put_of_a_new_column,
    tags.two_writers,
    tags.clock_set_back,
    tags.one_of_two_tables,
    tags.found_by_each_tag,
    tags.column_that_the_writer_does_not_name,
    tags.column_of_one_of_two_rows,
    tags.first_entry_of_a_column,
    tags.stamps_that_were_lost,
    tags.tags_that_were_lost,
    tags.stamps_are_bounded,
    tags.deaths_that_were_lost,
    tags.killed_writer_of_another_row,
]
# Without each of these, the race is lost on one server and on a cluster.
MUTANTS: list[tuple[Change, Race]] = [
    (without("tag-stamps"), tags.written_during_the_load),
    (without("stamp-set"), tags.written_during_the_load),
    (without("tag-barriers"), tags.writer_stands),
    (without("lapsed-barriers"), tags.writer_died),
    (without("lapsed-barriers-kept"), tags.writer_died),
    (without("clock-goes-on"), tags.clock_set_back),
    (without("tag-indexed"), tags.found_by_each_tag),
    (without("columns-in-use-named"), tags.column_that_the_writer_does_not_name),
    (without("new-column-looks-at-table"), tags.first_entry_of_a_column),
    (without("column-counts-later"), tags.first_entry_of_a_column),
    (without("lost-stamps"), tags.stamps_that_were_lost),
    (without("lost-deaths-found"), tags.deaths_that_were_lost),
]
ON_ONE_SERVER: list[tuple[Change, Race]] = [
    (without("fill-checks-tags"), tags.written_during_the_load),
    (without("tags-forgotten"), tags.nothing_is_left),
    (without("stamped-before-swept"), tags.written_by_hand_during_the_load),
    (without("tags-are-whole"), tags.tags_that_were_lost),
    (without("put-is-tagged"), tags.put_and_found_by_its_tag),
    (without("put-uses-column"), tags.put_of_a_new_column),
    (without("same-server"), tags.failed_over),
]
ON_A_CLUSTER: list[tuple[Change, Race]] = [
    (without("shard-checks-tags"), tags.written_during_the_load),
    (without("shard-stamped-before-swept"), tags.written_by_hand_during_the_load),
    (without("shard-tags-are-whole"), tags.tags_that_were_lost),
    (without("shard-put-is-tagged"), tags.put_and_found_by_its_tag),
    (without("shard-put-uses-column"), tags.put_of_a_new_column),
]
PARTS = ("tags", "tagged", "ended", "columns", "barriers", "index", "expiry")
LOSSES = [*((part,) for part in PARTS), *combinations(PARTS, 2)]


@pytest.fixture
async def w(any_client: Any) -> AsyncIterator[Tags]:
    """Provide two processes on each kind of server in turn."""
    async with open_store(any_client) as reads, open_store(any_client) as writes:
        yield Tags(any_client, reads, writes)


@pytest.fixture
async def on_server(client: Any) -> AsyncIterator[Tags]:
    """Provide two processes on one server."""
    async with open_store(client, owned=["user:"]) as reads, open_store(client, owned=["user:"]) as writes:
        yield Tags(client, reads, writes)


@pytest.fixture
async def on_cluster(cluster: Any, cluster_client: Any) -> AsyncIterator[Tags]:
    """Provide two processes on a cluster."""
    async with open_store(cluster_client) as reads, open_store(cluster_client) as writes:
        yield Tags(cluster_client, reads, writes)


@pytest.fixture(params=["on_server", "on_cluster"])
def on_each(request: pytest.FixtureRequest) -> Any:
    """Provide two processes on one server, and on a cluster."""
    return request.getfixturevalue(request.param)


@pytest.mark.parametrize("race", RACES, ids=label)
async def test_race_of_tags_is_won(w: Tags, race: Race) -> None:
    """Nothing older than what was committed is stored."""
    await race(w)


@pytest.mark.parametrize("secret", [None, b"another"], ids=["without", "another"])
async def test_hidden_values_are_reached_with_their_secret_and_without(any_client: Any, secret: bytes | None) -> None:
    """With the secret: what is written, and no other row. Without: all rows, since no value can be compared."""
    seal, other = hashed(b"one", "Cache"), hashed(secret, "Cache")
    async with open_store(any_client, seal=seal) as one, open_store(any_client, seal=other) as foreign:
        w = Tags(any_client, one, one)
        await w.stored(tag("email", "ada@x.org"))
        assert not [each for each in await members(any_client, "tags") if b"ada" in each]
        assert await one.tags_of(any_client, KEY) != [tag("email", "ada@x.org")]
        await w.write(row(email="bob@x.org"))
        assert await one.get(any_client, KEY) is not None
        granted = await w.lease(OTHER)
        await w.write(row(email="ada@x.org"))
        await w.gone()
        assert not await w.fill(granted, tag("email", "ada@x.org"), key=OTHER)
        assert one.columns("users") == {"email"}
        await w.stored(tag("email", "ada@x.org"))
        await Tags(any_client, foreign, foreign).write(row(email="bob@x.org"))
        await w.gone()


@pytest.mark.parametrize("race", [tags.nothing_is_left, tags.failed_over], ids=label)
async def test_race_on_one_server_is_won(on_server: Tags, race: Race) -> None:
    """On a cluster, tags go when the dead entry is removed from the index, and each lease has its server's identity."""
    await race(on_server)


@pytest.mark.parametrize(("change", "race"), [*MUTANTS, *ON_ONE_SERVER], ids=label)
async def test_race_on_one_server_is_lost(
    on_server: Tags, change: Change, race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the mechanism, an old value is stored and stays."""
    change.apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await race(on_server)


@pytest.mark.parametrize(("change", "race"), [*MUTANTS, *ON_A_CLUSTER], ids=label)
async def test_race_on_a_cluster_is_lost(
    on_cluster: Tags, change: Change, race: Race, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same on a cluster."""
    change.apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await race(on_cluster)


@pytest.mark.parametrize("lost", LOSSES, ids="+".join)
async def test_lost_keys_leave_nothing_stale(on_each: Tags, lost: tuple[str, ...]) -> None:
    """Each key alone and each pair is lost, an entry is there and a load is under way, and another caller comes."""
    w = on_each
    await w.stored(tag("id", 1), tag("email", "a"))
    granted = await w.lease(OTHER)
    await lose(w.client, *lost)
    await w.reads.acquire(w.client, {tags.near(KEY): "a" * 32}, tagged=True)
    await w.write(row(id=1))
    await w.gone()
    if await w.fill(granted, tag("id", 1), key=OTHER):
        pytest.fail("a load that began before a write was stored")
    await lapse_barriers(w.client)  # where barriers were lost, all is barred for a while
    await w.stored(tag("id", 1))
    await w.write(Image("users", {"id": frozenset({"1"})}))
    await w.gone()


async def test_a_hot_tag_is_swept_in_portions(any_client: Any) -> None:
    """A script looks at a few entries of a tag, and the next one goes on behind these."""
    async with open_store(any_client, chunk=7) as store:
        w, keys = Tags(any_client, store, store), [f"user:{number}" for number in range(50)]
        for key in keys:
            await w.stored(tags.USERS, key=key)
        await w.write(Image("users"))
        for key in keys:
            await w.gone(key)


async def test_keys_without_tags_are_not_touched(w: Tags) -> None:
    """An entry without tags uses none of the keys of tags, from the lease to the invalidation."""
    outcome = (await w.reads.acquire(w.client, {KEY: "t" * 32}))[KEY]
    assert await w.fill(outcome)  # type: ignore[arg-type]
    await w.writes.invalidate(w.client, keys=[KEY])
    for part in ("tags", "tagged", "ended", "columns"):
        for key in keys_of(w.client, part):
            assert not await w.client.exists(key)
    assert is_cluster(w.client) or await w.client.dbsize() <= 4


async def test_entries_that_expire_unread_leave_no_tags(on_server: Tags) -> None:
    """Fills remove the tags of dead entries with these: a hot tag does not grow."""
    w, keys = on_server, [f"user:{number}" for number in range(30)]
    for key in keys:
        await w.stored(tags.USERS, key=key)
    await w.client.delete(*keys)
    await put(w.client, "expiry", dict.fromkeys(keys, 1))
    for number in range(4):
        await w.stored(key=f"other:{number}")
    assert await members(w.client, "tags") == set()
    assert await w.client.hlen(b"fastrdb:tagged") == 1


@pytest.mark.parametrize("missed", [("begin",), ("end",), ("begin", "end")], ids="+".join)
async def test_commit_that_redis_misses_is_repaired_by_its_tags(on_each: Tags, missed: tuple[str, ...]) -> None:
    """Redis is out of reach at begin, at end, or both: the repair deletes the entry, and refuses the load under way."""
    w = on_each
    await w.stored(tag("id", 1), tag("email", "a"))
    granted = await w.lease(OTHER)
    writer = gated(w.client)
    intent = w.writes.intent(writer)
    intent.add(images=[row(id=1)])
    for name, step in (("begin", intent.begin()), ("end", intent.end(committed=True))):
        if name in missed:
            writer.fail_with(ConnectionError)
        await step
        assert w.writes.has_pending or name not in missed
        writer.heal()

    async def is_repaired() -> bool:
        return not w.writes.has_pending

    await until(is_repaired)
    await w.gone()
    assert not await w.fill(granted, tag("id", 1), key=OTHER)
