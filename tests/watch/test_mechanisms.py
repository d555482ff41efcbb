"""What is lost when a mechanism of the watcher is taken out."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import Any

import pytest
from redis.asyncio import Redis
from sqlalchemy import text

from fastrdb import Cache, CacheUnavailableError, OptionError
from fastrdb.keys import row_tag
from fastrdb.testing import FaultyClient
from fastrdb.watch import Watcher, source_of
from tests.races.mechanisms import original, without
from tests.races.seams import Change
from tests.watch.conftest import Watched
from tests.watch.test_watcher import ended_lead, store_entries

Scene = Callable[[Watched, Redis], Awaitable[None]]


async def stored(client: Redis, cache: Cache) -> None:
    """Store an entry that depends on one row."""
    await store_entries(client, {"user:1": (str(row_tag("users", "id", 1)),)}, cache)


async def emptied(watched: Watched, client: Redis) -> None:
    """Empty the outbox with a change in it, as a crash does: the entry that depends on it does not stay."""
    async with Cache(client) as cache:
        watcher = Watcher(watched.source, cache)
        await ended_lead(watcher)
        await stored(client, cache)
        await watched.write("UPDATE users SET bio = 'x' WHERE id = 1", "TRUNCATE fastrdb.outbox")
        await watcher.poll()
        assert not await client.exists("user:1")


async def two_namespaces(watched: Watched, client: Redis) -> None:
    """Start a watcher of another namespace: it is refused, so the first one loses nothing."""
    async with Cache(client, namespace="one") as one, Cache(client, namespace="two") as two:
        first, second = Watcher(watched.source, one), Watcher(source_of(watched.database.engine), two)
        await ended_lead(first)
        try:
            with suppress(OptionError):
                for _ in range(3):
                    assert await second.poll() is None
        finally:
            await second.source.close()
        poll = await first.poll()
        assert poll is not None
        assert poll.lost == ""


async def redis_away(watched: Watched, client: Redis) -> None:
    """Take Redis away: a change waits until Redis has taken it."""
    faulty = FaultyClient(client)
    async with Cache(faulty) as cache, Cache(client) as reading:
        watcher = Watcher(watched.source, cache)
        await ended_lead(watcher)
        await stored(client, reading)
        before = await watcher.journal.position()
        await watched.write("UPDATE users SET bio = 'x' WHERE id = 1")
        faulty.fail_with(on="begin")
        with suppress(CacheUnavailableError):
            await watcher.poll()
        faulty.heal()
        assert await watcher.journal.position() == before
        await watcher.poll()
        assert not await client.exists("user:1")


async def committed_late(watched: Watched, client: Redis) -> None:
    """Commit a transaction after a poll has read a change of a later one."""
    async with Cache(client) as cache, watched.database.engine.connect() as slow, slow.begin():
        watcher = Watcher(watched.source, cache)
        await ended_lead(watcher)
        await slow.execute(text("UPDATE users SET bio = 'slow' WHERE id = 1"))
        await watched.write("UPDATE users SET bio = 'fast' WHERE id = 2")
        await watcher.poll()
        await stored(client, cache)
        await slow.commit()
        await watcher.poll()
        assert not await client.exists("user:1")


poll_of = original("outbox-by-snapshot")


async def read_behind_the_last(source: Any, position: str | None, images: Any) -> Any:
    """Forget what was open at the last poll."""
    if position is not None:
        mark, snapshot = position.split(" ")
        last = snapshot.split(":")[1]
        position = f"{mark} {last}:{last}:"
    return await poll_of(source, position, images)


SCENES: list[tuple[Change, Scene]] = [
    (without("outbox-mark"), emptied),
    (without("outbox-lead"), two_namespaces),
    (without("changes-handed-over"), redis_away),
    (without("outbox-by-snapshot", read_behind_the_last), committed_late),
]


@pytest.mark.parametrize("watchable", ["postgresql"], indirect=True)
@pytest.mark.parametrize("scene", [scene for _, scene in SCENES], ids=lambda each: each.__name__)
async def test_a_change_is_not_lost(watched: Watched, client: Redis, scene: Scene) -> None:
    """With all mechanisms in place."""
    await watched.install()
    await watched.source.close()
    await scene(watched, client)


@pytest.mark.parametrize("watchable", ["postgresql"], indirect=True)
@pytest.mark.parametrize(("change", "scene"), SCENES, ids=lambda each: getattr(each, "__name__", str(each)))
async def test_a_change_is_lost_without(
    watched: Watched, client: Redis, monkeypatch: pytest.MonkeyPatch, change: Change, scene: Scene
) -> None:
    """With one of them taken out."""
    await watched.install()
    await watched.source.close()
    change.apply(monkeypatch.setattr)
    with pytest.raises(AssertionError):
        await scene(watched, client)
