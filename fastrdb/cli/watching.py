"""`fastrdb watch`: install triggers, run a watcher, show its state."""

from __future__ import annotations

import asyncio
import json
import logging
import re
import signal
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Annotated

import typer

from fastrdb import Cache, OptionError
from fastrdb.watch import SILENT_S, ChangeSource, Journal, Status, Watcher, ages, columns_in_use

from .connect import URL, UnreachableError, connected
from .database import SUCH_AS, opened

watch = typer.Typer(
    no_args_is_help=True,
    help="Invalidate what other programs write to the database: `install` once, then `run`. See `fastrdb docs outside`."
    " Each command ends with 2 if it cannot do its work.",
)
logger = logging.getLogger("fastrdb")

Database = Annotated[str, typer.Option("--database", envvar="FASTRDB_DATABASE", help=f"The address, {SUCH_AS}.")]
Url = Annotated[str, typer.Option("--redis", envvar="FASTRDB_URL", help="The address of Redis.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", envvar="FASTRDB_NAMESPACE", help="Of the cache.")]
Done = tuple[int, Iterable[str]]
"""The status that a command ends with, and the lines that it prints."""
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
    shown: Annotated[bool, typer.Option("--print", help="Print the SQL, for a migration, and change nothing.")] = False,
    redis: Annotated[str, typer.Option("--redis", envvar="FASTRDB_URL", help="Adds the columns in use there.")] = "",
    namespace: Namespace = "",
) -> None:
    """Make the database record its changes: triggers and an outbox. Repeat it in each deploy, behind the migrations.

    Ends with 1 if there is no table to watch.
    """

    async def work(source: ChangeSource) -> Done:
        columns: list[str] = []
        if redis:
            async with connected(redis) as client:
                columns = await columns_in_use(Cache(client, namespace=namespace))
        statements = await source.install_sql(table, columns)
        if shown:
            return 0, [f"{each};" for each in statements] or ["-- nothing to install: the binary log has all changes"]
        await source.run(statements)
        watched = (await source.status(None)).watched
        found = ", ".join(watched) or "nothing, since the schema has no table: run this behind the migrations"
        way = [] if statements else ["Nothing was installed: the binary log has all changes"]
        return int(not watched), [f"Watched: {found}", *way]

    _run(database, work)


@watch.command()
def uninstall(
    database: Database,
    redis: Url = URL,
    namespace: Namespace = "",
    shown: Annotated[bool, typer.Option("--print", help="Print the SQL, and change nothing.")] = False,
) -> None:
    """Remove triggers, outbox, and the watcher's record in Redis. May be repeated."""

    async def work(source: ChangeSource) -> Done:
        statements = await source.uninstall_sql()
        if shown:
            return 0, [f"{each};" for each in statements]
        async with connected(redis) as client:
            await source.run(statements)
            await Journal(Cache(client, namespace=namespace), source.name).forget()
        return 0, [f"No longer watched: {source.name}"]

    _run(database, work)


@watch.command()
def forget(
    name: Annotated[str, typer.Argument(help="Of the database, as `status` shows it.")],
    redis: Url = URL,
    namespace: Namespace = "",
) -> None:
    """Forget a database that is gone. While its heartbeat is old, `Cache(watched=)` bypasses entries."""

    async def work() -> Done:
        async with connected(redis) as client:
            cache = Cache(client, namespace=namespace)
            if not await Journal(cache, name).forget():
                raise OptionError(f"No database {name} is watched; there are: {', '.join(await ages(cache)) or 'none'}")
        return 0, [f"Forgotten: {name}"]

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
        logger.setLevel(logging.DEBUG)

    async def work(source: ChangeSource) -> Done:
        async with (
            connected(redis) as client,
            Cache(client, namespace=namespace, on_error="raise", timeout=5) as cache,
        ):
            watcher = Watcher(source, cache, every=pause)
            return (0, await _polled(watcher, as_json=as_json)) if once else (await _until_signal(watcher), ())

    _run(database, work, as_json=as_json, logged=not once)


async def _polled(watcher: Watcher, *, as_json: bool) -> list[str]:
    """Poll once, and return what to print."""
    try:
        poll = await watcher.poll()
    finally:
        await watcher.source.close()
    if as_json:
        return [json.dumps({"leads": watcher.leads} | ({} if poll is None else asdict(poll)))]
    if poll is None:
        return ["Another watcher leads: `fastrdb watch status` shows which."]
    return [f"Changes: {poll.found}. {poll.lost and f'Everything was invalidated: {poll.lost}.'}".rstrip()]


async def _until_signal(watcher: Watcher) -> int:
    """Run a watcher until SIGTERM or SIGINT. Return 2 if the watcher ends by itself, which its log explains."""
    task = asyncio.ensure_future(watcher.run())
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, task.cancel)
    await asyncio.wait([task])
    if task.cancelled():
        return 0
    with suppress(OptionError):
        task.result()
    return 2


@watch.command()
def status(
    database: Database,
    redis: Url = URL,
    namespace: Namespace = "",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")] = False,
) -> None:
    """Show what is watched and how far the watcher is behind. Ends with 1 where something is to be done.

    Such as: no watcher has left a heartbeat in the last 10 seconds, or a table is not watched.
    """

    async def work(source: ChangeSource) -> Done:
        async with connected(redis) as client:
            cache = Cache(client, namespace=namespace)
            others = await ages(cache)
            position = await Journal(cache, source.name).position()
            state = await source.status(position, await columns_in_use(cache), namespace)
        heartbeat = others.pop(source.name, None)
        state.notes.extend(_silent(state, heartbeat, others))
        lines = _lines(source.name, state, heartbeat, others)
        if as_json:
            found = {"database": source.name} | asdict(state) | {"heartbeat": heartbeat, "others": others}
            lines = iter([json.dumps(found)])
        return int(bool(state.unwatched or state.missing_columns or state.notes)), lines

    _run(database, work, as_json=as_json)


def _silent(state: Status, heartbeat: float | None, others: Mapping[str, float]) -> Iterator[str]:
    """Yield a note for each watcher whose heartbeat is old, and one if there is nothing to watch."""
    if state.installed and not state.watched and not state.unwatched:
        yield "the schema has no table: run `fastrdb watch install` behind the migrations, or correct the address"
    if heartbeat is None or heartbeat > SILENT_S:
        if state.leader is None:
            yield "no watcher is at work: start `fastrdb watch run`, or read its log"
        else:
            yield (
                f"{state.leader} leads, and leaves no heartbeat in this Redis for this namespace: it serves others, or"
                " does not reach Redis. Read its log, and compare --redis and --namespace"
            )
    for name, age in others.items():
        if age > SILENT_S:
            yield (
                f"the watcher of {name} is silent for {age:.0f} s, and `Cache(watched=)` bypasses entries: start it, or"
                f" `fastrdb watch forget {name}` if that database is watched no more"
            )


def _lines(name: str, state: Status, heartbeat: float | None, others: Mapping[str, float]) -> Iterator[str]:
    """Yield what `status` prints."""
    yield f"database: {name}"
    yield f"installed: {'yes' if state.installed else 'no'}"
    if state.installed:
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


def _run(
    database: str, work: Callable[[ChangeSource], Awaitable[Done]], *, as_json: bool = False, logged: bool = False
) -> None:
    """Open the database, do the work, print what it returns, and exit with its status. Wait for it if `logged`."""

    async def done() -> Done:
        async with opened(database, patient=logged) as source:
            return await work(source)

    _ended(done, as_json=as_json, logged=logged)


def _ended(work: Callable[[], Awaitable[Done]], *, as_json: bool = False, logged: bool = False) -> None:
    """Do the work, print what it returns, and exit with its status. Print or log an error in one line: status 2."""

    async def done() -> Done:
        return await work()

    try:
        status, lines = asyncio.run(done())
    except (OptionError, UnreachableError) as error:
        status, lines, text = 2, (), str(error)
        if logged:
            fields = {"fastrdb": {"event": "refused", "reason": text}}
            logger.log(logging.ERROR, "fastrdb watch: %s", text, extra=fields)
        elif as_json:
            lines = [json.dumps({"error": text})]
        else:
            typer.echo(text, err=True)
    for line in lines:
        print(line)
    raise typer.Exit(status)
