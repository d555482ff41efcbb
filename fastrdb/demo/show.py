"""Prints the demo: every figure comes from `story` and `race`, measured in this run."""

from __future__ import annotations

import platform
from collections.abc import AsyncIterator, Sequence
from importlib.metadata import version

from redis.asyncio import Redis
from rich.console import Console
from rich.table import Table
from rich.text import Text
from sqlalchemy.ext.asyncio import AsyncEngine

from fastrdb.demo import race, story
from fastrdb.demo.cache import open_redis
from fastrdb.demo.crud import user_crud
from fastrdb.demo.database import async_get_db, open_database
from fastrdb.demo.meter import Meter
from fastrdb.demo.rows import generated, insert_users

ROWS = 3000
REPEATS = 100
RACES = 20
_SHOWN = 8  # keys of one sort
_NARROW = 72  # columns: below, tables of five do not fit


async def show(console: Console, database_url: str, redis_url: str, *, rows: int = ROWS) -> None:
    """Run the whole demo on an empty database and an empty Redis; `rows` (at least 30) users are there at the start."""
    async with open_database(database_url) as engine, open_redis(redis_url) as redis, user_crud.cache:
        with Meter(engine, user_crud.cache).listening() as meter:
            await _machine(console, redis)
            await _rows(console, meter, redis, rows)
            await _tutorial(console, meter, redis)
            await _times(console, meter)
            await _races(console, redis)
        await _followed(console, engine, redis)


async def _machine(console: Console, redis: Redis) -> None:
    facts = await redis.info("server")
    server = f"Valkey {facts['valkey_version']}" if "valkey_version" in facts else f"Redis {facts['redis_version']}"
    libraries = ", ".join(f"{name} {version(name)}" for name in ("fastrdb", "sqlalchemy", "redis", "pydantic"))
    console.print(f"Python {platform.python_version()}, {libraries}, SQLite and a private {server}.", style="dim")


async def _rows(console: Console, meter: Meter, redis: Redis, rows: int) -> None:
    async def insert() -> int:
        async with async_get_db() as db:
            await insert_users(db, rows)
            return await user_crud.count(db=db, redis=None)

    made = await meter.measure(insert)
    console.print(
        f"The database has {made.value} generated users (inserted in {_ms(made.seconds)}), "
        f"and Redis {await redis.dbsize()} keys."
    )


async def _tutorial(console: Console, meter: Meter, redis: Redis) -> None:
    _chapter(console, "The tutorial's calls")
    await _steps(console, story.tutorial(meter))
    _chapter(console, "The keys in Redis")
    before = await story.keys_on(redis)
    _keys(console, before)
    _chapter(console, "An update")
    step = await story.update(meter)
    _print_steps(console, [step])
    _change(console, story.change(before, await story.keys_on(redis)))
    await _steps(console, story.after_update(meter))


async def _times(console: Console, meter: Meter) -> None:
    _chapter(console, f"Redis and database, median of {REPEATS} calls each")
    table = _table(console, "call", "Redis", "database", "ratio")
    for found in await story.comparisons(meter, repeats=REPEATS):
        ratio = f"{found.database / found.redis:.1f}"
        table.add_row(found.what, _ms(found.redis), _ms(found.database), ratio)
    console.print(table)
    console.print("SQLite runs inside this process; a database across a network takes longer.", style="dim")


async def _races(console: Console, redis: Redis) -> None:
    emails = [user["email"] for user in generated(4)[2:]]
    runs = {"without fastrdb: GET, SET and DEL by hand": race.by_hand, "with fastrdb": race.with_fastrdb}
    for email, (title, run) in zip(emails, runs.items(), strict=True):
        _chapter(console, f"The race {title}")
        races = [await run(redis, email, new=f"New Name {number}") for number in range(1, RACES + 1)]
        _race(console, races[0])
        stale = sum(one.stale for one in races)
        console.print(f"{RACES} such races: the later reader was given a stale row in {stale} of them.")


async def _followed(console: Console, engine: AsyncEngine, redis: Redis) -> None:
    _chapter(console, "A write without a decorator: Cache(redis, auto=True)")
    for part in [each async for each in story.followed(engine, redis)]:
        _print_steps(console, [part]) if isinstance(part, story.Step) else _change(console, part)


# --- parts


def _chapter(console: Console, title: str) -> None:
    console.print()
    console.print(Text(title, style="bold"))


async def _steps(console: Console, steps: AsyncIterator[story.Step]) -> None:
    _print_steps(console, [step async for step in steps])


def _print_steps(console: Console, steps: Sequence[story.Step]) -> None:
    if console.width < _NARROW:
        for step in steps:
            taken = step.measured
            console.print(f"{step.what}: {taken.value}")
            console.print(f"  {taken.sources}, {taken.statements} SQL, {_ms(taken.seconds)}", style="dim")
        return
    table = _table(console, "call", "gives", "from", "SQL", "time")
    for step in steps:
        taken = step.measured
        style = {"Redis": "green", "database": "yellow"}.get(taken.sources, "")
        source = Text(taken.sources, style)
        table.add_row(step.what, taken.value, source, str(taken.statements), _ms(taken.seconds))
    console.print(table)


def _keys(console: Console, keys: Sequence[story.Key]) -> None:
    table = _table(console, "key", "type", "bytes", "TTL")
    own = [key for key in keys if story.is_own(key)]
    entries = [key for key in keys if not story.is_own(key)]
    for sort in (entries, own):
        # The longest last, so that lists are among those shown.
        for key in [*sort[: _SHOWN // 2], *sort[max(_SHOWN // 2, len(sort) - _SHOWN // 2) :]]:
            size = "" if key.value is None else str(len(key.value.encode()))
            table.add_row(key.name, key.kind, size, "" if key.ttl is None else f"{key.ttl} s")
    console.print(table)
    left = max(0, len(entries) - _SHOWN)
    console.print(f"{len(entries)} entries{f' ({left} not shown)' if left else ''}; fastrdb's own keys: {len(own)}.")


def _change(console: Console, change: story.Change) -> None:
    fates = {"invalidated": change.gone, "replaced by what was written": change.replaced, "new": change.new}
    table = _table(console, "key", "after the update")
    for fate, names in fates.items():
        for name in names:
            table.add_row(name, fate)
    console.print(table)
    counts = [f"{len(names)} {fate}" for fate, names in {**fates, "as before": change.kept}.items() if names]
    console.print(", ".join(counts))


def _race(console: Console, one: race.Race) -> None:
    table = _table(console, "", "who", "what happens")
    for number, (who, what) in enumerate(one.moments, 1):
        table.add_row(str(number), who, what)
    console.print(table)
    console.print(Text("STALE", style="bold red") if one.stale else Text("fresh", style="bold green"))


def _table(console: Console, *columns: str) -> Table:
    """Return a table whose figures stay whole where there is room; in a narrow terminal all columns fold."""
    table = Table(box=None, padding=(0, 2, 0, 0), pad_edge=False)
    for column in columns:
        if column in {"SQL", "time", "bytes", "TTL", "Redis", "database", "ratio"}:
            table.add_column(column, justify="right", overflow="fold", no_wrap=console.width >= _NARROW)
        else:
            table.add_column(column, overflow="fold")
    return table


def _ms(seconds: float) -> str:
    return f"{seconds * 1000:.2f} ms" if seconds < 1 else f"{seconds:.2f} s"
