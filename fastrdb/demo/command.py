"""The command line: `fastrdb demo`, and with `--serve` the tutorial's application."""

from __future__ import annotations

import asyncio
import gc
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from types import FrameType
from typing import Annotated

import typer
import uvicorn
from rich.console import Console

from fastrdb.demo.app import create_app
from fastrdb.demo.show import ROWS, show
from fastrdb.testing import EmbeddedServer, EmbeddedServerError

cli = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)


@cli.callback()
def fastrdb() -> None:
    """Answer async query functions from Redis, never from before the last committed write."""


@cli.command()
def demo(
    serve: Annotated[bool, typer.Option("--serve", help="Start the tutorial's FastAPI application.")] = False,
    host: Annotated[str, typer.Option(help="Where --serve listens.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Its port; 0 for a free one.")] = 8000,
) -> None:
    """Run the tutorial on an embedded SQLite and a private Redis or Valkey, and show what happens."""
    try:
        with _servers() as (database_url, redis_url):
            if serve:
                with suppress(KeyboardInterrupt):  # it has shut down by then
                    uvicorn.run(create_app(database_url, redis_url, rows=ROWS), host=host, port=port)
            else:
                gc.freeze()  # a collection that walks all that is imported takes longer than what is measured
                asyncio.run(show(Console(markup=False, emoji=False, highlight=False), database_url, redis_url))
    except EmbeddedServerError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(1) from None


def run() -> None:
    """Run the command line. Ended from outside, it cleans up."""
    signal.signal(signal.SIGTERM, _end)
    cli(prog_name="fastrdb")


@contextmanager
def _servers() -> Iterator[tuple[str, str]]:
    """Yield the addresses of a database and a Redis for this run alone: both empty, and removed afterwards."""
    with TemporaryDirectory(prefix="fastrdb-demo-") as directory, EmbeddedServer() as server:
        yield f"sqlite+aiosqlite:///{Path(directory).as_posix()}/demo.sqlite", server.url


def _end(number: int, frame: FrameType | None) -> None:
    sys.exit(0)
