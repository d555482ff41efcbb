"""What the terminal demo does: the tutorial's calls, each measured, and the keys on the server before and after."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial

from redis.asyncio import Redis
from sqlalchemy import select
from sqlalchemy.exc import NoResultFound
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from fastrdb import Cache
from fastrdb.demo.cache import get_redis
from fastrdb.demo.crud import user_crud
from fastrdb.demo.database import async_get_db
from fastrdb.demo.meter import Measured, Meter
from fastrdb.demo.models import User
from fastrdb.demo.rows import generated
from fastrdb.demo.schemas import UserCreate, UserResponse, UserUpdate

ADA = "ada@example.com"
CALLERS = 50
Work = Callable[[AsyncSession, Redis | None], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Step:
    """One call, as a reader would say it, and what it gave and took."""

    what: str
    measured: Measured[str]


@dataclass(frozen=True, slots=True)
class Key:
    """One key on the server; `ttl` in seconds, None for one that stays."""

    name: str
    kind: str
    ttl: int | None
    value: str | None


@dataclass(frozen=True, slots=True)
class Change:
    """Fate of the entries between two looks at the server."""

    gone: list[str]
    replaced: list[str]
    kept: list[str]
    new: list[str]


@dataclass(frozen=True, slots=True)
class Comparison:
    """The same answer from Redis and from the database: median seconds of each."""

    what: str
    redis: float
    database: float


async def tutorial(meter: Meter) -> AsyncIterator[Step]:
    """Run the tutorial's calls, one after the other; each has a session of its own, like a request."""
    email = generated(1)[0]["email"]
    steps: list[tuple[str, Work]] = [
        ("create 25 users", _create_many),
        ("create a user", _create),
        ("get that user", lambda db, redis: _get(db, redis, ADA)),
        ("get an older user", lambda db, redis: _get(db, redis, email)),
        ("the same user again", lambda db, redis: _get(db, redis, email)),
        ("list page 1", lambda db, redis: _list(db, redis, 1)),
        ("list page 1 again", lambda db, redis: _list(db, redis, 1)),
        ("get page 3 and total", lambda db, redis: _paginate(db, redis, 3)),
        ("get page 3 again", lambda db, redis: _paginate(db, redis, 3)),
        ("count the users", _count),
    ]
    for what, work in steps:
        yield await _step(meter, what, work)
    async with get_redis() as redis:
        await asyncio.gather(*(redis.ping() for _ in range(CALLERS)))  # so that connecting is not what is measured
    for how, call in (("not cached", _call), ("redis=None", _past)):
        yield Step(f"{CALLERS} callers, {how}", await meter.measure(partial(_crowd, call)))


async def update(meter: Meter) -> Step:
    """Update one user."""
    return await _step(meter, "update a user", _update)


async def after_update(meter: Meter) -> AsyncIterator[Step]:
    """Read what must show the update and the delete."""
    steps: list[tuple[str, Work]] = [
        ("get the updated user", lambda db, redis: _get(db, redis, ADA)),
        ("list the newest users", _newest),
        ("list them again", _newest),
        ("delete the user", _delete),
        ("get the deleted user", lambda db, redis: _get(db, redis, ADA)),
        ("list the newest users", _newest),
        ("count the users", _count),
    ]
    for what, work in steps:
        yield await _step(meter, what, work)


async def comparisons(meter: Meter, *, repeats: int) -> list[Comparison]:
    """Measure the time of an answer from Redis and from the database (`redis=None`): medians of so many calls."""
    email = generated(1)[0]["email"]
    works: dict[str, Work] = {
        "get one user": lambda db, redis: _get(db, redis, email),
        "list 50 users by name": lambda db, redis: _list(db, redis, 1, limit=50, order_by="name"),
        "count all users": _count,
    }
    found = []
    for what, work in works.items():
        await _call(work)  # from here on it is in Redis
        medians = await meter.compare(partial(_call, work), partial(_past, work), repeats=repeats)
        found.append(Comparison(what, *medians))
    return found


async def keys_on(redis: Redis) -> list[Key]:
    """Return all keys on the server, with their values."""
    found = []
    for name in sorted([str(name) async for name in redis.scan_iter()]):
        kind, ttl = str(await redis.type(name)), int(await redis.ttl(name))
        value = str(await redis.get(name)) if kind == "string" else None
        found.append(Key(name, kind, None if ttl < 0 else ttl, value))
    return found


def change(before: list[Key], after: list[Key]) -> Change:
    """Return the fate of the entries that were there before."""
    now, entries = _entries(after), _entries(before)
    return Change(
        gone=[name for name in entries if name not in now],
        replaced=[name for name, value in entries.items() if name in now and now[name] != value],
        kept=[name for name, value in entries.items() if name in now and now[name] == value],
        new=[name for name in now if name not in entries],
    )


async def followed(engine: AsyncEngine, redis: Redis) -> AsyncIterator[Step | Change]:
    """Read two users, rename one by plain SQLAlchemy, and read them again; yield the change of the keys after that."""
    first, second = (user["email"] for user in generated(6)[4:])
    cache = Cache(redis, auto=True)

    @cache.cached("followed:user:{email}", exp=600, schema=UserResponse)
    async def get(db: AsyncSession, email: str) -> User:
        return (await db.scalars(select(User).where(User.email == email))).one()

    async def read(db: AsyncSession, client: Redis | None) -> str:
        return ", ".join([(await get(db, email)).name for email in (first, second)])

    async def rename(db: AsyncSession, client: Redis | None) -> str:
        user = (await db.scalars(select(User).where(User.email == first))).one()
        user.name = "Ida"
        await db.commit()
        return user.name

    async def entries() -> list[Key]:
        return [key for key in await keys_on(redis) if key.name.startswith("followed:")]

    async with cache:
        with Meter(engine, cache).listening() as meter:
            yield await _step(meter, "get two users", read)
            before = await entries()
            yield await _step(meter, "user.name = ...; commit", rename)
            yield change(before, await entries())
            yield await _step(meter, "get them again", read)


def is_own(key: Key) -> bool:
    """Return True for the keys that fastrdb keeps for itself."""
    return key.name.startswith("fastrdb:")


def _entries(keys: list[Key]) -> dict[str, str | None]:
    return {key.name: key.value for key in keys if not is_own(key)}


# --- the calls


async def _create(db: AsyncSession, redis: Redis | None) -> str:
    user = UserCreate(email=ADA, name="Ada Lovelace", bio="The first.")
    created = await user_crud.create(db=db, redis=redis, obj_in=user, email=user.email)
    return f"{created.name}, id {created.id}"


async def _create_many(db: AsyncSession, redis: Redis | None) -> str:
    users = [UserCreate(**values) for values in generated(25, first=1_000_001)]
    created = await user_crud.create_multi(db=db, redis=redis, instances=users)
    return f"{len(created)} users"


async def _get(db: AsyncSession, redis: Redis | None, email: str) -> str:
    try:
        return (await user_crud.get(db=db, redis=redis, email=email)).name
    except NoResultFound:
        return "NoResultFound"


async def _update(db: AsyncSession, redis: Redis | None) -> str:
    user = UserUpdate(name="Ada King")
    return (await user_crud.update(db=db, redis=redis, obj_in=user, email=ADA)).name


async def _delete(db: AsyncSession, redis: Redis | None) -> str:
    await user_crud.delete(db=db, redis=redis, email=ADA)
    return "deleted"


async def _list(
    db: AsyncSession, redis: Redis | None, page: int, *, limit: int = 10, order_by: str | None = None
) -> str:
    users = await user_crud.get_multi(db=db, redis=redis, limit=limit, page=page, order_by=order_by)
    return f"{len(users)} users"


async def _newest(db: AsyncSession, redis: Redis | None) -> str:
    users = await user_crud.get_multi(
        db=db, redis=redis, limit=30, page=1, order_by="id", ascending=False, is_active=True
    )
    own = [user.name for user in users if user.email == ADA]
    return f"{len(users)}, {f'with {own[0]}' if own else 'no Ada'}"


async def _paginate(db: AsyncSession, redis: Redis | None, page: int) -> str:
    found = await user_crud.get_page(db=db, redis=redis, limit=10, page=page)
    return f"page {found.page} of {found.pages}"


async def _count(db: AsyncSession, redis: Redis | None) -> str:
    return f"{await user_crud.count(db=db, redis=redis)} users"


async def _crowd(call: Callable[[Work], Awaitable[str]]) -> str:
    email = generated(2)[1]["email"]
    names = await asyncio.gather(*(call(lambda db, redis: _get(db, redis, email)) for _ in range(CALLERS)))
    return f"{names.count(names[0])} times {names[0]}"


# --- their sessions


async def _step(meter: Meter, what: str, work: Work) -> Step:
    return Step(what, await meter.measure(partial(_call, work)))


async def _call(work: Work) -> str:
    async with get_redis() as redis, async_get_db() as db:
        return await work(db, redis)


async def _past(work: Work) -> str:
    async with async_get_db() as db:
        return await work(db, None)
