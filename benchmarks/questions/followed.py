"""What `Cache(auto=True)` finds out by itself: how many entries a write drops that need not go, and what it costs.

The application: each user by its key and by its address, the users of each organisation, their number, the
organisation itself, and pages of all users. One user is changed; one time in ten it moves to another organisation.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager
from functools import partial
from gc import collect
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from redis.asyncio import Redis
from sqlalchemy import func, insert, make_url, select
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from benchmarks.contestants.base import HOST
from benchmarks.harness import Known, Round, Sizes, Unused, interleaved, one_by_one
from benchmarks.report import Limit, Row
from fastrdb import Cache
from fastrdb.testing.server import EmbeddedServer
from tests.support.servers import databases

USERS, PER_ORG, PAGES = 1_000, 20, 20
MOVES = 10
"""One write in so many moves its row."""
LIFE = 3600


class Base(DeclarativeBase):
    """All mapped classes here."""


class Org(Base):
    """An organisation."""

    __tablename__ = "followed_orgs"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    name: Mapped[str]


class Member(Base):
    """A user of one."""

    __tablename__ = "followed_users"
    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    org_id: Mapped[int] = mapped_column(index=True)
    number: Mapped[int] = mapped_column(unique=True)
    name: Mapped[str]


class Application:
    """Cached functions, and what each has loaded."""

    def __init__(self, cache: Cache, head: str, users: int, depends_on: Sequence[type[Any]] = ()) -> None:
        self.users, self.orgs, self.loads = users, users // PER_ORG, 0

        @cache.cached(f"{head}:user:{{number}}", exp=LIFE, depends_on=depends_on)
        async def user(db: AsyncSession, number: int) -> str | None:
            self.loads += 1
            found = await db.get(Member, number)
            return None if found is None else found.name

        @cache.cached(f"{head}:by_number:{{number}}", exp=LIFE, depends_on=depends_on)
        async def by_number(db: AsyncSession, number: int) -> str | None:
            self.loads += 1
            return (await db.scalars(select(Member.name).where(Member.number == number))).one_or_none()

        @cache.cached(f"{head}:users_of:{{number}}", exp=LIFE, depends_on=depends_on)
        async def users_of(db: AsyncSession, number: int) -> list[str]:
            self.loads += 1
            chosen = select(Member.name).join(Org, Org.id == Member.org_id).where(Org.id == number)
            return list(await db.scalars(chosen.order_by(Member.id)))

        @cache.cached(f"{head}:count_of:{{number}}", exp=LIFE, depends_on=depends_on)
        async def count_of(db: AsyncSession, number: int) -> int:
            self.loads += 1
            return int(await db.scalar(select(func.count()).where(Member.org_id == number)) or 0)

        @cache.cached(f"{head}:org:{{number}}", exp=LIFE, depends_on=depends_on)
        async def org(db: AsyncSession, number: int) -> str | None:
            self.loads += 1
            return (await db.scalars(select(Org.name).where(Org.id == number))).one_or_none()

        @cache.cached(f"{head}:page:{{number}}", exp=LIFE, depends_on=depends_on)
        async def page(db: AsyncSession, number: int) -> list[str]:
            self.loads += 1
            size = users // PAGES
            return list(await db.scalars(select(Member.name).order_by(Member.id).limit(size).offset(number * size)))

        self.user = user
        self._calls: list[tuple[Callable[..., Awaitable[Any]], int]] = []
        self._calls += [(function, number) for number in range(users) for function in (user, by_number)]
        self._calls += [(function, number) for number in range(self.orgs) for function in (users_of, count_of, org)]
        self._calls += [(page, number) for number in range(PAGES)]

    @property
    def entries(self) -> int:
        """How many there are."""
        return len(self._calls)

    async def read(self, db: AsyncSession) -> int:
        """Ask for everything; give how much of it was not there."""
        before = self.loads
        for function, number in self._calls:
            await function(db, number)
        await db.rollback()
        return self.loads - before


async def rows(sizes: Sizes) -> list[Row]:
    """The precision, then the costs."""
    users = min(USERS, 100 * sizes.calls)
    with EmbeddedServer() as server:
        async with filled(users) as engine, Redis(host=HOST, port=server.port) as client:
            found = await _precision(engine, client, users, max(2, sizes.rounds // 4))
            found += await _reads(engine, client, sizes)
            collect()
            return found + await _writes(engine, client, users, sizes)


async def _precision(engine: AsyncEngine, client: Redis, users: int, writes: int) -> list[Row]:
    """Count what is loaded anew after each write, for a cache that looks before it, and for one that does not."""
    found: list[Row] = []
    looks = Limit("value", bar=30, aim=24) if users == USERS else None
    makers: dict[str, tuple[Any, Sequence[type[Any]], Limit | None]] = {
        "fastrdb, auto": ({"auto": True}, (), looks),
        "fastrdb, auto, tables": ({"auto": True, "precision": "tables"}, (), None),
        "fastrdb, by table": ({"auto": True}, [Member], None),
    }
    for name, (options, depends_on, limit) in makers.items():
        collect()  # a cache follows for as long as it lives
        entries, dropped = await dropped_by(engine, Cache(client, timeout=5.0, **options), depends_on, users, writes)
        case = f"one user changed, of {entries:,} entries"
        found.append(Row("followed", case, name, dropped / writes, "entries", limit=limit, note="dropped per write"))
    collect()
    return found


async def dropped_by(
    engine: AsyncEngine, following: Cache, depends_on: Sequence[type[Any]], users: int, writes: int
) -> tuple[int, int]:
    """Give how many entries there were, and how many the writes have dropped."""
    dropped = 0
    async with following as cache, AsyncSession(engine, expire_on_commit=False) as db:
        application = Application(cache, f"precise{id(cache)}", users, depends_on)
        await application.read(db)
        assert await application.read(db) == 0, "too little is stored"
        for number in range(writes):
            await change(db, 7 * number % users, moved=number % MOVES == MOVES - 1)
            dropped += await application.read(db)
        return application.entries, dropped


async def change(db: AsyncSession, number: int, *, moved: bool = False) -> None:
    """Get, change, commit."""
    found = await db.get_one(Member, number, populate_existing=True)
    found.name = f"{found.name.partition('-')[0]}-{id(object())}"
    if moved:
        found.org_id = 0 if found.org_id else 1
    await db.commit()


async def _reads(engine: AsyncEngine, client: Redis, sizes: Sizes) -> list[Row]:
    """Time hits and misses of a cache that follows beside one that does not, and misses by what is declared."""
    found: list[Row] = []
    async with (
        Cache(client) as plain,
        Cache(client, auto=True) as auto,
        Cache(client, near=True) as near,
        Cache(client, near=True, auto=True) as both,
        AsyncSession(engine) as db,
    ):
        calls = {
            "plain": _one(plain, "plain"),
            "auto": _one(auto, "auto"),
            "near": _one(near, "near"),
            "near, auto": _one(both, "both"),
        }
        for name, one, other in (("hit", "plain", "auto"), ("near hit", "near", "near, auto")):
            sides = {each: partial(_round, calls[each], db) for each in (one, other)}
            known = Known(10).take
            for calls_of in sides.values():
                await calls_of(known(20))
            limit = Limit("ratio", bar=1.05, aim=1.0)
            found += await _compared(name, sides, other, one, limit, sizes, known)
        await db.rollback()
        sides = {each: partial(_round, calls[each], db) for each in ("plain", "auto")}
        unused = Unused().take
        unused(100)
        for calls_of in sides.values():
            await calls_of(unused(5))
        limit = Limit("ratio", bar=1.15)
        found += await _compared("miss, two SELECTs, two tags", sides, "auto", "plain", limit, sizes, unused)
    return found


def _one(cache: Cache, head: str) -> Callable[..., Awaitable[Any]]:
    @cache.cached(f"{head}:{{number}}", exp=LIFE)
    async def one(db: AsyncSession, number: int) -> list[str]:
        name = await db.scalar(select(Member.name).where(Member.id == number))
        org = await db.scalar(select(Org.name).where(Org.id == number))
        return [str(name), str(org)]

    return one


async def _round(call: Callable[..., Awaitable[Any]], db: AsyncSession, numbers: Sequence[int]) -> None:
    for number in numbers:
        await call(db, number)
    if db.in_transaction():
        await db.rollback()


async def _writes(engine: AsyncEngine, client: Redis, users: int, sizes: Sizes) -> list[Row]:
    """Time get, change and commit by who has to be told: by hand, followed without a look, followed with one."""
    looking, blind = Cache(client, auto=True), Cache(client, auto=True, precision="tables")
    async with looking, blind, Cache(client) as by_hand, AsyncSession(engine, expire_on_commit=False) as db:

        @by_hand.invalidates("written:{number}:*")
        async def change_by_hand(db: AsyncSession, number: int) -> None:
            await change(db, number)

        async def followed_by(number: int, following: Cache | None, write: Callable[..., Awaitable[None]]) -> None:
            with ExitStack() as stack:
                for cache in (looking, blind):
                    if cache is not following:
                        stack.enter_context(cache.untracked())
                await write(db, number % users)

        calls: dict[str, Round] = {
            "by hand": one_by_one(partial(followed_by, following=None, write=change_by_hand)),
            "without a look": one_by_one(partial(followed_by, following=blind, write=change)),
            "with a look": one_by_one(partial(followed_by, following=looking, write=change)),
        }
        for calls_of in calls.values():
            await calls_of(range(3))
        timings = await interleaved(calls, rounds=sizes.rounds, calls=max(3, sizes.calls // 5), draw=Unused().take)
    limits = {"without a look": Limit("ratio", bar=1.1), "with a look": Limit("ratio", bar=1.35)}
    case = f"get, change, commit ({engine.dialect.name})"
    return [
        Row(
            "followed",
            case,
            f"fastrdb, {name}",
            timings.median(name),
            ratio=timings.ratio(name, "by hand") if name in limits else None,
            limit=limits.get(name),
            note="than by hand" if name in limits else "",
        )
        for name in calls
    ]


async def _compared(
    case: str, sides: Mapping[str, Round], name: str, other: str, limit: Limit, sizes: Sizes, draw: Any
) -> list[Row]:
    timings = await interleaved(sides, rounds=sizes.rounds, calls=sizes.calls, draw=draw)
    one = Row("followed", case, f"fastrdb, {other}", timings.median(other))
    ratio = timings.ratio(name, other)
    return [one, Row("followed", case, f"fastrdb, {name}", timings.median(name), ratio=ratio, limit=limit)]


@asynccontextmanager
async def filled(users: int) -> AsyncIterator[AsyncEngine]:
    """Give a database with users: on the PostgreSQL server that tests use if there is one, else a SQLite file."""
    variable, defaults = databases.SERVERS["postgresql"]
    with TemporaryDirectory() as folder, ExitStack() as stack:
        try:
            url = stack.enter_context(databases.server_database(variable, defaults)).url
        except databases.NoServerError:
            url = make_url(f"sqlite+aiosqlite:///{Path(folder) / 'users.sqlite'}")
        engine = create_async_engine(url)
        try:
            async with engine.begin() as connection:
                await connection.run_sync(Base.metadata.create_all)
                orgs = users // PER_ORG
                await connection.execute(insert(Org), [{"id": n, "name": f"org {n}"} for n in range(orgs)])
                rows = [{"id": n, "org_id": n % orgs, "number": n, "name": f"user {n}"} for n in range(users)]
                await connection.execute(insert(Member), rows)
            yield engine
        finally:
            await engine.dispose()
