"""`fastrdb watch`: install triggers, run a watcher, show its state."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated, Any

import typer
from sqlalchemy.exc import ArgumentError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from fastrdb import Cache, OptionError
from fastrdb.watch import ChangeSource, Journal, Status, Watcher, ages, columns_in_use, source_of

from .connect import URL, UnreachableError, connected

watch = typer.Typer(no_args_is_help=True, help="Invalidate what other programs write to the database.")

Database = Annotated[str, typer.Option("--database", envvar="FASTRDB_DATABASE", help="Address, with an async driver.")]
Url = Annotated[str, typer.Option("--redis", envvar="FASTRDB_URL", help="The address of Redis.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", envvar="FASTRDB_NAMESPACE", help="Of the cache.")]
_SILENT_S = 60.0
"""The age in seconds from which a heartbeat means a silent watcher: a running one renews it each half second."""
_DURATION = re.compile(r"(\d+(?:\.\d+)?)(ms|s|)")


class JSONLines(logging.Formatter):
    """A formatter that turns a log record into one line of JSON, with the record's own fields."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        moment = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "fastrdb", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def duration(text: str) -> float:
    """Return the seconds of a text such as `20ms`, `0.5s` or `1`."""
    found = _DURATION.fullmatch(text.strip())
    if found is None or float(found[1]) == 0:
        raise typer.BadParameter(f"{text!r} is not a duration: write 20ms, 0.5s or 1")
    return float(found[1]) / (1000 if found[2] == "ms" else 1)


@watch.command()
def install(
    database: Database,
    table: Annotated[list[str], typer.Option("--table", help="Only these; may be repeated.")] = [],  # noqa: B006
    shown: Annotated[bool, typer.Option("--print", help="Print the SQL, for a migration.")] = False,
    redis: Annotated[str, typer.Option("--redis", envvar="FASTRDB_URL", help="Adds the columns in use there.")] = "",
    namespace: Namespace = "",
) -> None:
    """Make the database record its changes: triggers and an outbox. May be repeated, such as in each deploy."""

    async def work(source: ChangeSource) -> None:
        columns: list[str] = []
        if redis:
            async with connected(redis) as client:
                columns = await columns_in_use(Cache(client, namespace=namespace))
        statements = await source.install_sql(table, columns)
        if shown:
            print("\n".join(f"{statement};" for statement in statements))
            return
        await source.run(statements)
        status = await source.status(None)
        print(f"Watched: {', '.join(status.watched) or 'nothing: the schema has no table; run this after migrations'}")

    _run(database, work)


@watch.command()
def uninstall(
    database: Database,
    redis: Url = URL,
    namespace: Namespace = "",
    shown: Annotated[bool, typer.Option("--print", help="Print the SQL, and change nothing.")] = False,
) -> None:
    """Remove triggers, outbox, and the watcher's record in Redis. May be repeated."""

    async def work(source: ChangeSource) -> None:
        statements = await source.uninstall_sql()
        if shown:
            print("\n".join(f"{statement};" for statement in statements))
            return
        await source.run(statements)
        async with connected(redis) as client:
            await Journal(Cache(client, namespace=namespace), source.name).forget()

    _run(database, work)


@watch.command()
def forget(
    name: Annotated[str, typer.Argument(help="Of the database, as `status` shows it.")],
    redis: Url = URL,
    namespace: Namespace = "",
) -> None:
    """Forget a database that is watched no more: `Cache(watched=)` bypasses entries while its heartbeat is old."""

    async def work() -> None:
        async with connected(redis) as client:
            cache = Cache(client, namespace=namespace)
            if not await Journal(cache, name).forget():
                raise OptionError(f"No database {name} is watched; there are: {', '.join(await ages(cache)) or 'none'}")

    _ended(work)


@watch.command()
def run(
    database: Database,
    redis: Url = URL,
    namespace: Namespace = "",
    every: Annotated[str, typer.Option(help="The pause between polls: 20ms, 1s.")] = "20ms",
    once: Annotated[bool, typer.Option("--once", help="Poll once, and end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Log a line of JSON for each record.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", help="Log each poll that has found changes, too.")] = False,
) -> None:
    """Run a watcher until SIGTERM. Of several, one leads and the others wait. The log goes to stderr."""
    pause = duration(every)
    handler = logging.StreamHandler()
    handler.setFormatter(JSONLines() if as_json else logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.INFO)
    if verbose:
        logging.getLogger("fastrdb").setLevel(logging.DEBUG)

    async def work(source: ChangeSource) -> None:
        async with (
            connected(redis) as client,
            Cache(client, namespace=namespace, on_error="raise", timeout=5) as cache,
        ):
            watcher = Watcher(source, cache, every=pause)
            if once:
                poll = await watcher.poll()
                await source.close()
                if as_json:
                    print(json.dumps({"leads": watcher.leads} | ({} if poll is None else asdict(poll))))
                    return
                print("Another watcher leads." if poll is None else f"Changes: {poll.found}. {poll.lost}".rstrip())
                return
            task = asyncio.ensure_future(watcher.run())
            loop = asyncio.get_running_loop()
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.add_signal_handler(number, task.cancel)
            await asyncio.wait([task])
            if not task.cancelled():
                _result(task)

    _run(database, work)


def _result(task: asyncio.Future[None]) -> None:
    """Raise the error that ended a watcher, or exit with 2 if its log has the error."""
    try:
        task.result()
    except OptionError:
        raise typer.Exit(2) from None


@watch.command()
def status(
    database: Database,
    redis: Url = URL,
    namespace: Namespace = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Show what is watched and how far the watcher is behind. Ends with 1 where something is to be done."""
    found: list[Any] = []

    async def work(source: ChangeSource) -> None:
        async with connected(redis) as client:
            cache = Cache(client, namespace=namespace)
            beats = await ages(cache)
            position = await Journal(cache, source.name).position()
            state = await source.status(position, await columns_in_use(cache), namespace)
        found.extend((source.name, state, beats.pop(source.name, None), beats))

    _run(database, work)
    name, state, heartbeat, others = found
    state.notes.extend(_silent(heartbeat, others))
    if as_json:
        print(json.dumps({"database": name} | asdict(state) | {"heartbeat": heartbeat, "others": others}))
    else:
        for line in _lines(name, state, heartbeat, others):
            print(line)
    raise typer.Exit(int(bool(state.unwatched or state.missing_columns or state.notes)))


def _silent(heartbeat: float | None, others: Mapping[str, float]) -> Iterator[str]:
    """Yield a note for each watcher whose heartbeat is old."""
    if heartbeat is None or heartbeat > _SILENT_S:
        yield "no watcher is at work: start `fastrdb watch run`, or read its log"
    for name, age in others.items():
        if age > _SILENT_S:
            yield (
                f"the watcher of {name} is silent for {age:.0f} s, and `Cache(watched=)` bypasses entries: start it, or"
                f" `fastrdb watch forget {name}` if that database is watched no more"
            )


def _lines(name: str, state: Status, heartbeat: float | None, others: Mapping[str, float]) -> Iterator[str]:
    """Yield what `status` prints."""
    yield f"database: {name}"
    yield f"installed: {'yes' if state.installed else 'no'}"
    yield f"read by: {state.way or 'triggers and an outbox'}"
    yield f"leader: {state.leader or 'none'}"
    yield f"heartbeat: {'never' if heartbeat is None else f'{heartbeat:.1f} s ago'}"
    yield f"changes that wait: {'unknown' if state.waiting is None else state.waiting}"
    yield f"watched: {', '.join(state.watched) or 'nothing'}"
    for table, reason in state.unwatched.items():
        yield f"not watched: {table}: {reason}"
    for column in state.missing_columns:
        yield f"not reported: {column}: run `fastrdb watch install --redis ...` again"
    for other, age in others.items():
        yield f"another database is watched: {other}, heartbeat {age:.1f} s ago"
    for note in state.notes:
        yield f"to do: {note}"


def _run(database: str, work: Callable[[ChangeSource], Awaitable[None]]) -> None:
    """Open the database, and do the work."""

    async def opened() -> None:
        async with _engine(database) as engine:
            await work(source_of(engine))

    _ended(opened)


def _ended(work: Callable[[], Awaitable[None]]) -> None:
    """Do the work. Print an error in one line, and exit with 2."""

    async def done() -> None:
        await work()

    try:
        asyncio.run(done())
    except (OptionError, UnreachableError) as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from None
    except (SQLAlchemyError, OSError, TypeError) as error:  # TypeError: an option that the driver does not have
        typer.echo(f"The database refuses: {type(error).__name__}: {str(error).splitlines()[0]}", err=True)
        raise typer.Exit(2) from None


@asynccontextmanager
async def _engine(database: str) -> AsyncIterator[AsyncEngine]:
    try:
        engine = create_async_engine(database)
    except (ArgumentError, ModuleNotFoundError) as error:
        raise OptionError(f"--database: {error}; such as postgresql+asyncpg://user@host/name") from None
    except ValueError:  # its text may have a part of the password
        raise OptionError(
            "--database: not an address; a port is a number, and : / @ in a password are written as %3A %2F %40; "
            "such as postgresql+asyncpg://user@host/name"
        ) from None
    try:
        yield engine
    finally:
        await engine.dispose()
