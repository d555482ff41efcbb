"""`python -m benchmarks [--quick]`: measures on a private server, and prints one table."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from time import perf_counter

from redis.asyncio import Redis

from benchmarks import hit, invalidation, memory, miss
from benchmarks.harness import HEADS, SIZES, Row, Sizes, surroundings
from fastrdb.embedded import EmbeddedServer

QUESTIONS = (hit.rows, miss.rows, invalidation.rows, memory.rows)


async def measure(sizes: Sizes) -> tuple[str, list[Row]]:
    """Give what it was measured on, and all rows."""
    found: list[Row] = []
    with EmbeddedServer() as server:
        async with Redis(host="127.0.0.1", port=server.port) as client:
            for rows in QUESTIONS:
                await client.flushall()
                found += await rows(sizes, client)
            return await surroundings(client), found


def show(title: str, rows: Sequence[Row]) -> None:
    """Print the table, by rich where it is installed."""
    try:
        from rich.console import Console  # noqa: PLC0415
        from rich.table import Table  # noqa: PLC0415
    except ImportError:
        print(title)
        for cells in (HEADS, *(row.cells() for row in rows)):
            print(" | ".join(cells))
        return
    table = Table(*HEADS, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row.cells())
    console = Console()
    (console if console.is_terminal else Console(width=150)).print(table)


def main() -> None:
    """Read the command line, measure, print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--quick", action="store_const", const="quick", dest="size", help="less than a minute")
    size.add_argument("--smoke", action="store_const", const="smoke", dest="size", help="a few seconds: does it run?")
    parser.set_defaults(size="full")
    chosen = parser.parse_args().size
    start = perf_counter()
    machine, rows = asyncio.run(measure(SIZES[chosen]))
    show(f"fastrdb, {chosen} run: medians of interleaved rounds\n{machine}", rows)
    print(f"measured in {perf_counter() - start:.0f} s")


if __name__ == "__main__":
    main()
