"""The commands: each connects, reads, and prints a table, or JSON with `--json`."""

from __future__ import annotations

import asyncio
import json
import math
import signal
import sys
from collections.abc import Awaitable, Callable
from dataclasses import asdict
from typing import Annotated, Any

import typer
from rich.console import Console

from fastrdb import Cache, FastRDBError, Inspector

from . import pages, show
from .connect import URL, UnreachableError, connected
from .doctor import Doctor, counted, worst
from .watching import watch

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, rich_markup_mode=None)

Url = Annotated[str, typer.Option("--url", envvar="FASTRDB_URL", help="The address of Redis.")]
Namespace = Annotated[str, typer.Option("--namespace", "-n", envvar="FASTRDB_NAMESPACE", help="Of the cache.")]
Key = Annotated[str, typer.Argument(help="Without the namespace.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for scripts.")]
UNREACHABLE, STOPPED = 2, 130
_MOST_PREFIXES = 20
_PIPE_COLUMNS = 10_000
_NO_TAGS = "no tags: no entry, or its function is invalidated by prefixes"


@cli.callback()
def fastrdb() -> None:
    """Answer async query functions from Redis, never from before the last committed write."""


@cli.command(add_help_option=False, context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def demo() -> None:
    """Run the tutorial on an embedded SQLite and a private Redis or Valkey, and show what happens."""


@cli.command()
def doctor(
    url: Annotated[str, typer.Argument(envvar="FASTRDB_URL", help="The address of Redis.")] = URL,
    namespace: Namespace = "",
    as_json: AsJson = False,
) -> None:
    """Examine a server or a cluster. Ends with 0 if all is well, with 1 for warnings, with 2 for failures."""

    async def examine(client: Any) -> int:
        found = []
        async for each in Doctor(client, namespace).examine():
            found.append(each)
            if not as_json:
                show.diagnosis(console(), each)
        if as_json:
            _print([each.as_json() for each in found])
        return worst(found)

    raise typer.Exit(_run(url, examine, as_json))


@cli.command()
def keys(
    prefix: Annotated[str, typer.Argument(help="Such as 'user:*'; without one, all entries.")] = "",
    limit: Annotated[int, typer.Option(min=1, help="The most that are shown.")] = 100,
    url: Url = URL,
    namespace: Namespace = "",
    as_json: AsJson = False,
) -> None:
    """List entries under a prefix, with TTL and size."""

    async def find(client: Any) -> int:
        found = await (inspector := Inspector(client, namespace)).keys(prefix, limit=limit)
        await _note_index(inspector)
        if as_json:
            _print([asdict(each) for each in found])
        else:
            show.keys(console(), found, limit)
        return 0

    raise typer.Exit(_run(url, find, as_json))


@cli.command()
def get(key: Key, url: Url = URL, namespace: Namespace = "", as_json: AsJson = False) -> None:
    """Show an entry: its JSON, TTL and size. Ends with 1 if there is none."""

    async def read(client: Any) -> int:
        inspector = Inspector(client, namespace)
        entry, raw = await inspector.entry(key), await inspector.value(key)
        if entry is None or raw is None:
            _print_error(f"no entry under {key}", as_json)
            return 1
        if as_json:
            _print(asdict(entry) | {"value": show.parsed(raw)})
        else:
            show.entry(console(), entry, raw)
        return 0

    raise typer.Exit(_run(url, read, as_json))


@cli.command()
def why(key: Key, url: Url = URL, namespace: Namespace = "", as_json: AsJson = False) -> None:
    """Say why a key is answered from Redis now, or why not."""

    async def explain(client: Any) -> int:
        reasons = await Inspector(client, namespace).reasons(key)
        if as_json:
            _print({"key": key, "reasons": reasons})
        else:
            show.lines(console(), reasons)
        return 0

    raise typer.Exit(_run(url, explain, as_json))


@cli.command()
def deps(key: Key, url: Url = URL, namespace: Namespace = "", as_json: AsJson = False) -> None:
    """List the tables and rows that an entry depends on, where its function follows them by itself."""

    async def read(client: Any) -> int:
        found = await Inspector(client, namespace).tags(key)
        _print(found) if as_json else show.lines(console(), found or [_NO_TAGS])
        return 0

    raise typer.Exit(_run(url, read, as_json))


@cli.command()
def who(
    tag: Annotated[str, typer.Argument(help="A table, or 'table:column=value', as `deps` shows it.")],
    limit: Annotated[int, typer.Option(min=1, help="The most that are shown.")] = 100,
    url: Url = URL,
    namespace: Namespace = "",
    as_json: AsJson = False,
) -> None:
    """List the entries with a tag: those that depend on a table, or on the rows with one value."""

    async def find(client: Any) -> int:
        found = await Inspector(client, namespace).tagged(tag, limit=limit)
        more = [f"the first {limit}; --limit shows more"] if len(found) >= limit else []
        none = f"no entry has the tag {tag}: `fastrdb deps KEY` shows the tags of an entry"
        _print(found) if as_json else show.lines(console(), [*found, *more] or [none])
        return 0

    raise typer.Exit(_run(url, find, as_json))


@cli.command()
def invalidate(
    prefix: Annotated[str, typer.Argument(help="Such as 'user:*'. 'user:1' reaches user:10, too.")],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    url: Url = URL,
    namespace: Namespace = "",
    as_json: AsJson = False,
) -> None:
    """Delete the entries under a prefix, after showing their number and asking."""

    async def delete(client: Any) -> int:
        if not prefix:
            _print_error("an empty prefix reaches nothing: '*' is all entries", as_json)
            return UNREACHABLE
        keys = counted(await (inspector := Inspector(client, namespace)).count(prefix), "key")
        await _note_index(inspector)
        if not yes:
            if as_json or not sys.stdin.isatty():
                _print_error(f"{keys} under {prefix}: give --yes to delete what is there", as_json)
                return 1
            if not _confirm(f"Delete {keys} under {prefix}?"):
                return 1
        async with Cache(client, namespace=namespace, timeout=10, on_error="raise") as cache:
            deleted = await cache.invalidate(prefix)
        _print({"deleted": deleted}) if as_json else show.lines(
            console(), [f"{counted(deleted or 0, 'entry')} deleted"]
        )
        return 0

    raise typer.Exit(_run(url, delete, as_json))


@cli.command()
def stats(url: Url = URL, namespace: Namespace = "", as_json: AsJson = False) -> None:
    """Add up the counts of all processes that publish theirs: Cache(publish=True)."""

    async def add_up(client: Any) -> int:
        published = await Inspector(client, namespace).published()
        if as_json:
            _print({"processes": published, "functions": Inspector.totals(published)})
        else:
            console().print(show.functions(published), "", show.dropped(published, _MOST_PREFIXES))
        return 0

    raise typer.Exit(_run(url, add_up, as_json))


@cli.command()
def top(
    url: Url = URL,
    namespace: Namespace = "",
    every: Annotated[float, typer.Option(min=0.1, help="Seconds between two refreshes.")] = 2.0,
    times: Annotated[int, typer.Option(min=0, help="The number of refreshes; 0 until Ctrl-C.")] = 0,
) -> None:
    """Watch functions, hit ratio, loads and what is dropped, of all processes that publish their counts."""

    async def watch(client: Any) -> int:
        await show.top(console(), Inspector(client, namespace), every, times or math.inf)
        return 0

    raise typer.Exit(_run(url, watch, False, stopped=0))


@cli.command()
def docs(page: Annotated[str, typer.Argument(help="Without one, the list of pages.")] = "") -> None:
    """Show a page of the documents that come with the package."""
    if not page:
        show.lines(console(), pages.names())
        return
    if (text := pages.read(page)) is None:
        typer.echo(f"no page {page}; there are: {', '.join(pages.names())}", err=True)
        raise typer.Exit(1)
    pages.show(console(), text)


cli.add_typer(watch, name="watch")


def run() -> None:
    """Run the command line."""
    cli(prog_name="fastrdb")


def console() -> Console:
    """Return the terminal. Text is shown as it is: a key is not markup."""
    # In a pipe a key stays in one line, however long: another program reads it.
    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    return Console(markup=False, emoji=False, highlight=False, soft_wrap=not sys.stdout.isatty(), width=width)


def _run(url: str, work: Callable[[Any], Awaitable[int]], as_json: bool, stopped: int = STOPPED) -> int:
    """Do some work with a client. Return the status; `stopped` is that for Ctrl-C."""

    async def connect() -> int:
        async with connected(url) as client:
            return await work(client)

    try:
        return asyncio.run(connect())
    except KeyboardInterrupt:
        return stopped
    except (UnreachableError, FastRDBError) as error:
        _print_error(str(error), as_json)
        return UNREACHABLE
    except UnicodeEncodeError:  # of bytes that the shell has handed on
        _print_error("an argument is not UTF-8: no key of a cache has such bytes", as_json)
        return UNREACHABLE


async def _note_index(inspector: Inspector) -> None:
    if not (await inspector.index()).whole:
        typer.echo("the index is not whole: there may be entries that it does not have", err=True)


def _confirm(question: str) -> bool:
    """Ask on the terminal. Ctrl-C raises KeyboardInterrupt at once: asyncio's own handler waits for the answer."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return typer.confirm(question)
    except typer.Abort:
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def _print(found: Any) -> None:
    """Print JSON in ASCII: a terminal obeys some of the other characters, and cannot show all of them."""
    typer.echo(json.dumps(found, indent=2))


def _print_error(text: str, as_json: bool) -> None:
    """Print an error: to stderr, or as JSON to stdout, where a script reads answers."""
    if as_json:
        _print({"error": text})
    else:
        typer.echo(text, err=True)
