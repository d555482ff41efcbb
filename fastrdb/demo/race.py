"""The race that caches lose, step by step: a reader misses and loads the old row; a writer commits and invalidates;
the reader's fill arrives last. Once with GET, SET and DEL by hand, once with fastrdb.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field

from redis.asyncio import Redis
from sqlalchemy import select, update
from sqlalchemy.ext.asyncio import AsyncSession

from fastrdb import Cache, Event
from fastrdb.demo.database import async_get_db
from fastrdb.demo.models import User
from fastrdb.demo.schemas import UserResponse


@dataclass(slots=True)
class Race:
    """Steps of a race in order, as (actor, step); then a later reader's answer and the row in the database."""

    moments: list[tuple[str, str]] = field(default_factory=list)
    served: str = ""
    source: str = ""
    committed: str = ""

    @property
    def stale(self) -> bool:
        """True if the later reader got something else than what was committed before it began."""
        return self.served != self.committed

    def note(self, who: str, what: str) -> None:
        """Add a moment: what has just happened, and in which part."""
        self.moments.append((who, what))


class Pause:
    """Holds a reader up when it has loaded, until it is let go."""

    def __init__(self) -> None:
        self._loaded: asyncio.Future[str] = asyncio.get_running_loop().create_future()
        self._go = asyncio.Event()

    async def hold(self, name: str) -> None:
        """Wait with the name that the reader has loaded."""
        self._loaded.set_result(name)
        await self._go.wait()

    async def loaded(self) -> str:
        """Wait for the reader to have loaded; gives the name."""
        return await self._loaded

    def end(self) -> None:
        """Release the reader."""
        self._go.set()


async def by_hand(redis: Redis, email: str, *, new: str) -> Race:
    """Run the race with a cache of GET, SET and DEL."""
    race, key = Race(), f"by-hand:user:{email}"
    await redis.delete(key)
    found = await redis.get(key)
    race.note("reader", f"GET gives {'nothing' if found is None else 'an entry'}")
    loaded = await _load(email)
    race.note("reader", f"loads {loaded.name!r}; its SET waits")
    await _write(None, redis, email, new)
    deleted = await redis.delete(key)
    race.note("writer", f"commits {new!r}, and DEL deletes {deleted} keys")
    await redis.set(key, loaded.model_dump_json(), ex=600)
    race.note("reader", f"its SET arrives: {loaded.name!r}, for {await redis.ttl(key)} s")
    raw = await redis.get(key)
    later = await _load(email) if raw is None else UserResponse.model_validate_json(raw)
    return await _finish(race, later.name, "the database" if raw is None else "Redis", email)


async def with_fastrdb(redis: Redis, email: str, *, new: str) -> Race:
    """Run the same steps in the same order, with a cached function."""
    race, events = Race(), list[Event]()
    cache = Cache(hook=events.append)
    pause = Pause()

    @cache.cached(pattern="user:race:{email}", exp=600, ignore=("pause",))
    async def read(db: AsyncSession, redis: Redis, email: str, pause: Pause | None = None) -> UserResponse:
        answer = await _one(db, email)
        if pause is not None:
            await pause.hold(answer.name)
        return answer

    lease = f"fastrdb:lease:{{{read.key(email=email)}}}"
    async with cache, async_get_db() as slow, async_get_db() as later:
        await read.invalidate(redis=redis, email=email)
        events.clear()
        reader = asyncio.ensure_future(read(slow, redis, email, pause))
        loaded = await pause.loaded()
        race.note("reader", f"GET gives {'nothing' if events[0].kind == 'miss' else 'an entry'}")
        race.note("reader", f"{await _state(redis, lease)}; loads {loaded!r}; its fill waits")
        await _write(cache, redis, email, new)
        race.note("writer", f"commits {new!r}; the reader's {await _state(redis, lease)}")
        pause.end()
        await reader
        refused = [event.reason for event in events if event.kind == "unstored"]
        race.note("reader", f"its fill is refused: {refused[0].partition(':')[0]}" if refused else "its fill is stored")
        events.clear()
        answer = await read(later, redis, email)
    return await _finish(race, answer.name, "Redis" if events[0].kind == "hit" else "the database", email)


async def _state(redis: Redis, lease: str) -> str:
    return "lease is held" if await redis.exists(lease) else "lease is gone"


async def _finish(race: Race, served: str, source: str, email: str) -> Race:
    race.served, race.source, race.committed = served, source, (await _load(email)).name
    race.note("later reader", f"gets {served!r} from {source}; committed: {race.committed!r}")
    return race


async def _one(db: AsyncSession, email: str) -> UserResponse:
    row = (await db.scalars(select(User).where(User.email == email))).one()
    return UserResponse.model_validate(row)


async def _load(email: str) -> UserResponse:
    async with async_get_db() as db:
        return await _one(db, email)


async def _write(cache: Cache | None, redis: Redis, email: str, name: str) -> None:
    write = _rename if cache is None else cache.invalidates("user:race:{email}")(_rename)
    async with async_get_db() as db:
        await write(db, redis, email, name)


async def _rename(db: AsyncSession, redis: Redis, email: str, name: str) -> None:
    await db.execute(update(User).where(User.email == email).values(name=name))
    await db.commit()
