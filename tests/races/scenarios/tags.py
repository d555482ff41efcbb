"""The races of tags that a load finds out late, step by step: on one server, and on a cluster.

A reader has a lease before it knows which rows it will depend on. Each race fails with an AssertionError when the
mechanism that it is about is taken out: `test_tags` takes it out.
"""

from __future__ import annotations

import re
from typing import Any

from fastrdb.keys import Image, row_tag, table_tag
from fastrdb.protocol import Fill, Granted, Intent, Store
from fastrdb.protocol.keyspace import ClusterKeyspace
from tests.support.world.stores import keys_of, members, names_in

KEY, OTHER, TTL_MS = "user:1", "user:2", 60_000
USERS, ORGS = table_tag("users"), table_tag("orgs")


def tag(column: str, value: object, table: str = "users") -> str:
    """Return the tag of rows."""
    found = row_tag(table, column, value)
    assert found is not None
    return found


def row(table: str = "users", /, **values: object) -> Image:
    """Return the image of a row that has these values before and after."""
    return Image(table, {column: frozenset({str(value)}) for column, value in values.items()})


class Tags:
    """Two processes on one Redis: one reads and stores, one writes."""

    def __init__(self, client: Any, reads: Store, writes: Store) -> None:
        self.client, self.reads, self.writes = client, reads, writes

    async def lease(self, key: str = KEY) -> Granted:
        """Ask for a lease of a load that may have tags."""
        outcome = (await self.reads.acquire(self.client, {key: "r" * 32}, tagged=True))[key]
        assert isinstance(outcome, Granted), outcome
        return outcome

    async def fill(self, granted: Granted, *tags: str, key: str = KEY) -> bool:
        """Store what was loaded under a lease; return whether it was stored."""
        fill = Fill(key, granted.lease, b"old", TTL_MS, tags, granted.since)
        (stored,) = await self.reads.fill(self.client, [fill])
        return stored is True

    async def stored(self, *tags: str, key: str = KEY) -> None:
        """Store an entry, whose columns are in use from then on: the first one may come before that."""
        if not await self.fill(await self.lease(key), *tags, key=key):
            assert await self.fill(await self.lease(key), *tags, key=key)

    async def in_use(self) -> None:
        """Store another entry, so that the column `id` is in use where the key is."""
        await self.stored(tag("id", 1), key=near(KEY))

    async def begun(self, *images: Image) -> Intent:
        """Begin a commit of a write."""
        intent = self.writes.intent(self.client)
        intent.add(images=images)
        await intent.begin()
        return intent

    async def write(self, *images: Image) -> None:
        """Commit a write."""
        await (await self.begun(*images)).end(committed=True)

    async def gone(self, key: str = KEY) -> None:
        """Check that there is no entry."""
        assert await self.reads.get(self.client, key) is None

    async def ahead(self, granted: Granted) -> Granted:
        """Return a lease that was granted when the clock was five seconds ahead."""
        moment = granted.since or re.findall(rb"\nr(\d+)", granted.lease)[0]
        later = b"%d" % (int(moment) + 5_000_000)
        for key in keys_of(self.client, "ended"):
            await self.client.zadd(key, {b"\0clock": later}, gt=True)
        if granted.since:
            return Granted(granted.lease, later)
        lease = granted.lease.replace(b"\nr" + moment, b"\nr" + later)
        await self.client.set(self.reads.keyspace.lease(KEY.encode()), lease, px=TTL_MS)
        return Granted(lease)

    async def lapse(self) -> None:
        """End the time of all barriers, from now on and not before."""
        first, now = await self.client.time(), None
        while now is None or now == first:
            now = await self.client.time()
        deadline = first[0] * 1000 + first[1] // 1000 + 1
        for key in keys_of(self.client, "barriers"):
            found = await self.client.zrangebyscore(key, 1, "(+inf")
            if found:
                await self.client.zadd(key, dict.fromkeys(found, deadline), xx=True)
        while now[0] * 1000 + now[1] // 1000 <= deadline:
            now = await self.client.time()


async def written_during_the_load(w: Tags) -> None:
    """Begin and end a write while a load is under way: no sweep finds the lease, since no tag leads to it."""
    await w.in_use()
    granted = await w.lease()
    await w.write(row(id=1))
    assert not await w.fill(granted, tag("id", 1))


async def written_by_hand_during_the_load(w: Tags) -> None:
    """Invalidate by hand what a load that is under way will turn out to depend on."""
    granted = await w.lease()
    await w.writes.invalidate(w.client, images=[Image("users")])
    assert not await w.fill(granted, USERS)


async def writer_stands(w: Tags) -> None:
    """Fill between the begin of a COMMIT and its end."""
    await w.in_use()
    granted = await w.lease()
    intent = await w.begun(row(id=1))
    assert not await w.fill(granted, tag("id", 1))
    await intent.end(committed=False)


async def writer_died(w: Tags) -> None:
    """Kill a writer between COMMIT and end, whose barrier lapses while a load is under way."""
    await w.in_use()
    granted = await w.lease()
    await w.begun(row(id=1))
    await w.lapse()
    await w.write(row("others", id=1))  # which removes barriers that are too old to matter
    assert not await w.fill(granted, tag("id", 1))


async def put_and_found_by_its_tag(w: Tags) -> None:
    """Find by its tag what another writer has put, and not stored yet."""
    intent = w.writes.intent(w.client)
    intent.put(KEY, b"old", TTL_MS, [tag("id", 1)])
    await intent.begin()
    await w.write(row(id=1))
    await intent.end(committed=True)
    await w.gone()


async def put_of_a_new_column(w: Tags) -> None:
    """Write a row whose column is unknown, after a put has used the column for the first time."""
    intent = w.writes.intent(w.client)
    intent.put(KEY, b"old", TTL_MS, [tag("email", "a")])
    await intent.begin()
    await intent.end(committed=True)
    assert await w.reads.get(w.client, KEY) == b"old"
    await w.write(row(id=1))
    await w.gone()


async def two_writers(w: Tags) -> None:
    """End one of two writers of a row: the other one's barrier still stands."""
    first, second = await w.begun(row(id=1)), await w.begun(row(id=1))
    await first.end(committed=True)
    granted = await w.lease()
    assert not await w.fill(granted, tag("id", 1))
    await second.end(committed=True)


async def clock_set_back(w: Tags) -> None:
    """Set the clock of the machine back between a grant and the end of a writer, of these rows and of others."""
    for table, stored in (("users", False), ("others", True)):
        await w.in_use()
        granted = await w.ahead(await w.lease())
        await w.write(row(table, id=1))
        assert await w.fill(granted, tag("id", 1)) is stored


async def one_of_two_tables(w: Tags) -> None:
    """Write the table that a load has read second; then the one that it has read first."""
    for table in ("users", "orgs"):
        granted = await w.lease()
        await w.write(Image(table))
        assert not await w.fill(granted, USERS, ORGS)
    await w.stored(USERS, ORGS)


async def killed_writer_of_another_row(w: Tags) -> None:
    """Fill while the barrier of a writer stands that was killed: it had other rows of the table."""
    await w.in_use()
    await w.begun(row(id=1))
    await w.stored(tag("id", 2))
    granted = await w.lease(near(KEY))
    assert not await w.fill(granted, tag("id", 1), key=near(KEY))


async def found_by_each_tag(w: Tags) -> None:
    """Check that an entry goes by each of its tags, and by no other one."""
    tags = [tag("id", 1), tag("org_id", 5), table_tag("orgs")]
    for image in (
        row(id=1, org_id=6),
        row(id=2, org_id=5),
        Image("users"),
        Image("orgs"),
        row("orgs", id=9),
        Image(None),
    ):
        await w.stored(*tags)
        await w.write(row(id=2, org_id=6), Image("others"))
        assert await w.reads.get(w.client, KEY) is not None
        await w.write(image)
        await w.gone()


async def column_that_the_writer_does_not_name(w: Tags) -> None:
    """Write a row of which a column is unknown that entries are tagged by."""
    await w.stored(tag("email", "a@b.c"))
    await w.write(row(id=1))
    await w.gone()


async def column_of_one_of_two_rows(w: Tags) -> None:
    """Write two rows, of which a column is known of one only."""
    await w.stored(tag("org_id", 7))
    await w.write(row(id=1, org_id=5), row(id=2))
    await w.gone()


async def first_entry_of_a_column(w: Tags) -> None:
    """End a writer that began before a column was in use, while entries of that column are loaded."""
    first = await w.lease()
    intent = await w.begun(row(id=1))
    second = await w.lease(OTHER)
    assert not await w.fill(first, tag("email", "a"))
    assert not await w.fill(second, tag("email", "a"), key=OTHER)
    third = await w.lease()
    await intent.end(committed=True)
    assert not await w.fill(third, tag("email", "a"))


async def stamps_that_were_lost(w: Tags) -> None:
    """Lose the stamps after a writer has ended; another caller's grant begins them anew."""
    await w.in_use()
    granted = await w.lease()
    await w.write(row(id=1))
    for key in keys_of(w.client, "ended"):
        await w.client.delete(key)
    await w.lease(near(KEY))
    assert not await w.fill(granted, tag("id", 1))


def near(key: str) -> str:
    """Return another key of the same shard."""
    names = ClusterKeyspace("")
    keys = (f"near:{number}" for number in range(1000))
    return next(each for each in keys if names.shard(each.encode()) == names.shard(key.encode()))


async def tags_that_were_lost(w: Tags) -> None:
    """Lose the tags of an entry: the next writer deletes all."""
    await w.stored(tag("id", 1))
    for key in keys_of(w.client, "tags"):
        await w.client.delete(key)
    await w.write(row(id=1))
    await w.gone()


async def failed_over(w: Tags) -> None:
    """Go on with a replica that has the lease, and lacks the stamp of a writer that has ended since."""
    await w.in_use()
    granted = await w.lease()
    lagging = {key: await w.client.dump(key) for part in ("ended", "barriers") for key in keys_of(w.client, part)}
    await w.write(row(id=1))
    for key, copy in lagging.items():
        await w.client.restore(key, 0, copy, replace=True)
    for key in keys_of(w.client, "trusted"):
        await w.client.delete(key)
        await w.client.zadd(key, {b"of the former master": 0})
    assert not await w.fill(granted, tag("id", 1))


async def deaths_that_were_lost(w: Tags) -> None:
    """Lose index and deaths of an entry, which then expires unread: fills of another one find its tags."""
    await w.stored(USERS, tag("id", 1))
    for part in ("index", "expiry"):
        for key in keys_of(w.client, part):
            await w.client.delete(key)
    await w.client.delete(KEY)
    left: list[bytes] = []
    for _ in range(100):  # each looks at one of two entries
        await w.stored(ORGS, key=near(KEY))
        await w.writes.invalidate(w.client, keys=[near(KEY)])
        left = [member for member in await members(w.client, "tags") if member.endswith(b"\0" + KEY.encode())]
        if not left:
            break
    assert not left, "tags of an entry that is gone have stayed"


async def nothing_is_left(w: Tags) -> None:
    """Check that tags go with their entry: deleted by a tag or a prefix, filled with others, or given back."""
    await w.stored(tag("id", 1), USERS)
    await w.write(row(id=1))
    await w.stored(tag("id", 1), USERS)
    await w.writes.invalidate(w.client, keys=[KEY])
    await w.stored(tag("id", 1), USERS)
    await w.fill(await refresh(w), tag("id", 2))
    assert await w.reads.tags_of(w.client, KEY) == [tag("id", 2)]
    await w.writes.invalidate(w.client, keys=[KEY])
    assert await members(w.client, "tags") == set()


async def refresh(w: Tags) -> Granted:
    """Ask for a lease though there is an entry."""
    outcome = (await w.reads.acquire(w.client, {KEY: "s" * 32}, tagged=True, refresh=True))[KEY]
    assert isinstance(outcome, Granted), outcome
    return outcome


async def stamps_are_bounded(w: Tags) -> None:
    """Write one row many times, and many rows at once: there is one stamp for each name, and a bound of names."""
    for _ in range(20):
        await w.write(row(id=1))
    assert len(await members(w.client, "ended")) == 3
    await w.write(*(row(id=number) for number in range(1000)))
    assert len(await members(w.client, "ended")) <= 3 + 64
    assert await names_in(w.client, "user*") == set()
