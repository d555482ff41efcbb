"""The races of reloads: each holds one at a gate, and looks at what is stored and served when it goes on."""

from __future__ import annotations

import asyncio
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from tests.support.world.world import PATIENT, Item, ItemOut, Process, World, spawn

OLD, NEW = b'{"id":1,"name":"old"}', b'{"id":1,"name":"new"}'


class Reader:
    """One cached function of a process, with options of time; "load" is a gate of it before and after its query."""

    def __init__(self, process: Process, **options: Any) -> None:
        self.process = process

        @process.cache.cached("item:{item_id}", shared=True, schema=ItemOut, wait=PATIENT, exp=600, **options)
        async def get(db: AsyncSession, redis: Redis, item_id: int) -> Item:
            await process.gates.arrive("load")
            found = (await db.execute(select(Item).where(Item.id == item_id))).scalar_one()
            await process.gates.leave("load")
            return found

        self.get: Any = get

    async def read(self) -> str:
        """Return what a caller with a session of its own is answered."""
        async with self.process.database.sessions() as db:
            found: ItemOut = await self.get(db, self.process.client, 1)
            return found.name

    async def settled(self) -> None:
        """Wait for what runs in the background."""
        await asyncio.gather(*self.process.cache.runtime.here().reloads.values())


async def _past_exp(w: World, **options: Any) -> Reader:
    """Start a reader whose entry is past its `exp`, and reloaded in the background."""
    reader = Reader(w.one, stale=60, session_factory=w.database.sessions, **options)
    assert await reader.read() == "old"
    assert await w.client.pexpire("item:1", 30_000)
    return reader


async def early_reload(w: World) -> None:
    """R19: an early reload has loaded the old row; a writer commits; the reload's fill arrives last."""
    reader = Reader(w.one, early=1e15)
    assert await reader.read() == "old"
    gate = w.one.gates.after("load")
    early = spawn(reader.read())
    await gate.reached()
    assert reader.get.stats.early == 1
    await w.two.write("new")
    gate.open()
    assert await early == "old"
    assert await w.client.get("item:1") != OLD
    await w.fair()


async def background_reload(w: World) -> None:
    """R19 in the background: no caller is served the old row when the write is committed, nor is it stored."""
    reader = await _past_exp(w)
    gate = w.one.gates.after("load")
    assert await reader.read() == "old"
    await gate.reached()
    await w.two.write("new")
    assert await reader.read() == "new"
    gate.open()
    await reader.settled()
    assert await w.client.get("item:1") != OLD
    assert await reader.read() == "new"
    await w.fair()


async def invalidated_before_the_reload(w: World) -> None:
    """Write between the stale read and its reload: the reload loads and stores what the write has left."""
    reader = await _past_exp(w)
    gate = w.one.client.before("acquire")
    assert await reader.read() == "old"
    await gate.reached()
    await w.two.write("new")
    gate.open()
    await reader.settled()
    assert await w.client.get("item:1") == NEW
    await w.fair()


async def barred_reload(w: World) -> None:
    """Ask for the reload's lease when a COMMIT is about to be sent: the reload loads nothing, and stores nothing."""
    reader = await _past_exp(w)
    asked, gate = w.one.client.before("acquire"), w.at_commit()
    assert await reader.read() == "old"
    await asked.reached()
    writer = spawn(w.two.write("new"))
    await gate.reached()
    asked.open()
    await reader.settled()
    assert reader.get.stats.loads == 1
    assert await w.client.get("item:1") is None
    gate.open()
    await writer
    assert await reader.read() == "new"
    await w.fair()


async def barrier_during_the_reload(w: World) -> None:
    """Begin the reload before a writer puts up its barrier, and end it before the COMMIT."""
    reader = await _past_exp(w)
    loaded, gate = w.one.gates.after("load"), w.at_commit()
    assert await reader.read() == "old"
    await loaded.reached()
    writer = spawn(w.two.write("new"))
    await gate.reached()
    loaded.open()
    await reader.settled()
    assert await w.client.get("item:1") is None
    assert await reader.read() == "old"  # which is committed still
    gate.open()
    await writer
    assert await reader.read() == "new"
    await w.fair()


async def verified_across_a_write(w: World) -> None:
    """Write after `verify=` has read the entry, and before it loads the row: no entry was wrong."""
    reader = Reader(w.one, verify=1.0, session_factory=w.database.sessions)
    assert await reader.read() == "old"
    await _verified(w)
    gate = w.one.gates.before("load")
    assert await reader.read() == "old"
    await gate.reached()
    await w.two.write("new")
    gate.open()
    await _verified(w)
    assert (reader.get.stats.hits, reader.get.stats.wrong) == (1, 0)
    await w.fair()


async def _verified(w: World) -> None:
    while tasks := w.one.cache.runtime.here().tasks:
        await asyncio.wait(set(tasks))


RACES = [
    early_reload,
    background_reload,
    invalidated_before_the_reload,
    barred_reload,
    barrier_during_the_reload,
    verified_across_a_write,
]
